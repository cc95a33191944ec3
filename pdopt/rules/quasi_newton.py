"""L-BFGS as a signal: the dual half moves along `H v` instead of v, and looks before it trusts a step.

    u = s H v,     H from the last pairs (dy, dv)          (Liu, Nocedal 1989; the recursion is optax's)

The dual function is concave and v is its gradient, so the slope `<v, d>` along a direction falls monotonically and is
all that a line search needs: a step is kept when its slope is small against the first one, `|<v(y + s d), d>| <= c
<v(y), d>` (the strong Wolfe condition on curvature), lengthened while the slope still is as steep, and drawn back by
the secant of the slopes where it turned. Each call is one trial, so that one saddle step is one look at the dual; a
rejected trial is taken back by the next displacement. Nothing here moves a multiplier: the move adds the displacement.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pdopt.errors import InvalidOption, require_range
from pdopt.problems.checks import concrete
from pdopt.types import Memory, record

STRETCH = 10.0  # the longest a trial is lengthened by
INNER = 0.1  # a trial stays this share of the bracket away from both its ends


class Search(NamedTuple):
    """Where a line search is: pairs so far, its direction and first slope, the trial, and the bracket around it.

    `unit` is the inverse curvature of the last pair (0 before the first), `first` the size of the very first move.
    """

    history: Any
    direction: Any
    slope: Any
    length: Any
    low: Any
    high: Any
    trials: Any
    unit: Any
    first: Any


class End(NamedTuple):
    """An end of the bracket: a length and the slope there."""

    length: Any
    slope: Any


@record(static=("memory", "trials"))
class QuasiNewton:
    """`(v, memory) -> (u, memory)`, to be moved with step 1. `memory.primal` is the y that v was measured at.

    Attributes:
        memory: pairs kept, >= 1.
        curvature: c in (0, 1): 0.9 accepts almost every first trial (Nocedal, Wright 2006, section 3.1).
        trials: looks along one direction before the latest is taken as it is (at a kink no length satisfies c), >= 1.

    Raises:
        InvalidOption: a setting outside its range.

    Example:
        >>> signal = QuasiNewton()
        >>> memory = Memory(jnp.zeros(1), signal.init(jnp.zeros(1), jnp.float32(0.1)))
        >>> u, memory = signal(jnp.array([4.0]), memory)
        >>> print(u)
        [0.1]
    """

    memory: int = 10
    curvature: Any = 0.9
    trials: int = 8

    def __post_init__(self) -> None:
        for name in ("memory", "trials"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InvalidOption(f"{name} is {value!r}; expected an integer >= 1")
        if concrete(self.curvature) is not None:
            require_range("curvature", self.curvature, 0.0, 1.0, open_low=True)

    def init(self, y: Any, first: Any) -> Search:
        """Before the first look; `first` is the largest entry of the first displacement, in units of y."""
        dtype = jnp.result_type(*jax.tree.leaves(y))
        zero, infinite = jnp.zeros((), dtype), jnp.full((), jnp.inf, dtype)
        nowhere = optax.tree.zeros_like(y)
        return Search(
            self._empty(y), nowhere, zero, zero, End(zero, zero), End(infinite, zero), jnp.int32(self.trials),
            zero, jnp.asarray(first, dtype),
        )  # fmt: skip

    def restart(self, search: Search) -> Search:
        """Forget the pairs: the dual function is another one from now on. The scale of the last pair stays."""
        return search._replace(history=self._empty(search.direction), trials=jnp.int32(self.trials))

    def _empty(self, y: Any) -> Any:
        history: Any = optax.scale_by_lbfgs(self.memory).init(y)
        dtype = jnp.result_type(*jax.tree.leaves(y))
        return history._replace(weights_memory=history.weights_memory.astype(dtype))

    def __call__(self, v: Any, memory: Memory) -> tuple[Any, Memory]:
        """The displacement of y, and the search after this look."""
        search, y = memory.dual, memory.primal
        slope = _inner(v, search.direction)
        steep = slope > self.curvature * search.slope
        turned = slope < -self.curvature * search.slope
        again = (steep | turned) & (search.trials < self.trials)
        retried, back = self._retry(search, slope, turned)
        begun, ahead = self._begin(search, v, y)
        search, u = optax.tree.where(again, (retried, back), (begun, ahead))
        return u, memory._replace(dual=search)

    def _retry(self, search: Search, slope: Any, turned: Any) -> tuple[Search, Any]:
        """Another length along the same direction; y stands at the rejected one."""
        here = End(search.length, slope)
        low = optax.tree.where(turned, search.low, here)
        high = optax.tree.where(turned, here, search.high)
        bracketed = jnp.isfinite(high.length)
        width = jnp.where(bracketed, high.length - low.length, 1)
        drop = low.slope - high.slope
        secant = jnp.clip(low.slope / jnp.where(drop > 0, drop, 1), INNER, 1 - INNER)
        fallen = search.slope - slope
        stretch = jnp.clip(search.slope / jnp.where(fallen > 0, fallen, search.slope / STRETCH), 2, STRETCH)
        length = jnp.where(bracketed, low.length + secant * width, search.length * stretch).astype(slope.dtype)
        back = jax.tree.map(lambda d: (length - search.length) * d, search.direction)
        return search._replace(length=length, low=low, high=high, trials=search.trials + 1), back

    def _begin(self, search: Search, v: Any, y: Any) -> tuple[Search, Any]:
        """A new direction from where y stands."""
        gradient = optax.tree.scale(-1, v)
        known = search.history.count > 0
        moved = optax.tree.sub(y, search.history.params)
        changed = optax.tree.add(v, search.history.updates)  # updates hold -v of the last point
        size = _inner(changed, changed)
        curved = -_inner(moved, changed)
        unit = jnp.where(known & (curved > 0), curved / jnp.where(size > 0, size, 1), search.unit)
        ascent, history = optax.scale_by_lbfgs(self.memory).update(gradient, search.history, y)
        newton = optax.tree.scale(-1, ascent)
        slope = _inner(newton, v)
        peak: Any = optax.tree.max(jax.tree.map(jnp.abs, v))
        scale = jnp.where(unit > 0, unit, search.first / jnp.where(peak > 0, peak, 1))
        plain = optax.tree.scale(scale, v)
        good = known & jnp.isfinite(slope) & (slope > 0)
        direction = optax.tree.where(good, newton, plain)
        history = optax.tree.where(good | ~known, history, self._fresh(history))
        slope = jnp.where(good, slope, _inner(plain, v)).astype(search.slope.dtype)
        zero, one = jnp.zeros_like(slope), jnp.ones_like(slope)
        ends = End(zero, slope), End(jnp.full_like(slope, jnp.inf), zero)
        unit = unit.astype(slope.dtype)
        return Search(history, direction, slope, one, *ends, jnp.int32(0), unit, search.first), direction

    def _fresh(self, history: Any) -> Any:
        return self._empty(history.params)._replace(count=jnp.int32(1), params=history.params, updates=history.updates)


def _inner(first: Any, second: Any) -> Any:
    """`<first, second>` of two pytrees, typed as an array."""
    return optax.tree.vdot(first, second)
