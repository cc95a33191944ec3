"""The judge: one check of every answer, on the original data, with NumPy and SciPy only.

    primal = |Ax - clip(Ax, rl, ru), x - clip(x, l, u)| / (1 + |b|)      b_i = max(|rl_i|, |ru_i|) over finite sides
    dual   = |c - A'y - z| / (1 + |c|)                                   gap = |P - D| / (1 + |P| + |D|)
    D      = p(y) + sum_j (l_j [z_j]+ - u_j [-z_j]+) + offset            y = d value / d right-hand side

all l2 (PDLP's numbers). y is first clipped to the signs its row allows, z to those its bounds allow: any such pair is
a valid dual point, so a wrong sign shows as a residual. Three z are tried, the best kept: (a) every part of `c - A'y`
of a valid sign; (b) that part, zeroed where the bound is further from x_j than |x_j|; (c) the z the solver returned.

For a quadratic program c is `c + Qx` in the reduced costs and the offset is less by `x'Qx/2` in both objectives, which
are those of the linear program that touches it at x; the denominators stay those of c.
"""

from typing import NamedTuple

import numpy as np

from benchmarks.data import LinearData

SLACK = 1.01  # factor on the tolerance: solvers judge their own scaled sums, which differ from ours by rounding
RAY_TOLERANCE = 1e-6  # relative error of a ray; the solvers' own is 1e-8, ours leaves room for their scaled arithmetic


class Check(NamedTuple):
    """The three relative numbers of the best z, both objectives, the largest single violation, and which z it was."""

    primal: float
    dual: float
    gap: float
    objective: float
    dual_objective: float
    worst: float
    certificate: str

    @property
    def error(self) -> float:
        """The largest of the three; infinite where something is not a number."""
        error = max(self.primal, self.dual, self.gap)
        return error if np.isfinite([self.primal, self.dual, self.gap]).all() else np.inf

    def passes(self, tolerance: float) -> bool:
        """Whether all three are within `SLACK * tolerance`."""
        return self.error <= SLACK * tolerance


def _finite(v: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(v), v, 0.0)


def _signed(v: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The part of a multiplier that its interval allows: positive needs a finite low side, negative a finite high."""
    return np.where(np.isfinite(low), np.maximum(v, 0), 0) + np.where(np.isfinite(high), np.minimum(v, 0), 0)


def _support(v: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """`sum low [v]+ - high [-v]+`."""
    return float(np.sum(_finite(low) * np.maximum(v, 0) + _finite(high) * np.minimum(v, 0)))


def check_point(data: LinearData, x: np.ndarray, y: np.ndarray, z: np.ndarray | None = None) -> Check:
    """The best of the three certificates for a primal-dual pair."""
    m, n = data.A.shape
    if x.shape != (n,) or y.shape != (m,):
        raise ValueError(f"x has shape {x.shape}, y has shape {y.shape}; the problem is {m} by {n}")
    rl, ru, l, u = data.row_lower, data.row_upper, data.lower, data.upper
    activity = data.A @ x
    broken = np.concatenate([activity - np.clip(activity, rl, ru), x - np.clip(x, l, u)])
    b = np.maximum(np.abs(_finite(rl)), np.abs(_finite(ru)))
    primal = float(np.linalg.norm(broken) / (1 + np.linalg.norm(b)))
    curved = np.zeros(n) if data.Q is None else data.Q @ x
    offset = float(data.offset - x @ curved / 2)
    objective = float((data.c + curved) @ x + offset)
    y = _signed(y, rl, ru)
    reduced = data.c + curved - data.A.T @ y
    valid = _signed(reduced, l, u)
    far = np.abs(x - _finite(np.where(reduced > 0, l, u))) > np.abs(x)
    candidates = {"valid": valid, "near": np.where(far, 0.0, valid)}
    if z is not None and z.shape == (n,):
        candidates["returned"] = _signed(z, l, u)
    checks = []
    for name, candidate in candidates.items():
        dual_objective = _support(y, rl, ru) + _support(candidate, l, u) + offset
        dual = float(np.linalg.norm(reduced - candidate) / (1 + np.linalg.norm(data.c)))
        gap = abs(objective - dual_objective) / (1 + abs(objective) + abs(dual_objective))
        worst = float(np.max(np.abs(broken), initial=0))
        checks.append(Check(primal, dual, gap, objective, dual_objective, worst, name))
    return min(checks, key=lambda check: max(check.dual, check.gap) if np.isfinite(check.dual + check.gap) else np.inf)


def proves_infeasible(data: LinearData, dy: np.ndarray | None, tolerance: float = RAY_TOLERANCE) -> bool:
    """Whether dy proves that no x satisfies the rows and bounds.

    `q = p(dy) + sum (l_j [z_j]+ - u_j [-z_j]+) > 0`, `z = -A'dy`, what z would need of infinite bounds at most
    `tolerance q` after scaling the ray to largest entry 1.
    """
    if dy is None or dy.shape != (data.A.shape[0],) or not np.isfinite(dy).all():
        return False
    y = _signed(dy, data.row_lower, data.row_upper)
    z = -(data.A.T @ y)
    size = max(np.max(np.abs(y), initial=0), np.max(np.abs(z), initial=0))
    if size == 0:
        return False
    y, z = y / size, z / size
    kept = _signed(z, data.lower, data.upper)
    parts = (_support(y, data.row_lower, data.row_upper), _support(kept, data.lower, data.upper))
    q = sum(parts)
    rounding = 1e-12 * sum(abs(part) for part in parts)  # q is a difference: below this it may be rounding alone
    return bool(q > rounding and np.max(np.abs(z - kept), initial=0) <= tolerance * q)


def proves_unbounded(data: LinearData, dx: np.ndarray | None, tolerance: float = RAY_TOLERANCE) -> bool:
    """Whether dx proves that no dual point exists: `c'dx < 0`, A dx and dx in the recession cones within tolerance.

    A quadratic program must be flat along it as well: `|Q dx|` within the tolerance.
    """
    if dx is None or dx.shape != data.c.shape or not np.isfinite(dx).all():
        return False
    dx = np.clip(dx, np.where(np.isfinite(data.lower), 0, -np.inf), np.where(np.isfinite(data.upper), 0, np.inf))
    size = np.max(np.abs(dx), initial=0)
    if size == 0:
        return False
    dx = dx / size
    descent, change = -float(data.c @ dx), data.A @ dx
    down = np.where(np.isfinite(data.row_lower), np.maximum(-change, 0), 0)
    up = np.where(np.isfinite(data.row_upper), np.maximum(change, 0), 0)
    flat = 0.0 if data.Q is None else np.max(np.abs(data.Q @ dx), initial=0)
    return bool(descent > 0 and max(np.max(np.maximum(down, up), initial=0), flat) <= tolerance * descent)
