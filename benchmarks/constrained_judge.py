"""The independent judge of a nonlinear program's answer: NumPy and SciPy alone, from values and derivatives at x.

    violation   max(|h|, max(g, 0), lower - x, x - upper)
    stationary  min over lam, mu >= 0, z of |grad f + Jh' lam + Jg_A' mu + z|_inf / max(1, |grad f|_inf)

The multipliers are found here, by non-negative least squares on the gradients of what is active, so that a solver's own
multipliers, and its own opinion of itself, do not matter.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

ACTIVE = 1e-5  # an inequality or bound this near (times max(1, |x|)) counts as active


class Point(NamedTuple):
    """Values and derivatives at x."""

    f: float
    slope: np.ndarray
    h: np.ndarray
    h_slopes: np.ndarray
    g: np.ndarray
    g_slopes: np.ndarray


class Verdict(NamedTuple):
    """Two numbers, and whether they pass."""

    violation: float
    stationarity: float

    def passes(self, violation: float = 1e-6, stationarity: float = 1e-4) -> bool:
        """Whether both are within their limits; NaN never is."""
        return bool(self.violation <= violation and self.stationarity <= stationarity)


def judge(x: np.ndarray, point: Point, lower: np.ndarray, upper: np.ndarray) -> Verdict:
    """The verdict on x.

    Example:
        >>> one = Point(1.0, np.array([1.0]), np.zeros(0), np.zeros((0, 1)), np.zeros(1), np.array([[-1.0]]))
        >>> judge(np.array([1.0]), one, np.array([-np.inf]), np.array([np.inf]))
        Verdict(violation=0.0, stationarity=0.0)
    """
    every = [np.abs(point.h), point.g, lower - x, x - upper, np.zeros(1)]
    violation = float(np.max(np.concatenate(every)))
    if not all(np.isfinite(part).all() for part in (x, point.slope, point.h_slopes, point.g_slopes)):
        return Verdict(float("nan"), float("nan"))
    near = ACTIVE * max(1.0, float(np.max(np.abs(x), initial=0)))
    eye = np.eye(x.size)
    # Each column is a direction that a multiplier >= 0 may add to the gradient of f.
    columns = [
        point.h_slopes, -point.h_slopes, point.g_slopes[point.g >= -near],
        -eye[x - lower <= near], eye[upper - x <= near],
    ]  # fmt: skip
    A = np.concatenate(columns).T
    size = max(1.0, float(np.max(np.abs(point.slope), initial=0)))
    if not A.shape[1]:
        return Verdict(violation, float(np.max(np.abs(point.slope), initial=0)) / size)
    norms = np.linalg.norm(A, axis=0)
    A = A / np.where(norms > 0, norms, 1)
    weights, _ = nnls(A, -point.slope, maxiter=50 * A.shape[1])
    return Verdict(violation, float(np.max(np.abs(point.slope + A @ weights), initial=0)) / size)
