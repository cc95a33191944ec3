"""Prices of experts in training: after each step they move by where its tokens went, as `models.routed` moves them.

    loads_l = tokens of the batch that layer l sends to each expert;    prices_l' = move(prices_l, loads_l - mean load)

The prices are the dual variables of balanced routing, beside the multipliers of the constraints in the train state, and
not part of a step: a step reads them. The tokens are counted by a forward pass of their own with the policy of before
the step, about a quarter of the step's work: what the gradient recomputes or shares between completions is then counted
once for each text.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pdopt.errors import InvalidOption
from pdopt.models import routed
from pdopt.models.decoder import Decoder
from pdopt.training.gradients import split_rows


def first_prices(model: Decoder, moving: bool) -> Any:
    """Prices at which training begins: those of the model; where they move, zero if it has none. None for no prices.

    Raises:
        InvalidOption: `moving` without experts.
    """
    if moving and model.config.experts is None:
        raise InvalidOption("model.balance is true and the model has no experts; expected a mixture, or false")
    return model.balance if model.balance is not None or not moving else routed.start(model.config)


@partial(jax.jit, static_argnames=("micro",))
def loads(model: Decoder, prompts: Any, valid: Any, tokens: Any, present: Any, micro: int | None = None) -> Any:
    """Where the tokens of a batch go in each layer: a `Tally` stacked over layers.

    Args:
        model: with its prices.
        prompts, valid: `(b, p)`; tokens, present: `(b, t)`, and which of them exist.
        micro: rows at once; None takes all.
    """
    # The last token is drawn and never read.
    every = jnp.concatenate([prompts, tokens[:, :-1]], axis=1)
    real = jnp.concatenate([valid, present[:, :-1]], axis=1)
    if micro is None or micro == len(every):
        return model.hidden_and_tallies(every, None, real)[1]
    each = lax.map(lambda part: model.hidden_and_tallies(part[0], None, part[1])[1],
                   split_rows((every, real), len(every) // micro))  # fmt: skip
    return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), each)


@jax.jit
def moved(model: Decoder, tallies: Any) -> tuple[Any, dict[str, Any]]:
    """The prices after a batch, and how uneven it was: largest load over mean load, mean and most of the layers."""
    count = tallies.loads.astype(jnp.float32)
    spread = jnp.max(count, axis=-1) / jnp.maximum(jnp.mean(count, axis=-1), 1)
    told = {"experts/load_max": jnp.mean(spread), "experts/load_max_worst": jnp.max(spread)}
    return routed.rebalance(model, tallies).balance, told
