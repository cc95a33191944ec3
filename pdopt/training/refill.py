"""Many texts through few rows: where one ends, the next prompt moves in, while the others go on.

    until all are done:   admit prompts into empty slots;   decode at most `chunk` steps, all slots together

A batch waits for its longest text; with lengths spread evenly almost half of its work is for rows that are done. Here
the host looks at the slots between chunks, and a chunk ends early once enough of them are empty. The cache is a ring
with one head: every slot writes its next token into the same column, and a new prompt is written into the columns just
behind the head, so that writes stay one slice update and no row has a place of its own (columns carry no order:
positions are turned into the keys). Continuous batching (Orca, Yu et al. 2022) at the grain of a chunk, without paging.

The key of a draw is folded from the text's number and step, so the texts are those of `rollout.generate`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pdopt.errors import require_range
from pdopt.models.decoder import Decoder
from pdopt.models.decoding import Cache, Packed, extend, read
from pdopt.training.rollout import Rollout, checked, ends, no_recent, packed_weights, shifted
from pdopt.training.sampling import Sampling, draw
from pdopt.training.stops import StopText, text_end


class _Slots(NamedTuple):
    """What each slot holds: `row` is its text's number, `count` how many of its tokens are drawn."""

    cache: Cache
    token: Any
    recent: Any
    position: Any
    count: Any
    row: Any
    limit: Any
    done: Any
    head: Any


class _Drawn(NamedTuple):
    """What a call drew, `(slots, steps)`; `ended` marks the token that ended its text."""

    token: Any
    log_prob: Any
    sampler_log_prob: Any
    mask: Any
    ended: Any


