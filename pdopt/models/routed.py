"""Experts inside the decoder: `models/experts.py` on the tokens of a block, and the prices of all layers.

    out = mixture(experts, router, -prices, n);     rebalance:  prices' = move(prices, loads - mean load)

The prices are no parameters: they stand in `Decoder.balance`, beside the weights, where no gradient, optimiser or
weight decay sees them, and move by the tallies of a step (`Decoder.hidden_and_tallies`), pads not counted. A model
without prices routes by its scores alone, as the families that we load do.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pdopt.errors import InvalidOption
from pdopt.methods.balancing import Balancer, Prices
from pdopt.models.config import DecoderConfig, Mixture
from pdopt.models.dispatch import Weights
from pdopt.models.experts import ExpertsConfig, mixture
from pdopt.problems.balancing import Tally

# As in `ExpertsConfig`: scores move with every training step, and a mean over few of them follows.
BALANCER = Balancer(floor=0.1)


def mix(experts: Mixture, part: Any, bias: Any, n: Any, valid: Any = None) -> tuple[Any, Tally]:
    """The mixture's output for `n (b, t, width)`, and the tally of its valid tokens.

    Args:
        experts: sizes.
        part: router `(width, E)`, gate and up `(E, width, hidden)`, down `(E, hidden, width)`.
        bias: `(E,)`, or None for zero.
        n: normalised hidden states.
        valid: `(b, t)` which of them are real tokens; None: all.
    """
    # A CPU has no kernel for ragged products and would compute every expert for every token.
    layout = "blocks" if jax.default_backend() == "cpu" else "ragged"
    config = ExpertsConfig(
        width=n.shape[-1], hidden=experts.hidden, experts=experts.count, top=experts.top, scores=experts.scores,
        normalise=experts.normalise, layout=layout, dtype=n.dtype,
    )  # fmt: skip
    weights = Weights(part["gate"], part["up"], part["down"])
    bias = jnp.zeros(experts.count, jnp.float32) if bias is None else bias
    counted = None if valid is None else valid.reshape(-1)
    flat = n.reshape(-1, n.shape[-1])
    out, report = mixture(config, weights, part["router"], bias, flat, valid=counted)
    return out.reshape(n.shape), report.tally


def start(config: DecoderConfig, balancer: Balancer = BALANCER) -> Prices:
    """Prices of zero for every layer, stacked.

    Raises:
        InvalidOption: a model without experts.

    Example:
        >>> config = DecoderConfig(vocabulary=32, width=8, depth=3, heads=2, kv_heads=1, head_dim=4, hidden=16,
        ...                        experts=Mixture(count=4, top=2, hidden=8))
        >>> start(config).y.shape
        (3, 4)
    """
    if config.experts is None:
        raise InvalidOption("config has no experts; expected a mixture to balance")
    one = balancer.start(config.experts.count)
    return jax.tree.map(lambda leaf: jnp.repeat(leaf[None], config.depth, axis=0), one)


def rebalance(model: Any, tallies: Tally, balancer: Balancer = BALANCER) -> Any:
    """The model with the prices of all layers moved, after the optimiser's step, by the tallies of the whole batch.

    Args:
        model: a `Decoder` with experts; its first prices are made here where it has none.
        tallies: stacked over layers, from `hidden_and_tallies`; of several microbatches, their sum (`add_tallies`).
        balancer: the step rule.

    Raises:
        InvalidOption: a model without experts.
    """
    prices = start(model.config, balancer) if model.balance is None else model.balance
    move = lambda one, tally: balancer.update(one, tally, top=model.config.experts.top)
    return model.replace(balance=jax.vmap(move)(prices, tallies))
