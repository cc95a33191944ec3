"""Linear programs with two-sided rows, their optimality residuals and their certificates.

    min_x  c'x + offset    subject to   row_lower <= A x <= row_upper,   lower <= x <= upper

Any bound may be infinite. One signed multiplier a row: `L(x, y) = c'x - y'Ax + p(y)` with
`p(y) = sum_i (rl_i [y_i]+ - ru_i [-y_i]+)`, so `y = d value / d right-hand side`; reduced costs `z = c - A'y`, and the
dual objective is `p(y) + sum_j (l_j [z_j]+ - u_j [-z_j]+) + offset`.
"""

import math
from dataclasses import InitVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdopt.errors import require_shape
from pdopt.operators.convert import as_operator
from pdopt.operators.sums import totals
from pdopt.problems.checks import check_bounds, check_finite
from pdopt.problems.cones import NONE, Cones
from pdopt.runtime.precision import as_array, precision_scope, resolve_dtype
from pdopt.types import Optimality, Pair, Residuals, record

RAY_TOLERANCE = 1e-8  # relative error a ray may have (PDLP and MPAX: 1e-8), at least 8 units of rounding
# A ray's value must exceed this many units of rounding of its own terms. A feasible problem without strict interior
# (x1 + x2 = 0.3, x1 <= 0.1, x2 <= 0.2) has directions whose true value is 0; rounding alone makes it +-1e-17.
ROUNDING = 64


class Certificate(NamedTuple):
    """What proves a linear program's status: reduced costs `z` at an optimum, `ray` (dx, dy) when infeasible."""

    z: Any
    ray: Pair


class Rays(NamedTuple):
    """Whether a direction proves infeasibility, and the direction made a ray (signs mended, largest entry 1)."""

    primal_infeasible: Any
    dual_infeasible: Any
    ray: Pair


