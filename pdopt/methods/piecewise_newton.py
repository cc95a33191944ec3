"""Newton steps on the pieces of a quadratic program, as the inner minimiser of the method of multipliers.

`AugmentedLagrangian(inner=PiecewiseNewton.planned(qp))`; the view that it works on is `problems/quadratic_pieces.py`.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from pdopt.errors import UnsupportedProblem, require_range
from pdopt.operators.diagonal import Diagonal
from pdopt.operators.normal import BandPlan
from pdopt.operators.sparse import Sparse
from pdopt.problems.checks import concrete
from pdopt.problems.quadratic import QuadraticProgram
from pdopt.problems.quadratic_pieces import QuadraticPieces
from pdopt.types import record

DENSE = 3000  # variables: without a plan the whole matrix is factored
CURVED = 0.3  # share of the variables that must have curvature for Newton steps to be the default
NARROW = 8  # blocks of at most one in so many variables
WORK = 4e9  # operations of a factor, a tenth of a second


@record(static=("budget",))
class PiecewiseNewton:
    """The inner minimiser of `AugmentedLagrangian` for quadratic programs with any rows and bounds.

    With it a run is OPTIMAL when the residuals are small and the multipliers have settled: on ill-conditioned rows
    (LISWET) the residuals are small long before the objective is right.

    Attributes:
        plan: of the band of `Q + A'A` (`planned`), or None: the whole matrix is factored, for up to 3000 variables.
        budget: Newton steps of one minimisation, >= 1.

    Raises:
        UnsupportedProblem: (`AugmentedLagrangian.admit`) too many variables for a dense factor.

    Example:
        >>> import pdopt
        >>> qp = pdopt.QuadraticProgram([2.0, 2.0], [0.0, -9.0], [[1.0, 1.0]], [1.0], [2.0], [0.0, 0.0],
        ...                             dtype=jnp.float32)
        >>> solution = pdopt.solve(qp, pdopt.AugmentedLagrangian(inner=PiecewiseNewton()), tolerance=1e-4)
        >>> print(jnp.abs(solution.x).round(2), solution.y.round(2))
        [0. 2.] [-5.]
    """

    plan: BandPlan | None = None
    budget: int = 300

    polishes = False

    def __post_init__(self) -> None:
        require_range("budget", self.budget, 1)

    @staticmethod
    def planned(qp: QuadraticProgram, budget: int = 300) -> "PiecewiseNewton":
        """With the plan of a program whose pattern is known.

        Example:
            >>> import pdopt
            >>> PiecewiseNewton.planned(pdopt.QuadraticProgram([1.0], [0.0], [[1.0]], [1.0], [1.0])).plan is None
            True
        """
        return PiecewiseNewton(BandPlan.make(qp.Q, qp.A), budget)

    def admit(self, qp: Any) -> None:
        """Raise `UnsupportedProblem` for what has no piecewise quadratic model, or too large a one."""
        if not isinstance(qp, QuadraticProgram):
            raise UnsupportedProblem(
                f"{type(qp).__name__} has no piecewise quadratic view; PiecewiseNewton takes a QuadraticProgram"
            )
        n = qp.shape[1]
        if self.plan is None and n > DENSE:
            raise UnsupportedProblem(
                f"the program has {n} variables and PiecewiseNewton no plan, so a dense factor is needed; expected at "
                f"most {DENSE}, or PiecewiseNewton.planned(qp) for a program whose Q + A'A is a narrow band"
            )
        if self.plan is not None and self.plan.place.shape != (n,):
            raise UnsupportedProblem(f"the plan is for {self.plan.place.size} variables; the program has {n}")

    def view(self, qp: QuadraticProgram) -> QuadraticPieces:
        """The program as the method sees it."""
        return QuadraticPieces.make(qp.minimised(), self.plan, jnp.int32(self.budget))


def banded(qp: QuadraticProgram) -> BandPlan | None:
    """The plan where Newton steps are the better choice: curvature in many variables, and `Q + A'A` a narrow band.

    Narrow: blocks of at most an eighth of the variables. It looks at Q and at the pattern of A: None where Q is traced.
    """
    entries = concrete(qp.Q.entries) if isinstance(qp.Q, Sparse | Diagonal) else None
    if entries is None or _curved(qp.Q, entries) < CURVED:
        return None
    plan = BandPlan.make(qp.Q, qp.A)
    return plan if plan is not None and NARROW * plan.width <= qp.shape[1] and plan.work <= WORK else None


def _curved(Q: Any, entries: np.ndarray) -> float:
    """The share of variables that Q has an entry for."""
    rows = np.arange(entries.size) if isinstance(Q, Diagonal) else np.asarray(Q.row)
    return np.unique(rows[entries != 0]).size / max(Q.shape[0], 1)
