"""Upper bounds on online matching: the matching program, and the two configuration programs by column generation.

A configuration program has a column for every set of arrivals. Column generation keeps a few: solve the restricted
master with pdopt's own solver, read the prices `beta` of the arrivals, price one new set for each offline vertex
(`pdopt/problems/matching_lps.py`), repeat. The prices of an inexact solve are still prices: clipped at 0, they certify
an upper bound, while the master's x, scaled into its rows, earns a lower one. The loop ends when the two meet:

    value <= optimum of the program <= bound,        bound - value <= tolerance (1 + bound)

It is driven from the host, where sets are sorted; masters are dense and padded to powers of two, so that the solver
compiles once for each size and not once for each round. Memory: `(n + T) x columns` numbers.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jax.core import Tracer

from pdopt.errors import InvalidOption, InvalidProblem, require_range
from pdopt.problems.linear import LinearProgram
from pdopt.problems.matching import StochasticMatching
from pdopt.problems.matching_lps import (
    Configuration,
    Family,
    StochasticConfiguration,
    certificate,
    matching_certificate,
)
from pdopt.runtime.precision import precision_scope
from pdopt.solve import solve
from pdopt.types import Pair

# Rows and columns of a master are padded to powers of two, at least these: all small graphs share one compilation.
LEAST_ROWS, LEAST_COLUMNS = 16, 128
DENSE = 1 << 22  # entries up to which the matching program is padded and dense; beyond, sparse and compiled by itself
# Relative accuracy asked of a master: a tenth of the gap still open, down to what its dtype can reach.
FLOOR = {"float64": 1e-10, "float32": 2e-6}


class MatchingBound(NamedTuple):
    """A program's value between two certified numbers (NumPy float64, whatever the problem's dtype).

    Attributes:
        value: what a feasible point of the program earns.
        bound: what no point of the program exceeds: `sum alpha + sum beta`.
        alpha, beta: `(n,)`, `(T,)`, the feasible prices behind the bound.
        columns: `(vertex, members, x)` of the point, one triple for each positive x; members `(T,)` bool.
        rounds: masters solved.
        converged: whether `bound - value <= tolerance (1 + bound)`.
    """

    value: float
    bound: float
    alpha: Any
    beta: Any
    columns: list[tuple[int, Any, float]]
    rounds: int
    converged: bool


def matching_lp(problem: StochasticMatching, *, tolerance: float | None = None) -> MatchingBound:
    """`max sum w_u p_uv x_uv` subject to `sum_v p_uv x_uv <= 1`, `sum_u x_uv <= 1`, `x >= 0`.

    Each offline vertex succeeds at most once on average, each arrival is used at most once (Mehta, Panigrahi 2012). No
    policy earns more, clairvoyant or not.

    Args:
        problem: concrete data (not traced).
        tolerance: relative distance of the two certified values; None: 1e-6 in float64, 1e-4 in float32.

    Returns:
        `MatchingBound`; its columns are single arrivals.

    Raises:
        InvalidProblem: traced data or another problem. InvalidOption: tolerance not positive.

    Example:
        >>> import pdopt
        >>> found = matching_lp(pdopt.upper_triangular(3, 2, jnp.float32))
        >>> round(found.bound, 2), found.converged
        (3.0, True)
    """
    p, weights, tolerance = _checked(problem, tolerance)
    u, v = np.nonzero(p)
    worth = p[u, v] * weights[u]
    n, T = p.shape
    best = _Best(T)
    if len(u):
        A = _rows(n, T, u, v, p[u, v])
        start, asked = None, 0.1 * tolerance
        while True:
            x, y, start = _master(problem, worth, A, asked, start)
            alpha = y[:n]
            bound, beta = matching_certificate(p, weights, alpha)
            best.above(bound, alpha, beta)
            point = _scaled(x, A)
            best.below(float(worth @ point), _named(u, np.eye(T, dtype=bool)[v], point))
            best.rounds += 1
            if best.meets(tolerance) or asked <= _floor(problem):
                break
            asked = max(0.1 * asked, _floor(problem))
    else:
        best.above(0.0, np.zeros(n), np.zeros(T))
    return best.result(tolerance)


def configuration_lp(
    problem: StochasticMatching, *, tolerance: float | None = None, max_rounds: int = 200
) -> MatchingBound:
    """`max sum_u sum_S w_u min(1, p_u(S)) x_uS`, one set for each u, each arrival used once (Huang, Zhang 2020).

    For vanishing p it bounds every policy. For large p it may lie below the best adaptive policy; `(1 + max p)` times
    it never does (`pdopt/problems/matching_lps.py`). Never above `matching_lp`.

    Args:
        problem: concrete data (not traced).
        tolerance: relative distance of the two certified values; None: 1e-6 in float64, 1e-4 in float32.
        max_rounds: masters solved at most.

    Returns:
        `MatchingBound`; where the search for sets met its limit, the bound is that much above and `converged` False.

    Raises:
        InvalidProblem: traced data or another problem. InvalidOption: tolerance not positive, max_rounds below 1.

    Example:
        >>> import pdopt
        >>> graph = pdopt.StochasticMatching([[0.6, 0.6], [0.0, 0.55]], dtype=jnp.float32)
        >>> round(configuration_lp(graph).bound, 3), round(matching_lp(graph).bound, 3)
        (1.15, 1.183)
    """
    return _generate(problem, Configuration(), tolerance, max_rounds)


def stochastic_configuration_lp(
    problem: StochasticMatching, *, tolerance: float | None = None, max_rounds: int = 200
) -> MatchingBound:
    """`max sum_u sum_S w_u (1 - prod_S (1 - p)) x_uS`, an arrival counted only while u still needs it.

    It bounds every policy that does not know outcomes, for every p, and is the tightest of the three: the benchmark is
    Goyal and Udwani's (2020), the configuration program for it an idea of arXiv 2309.10289, this finite-p form is ours
    (`pdopt/problems/matching_lps.py` has the proof). Never above `matching_lp`.

    Args:
        problem: concrete data (not traced); the order of the arrivals matters.
        tolerance: relative distance of the two certified values; None: 1e-6 in float64, 1e-4 in float32.
        max_rounds: masters solved at most.

    Returns:
        `MatchingBound`.

    Raises:
        InvalidProblem: traced data or another problem. InvalidOption: tolerance not positive, max_rounds below 1.

    Example:
        >>> import pdopt
        >>> graph = pdopt.StochasticMatching([[0.6, 0.6], [0.0, 0.55]], dtype=jnp.float32)
        >>> round(stochastic_configuration_lp(graph).bound, 3)
        1.17
    """
    return _generate(problem, StochasticConfiguration(), tolerance, max_rounds)


class _Best:
    """The best certified values so far."""

    def __init__(self, arrivals: int) -> None:
        self.value, self.bound = 0.0, np.inf
        self.alpha, self.beta = np.zeros(0), np.zeros(arrivals)
        self.columns: list[tuple[int, Any, float]] = []
        self.rounds = 0

    def above(self, bound: float, alpha: np.ndarray, beta: np.ndarray) -> None:
        if bound < self.bound:
            self.bound, self.alpha, self.beta = bound, alpha, beta

    def below(self, value: float, columns: list[tuple[int, Any, float]]) -> None:
        if value > self.value:
            self.value, self.columns = value, columns

    def gap(self) -> float:
        return (self.bound - self.value) / (1 + self.bound)

    def meets(self, tolerance: float) -> bool:
        return self.gap() <= tolerance

    def result(self, tolerance: float) -> MatchingBound:
        return MatchingBound(
            self.value, self.bound, self.alpha, self.beta, self.columns, self.rounds, self.meets(tolerance)
        )


def _generate(problem: Any, family: Family, tolerance: float | None, max_rounds: int) -> MatchingBound:
    """Column generation until the certified values meet, no column helps any more, or the rounds are spent."""
    p, weights, tolerance = _checked(problem, tolerance)
    if not isinstance(max_rounds, int | np.integer) or max_rounds < 1:
        raise InvalidOption(f"max_rounds is {max_rounds!r}; expected an integer >= 1")
    n, T = p.shape
    best, pool = _Best(T), _Pool(p, weights, family)
    beta = np.zeros(T)
    bound, priced = certificate(p, weights, beta, family)
    best.above(bound, np.array([max(found.ceiling, 0.0) for found in priced]), beta)
    for u, v in zip(*np.nonzero(p)):
        pool.add(int(u), np.arange(T) == v)
    pool.extend(priced)
    start, asked, floor = None, 1e-3, _floor(problem)
    while best.rounds < max_rounds and not best.meets(tolerance):
        A, worth, vertices, sets = pool.master()
        x, y, start = _master(problem, worth, A, asked, start)
        point = _scaled(x, A)
        best.below(float(worth @ point), _named(vertices, sets, point))
        beta = y[n:]
        bound, priced = certificate(p, weights, beta, family)
        best.above(bound, np.array([max(found.ceiling, 0.0) for found in priced]), beta)
        best.rounds += 1
        fresh = pool.extend(priced)
        if fresh == 0 and asked <= floor:
            break
        asked = max(floor, min(0.1 * best.gap(), asked if fresh else 0.1 * asked))
    return best.result(tolerance)


class _Pool:
    """The columns generated so far, padded to a power of two when asked for."""

    def __init__(self, p: np.ndarray, weights: np.ndarray, family: Family) -> None:
        self.p, self.weights, self.family = p, weights, family
        self.vertices: list[int] = []
        self.sets: list[np.ndarray] = []
        self.worth: list[float] = []
        self.use: list[np.ndarray] = []
        self.known: set[tuple[int, bytes]] = set()

    def add(self, u: int, members: np.ndarray) -> int:
        """Take a column in; 0 where it is known or empty."""
        name = (u, np.packbits(members).tobytes())
        if name in self.known or not members.any():
            return 0
        self.known.add(name)
        self.vertices.append(u)
        self.sets.append(members)
        self.worth.append(self.family.worth(self.p[u], float(self.weights[u]), members))
        self.use.append(self.family.use(self.p[u], members))
        return 1

    def extend(self, priced: list[Any]) -> int:
        """Take in one priced column for each offline vertex; how many were new."""
        return sum(self.add(u, found.members) for u, found in enumerate(priced))

    def master(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Rows `(n + T, K)`, worth `(K,)`, vertices `(K,)` and sets `(K, T)`."""
        n, T = self.p.shape
        vertices = np.array(self.vertices)
        A = np.zeros((n + T, len(vertices)))
        A[vertices, np.arange(len(vertices))] = 1
        A[n:] = np.array(self.use).T
        return A, np.array(self.worth), vertices, np.array(self.sets)


