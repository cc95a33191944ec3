"""OSQP (Stellato et al. 2020), an operator splitting with one factorisation: `min x'Px/2 + q'x`, `l <= Ax <= u`."""

from typing import Any

import numpy as np
import osqp
import scipy.sparse as sp

from benchmarks.data import LinearData
from benchmarks.solvers import Answer, Timing, timed

ITERATIONS = 10_000_000  # its default of 4000 is a limit of time in disguise
WALL = 4.0  # its clock is of wall seconds; the harness counts those of the CPU
STATUS = {"solved": "optimal", "primal infeasible": "primal_infeasible", "dual infeasible": "dual_infeasible"}


def solve(data: LinearData, tolerance: float, limit: float) -> Answer:
    """Absolute and relative tolerance alike, in OSQP's own linf test with its own denominators; polishing off.

    Its multipliers are those of `Px + q + A'y = 0`: the negatives of ours.
    """
    m, n = data.A.shape
    A = sp.vstack([data.A, sp.eye(n)]).tocsc()
    low, high = np.concatenate([data.row_lower, data.lower]), np.concatenate([data.row_upper, data.upper])
    Q = sp.csc_matrix((n, n)) if data.Q is None else sp.triu(data.Q).tocsc()

    def run() -> Any:
        solver: Any = osqp.OSQP()
        solver.setup(
            Q, data.c, A, np.maximum(low, -1e30), np.minimum(high, 1e30), verbose=False, eps_abs=tolerance,
            eps_rel=tolerance, max_iter=ITERATIONS, time_limit=WALL * limit, polishing=False,
        )  # fmt: skip
        return solver.solve(raise_error=False)

    found, cpu, wall = timed(run)
    status = STATUS.get(found.info.status, found.info.status)
    x, y = np.array(found.x, np.float64), -np.array(found.y, np.float64)
    whole = bool(np.isfinite(x).all() and np.isfinite(y).all())
    ray_x = np.array(found.dual_inf_cert) if status == "dual_infeasible" else None
    ray_y = -np.array(found.prim_inf_cert)[:m] if status == "primal_infeasible" else None
    return Answer(
        status, x if whole else None, y[:m] if whole else None, Timing(0.0, cpu, wall), int(found.info.iter),
        y[m:] if whole else None, ray_x, ray_y,
    )  # fmt: skip
