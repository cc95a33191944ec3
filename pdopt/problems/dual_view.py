"""Transport as the dual methods see it: potentials that move, and the plan that answers them.

A view has `plan(y, centre, smoothing)`, the exact minimiser of the Lagrangian plus a proximal term at `centre`, its
`violation` and the `move` of y. In a *semi* view y is f alone, and each column of the plan has its mass exactly; in a
*full* view y is the pair of potentials. `kinks` says that the proximal term is needed.
"""

from functools import singledispatch
from typing import Any

import jax.numpy as jnp

from pdopt.errors import UnsupportedProblem
from pdopt.geometry.moves import Euclidean
from pdopt.geometry.sets import Reals
from pdopt.problems.checks import concrete
from pdopt.problems.couplings import Marginals, Potentials
from pdopt.problems.quadratic_plan import fill_columns, quadratic_marginals
from pdopt.problems.sparse_columns import SparseColumns
from pdopt.problems.sparsity import KSparse, Quadratic
from pdopt.problems.transport import Transport
from pdopt.types import Pair, record


@record(static=("semi",))
class QuadraticDual:
    """Quadratic transport; the plan is known by its marginals."""

    problem: Transport
    semi: bool
    kinks = False

    def start(self) -> Pair:
        """Potentials 0."""
        n, m = self.problem.shape
        dtype = self.problem.cost.dtype
        return self.into(Pair(None, Potentials(jnp.zeros(n, dtype), jnp.zeros(m, dtype))))

    def into(self, pair: Pair) -> Pair:
        """A user's potentials."""
        y = pair.y.f if self.semi else pair.y
        return Pair(self.plan(y, None, None), y)

    def back(self, pair: Pair) -> Pair:
        """The pair with both potentials."""
        return Pair(pair.x, self._both(pair.y))

    def _both(self, y: Any) -> Potentials:
        problem = self.problem
        if not self.semi:
            return y
        return Potentials(y, fill_columns(problem.cost.transpose(), y, problem.b, problem.regulariser.gamma))

    def plan(self, y: Any, centre: Any, smoothing: Any) -> Marginals:
        """The marginals of the plan at y: it is unique, so neither centre nor smoothing is used."""
        return quadratic_marginals(self.problem.cost, self._both(y), self.problem.regulariser.gamma)

    def violation(self, x: Marginals) -> Any:
        """What the rows (and columns) lack."""
        rows = self.problem.a - x.row
        return rows if self.semi else Potentials(rows, self.problem.b - x.column)

    def move(self, y: Any, v: Any, step: Any) -> Any:
        """`y + step v`."""
        return Euclidean(Reals())(y, v, step)

    def optimality(self, pair: Pair) -> Any:
        """How good a pair of this view is."""
        return self.problem.optimality(self.back(pair))

    def size(self) -> Any:
        """A typical cost: the unit of potentials."""
        return _typical(self.problem.cost)


@record(static=("semi",))
class SparseDual:
    """k-sparse transport; the plan is a mixture of k-sparse columns, near the centre where they are not unique."""

    problem: Transport
    semi: bool
    kinks = True
    rests = True  # once a proximal problem is solved, steps rest until the next check moves its centre

    def start(self) -> Pair:
        """Potentials 0 and the plan 0."""
        columns = self.problem.regulariser.columns(self.problem)
        f = jnp.zeros_like(columns.a)
        return Pair(columns.nothing(), f if self.semi else Potentials(f, jnp.zeros_like(columns.b)))

    def into(self, pair: Pair) -> Pair:
        """A user's pair, with the sparse side second."""
        y = self.problem.regulariser.turned(pair.y)
        return Pair(pair.x, y.f if self.semi else y)

    def back(self, pair: Pair) -> Pair:
        """The pair with both potentials, as the user's sides are."""
        rule = self.problem.regulariser
        y = Potentials(pair.y, rule.columns(self.problem).levels(pair.y)) if self.semi else pair.y
        return Pair(pair.x, rule.turned(y))

    def plan(self, y: Any, centre: SparseColumns, smoothing: Any) -> SparseColumns:
        """The mixture that answers y."""
        columns = self.problem.regulariser.columns(self.problem)
        f, g = (y, None) if self.semi else y
        return columns.mixture(f, g, centre, smoothing)[0]

    def violation(self, x: SparseColumns) -> Any:
        """What the rows (and columns) lack."""
        columns = self.problem.regulariser.columns(self.problem)
        rows = columns.a - x.row_sums()
        return rows if self.semi else Potentials(rows, columns.b - x.column_sums())

    def move(self, y: Any, v: Any, step: Any) -> Any:
        """`y + step v`."""
        return Euclidean(Reals())(y, v, step)

    def optimality(self, pair: Pair) -> Any:
        """How good a pair of this view is."""
        return self.problem.optimality(self.back(pair))

    def size(self) -> Any:
        """A typical cost: the unit of potentials."""
        return _typical(self.problem.cost)


def _typical(cost: Any) -> Any:
    """The mean size of an entry, 1 for a cost of zeros."""
    mean = jnp.mean(cost.rows(lambda block: jnp.mean(jnp.abs(block), axis=1)))
    return jnp.where(mean > 0, mean, 1)


@singledispatch
def dual(problem: Any, semi: bool) -> Any:
    """The dual (semi-dual) view of a problem.

    Raises:
        UnsupportedProblem: the problem has none.
    """
    raise UnsupportedProblem(f"{type(problem).__name__} has no dual view: it is for quadratic and k-sparse transport")


@dual.register
def _(problem: Transport, semi: bool) -> QuadraticDual | SparseDual:
    weights = [concrete(weight) for weight in problem.unbalanced]
    if any(weight is not None and not jnp.isinf(weight).all() for weight in weights):
        raise UnsupportedProblem("Transport with unbalanced weights has no dual view: both sides must be balanced")
    if isinstance(problem.regulariser, Quadratic):
        return QuadraticDual(problem, semi)
    if isinstance(problem.regulariser, KSparse):
        return SparseDual(problem, semi)
    name = type(problem.regulariser).__name__
    raise UnsupportedProblem(f"Transport with regulariser {name} has no dual view; expected Quadratic or KSparse")