def refill(
    model: Decoder | Packed, prompts: Any, valid: Any, key: Any, sampling: Sampling, rows: Any = None, pad: int = 0,
    *, slots: int = 64, chunk: int = 32, share: float | None = None, limits: Any = None, stop: StopText | None = None,
) -> Rollout:  # fmt: skip
    """Sample one continuation of each of `n` prompts, at most `slots` at a time.

    Args:
        model, prompts, valid, key, sampling, rows, pad, limits: as `rollout.generate` takes them, `(n, t)` and `(n,)`.
        slots: rows that are decoded together, >= 1.
        chunk: most steps between two looks of the host, >= 1.
        share: of the slots, in (0, 1]: as soon as so many are empty and prompts wait, the chunk ends; prompts are read
            by so many at a time. None: a quarter up to 16 slots, 4 slots up to 64, then a sixteenth;
            on one core reading 4 prompts at a time was the fastest at 16 and at 64 slots.
        stop: strings that end a text, looked for between chunks.

    Returns:
        A `Rollout` of `n` rows, on the host; `steps` counts those of all slots together.

    Raises:
        InvalidProblem: shapes that do not match. InvalidOption: slots, chunk or share outside their range.

    Example:
        >>> from pdopt.models.config import DecoderConfig
        >>> from pdopt.models.decoder import initialise
        >>> config = DecoderConfig(vocabulary=32, width=8, depth=1, heads=2, kv_heads=1, head_dim=4, hidden=16)
        >>> model = Decoder(initialise(config, jax.random.key(0)), config)
        >>> prompts = jnp.array([[0, 5, 7], [3, 4, 5], [0, 0, 9]])
        >>> refill(model, prompts, prompts > 0, jax.random.key(1), Sampling(max_new=4), slots=2).tokens.shape
        (3, 4)
    """
    require_range("slots", slots, 1)
    require_range("chunk", chunk, 1)
    if share is not None:
        require_range("share", share, 0.0, 1.0, open_low=True)
    prompts, valid, rows, limits = (np.asarray(x) for x in checked(prompts, valid, rows, limits, sampling))
    texts = _Texts.empty(len(prompts), sampling.max_new, pad)
    slots = min(slots, len(prompts))
    many = max(1, min(4, slots // 4), slots // 16) if share is None else max(1, round(share * slots))
    packed = packed_weights(model)
    state = _no_slots(packed, slots, prompts.shape[1], sampling)
    holds, waiting, steps = np.full(slots, -1), 0, 0
    while True:
        while waiting < len(prompts) and (holds < 0).any():
            chosen = np.arange(waiting, min(waiting + many, waiting + int((holds < 0).sum()), len(prompts)))
            places, waiting = np.flatnonzero(holds < 0)[: len(chosen)], waiting + len(chosen)
            # Fewer prompts than are read at a time: the last stands in, and a slot out of range drops it.
            pick = np.pad(chosen, (0, many - len(chosen)), mode="edge")
            where = np.pad(places, (0, many - len(chosen)), constant_values=slots)
            new = (prompts[pick], valid[pick], rows[pick], limits[pick], where)
            state, first = _admit(packed, state, *new, key, sampling)
            holds[places] = chosen
            texts.append(chosen, _taken(first, slice(len(chosen))), stop)
            holds = np.where(texts.done(holds, limits), -1, holds)
        if (holds < 0).all():
            break
        enough = many if waiting < len(prompts) else slots
        state, drawn, ran = _chunk(packed, state, holds < 0, enough, key, sampling, chunk)
        steps += int(ran)
        busy = np.flatnonzero(holds >= 0)
        texts.append(holds[busy], _taken(drawn, busy), stop)
        holds = np.where(texts.done(holds, limits), -1, holds)
    return texts.rollout(steps)


def _taken(drawn: _Drawn, slots: Any) -> _Drawn:
    """What was drawn in these slots, on the host."""
    return jax.tree.map(lambda leaf: leaf[slots], jax.device_get(drawn))


class _Texts(NamedTuple):
    """The texts so far, on the host; its arrays are filled as tokens arrive."""

    tokens: np.ndarray
    log_probs: np.ndarray
    sampler_log_probs: np.ndarray
    finished: np.ndarray
    sizes: np.ndarray
    pad: int

    @classmethod
    def empty(cls, rows: int, limit: int, pad: int) -> "_Texts":
        """No token yet."""
        zeros = lambda: np.zeros((rows, limit), np.float32)
        tokens = np.full((rows, limit), pad, np.int32)
        return cls(tokens, zeros(), zeros(), np.zeros(rows, bool), np.zeros(rows, int), pad)

    def append(self, numbers: np.ndarray, drawn: _Drawn, stop: StopText | None) -> None:
        """Tokens that were drawn for these texts go to their ends; a stop string cuts a text."""
        for i, number in enumerate(numbers):
            size, start = int(drawn.mask[i].sum()), int(self.sizes[number])
            for mine, new in zip(self[:3], drawn[:3]):
                mine[number, start : start + size] = new[i, :size]
            self.sizes[number] = start + size
            self.finished[number] = bool(drawn.ended[i].any())
            end = None if stop is None else text_end(self.tokens[number, : start + size].tolist(), stop)
            if end is not None:
                self.tokens[number, end:] = self.pad
                self.log_probs[number, end:] = self.sampler_log_probs[number, end:] = 0
                self.sizes[number], self.finished[number] = end, True

    def done(self, numbers: np.ndarray, limits: np.ndarray) -> np.ndarray:
        """Which of these texts get no more tokens; -1, no text, does not."""
        return (numbers >= 0) & (self.finished[numbers] | (self.sizes[numbers] >= limits[numbers]))

    def rollout(self, steps: int) -> Rollout:
        """The texts as `generate` returns them."""
        mask = np.arange(self.tokens.shape[1]) < self.sizes[:, None]
        whole = Rollout(self.tokens, self.log_probs, self.sampler_log_probs, mask, self.finished, np.int32(steps))
        return jax.tree.map(jnp.asarray, whole)


def _no_slots(packed: Packed, slots: int, width: int, sampling: Sampling) -> _Slots:
    """Empty slots around a ring that holds a prompt and every token of its text but the last, which is never read."""
    config, length = packed.config, width + sampling.max_new - 1
    dtype = packed.dtype
    keys = tuple(jnp.zeros((slots, config.kv_heads, config.head_dim, length), dtype) for _ in packed.layers)
    values = tuple(jnp.zeros((slots, config.kv_heads, length, config.head_dim), dtype) for _ in packed.layers)
    cache = Cache(keys, values, jnp.zeros((slots, length), bool))
    number = lambda: jnp.zeros(slots, jnp.int32)
    return _Slots(
        cache, number(), no_recent(slots, sampling), number(), number(), number(), number(), jnp.ones(slots, bool),
        jnp.int32(width % length),
    )  # fmt: skip


@partial(jax.jit, donate_argnums=1)
def _admit(
    packed: Packed, state: _Slots, prompts: Any, valid: Any, rows: Any, limits: Any, where: Any, key: Any,
    sampling: Sampling,
) -> tuple[_Slots, _Drawn]:  # fmt: skip
    """Read prompts into the slots `where`, behind the head of the ring, and draw the first token of each."""
    count, width = prompts.shape
    length = state.cache.valid.shape[1]
    hidden, fresh = read(packed, prompts, valid, length)
    turn = lambda leaf, axis: jnp.roll(leaf, state.head - width, axis)
    put = lambda old, new: old.at[where].set(new, mode="drop")
    cache = Cache(
        tuple(put(old, turn(new, 3)) for old, new in zip(state.cache.keys, fresh.keys)),
        tuple(put(old, turn(new, 2)) for old, new in zip(state.cache.values, fresh.values)),
        put(state.cache.valid, turn(fresh.valid, 1)),
    )
    found = draw(packed.logits(hidden), sampling, key, rows, 0)
    recent = shifted(no_recent(count, sampling), found.token)
    ended = ends(recent, sampling)
    sizes, one = jnp.sum(valid, axis=1, dtype=jnp.int32), jnp.ones(count, jnp.int32)
    new = _Slots(cache, found.token, recent, sizes, one, rows, limits, ended | (limits <= 1), state.head)
    kept = jax.tree.map(put, state._replace(cache=None, head=None), new._replace(cache=None, head=None))
    first = _Drawn(found.token, found.log_prob, found.sampler_log_prob, jnp.ones(count, bool), ended)
    return kept._replace(cache=cache, head=state.head), jax.tree.map(lambda leaf: leaf[:, None], first)


@partial(jax.jit, static_argnames=("size",), donate_argnums=1)
def _chunk(
    packed: Packed, state: _Slots, empty: Any, enough: Any, key: Any, sampling: Sampling, size: int
) -> tuple[_Slots, _Drawn, Any]:
    """At most `size` steps; fewer once `enough` slots are done. Slots that the host calls `empty` are."""
    slots, length = state.cache.valid.shape
    zeros, no = jnp.zeros((slots, size), jnp.float32), jnp.zeros((slots, size), bool)
    start = state._replace(done=state.done | empty), _Drawn(zeros.astype(jnp.int32), zeros, zeros, no, no), jnp.int32(0)

    def running(carry: tuple[_Slots, _Drawn, Any]) -> Any:
        return (carry[2] < size) & (jnp.sum(carry[0].done) < enough)

    def step(carry: tuple[_Slots, _Drawn, Any]) -> tuple[_Slots, _Drawn, Any]:
        state, drawn, number = carry
        alive = ~state.done
        valid = lax.dynamic_update_slice_in_dim(state.cache.valid, alive[:, None], state.head, 1)
        hidden, cache = extend(packed, state.token, state.position, state.cache._replace(valid=valid), state.head)
        found = draw(packed.logits(hidden), sampling, key, state.row, state.count)
        token = jnp.where(alive, found.token, state.token)
        recent = shifted(state.recent, token)
        ended = alive & ends(recent, sampling)
        count = state.count + alive
        new = _Drawn(token, found.log_prob, found.sampler_log_prob, alive, ended)
        drawn = jax.tree.map(lambda old, one: lax.dynamic_update_slice_in_dim(old, one[:, None], number, 1), drawn, new)
        done = state.done | ended | (count >= state.limit)
        head = (state.head + 1) % length
        state = _Slots(cache, token, recent, state.position + 1, count, state.row, state.limit, done, head)
        return state, drawn, number + 1

    return lax.while_loop(running, step, start)
