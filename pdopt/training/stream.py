"""A text as it comes: the rollout of `generate`, in chunks that the host reads between compiled calls.

The tokens are those of `pdopt.training.rollout.generate` with the same key: only where the loop pauses differs. The
cache has one length, a power of two, so that one compiled decode serves every prompt and every chunk.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pdopt.errors import require_range
from pdopt.models.decoder import Decoder
from pdopt.models.decoding import Packed, read
from pdopt.training.prompts import bucket_of
from pdopt.training.rollout import Draws, Progress, Rollout, checked, first, onwards, packed_weights
from pdopt.training.sampling import Sampling

EVERY = 16


def stream(
    model: Decoder, prompts: Any, valid: Any, key: Any, sampling: Sampling, rows: Any = None, pad: int = 0,
    every: int = EVERY,
) -> Iterator[Rollout]:  # fmt: skip
    """The rollout so far, after every chunk, until every row has ended; the last one is the whole.

    Args:
        model, prompts, valid, key, sampling, rows, pad: as `generate`'s.
        every: tokens to a chunk, >= 1.

    Example:
        >>> from pdopt.models.config import DecoderConfig
        >>> from pdopt.models.decoder import initialise
        >>> config = DecoderConfig(vocabulary=32, width=8, depth=1, heads=2, kv_heads=1, head_dim=4, hidden=16)
        >>> model = Decoder(initialise(config, jax.random.key(0)), config)
        >>> prompts = jnp.array([[0, 5, 7]])
        >>> parts = stream(model, prompts, prompts > 0, jax.random.key(1), Sampling(max_new=5), every=2)
        >>> [int(part.steps) for part in parts]
        [2, 4, 5]
    """
    require_range("every", every, 1)
    prompts, valid, rows, limits = checked(prompts, valid, rows, None, sampling)
    width, limit = prompts.shape[1], sampling.max_new
    packed, draws = packed_weights(model), Draws(key, sampling, rows, limits, pad)
    state = _first(packed, prompts, valid, bucket_of(width + limit), draws)
    lengths = jnp.sum(valid, axis=1)
    for stage in [*range(every, limit, every), limit]:
        state = _more(packed, state, lengths, width, stage, draws)
        # The next chunk writes over the buffers of this one.
        yield jax.device_get(state.rollout())
        if bool(jnp.all(state.done)):
            return


@partial(jax.jit, static_argnames=("length",))
def _first(packed: Packed, prompts: Any, valid: Any, length: int, draws: Draws) -> Progress:
    """The prompts are read and the first token is drawn."""
    hidden, cache = read(packed, prompts, valid, length)
    return first(packed, hidden, cache, draws)


@partial(jax.jit, donate_argnames=("state",))
def _more(packed: Packed, state: Progress, lengths: Any, width: Any, stage: Any, draws: Draws) -> Progress:
    """Steps until `stage` tokens are there."""
    return onwards(packed, state, lengths, width, stage - 1, draws)
