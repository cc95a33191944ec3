"""Multipliers that postsolve spoilt, recomputed on the original data.

Postsolve gets the multipliers of removed rows by walking back one reduction at a time, and changes those of rows that
were left with them. That multiplies the errors of an approximate pair: reduced problems solved to 1e-4 came back with
dual residuals of 1e-3 to 1e1. The multipliers of rows that were left are as good as the reduced solve made them, so
here they stay, and the others, F, minimise what the judge charges for reduced costs `r = c - A'y` and for multipliers,

    min over y_F   sum_j (w_j r_j)^2 + sum_i (v_i y_i)^2

`w_j` depends on the sign of r_j: a positive r_j is either a dual residual, at `1 / (1 + |c|)`, or held by the lower
bound, where complementarity makes it a gap, at `|x_j - l_j| / (1 + 2 |c'x|)`; the judge takes the better of the two.
`v_i` is likewise the distance of row i from the side that y_i pushes it to. A convex piecewise quadratic.

Some reductions change rows that stay (parallel rows, sparsified ones). What the first minimum leaves is then charged to
a few columns, and F grows by the rows that meet them, and again: a few dozen rows in all, where all rows at once, of
which most are right, are a problem as hard as the one just solved.

Host code, in float64.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp

from pdopt.problems.hinge_squares import least_outside

GROWTHS = 4  # times that the free rows grow; the last time they are all rows
LARGE = 1e-3  # share of the total charge from which a column or multiplier is a reason to free rows


def repaired_multipliers(
    A: Any, lp: Any, x: np.ndarray, y: np.ndarray, free: np.ndarray, enough: float = 0.0, products: int = 3000
) -> Iterator[np.ndarray]:
    """The multipliers y with those of the rows `free` chosen anew, the others kept; then with more and more rows free.

    Args:
        A: the matrix of `lp`, SciPy sparse.
        lp: a `LinearProgram`, a minimisation.
        x: `(n,)`, close to its optimum; y: `(m,)`.
        free: places of rows.
        enough: a root of the charges that ends it.
        products: at most so many with AA', over all.

    Example:
        Of `min x_1 + 3 x_2` subject to `x_1 >= 2`, `x_2 = 1`, with the second multiplier lost:

        >>> import pdopt
        >>> lp = pdopt.LinearProgram([1.0, 3.0], np.eye(2), [2.0, 1.0], [np.inf, 1.0], dtype=np.float32)
        >>> found = repaired_multipliers(sp.eye(2), lp, np.array([2.0, 1.0]), np.array([1.0, 40.0]), np.array([1]))
        >>> print(next(found).round(4))
        [1. 3.]
    """
    A = sp.csr_matrix(A)
    c, l, u, rl, ru = (np.asarray(v, np.float64) for v in (lp.c, lp.lower, lp.upper, lp.row_lower, lp.row_upper))
    m = rl.size
    dual, gap = 1 / (1 + float(np.sqrt(np.sum(c * c)))), 1 / (1 + 2 * abs(float(np.sum(c * x)) + float(lp.offset)))
    activity = A @ x
    column = _charge(u - x, gap, dual, dual), _charge(x - l, gap, dual, dual)
    row = _charge(ru - activity, gap, np.inf, 0.0), _charge(activity - rl, gap, np.inf, 0.0)
    # A multiplier pushes to sides that are there only.
    least, most = np.where(np.isfinite(ru), -np.inf, 0.0), np.where(np.isfinite(rl), np.inf, 0.0)
    y, left = np.clip(y, least, most), products
    for growth in range(GROWTHS + 1):
        F = A[free]
        B = sp.vstack([-F.T, sp.eye(free.size)]).tocsr()
        below, above = (np.concatenate([of, on[free]]) ** 2 for of, on in zip(column, row))
        moved, used = least_outside(
            B, np.concatenate([c - A.T @ y, y[free]]), below, above,
            lower=least[free] - y[free], upper=most[free] - y[free], enough=enough**2, products=left,
        )  # fmt: skip
        y, left = y.copy(), left - used
        y[free] = np.clip(y[free] + moved, least[free], most[free])
        yield y
        reduced = c - A.T @ y
        of_columns = (np.where(reduced > 0, column[1], column[0]) * reduced) ** 2
        of_rows = (np.where(y > 0, row[1], row[0]) * y) ** 2
        total = float(np.sum(of_columns) + np.sum(of_rows))
        if total <= enough**2 or left <= 0 or free.size == m:
            return
        large = (of_columns > LARGE * total).astype(np.float64)
        more = (abs(A) @ large > 0) | (of_rows > LARGE * total)
        more[free] = True
        free = np.flatnonzero(more) if growth < GROWTHS - 1 else np.arange(m)


def _charge(distance: np.ndarray, gap: float, most: float, absent: float) -> np.ndarray:
    """What one unit costs: the distance from its side as a gap, at most `most`; `absent` where there is no side."""
    there = np.isfinite(distance)
    return np.where(there, np.minimum(np.abs(np.where(there, distance, 0)) * gap, most), absent)
