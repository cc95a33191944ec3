"""Convex quadratic programs with two-sided rows: a linear program plus a curved objective.

    min_x  x'Qx/2 + c'x + offset    subject to   row_lower <= A x <= row_upper,   lower <= x <= upper

with Q symmetric and positive semidefinite. `L(x, y) = x'Qx/2 + c'x - y'Ax + p(y)`, reduced costs `z = c + Qx - A'y`,
dual objective `p(y) + sum_j (l_j [z_j]+ - u_j [-z_j]+) - x'Qx/2 + offset` (linear spec, sections 1 and 7).

At a point x the program looks like the linear program with objective `c + Qx` and offset `offset - x'Qx/2`: the same
two objectives, reduced costs and residuals. So everything about rows and bounds is asked of that one (`tangent`).
"""

from dataclasses import InitVar
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jax import lax

from pdopt.errors import require_shape
from pdopt.operators.convert import as_operator
from pdopt.operators.diagonal import Diagonal
from pdopt.problems.active_set import attach
from pdopt.problems.checks import check_finite
from pdopt.problems.convexity import check_definite, check_symmetric
from pdopt.problems.linear import RAY_TOLERANCE, Certificate, LinearProgram, Rays
from pdopt.runtime.precision import precision_scope, resolve_dtype
from pdopt.types import Optimality, Pair, Residuals, record

FIELDS = ("c", "A", "row_lower", "row_upper", "lower", "upper", "offset")


