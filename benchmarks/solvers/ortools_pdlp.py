"""OR-tools PDLP on one thread, asked for the same l2 test as ours: eps_absolute = eps_relative = tolerance."""

from typing import Any

import numpy as np
from ortools.pdlp import solve_log_pb2, solvers_pb2
from ortools.pdlp.python import pdlp

from benchmarks.data import LinearData
from benchmarks.solvers import Answer, Timing, timed

STATUS = {
    solve_log_pb2.TERMINATION_REASON_OPTIMAL: "optimal",
    solve_log_pb2.TERMINATION_REASON_PRIMAL_INFEASIBLE: "primal_infeasible",
    solve_log_pb2.TERMINATION_REASON_DUAL_INFEASIBLE: "dual_infeasible",
}


def solve(data: LinearData, tolerance: float, limit: float, presolve: bool = False) -> Answer:
    """Default parameters, without presolve unless asked."""
    program: Any = pdlp.QuadraticProgram()
    program.resize_and_initialize(data.A.shape[1], data.A.shape[0])
    program.objective_vector, program.objective_offset = data.c, data.offset
    program.constraint_matrix = data.A.tocsc()
    program.constraint_lower_bounds, program.constraint_upper_bounds = data.row_lower, data.row_upper
    program.variable_lower_bounds, program.variable_upper_bounds = data.lower, data.upper
    params = solvers_pb2.PrimalDualHybridGradientParams()
    criteria = params.termination_criteria
    criteria.optimality_norm = solvers_pb2.OPTIMALITY_NORM_L2
    criteria.simple_optimality_criteria.eps_optimal_absolute = tolerance
    criteria.simple_optimality_criteria.eps_optimal_relative = tolerance
    criteria.time_sec_limit = limit
    params.num_threads = 1
    params.presolve_options.use_glop = presolve

    def run() -> Any:
        return pdlp.primal_dual_hybrid_gradient(program, params)

    result, cpu, wall = timed(run)
    reason = result.solve_log.termination_reason
    name = solve_log_pb2.TerminationReason.Name(reason).removeprefix("TERMINATION_REASON_").lower()
    status = STATUS.get(reason, name)
    x, y, z = (np.array(v) for v in (result.primal_solution, result.dual_solution, result.reduced_costs))
    ray_x = x if status == "dual_infeasible" else None
    ray_y = y if status == "primal_infeasible" else None
    return Answer(status, x, y, Timing(0.0, cpu, wall), int(result.solve_log.iteration_count), z, ray_x, ray_y)
