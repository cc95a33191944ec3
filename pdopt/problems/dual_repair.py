"""Multipliers of rows that presolve removed, recomputed on the original data.

Postsolve gets the multipliers of removed rows by walking back one reduction at a time, and changes those of rows that
were left with them. That multiplies the errors of an approximate pair: reduced problems solved to 1e-4 came back with
dual residuals of 1e-3 to 1e1. The multipliers of rows that were left are as good as the reduced solve made them, so
here they stay, and the others, F, minimise what the judge charges for reduced costs `r = c - A'y` and for multipliers,

    min over y_F   sum_j (w_j r_j)^2 + sum_i (v_i y_i)^2

`w_j` depends on the sign of r_j: a positive r_j is either a dual residual, at `1 / (1 + |c|)`, or held by the lower
bound, where complementarity makes it a gap, at `|x_j - l_j| / (1 + 2 |c'x|)`; the judge takes the better of the two.
`v_i` is likewise the distance of row i from the side that y_i pushes it to. A convex piecewise quadratic, of few
unknowns: semismooth Newton, each step by conjugate gradients.

Host code, in float64.
"""

from typing import Any

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as linalg

ROUNDS = 30  # Newton steps; five to ten settle which sides hold
PRODUCTS = 500  # of conjugate gradients a Newton step
RIDGE = 1e-9  # relative to a multiplier's own charges: what nothing charges stays where it is


def repaired_multipliers(A: Any, lp: Any, x: np.ndarray, y: np.ndarray, free: np.ndarray) -> np.ndarray:
    """The multipliers y with those of the rows `free` chosen anew; the others keep their values.

    Args:
        A: the matrix of `lp`, SciPy sparse.
        lp: a `LinearProgram`, a minimisation.
        x: `(n,)`, close to its optimum; y: `(m,)`.
        free: places of rows.

    Example:
        Of `min x_1 + 3 x_2` subject to `x_1 >= 2`, `x_2 = 1`, with the second multiplier lost:

        >>> import pdopt
        >>> lp = pdopt.LinearProgram([1.0, 3.0], np.eye(2), [2.0, 1.0], [np.inf, 1.0], dtype=np.float32)
        >>> y = repaired_multipliers(sp.eye(2), lp, np.array([2.0, 1.0]), np.array([1.0, 40.0]), np.array([1]))
        >>> print(y.round(4))
        [1. 3.]
    """
    if not free.size:
        return y
    A = sp.csr_matrix(A)
    c, l, u, rl, ru = (np.asarray(v, np.float64) for v in (lp.c, lp.lower, lp.upper, lp.row_lower, lp.row_upper))
    dual, gap = 1 / (1 + float(np.linalg.norm(c))), 1 / (1 + 2 * abs(float(c @ x) + float(lp.offset)))
    activity, F = (A @ x)[free], A[free]
    # Charges of the two signs, [columns, free rows]; a multiplier on a side that is not there is all but forbidden.
    positive = np.concatenate([_charge(x - l, gap, dual, dual), _charge(activity - rl[free], gap, np.inf, 1e3 * dual)])
    negative = np.concatenate([_charge(u - x, gap, dual, dual), _charge(ru[free] - activity, gap, np.inf, 1e3 * dual)])
    B = sp.vstack([-F.T, sp.eye(free.size)]).tocsr()
    moved = _least(B, np.concatenate([c - A.T @ y, y[free]]), negative**2, positive**2)
    mended = y.copy()
    mended[free] = np.clip(y[free] + moved, np.where(np.isfinite(ru[free]), -np.inf, 0),
                           np.where(np.isfinite(rl[free]), np.inf, 0))  # fmt: skip
    return mended


def _charge(distance: np.ndarray, gap: float, most: float, absent: float) -> np.ndarray:
    """What one unit costs: the distance from its side as a gap, at most `most`; `absent` where there is no side."""
    there = np.isfinite(distance)
    return np.where(there, np.minimum(np.abs(np.where(there, distance, 0)) * gap, most), absent)


def _least(B: Any, start: np.ndarray, negative: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """`argmin_v sum_k weight_k s_k^2`, `s = start + B v`, where the weight is that of the sign of s_k."""
    Bt = B.T.tocsr()
    own = Bt.multiply(Bt) @ np.maximum(negative, positive)
    if own.max() == 0:
        return np.zeros(own.size)
    ridge = RIDGE * np.maximum(own, 1e-9 * own.max())

    def charged(v: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        s = start + B @ v
        weight = np.where(s > 0, positive, negative)
        return s, weight, float(weight @ (s * s))

    v = np.zeros(own.size)
    s, weight, value = charged(v)
    given: Any = linalg.LinearOperator  # its stub knows the class, not the call with functions
    for _ in range(ROUNDS):
        diagonal = Bt.multiply(Bt) @ weight + ridge
        apply = lambda d, weight=weight: Bt @ (weight * (B @ d)) + ridge * d
        curvature = given((v.size, v.size), matvec=apply, dtype=np.float64)
        inverse = given((v.size, v.size), matvec=lambda d, h=diagonal: d / h, dtype=np.float64)
        step = linalg.cg(curvature, -Bt @ (weight * s), rtol=1e-10, maxiter=PRODUCTS, M=inverse)[0]
        # A whole step lands in the piece that it was computed for, or in another: there halving finds descent.
        for halvings in range(14):
            ahead = charged(v + step / 2**halvings)
            if ahead[2] < value:
                break
        else:
            return v
        before, v = value, v + step / 2**halvings
        s, weight, value = ahead
        if value > before * (1 - 1e-6):
            break
    return v