def _master(
    problem: StochasticMatching, worth: np.ndarray, A: Any, tolerance: float, start: Pair | None
) -> tuple[np.ndarray, np.ndarray, Pair]:
    """`max worth'x, A x <= 1, x >= 0` by pdopt: x and y clipped at 0 in float64, and the pair to start from next."""
    dtype = problem.weights.dtype
    rows, columns = A.shape
    m, k = rows, columns
    if not sp.issparse(A):
        m, k = _padded(rows, LEAST_ROWS), _padded(columns, LEAST_COLUMNS)
        A = np.pad(A, ((0, m - rows), (0, k - columns)))
    # A padded row has no side and a padded column earns nothing: both stay 0 and enter no residual.
    full = np.where(np.arange(m) < rows, 1.0, np.inf)
    worth = np.pad(worth, (0, k - columns))
    lp = LinearProgram(worth, A, np.full(m, -np.inf), full, np.zeros(k), maximise=True, dtype=dtype)
    with precision_scope(problem):
        # A start at every solve, the first too: without one the solver would be another program, compiled by itself.
        x, y = (np.zeros(0), jnp.zeros(m, dtype)) if start is None else (np.asarray(start.x), start.y)
        start = Pair(jnp.asarray(np.pad(x, (0, k - len(x))), dtype), y)
    found = solve(lp, start=start, tolerance=tolerance, gradient="none")
    x, y = (np.nan_to_num(np.maximum(np.asarray(part, np.float64), 0)) for part in found.pair)
    return x[:columns], y[:rows], found.pair


