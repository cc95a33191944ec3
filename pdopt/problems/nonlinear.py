"""Nonlinear programs on pytrees, and how good a pair is: infinity norms, on the user's own functions.

    min_x  f(x)   subject to   h(x) = 0,   g(x) <= 0,   lower <= x <= upper

x, h(x) and g(x) are pytrees; the functions may take further arguments `args`, in which the solution is differentiable.
The violation `v = (h, g)` is positive when broken, `L(x, y) = f(x) + <y.equality, h> + <y.inequality, g>` with
`y.inequality >= 0`. Multipliers of bounds are not stored: they are `grad_x L` where a bound holds x. At a pair

    primal   max(|h|, max(g, 0), lower - x, x - upper)
    dual     |x - clip(x - grad_x L, lower, upper)|
    gap      |max(g, -y.inequality)|                     (0 exactly where g <= 0, y >= 0 and y g = 0)

The relative dual residual is divided by `max(1, |grad f|)`. The relative primal residual and gap are the absolute ones:
a tolerance bounds the violation in the user's own units. Constraints are best written so that 1 is a typical value.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from pdopt.errors import InvalidProblem
from pdopt.geometry.points import inner
from pdopt.problems.checks import check_bounds, check_finite
from pdopt.problems.nonlinear_checks import argument, check_functions, spread_bound
from pdopt.problems.nonlinear_gradients import attach
from pdopt.runtime.precision import as_array, precision_scope, resolve_dtype
from pdopt.types import Optimality, Pair, Residuals, record

# Where a constraint and its multiplier are both this small the active set is not certain: cube root of eps, rounded.
WEAK = {"float64": 1e-5, "float32": 1e-2}


class Multipliers(NamedTuple):
    """What goes with the two kinds of constraint: multipliers, or violations; () where there is none of a kind."""

    equality: Any = ()
    inequality: Any = ()


class Proof(NamedTuple):
    """What one look at a pair shows beside its residuals.

    Attributes:
        slope: `grad_x L`, a pytree like x: the multipliers of the bounds where they hold x (>= 0 at a lower bound).
        unmovable: `|x - clip(x - grad q, lower, upper)|` for `q = (|h|^2 + |max(g, 0)|^2) / 2`: 0 at an infeasible
            point from which the violation cannot be reduced locally.
        degenerate: whether some inequality or bound is active with a multiplier that is nearly 0: derivatives of the
            solution are then those of one side only.
    """

    slope: Any
    unmovable: Any
    degenerate: Any


@record(static=("f", "equality", "inequality"))
class NonlinearProgram:
    """`min f(x, *args)` subject to `equality(x, *args) = 0`, `inequality(x, *args) <= 0`, `lower <= x <= upper`.

    Args:
        f: traceable by JAX, returns a scalar. A fresh lambda at each call compiles anew: pass the same function, and
            data through `args`.
        start: pytree of arrays; its structure, shapes and floating type are those of x.
        args: pytree of arrays, handed to all three functions; () for none.
        equality: traceable, returns a pytree of arrays; None for none. inequality: likewise, `<= 0` when satisfied.
        lower: a scalar, or a pytree of which `start` is an extension; None for none. upper: likewise.

    Raises:
        InvalidProblem: a function that is not traceable or returns something else; NaN; bounds that do not fit.

    Example:
        >>> import pdopt
        >>> circle = lambda x: jnp.sum(x**2) - 2
        >>> solution = pdopt.solve(NonlinearProgram(jnp.sum, jnp.array([-2.0, -0.5]), equality=circle))
        >>> print(solution.x.round(3), solution.y.equality.round(3))
        [-1. -1.] 0.5
    """

    f: Callable[..., Any]
    start: Any
    args: Any = ()
    equality: Callable[..., Any] | None = None
    inequality: Callable[..., Any] | None = None
    lower: Any = None
    upper: Any = None

    sense: ClassVar[float] = 1.0
    defaults: ClassVar[dict[str, Any]] = {"max_iterations": 200}

    def __post_init__(self) -> None:
        if not jax.tree.leaves(self.start):
            raise InvalidProblem("start has no arrays; expected a pytree with at least one variable")
        dtype = resolve_dtype([("start", self.start)], stacklevel=5)
        start = jax.tree.map(lambda leaf: as_array("start", leaf, dtype), self.start)
        check = lambda path, leaf: check_finite("start" + jax.tree_util.keystr(path), leaf)
        jax.tree_util.tree_map_with_path(check, start)
        args = self.args if isinstance(self.args, tuple) else (self.args,)
        with precision_scope(start):
            args = jax.tree.map(lambda leaf: argument(leaf, dtype), args)
        lower = spread_bound("lower", self.lower, -jnp.inf, start)
        upper = spread_bound("upper", self.upper, jnp.inf, start)
        for low, high in zip(jax.tree.leaves(lower), jax.tree.leaves(upper)):
            check_bounds("lower", low, "upper", high)
        for name, value in {"start": start, "args": args, "lower": lower, "upper": upper}.items():
            object.__setattr__(self, name, value)
        with precision_scope(start):
            check_functions(self)

    @property
    def dtype(self) -> Any:
        """The floating type of x."""
        return jax.tree.leaves(self.start)[0].dtype

    def objective(self, x: Any) -> Any:
        """`f(x, *args)`, a scalar of x's type."""
        return jnp.asarray(self.f(x, *self.args), self.dtype).reshape(())

    def violation(self, x: Any) -> Multipliers:
        """`(h(x), g(x))`, in x's type."""
        parts = (() if c is None else c(x, *self.args) for c in (self.equality, self.inequality))
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, self.dtype), Multipliers(*parts))

    def lagrangian(self, pair: Pair, proof: Proof) -> Any:
        """`f + <y, v>` plus what the bounds add, so that its derivative in any leaf is that of the optimal value."""
        value = self.objective(pair.x) + inner(pair.y, self.violation(pair.x))

        def bound(z: Any, x: Any, low: Any, high: Any) -> Any:
            side = jnp.where(z > 0, low, high)
            held = jnp.isfinite(side) & ((x <= low) | (x >= high))
            return jnp.sum(jnp.where(held, z * (jnp.where(held, side, 0) - x), 0))

        return value + sum(jax.tree.leaves(jax.tree.map(bound, proof.slope, pair.x, self.lower, self.upper)))

    def pair_shapes(self) -> Pair:
        """Shapes and types of a pair of this problem."""
        with precision_scope(self):
            return jax.eval_shape(lambda x: Pair(x, self.violation(x)), self.start)

    def inside(self, pair: Pair) -> Pair:
        """A pair moved into its sets: x between its bounds, multipliers of inequalities >= 0; None for 0."""
        y = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), self.pair_shapes().y) if pair.y is None else pair.y
        if isinstance(y, Multipliers):
            y = y._replace(inequality=jax.tree.map(lambda m: jnp.maximum(jnp.asarray(m), 0), y.inequality))
        same = jax.tree.structure(pair.x) == jax.tree.structure(self.start)
        fits = same and all(
            jnp.shape(a) == b.shape for a, b in zip(jax.tree.leaves(pair.x), jax.tree.leaves(self.start))
        )
        return Pair(jax.tree.map(jnp.clip, pair.x, self.lower, self.upper) if fits else pair.x, y)

    def optimality(self, pair: Pair) -> Optimality:
        """Residuals, objectives and proof of a pair, in infinity norms; see the head of this file."""
        with precision_scope(self.start):
            return self._optimality(pair)

    def residuals(self, pair: Pair) -> Residuals:
        """The residuals of `optimality`."""
        return self.optimality(pair).residuals

    def _optimality(self, pair: Pair) -> Optimality:
        x, y = pair
        (value, v), pull = jax.vjp(lambda x: (self.objective(x), self.violation(x)), x)
        broken = v._replace(inequality=jax.tree.map(lambda g: jnp.maximum(g, 0), v.inequality))
        # Three pull-backs in one: the gradients of f, of <y, v> and of the squared violation.
        weights = jnp.eye(3, dtype=self.dtype)[0], jax.tree.map(lambda a, b: jnp.stack([0 * a, a, b]), y, broken)
        slopes = jax.vmap(pull)(weights)[0]
        steep, force, regain = (jax.tree.map(lambda leaf, k=k: leaf[k], slopes) for k in range(3))
        slope = jax.tree.map(jnp.add, steep, force)
        outside = jax.tree.map(lambda x, l, u: jnp.maximum(l - x, x - u), x, self.lower, self.upper)
        primal = jnp.maximum(largest((broken, jax.tree.map(lambda o: jnp.maximum(o, 0), outside))), 0)
        # A NaN of the user's function has the slope 0, which must not be taken for a stationary point.
        dual = jnp.where(jnp.isfinite(value), largest(self._moved(x, slope)), jnp.nan)
        gap = largest(jax.tree.map(lambda g, m: jnp.maximum(g, -m), v.inequality, y.inequality))
        gap = gap.astype(value.dtype)  # of no constraints at all it is a float32 0
        relative = dual / jnp.maximum(1, largest(steep))
        residuals = Residuals(primal, relative, gap, primal, dual, gap, primal)
        proof = Proof(slope, largest(self._moved(x, regain)), self._degenerate(v, y, x, slope))
        return Optimality(residuals, value, value + inner(y, v), proof)

    def _moved(self, x: Any, slope: Any) -> Any:
        """`x - clip(x - slope, lower, upper)`."""
        return jax.tree.map(lambda x, d, l, u: x - jnp.clip(x - d, l, u), x, slope, self.lower, self.upper)

    def _degenerate(self, v: Multipliers, y: Multipliers, x: Any, slope: Any) -> Any:
        small = WEAK[str(self.dtype)]
        weak = lambda slack, price: jnp.any((slack <= small) & (jnp.abs(price) <= small))
        found = jax.tree.map(lambda g, m: weak(jnp.abs(g), m), v.inequality, y.inequality)
        sides = jax.tree.map(lambda x, d, l, u: weak(jnp.minimum(x - l, u - x), d), x, slope, self.lower, self.upper)
        flags = jax.tree.leaves((found, sides))
        return jnp.any(jnp.stack(flags))

    def valid(self) -> Any:
        """Whether the numbers of a traced start can begin a run."""
        return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(self.start)]))

    def crossed(self) -> Any:
        """Whether some lower bound lies above its upper bound."""
        over = jax.tree.map(lambda l, u: jnp.any(l > u), self.lower, self.upper)
        return jnp.any(jnp.stack(jax.tree.leaves(over)))

    def minimised(self) -> "NonlinearProgram":
        """Itself."""
        return self

    def flip(self, pair: Pair) -> Pair:
        """Itself: the problem is a minimisation."""
        return pair

    def certificate(self, proof: Proof, ray: Any) -> Proof:
        """What a solution shows beside its pair."""
        return proof

    def differentiated(self, pair: Pair) -> Pair:
        """The pair with its derivative with respect to `args` and bounds, by the optimality conditions."""
        return attach(pair, self)


def largest(tree: Any) -> Any:
    """The largest absolute entry of a pytree, 0 for an empty one; NaN where there is one."""
    flat, _ = ravel_pytree(tree)
    return jnp.max(jnp.abs(flat), initial=0)
