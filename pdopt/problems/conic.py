"""Second-order cone programs: a linear program some of whose rows and variables lie in cones.

    min_x  c'x + offset    subject to   row_lower <= A x <= row_upper,   lower <= x <= upper,
                                        (A x - row_lower)[rows of a cone] in K,   x[columns of a cone] in K

    K = {(t, z): |z|_2 <= t}, the first entry being t.  Its multipliers lie in K, which is its own dual, with the sign
    of every other row: y = d value / d row_lower.  The dual of a variable in K is its reduced costs, in K as well.

Several cones, of any sizes, may stand side by side; the other rows and variables are those of a `LinearProgram`.
"""

from dataclasses import InitVar
from typing import Any

import numpy as np

from pdopt.errors import InvalidProblem
from pdopt.problems.checks import concrete
from pdopt.problems.cones import Cones
from pdopt.problems.linear import RAY_TOLERANCE, Certificate, LinearProgram, Rays
from pdopt.runtime.precision import precision_scope
from pdopt.types import Optimality, Pair, Residuals, record

FIELDS = ("c", "A", "row_lower", "row_upper", "lower", "upper", "offset")


@record(static=("maximise",))
class ConicProgram:
    """`min` (or `max`) `c'x + offset` with two-sided rows, bounds, and rows and variables in second-order cones.

    Args:
        c, A, row_lower, row_upper, lower, upper, offset, maximise, dtype, check: as for `LinearProgram`.
        cone_rows: lists of rows; `(A x - row_lower)[list]` lies in the cone, the first row being its bound t. There
            `row_lower` is finite and `row_upper` infinite.
        cone_columns: lists of variables; `x[list]` lies in the cone. Their bounds are infinite.

    Raises:
        InvalidProblem: as for `LinearProgram`; a list that is empty, leaves the problem or meets another; a side or a
            bound in a cone that must be finite or infinite and is not.

    Example:
        The point of a line that is nearest to the origin: `min t`, `|x| <= t`, `x1 + x2 = 2`.

        >>> import pdopt
        >>> socp = ConicProgram(
        ...     [1.0, 0.0, 0.0], [[0.0, 1.0, 1.0]], [2.0], [2.0], cone_columns=[[0, 1, 2]], dtype="float32"
        ... )
        >>> solution = pdopt.solve(socp, tolerance=1e-5)
        >>> print(solution.x.round(3), solution.y.round(3))
        [1.414 1.    1.   ] [0.707]
    """

    c: Any
    A: Any
    row_lower: Any
    row_upper: Any
    lower: Any = None
    upper: Any = None
    offset: Any = 0.0
    maximise: bool = False
    cone_rows: Any = ()
    cone_columns: Any = ()
    dtype: InitVar[Any] = None
    check: InitVar[bool] = True
    allow_low_precision: InitVar[bool] = False

    def __post_init__(self, dtype: Any, check: bool, allow_low_precision: bool) -> None:
        fields = {name: getattr(self, name) for name in FIELDS}
        linear = LinearProgram(**fields, dtype=dtype, check=check, allow_low_precision=allow_low_precision)
        m, n = linear.shape
        for name in FIELDS:
            object.__setattr__(self, name, getattr(linear, name))
        for name, size in (("cone_rows", m), ("cone_columns", n)):
            cones = getattr(self, name)
            if not isinstance(cones, Cones):
                object.__setattr__(self, name, Cones.of(name, cones, size))
        if check:
            self._check_sides()

    def _check_sides(self) -> None:
        for name, places, finite in (
            ("row_lower", self.cone_rows.places, True),
            ("row_upper", self.cone_rows.places, False),
            ("lower", self.cone_columns.places, False),
            ("upper", self.cone_columns.places, False),
        ):
            values = concrete(getattr(self, name))
            if values is None:
                continue
            bad = places[np.isfinite(values[places]) != finite]
            if bad.size:
                what = "a finite" if finite else "an infinite"
                raise InvalidProblem(f"{name}[{bad[0]}] is {values[bad[0]]} in a cone; expected {what} value")

    @property
    def shape(self) -> tuple[int, int]:
        """`(m, n)`: rows and columns."""
        return self.A.shape

    @property
    def sense(self) -> float:
        """-1 for a maximisation, else 1."""
        return -1.0 if self.maximise else 1.0

    @property
    def linear(self) -> LinearProgram:
        """The linear program of the same data, in which rows and variables of cones have their sides only."""
        fields = (getattr(self, name) for name in FIELDS)
        return LinearProgram(*fields, self.maximise, check=False, allow_low_precision=True)

    def pair_shapes(self) -> Pair:
        """Shapes and dtype of a pair of this problem."""
        return self.linear.pair_shapes()

    def minimised(self) -> "ConicProgram":
        """The same problem as a minimisation."""
        if not self.maximise:
            return self
        changes = {"c": -self.c, "offset": -self.offset, "maximise": False, "check": False, "allow_low_precision": True}
        return self.replace(**changes)  # pyright: ignore[reportAttributeAccessIssue]

    def flip(self, pair: Pair) -> Pair:
        """The pair between the user's sense and the minimisation (its own inverse): multipliers change sign."""
        return Pair(pair.x, -pair.y) if self.maximise else pair

    def certificate(self, z: Any, ray: Pair) -> Certificate:
        """What a solution shows as proof, in the user's sense, from that of the minimisation."""
        return self.linear.certificate(z, ray)

    def objective(self, x: Any) -> Any:
        """`c'x + offset`."""
        return self.linear.objective(x)

    def residuals(self, pair: Pair) -> Residuals:
        """The three relative l2 residuals and the absolute ones; see `optimality`."""
        return self.optimality(pair).residuals

    def optimality(self, pair: Pair) -> Optimality:
        """Residuals, objectives and reduced costs of a pair, on these data, in the user's sense.

        As for `LinearProgram.optimality`; in a cone, distances from the cone take the place of those from an interval.
        """
        with precision_scope(self):
            found = self.minimised().linear.judged(self.flip(pair), self.cone_rows, self.cone_columns)
            if not self.maximise:
                return found
            return Optimality(found.residuals, -found.objective, -found.dual_objective, -found.proof)

    def lagrangian(self, pair: Pair, z: Any) -> Any:
        """As for `LinearProgram`, of the minimisation; `d row_lower = y` in a cone."""
        return self.linear.lagrangian(pair, z, self.cone_rows)

    def crossed(self) -> Any:
        """Whether some lower bound lies above its upper bound: infeasible before any iteration."""
        return self.linear.crossed()

    def valid(self) -> Any:
        """Whether the values can be a problem at all (for traced data, where a constructor cannot raise)."""
        return self.linear.valid()

    def rays(self, direction: Pair, tolerance: float = RAY_TOLERANCE) -> Rays:
        """As for `LinearProgram.rays`, with the cones in place of the half lines."""
        return self.linear.rays(direction, tolerance, self.cone_rows, self.cone_columns)
