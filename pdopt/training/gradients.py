"""The gradient of an objective over a batch, in micro-batches whose sum is the gradient of the whole batch.

    g = sum_i grad L_i,     L_i: the part of L = (1 / N) sum_tokens l m that micro-batch i holds, N of the whole batch

The denominators, tokens and rows of the whole batch on all devices, are counted before the first micro-batch, so
cutting the batch changes rounding and nothing else. Sums are float32. Prompt positions are dropped before the head:
only states that a completion's token is read from meet the vocabulary.

A model with experts is routed by its scores, and by the prices it came with, which rest: the formats that its family
is loaded from and exported to have no place for prices (`models.routed`).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pdopt.models.continuations import states_before
from pdopt.models.decoder import Decoder
from pdopt.models.log_probs import TokenScores
from pdopt.models.sharding import ROWS
from pdopt.training.objectives import Totals, totals
from pdopt.training.state import Fixed, policy


class Part(NamedTuple):
    """Rows that a gradient is taken of: b = P G completions of P prompts, those of a prompt one after the other.

    Attributes:
        prompts: `(P, p)` left padded, each once; valid: `(P, p)` real tokens.
        tokens: `(b, t)` completions, right padded; mask: `(b, t)` tokens that count.
        present: `(b, t)` tokens that exist: what later tokens may see.
        sampled: `(b, t)` log-probabilities when they were sampled, None in supervised training.
        old: `(b, t)` log-probabilities before the first update of this batch; None: those of the present policy.
        reference: `(b, t)` log-probabilities under the reference, None where nothing asks.
        advantage: `(b,)` or `(b, t)`, None in supervised training.
        weights: `(b, t)` of tokens that another engine drew (`objectives.engine_weights`), None where none did.
    """

    prompts: Any
    valid: Any
    tokens: Any
    mask: Any
    present: Any
    sampled: Any = None
    old: Any = None
    reference: Any = None
    advantage: Any = None
    weights: Any = None


# Tokens whose activations stay in a core's cache, and in memory that the allocator of a CPU keeps between steps.
CPU_TOKENS = 640

Objective = Callable[[TokenScores, Part, Totals], tuple[Any, dict[str, Any]]]


def completion_scores(model: Decoder, part: Part, temperature: Any = 1.0) -> TokenScores:
    """Log-probability and entropy of every completion token, `(b, t)` float32, at the sampling temperature."""
    hidden = states_before(model, part.prompts, part.valid, part.tokens, part.present)
    return model.scores(hidden, part.tokens, temperature)


def gradient(
    fixed: Fixed,
    trainable: Any,
    part: Part,
    objective: Objective,
    temperature: Any = 1.0,
    micro: int | None = None,
    max_new: int | None = None,
) -> tuple[Any, Any, dict[str, Any]]:
    """`(loss, gradient, metrics)` of a batch.

    Args:
        fixed, trainable: what makes the policy.
        part: the batch.
        objective: scores, part, totals -> this part's share of the loss, and of metrics that add up.
        temperature: of the scores.
        micro: rows at once, a divisor of the batch's; None takes as many as suit the device (`rows_at_once`).
        max_new: longest possible completion, a denominator of some objectives; None: the columns there are.
    """
    whole = totals(part.mask, max_new or part.tokens.shape[1])

    def loss(trainable: Any, part: Part) -> tuple[Any, dict[str, Any]]:
        return objective(completion_scores(policy(fixed, trainable), part, temperature), part, whole)

    rows, mesh = part.tokens.shape[0], fixed.model.execution.mesh
    micro = rows_at_once(part, mesh) if micro is None else micro
    differentiate = jax.value_and_grad(loss, has_aux=True)
    if micro == rows:
        (value, metrics), found = differentiate(trainable, part)
        return value, jax.tree.map(_wide, found), metrics

    def body(total: Any, part: Part) -> tuple[Any, None]:
        return jax.tree.map(lambda old, new: old + _wide(new), total, differentiate(trainable, part)), None

    parts = split_part(part, micro, mesh)
    shape = jax.eval_shape(differentiate, trainable, jax.tree.map(lambda leaf: leaf[0], parts))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), shape)
    ((value, metrics), found), _ = lax.scan(body, zero, parts)
    return value, found, metrics


def scores_in_parts(model: Decoder, part: Part, temperature: Any, micro: int | None) -> TokenScores:
    """`completion_scores` of a batch without its gradient, `micro` rows at a time."""
    rows, mesh = part.tokens.shape[0], model.execution.mesh
    bare = part._replace(sampled=None, old=None, reference=None, advantage=None)
    if micro is None or micro == rows:
        return lax.stop_gradient(completion_scores(model, bare, temperature))
    found = lax.map(lambda one: completion_scores(model, one, temperature), split_part(bare, micro, mesh))
    return jax.tree.map(lax.stop_gradient, _rejoined(found, part, mesh))


def rows_at_once(part: Part, mesh: Any = None) -> int:
    """Rows whose gradient is best computed at once where nobody says: all, but on a CPU as many as fit a core's cache.

    There a step of width 128 takes two thirds of the time, and a tenth of the memory.
    """
    rows = part.tokens.shape[0]
    if mesh is not None or jax.default_backend() != "cpu":
        return rows
    return max(n for n in range(1, rows + 1) if rows % n == 0 and (n == 1 or _columns(part, n) <= CPU_TOKENS))


def _columns(part: Part, micro: int) -> int:
    """Tokens that so many rows make the layers read, pads included."""
    shares = _shares(part, micro)
    return shares.prompts * part.prompts.shape[1] + micro * part.tokens.shape[1]


class _Shares(NamedTuple):
    """A micro-batch: so many prompts, with so many completions of each."""

    prompts: int
    completions: int


def _shares(part: Part, micro: int, mesh: Any = None) -> _Shares:
    """As many completions of the same prompt as there are, so that it is read once; on a mesh, within each device.

    With w devices that rows are split over: `G' = gcd(micro / w, G)` of each of `micro / G'` prompts, which divides P
    because micro divides P G.
    """
    rows, prompts = part.tokens.shape[0], part.prompts.shape[0]
    ways = 1 if mesh is None else math.prod(mesh.shape.get(axis, 1) for axis in ROWS)
    even = ways if prompts % ways == 0 and micro % ways == 0 else 1
    completions = math.gcd(micro // even, rows // prompts)
    return _Shares(micro // completions, completions)


def split_part(part: Part, micro: int, mesh: Any = None) -> Part:
    """A batch as micro-batches of `micro` rows, a divisor of its rows, on a new leading axis.

    Prompts are taken at equal distances, as in `split_rows`; those whose completions do not fit into one micro-batch
    come again in the next.
    """
    shares = _shares(part, micro, mesh)
    blocks = part.tokens.shape[0] // part.prompts.shape[0] // shares.completions
    times = part.prompts.shape[0] // shares.prompts
    once = lambda leaf: jnp.repeat(split_rows(leaf, times), blocks, axis=0)

    def each(leaf: Any) -> Any:
        cut = leaf.reshape(shares.prompts, times, blocks, shares.completions, *leaf.shape[1:])
        return jnp.moveaxis(cut, 0, 2).reshape(times * blocks, micro, *leaf.shape[1:])

    made = jax.tree.map(each, part._replace(prompts=None, valid=None))
    return made._replace(prompts=once(part.prompts), valid=once(part.valid))


def _rejoined(found: Any, part: Part, mesh: Any) -> Any:
    """What micro-batches made, `(count, micro, ...)`, as rows of the whole: back from `split_part`."""

    def joined(leaf: Any) -> Any:
        rows, shares = part.tokens.shape[0], _shares(part, leaf.shape[1], mesh)
        times = part.prompts.shape[0] // shares.prompts
        cut = leaf.reshape(times, -1, *shares, *leaf.shape[2:])
        return jnp.moveaxis(cut, 2, 0).reshape(rows, *leaf.shape[2:])

    return jax.tree.map(joined, found)


def split_batch(part: Part, count: int) -> Part:
    """A batch in `count` minibatches: minibatch i has completions i, i + count, ...

    Where count divides the group, each has some completions of every prompt; else prompts are repeated first.
    """
    group = part.tokens.shape[0] // part.prompts.shape[0]
    prompts, valid = part.prompts, part.valid
    if group % count == 0:
        again = lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape))
    else:
        again = lambda leaf: split_rows(jnp.repeat(leaf, group, axis=0), count)
    rows = split_rows(part._replace(prompts=None, valid=None), count)
    return rows._replace(prompts=again(prompts), valid=again(valid))


def split_rows(tree: Any, count: int) -> Any:
    """Rows `(b, ...)` as `(count, b / count, ...)`: part i has rows i, i + count, ...

    Strided, not in blocks: rows that lie on one device stay there, so that cutting a sharded batch sends nothing.

    Example:
        >>> print(split_rows(jnp.arange(6), 2))
        [[0 2 4]
         [1 3 5]]
    """
    return jax.tree.map(lambda leaf: leaf.reshape(-1, count, *leaf.shape[1:]).swapaxes(0, 1), tree)


def _wide(leaf: Any) -> Any:
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
