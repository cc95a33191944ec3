"""Presolve: a smaller linear program with the same optimum, and the way back, by HiGHS.

    original  --presolve-->  reduced;     (x, y) of the reduced  --postsolve-->  (x, y) of the original

HiGHS removes rows and columns (empty, fixed, dominated, substituted) and keeps a list of what it did; postsolve walks
the list backwards. With an exact reduced pair the original one is exact to rounding. With an approximate one it is
whatever comes out: a reduction multiplies the error of what it was computed from, so whoever goes back must judge the
pair again on the original data (`pdopt.run` does, and goes on without presolve where it fails). `mended` recomputes the
multipliers, which suffer most, and `moved` the point.

Host code: nothing here is traced. HiGHS works in float64 whatever the problem's dtype.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp

from pdopt.errors import UnsupportedProblem
from pdopt.operators.convert import to_scipy
from pdopt.problems.dual_repair import repaired_multipliers
from pdopt.problems.linear import LinearProgram
from pdopt.problems.primal_repair import repaired_point
from pdopt.types import Pair

# What HiGHS found, in its words, and what that means here.
REDUCED, UNCHANGED, EMPTY, INFEASIBLE, UNDECIDED = "reduced", "unchanged", "empty", "infeasible", "undecided"
_FOUND = {
    "kReduced": REDUCED,
    "kReducedToEmpty": EMPTY,
    "kNotReduced": UNCHANGED,
    "kInfeasible": INFEASIBLE,
    # Neither of the two is decided by it: the problem is left as it is, and iterating finds out.
    "kUnboundedOrInfeasible": UNDECIDED,
}

# HiGHS's bit of a rule that helps factorisations and not us: without equations that depend on others the iterates take
# longer (of 45 development programs 0.91 and 0.89 times the iterations where they stay, at 1e-4 and 1e-6; f2177 160 in
# place of 6 400), and to find them takes long (`qap15` 3.3 seconds of presolve, and unsolved at 1e-6; `ps` minutes).
DEPENDENT_EQUATIONS = 1 << 10


class Presolved:
    """What presolve made of a linear program.

    Attributes:
        found: "reduced"; "unchanged", also where HiGHS gave up; "empty": nothing is left, and `postsolve` of the empty
            pair is the optimum; "infeasible": HiGHS found, within its tolerance of 1e-7, that no point satisfies the
            constraints; "undecided": infeasible or unbounded, which of the two is open.
        problem: the reduced linear program, a minimisation in the dtype of the original; the original itself, as a
            minimisation, where it was not reduced; None where nothing is left.
        rows, columns: the places in the original of the rows and columns that are left.
    """

    def __init__(self, found: str, problem: LinearProgram | None, original: LinearProgram, highs: Any) -> None:
        self.found, self.problem, self.original, self._highs = found, problem, original, highs
        self.rows, self.columns = np.arange(original.shape[0]), np.arange(original.shape[1])
        if found in (REDUCED, EMPTY):
            left = highs.getPresolvedLp()
            self.rows, self.columns = (
                np.array([int(name) for name in names] if found == REDUCED else [], np.int64)
                for names in (left.row_names_, left.col_names_)
            )

    @property
    def removed(self) -> tuple[int, int]:
        """Rows and columns that are gone."""
        m, n = self.original.shape
        return m - self.rows.size, n - self.columns.size

    def into(self, pair: Pair) -> Pair:
        """A pair of the original, in the user's sense, as a start of the reduced one.

        Entries of what is left are kept as they are: exact where reductions only removed, else a start like any other.
        """
        x, y = self.original.flip(pair)
        return Pair(np.asarray(x)[self.columns], np.asarray(y)[self.rows])

    def postsolve(self, pair: Pair) -> Pair:
        """The original's pair, in the user's sense, from one of the reduced problem (the empty one: `Pair([], [])`).

        Raises:
            ArithmeticError: HiGHS cannot undo its reductions for this pair.
        """
        highs, dtype = self._highs, np.asarray(self.original.c).dtype
        if self.found not in (REDUCED, EMPTY):
            return self.original.flip(Pair(*(np.asarray(part, dtype) for part in pair)))
        import highspy

        given: Any = highspy.HighsSolution()
        given.value_valid = given.dual_valid = True
        if self.found == REDUCED:
            lp = self.problem
            assert lp is not None
            A = to_scipy(lp.A)
            x, y = (np.asarray(part, np.float64) for part in pair)
            # A multiplier on a side that is not there, or a point outside its bounds, is the iterate's rounding.
            x = np.clip(x, np.asarray(lp.lower), np.asarray(lp.upper))
            low, high = np.asarray(lp.row_lower), np.asarray(lp.row_upper)
            y = np.clip(y, np.where(np.isfinite(high), -np.inf, 0), np.where(np.isfinite(low), np.inf, 0))
            given.col_value, given.row_value = x.tolist(), (A @ x).tolist()
            given.col_dual, given.row_dual = (np.asarray(lp.c, np.float64) - A.T @ y).tolist(), y.tolist()
        status = highs.postsolve(given)
        found = highs.getSolution()
        if status.name == "kError" or not (found.value_valid and found.dual_valid):
            raise ArithmeticError(f"HiGHS's postsolve answered {status.name}")
        x, y = np.array(found.col_value, dtype), np.array(found.row_dual, dtype)
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise ArithmeticError("HiGHS's postsolve made a value that is not finite")
        return self.original.flip(Pair(x, y))

    def mended(self, inner: Pair | None, pair: Pair, enough: float = 0.0, products: int = 3000) -> Iterator[Pair]:
        """A pair of the original with other multipliers, one try after the other (`dual_repair`).

        With `pair = postsolve(inner)`: first `inner`'s where rows are left and the rest made anew, then more and more
        of those as well; None: all rows at once. Keep the pair with the smallest error, a try may be worse than the
        one before.
        """
        lp, (x, y) = self.original.minimised(), self.original.flip(pair)
        x, y = (np.array(part, np.float64) for part in (x, y))
        free = np.arange(y.size)
        if inner is not None:
            y[self.rows] = np.asarray(inner.y)
            free = np.setdiff1d(free, self.rows)
        for better in repaired_multipliers(to_scipy(lp.A), lp, x, y, free, enough, products):
            yield self.original.flip(Pair(np.asarray(pair.x), better.astype(np.asarray(pair.y).dtype)))

    def moved(self, pair: Pair, dual_objective: float, enough: float = 0.0, products: int = 3000) -> Pair:
        """The pair with its point moved until rows and gap are small (`primal_repair`); all in the user's sense."""
        lp, dtype = self.original.minimised(), np.asarray(pair.x).dtype
        x, dual = np.array(pair.x, np.float64), self.original.sense * dual_objective
        x, _ = repaired_point(to_scipy(lp.A), lp, x, dual, enough, products)
        return Pair(x.astype(dtype), pair.y)