def _padded(size: int, least: int) -> int:
    """The next power of two, at least `least`."""
    return max(least, 1 << max(size - 1, 0).bit_length())


def _scaled(x: np.ndarray, A: Any) -> np.ndarray:
    """`x >= 0` scaled down column by column until every row holds: by the fullest row that the column is in."""
    matrix = sp.csc_array(A)
    full = np.maximum(matrix @ x, 1.0)
    most = np.ones(len(x))
    columns = np.repeat(np.arange(len(x)), np.diff(matrix.indptr))
    np.maximum.at(most, columns, full[matrix.indices])
    return x / most


def _named(vertices: np.ndarray, sets: np.ndarray, x: np.ndarray) -> list[tuple[int, Any, float]]:
    return [(int(u), members, float(value)) for u, members, value in zip(vertices, sets, x) if value > 0]


def _rows(n: int, T: int, u: np.ndarray, v: np.ndarray, share: np.ndarray) -> Any:
    """The matching program's rows, one column an edge: `p_uv` in row u, 1 in row n + v."""
    columns = np.arange(len(u))
    entries = np.concatenate([share, np.ones(len(u))])
    places = (np.concatenate([u, n + v]), np.concatenate([columns, columns]))
    A = sp.csc_array((entries, places), shape=(n + T, len(u)))
    return A.toarray() if _padded(n + T, LEAST_ROWS) * _padded(len(u), LEAST_COLUMNS) <= DENSE else A


def _floor(problem: StochasticMatching) -> float:
    return FLOOR[str(problem.weights.dtype)]


def _checked(problem: Any, tolerance: float | None) -> tuple[np.ndarray, np.ndarray, float]:
    """The data on the host, and the tolerance."""
    if not isinstance(problem, StochasticMatching):
        raise InvalidProblem(f"problem has type {type(problem).__name__}; expected StochasticMatching")
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(problem)):
        raise InvalidProblem("problem is traced; expected concrete data: columns are generated on the host")
    if tolerance is None:
        tolerance = 1e-6 if problem.weights.dtype == np.float64 else 1e-4
    require_range("tolerance", tolerance, 0.0, open_low=True)
    return *problem.host(), float(tolerance)