@record(static=("maximise",))
class LinearProgram:
    """`min` (or `max`) `c'x + offset` subject to `row_lower <= A x <= row_upper`, `lower <= x <= upper`.

    Args:
        c: `(n,)` objective, in the user's own sense.
        A: `(m, n)` dense array, SciPy sparse matrix, BCOO or operator.
        row_lower, row_upper: `(m,)`, infinite where a side is absent; equal for an equality.
        lower, upper: `(n,)`; default free (`-inf`, `inf`).
        offset: constant added to the objective.
        maximise: read `c'x + offset` as something to maximise; objective, y and z are reported in that sense.
        dtype: floating dtype of the data. Default: that of the inputs; NumPy float64 becomes float32 (with a warning)
            while JAX's 64-bit mode is off, and `dtype=jnp.float64` keeps it.
        check: look at the values (NaN, infinities); shapes are always checked.

    Raises:
        InvalidProblem: a shape, NaN, infinity or bound that cannot be; the message names the field and place.
            `lower > upper` is no error: the solver reports PRIMAL_INFEASIBLE.

    Example:
        >>> lp = LinearProgram([1.0, 2.0], [[1.0, 1.0]], [1.0], [math.inf], [0.0, 0.0], dtype=jnp.float32)
        >>> lp.shape
        (1, 2)
    """

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
        fields = {
            name: getattr(self, name) for name in ("c", "A", "row_lower", "row_upper", "lower", "upper", "offset")
        }
        dtype = resolve_dtype(fields.items(), dtype, allow_low_precision=allow_low_precision)
        A = as_operator(self.A, dtype)
        m, n = A.shape
        defaults = {"lower": -math.inf, "upper": math.inf}
        arrays = {}
        for name, size, because in (
            ("c", n, f"A has {n} columns"),
            ("row_lower", m, f"A has {m} rows"),
            ("row_upper", m, f"A has {m} rows"),
            ("lower", n, f"A has {n} columns"),
            ("upper", n, f"A has {n} columns"),
        ):
            value = fields[name]
            value = np.full(size, defaults[name]) if value is None else value
            arrays[name] = as_array(name, value, dtype)
            require_shape(name, arrays[name].shape, (size,), because)
        arrays["offset"] = as_array("offset", self.offset, dtype)
        require_shape("offset", arrays["offset"].shape, (), "it is a number")
        for name, value in {**arrays, "A": A}.items():
            object.__setattr__(self, name, value)
        if check:
            check_finite("c", self.c)
            check_finite("offset", self.offset)
            if hasattr(A, "entries"):
                check_finite("A", A.entries, getattr(A, "place", None))
            check_bounds("row_lower", self.row_lower, "row_upper", self.row_upper)
            check_bounds("lower", self.lower, "upper", self.upper)

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
        m, n = self.shape
        return Pair(jax.ShapeDtypeStruct((n,), self.c.dtype), jax.ShapeDtypeStruct((m,), self.c.dtype))

    def minimised(self) -> "LinearProgram":
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
        return Certificate(-z if self.maximise else z, self.flip(ray))

    def objective(self, x: Any) -> Any:
        """`c'x + offset`."""
        with precision_scope(self):
            return self.c @ x + self.offset

    def residuals(self, pair: Pair) -> Residuals:
        """The three relative l2 residuals of PDLP (Applegate et al. 2021) and the absolute ones; see `optimality`."""
        return self.optimality(pair).residuals

    def optimality(self, pair: Pair) -> Optimality:
        """Residuals, objectives and reduced costs of a pair, on these data, in the user's sense.

        primal: `|Ax - clip(Ax, rl, ru), x - clip(x, l, u)| / (1 + |b|)`, `b_i = max(|rl_i|, |ru_i|)` over finite sides;
        dual: `|c - A'y - z| / (1 + |c|)`; gap: `|P - D| / (1 + |P| + |D|)`, all l2. Two choices of z are tried and the
        better one kept: every part of `c - A'y` of a valid sign, or that part zeroed where the bound is further from
        `x_j` than `|x_j|` (PDLP's rule). float32 reaches about 1e-4 on well-scaled problems.
        """
        with precision_scope(self):
            lp = self.minimised()
            found = lp.judged(self.flip(pair))
            if not self.maximise:
                return found
            return Optimality(found.residuals, -found.objective, -found.dual_objective, -found.proof)

    def judged(self, pair: Pair, rows: Cones = NONE, columns: Cones = NONE) -> Optimality:
        """`optimality` of a minimisation. `rows` and `columns`: what a conic program holds in cones instead.

        For rows in a cone K, `A x - row_lower` lies in K and y in K too (it is its own dual), and the distance from K
        takes the place of what a clip moves; columns in a cone have their reduced costs in it.
        """
        x, y = pair
        rl, ru, l, u = self.row_lower, self.row_upper, self.lower, self.upper
        activity = self.A.matvec(x)
        inside = activity - _finite(rl)
        short = rows.replaced(activity - jnp.clip(activity, rl, ru), inside - rows.project(inside))
        outside = columns.replaced(x - jnp.clip(x, l, u), x - columns.project(x))
        y_valid = self._signed(y, rows)
        wrong = y - y_valid
        reduced = self.c - self.A.rmatvec(y)

        signed = jnp.where(jnp.isfinite(l), _plus(reduced), 0) - jnp.where(jnp.isfinite(u), _plus(-reduced), 0)
        bound = jnp.where(reduced > 0, _finite(l), _finite(u))
        near = jnp.where(jnp.abs(x - bound) <= jnp.abs(x), signed, 0)
        signed, near = (columns.replaced(z, columns.project(reduced)) for z in (signed, near))

        def left(z: Any) -> tuple[Any, Any]:
            return (reduced - z) ** 2, _finite(l) * _plus(z) - _finite(u) * _plus(-z)

        cost, far, *plain, zeroed, of_zeroed, farthest = totals(
            [self.c * x, outside**2, *left(signed), *left(near)], [jnp.abs(outside)]
        )
        missed, row_part, signs, worst = totals([short**2, self._row_values(y_valid, rows), wrong**2], [jnp.abs(short)])
        primal_absolute, worst = jnp.sqrt(missed + far), jnp.maximum(worst, farthest)
        primal_objective, row_part = cost + self.offset, row_part + self.offset
        scale_primal = 1 + jnp.linalg.norm(jnp.maximum(jnp.abs(_finite(rl)), jnp.abs(_finite(ru))))
        scale_dual = 1 + jnp.linalg.norm(self.c)

        def normalised(found: tuple[Any, Any]) -> tuple[Any, Any]:
            dual_absolute, dual = found
            gap = jnp.abs(primal_objective - dual)
            return dual_absolute / scale_dual, gap / (1 + jnp.abs(primal_objective) + jnp.abs(dual))

        plain, zeroed = ((jnp.sqrt(d + signs), row_part + part) for d, part in (plain, (zeroed, of_zeroed)))
        better = jnp.maximum(*normalised(zeroed)) < jnp.maximum(*normalised(plain))
        dual_absolute, dual_objective = (jnp.where(better, b, a) for a, b in zip(plain, zeroed))
        dual, gap = normalised((dual_absolute, dual_objective))
        residuals = Residuals(
            primal_absolute / scale_primal, dual, gap,
            primal_absolute, dual_absolute, jnp.abs(primal_objective - dual_objective), worst,
        )  # fmt: skip
        return Optimality(residuals, primal_objective, dual_objective, jnp.where(better, near, signed))

    def _signed(self, y: Any, rows: Cones) -> Any:
        """The part of a multiplier that has a side, or a cone, to hold."""
        least = jnp.where(jnp.isfinite(self.row_upper), -jnp.inf, 0)
        most = jnp.where(jnp.isfinite(self.row_lower), jnp.inf, 0)
        return rows.replaced(jnp.clip(y, least, most), rows.project(y))

    def _row_values(self, y: Any, rows: Cones) -> Any:
        """`rl_i [y_i]+ - ru_i [-y_i]+`, and `rl_i y_i` in a cone: what each row adds to the dual objective."""
        low = _finite(self.row_lower)
        return rows.replaced(low * _plus(y) - _finite(self.row_upper) * _plus(-y), low * y)

    def lagrangian(self, pair: Pair, z: Any, rows: Cones = NONE) -> Any:
        """`L = c'x - y'Ax + p(y) + offset - z'x + sum_j (l_j [z_j]+ - u_j [-z_j]+)`, of the minimisation.

        At an optimum its derivative with respect to the data, pair and z held, is that of the optimal value (envelope
        theorem): `dc = x`, `dA = -y x'`, `d row_lower = [y]+`, `d lower = [z]+`.
        """
        x, y = pair
        values = self._row_values(y, rows)
        bounds = _finite(self.lower) * _plus(z) - _finite(self.upper) * _plus(-z)
        return self.c @ x - y @ self.A.matvec(x) - z @ x + self.offset + jnp.sum(values) + jnp.sum(bounds)

    def crossed(self) -> Any:
        """Whether some lower bound lies above its upper bound: infeasible before any iteration."""
        with precision_scope(self):
            return self._faults() > 0

    def valid(self) -> Any:
        """Whether the values can be a problem at all (for traced data, where a constructor cannot raise)."""
        with precision_scope(self):
            return ~jnp.isnan(self._faults())

    def _faults(self) -> Any:
        """How many bounds are crossed; NaN where some value cannot be one of a problem.

        In floating point, so that its sums are the kernels of all others.
        """

        def faults(low: Any, high: Any) -> Any:
            return jnp.where((low < jnp.inf) & (high > -jnp.inf), (low > high).astype(low.dtype), jnp.nan)

        numbers = (self.c, self.A.entries) if hasattr(self.A, "entries") else (self.c,)
        with precision_scope(self):
            found = jnp.sum(faults(self.row_lower, self.row_upper)) + jnp.sum(faults(self.lower, self.upper))
            # 0 times an infinity is NaN.
            return sum((jnp.sum(0 * v) for v in numbers), found + 0 * self.offset)

    def rays(
        self, direction: Pair, tolerance: float = RAY_TOLERANCE, rows: Cones = NONE, columns: Cones = NONE
    ) -> Rays:
        """Whether a direction (dx, dy) proves that no feasible point, or no bounded optimum, exists.

        dual infeasible: `c'dx < 0` and `A dx`, dx inside the recession cones within `tolerance |c'dx|` (|dx|_inf = 1);
        primal infeasible: `q = p(dy) + sum_j (l_j [z_j]+ - u_j [-z_j]+) > 0` with `z = -A'dy` zeroed where the bound is
        infinite, what was dropped at most `tolerance q` (Applegate et al. 2021, arXiv 2102.04592). The direction is
        judged on these data, in the sense of the minimisation, with the objective left out of the ray's residual.
        "Positive" and "negative" mean by more than the rounding of the sum itself, `ROUNDING` units of it; the
        tolerance is never taken below 8 units (1e-6 in float32). `rows`, `columns`: cones, as in `judged`.
        """
        rl, ru, l, u = self.row_lower, self.row_upper, self.lower, self.upper
        unit = float(jnp.finfo(self.c.dtype).eps)
        tolerance = max(tolerance, 8 * unit)
        dx = jnp.clip(direction.x, jnp.where(jnp.isfinite(l), 0, -jnp.inf), jnp.where(jnp.isfinite(u), 0, jnp.inf))
        dx = columns.replaced(dx, columns.project(direction.x))
        dy = self._signed(direction.y, rows)
        change, z = self.A.matvec(dx), -self.A.rmatvec(dy)
        # Of size 1 before anything is squared, which could vanish.
        (size, reach), (most,) = totals([], [jnp.abs(dx), jnp.abs(z)]), totals([], [jnp.abs(dy)])
        dx, change = dx / _positive(size), change / _positive(size)
        dy, z = dy / _positive(jnp.maximum(reach, most)), z / _positive(jnp.maximum(reach, most))
        broken = jnp.maximum(jnp.where(jnp.isfinite(rl), -change, 0), jnp.where(jnp.isfinite(ru), change, 0))
        broken = rows.replaced(broken, jnp.abs(change - rows.project(change)))
        kept = jnp.where(jnp.isfinite(l), _plus(z), 0) - jnp.where(jnp.isfinite(u), _plus(-z), 0)
        kept = columns.replaced(kept, columns.project(z))
        values = _finite(l) * _plus(kept) - _finite(u) * _plus(-kept)
        side = jnp.maximum(jnp.abs(_finite(rl)), jnp.abs(_finite(ru))) * dy
        ascent, terms, of_columns, dropped = totals([self.c * dx, (self.c * dx) ** 2, values], [jnp.abs(z - kept)])
        of_rows, sides, length, most = totals([self._row_values(dy, rows), side**2, dy**2], [broken])
        descent, noise = -ascent, ROUNDING * unit * jnp.sqrt(terms)
        unbounded = (descent > noise) & (most <= tolerance * descent)
        # An entry of A'dy errs by at most |column|_2 |dy|_2 units, whatever cancels in it; its bound multiplies that.
        bound = jnp.maximum(jnp.abs(_finite(l)), jnp.abs(_finite(u))) * self.A.column_norms("l2")
        noise = ROUNDING * unit * jnp.sqrt(sides + jnp.sum(bound**2) * length)
        q = of_rows + of_columns
        infeasible = (q > noise) & (dropped <= tolerance * q)
        return Rays(infeasible, unbounded, Pair(dx, dy))


def _plus(v: Any) -> Any:
    return jnp.maximum(v, 0)


def _finite(bound: Any) -> Any:
    return jnp.where(jnp.isfinite(bound), bound, 0)


def _positive(size: Any) -> Any:
    return jnp.where(size > 0, size, 1)
