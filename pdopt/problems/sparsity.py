"""Quadratic and k-sparse transport: regularisers whose plans have zeros.

    Quadratic(gamma)    R(T) = gamma/2 |T|^2                                    (Blondel, Seguy, Rolet 2018, 1710.06276)
    KSparse(gamma, k)   the same, at most k entries in each column        (Liu, Puigcerver, Blondel 2023, 2209.15466)

Semi-dual, a concave function of the potentials f alone:   <f, a> - sum_j Omega*_{b_j}(f - c_j)   (`top_k.py`).

Where k binds, the k-sparse problem is not convex and its semi-dual has kinks: at the best f the k-sparse plan leaves
the rows open, and no f closes them. What closes them is a mixture of k-sparse columns, the solution of the convex hull
of the problem, whose R is the squared k-support norm. Both are returned: the mixture as `solution.x`, feasible to the
tolerance, with its objective, and one k-sparse plan with its own row error in `solution.certificate`. The dual
objective is a lower bound for both problems, and equals the mixture's objective at the optimum.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pdopt.errors import InvalidOption, require_range
from pdopt.problems.checks import concrete
from pdopt.problems.couplings import Marginals, Potentials, marginal_error
from pdopt.problems.quadratic_plan import QuadraticPlan, quadratic_marginals, quadratic_value
from pdopt.problems.regularisers import Regulariser
from pdopt.problems.sparse_columns import SparseColumns, TransposedColumns
from pdopt.problems.top_k import largest, mixed_orthant, mixed_simplex, support_norm
from pdopt.types import Optimality, Pair, Residuals, record

SPARE = 32  # slots for the entries of a mixture beyond twice k: ties are rare, and 3 to 5 entries in all are usual
LIMIT = 20_000  # steps taken by default; a few hundred are usual
SIDES = ("column", "row")


@record
class Quadratic(Regulariser):
    """`gamma/2 |T|^2`, with the plan `T = [f (+) g - C]_+ / gamma`.

    Attributes:
        gamma: > 0, cost per mass.

    Raises:
        InvalidOption: gamma is not > 0.

    Example:
        >>> Quadratic(0.1).gamma
        0.1
    """

    gamma: Any
    max_iterations = LIMIT

    def __post_init__(self) -> None:
        if concrete(self.gamma) is not None:
            require_range("gamma", self.gamma, 0.0, open_low=True)

    def shapes(self, problem: Any) -> Marginals:
        """The marginals of the plan."""
        n, m = problem.shape
        return Marginals(*(jax.ShapeDtypeStruct((size,), problem.cost.dtype) for size in (n, m)))

    def inside(self, problem: Any, y: Potentials) -> Marginals:
        """The marginals of the plan that y defines."""
        return quadratic_marginals(problem.cost, y, self.gamma)

    def plan(self, problem: Any, pair: Pair) -> QuadraticPlan:
        """The plan of the potentials."""
        return QuadraticPlan(problem.cost, pair.y.f, pair.y.g, self.gamma)

    def optimality(self, problem: Any, pair: Pair) -> Optimality:
        """L1 error of both marginals of the plan of the potentials, and its gap `<f, T1 - a> + <g, T'1 - b>`."""
        y, a, b = pair.y, problem.a, problem.b
        marginals = quadratic_marginals(problem.cost, y, self.gamma)
        bound = quadratic_value(problem, y, self.gamma)
        objective = bound + jnp.vdot(y.f, marginals.row - a) + jnp.vdot(y.g, marginals.column - b)
        error = marginal_error(marginals, a, b)
        return Optimality(_residuals(error, objective, bound, a), objective, bound, error)

    def lagrangian(self, problem: Any, pair: Pair) -> Any:
        """The dual function at the potentials, whose derivative is that of the value."""
        return quadratic_value(problem, pair.y, self.gamma)


class SparseProof(NamedTuple):
    """What a k-sparse solution is judged by.

    Attributes:
        row, column: L1 errors of the marginals of `solution.x`, the mixture.
        plan: one k-sparse plan, a maximiser at the potentials; its marginal on the sparse side is exact.
        plan_error: L1 error of its other marginal; not near 0 where k binds.
        nonzeros: entries of each column (row, with `by="row"`) of the mixture.
        binding: columns in which more than k entries would be used if they were allowed.
    """

    row: Any
    column: Any
    plan: Any
    plan_error: Any
    nonzeros: Any
    binding: Any


@record(static=("k", "by", "slots"))
class KSparse(Regulariser):
    """`gamma/2 |T|^2` and at most k entries in each column of the plan.

    With k = n it is `Quadratic`; with k = 1 the value is that of unregularised transport plus `gamma/2 sum_j b_j^2`.

    Attributes:
        gamma: > 0, cost per mass.
        k: >= 1, entries of a column.
        by: "column", or "row" for at most k entries in each row.
        slots: entries of a column kept for the mixture; None: all up to `2 k + 32`. A mixture that needs more shows a
            marginal error.

    Raises:
        InvalidOption: a setting outside its range.

    Example:
        >>> import pdopt
        >>> problem = pdopt.Transport([[0.0, 1.0], [1.0, 0.0]], regulariser=KSparse(0.1, 1), dtype=jnp.float32)
        >>> solution = pdopt.solve(problem, tolerance=1e-4)
        >>> print(solution.x.todense().round(3), solution.certificate.plan.nonzeros())
        [[0.5 0. ]
         [0.  0.5]] [1 1]
    """

    gamma: Any
    k: int
    by: str = "column"
    slots: int | None = None
    max_iterations = LIMIT

    def __post_init__(self) -> None:
        if concrete(self.gamma) is not None:
            require_range("gamma", self.gamma, 0.0, open_low=True)
        if not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1:
            raise InvalidOption(f"k is {self.k!r}; expected an integer >= 1")
        if self.by not in SIDES:
            raise InvalidOption(f"by is {self.by!r}; expected one of {SIDES}")
        if self.slots is not None and (not isinstance(self.slots, int) or self.slots < self.k):
            raise InvalidOption(f"slots is {self.slots!r}; expected an integer >= k = {self.k}")

    def columns(self, problem: Any) -> "Columns":
        """The problem with the sparse side as its columns."""
        cost = problem.cost if self.by == "column" else problem.cost.transpose()
        a, b = (problem.a, problem.b) if self.by == "column" else (problem.b, problem.a)
        n = cost.shape[0]
        slots = 2 * self.k + SPARE if self.slots is None else self.slots
        return Columns(cost.transpose(), a, b, self.gamma, min(self.k, n), min(slots, n))

    def turned(self, y: Potentials) -> Potentials:
        """Potentials with the sparse side second; its own inverse."""
        return y if self.by == "column" else Potentials(y.g, y.f)

    def shapes(self, problem: Any) -> SparseColumns:
        """The mixture: values and rows of each column."""
        return jax.eval_shape(lambda p: self.columns(p).nothing(), problem)

    def inside(self, problem: Any, y: Potentials) -> SparseColumns:
        """One k-sparse plan of the potentials."""
        columns = self.columns(problem)
        return columns.padded(columns.sparse(self.turned(y).f)[0])

    def adopt(self, problem: Any, x: Any, y: Potentials) -> SparseColumns:
        """The mixture of an earlier solution where it fits, else the k-sparse plan of the potentials."""
        plan = x.plan if isinstance(x, TransposedColumns) else x
        like = self.shapes(problem)
        fits = isinstance(plan, SparseColumns) and isinstance(x, TransposedColumns) == (self.by == "row")
        if fits and plan.values.shape == like.values.shape and plan.rows == like.rows:
            return SparseColumns(plan.values, plan.indices, plan.rows)
        return self.inside(problem, y)

    def plan(self, problem: Any, pair: Pair) -> SparseColumns | TransposedColumns:
        """The mixture."""
        return self._shown(pair.x)

    def _shown(self, plan: SparseColumns) -> SparseColumns | TransposedColumns:
        return plan if self.by == "column" else TransposedColumns(plan)

    def optimality(self, problem: Any, pair: Pair) -> Optimality:
        """L1 error of the mixture's marginals, and the gap between its value and the semi-dual at f."""
        columns, plan = self.columns(problem), pair.x
        sparse, bound, binding = columns.sparse(self.turned(pair.y).f)
        objective = columns.objective(plan)
        error = marginal_error(Marginals(plan.row_sums(), plan.column_sums()), columns.a, columns.b)
        plan_error = jnp.sum(jnp.abs(sparse.row_sums() - columns.a))
        sides = error if self.by == "column" else Marginals(error.column, error.row)
        proof = SparseProof(*sides, self._shown(sparse), plan_error, plan.nonzeros(), binding)
        return Optimality(_residuals(error, objective, bound, columns.a), objective, bound, proof)

    def lagrangian(self, problem: Any, pair: Pair) -> Any:
        """`<C, T> + R**(T) + <f, a - T1> + <g, b - T'1>` with the mixture and the potentials held."""
        columns, plan, y = self.columns(problem), pair.x, self.turned(pair.y)
        open_rows, open_columns = columns.a - plan.row_sums(), columns.b - plan.column_sums()
        return columns.objective(plan) + jnp.vdot(y.f, open_rows) + jnp.vdot(y.g, open_columns)


