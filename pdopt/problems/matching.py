"""Online matching with stochastic rewards (Mehta, Panigrahi 2012): bipartite, one side arrives, tries may fail.

Offline vertices u = 1..n wait; online vertices v = 1..T arrive in this order. An arrival v may try one free neighbour u
(or none): with probability `p_uv` the try succeeds, earns `w_u` and takes u away; otherwise u stays and v is lost.
Whoever decides knows the graph seen so far, not the outcomes. The *load* `l_u` is the sum of `p_uv` over past tries of
u: for small p, u is still free with probability `exp(-l_u)`.

As a saddle (design, section 1): an action for v consumes `p_uv` of u and is worth `w_u p_uv`, the multipliers are the
loads, moved by what the try consumed (`pdopt/methods/matching_policies.py`).
"""

from dataclasses import InitVar
from typing import Any

import jax.numpy as jnp
import numpy as np

from pdopt.errors import InvalidProblem, require_shape
from pdopt.problems.checks import check_finite, concrete
from pdopt.runtime.precision import as_array, resolve_dtype
from pdopt.types import record


@record
class StochasticMatching:
    """A bipartite graph with success probabilities, its online side in order of arrival.

    Args:
        probabilities: `(n, T)`; entry (u, v) is the chance that a try of u by v succeeds, 0 where there is no edge.
        weights: `(n,)`, >= 0, earned at most once each; default 1.
        dtype: floating dtype of the data; default: that of the inputs, as for `LinearProgram`.
        check: look at the values; shapes are always checked.

    Raises:
        InvalidProblem: not a matrix, an empty side, NaN, infinity, a probability outside [0, 1], a negative weight.

    Example:
        >>> graph = StochasticMatching([[0.5, 0.5], [0.0, 1.0]], dtype=jnp.float32)
        >>> graph.shape, graph.weights.tolist()
        ((2, 2), [1.0, 1.0])
    """

    probabilities: Any
    weights: Any = None
    dtype: InitVar[Any] = None
    check: InitVar[bool] = True

    def __post_init__(self, dtype: Any, check: bool) -> None:
        dtype = resolve_dtype([("probabilities", self.probabilities), ("weights", self.weights)], dtype)
        p = as_array("probabilities", self.probabilities, dtype)
        if p.ndim != 2 or min(p.shape) < 1:
            raise InvalidProblem(f"probabilities has shape {p.shape}; expected (n, T) with n, T >= 1")
        weights = np.ones(p.shape[0]) if self.weights is None else self.weights
        weights = as_array("weights", weights, dtype)
        require_shape("weights", weights.shape, (p.shape[0],), f"probabilities has {p.shape[0]} rows")
        object.__setattr__(self, "probabilities", p)
        object.__setattr__(self, "weights", weights)
        if check:
            check_finite("probabilities", p)
            check_finite("weights", weights)
            _check_range("probabilities", p, 1.0)
            _check_range("weights", weights, np.inf)

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, T)`: offline vertices and arrivals."""
        return self.probabilities.shape

    def host(self) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities and weights as NumPy float64: what the linear programs are assembled from.

        Raises:
            InvalidProblem: traced data, which cannot be looked at.
        """
        seen = concrete(self.probabilities), concrete(self.weights)
        if seen[0] is None or seen[1] is None:
            raise InvalidProblem("probabilities are traced; expected concrete data: columns are generated on the host")
        return seen[0].astype(np.float64), seen[1].astype(np.float64)


def upper_triangular(n: int, group: int, dtype: Any = None) -> StochasticMatching:
    """The hard family: n groups of `group` identical arrivals, group i adjacent to offline i..n, `p = 1/group`.

    Its matching LP has the value n (group i takes offline i), while an arrival cannot know which neighbour will never
    be asked again. No policy exceeds 1 - 1/e of n by more than O(1/n) when p is small (Karp, Vazirani, Vazirani 1990).

    Raises:
        InvalidProblem: n or group below 1.

    Example:
        >>> upper_triangular(2, 2, jnp.float32).probabilities.tolist()
        [[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5]]
    """
    _check_sizes(n, group)
    return _grouped(np.tril(np.ones((n, n))), group, dtype)


def left_heavy(n: int, group: int, dtype: Any = None) -> StochasticMatching:
    """The family that tells Balance from chance: group i is adjacent to offline i and to the whole upper half.

    n groups of `group` identical arrivals, `p = 1/group`; the upper half are the last `n - n // 2` offline vertices,
    and the matching LP has the value n. The first groups have one private neighbour and many shared ones, which the
    last groups need: choosing at random spends the shared ones first.

    Raises:
        InvalidProblem: n below 2 or group below 1.

    Example:
        >>> left_heavy(4, 1, jnp.float32).probabilities.astype(int).tolist()
        [[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    """
    _check_sizes(n, group, least=2)
    edges = np.eye(n)
    edges[n // 2 :] = 1
    return _grouped(edges, group, dtype)


def _grouped(edges: np.ndarray, group: int, dtype: Any) -> StochasticMatching:
    dtype = jnp.zeros(()).dtype if dtype is None else dtype
    return StochasticMatching(np.repeat(edges, group, axis=1) / group, dtype=dtype)


def _check_sizes(n: Any, group: Any, least: int = 1) -> None:
    for name, value, low in (("n", n, least), ("group", group, 1)):
        if not isinstance(value, int | np.integer) or value < low:
            raise InvalidProblem(f"{name} is {value!r}; expected an integer >= {low}")


def _check_range(name: str, value: Any, high: float) -> None:
    seen = concrete(value)
    if seen is None:
        return
    bad = (seen < 0) | (seen > high)
    if bad.any():
        first = np.unravel_index(int(np.argmax(bad)), bad.shape)
        where = tuple(int(k) for k in first) if seen.ndim > 1 else int(np.argmax(bad))
        expected = f"numbers in [0, {high:g}]" if np.isfinite(high) else "numbers >= 0"
        raise InvalidProblem(f"{name} is {seen[first]:g} at index {where}; expected {expected}")
