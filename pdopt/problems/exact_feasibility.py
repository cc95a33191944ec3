"""Whether the rows and bounds of a small program can be met at all: a finite method, and a ray where they cannot.

Small residuals do not tell. Of `cplex2` of the infeasible NETLIB programs a point breaks no row by more than 1.7e-11,
and yet every point breaks one by 1.5e-11 (both in exact arithmetic). With every variable a sum of nonnegative ones,
finite ranges rows as well, and a slack for each inequality, a program's constraints are

    M v = b,  v >= 0;          v = argmin_{v >= 0} |M v - b|,          r = b - M v

Lawson's and Hanson's active sets (1974; `scipy.optimize.nnls`) end after finitely many steps, where r is 0 or, by
`M'r <= 0` and `b'r = |r|^2`, a ray that proves the contrary (Farkas). It is a difference of numbers like 1, so a ray of
1e-11 has lost its digits: r is projected once more off the columns in use, which gives them back. Whoever asks must
verify it on the data, as any ray (`LinearProgram.rays`).

Host code, in float64.
"""

from typing import Any

import numpy as np
from scipy.optimize import nnls

from pdopt.operators.convert import to_scipy
from pdopt.problems.hinge_squares import least_outside

LARGEST = 300_000  # entries of M: a tenth of a second
QUICK = 200  # products that may show that the rows can be met: most programs, in a tenth of the time
MET = 64  # units of rounding of a row by which it may be broken
CLEAR = 1e-6  # share of r that M'r may be: what is only rounding has no such r


def infeasibility(lp: Any, x: Any) -> np.ndarray | None:
    """Multipliers that should prove that no point meets the rows and bounds of a small linear program.

    Args:
        lp: a `LinearProgram`, concrete; finite variables of which some point is within their bounds.
        x: `(n,)`, a point that nearly meets them: where one nearby does, nothing else is done.

    Returns:
        y, `(m,)`, with `min_i (row interval of y_i) > max_{l <= x <= u} y'A x`, to be verified; None where the program
        is feasible, too large (more than `LARGEST` entries of M), or not decided.

    Example:
        `x_1 + x_2 >= 2.0001` where neither is above 1:

        >>> import pdopt
        >>> from math import inf
        >>> bounds = [0.0, 0.0], [1.0, 1.0]
        >>> lp = pdopt.LinearProgram([1.0, 1.0], [[1.0, 1.0]], [2.0001], [inf], *bounds, dtype=np.float32)
        >>> print(infeasibility(lp, np.ones(2)) > 0)
        [ True]
        >>> lp = pdopt.LinearProgram([1.0, 1.0], [[1.0, 1.0]], [1.9999], [inf], *bounds, dtype=np.float32)
        >>> print(infeasibility(lp, np.ones(2)))
        None
    """
    l, u, low, high = (np.asarray(v, np.float64) for v in (lp.lower, lp.upper, lp.row_lower, lp.row_upper))
    below, above = np.isfinite(l), np.isfinite(u)
    equal = low == high
    least, most = np.isfinite(low) & ~equal, np.isfinite(high) & ~equal
    rows = np.concatenate([np.flatnonzero(of) for of in (equal, least, most)])
    ranges, free = np.flatnonzero(below & above), np.flatnonzero(~below & ~above)
    slacks = np.concatenate([np.zeros(equal.sum()), -np.ones(least.sum()), np.ones(most.sum() + ranges.size)])
    height, width = slacks.size, l.size + free.size + np.count_nonzero(slacks)
    if height * width > LARGEST:
        return None
    B = to_scipy(lp.A)
    if B is None:
        return None
    B = B.tocsr()
    if _met(B, np.clip(np.asarray(x, np.float64), l, u), l, u, low, high):
        return None
    A = B.toarray()
    # x = origin + signs v, and a second part of what is free.
    origin, signs = np.where(below, l, np.where(above, u, 0.0)), np.where(~below & above, -1.0, 1.0)
    base, parts = A @ origin, A * signs
    M = np.zeros((height, width))
    M[: rows.size, : l.size], M[: rows.size, l.size : l.size + free.size] = parts[rows], -parts[rows][:, free]
    M[rows.size + np.arange(ranges.size), ranges] = 1.0
    at = np.flatnonzero(slacks)
    M[at, l.size + free.size + np.arange(at.size)] = slacks[at]
    sides = [(low - base)[equal], (low - base)[least], (high - base)[most], (u - l)[ranges]]
    scale = 1 / np.maximum(np.sqrt(np.sum(M**2, axis=1)), np.finfo(np.float64).tiny)
    M, b = M * scale[:, None], np.concatenate(sides) * scale
    try:
        v, _ = nnls(M, b)
    except RuntimeError:  # its limit of steps
        return None
    r, basis = b - M @ v, np.linalg.qr(M[:, v > 0])[0]
    r = r - basis @ (basis.T @ r)
    size = float(np.max(np.abs(r), initial=0))
    if size == 0 or np.max(M.T @ r, initial=0) > CLEAR * size:
        return None
    y = np.zeros(low.size)
    np.add.at(y, rows, (r / size * scale)[: rows.size])
    return y


def _met(A: Any, x: np.ndarray, l: np.ndarray, u: np.ndarray, low: np.ndarray, high: np.ndarray) -> bool:
    """Whether a point near x within the bounds meets the rows to their rounding."""
    norms = np.maximum(np.asarray(A.multiply(A).sum(axis=1)).ravel(), np.finfo(np.float64).tiny)
    moved, _ = least_outside(A, A @ x, 1 / norms, 1 / norms, low, high, lower=l - x, upper=u - x, products=QUICK)
    x = np.clip(x + moved, l, u)
    activity = A @ x
    side = np.clip(activity, low, high)
    unit = np.finfo(np.float64).eps * (abs(A) @ np.abs(x) + np.abs(side) + np.sqrt(norms))
    return bool(np.all(np.abs(activity - side) <= MET * unit))
