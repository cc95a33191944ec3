"""One column of a k-sparse plan, from its scores sorted in falling order: closed forms of conjugates and proximal maps.

Omega(t) = gamma/2 |t|^2 for t >= 0 with at most k entries not 0; s are the scores of a column, `f - c_j` or
`f + g_j - c_j`, of which only the largest matter, so all functions take them sorted.

    Omega*_b(s) = max <s, t> - Omega(t)  over  sum t = b,        t = [s - mu]_+ / gamma  on the top k       (semi-dual)
    Omega*_+(s) = max <s, t> - Omega(t)  over  t >= 0,           t = [s]_+ / gamma       on the top k       (dual)

(Liu, Puigcerver, Blondel 2023, arXiv 2209.15466). Where s has ties at the k-th place the maximiser is not unique, and
what solves a transport problem is a mixture of such columns. The value of mixtures is the convex hull

    Omega**(t) = gamma/2 |t|_k^2 = gamma/2 min { sum t_i^2 / w_i : 0 <= w <= 1, sum w <= k },

the squared k-support norm (Argyriou, Foygel, Srebro 2012; McDonald, Pontil, Stamos 2016). With a proximal term it is
strictly convex, and its maximiser has a closed form too: entries above `(gamma + lambda) kappa` have w = 1, those
below `gamma kappa` have w = 0, in between w = ((s - mu) / kappa - gamma) / lambda, where kappa makes `sum w = k`.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax


class Column(NamedTuple):
    """Entries `(K,)` in the order of the scores, the multiplier mu of `sum t = b`, and whether k was in the way."""

    entries: Any
    mu: Any
    binds: Any


def largest(s: Any, k: int) -> tuple[Any, Any]:
    """The k largest entries of each row in falling order, and where they stand.

    The barrier keeps slices of the result away from the operation: XLA on a CPU would turn it into a sort, which took
    17 times as long (80 rows of 100, float32).

    Example:
        >>> print(largest(jnp.array([[1.0, 3.0, 2.0]]), 2)[0])
        [[3. 2.]]
    """
    return lax.optimization_barrier(lax.top_k(s, k))


def simplex_top(s: Any, b: Any, gamma: Any) -> Column:
    """`argmax <s, t> - gamma/2 |t|^2` over `t >= 0, sum t = b`, of all entries given; s `(k,)` in falling order.

    Example:
        >>> print(simplex_top(jnp.array([3.0, 1.0, 0.0]), 1.0, 1.0).entries)
        [1. 0. 0.]
    """
    first = s[0]
    shifted = s - first  # sums of small numbers: scores are large against gamma b
    ranks = jnp.arange(1, s.shape[0] + 1, dtype=s.dtype)
    levels = (jnp.cumsum(shifted) - gamma * b) / ranks
    # With b = 0 the first level equals the first score.
    support = jnp.maximum(jnp.sum(shifted > levels), 1)
    mu = levels[support - 1]
    return Column(jnp.maximum(shifted - mu, 0) / gamma, mu + first, jnp.bool_(False))


def mixed_simplex(s: Any, b: Any, gamma: Any, k: int, smoothing: Any) -> Column:
    """`argmax <s, t> - Omega**(t) - smoothing/2 |t|^2` over `t >= 0, sum t = b`; s `(K,)` in falling order, K >= k.

    With smoothing 0 it is one k-sparse maximiser.

    Example:
        >>> print(mixed_simplex(jnp.array([1.0, 1.0, 0.0]), 1.0, 1.0, 1, 0.1).entries.round(3))
        [0.5 0.5 0. ]
    """
    plain = simplex_top(s[:k], b, gamma + smoothing)
    if s.shape[0] <= k:
        return plain
    binds = (s[k] > plain.mu) & (smoothing > 0)
    entries, mu = _mixture(s - s[0], b, gamma, k, smoothing)
    return _choose(binds, entries, mu + s[0], plain, s.shape[0])


def mixed_orthant(s: Any, gamma: Any, k: int, smoothing: Any) -> Column:
    """`argmax <s, t> - Omega**(t) - smoothing/2 |t|^2` over `t >= 0`; as `mixed_simplex` with mu = 0.

    Example:
        >>> print(mixed_orthant(jnp.array([1.0, 0.5, -1.0]), 1.0, 2, 0.0).entries)
        [1.  0.5 0. ]
    """
    zero = jnp.zeros((), s.dtype)
    plain = Column(jnp.maximum(s[:k], 0) / (gamma + smoothing), zero, jnp.bool_(False))
    if s.shape[0] <= k:
        return plain
    binds = (s[k] > 0) & (smoothing > 0)
    entries, _ = _mixture(jnp.maximum(s, 0), None, gamma, k, smoothing)
    return _choose(binds, entries, zero, plain, s.shape[0])


def _choose(binds: Any, entries: Any, mu: Any, plain: Column, size: int) -> Column:
    padded = jnp.concatenate([plain.entries, jnp.zeros(size - plain.entries.shape[0], plain.entries.dtype)])
    return Column(jnp.where(binds, entries, padded), jnp.where(binds, mu, plain.mu), binds)


def _mixture(s: Any, b: Any, gamma: Any, k: int, smoothing: Any) -> tuple[Any, Any]:
    """Entries and mu where k binds: p entries with w = 1, then q with w in between; every (p, q) is tried.

    Both levels solve linear equations for given (p, q): `sum w = k`, and `sum t = b` unless b is None (mu = 0). The
    sorted scores must agree with the levels; rounding is met by taking the pair that disagrees least.
    """
    K, dtype = s.shape[0], s.dtype
    smoothing = jnp.where(smoothing > 0, smoothing, 1)
    both = gamma + smoothing
    sums = jnp.concatenate([jnp.zeros(1, dtype), jnp.cumsum(s)])
    p, q = jnp.arange(k)[:, None], jnp.arange(1, K + 1)[None, :]
    end = jnp.minimum(p + q, K)
    head, inside = sums[p], sums[end] - sums[p]
    weight = smoothing * (k - p) + gamma * q  # kappa = (inside - q mu) / weight
    if b is None:
        mu = jnp.zeros((k, K), dtype)
        kappa = inside / weight
    else:
        kappa = (b - (head - p * inside / q) / both) / ((k - p) + p * weight / (q * both))
        mu = (inside - kappa * weight) / q
    edge = jnp.full(1, jnp.inf, dtype)
    fenced = jnp.concatenate([edge, s, -edge])  # score i stands at i + 1
    top, low = both * kappa + mu, gamma * kappa + mu
    wrong = jnp.maximum(
        jnp.maximum(top - fenced[p], fenced[p + 1] - top), jnp.maximum(low - fenced[end], fenced[end + 1] - low)
    )
    wrong = jnp.where((p + q <= K) & (kappa >= 0), wrong, jnp.inf)
    best = jnp.argmin(wrong)
    kappa, mu = kappa.ravel()[best], mu.ravel()[best]
    entries = jnp.minimum((s - mu) / both, (s - mu - gamma * kappa) / smoothing)
    return jnp.maximum(entries, 0), mu


def support_norm(t: Any, k: int) -> Any:
    """`|t|_k^2`, the squared k-support norm of `t >= 0`, `(K,)` in falling order.

    With `r + 1` slots shared by the tail: `sum_{i < k - r} t_i^2 + (sum_{i >= k - r} t_i)^2 / (r + 1)`, for the r at
    which the mean of the tail lies between its neighbours.

    Example:
        >>> t = jnp.array([0.75, 0.125, 0.125])
        >>> print(support_norm(t, 2), support_norm(t, 1))
        0.625 1.0
    """
    if t.shape[0] <= k:
        return jnp.sum(t * t)
    zero = jnp.zeros(1, t.dtype)
    squares = jnp.concatenate([zero, jnp.cumsum(t * t)])
    tails = jnp.concatenate([jnp.cumsum(t[::-1])[::-1], zero])
    slots = jnp.arange(1, k + 1)
    start = k - slots
    mean = tails[start] / slots
    before = jnp.concatenate([jnp.full(1, jnp.inf, t.dtype), t])[start]
    wrong = jnp.maximum(mean - before, t[start] - mean)
    best = jnp.argmin(wrong)
    return squares[start[best]] + tails[start[best]] * mean[best]
