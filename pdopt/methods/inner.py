"""Minimisers over a box, for the primal half of the method of multipliers; one protocol, three of them.

    min_x  value(x)   subject to   lower <= x <= upper,   until  |x - clip(x - gradient, lower, upper)|_inf <= tolerance

    ProjectedNewton      dense Hessian, Cholesky, kinks kept (`kinked.py`); for up to some 500 variables
    ProjectedNewtonCG    Hessian products, conjugate gradients; nothing dense (`inner_iterative.py`)
    ProjectedLBFGS       gradients only (`inner_iterative.py`)

All three project in two metrics (Bertsekas 1982): variables at a bound whose gradient points outwards stay there, the
others take a second-order step and are clipped. None is differentiated through.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from pdopt.errors import InvalidOption
from pdopt.methods.kinked import newton_step
from pdopt.problems.nonlinear_view import Bent, Look
from pdopt.types import record

DECREASE = 1e-4  # Armijo's constant (Nocedal, Wright 2006, section 3.1)
HALVINGS = 40
# A Newton step must end below the largest of so many values (Grippo, Lampariello, Lucidi 1986): along a curved valley,
# which a large penalty makes of the constraints, full steps climb its sides and still get on.
MEMORY = 10
STILL = 4  # steps in a row that change the value by no more than its rounding
STRETCHES = 60  # doublings of a step along which the model sees no curvature: 2^60 reaches any unbounded ray


class Model(Protocol):
    """What is minimised: `value(z)`; Newton steps take `expansion(z)`, dense, and the penalty `bent(rows)` as well."""

    @property
    def lower(self) -> Any: ...

    @property
    def upper(self) -> Any: ...

    def value(self, z: Any) -> Any: ...

    def expansion(self, z: Any) -> Look: ...

    def bent(self, rows: Any) -> Bent: ...


class Work(NamedTuple):
    """Counts: values of f and v, gradients, Hessians or Hessian products, iterations of inner minimisers."""

    values: Any
    gradients: Any
    hessians: Any
    iterations: Any

    @staticmethod
    def none() -> "Work":
        """All 0."""
        return Work(*(jnp.int32(0) for _ in range(4)))


class Found(NamedTuple):
    """Where a minimiser stopped, its projected gradient there, and what it cost."""

    x: Any
    error: Any
    work: Work


class Minimiser(Protocol):
    """`minimise(model, x, tolerance, plain)`: from x, at most `budget` iterations.

    `polishes` says that a Newton step at a large penalty is exact enough to polish with: with `plain` True one step is
    taken as it comes, without line search.
    """

    polishes: bool
    budget: int

    def minimise(self, model: Any, x: Any, tolerance: Any, plain: Any) -> Found: ...


class Trial(NamedTuple):
    """A point of a line search, how many were looked at, and whether the next one is further or nearer."""

    length: Any
    x: Any
    value: Any
    tries: Any
    grow: Any
    done: Any


@record(static=("budget",))
class ProjectedNewton:
    """Newton steps: each minimises a convex model with the bounds and the kinks of the penalty in it (`kinked.py`).

    Attributes:
        budget: iterations of one minimisation, >= 1.

    Example:
        >>> import pdopt
        >>> method = pdopt.AugmentedLagrangian(inner=ProjectedNewton())
        >>> found = pdopt.minimise(lambda x: jnp.sum((x - 2) ** 2), jnp.zeros(2), upper=1.0, method=method)
        >>> print(found.x)
        [1. 1.]
    """

    budget: int = 100

    polishes = True

    def __post_init__(self) -> None:
        require_budget("budget", self.budget)

    def minimise(self, model: Any, x: Any, tolerance: Any, plain: Any) -> Found:
        """See `Minimiser`."""

        def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            x, _, _, work, still, kept, past = carry
            look = model.expansion(x)
            value, g = look.value, look.gradient
            error = residual(model, x, g)
            good = (error <= tolerance) & ~plain
            # A step that changed the value by rounding alone must make the gradient smaller, else it is taken back.
            worse = (still > 0) & ~(error < kept[1])
            direction, shifted = newton_step(model, x, look, error, good | worse)
            past = jnp.where(jnp.arange(MEMORY) == work.iterations % MEMORY, value, past)
            reference = jnp.maximum(value, jnp.max(past))
            trial = search(model, x, value, g, direction, shifted, good | worse, plain, reference)
            moved = jnp.where(worse, kept[0], jnp.where(jnp.isfinite(trial.value), trial.x, x))
            error = jnp.where(worse, kept[1], error)
            # Where no length is acceptable, or steps in a row change the value by rounding alone, more are no use.
            changed = jnp.abs(trial.value - value) > 10 * jnp.finfo(x.dtype).eps * jnp.abs(value)
            still = jnp.where(changed, 0, still + 1)
            over = good | worse | ~trial.done | plain | (still >= STILL) | ~jnp.isfinite(error)
            work = Work(work.values + 1 + trial.tries, work.gradients + 1, work.hessians + 1, work.iterations + ~good)
            return moved, error, over, work, still, (x, error), past

        def running(carry: tuple[Any, ...]) -> Any:
            return ~carry[2] & (carry[3].iterations < self.budget)

        infinite = jnp.full((), jnp.inf, x.dtype)
        past = jnp.full(MEMORY, -jnp.inf, x.dtype)
        first = (x, infinite, jnp.asarray(False), Work.none(), jnp.int32(0), (x, infinite), past)
        x, error, _, work, _, _, _ = lax.while_loop(running, body, first)
        return Found(x, error, work)


def residual(model: Any, x: Any, g: Any) -> Any:
    """`|x - clip(x - g, lower, upper)|_inf`."""
    return jnp.max(jnp.abs(x - jnp.clip(x - g, model.lower, model.upper)), initial=0)


def search(
    model: Any, x: Any, value: Any, g: Any, direction: Any, stretch: Any, skip: Any, plain: Any, reference: Any = None
) -> Trial:
    """Armijo's rule along `clip(x + t d)`: t = 1, 1/2, ...; t = 1, 2, 4, ... while it still falls where `stretch`.

    `skip` takes no step; `plain` takes t = 1 whatever the value is. `reference`: the value to end below, by
    default that at x.
    """
    rounding = 10 * jnp.finfo(x.dtype).eps * jnp.abs(value)
    reference = value if reference is None else reference

    def look(trial: Trial) -> Trial:
        length = jnp.where(trial.grow, 2, 0.5).astype(x.dtype) * trial.length
        z = jnp.clip(x + length * direction, model.lower, model.upper)
        reached = model.value(z)
        fall = jnp.minimum(jnp.sum(g * (z - x)), 0)
        enough = (reached <= reference + DECREASE * fall + rounding) | plain
        further = jnp.where(trial.grow, enough & (reached < trial.value), enough & stretch & ~plain)
        further &= (length >= 1) & (trial.tries < STRETCHES)
        after = Trial(length, z, reached, trial.tries + 1, further, enough & ~further)
        back = trial._replace(tries=after.tries, done=jnp.asarray(True))
        return jax.tree.map(lambda a, b: jnp.where(trial.grow & ~further, a, b), back, after)

    def running(trial: Trial) -> Any:
        return ~trial.done & (trial.grow | (trial.tries < HALVINGS))

    first = Trial(jnp.full((), 2, x.dtype), x, value, jnp.int32(0), jnp.asarray(False), skip)
    trial = lax.while_loop(running, look, first)
    return trial._replace(x=jnp.where(trial.done, trial.x, x), value=jnp.where(trial.done, trial.value, value))


def require_budget(name: str, value: Any) -> None:
    """Raise `InvalidOption` unless an integer >= 1.

    Example:
        >>> require_budget("memory", 0)
        Traceback (most recent call last):
        ...
        pdopt.errors.InvalidOption: memory is 0; expected an integer >= 1
    """
    if not isinstance(value, int) or value < 1:
        raise InvalidOption(f"{name} is {value!r}; expected an integer >= 1")
