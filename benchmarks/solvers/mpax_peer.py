"""MPAX (Lu, Peng, Yang 2024) in float64. Its form is `Ax = b, Gx >= h`: ranged rows are split, free rows dropped."""

import time

import jax
import jax.numpy as jnp
import mpax
import numpy as np
import scipy.sparse as sp
from jax.experimental.sparse import BCOO

from benchmarks.data import LinearData
from benchmarks.solvers import Answer, Timing, timed

STATUS = {2: "primal_infeasible", 3: "dual_infeasible"}


def solve(data: LinearData, tolerance: float, limit: float, engine: str = "r2HPDHG") -> Answer:
    """l2 test at the tolerance; compiled ahead of time, so that compile and solve are timed apart.

    MPAX has no time limit: the harness ends the process. Its denominators are larger than PDLP's (linear spec,
    section 7), so an answer it calls optimal may fail our check; its y is d value / d right-hand side.
    """
    jax.config.update("jax_enable_x64", True)  # MPAX follows the global setting; this process is its own
    equal = data.row_lower == data.row_upper
    low, high = np.isfinite(data.row_lower) & ~equal, np.isfinite(data.row_upper) & ~equal
    G = sp.vstack([data.A[low], -data.A[high]])
    h = np.concatenate([data.row_lower[low], -data.row_upper[high]])
    problem = mpax.create_lp(
        jnp.array(data.c), BCOO.from_scipy_sparse(data.A[equal]), jnp.array(data.row_lower[equal]),
        BCOO.from_scipy_sparse(sp.csr_matrix(G)), jnp.array(h), jnp.array(data.lower), jnp.array(data.upper),
    )  # fmt: skip
    solver = getattr(mpax, engine)(eps_abs=tolerance, eps_rel=tolerance, optimality_norm=2)
    start = time.perf_counter()
    compiled = jax.jit(solver.optimize).lower(problem).compile()
    compile_seconds = time.perf_counter() - start
    result, cpu, wall = timed(lambda: jax.block_until_ready(compiled(problem)))
    status = result.termination_status
    dual = np.array(result.dual_solution)
    y = np.zeros(data.A.shape[0])
    e, k = int(equal.sum()), int(low.sum())
    y[equal] = dual[:e]
    y[low] += dual[e : e + k]
    y[high] -= dual[e + k :]
    x = np.array(result.primal_solution)
    word = "optimal" if int(status) == 1 else STATUS.get(int(status), f"status {int(status)}")
    ray_x, ray_y = (x if word == "dual_infeasible" else None), (y if word == "primal_infeasible" else None)
    return Answer(
        word, x, y, Timing(compile_seconds, cpu, wall), int(result.iteration_count), None, ray_x, ray_y
    )  # fmt: skip
