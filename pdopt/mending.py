"""The last stretch of a linear program: a nearly optimal pair mended by least squares on the original data.

First-order steps bring a pair near its optimum soon and close the rest slowly, and postsolve can enlarge what is left
of the residuals. Both leave a pair from which a nearby one passes: `problems/primal_repair.py` moves the point to where
its rows and gap close, `problems/dual_repair.py` makes multipliers anew. Each spoils a little of what the other mended,
so they take turns, and what counts is the judge: the pair with the smallest error on the original data is kept.

    pair = postsolve(inner);    repeat:   x <- repaired_point(x, D(y));   y <- repaired_multipliers(x, y)

`Mender` tries this now and then while a solve runs; how much work it takes is a share of the iterations.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdopt.problems.linear import Certificate
from pdopt.problems.presolve import Presolved
from pdopt.runtime.precision import precision_scope
from pdopt.types import Optimality, Pair, Solution, Status

TURNS = 2
ENOUGH = 0.1  # share of the tolerance to which a pair is mended
LEAST, SHARE = 1000, 2  # products that mending may take at the end of a solve: so many, and one for so many iterations

# While a solve runs: tries at these iterations, where the error is within NEAR tolerances.
FIRST, GROWTH, NEAR, TRY = 16384, 1.5, 3.0, 4
# What passes may still lie far from the optimum in objective (6e-3 to 8e-2 on three programs at 1e-4): a pair whose
# objective moved by more tolerances than this is not what the solve was about to find.
NEARBY = 10.0


class Mender:
    """Tries to mend the best pair of a running solve; what `timed_run` asks between its chunks.

    A try takes one product for every `TRY` iterations so far and comes again after `GROWTH` times as many, so all tries
    together cost about a tenth of the solve. They come at fixed iterations: what is found does not depend on time.

    Attributes:
        next: iterations at which to try.
        best: the solution of the original problem with the smallest error that a try made; None before.
        found: the same, once it is within the tolerance; else None.
    """

    def __init__(self, problem: Any, made: Presolved, tolerance: float) -> None:
        self._problem, self._made, self._tolerance = problem, made, tolerance
        self.next, self.best = FIRST, None

    def begin(self) -> None:
        """Before a solve, whose iterations count from 0."""
        self.next = FIRST

    @property
    def found(self) -> Any:
        """See the class."""
        return self.best if self.best is not None and error_of(self.best) <= self._tolerance else None

    def after(self, iterations: int) -> None:
        """The next try is the first after so many iterations."""
        while self.next <= iterations:
            self.next = int(GROWTH * self.next)

    def __call__(self, pair: Pair, error: float, iterations: int) -> bool:
        """Whether the pair, that of the solve's own problem with its error, could be mended."""
        self.after(iterations)
        if not error <= NEAR * self._tolerance:
            return False
        try:
            solution = mended(self._problem, self._made, pair, self._tolerance, int(iterations / TRY))
        except ArithmeticError:
            return False
        lp = self._made.problem or self._made.original.minimised()
        before = float(np.sum(np.asarray(lp.c) * np.asarray(pair.x)) + lp.offset)
        moved = abs(self._problem.sense * float(solution.objective) - before)
        if not moved <= NEARBY * self._tolerance * (1 + 2 * abs(before)):
            return False
        if self.best is None or error_of(solution) < error_of(self.best):
            self.best = solution
        return self.found is not None


def mended(problem: Any, made: Presolved, inner: Pair, tolerance: float, products: int) -> Any:
    """The reduced problem's pair on the original, as postsolve gives it or, where that is not within, mended.

    Args:
        problem: the original; made: what presolve made of it.
        inner: a pair of the reduced problem, whose objective is right to `NEARBY` tolerances: the mark for the point
            until the multipliers are mended too.
        tolerance: what is good enough.
        products: the most products with A and A' that it takes, about.

    Returns:
        A solution that still runs.

    Raises:
        ArithmeticError: postsolve cannot undo its reductions for this pair.
    """
    best = judged(problem, made.postsolve(inner))
    enough, share = ENOUGH * tolerance, products // (3 * TURNS)
    kept: Pair | None = inner
    lp = made.problem
    optimum = math.nan if lp is None else problem.sense * (np.sum(np.asarray(lp.c) * np.asarray(inner.x)) + lp.offset)

    def better(pair: Pair) -> Any:
        nonlocal best
        found = judged(problem, pair)
        if error_of(found) < error_of(best):
            best = found
        return found

    def trusted(solution: Any) -> bool:
        # A bound that postsolve spoilt would lead the point astray; near the reduced optimum it is the gap to close.
        away = abs(float(solution.dual_objective) - optimum)
        return not away > NEARBY * tolerance * (1 + 2 * abs(optimum))

    def moved(solution: Any) -> Any:
        mark = float(solution.dual_objective) if trusted(solution) else float(optimum)
        return better(made.moved(solution.pair, mark, enough, share))

    for _ in range(TURNS):
        before = error_of(best)
        if before <= tolerance or not math.isfinite(before) or share < 1:
            break
        # Where the rows are far from closed, multipliers cannot tell which of them hold: the point goes first.
        found = moved(best) if number(best.residuals.primal) > tolerance else best
        if max(number(found.residuals.dual), number(found.residuals.gap)) > tolerance:
            for pair in made.mended(kept, found.pair, enough, share):
                found = better(pair)
                if error_of(best) <= tolerance:
                    return best
            dual, gap = number(found.residuals.dual), number(found.residuals.gap)
            if trusted(found) and (dual <= tolerance or gap > tolerance):
                moved(found)
        if error_of(best) > 0.9 * before:
            break
        kept = None
    return best


def judged(problem: Any, pair: Pair) -> Any:
    """A pair as a solution that still runs: residuals, objectives and reduced costs on the problem's own data."""
    with precision_scope(problem):
        pair = Pair(*(jnp.asarray(part, problem.c.dtype) for part in pair))
        found: Optimality = _judge(problem, pair)
        nothing = jax.tree.map(jnp.zeros_like, pair)
        return Solution(
            pair, np.asarray(int(Status.RUNNING), np.int32), found.objective, found.dual_objective, found.residuals,
            np.asarray(0, np.int32), Certificate(found.proof, nothing),
        )  # fmt: skip


@jax.jit
def _judge(problem: Any, pair: Pair) -> Optimality:
    return problem.optimality(pair)


def error_of(solution: Any) -> float:
    """The largest relative residual, infinite where it is not a number."""
    return number(solution.residuals.error)


def number(residual: Any) -> float:
    """A residual as a number, infinite where it is none."""
    return math.inf if math.isnan(float(residual)) else float(residual)
