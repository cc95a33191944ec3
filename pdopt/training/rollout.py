"""Texts sampled from a decoder: prompts are read once into a cache, then one token a row and step, all compiled.

    read:  cache, logits = model(prompts);      step:  token ~ softmax(logits / T);  logits, cache = model(token)

Prompts are left padded, so that every row's next token lands in the same column and a write is one slice update in
place. The cache grows in powers of two: attention reads the length reached, not the longest possible. Layers are
unrolled with one cache array each, and projections that read the same input are one product (`models.decoding`).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pdopt.errors import InvalidProblem, require_range, require_shape
from pdopt.models.decoder import Decoder
from pdopt.models.decoding import Cache, Packed, alone, extend, grown, pack, read, repeated, together
from pdopt.training.sampling import Sampling, draw

# Columns of the cache after the prompt at first; every stage of a decode doubles them, and is compiled apart.
FIRST_STAGE = 64


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


class Progress(NamedTuple):
    """Texts so far: what the next draw needs, and the columns of a `Rollout`, `count` of them filled."""

    cache: Cache
    token: Any
    recent: Any
    done: Any
    tokens: Any
    log_probs: Any
    sampler_log_probs: Any
    mask: Any
    finished: Any
    count: Any

    def rollout(self) -> Rollout:
        """What has been sampled."""
        return Rollout(self.tokens, self.log_probs, self.sampler_log_probs, self.mask, self.finished, self.count)


class Draws(NamedTuple):
    """What every draw of a rollout needs: `generate`'s arguments."""

    key: Any
    sampling: Sampling
    rows: Any
    limits: Any
    pad: int


def generate(
    model: Decoder | Packed, prompts: Any, valid: Any, key: Any, sampling: Sampling, rows: Any = None, pad: int = 0,
    *, group: int = 1, limits: Any = None,
) -> Rollout:  # fmt: skip
    """Sample `group` continuations of each prompt; those of one prompt stand next to each other.

    Args:
        model: the decoder; or its `decoding.pack`, made once for several calls with the same weights.
        prompts: `(p, t)` int token ids, left padded; valid: `(p, t)` bool, one real token a row at least, at its end.
        key: a JAX key; the same key gives the same texts however rows are split into batches.
        sampling: what to draw and when to stop; its temperature is traced.
        rows: `(p * group,)` global numbers of the texts; None counts from 0.
        pad: token id written after a row's end.
        group: texts a prompt, >= 1; a prompt is read once. The texts are those of the prompts repeated.
        limits: `(p * group,)` most tokens of each text, brought into 1 to `max_new`; None: `max_new`. A text that its
            limit ends is not finished.

    Returns:
        A `Rollout` of `b = p * group` rows.

    Raises:
        InvalidProblem: shapes that do not match. InvalidOption: group below 1.

    Example:
        >>> from pdopt.models.config import DecoderConfig
        >>> from pdopt.models.decoder import initialise
        >>> config = DecoderConfig(vocabulary=32, width=8, depth=1, heads=2, kv_heads=1, head_dim=4, hidden=16)
        >>> model = Decoder(initialise(config, jax.random.key(0)), config)
        >>> prompts = jnp.array([[0, 5, 7]])
        >>> generate(model, prompts, prompts > 0, jax.random.key(1), Sampling(max_new=4), group=2).tokens.shape
        (2, 4)
    """
    prompts, valid, rows, limits = checked(prompts, valid, rows, limits, sampling, group)
    return _generate(model, prompts, valid, key, sampling, rows, limits, pad, group)


def checked(prompts: Any, valid: Any, rows: Any, limits: Any, sampling: Sampling, group: int = 1) -> tuple[Any, ...]:
    """Prompts, valid, rows and limits as arrays, or the error that says what is wrong with them."""
    prompts, valid = jnp.asarray(prompts, jnp.int32), jnp.asarray(valid, bool)
    if prompts.ndim != 2:
        raise InvalidProblem(f"prompts has shape {prompts.shape}; expected (rows, tokens)")
    require_shape("valid", valid.shape, prompts.shape, "prompts has that shape")
    require_range("group", group, 1)
    count = prompts.shape[0] * group
    rows = jnp.arange(count, dtype=jnp.int32) if rows is None else jnp.asarray(rows, jnp.int32)
    require_shape("rows", rows.shape, (count,), "there are that many texts")
    limits = jnp.full(count, sampling.max_new, jnp.int32) if limits is None else jnp.asarray(limits, jnp.int32)
    require_shape("limits", limits.shape, (count,), "there are that many texts")
    return prompts, valid, rows, jnp.clip(limits, 1, sampling.max_new)


