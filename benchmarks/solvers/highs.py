"""HiGHS: simplex, interior point with crossover, and its own PDLP. `row_dual` is d value / d right-hand side."""

from typing import Any

import highspy
import numpy as np

from benchmarks.data import LinearData
from benchmarks.solvers import Answer, Timing, timed

STATUS = {
    highspy.HighsModelStatus.kOptimal: "optimal",
    highspy.HighsModelStatus.kInfeasible: "primal_infeasible",
    highspy.HighsModelStatus.kUnbounded: "dual_infeasible",
}


def model(data: LinearData) -> Any:
    """The data as a HighsLp."""
    lp: Any = highspy.HighsLp()
    lp.num_row_, lp.num_col_ = data.A.shape
    lp.col_cost_, lp.offset_ = data.c, data.offset
    lp.col_lower_, lp.col_upper_ = data.lower, data.upper
    lp.row_lower_, lp.row_upper_ = data.row_lower, data.row_upper
    matrix: Any = data.A.tocsc()
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = matrix.indptr, matrix.indices, matrix.data
    return lp


def solve(data: LinearData, tolerance: float, limit: float, method: str = "simplex") -> Answer:
    """One thread. Simplex and interior point use HiGHS's defaults where the tolerance is looser than those."""
    lp = model(data)

    def run() -> Any:
        highs = highspy.Highs()
        highs.silent()
        options = {"solver": method, "threads": 1, "parallel": "off", "time_limit": float(limit)}
        feasibility = min(1e-7, max(tolerance, 1e-10))
        options |= {"primal_feasibility_tolerance": feasibility, "dual_feasibility_tolerance": feasibility}
        if method == "pdlp":
            options |= {"presolve": "off", "pdlp_optimality_tolerance": tolerance, "kkt_tolerance": tolerance}
        for name, value in options.items():
            highs.setOptionValue(name, value)
        highs.passModel(lp)
        highs.run()
        return highs

    highs, cpu, wall = timed(run)
    code = highs.getModelStatus()
    status = STATUS.get(code) or str(highs.modelStatusToString(code))
    info, solution = highs.getInfo(), highs.getSolution()
    counts = {
        "simplex": info.simplex_iteration_count, "ipm": info.ipm_iteration_count, "pdlp": info.pdlp_iteration_count
    }  # fmt: skip
    x, y, z = (np.array(v) for v in (solution.col_value, solution.row_dual, solution.col_dual))
    ray_x, ray_y = None, None
    if status == "primal_infeasible" and method == "simplex":
        ray_y = _ray(lp, "getDualRay")
    if status == "dual_infeasible" and method == "simplex":
        ray_x = _ray(lp, "getPrimalRay")
    m, n = data.A.shape
    whole = len(x) == n and len(y) == m
    return Answer(
        status, x if whole else None, y if whole else None, Timing(0.0, cpu, wall), int(max(counts[method], 0)),
        z if whole else None, ray_x, ray_y,
    )  # fmt: skip


def _ray(lp: Any, name: str) -> np.ndarray | None:
    """The ray of a second run without presolve, which proves infeasibility without one; sign as HiGHS gives it."""
    highs = highspy.Highs()
    highs.silent()
    highs.setOptionValue("presolve", "off")
    highs.passModel(lp)
    highs.run()
    status, has, values = getattr(highs, name)()
    return np.array(values) if has and status != highspy.HighsStatus.kError else None
