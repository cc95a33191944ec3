"""Texts sampled from a decoder: prompts are read once into a cache, then one token a row and step, all compiled.

    prefill:  cache, logits = model(prompts);      decode:  token ~ softmax(logits / T);  logits, cache = model(token)

Prompts are left padded, so that every row's next token lands in the same column and a write is one slice update in
place. The cache grows in powers of two: attention reads the length reached, not the longest possible. Layers are
unrolled with one cache array each, and projections that read the same input are one product.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pdopt.errors import InvalidProblem, require_shape
from pdopt.models.decoder import Cache, Decoder, empty_cache, extend, packed_layers
from pdopt.training.sampling import Sampling, draw

# The shortest cache after the prompt; every stage of a decode doubles it.
FIRST_STAGE = 32


class Rollout(NamedTuple):
    """What was sampled, `(b, max_new)` each; after a row's end tokens are `pad`, log-probabilities 0, mask False.

    Attributes:
        tokens: new tokens, the ending one included.
        log_probs: of the policy at the sampling temperature, before filters: what a training pass recomputes.
        sampler_log_probs: of what the filters left; equal to `log_probs` where none is on.
        mask: which tokens were sampled.
        finished: `(b,)` whether an eos or a stop sequence ended the row.
        steps: decode steps that ran.
    """

    tokens: Any
    log_probs: Any
    sampler_log_probs: Any
    mask: Any
    finished: Any
    steps: Any


class _State(NamedTuple):
    cache: Cache
    logits: Any
    done: Any
    tokens: Any
    log_probs: Any
    sampler_log_probs: Any
    mask: Any
    finished: Any
    count: Any


def generate(
    model: Decoder, prompts: Any, valid: Any, key: Any, sampling: Sampling, rows: Any = None, pad: int = 0
) -> Rollout:
    """Sample one continuation of each prompt.

    Args:
        model: the decoder.
        prompts: `(b, p)` int token ids, left padded; valid: `(b, p)` bool, one real token a row at least, at its end.
        key: a JAX key; the same key gives the same texts however rows are split into batches.
        sampling: what to draw and when to stop; its temperature is traced.
        rows: `(b,)` global numbers of the rows; None counts from 0.
        pad: token id written after a row's end.

    Raises:
        InvalidProblem: shapes that do not match.

    Example:
        >>> from pdopt.models.config import DecoderConfig
        >>> from pdopt.models.decoder import initialise
        >>> config = DecoderConfig(vocabulary=32, width=8, depth=1, heads=2, kv_heads=1, head_dim=4, hidden=16)
        >>> model = Decoder(initialise(config, jax.random.key(0)), config)
        >>> prompts = jnp.array([[0, 5, 7]])
        >>> generate(model, prompts, prompts > 0, jax.random.key(1), Sampling(max_new=4)).tokens.shape
        (1, 4)
    """
    prompts, valid = jnp.asarray(prompts, jnp.int32), jnp.asarray(valid, bool)
    if prompts.ndim != 2:
        raise InvalidProblem(f"prompts has shape {prompts.shape}; expected (rows, tokens)")
    require_shape("valid", valid.shape, prompts.shape, "prompts has that shape")
    rows = jnp.arange(prompts.shape[0]) if rows is None else jnp.asarray(rows, jnp.int32)
    require_shape("rows", rows.shape, prompts.shape[:1], "prompts has that many rows")
    return _generate(model, prompts, valid, key, sampling, rows, pad)


@partial(jax.jit, static_argnames=("pad",))
def _generate(model: Decoder, prompts: Any, valid: Any, key: Any, sampling: Sampling, rows: Any, pad: int) -> Rollout:
    layers = packed_layers(model)
    width = prompts.shape[1]
    lengths = jnp.sum(valid, axis=1)
    limit = sampling.max_new
    stage = min(limit, FIRST_STAGE)
    state = _prefill(model, layers, prompts, valid, width + stage, limit, pad)
    while True:
        state = _decode(model, layers, state, lengths, width, stage, key, sampling, rows, pad)
        if stage == limit:
            break
        stage = min(limit, 2 * stage)
        state = state._replace(cache=_grown(state.cache, width + stage))
    return Rollout(state.tokens, state.log_probs, state.sampler_log_probs, state.mask, state.finished, state.count)


def _prefill(model: Decoder, layers: Any, prompts: Any, valid: Any, length: int, limit: int, pad: int) -> _State:
    """Read the prompts; the logits after each prompt's last token."""
    batch, width = prompts.shape
    dtype = model.params["embed"].dtype if model.execution.compute is None else jnp.dtype(model.execution.compute)
    cache = empty_cache(model.config, batch, length, dtype)
    cache = cache._replace(valid=cache.valid.at[:, :width].set(valid))
    positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
    order = jnp.arange(length)
    mask = (order[None, :] <= jnp.arange(width)[:, None])[None] & cache.valid[:, None, :]
    hidden, cache = extend(model, layers, prompts, positions, mask, cache, 0)
    zeros = jnp.zeros((batch, limit), jnp.float32)
    nothing = jnp.zeros((batch, limit), bool)
    tokens = jnp.full((batch, limit), pad, jnp.int32)
    done = jnp.zeros(batch, bool)
    return _State(cache, model.logits(hidden[:, -1]), done, tokens, zeros, zeros, nothing, done, jnp.int32(0))


