"""A point whose rows postsolve broke, moved back on the original data.

Postsolve computes the values of substituted columns from those of the others, which multiplies the errors of an
approximate pair: a reduced problem solved to 3e-5 came back with a primal residual of 7e-4. So here x moves, within its
bounds and by as little as mends it, to where what the judge charges for a point is least:

    min over l <= x <= u    |A x - [rl, ru]|^2 / (1 + |b|)^2 + (c'x - D)^2 / (1 + |P| + |D|)^2

where `|v - [l, u]|` is the distance from the interval and D the dual objective. With rows feasible and the multipliers
as they were, `c'dx` is what complementarity loses: the second term, the gap, keeps columns at their active bounds.

Host code, in float64.
"""

from typing import Any

import numpy as np
import scipy.sparse as sp

from pdopt.problems.hinge_squares import least_outside


def repaired_point(
    A: Any, lp: Any, x: np.ndarray, dual_objective: float, enough: float = 0.0, products: int = 3000
) -> tuple[np.ndarray, int]:
    """The point x moved until its primal residual and gap are small, and the products with A'A that took.

    Args:
        A: the matrix of `lp`, SciPy sparse.
        lp: a `LinearProgram`, a minimisation.
        x: `(n,)`, close to its optimum.
        dual_objective: of the multipliers that go with it.
        enough: the norm of primal residual and gap that will do.
        products: at most so many.

    Example:
        `min x_1 + x_2` subject to `x_1 + x_2 = 2` has the dual objective 2:

        >>> import pdopt
        >>> lp = pdopt.LinearProgram([1.0, 1.0], [[1.0, 1.0]], [2.0], [2.0], [0.0, 0.0], dtype=np.float32)
        >>> print(repaired_point(sp.csr_matrix([[1.0, 1.0]]), lp, np.array([1.5, 0.0]), 2.0)[0].round(4))
        [1.75 0.25]
    """
    c, l, u, rl, ru = (np.asarray(v, np.float64) for v in (lp.c, lp.lower, lp.upper, lp.row_lower, lp.row_upper))
    finite = lambda v: np.where(np.isfinite(v), np.abs(v), 0)
    x = np.clip(x, l, u)
    objective = float(np.sum(c * x)) + float(lp.offset)
    primal = 1 / (1 + float(np.sqrt(np.sum(np.maximum(finite(rl), finite(ru)) ** 2))))
    gap = 1 / (1 + abs(objective) + abs(dual_objective))
    charges = np.repeat([primal**2, gap**2], [rl.size, 1])
    A = sp.csr_matrix(A)
    B = sp.vstack([A, sp.csr_matrix(c)]).tocsr()
    start = np.append(A @ x, objective - dual_objective)
    moved, used = least_outside(
        B, start, charges, charges, np.append(rl, 0), np.append(ru, 0), lower=l - x, upper=u - x,
        enough=enough**2, products=products,
    )  # fmt: skip
    return np.clip(x + moved, l, u), used