@record(static=("k", "slots"))
class Columns:
    """k-sparse transport as its columns see it: `costs (m, n)` holds one column of C in each row.

    Every verb reads the costs once, in blocks of columns; what comes back is `O(slots m)`.
    """

    costs: Any
    a: Any
    b: Any
    gamma: Any
    k: int
    slots: int

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, m)`."""
        m, n = self.costs.shape
        return n, m

    def nothing(self) -> SparseColumns:
        """The plan 0."""
        n, m = self.shape
        indices = jnp.broadcast_to(jnp.arange(self.slots, dtype=jnp.int32), (m, self.slots))
        return SparseColumns(jnp.zeros((m, self.slots), self.costs.dtype), indices, n)

    def padded(self, plan: SparseColumns) -> SparseColumns:
        """The same plan in all slots; the empty ones stand in rows that the column does not use."""
        n, m = self.shape
        spare = self.slots - plan.values.shape[1]
        if spare == 0:
            return plan
        taken = jax.vmap(lambda place: jnp.zeros(n, jnp.int32).at[place].set(1))(plan.indices)
        free = largest(1 - taken, spare)[1].astype(plan.indices.dtype)
        values = jnp.concatenate([plan.values, jnp.zeros((m, spare), plan.values.dtype)], axis=1)
        return SparseColumns(values, jnp.concatenate([plan.indices, free], axis=1), n)

    def mixture(self, f: Any, g: Any, centre: SparseColumns, smoothing: Any) -> tuple[SparseColumns, Any]:
        """The plan that minimises the Lagrangian plus `smoothing/2 |T - centre|^2`, and the potentials g.

        With g None each column has its mass exactly, and g is the multiplier of that; else g is given and stays.
        """

        def reduce(block: Any, b: Any, level: Any, values: Any, places: Any) -> tuple[Any, Any, Any]:
            pulled = jax.vmap(lambda line, place, value: line.at[place].add(smoothing * value))
            scores, indices = largest(pulled(f + level[:, None] - block, places, values), self.slots)
            if g is None:
                entries, mu, _ = jax.vmap(lambda s, b: mixed_simplex(s, b, self.gamma, self.k, smoothing))(scores, b)
            else:
                entries, mu, _ = jax.vmap(lambda s: mixed_orthant(s, self.gamma, self.k, smoothing))(scores)
            return entries, indices, level - mu

        start = jnp.zeros_like(self.b) if g is None else g
        values, indices, levels = self.costs.rows(reduce, self.b, start, centre.values, centre.indices)
        return SparseColumns(values, indices, self.shape[0]), levels

    def sparse(self, f: Any) -> tuple[SparseColumns, Any, Any]:
        """One k-sparse plan at f, the value of the semi-dual there, and the columns in which k binds."""
        n, _ = self.shape

        def reduce(block: Any, b: Any) -> tuple[Any, Any, Any, Any]:
            scores, indices = largest(f - block, min(self.k + 1, n))
            zero = jnp.zeros((), block.dtype)
            entries, mu, _ = jax.vmap(lambda s, b: mixed_simplex(s, b, self.gamma, self.k, zero))(scores, b)
            entries = entries[:, : self.k]
            value = jnp.sum(entries * (scores[:, : self.k] - self.gamma / 2 * entries), axis=1)
            binds = scores[:, -1] > mu if self.k < n else jnp.zeros_like(mu, bool)
            return entries, indices[:, : self.k], value, binds

        entries, indices, values, binds = self.costs.rows(reduce, self.b)
        bound = jnp.vdot(f, self.a) - jnp.sum(values)
        return SparseColumns(entries, indices, n), bound, jnp.sum(binds)

    def levels(self, f: Any) -> Any:
        """`g = -mu`, the multipliers of the columns' masses at f."""
        n, _ = self.shape

        def reduce(block: Any, b: Any) -> Any:
            scores, _ = largest(f - block, min(self.k + 1, n))
            zero = jnp.zeros((), block.dtype)
            return -jax.vmap(lambda s, b: mixed_simplex(s, b, self.gamma, self.k, zero).mu)(scores, b)

        return self.costs.rows(reduce, self.b)

    def objective(self, plan: SparseColumns) -> Any:
        """`<C, T> + gamma/2 sum_j |t_j|_k^2`; blocks of costs are made again in a backward pass, not kept."""

        @jax.checkpoint
        def reduce(block: Any, values: Any, places: Any) -> Any:
            return jnp.sum(values * jnp.take_along_axis(block, places, axis=1), axis=1)

        moved = jnp.sum(self.costs.rows(reduce, plan.values, plan.indices))
        sorted_values = largest(plan.values, self.slots)[0]
        return moved + self.gamma / 2 * jnp.sum(jax.vmap(lambda t: support_norm(t, self.k))(sorted_values))


def _residuals(error: Marginals, objective: Any, bound: Any, a: Any) -> Residuals:
    """L1 error of both marginals over the mass, and `|P - D| / (|P| + |D|)`."""
    total, gap = jnp.sum(a), jnp.abs(objective - bound)
    primal, zero = error.row + error.column, jnp.zeros((), a.dtype)
    relative = gap / (jnp.finfo(a.dtype).tiny + jnp.abs(objective) + jnp.abs(bound))
    return Residuals(primal / total, zero, relative, primal, zero, gap, jnp.maximum(*error))
