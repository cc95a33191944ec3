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
from pdopt.models.decoder import Decoder, packed_layers
from pdopt.training.rollout import Rollout, _decode, _prefill, _State
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
    prompts, valid = jnp.asarray(prompts, jnp.int32), jnp.asarray(valid, bool)
    rows = jnp.arange(prompts.shape[0]) if rows is None else jnp.asarray(rows, jnp.int32)
    width, limit = prompts.shape[1], sampling.max_new
    layers = _packed(model)
    state = _first(model, layers, prompts, valid, power_of_two(width + limit), limit, pad)
    lengths = jnp.sum(valid, axis=1)
    for stage in [*range(every, limit, every), limit]:
        state = _more(model, layers, state, lengths, width, stage, key, sampling, rows, pad)
        found = Rollout(state.tokens, state.log_probs, state.sampler_log_probs, state.mask, state.finished, state.count)
        # The next chunk writes over the buffers of this one.
        yield jax.device_get(found)
        if bool(jnp.all(state.done)):
            return


def power_of_two(size: int, least: int = 16) -> int:
    """The least power of two that is at least `size` and `least`.

    Example:
        >>> power_of_two(3), power_of_two(17), power_of_two(64)
        (16, 32, 64)
    """
    return max(least, 1 << (size - 1).bit_length())


@jax.jit
def _packed(model: Decoder) -> tuple[Any, ...]:
    return packed_layers(model.config, model.params)


@partial(jax.jit, static_argnames=("length", "limit", "pad"))
def _first(model: Decoder, layers: Any, prompts: Any, valid: Any, length: int, limit: int, pad: int) -> _State:
    return _prefill(model, layers, prompts, valid, length, limit, pad)


@partial(jax.jit, static_argnames=("pad",), donate_argnames=("state",))
def _more(
    model: Decoder, layers: Any, state: _State, lengths: Any, width: Any, stage: Any, key: Any, sampling: Sampling,
    rows: Any, pad: int,
) -> _State:  # fmt: skip
    return _decode(model, layers, state, lengths, width, stage, key, sampling, rows, pad)
