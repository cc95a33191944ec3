"""Calculus of proximal maps: new functions from old ones, each with value, prox and conjugate.

    record                      g(x)                prox of s g at x                      g*(y)
    Indicator(set)              0 on the set        project(x)                            support(y)
    Conjugate(f)                f*(x)               x - s prox_{f/s}(x/s)                 f(y)
    Translated(f, a)            f(x - a)            a + prox_{s f}(x - a)                 f*(y) + <a, y>
    Scaled(f, k, b)             k f(b x)            prox_{s k b^2 f}(b x) / b             k f*(y / (k b))
    Separable(functions)        sum f_i(x_i)        part by part                          sum f_i*(y_i)

The second line is Moreau's identity (1965): `x = prox_{s g}(x) + s prox_{g*/s}(x/s)`. Sums of two functions have no
such rule in general and none is offered. Steps as in `proximals.py`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pdopt.errors import InvalidProblem
from pdopt.geometry.checks import require_no_nan, require_sign
from pdopt.geometry.points import floating, inner, like, spread, total
from pdopt.geometry.proximals import Function, zero_where
from pdopt.geometry.sets import ConvexSet
from pdopt.types import record


@record
class Indicator(Function):
    """0 on a set, infinite elsewhere.

    Attributes:
        set: the set.
        tolerance: absolute l2 distance up to which a point counts as inside when the value is asked for.

    Example:
        >>> from pdopt.geometry.sets import Orthant
        >>> print(Indicator(Orthant()).prox(jnp.array([-1.0, 2.0]), 3.0), Indicator(Orthant())(jnp.array([-1.0])))
        [0. 2.] inf
    """

    set: ConvexSet
    tolerance: Any = 0.0
    is_indicator = True

    def __call__(self, x: Any) -> jax.Array:
        distance = self.set.distance(x)
        return zero_where(distance <= like(self.tolerance, distance), distance)

    def prox(self, x: Any, step: Any) -> Any:
        """The projection, whatever the step (for a set of rows: one step a row, shape `(..., 1)`)."""
        return self.set.project(x)

    def conjugate(self, y: Any, tolerance: Any = 0.0) -> jax.Array:
        """The support function."""
        return self.set.support(y, tolerance)


@record
class Conjugate(Function):
    """`g = f*`, for any f here, through Moreau's identity.

    Attributes:
        f: the function whose conjugate this is.
        tolerance: slack in the domain of f* when the value is asked for.

    Example:
        >>> from pdopt.geometry.proximals import L1
        >>> print(Conjugate(L1(1.0)).prox(jnp.array([3.0, -0.5]), 1.0))
        [ 1.  -0.5]
    """

    f: Function
    tolerance: Any = 0.0

    @property
    def is_indicator(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether f is a support function."""
        return self.f.is_support

    @property
    def is_support(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether f is an indicator."""
        return self.f.is_indicator

    def __call__(self, x: Any) -> jax.Array:
        return self.f.conjugate(x, self.tolerance)

    def prox(self, x: Any, step: Any) -> Any:
        """`x - s prox_{f/s}(x/s)`."""
        x = jax.tree.map(floating, x)
        steps = jax.tree.map(lambda leaf, s: like(s, leaf), x, spread(step, x))
        scaled = jax.tree.map(jnp.divide, x, steps)
        dual = self.f.prox(scaled, jax.tree.map(lambda s: 1 / s, steps))
        return jax.tree.map(lambda leaf, s, p: leaf - s * p, x, steps, dual)

    def conjugate(self, y: Any, tolerance: Any = 0.0) -> jax.Array:
        """`f(y)`, since f is closed and convex."""
        return self.f(y)


@record
class Translated(Function):
    """`g(x) = f(x - shift)`.

    Attributes:
        f: the function.
        shift: scalar, array or pytree that is a prefix of the point.

    Raises:
        InvalidProblem: NaN in the shift.

    Example:
        >>> from pdopt.geometry.proximals import L1
        >>> print(Translated(L1(1.0), 2.0).prox(jnp.array([2.5, 5.0]), 1.0))
        [2. 4.]
    """

    f: Function
    shift: Any

    def __post_init__(self) -> None:
        for leaf in jax.tree.leaves(self.shift):
            require_no_nan(shift=leaf)

    @property
    def strong_convexity(self) -> Any:
        """That of f."""
        return self.f.strong_convexity

    @property
    def is_indicator(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of f."""
        return self.f.is_indicator

    def __call__(self, x: Any) -> jax.Array:
        return self.f(self._shifted(x, -1))

    def prox(self, x: Any, step: Any) -> Any:
        """`shift + prox_{s f}(x - shift)`."""
        return self._shifted(self.f.prox(self._shifted(x, -1), step), 1)

    def conjugate(self, y: Any, tolerance: Any = 0.0) -> jax.Array:
        """`f*(y) + <shift, y>`."""
        y = jax.tree.map(floating, y)
        shift = jax.tree.map(lambda leaf, a: like(a, leaf), y, spread(self.shift, y))
        return self.f.conjugate(y, tolerance) + inner(y, shift)

    def _shifted(self, x: Any, sign: int) -> Any:
        x = jax.tree.map(floating, x)
        return jax.tree.map(lambda leaf, a: leaf + sign * like(a, leaf), x, spread(self.shift, x))


@record
class Scaled(Function):
    """`g(x) = factor f(argument x)`.

    Attributes:
        f: the function.
        factor: k > 0, a scalar.
        argument: b > 0, a scalar.

    Raises:
        InvalidOption: a factor or argument that is not positive and finite.

    Example:
        >>> from pdopt.geometry.proximals import L1
        >>> print(Scaled(L1(1.0), 2.0).prox(jnp.array([3.0]), 1.0))
        [1.]
    """

    f: Function
    factor: Any = 1.0
    argument: Any = 1.0

    def __post_init__(self) -> None:
        require_sign("factor", self.factor, positive=True)
        require_sign("argument", self.argument, positive=True)

    @property
    def strong_convexity(self) -> Any:
        """`factor argument^2` times that of f."""
        return self.factor * self.argument**2 * self.f.strong_convexity

    @property
    def is_indicator(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of f."""
        return self.f.is_indicator

    @property
    def is_support(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of f."""
        return self.f.is_support

    def __call__(self, x: Any) -> jax.Array:
        value = self.f(_times(self.argument, x))
        return like(self.factor, value) * value

    def prox(self, x: Any, step: Any) -> Any:
        """`prox_{s k b^2 f}(b x) / b`."""
        step = jax.tree.map(lambda s: s * self.factor * self.argument**2, step)
        return _times(1 / self.argument, self.f.prox(_times(self.argument, x), step))

    def conjugate(self, y: Any, tolerance: Any = 0.0) -> jax.Array:
        """`k f*(y / (k b))`."""
        scale = 1 / (self.factor * self.argument)
        value = self.f.conjugate(_times(scale, y), tolerance * scale)
        return like(self.factor, value) * value


@record
class Separable(Function):
    """`g(x) = sum_i f_i(x_i)` over a pytree of functions that matches a pytree of points.

    Attributes:
        functions: pytree whose leaves are functions.

    Raises:
        InvalidProblem: something in the tree that is not a function.

    Example:
        >>> from pdopt.geometry.proximals import L1, Zero
        >>> a, b = Separable((L1(1.0), Zero())).prox((jnp.array([3.0]), jnp.array([3.0])), 1.0)
        >>> print(a, b)
        [2.] [3.]
    """

    functions: Any

    def __post_init__(self) -> None:
        for part in self.parts:
            if not isinstance(part, Function):
                raise InvalidProblem(f"functions contains {part!r}; expected a pytree whose leaves are functions")

    @property
    def parts(self) -> list[Function]:
        """The functions, in the order of the tree."""
        return jax.tree.leaves(self.functions, is_leaf=_is_function)

    @property
    def strong_convexity(self) -> Any:
        """The smallest of the parts'."""
        constants = [jnp.asarray(part.strong_convexity) for part in self.parts]
        return jnp.min(jnp.stack(constants)) if constants else 0.0

    @property
    def is_indicator(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether every part is one."""
        return all(part.is_indicator for part in self.parts)

    @property
    def is_support(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether every part is one."""
        return all(part.is_support for part in self.parts)

    def __call__(self, x: Any) -> jax.Array:
        return total(jax.tree.map(lambda f, leaf: f(leaf), self.functions, x, is_leaf=_is_function))

    def prox(self, x: Any, step: Any) -> Any:
        """Part by part; the step is a scalar or a prefix tree of the functions."""
        steps = jax.tree.map(
            lambda s, below: jax.tree.map(lambda _: s, below, is_leaf=_is_function), step, self.functions
        )
        return jax.tree.map(lambda f, leaf, s: f.prox(leaf, s), self.functions, x, steps, is_leaf=_is_function)

    def conjugate(self, y: Any, tolerance: Any = 0.0) -> jax.Array:
        """The sum of the parts' conjugates."""
        parts = jax.tree.map(lambda f, leaf: f.conjugate(leaf, tolerance), self.functions, y, is_leaf=_is_function)
        return total(parts)


def _is_function(thing: Any) -> bool:
    return isinstance(thing, Function)


def _times(factor: Any, x: Any) -> Any:
    return jax.tree.map(lambda leaf: like(factor, floating(leaf)) * floating(leaf), x)
