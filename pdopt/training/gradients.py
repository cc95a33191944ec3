"""The gradient of an objective over a batch, in micro-batches whose sum is the gradient of the whole batch.

    g = sum_i grad L_i,     L_i: the part of L = (1 / N) sum_tokens l m that micro-batch i holds, N of the whole batch

The denominators, tokens and rows of the whole batch on all devices, are counted before the first micro-batch, so
cutting the batch changes rounding and nothing else. Sums are float32. Prompt positions are dropped before the head:
only states that a completion's token is read from meet the vocabulary.

A model with experts is routed by its scores, and by the prices it came with, which rest: the formats that its family
is loaded from and exported to have no place for prices (`models.routed`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pdopt.models.decoder import Decoder
from pdopt.models.log_probs import TokenScores
from pdopt.training.objectives import Totals, totals
from pdopt.training.state import Fixed, policy


class Part(NamedTuple):
    """Rows that a gradient is taken of; b rows, p prompt columns, t completion columns.

    Attributes:
        prompts: `(b, p)` left padded; valid: `(b, p)` real tokens.
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
CPU_TOKENS = 512

Objective = Callable[[TokenScores, Part, Totals], tuple[Any, dict[str, Any]]]


def completion_scores(model: Decoder, part: Part, temperature: Any = 1.0) -> TokenScores:
    """Log-probability and entropy of every completion token, `(b, t)` float32, at the sampling temperature."""
    tokens = jnp.concatenate([part.prompts, part.tokens[:, :-1]], axis=1)
    valid = jnp.concatenate([part.valid, part.present[:, :-1]], axis=1)
    hidden = model.hidden(tokens, None, valid)[:, part.prompts.shape[1] - 1 :]
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

    rows = part.tokens.shape[0]
    micro = rows_at_once(part, fixed.model.execution.mesh) if micro is None else micro
    differentiate = jax.value_and_grad(loss, has_aux=True)
    if micro == rows:
        (value, metrics), found = differentiate(trainable, part)
        return value, jax.tree.map(_wide, found), metrics

    def body(total: Any, part: Part) -> tuple[Any, None]:
        return jax.tree.map(lambda old, new: old + _wide(new), total, differentiate(trainable, part)), None

    parts = split_rows(part, rows // micro)
    shape = jax.eval_shape(differentiate, trainable, jax.tree.map(lambda leaf: leaf[0], parts))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), shape)
    ((value, metrics), found), _ = lax.scan(body, zero, parts)
    return value, found, metrics


def scores_in_parts(model: Decoder, part: Part, temperature: Any, micro: int | None) -> TokenScores:
    """`completion_scores` of a batch without its gradient, `micro` rows at a time."""
    rows = part.tokens.shape[0]
    bare = part._replace(sampled=None, old=None, reference=None, advantage=None)
    if micro is None or micro == rows:
        return lax.stop_gradient(completion_scores(model, bare, temperature))
    found = lax.map(lambda one: completion_scores(model, one, temperature), split_rows(bare, rows // micro))
    return jax.tree.map(lambda leaf: lax.stop_gradient(leaf.swapaxes(0, 1).reshape(rows, *leaf.shape[2:])), found)


def rows_at_once(part: Part, mesh: Any = None) -> int:
    """Rows whose gradient is best computed at once where nobody says: all, but on a CPU as many as fit a core's cache.

    There a step of width 128 takes two thirds of the time, and a tenth of the memory.
    """
    rows, columns = part.tokens.shape[0], part.prompts.shape[1] + part.tokens.shape[1]
    if mesh is not None or jax.default_backend() != "cpu":
        return rows
    return max(n for n in range(1, rows + 1) if rows % n == 0 and (n == 1 or n * columns <= CPU_TOKENS))


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
