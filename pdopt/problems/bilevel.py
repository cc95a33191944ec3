"""Bilevel programs whose lower level has constraints of its own.

    min_{x in X, y}  F(x, y)     subject to   y in argmin_{y in Y} { f(x, y) : h(x, y) = 0, g(x, y) <= 0 }

The lower level is taken as convex in y. With its multipliers (lam free, mu >= 0), L = f + <lam, h> + <mu, g> and
`w = (y, lam, mu)`, it is solved exactly where its natural map is zero:

    N(x, w) = ( y - P_Y(y - grad_y L),   -h,   mu - max(mu + g, 0) )

Hence the derivative of the upper level along the lower level's answer, the *hypergradient*

    r = grad_x F + N_x' p,      N_w' p = -grad_w F              (p: the adjoint)

and what a pair is judged by. It needs no penalty and no method: `N = 0` and `x = P_X(x - r)` at a solution whose
constraints are strictly complementary.
"""

from collections.abc import Callable
from dataclasses import InitVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.geometry.points import inner
from pdopt.geometry.sets import ConvexSet, Orthant, Reals
from pdopt.problems.checks import check_finite
from pdopt.problems.linear import RAY_TOLERANCE, Rays
from pdopt.problems.natural_map import solve_jacobian
from pdopt.runtime.precision import as_array, precision_scope, resolve_dtype
from pdopt.types import Optimality, Pair, Residuals, record


class Levels(NamedTuple):
    """The variables of the two levels, x and y of the formulas; each a pytree of arrays."""

    upper: Any
    lower: Any


class Multipliers(NamedTuple):
    """Multipliers of the lower level: `equality` free, `inequality >= 0`, shaped as the constraints; () where none."""

    equality: Any = ()
    inequality: Any = ()


class Adjoint(NamedTuple):
    """What a judged pair proves itself by: p as a `Pair` shaped like `(y, multipliers)`, and the hypergradient r."""

    lower: Pair
    hypergradient: Any


