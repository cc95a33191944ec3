"""The state of a training run: all that the next step needs, as one pytree; with it and the data, bits repeat.

The saddle pair is here in plain sight: x is `trainable` (its memory `optimiser`), y the multipliers in `constraints`
(their memory beside them). The key never changes: a step folds its own number into it, so no draw depends on how a run
was cut into pieces.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pdopt.models.decoder import Decoder
from pdopt.training.optimiser import init_moments
from pdopt.training.sections import OptimiserConfig


class TrainState(NamedTuple):
    """What a step reads and returns.

    Attributes:
        step: steps taken, supervised ones included; int32.
        trainable: parameters of the decoder, or its adapters.
        optimiser: their moments, float32.
        constraints: multipliers and the memory of their signals.
        scales: running scales of reward and costs, of the `lagrangian` advantage.
        key: of the whole run.
        bad: steps skipped in a row for a NaN or infinity; int32.
        skipped: steps skipped in all; int32.
        prices: of the experts of every layer (`prices.py`); None where they rest. A step reads them (`priced`) and does
            not return them: between steps they are moved.
    """

    step: Any
    trainable: Any
    optimiser: Any
    constraints: Any
    scales: Any
    key: Any
    bad: Any
    skipped: Any
    prices: Any = None


class Fixed(NamedTuple):
    """What training reads and never changes.

    Attributes:
        model: the decoder whose parameters are replaced (full training: its own are None) or adapted.
        reference: the decoder that KL is measured against, None where nothing asks.
    """

    model: Decoder
    reference: Decoder | None = None


def init_state(trainable: Any, optimiser: OptimiserConfig, constraints: Any, scales: Any, seed: int = 0) -> TrainState:
    """The state before the first step.

    Args:
        trainable: parameters or adapters.
        optimiser: the resolved section.
        constraints, scales: as their modules start them.
        seed: of every draw in the run.
    """
    zero = lambda: jnp.zeros((), jnp.int32)
    moments = init_moments(optimiser, trainable)
    return TrainState(zero(), trainable, moments, constraints, scales, jax.random.key(seed), zero(), zero())


def policy(fixed: Fixed, trainable: Any) -> Decoder:
    """The decoder that is being trained."""
    if fixed.model.params is None:
        return dataclasses.replace(fixed.model, params=trainable)
    return dataclasses.replace(fixed.model, adapters=trainable)


def priced(fixed: Fixed, prices: Any) -> Fixed:
    """The same with the experts' prices of now; None leaves those that the model came with."""
    if prices is None:
        return fixed
    return Fixed(dataclasses.replace(fixed.model, balance=prices), fixed.reference)


def reference_tree(state: TrainState) -> Any:
    """What is kept of a state so that KL can be measured against its policy: parameters, and prices that move."""
    return state.trainable if state.prices is None else (state.trainable, state.prices)


def reference_from(fixed: Fixed, kept: Any) -> Decoder:
    """The decoder of what `reference_tree` gave."""
    params, prices = kept if isinstance(kept, tuple) else (kept, None)
    return policy(priced(fixed, prices), params)


def step_key(state: TrainState) -> Any:
    """The key of the present step's draws."""
    return jax.random.fold_in(state.key, state.step)
