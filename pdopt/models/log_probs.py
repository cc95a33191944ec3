"""Log-probabilities and entropies of tokens without ever holding the logits.

    z_v = h . u_v / T;   lse = log sum_v exp z_v;   log p = z_target - lse;   entropy = lse - sum_v exp(z_v - lse) z_v

Tokens go through the head in chunks, and each chunk is made again on the way back (`jax.checkpoint`): that, not the
loop, is what bounds the memory of the gradient, to one chunk of logits and the gradient of the head. Few logits, up to
`KEPT` in all, are made once and kept.

On a mesh each device scores its own rows, and the gradient of the head is summed over devices once, after the last
chunk; left to the compiler, every device scores all rows and sums after each.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from pdopt.errors import require_range, require_shape
from pdopt.models.sharding import ROWS, rows_divide

# Tokens at once: as many as make `LOGITS` logits, within these. At a vocabulary of 151 936, 128 tokens took half the
# memory of 256 and no more time, since the gradient of the head outgrows the cache anyway.
FEWEST, MOST, LOGITS = 128, 256, 2**24
# Logits up to which keeping all of them for the way back is cheaper than making them again.
KEPT = 2**19


class TokenScores(NamedTuple):
    """Of each target token its log-probability, and the entropy of the distribution it was drawn from; float32."""

    log_probs: Any
    entropy: Any


def token_log_probs(
    hidden: Any,
    head: Any,
    targets: Any,
    temperature: Any = 1.0,
    chunk: int | None = None,
    mesh: Any = None,
    cap: float | None = None,
) -> TokenScores:
    """Scores of `targets` under `softmax(hidden @ head / temperature)`.

    Args:
        hidden: `(..., width)` last hidden states; head: `(width, vocabulary)`; targets: `(...)` int token ids.
        temperature: > 0; divides the hidden states, so it costs nothing.
        chunk: tokens whose logits exist at once, on each device, >= 1; None: 128 to 256 by the vocabulary, or all
            where that makes at most `KEPT` logits.
        mesh: splits the first axis of hidden and targets over `data` and `fsdp` (`Execution.mesh`); None: no mesh.
        cap: c, where logits are `c tanh(hidden @ head / c)` before the temperature (`DecoderConfig.logit_cap`).

    Raises:
        InvalidProblem: shapes that do not match. InvalidOption: chunk below 1.

    Example:
        >>> scores = token_log_probs(jnp.zeros((1, 2, 4)), jnp.ones((4, 8)), jnp.array([[0, 3]]))
        >>> print(scores.log_probs.round(3), scores.entropy.round(3))
        [[-2.079 -2.079]] [[2.079 2.079]]
    """
    require_shape("targets", jnp.shape(targets), jnp.shape(hidden)[:-1], "hidden has a state for each")
    require_shape("hidden's last axis", jnp.shape(hidden)[-1:], jnp.shape(head)[:1], "head has that many rows")
    if chunk is not None:
        require_range("chunk", chunk, 1)
    if not rows_divide(mesh, jnp.shape(hidden)[0]):
        return _scores(hidden, targets, head, temperature, chunk, cap=cap)
    places = (P(ROWS), P(ROWS), P("fsdp", "tensor"), P())
    local = jax.shard_map(partial(_local_scores, chunk=chunk, cap=cap), mesh=mesh, in_specs=places, out_specs=P(ROWS))
    return local(hidden, targets, head, jnp.asarray(temperature, jnp.float32))


def _local_scores(
    hidden: Any, targets: Any, head: Any, temperature: Any, chunk: int | None, cap: float | None
) -> TokenScores:
    """One device's rows under its part of the vocabulary."""
    # Made to vary over devices before the loop: gradients are then summed over devices behind the loop, not in it.
    whole = lax.pcast(lax.all_gather(head, "fsdp", axis=0, tiled=True), "data", to="varying")
    return _scores(lax.pcast(hidden, "tensor", to="varying"), targets, whole, temperature, chunk, "tensor", cap)


def _scores(
    hidden: Any, targets: Any, head: Any, temperature: Any, chunk: int | None, axis: str | None = None,
    cap: float | None = None,
) -> TokenScores:  # fmt: skip
    """The scores chunk by chunk; `axis` names the mesh axis that splits the vocabulary, if one does."""
    width, count = hidden.shape[-1], targets.size
    few = count * head.shape[1] <= KEPT
    size = max(count if chunk is None and few else min(chunk or rows_at_once(head.shape[1]), count), 1)
    blocks = -(-count // size)
    spare = blocks * size - count
    divided = hidden if cap is not None else hidden / jnp.asarray(temperature, hidden.dtype)
    states = jnp.pad(divided.reshape(-1, width), ((0, spare), (0, 0)))
    tokens = jnp.pad(targets.reshape(-1), (0, spare))
    first = 0 if axis is None else lax.axis_index(axis) * head.shape[1]
    total = lambda x: x if axis is None else lax.psum(x, axis)
    highest = lambda x: x if axis is None else lax.pmax(x, axis)

    def score(part: tuple[Any, Any]) -> TokenScores:
        logits = jnp.matmul(part[0], head.astype(part[0].dtype), preferred_element_type=jnp.float32)
        if cap is not None:
            logits = cap * jnp.tanh(logits / cap) / temperature
        peak = highest(jnp.max(lax.stop_gradient(logits), axis=-1))
        weights = jnp.exp(logits - peak[:, None])
        whole = total(jnp.sum(weights, axis=-1))
        lse = peak + jnp.log(whole)
        # A sum, not a look-up: its gradient is one more term of the logits', where that of a look-up is a scatter.
        here = lax.broadcasted_iota(jnp.int32, logits.shape, 1) == (part[1] - first)[:, None]
        picked = total(jnp.sum(jnp.where(here, logits, 0), axis=-1))
        return TokenScores(picked - lse, lse - total(jnp.sum(weights * logits, axis=-1)) / whole)

    if blocks > 1 or not few:
        score = jax.checkpoint(score)
    scores = lax.map(score, (states.reshape(blocks, size, width), tokens.reshape(blocks, size)))
    return TokenScores(*(leaf.reshape(-1)[:count].reshape(targets.shape) for leaf in scores))


def rows_at_once(vocabulary: int) -> int:
    """Tokens whose logits exist at once, where nobody says how many."""
    return min(MOST, max(FEWEST, LOGITS // vocabulary))
