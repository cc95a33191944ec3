"""`confirmed`: a second look at the end of a linear program, by a method that does not go by residuals.

A pair is optimal when its residuals are within the tolerance, and programs without any point have such pairs: rows that
contradict each other by 1e-11 look met. Small programs are looked at once more, by active sets
(`problems/exact_feasibility.py`); what that finds counts where its ray is verified on the data.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdopt.problems.exact_feasibility import infeasibility
from pdopt.problems.linear import Certificate, LinearProgram
from pdopt.runtime.precision import precision_scope
from pdopt.types import Pair, Solution, Status

# Ends of which none says that there is no point.
_OPEN = (
    Status.OPTIMAL, Status.ITERATION_LIMIT, Status.TIME_LIMIT, Status.PRECISION_LIMIT, Status.NUMERICAL_ERROR,
    Status.DIVERGED,
)  # fmt: skip


def confirmed(problem: Any, solution: Solution) -> Solution:
    """The solution as it is, or PRIMAL_INFEASIBLE where a verified ray proves that there is no point at all.

    `run` does this by itself. `solve` cannot, as it is traced: there it is for whoever needs to know. It takes up to a
    tenth of a second (most programs: 3 ms), and programs whose dense form with slacks has more than 300 000 entries are
    left as they are.

    Args:
        problem: what was solved; other than a single `LinearProgram` with stored entries it is left as it is.
        solution: of that problem; one that is proved, invalid or interrupted is left as it is.

    Returns:
        The solution, or one with the status and the ray in `certificate.ray`, in the user's sense.

    Example:
        >>> import pdopt
        >>> from math import inf
        >>> rows = [[1.0, 1.0], [1.0, 1.0]]
        >>> lp = pdopt.LinearProgram([1.0, 1.0], rows, [1.0001, -inf], [inf, 1.0], [0.0, 0.0], dtype=jnp.float32)
        >>> solution = pdopt.solve(lp, tolerance=1e-3)
        >>> print(solution.reason, "->", confirmed(lp, solution).reason)
        optimal -> primal_infeasible
    """
    single = type(problem) is LinearProgram and np.ndim(problem.c) == 1
    refuted = refutation(problem, solution) if single and solution.reason in _OPEN else None
    return solution if refuted is None else refuted


def refutation(problem: LinearProgram, solution: Solution) -> Solution | None:
    """The solution as PRIMAL_INFEASIBLE, with its ray, where there is no point; None where none is proved."""
    with precision_scope(problem):
        lp = problem.minimised()
        y = infeasibility(lp, problem.flip(solution.pair).x)
        if y is None:
            return None
        found = verified_rays(lp, Pair(jnp.zeros_like(lp.c), jnp.asarray(y, lp.c.dtype)))
        if not bool(found.primal_infeasible):
            return None
        proof = Certificate(solution.certificate.z, problem.flip(found.ray))
    status = np.asarray(int(Status.PRIMAL_INFEASIBLE), np.int32)
    return dataclasses.replace(solution, status=status, certificate=proof)


@jax.jit
def verified_rays(problem: Any, direction: Pair) -> Any:
    """`LinearProgram.rays`, compiled."""
    return problem.rays(direction)
