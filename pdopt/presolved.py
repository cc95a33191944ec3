"""A run through presolve: reduce, solve, go back, and judge again on the original data.

    reduced = presolve(problem);   pair = postsolve(solve(reduced));   residuals(problem, pair) <= tolerance ?

Postsolve can enlarge what is left of the residuals, so a pair is called optimal only by its residuals on the original
data. Where they are too large the pair is mended (`pdopt.mending`, which also tries now and then while a solve runs,
and ends it where a mended pair passes); where they still are, the reduced problem is solved on to `TIGHTER` times the
tolerance, and once more, for as many iterations as all before; and if that does not do, the original problem is solved
from the best pair: presolve may cost time, never the answer. Going on with the reduced problem compiles nothing; the
original is another program.
"""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdopt.confirm import refutation, verified_rays
from pdopt.mending import LEAST, SHARE, Mender, error_of, judged, mended
from pdopt.problems.linear import Certificate
from pdopt.problems.presolve import EMPTY, INFEASIBLE, REDUCED, UNCHANGED, UNDECIDED, Presolved, presolve
from pdopt.reports import Removed, Report, Seconds
from pdopt.runtime.precision import precision_scope
from pdopt.types import Pair, Solution, Status

TIGHTER = 0.1
ATTEMPTS = 3
INFEASIBLE_NOTE = (
    "Infeasible: HiGHS's presolve found (within its own tolerance, 1e-7) that no point satisfies the constraints. It "
    "gives no ray; a run without presolve looks for one."
)

# `drive(problem, start, tolerance, max_iterations, time_limit, checkpoint, first, mender, confirm) -> Report`
Drive = Callable[..., Report]


class _Budget:
    """Iterations and seconds that are left for the next solve, and what the ones before took."""

    def __init__(self, max_iterations: int, time_limit: float, clock: Callable[[], float]) -> None:
        self.max_iterations, self.clock, self.deadline = max_iterations, clock, clock() + time_limit
        self.iterations, self.compile, self.solve, self.solves = 0, 0.0, 0.0, 0

    @property
    def left(self) -> tuple[int, float]:
        return self.max_iterations - self.iterations, self.deadline - self.clock()

    @property
    def spent(self) -> bool:
        iterations, seconds = self.left
        return iterations < 1 or seconds <= 0

    def add(self, report: Report) -> None:
        self.solves += 1
        self.iterations += int(report.solution.iterations)
        self.compile += report.seconds.compile
        self.solve += report.seconds.solve


def presolved_run(
    drive: Drive,
    problem: Any,
    start: Pair | None,
    tolerance: float,
    max_iterations: int,
    time_limit: float,
    checkpoint: Any,
    clock: Callable[[], float],
) -> Report:
    """Solve a linear program through presolve.

    Args:
        drive: solves a problem from the host: `drive(problem, start, tolerance, max_iterations, time_limit,
            checkpoint, first, mender, confirm)`, `first` at the first solve of the run; `mender` is asked between its
            chunks, `confirm` whether its end is looked at twice.
        problem: a `LinearProgram`, in the user's sense.
        start: a pair of the problem, or None.
        tolerance, max_iterations, time_limit: of the whole run; the limit of time may be infinite.
        checkpoint: folder or None; the solves keep their states in its folders `reduced` and `original`.
        clock: seconds.

    Raises:
        UnsupportedProblem: what presolve cannot look at.
    """
    began = clock()
    budget = _Budget(max_iterations, time_limit, clock)
    made = presolve(problem)
    seconds = clock() - began
    removed = Removed(made.found, *made.removed)

    def solve(
        which: Any, name: str, start: Pair | None, tolerance: float, mender: Mender | None, most: int | None = None
    ) -> Report:
        (iterations, left), first = budget.left, budget.solves == 0
        iterations = iterations if most is None else min(iterations, most)
        folder = None if checkpoint is None else Path(checkpoint) / name
        if mender is not None:
            mender.begin()
        new = not name.startswith("reduced-")  # a problem that was not looked at before
        report = drive(which, start, tolerance, max(iterations, 1), max(left, 1e-3), folder, first, mender, new)
        budget.add(report)
        return report

    def end(report: Report, solution: Any, note: str = "") -> Report:
        count = np.asarray(budget.iterations, np.int32)
        spent = Seconds(budget.compile, budget.solve, seconds)
        return Report(solution.replace(iterations=count), spent, report.signal, removed, note)

    if made.found == INFEASIBLE:
        solution = judged(problem, _origin(problem))
        stopped = Report(solution, Seconds(0.0, 0.0), None)
        return end(stopped, solution.replace(status=_code(Status.PRIMAL_INFEASIBLE), certificate=None), INFEASIBLE_NOTE)

    pair, note = start, ""
    if made.found == UNDECIDED:
        # Infeasible or unbounded: without the objective only the first is left to find.
        report, solution, note = _infeasible(problem, tolerance, solve)
        if solution is not None:
            return end(report, solution, note)
    if made.found in (REDUCED, EMPTY):
        report, solution, note = _reduced(problem, made, start, tolerance, solve, budget)
        if solution is not None:
            return end(report, solution, note)
        pair = report.solution.pair
    mender = Mender(problem, Presolved(UNCHANGED, None, problem, None), tolerance)
    report = solve(problem, "original", pair, tolerance, mender)
    solution = report.solution
    if mender.found is not None:
        solution = _optimal(mender.found, report)
    elif not solution.reason.proved and mender.best is not None and error_of(mender.best) < error_of(solution):
        solution = mender.best.replace(status=solution.status, history=solution.history)
    return end(report, solution, note)


