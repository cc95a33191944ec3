"""pdopt itself in float64: the engines of `pdopt.PDHG`, as they are or behind presolve; linear and quadratic."""

import itertools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pdopt
from benchmarks.data import LinearData
from benchmarks.solvers import Answer, Timing, timed
from pdopt.run import timed_run
from pdopt.solve import default_method

ENGINES = {"default": pdopt.PDHG, "constant": pdopt.PDHG.constant, "averaged": pdopt.PDHG.averaged}
HISTORY = 256  # rows kept of the residuals at checks, for the convergence plot; part of the time measured
PACE = 640  # iterations that tell the speed, roughly; those of an eighth of the limit, or eight times as many, tell it
MOST = 100_000_000  # iterations: time is what ends a run
# Problems between two clearings of JAX's programs: each holds hundreds of maps of memory, of which Linux gives a
# process 65 530, and a child that had compiled some hundred problems could not compile the next and died.
FRESH = 25
_prepared: dict[int, tuple[LinearData, Any, float]] = {}
_problems = itertools.count(1)


def solve(
    data: LinearData, tolerance: float, limit: float, engine: str = "default", presolve: bool = False,
    confirm: bool = False,
) -> Answer:  # fmt: skip
    """Compile time = first call with one block of steps less a second such call; then the whole solve, compiled.

    The tolerance is traced, so a second tolerance on the same data compiles nothing; the compile time of the first is
    reported with both. The limit is one of CPU seconds: the traced `solve` is given the iterations that fit. With
    presolve, and for the method of multipliers, whose steps take as long as they take, it is `pdopt.run` that solves,
    by its own limit; the time of presolve and of postsolve is in its figures, and that of a second look at small
    programs (`pdopt.confirmed`), which the traced `solve` is given where it is to `confirm`.
    """

    def whole(problem: Any, tolerance: float, most: int) -> Any:
        method = default_method(problem) if engine == "default" else ENGINES[engine]()
        if presolve or not isinstance(method, pdopt.PDHG):
            solution = timed_run(
                problem, method, tolerance=tolerance, max_iterations=most, time_limit=limit, history=HISTORY,
                presolve=presolve, clock=time.process_time,
            ).solution  # fmt: skip
        else:
            solution = pdopt.solve(problem, method, tolerance=tolerance, max_iterations=most, history=HISTORY)
            solution = pdopt.confirmed(problem, solution) if confirm else solution
        return jax.block_until_ready(solution)

    with jax.enable_x64(True):
        if id(data) not in _prepared:
            if next(_problems) % FRESH == 0:
                jax.clear_caches()
            problem = problem_of(data)
            spans = []
            for _ in range(2):
                start = time.perf_counter()
                whole(problem, tolerance, 1)
                spans.append(time.perf_counter() - start)
            _prepared.clear()
            _prepared[id(data)] = (data, problem, max(spans[0] - spans[1], 0.0))
        _, problem, compile_seconds = _prepared[id(data)]
        most = MOST
        if not presolve and isinstance(default_method(problem), pdopt.PDHG):
            most = _fitting(lambda count: whole(problem, tolerance, count), limit)
        solution, cpu, wall = timed(lambda: whole(problem, tolerance, most))
    proof = solution.certificate  # none where presolve decides
    z, ray = (None, None) if proof is None else (np.array(proof.z), proof.ray)
    return Answer(
        str(solution.reason), np.array(solution.x), np.array(solution.y), Timing(compile_seconds, cpu, wall),
        int(solution.iterations), z, None if ray is None else np.array(ray.x), None if ray is None else np.array(ray.y),
        None if solution.history is None else _table(solution.history),
    )  # fmt: skip


def _fitting(whole: Any, limit: float) -> int:
    """The iterations that fit into `limit` CPU seconds, by what those after the first ones take.

    The first ones have twice the checks; at their pace a run of twenty seconds was given twelve.
    """
    _, begun, _ = timed(lambda: whole(PACE), 1)
    more = PACE + max(int(min(7.0, limit / 8 / begun) * PACE), PACE)
    solution, ended, _ = timed(lambda: whole(more), 1)
    later = int(solution.iterations) - PACE
    if later <= 0:  # solved by then
        return more
    each = max((ended - begun) / later, 0.2 * begun / PACE)
    return max(int(PACE + (limit - begun) / each), PACE)


def problem_of(data: LinearData) -> Any:
    """The program as pdopt's own, in float64."""
    rows = (data.c, data.A, data.row_lower, data.row_upper, data.lower, data.upper, data.offset)
    if data.Q is None:
        return pdopt.LinearProgram(*rows, dtype=jnp.float64)
    return pdopt.QuadraticProgram(data.Q, *rows, dtype=jnp.float64)


def _table(history: Any) -> np.ndarray:
    """Rows (iterations, largest relative residual) of the checks kept."""
    rows = np.asarray(history.rows)[: int(history.used)]
    return np.column_stack([rows[:, 0], rows[:, 3:6].max(axis=1)])
