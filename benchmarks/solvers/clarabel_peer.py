"""Clarabel (Goulart, Chen 2024), an interior point method: `min x'Qx/2 + c'x` subject to `Gx + s = h`, s in a cone."""

from typing import Any

import clarabel
import numpy as np
import scipy.sparse as sp

from benchmarks.data import LinearData
from benchmarks.solvers import Answer, Timing, timed

TOLERANCE = 1e-8  # Clarabel's own default, kept where ours is looser: it costs an iteration or two
WALL = 4.0  # its clock is of wall seconds; the harness counts those of the CPU
STATUS = {"Solved": "optimal", "PrimalInfeasible": "primal_infeasible", "DualInfeasible": "dual_infeasible"}


def solve(data: LinearData, tolerance: float, limit: float) -> Answer:
    """Rows and bounds as one matrix; sides that are absent are left out."""
    m, n = data.A.shape
    A = sp.vstack([data.A, sp.eye(n)]).tocsr()
    low, high = np.concatenate([data.row_lower, data.lower]), np.concatenate([data.row_upper, data.upper])
    equal = low == high
    up, down = np.isfinite(high) & ~equal, np.isfinite(low) & ~equal
    G = sp.vstack([A[equal], A[up], -A[down]]).tocsc()
    h = np.concatenate([low[equal], high[up], -low[down]])
    cones = [clarabel.ZeroConeT(int(equal.sum())), clarabel.NonnegativeConeT(int(up.sum() + down.sum()))]
    Q = sp.csc_matrix((n, n)) if data.Q is None else sp.triu(data.Q).tocsc()
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.time_limit, settings.max_threads = False, WALL * limit, 1
    settings.tol_feas = settings.tol_gap_abs = settings.tol_gap_rel = min(tolerance, TOLERANCE)
    found, cpu, wall = timed(lambda: _run(Q, data.c, G, h, cones, settings))
    z, dual = np.array(found.z), np.zeros(m + n)
    e, k = int(equal.sum()), int(up.sum())
    dual[equal] = -z[:e]
    dual[up] -= z[e : e + k]
    dual[down] += z[e + k :]
    status = STATUS.get(str(found.status), str(found.status))
    y, x = dual[:m], np.array(found.x)
    ray_x, ray_y = (x if status == "dual_infeasible" else None), (y if status == "primal_infeasible" else None)
    return Answer(status, x, y, Timing(0.0, cpu, wall), int(found.iterations), dual[m:], ray_x, ray_y)


def _run(Q: Any, c: Any, G: Any, h: Any, cones: Any, settings: Any) -> Any:
    return clarabel.DefaultSolver(Q, c, G, h, cones, settings).solve()