@record(static=("maximise",))
class QuadraticProgram:
    """`min` (or `max`) `x'Qx/2 + c'x + offset` subject to `row_lower <= A x <= row_upper`, `lower <= x <= upper`.

    Args:
        Q: `(n, n)` symmetric; positive semidefinite for a minimisation, negative for a maximisation. Dense, SciPy
            sparse, BCOO, an operator, or `(n,)`: a diagonal (which a sparse matrix without other entries becomes).
        c, A, row_lower, row_upper, lower, upper, offset, maximise, dtype, check: as for `LinearProgram`.

    Raises:
        InvalidProblem: as for `LinearProgram`; a Q that is not symmetric, or that is seen to have an eigenvalue of the
            wrong sign (`convexity.py`: surely for a diagonal and up to 500 variables, else where a few Lanczos steps
            meet one).

    Example:
        >>> import pdopt
        >>> qp = QuadraticProgram([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0], [[1.0, 1.0]], [2.0], [2.0], dtype=jnp.float32)
        >>> solution = pdopt.solve(qp, tolerance=1e-5)
        >>> print(solution.x.round(3), solution.y.round(3), solution.objective.round(3))
        [1. 1.] [1.] 1.0
    """

    Q: Any
    c: Any
    A: Any
    row_lower: Any
    row_upper: Any
    lower: Any = None
    upper: Any = None
    offset: Any = 0.0
    maximise: bool = False
    dtype: InitVar[Any] = None
    check: InitVar[bool] = True
    allow_low_precision: InitVar[bool] = False

    def __post_init__(self, dtype: Any, check: bool, allow_low_precision: bool) -> None:
        fields = {name: getattr(self, name) for name in ("Q", *FIELDS)}
        dtype = resolve_dtype(fields.items(), dtype, allow_low_precision=allow_low_precision)
        Q = _as_curvature(self.Q, dtype)
        rows = {name: fields[name] for name in FIELDS}
        linear = LinearProgram(**rows, dtype=dtype, check=check, allow_low_precision=allow_low_precision)
        n = linear.shape[1]
        require_shape("Q", Q.shape, (n, n), f"A has {n} columns")
        object.__setattr__(self, "Q", Q)
        for name in FIELDS:
            object.__setattr__(self, name, getattr(linear, name))
        if check:
            if hasattr(Q, "entries"):
                check_finite("Q", Q.entries)
            check_symmetric(Q)
            check_definite(Q, self.sense)

    @property
    def shape(self) -> tuple[int, int]:
        """`(m, n)`: rows and columns."""
        return self.A.shape

    @property
    def sense(self) -> float:
        """-1 for a maximisation, else 1: user's numbers times `sense` are those of the minimisation."""
        return -1.0 if self.maximise else 1.0

    def pair_shapes(self) -> Pair:
        """Shapes and dtype of a pair of this problem."""
        return self.linear.pair_shapes()

    @property
    def linear(self) -> LinearProgram:
        """The linear program with the same rows, bounds, linear objective and sense."""
        return self._linear(self.c, self.offset)

    def tangent(self, x: Any) -> LinearProgram:
        """The linear program with the same objectives and reduced costs at x (see the head of this file)."""
        curved = self.Q.matvec(x)
        return self._linear(self.c + curved, self.offset - x @ curved / 2)

    def _linear(self, c: Any, offset: Any) -> LinearProgram:
        rows = (self.A, self.row_lower, self.row_upper, self.lower, self.upper)
        return LinearProgram(c, *rows, offset, self.maximise, check=False, allow_low_precision=True)

    def minimised(self) -> "QuadraticProgram":
        """The same problem as a minimisation."""
        if not self.maximise:
            return self
        with precision_scope(self):
            ones = jnp.ones(self.shape[1], self.c.dtype)
            Q, c, offset = self.Q.scale(-ones, ones), -self.c, -self.offset
        rows = (self.A, self.row_lower, self.row_upper, self.lower, self.upper)
        return QuadraticProgram(Q, c, *rows, offset, check=False, allow_low_precision=True)

    def flip(self, pair: Pair) -> Pair:
        """The pair between the user's sense and the minimisation (its own inverse): multipliers change sign."""
        return Pair(pair.x, -pair.y) if self.maximise else pair

    def certificate(self, z: Any, ray: Pair) -> Certificate:
        """What a solution shows as proof, in the user's sense, from that of the minimisation."""
        return self.linear.certificate(z, ray)

    def objective(self, x: Any) -> Any:
        """`x'Qx/2 + c'x + offset`."""
        with precision_scope(self):
            return x @ self.Q.matvec(x) / 2 + self.c @ x + self.offset

    def residuals(self, pair: Pair) -> Residuals:
        """The three relative l2 residuals and the absolute ones; see `optimality`."""
        return self.optimality(pair).residuals

    def optimality(self, pair: Pair) -> Optimality:
        """Residuals, objectives and reduced costs of a pair, on these data, in the user's sense.

        As for `LinearProgram.optimality`, with `z` out of `c + Qx - A'y`; the dual residual is divided by `1 + |c|`.
        """
        with precision_scope(self):
            found = self.tangent(pair.x).optimality(pair)
            # The tangent divides by 1 + |c + Qx|, which grows with x; the measure of this library is 1 + |c|.
            dual = found.residuals.dual_absolute / (1 + jnp.linalg.norm(self.c))
            return found._replace(residuals=found.residuals._replace(dual=dual))

    def lagrangian(self, pair: Pair, z: Any) -> Any:
        """`x'Qx/2` more than the one of `LinearProgram`; of the minimisation. Hence `dQ = x x'/2` at an optimum."""
        return pair.x @ self.Q.matvec(pair.x) / 2 + self.linear.lagrangian(pair, z)

    def differentiated(self, pair: Pair) -> Pair:
        """A solution of the minimisation with its derivative in the data (`problems/active_set.py`)."""
        return attach(pair, self.minimised())

    def proof_moved(self, pair: Pair, z: Any) -> Any:
        """The reduced costs z of a solution, which follow the data and the pair where a bound holds."""
        if self.maximise:
            return self.minimised().proof_moved(pair, z)
        slope = self.c + self.Q.matvec(pair.x) - self.A.rmatvec(pair.y)
        return lax.stop_gradient(z) + jnp.where(z != 0, slope - lax.stop_gradient(slope), 0)

    def crossed(self) -> Any:
        """Whether some lower bound lies above its upper bound: infeasible before any iteration."""
        return self.linear.crossed()

    def valid(self) -> Any:
        """Whether the values can be a problem at all (for traced data, where a constructor cannot raise)."""
        numbers = self.linear.valid()
        return numbers & jnp.all(jnp.isfinite(self.Q.entries)) if hasattr(self.Q, "entries") else numbers

    def rays(self, direction: Pair, tolerance: float = RAY_TOLERANCE) -> Rays:
        """As for `LinearProgram.rays`; a dual ray must also be flat, `|Q dx| <= tolerance |c'dx|` (linf)."""
        found = self.linear.rays(direction, tolerance)
        dx = found.ray.x
        tolerance = max(tolerance, 8 * float(jnp.finfo(self.c.dtype).eps))
        flat = jnp.max(jnp.abs(self.Q.matvec(dx)), initial=0) <= tolerance * jnp.abs(self.c @ dx)
        return found._replace(dual_infeasible=found.dual_infeasible & flat)


def _as_curvature(Q: Any, dtype: Any) -> Any:
    """An operator from what users have; a vector and a sparse matrix without entries off the diagonal become one."""
    if sp.issparse(Q) and Q.shape[0] == Q.shape[1]:
        entries = sp.coo_matrix(Q)
        if not np.any(entries.data[entries.row != entries.col]):
            return Diagonal.make(Q.diagonal(), dtype)
    if not hasattr(Q, "matvec") and np.ndim(Q) == 1:
        return Diagonal.make(Q, dtype)
    return as_operator(Q, dtype)