@partial(jax.jit, static_argnames=("pad", "group"))
def _generate(
    model: Decoder | Packed, prompts: Any, valid: Any, key: Any, sampling: Sampling, rows: Any, limits: Any,
    pad: int, group: int,
) -> Rollout:  # fmt: skip
    packed, width, limit = packed_once(model), prompts.shape[1], sampling.max_new
    # The last token is drawn, never read: it needs no column.
    room = min(limit - 1, FIRST_STAGE)
    hidden, cache = read(packed, prompts, valid, width + room)
    hidden, cache, lengths = repeated((hidden, cache, jnp.sum(valid, axis=1)), group)
    draws = Draws(key, sampling, rows, limits, pad)
    state = first(packed, hidden, cache, draws)
    while room:
        state = onwards(packed, state, lengths, width, room, draws)
        if room == limit - 1:
            break
        more = min(limit - 1, 2 * room) - room
        state, room = state._replace(cache=grown(state.cache, more)), room + more
    return state.rollout()


def first(packed: Packed, hidden: Any, cache: Cache, draws: Draws) -> Progress:
    """The first token of every row, after the prompts were read into the cache; for use inside a program."""
    return _drawn(_empty(cache, draws.sampling, draws.pad), packed.logits(hidden), draws)


def onwards(packed: Packed, state: Progress, lengths: Any, width: Any, room: Any, draws: Draws) -> Progress:
    """Steps until every row is done or has all its tokens, or there are `room` tokens but one; inside a program.

    Args:
        packed, draws: of the rollout; state: so far.
        lengths: `(b,)` tokens of each prompt; width: columns that prompts take in the cache.
        room: columns behind them to fill; the last token drawn needs none.
    """

    def running(state: Progress) -> Any:
        return (state.count <= room) & ~jnp.all(state.done)

    def step(state: Progress) -> Progress:
        column = width + state.count - 1
        valid = lax.dynamic_update_slice_in_dim(state.cache.valid, ~state.done[:, None], column, 1)
        cache = state.cache._replace(valid=valid)
        hidden, cache = extend(packed, state.token, lengths + state.count - 1, cache, column)
        return _drawn(state._replace(cache=cache), packed.logits(hidden), draws)

    state = state._replace(cache=alone(state.cache, packed.execution.mesh))
    state = lax.while_loop(running, step, state)
    return state._replace(cache=together(state.cache))


def packed_once(model: Decoder | Packed) -> Packed:
    """The weights as decoding reads them, whether they are packed already or not; for use inside a program."""
    return model if isinstance(model, Packed) else pack(model)


_pack = jax.jit(pack)


def packed_weights(model: Decoder | Packed) -> Packed:
    """The same as a program of its own, for whoever calls several: weights are packed once for all of them."""
    return model if isinstance(model, Packed) else _pack(model)


def _empty(cache: Cache, sampling: Sampling, pad: int) -> Progress:
    batch, limit = cache.valid.shape[0], sampling.max_new
    zeros, done = jnp.zeros((batch, limit), jnp.float32), jnp.zeros(batch, bool)
    tokens, mask = jnp.full((batch, limit), pad, jnp.int32), jnp.zeros((batch, limit), bool)
    recent = no_recent(batch, sampling)
    return Progress(cache, tokens[:, 0], recent, done, tokens, zeros, zeros, mask, done, jnp.int32(0))


def _drawn(state: Progress, logits: Any, draws: Draws) -> Progress:
    """One more token of every row that is not done."""
    found = draw(logits, draws.sampling, draws.key, draws.rows, state.count)
    alive = ~state.done
    token = jnp.where(alive, found.token, draws.pad)
    put = lambda old, new: lax.dynamic_update_slice_in_dim(old, new[:, None], state.count, 1)
    recent = shifted(state.recent, token)
    ended = alive & ends(recent, draws.sampling)
    return Progress(
        state.cache, token, recent, state.done | ended | (state.count + 1 >= draws.limits), put(state.tokens, token),
        put(state.log_probs, jnp.where(alive, found.log_prob, 0)),
        put(state.sampler_log_probs, jnp.where(alive, found.sampler_log_prob, 0)),
        put(state.mask, alive), state.finished | ended, state.count + 1,
    )  # fmt: skip


def no_recent(rows: int, sampling: Sampling) -> Any:
    """The newest tokens of each row, as many as the longest stop sequence has: none yet."""
    return jnp.full((rows, max([1, *map(len, sampling.stop)])), -1, jnp.int32)


def shifted(recent: Any, token: Any) -> Any:
    """The newest tokens with one more at their end."""
    return jnp.concatenate([recent[:, 1:], token[:, None]], axis=1)


def ends(recent: Any, sampling: Sampling) -> Any:
    """Whether the newest token of each row ends it: an eos, or the last of a stop sequence.

    Example:
        >>> print(ends(jnp.array([[4, 7], [7, 4]]), Sampling(eos=(9,), stop=((4, 7),))))
        [ True False]
    """
    ended = jnp.zeros(recent.shape[0], bool)
    for eos in sampling.eos:
        ended |= recent[:, -1] == eos
    for sequence in sampling.stop:
        ended |= jnp.all(recent[:, -len(sequence) :] == jnp.asarray(sequence, recent.dtype), axis=1)
    return ended