def _reduced(
    problem: Any, made: Presolved, start: Pair | None, tolerance: float, solve: Callable[..., Report], budget: _Budget
) -> tuple[Report, Solution | None, str]:
    """Solve what presolve left and go back: the last report, the solution to return or None to go on, and a note."""
    # A start even where none is given: a later solve has one, and both are one compiled program.
    wanted = tolerance
    begin = Pair([], []) if made.found == EMPTY else _origin(made.problem) if start is None else made.into(start)
    report, best = Report(judged(problem, _origin(problem)), Seconds(0.0, 0.0), None), None
    floor, mender = 16 * float(jnp.finfo(problem.c.dtype).eps), Mender(problem, made, tolerance)
    for attempt in range(ATTEMPTS):
        most = None if attempt < ATTEMPTS - 1 else budget.iterations
        if made.found == EMPTY:
            inner, status = Pair([], []), Status.OPTIMAL
        else:
            name = "reduced" if attempt == 0 else f"reduced-{attempt}"
            report = solve(made.problem, name, begin, wanted, mender, most)
            if mender.found is not None:
                return report, _optimal(mender.found, report), ""
            inner, status = report.solution.pair, report.solution.reason
        if status.proved:
            return _ray(problem, made, report, status, tolerance, solve)
        products = LEAST + (0 if budget.spent else budget.iterations // SHARE)
        began = budget.clock()
        try:
            solution = mended(problem, made, inner, tolerance, products)
            budget.solve += budget.clock() - began
        except ArithmeticError as error:
            report = report._replace(solution=judged(problem, _origin(problem)))
            return report, None, f"Solved without presolve: {error}."
        best = min((s for s in (best, mender.best, solution) if s is not None), key=error_of)
        best = best.replace(history=report.solution.history)
        report = report._replace(solution=best)
        if error_of(best) <= tolerance:
            return report, best.replace(status=_code(Status.OPTIMAL)), ""
        if status is not Status.OPTIMAL or budget.spent:
            # A limit, a signal or a failure ended the reduced solve; an optimum that is lost on the way back and
            # leaves no time to mend it is one that the limit kept from being found.
            kept = Status.TIME_LIMIT if status is Status.OPTIMAL else status
            own_limit = status is Status.ITERATION_LIMIT and most is not None
            if (status.value in _GO_ON or own_limit) and not budget.spent:
                break
            return report, best.replace(status=_code(kept)), ""
        if made.found == EMPTY or wanted * TIGHTER < floor:
            break
        wanted, begin = wanted * TIGHTER, inner
    error = error_of(report.solution)
    note = f"After postsolve the error was {error:.1e}; the problem was solved on from there without presolve."
    return report, None, note if math.isfinite(error) else "Solved without presolve: postsolve lost the pair."


def _optimal(solution: Any, report: Report) -> Any:
    """A mended pair that met the tolerance, as what a solve returns."""
    return solution.replace(status=_code(Status.OPTIMAL), history=report.solution.history)


# Ends of the reduced solve that say nothing of the original one.
_GO_ON = (Status.NUMERICAL_ERROR.value, Status.DIVERGED.value, Status.PRECISION_LIMIT.value)


def _ray(
    problem: Any, made: Presolved, report: Report, status: Status, tolerance: float, solve: Callable[..., Report]
) -> tuple[Report, Solution | None, str]:
    """A proof on the reduced problem: carried back where it proves the same of the original, else looked for anew.

    Rows that are gone get multiplier 0 and columns that are gone do not move; that is a ray of the original wherever
    reductions only removed. Reductions that reason with the objective keep an optimum if there is one, so behind an
    infeasible rest the original may be unbounded as well: without the objective there is none but infeasibility. Of an
    unbounded rest, and where that finds nothing, the original problem is solved, from the start, for a ray of its own.
    """
    found = _carried(problem, made, report, status)
    if found is not None:
        return report, found, ""
    if status is Status.PRIMAL_INFEASIBLE:
        found = refutation(problem, judged(problem, _origin(problem)))
        if found is not None:
            return report, found, ""
        again, found, note = _infeasible(problem, tolerance, solve)
        if found is not None:
            return again, found, note
    solution = judged(problem, _origin(problem))
    return report._replace(solution=solution), None, f"Presolve left a problem that is {status}; its ray was lost."


def _carried(problem: Any, made: Presolved, report: Report, status: Status) -> Solution | None:
    """The solution with the reduced problem's ray as a ray of the original; None where it is none there."""
    m, n = problem.shape
    dtype = problem.c.dtype
    inner = report.solution.certificate.ray
    x, y = np.zeros(n, dtype), np.zeros(m, dtype)
    x[made.columns], y[made.rows] = np.asarray(inner.x), np.asarray(inner.y)
    tries = [Pair(x, y)]
    if status is Status.PRIMAL_INFEASIBLE and not np.any(np.asarray(made.original.c)):
        # Without an objective multipliers of the reduced problem go back as those of a ray do.
        with contextlib.suppress(ArithmeticError):
            tries.append(made.postsolve(Pair(np.zeros(made.columns.size), np.asarray(inner.y))))
    for tried in tries:
        with precision_scope(problem):
            rays = verified_rays(problem.minimised(), Pair(jnp.zeros(n, dtype) + tried.x, jnp.asarray(tried.y, dtype)))
        if bool(rays.primal_infeasible if status is Status.PRIMAL_INFEASIBLE else rays.dual_infeasible):
            solution = judged(problem, _origin(problem))
            proof = Certificate(solution.certificate.z, problem.flip(rays.ray))
            return solution.replace(status=_code(status), certificate=proof)
    return None


def _infeasible(problem: Any, tolerance: float, solve: Callable[..., Report]) -> tuple[Report, Solution | None, str]:
    """Whether the constraints alone are infeasible, by presolve and a solve of what it leaves; None: not decided."""
    lp = problem.minimised()
    changes = {"c": np.zeros_like(np.asarray(lp.c)), "check": False, "allow_low_precision": True}
    with precision_scope(problem):
        bare = lp.replace(**changes)
    made, solution = presolve(bare), judged(problem, _origin(problem))
    report = Report(solution, Seconds(0.0, 0.0), None)
    claimed = solution.replace(status=_code(Status.PRIMAL_INFEASIBLE), certificate=None)
    if made.found == INFEASIBLE:
        return report, claimed, INFEASIBLE_NOTE
    if made.found != REDUCED:
        return report, None, ""
    report = solve(made.problem, "feasibility", None, tolerance, None)
    if report.solution.reason is not Status.PRIMAL_INFEASIBLE:
        return report, None, ""
    found = _carried(problem, made, report, Status.PRIMAL_INFEASIBLE)
    if found is not None:
        return report, found, ""
    note = (
        "Infeasible: a ray proves it of the constraints that HiGHS's presolve left, which keeps (within its own "
        "tolerance, 1e-7) what is feasible. It is no ray of the original; a run without presolve looks for one."
    )
    return report, claimed, note


def _origin(problem: Any) -> Pair:
    """The point of the bounds nearest to 0, and no multipliers."""
    with precision_scope(problem):
        zero = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), problem.pair_shapes())
        return Pair(jnp.clip(zero.x, problem.lower, problem.upper), zero.y)


def _code(status: Status) -> Any:
    return np.asarray(int(status), np.int32)
