"""Least squares of what lies outside intervals: the minimum that mending a pair after postsolve comes down to.

    min_v  sum_k  below_k (low_k - s_k)_+^2 + above_k (s_k - high_k)_+^2,      s = start + B v,   lower <= v <= upper

Convex and piecewise quadratic. Projected semismooth Newton: the pieces of the present point make a quadratic, of which
conjugate gradients find the minimum over the unknowns that their bounds do not hold. A step that does not lower the
value is damped as by Levenberg and Marquardt, not shortened: a shorter one still crosses the kinks behind which it is
steep, a damped one turns away from them. From 0, what nothing charges stays, and of many minima one nearby is found.

Host code, in float64. Inner products are NumPy's own sums: BLAS wakes a thread a core for vectors of these sizes, which
took ten times the CPU seconds of the whole minimisation.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

ROUNDS = 100  # Newton steps, kept or not
STEP = 200  # products of conjugate gradients in one of them
ROUND = 5  # products that a Newton step costs besides
EXACT = 1e-3  # share of the gradient left by them
DAMPING = 1e-9  # least damping, relative to an unknown's own charges: what nothing charges stays where it is
FUTILE = 1e3  # damping at which no step is left
SLOW = 10  # rounds in which the value must fall by a hundredth


def least_outside(
    B: Any, start: np.ndarray, below: np.ndarray, above: np.ndarray, low: Any = 0.0, high: Any = 0.0, *,
    lower: Any = -np.inf, upper: Any = np.inf, enough: float = 0.0, products: int = 3000,
) -> tuple[np.ndarray, int]:  # fmt: skip
    """`argmin_v sum_k below_k (low_k - s_k)_+^2 + above_k (s_k - high_k)_+^2`, `s = start + B v`, lower <= v <= upper.

    Args:
        B: `(k, n)`, SciPy sparse by rows.
        start: `(k,)`; below, above: `(k,)` charges, >= 0; low, high: ends of the intervals, which may be infinite.
        lower, upper: bounds of v with `lower <= 0 <= upper`.
        enough: a value that ends the search.
        products: the most products with `B'B`.

    Returns:
        v and the products taken.

    Example:
        >>> import scipy.sparse as sp
        >>> v, _ = least_outside(sp.csr_matrix([[1.0], [1.0]]), np.array([1.0, 3.0]), np.ones(2), np.ones(2))
        >>> v.round(4)
        array([-2.])
    """
    Bt = B.T.tocsr()
    squares = Bt.multiply(Bt).tocsr()
    own = squares @ np.maximum(below, above)
    v, used = np.zeros(own.size), 0
    if not own.size or own.max() == 0:
        return v, used
    own = np.maximum(own, 1e-9 * own.max())
    held = np.where(np.equal(low, high), np.maximum(below, above), 0.0)  # the charge inside an interval that is a point

    def charged(v: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Distances from the intervals with their sign, the charge of the side that each is on, and the value."""
        s = start + B @ v
        outside = s - np.clip(s, low, high)
        weight = np.where(outside > 0, above, np.where(outside < 0, below, held))
        return outside, weight, _dot(weight, outside * outside)

    outside, weight, value = charged(v)
    damping, best = DAMPING, [value]
    for _ in range(ROUNDS):
        if value <= enough or used >= products or damping > FUTILE:
            break
        slope = Bt @ (weight * outside)
        free = ~((v <= lower) & (slope > 0) | (v >= upper) & (slope < 0))
        # Most rows charge nothing and some unknowns are held: the step's products are with what is left of B.
        C, shift = _part(B, weight, free), damping * own[free]
        apply = lambda d, C=C, Ct=C.T, shift=shift: Ct @ (C @ d) + shift * d
        diagonal = (squares @ weight)[free] + shift
        step = np.zeros(v.size)
        step[free], taken = _solved(apply, -slope[free], diagonal, min(STEP, products - used))
        used += taken + ROUND
        there = np.clip(v + step, lower, upper)
        ahead = charged(there)
        if ahead[2] < value:
            v, (outside, weight, value) = there, ahead
            damping = max(damping / 10, DAMPING)
        else:
            damping *= 100 if damping < 1e-4 else 10
        best.append(value)
        if len(best) > SLOW and value > 0.99 * best[-1 - SLOW]:
            break
    return v, used


def _part(B: Any, weight: np.ndarray, free: np.ndarray) -> Any:
    """`sqrt(weight) B` without rows that weigh nothing and columns that are not free."""
    rows = np.flatnonzero(weight)
    part = B[rows][:, np.flatnonzero(free)]
    part.data *= np.repeat(np.sqrt(weight[rows]), np.diff(part.indptr))
    return part


def _solved(
    apply: Callable[[np.ndarray], np.ndarray], right: np.ndarray, diagonal: np.ndarray, products: int
) -> tuple[np.ndarray, int]:
    """Conjugate gradients from 0 with a diagonal preconditioner, and the products taken."""
    x, r = np.zeros(right.size), right
    p = z = r / diagonal
    square = _dot(r, z)
    least = EXACT**2 * square
    for used in range(products):
        if square <= least:
            return x, used
        image = apply(p)
        along = _dot(p, image)
        if along <= 0:
            return x, used + 1
        x, r = x + square / along * p, r - square / along * image
        z = r / diagonal
        before, square = square, _dot(r, z)
        p = z + square / before * p
    return x, products


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sum(a * b))