@record(static=("upper", "lower", "equality", "inequality", "project"))
class BilevelProgram:
    """`min F(x, y)` over x in X, with y a solution of `min f(x, y)` over y in Y, `h(x, y) = 0`, `g(x, y) <= 0`.

    The functions are static (hashed by identity: define them once, not in a loop); what changes between calls goes
    through `args`, which may be traced: a sweep or a set of seeds is a `vmap` over `args`.

    Args:
        upper: `F(x, y, *args)`, a scalar, smooth.
        lower: `f(x, y, *args)`, a scalar, smooth, convex in y.
        start: `(x, y)`, pytrees of floating arrays; where a solve begins, and what shapes are taken from.
        equality: `h(x, y, *args)`, an array or pytree of arrays, affine in y; None where absent.
        inequality: `g(x, y, *args)`, convex in y; None where absent.
        X, Y: sets of `pdopt.geometry`; the reals by default.
        args: passed to every function.
        project: `(x, y, *args) -> (x, y)`, the projection on `{x in X, y in Y, h = 0, g <= 0}`. Needed by `LVHBA` where
            h or g is not affine in (x, y); None lets it find its own.
        dtype: of the floating leaves; default: that of `start` and `args`, as for `LinearProgram`.

    Raises:
        InvalidOption: something that is not a function, or not a set. InvalidProblem: a function whose value has the
        wrong shape, NaN or infinity in `start`.

    Example:
        >>> import pdopt
        >>> program = BilevelProgram(                        # y*(x) = x - 1: the best x is 1/2
        ...     upper=lambda x, y: x**2 / 2 + y**2 / 2,
        ...     lower=lambda x, y: (y - x) ** 2 / 2,
        ...     inequality=lambda x, y: y - x + 1,
        ...     start=(0.0, 0.0), dtype=jnp.float32,
        ... )
        >>> print(program.objective(program.first()), program.constraints(2.0, 0.0).inequality)
        0.0 -1.0
    """

    upper: Callable[..., Any]
    lower: Callable[..., Any]
    start: Any
    equality: Callable[..., Any] | None = None
    inequality: Callable[..., Any] | None = None
    X: ConvexSet = Reals()
    Y: ConvexSet = Reals()
    args: tuple[Any, ...] = ()
    project: Callable[..., Any] | None = None
    dtype: InitVar[Any] = None
    check: InitVar[bool] = True

    def __post_init__(self, dtype: Any, check: bool) -> None:
        for name in ("upper", "lower", "equality", "inequality", "project"):
            value = getattr(self, name)
            if not callable(value) and (value is not None or name in ("upper", "lower")):
                raise InvalidOption(f"{name} is {value!r}; expected a function of (x, y, *args)")
        for name in ("X", "Y"):
            if not isinstance(getattr(self, name), ConvexSet):
                raise InvalidOption(f"{name} is {getattr(self, name)!r}; expected a set of pdopt.geometry")
        if not isinstance(self.start, tuple) or len(self.start) != 2:
            raise InvalidProblem(f"start is {type(self.start).__name__}; expected a tuple (x, y)")
        if not isinstance(self.args, tuple):
            raise InvalidOption(
                f"args has type {type(self.args).__name__}; expected a tuple, (value,) for a single one"
            )
        dtype = resolve_dtype([("start", self.start), ("args", self.args)], dtype)
        with precision_scope(jax.ShapeDtypeStruct((), dtype)):
            start = jax.tree.map(lambda leaf: as_array("start", leaf, dtype), Levels(*self.start))
            object.__setattr__(self, "start", start)
            for name in ("args", "X", "Y"):
                object.__setattr__(self, name, jax.tree.map(lambda leaf: _converted(leaf, dtype), getattr(self, name)))
            if check:
                for leaf in jax.tree.leaves(start):
                    check_finite("start", leaf)
                self._check_values(dtype)

    def _check_values(self, dtype: Any) -> None:
        """Raise unless the functions return what they should; they are traced, not run."""
        for name in ("upper", "lower"):
            found = jax.eval_shape(getattr(self, name), *self.start, *self.args)
            shapes = [leaf.shape for leaf in jax.tree.leaves(found)]
            if shapes != [()]:
                raise InvalidProblem(f"{name} returns arrays of shapes {shapes}; expected one scalar")
        for name in ("equality", "inequality"):
            if getattr(self, name) is None:
                continue
            for leaf in jax.tree.leaves(jax.eval_shape(getattr(self, name), *self.start, *self.args)):
                if leaf.dtype != dtype:
                    raise InvalidProblem(f"{name} returns {leaf.dtype}; expected {dtype}, the type of start and args")
        if self.project is not None:
            found = jax.eval_shape(self.project, *self.start, *self.args)
            shapes = jax.tree.map(jnp.shape, tuple(self.start))
            if jax.tree.map(lambda leaf: leaf.shape, tuple(found)) != shapes:
                raise InvalidProblem(f"project returns {found}; expected (x, y) of the shapes {shapes}")

    @property
    def sense(self) -> float:
        """1: both levels minimise."""
        return 1.0

    @property
    def defaults(self) -> dict[str, Any]:
        """A step takes about six gradients of f, so the limit is lower than that of linear solves."""
        return {"max_iterations": 20_000}

    def constraints(self, x: Any, y: Any) -> Multipliers:
        """`(h, g)` at a point, violations in the library's sign; () where there are none."""
        equality = () if self.equality is None else self.equality(x, y, *self.args)
        return Multipliers(equality, () if self.inequality is None else self.inequality(x, y, *self.args))

    def pair_shapes(self) -> Pair:
        """Shapes and dtype of a pair: x `Levels`, y `Multipliers`."""
        shaped = lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype), tree)
        return Pair(shaped(self.start), shaped(jax.eval_shape(self.constraints, *self.start)))

    def first(self) -> Pair:
        """`start` with multipliers 0."""
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self.pair_shapes().y)
        return Pair(self.start, zeros)

    def inside(self, pair: Pair) -> Pair:
        """The pair with its tuples named: `((x, y), (lam, mu))` will do for a start."""
        named = isinstance(pair.x, tuple) and isinstance(pair.y, tuple) and len(pair.x) == len(pair.y) == 2
        return Pair(Levels(*pair.x), Multipliers(*pair.y)) if named else pair

    def minimised(self) -> "BilevelProgram":
        """Itself."""
        return self

    def flip(self, pair: Pair) -> Pair:
        """The pair itself."""
        return pair

    def certificate(self, proof: Adjoint, ray: Pair) -> Any:
        """The adjoint of the returned pair and its hypergradient; the ray of an infeasible lower level is `ray.y`."""
        return {"adjoint": proof, "ray": ray}

    def objective(self, pair: Pair) -> Any:
        """`F(x, y)`."""
        with precision_scope(self):
            return self.upper(*pair.x, *self.args)

    def lower_lagrangian(self, x: Any, y: Any, multipliers: Multipliers) -> Any:
        """`f + <lam, h> + <mu, g>`."""
        return self.lower(x, y, *self.args) + inner(multipliers, self.constraints(x, y))

    def natural(self, x: Any, w: Pair) -> Pair:
        """`N(x, w)` of the head of this file, `w = Pair(y, multipliers)`; zero where w solves the lower level at x."""
        y, multipliers = w
        slope = jax.grad(self.lower_lagrangian, argnums=1)(x, y, multipliers)
        found = self.constraints(x, y)
        less = lambda a, b: jax.tree.map(jnp.subtract, a, b)
        moved = Orthant().project(jax.tree.map(jnp.add, multipliers.inequality, found.inequality))
        held = Multipliers(jax.tree.map(jnp.negative, found.equality), less(multipliers.inequality, moved))
        return Pair(less(y, self.Y.project(less(y, slope))), held)

    def adjoint(self, x: Any, w: Pair) -> Adjoint:
        """The adjoint p and the hypergradient r at any x and w; r is that of `F(x, y*(x))` where `N(x, w) = 0`."""
        v, shaped = ravel_pytree(w)
        natural = lambda x, v: ravel_pytree(self.natural(x, shaped(v)))[0]
        slope_x, slope_y = jax.grad(self.upper, argnums=(0, 1))(x, w.x, *self.args)
        right = ravel_pytree(Pair(jax.tree.map(jnp.negative, slope_y), jax.tree.map(jnp.zeros_like, w.y)))[0]
        p = solve_jacobian(lambda v: natural(x, v), v, right, transpose=True)
        _, pull = jax.vjp(lambda x: natural(x, v), x)
        return Adjoint(shaped(p), jax.tree.map(jnp.add, slope_x, pull(p)[0]))

    def residuals(self, pair: Pair) -> Residuals:
        """See `optimality`."""
        return self.optimality(pair).residuals

    def optimality(self, pair: Pair) -> Optimality:
        """How far a pair is from solving the program, in infinity norms, by no method's own measure.

        primal: `|h|`, `max(g, 0)` and the distances to X and Y, over `1 + |(x, y)|`; dual: `|y - P_Y(y - grad_y L)|`
        over `1 + |grad_y f|` and `|x - P_X(x - r)|` over `1 + |grad F|`, the larger; gap: `max |mu g|` over `1 + |mu|`.
        objective `F`, dual objective `F + <p, N>`: what F will be, to second order, once the lower level is solved.
        One linear system of the size of `(y, lam, mu)`. float32 reaches about 1e-4.
        """
        with precision_scope(self):
            (x, y), multipliers = pair
            w = Pair(y, multipliers)
            proof = self.adjoint(x, w)
            natural, found = self.natural(x, w), self.constraints(x, y)
            value, slopes = jax.value_and_grad(self.upper, argnums=(0, 1))(x, y, *self.args)
            lower_slope = jax.grad(self.lower, argnums=1)(x, y, *self.args)
            pulled = self.X.project(jax.tree.map(jnp.subtract, x, proof.hypergradient))
            upper = largest(jax.tree.map(jnp.subtract, x, pulled))
            outside = [largest(jax.tree.map(jnp.subtract, p, S.project(p))) for p, S in ((x, self.X), (y, self.Y))]
            broken = jnp.maximum(largest(found.equality), largest(Orthant().project(found.inequality)))
            primal = jnp.maximum(broken, jnp.maximum(*outside))
            lower = largest(natural.x)
            gap = largest(jax.tree.map(jnp.multiply, multipliers.inequality, found.inequality))
            dual = jnp.maximum(lower / (1 + largest(lower_slope)), upper / (1 + largest(slopes)))
            numbers = (
                primal / (1 + largest(pair.x)), dual, gap / (1 + largest(multipliers)),
                primal, jnp.maximum(lower, upper), gap, primal, value + inner(proof.lower, natural),
            )  # fmt: skip
            *residuals, predicted = (jnp.asarray(number, value.dtype) for number in numbers)
            return Optimality(Residuals(*residuals), value, predicted, proof)

    def lagrangian(self, pair: Pair, proof: Adjoint) -> Any:
        """`F + <p, N> + <r, P_X(x - r)>`: its derivative in the data is that of the optimal value (envelope)."""
        (x, y), multipliers = pair
        natural = self.natural(x, Pair(y, multipliers))
        held = self.X.project(jax.tree.map(jnp.subtract, x, proof.hypergradient))
        return self.upper(x, y, *self.args) + inner(proof.lower, natural) + inner(proof.hypergradient, held)

    def rays(self, direction: Pair, tolerance: float = RAY_TOLERANCE) -> Rays:
        """Whether multipliers that drift prove that the lower level's constraints cannot be met.

        `direction.x` is the point, `direction.y` the drift d (its inequality part is made `>= 0`): `<d, (h, g)>` is
        positive at the point and its gradient in (x, y) vanishes there, so that for convex constraints over the reals
        it is positive everywhere. Only claimed where no `project` is given (the rows are affine then) and both sets are
        the reals.
        """
        drift = Multipliers(direction.y.equality, Orthant().project(direction.y.inequality))
        size = largest(drift)
        drift = jax.tree.map(lambda d: d / jnp.where(size > 0, size, 1), drift)
        along = lambda point: inner(drift, self.constraints(*point))
        value, slope = jax.value_and_grad(along)(direction.x)
        flat = largest(slope) * (1 + largest(direction.x)) <= tolerance * value
        free = self.project is None and isinstance(self.X, Reals) and isinstance(self.Y, Reals)
        ray = Pair(jax.tree.map(jnp.zeros_like, direction.x), drift)
        return Rays(flat & (value > 0) & (size > 0) & free, jnp.bool_(False), ray)


def largest(tree: Any) -> Any:
    """`|.|_inf` over all leaves; 0 for an empty tree.

    Example:
        >>> print(largest((jnp.array([1.0, -3.0]), ())))
        3.0
    """
    sizes = [jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(tree)]
    return jnp.max(jnp.stack(sizes)) if sizes else jnp.zeros(())


def _converted(leaf: Any, dtype: Any) -> Any:
    """A leaf of the data as an array; only floating ones take the problem's type."""
    kind = jnp.result_type(leaf)
    return as_array("args, X or Y", leaf, dtype if jnp.issubdtype(kind, jnp.floating) else kind)
