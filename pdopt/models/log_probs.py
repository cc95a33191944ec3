"""Log-probabilities and entropies of tokens without ever holding the logits.

    z_v = h . u_v / T;   lse = log sum_v exp z_v;   log p = z_target - lse;   entropy = lse - sum_v exp(z_v - lse) z_v

Tokens go through the head in chunks, and each chunk is made again on the way back (`jax.checkpoint`): that, not the
loop, is what bounds the memory of the gradient, to one chunk of logits and the gradient of the head.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pdopt.errors import require_range, require_shape

CHUNK = 256


class TokenScores(NamedTuple):
    """Of each target token its log-probability, and the entropy of the distribution it was drawn from; float32."""

    log_probs: Any
    entropy: Any


def token_log_probs(hidden: Any, head: Any, targets: Any, temperature: Any = 1.0, chunk: int = CHUNK) -> TokenScores:
    """Scores of `targets` under `softmax(hidden @ head / temperature)`.

    Args:
        hidden: `(..., width)` last hidden states; head: `(width, vocabulary)`; targets: `(...)` int token ids.
        temperature: > 0; divides the hidden states, so it costs nothing.
        chunk: tokens whose logits exist at once, >= 1.

    Raises:
        InvalidProblem: shapes that do not match. InvalidOption: chunk below 1.

    Example:
        >>> scores = token_log_probs(jnp.zeros((1, 2, 4)), jnp.ones((4, 8)), jnp.array([[0, 3]]))
        >>> print(scores.log_probs.round(3), scores.entropy.round(3))
        [[-2.079 -2.079]] [[2.079 2.079]]
    """
    require_shape("targets", jnp.shape(targets), jnp.shape(hidden)[:-1], "hidden has a state for each")
    require_shape("hidden's last axis", jnp.shape(hidden)[-1:], jnp.shape(head)[:1], "head has that many rows")
    require_range("chunk", chunk, 1)
    width, count = hidden.shape[-1], targets.size
    size = min(chunk, max(count, 1))
    blocks = -(-count // size)
    spare = blocks * size - count
    states = jnp.pad(hidden.reshape(-1, width) / jnp.asarray(temperature, hidden.dtype), ((0, spare), (0, 0)))
    tokens = jnp.pad(targets.reshape(-1), (0, spare))

    @jax.checkpoint
    def score(part: tuple[Any, Any]) -> TokenScores:
        logits = jnp.matmul(part[0], head.astype(part[0].dtype), preferred_element_type=jnp.float32)
        lse = jax.nn.logsumexp(logits, axis=-1)
        picked = jnp.take_along_axis(logits, part[1][:, None], axis=-1)[:, 0]
        return TokenScores(picked - lse, lse - jnp.sum(jnp.exp(logits - lse[:, None]) * logits, axis=-1))

    scores = lax.map(score, (states.reshape(blocks, size, width), tokens.reshape(blocks, size)))
    return TokenScores(*(leaf.reshape(-1)[:count].reshape(targets.shape) for leaf in scores))