def presolve(problem: Any) -> Presolved:
    """Make a linear program smaller.

    Args:
        problem: a `LinearProgram` with a concrete dense or sparse matrix; crossed bounds are left to the solver.

    Raises:
        UnsupportedProblem: another kind of problem, or a matrix that is an operator without entries.

    Example:
        One row, of which a bound is enough; nothing is left to solve:

        >>> from math import inf
        >>> lp = LinearProgram([1.0, 1.0], [[1.0, 0.0]], [2.0], [inf], [0.0, 3.0], [9.0, 9.0], dtype=np.float32)
        >>> made = presolve(lp)
        >>> made.found, made.removed, made.postsolve(Pair([], [])).x
        ('empty', (1, 2), array([2., 3.], dtype=float32))
    """
    if not isinstance(problem, LinearProgram):
        raise UnsupportedProblem(f"problem has type {type(problem).__name__}; presolve takes a LinearProgram")
    A = to_scipy(problem.A)
    if A is None:
        raise UnsupportedProblem(f"A is a {type(problem.A).__name__} without entries, which presolve cannot look at")
    original = problem.minimised()
    if bool(original.crossed()):
        return Presolved(UNCHANGED, original, problem, None)
    import highspy

    # The wrapper class `highspy.Highs` prints HiGHS's banner when it is made, before any option can silence it.
    highs = highspy._core._Highs()
    options = {"output_flag": False, "log_to_console": False, "threads": 1, "presolve_rule_off": DEPENDENT_EQUATIONS}
    for option, value in options.items():
        highs.setOptionValue(option, value)
    if highs.passModel(_model(highspy, original, A)).name == "kError":
        return Presolved(UNCHANGED, original, problem, None)
    status = highs.presolve()
    found = UNCHANGED if status.name == "kError" else _FOUND.get(highs.getModelPresolveStatus().name, UNCHANGED)
    if found == REDUCED:
        reduced = _program(highs.getPresolvedLp(), np.asarray(problem.c).dtype)
        return Presolved(found, reduced, problem, highs)
    return Presolved(found, None if found == EMPTY else original, problem, highs)


def _model(highspy: Any, lp: Any, A: Any) -> Any:
    """The program in HiGHS's form; rows and columns are named by their place, which tells later what is left."""
    made = highspy.HighsLp()
    made.num_row_, made.num_col_ = A.shape
    made.col_cost_, made.offset_ = np.asarray(lp.c, np.float64), float(lp.offset)
    made.col_lower_, made.col_upper_ = np.asarray(lp.lower, np.float64), np.asarray(lp.upper, np.float64)
    made.row_lower_, made.row_upper_ = np.asarray(lp.row_lower, np.float64), np.asarray(lp.row_upper, np.float64)
    made.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    made.a_matrix_.start_, made.a_matrix_.index_, made.a_matrix_.value_ = A.indptr, A.indices, A.data
    made.a_matrix_.num_row_, made.a_matrix_.num_col_ = A.shape
    made.row_names_, made.col_names_ = ([str(i) for i in range(size)] for size in A.shape)
    return made


def _program(lp: Any, dtype: Any) -> LinearProgram:
    """A HiGHS model as a minimisation here."""
    a = lp.a_matrix_
    shape = (lp.num_row_, lp.num_col_)
    entries = np.array(a.value_, np.float64), np.array(a.index_), np.array(a.start_)
    A = sp.csc_matrix(entries, shape=shape) if a.format_.name == "kColwise" else sp.csr_matrix(entries, shape=shape)
    bounds = (np.array(side, np.float64) for side in (lp.row_lower_, lp.row_upper_, lp.col_lower_, lp.col_upper_))
    return LinearProgram(np.array(lp.col_cost_, np.float64), A, *bounds, lp.offset_, dtype=dtype)