def _decode(
    model: Decoder, layers: Any, state: _State, lengths: Any, width: int, stage: int, key: Any, sampling: Sampling,
    rows: Any, pad: int,
) -> _State:  # fmt: skip
    """Steps until every row is done or the stage's columns are full."""

    def running(state: _State) -> Any:
        return (state.count < stage) & ~jnp.all(state.done)

    def step(state: _State) -> _State:
        found = draw(state.logits, sampling, key, rows, state.count)
        alive = ~state.done
        token = jnp.where(alive, found.token, pad)
        put = lambda old, new: lax.dynamic_update_slice_in_dim(old, new[:, None].astype(old.dtype), state.count, 1)
        tokens = put(state.tokens, token)
        ended = alive & _ends(tokens, token, state.count, sampling)
        column = width + state.count
        valid = lax.dynamic_update_slice_in_dim(state.cache.valid, alive[:, None], column, 1)
        cache = state.cache._replace(valid=valid)
        positions = (lengths + state.count)[:, None]
        hidden, cache = extend(model, layers, token[:, None], positions, valid[:, None, :], cache, column)
        return _State(
            cache, model.logits(hidden[:, 0]), state.done | ended, tokens,
            put(state.log_probs, jnp.where(alive, found.log_prob, 0)),
            put(state.sampler_log_probs, jnp.where(alive, found.sampler_log_prob, 0)),
            put(state.mask, alive), state.finished | ended, state.count + 1,
        )  # fmt: skip

    return lax.while_loop(running, step, state)


def _ends(tokens: Any, token: Any, count: Any, sampling: Sampling) -> Any:
    """Whether the newest token ends its row: an eos, or the last of a stop sequence."""
    ended = jnp.zeros(token.shape, bool)
    for eos in sampling.eos:
        ended |= token == eos
    for sequence in sampling.stop:
        size = len(sequence)
        if size > tokens.shape[1]:
            continue
        window = lax.dynamic_slice_in_dim(tokens, jnp.maximum(count + 1 - size, 0), size, 1)
        ended |= jnp.all(window == jnp.asarray(sequence, tokens.dtype), axis=1) & (count + 1 >= size)
    return ended


def _grown(cache: Cache, length: int) -> Cache:
    """The cache with more empty columns: copied once, so that no step reads columns it cannot fill."""
    more = length - cache.valid.shape[1]
    longer = lambda leaf: jnp.pad(leaf, ((0, 0), (0, more), *((0, 0) for _ in leaf.shape[2:])))
    return jax.tree.map(longer, cache)
