"""Minimisers over a box, for the primal half of the method of multipliers; one protocol, three of them.

    min_x  value(x)   subject to   lower <= x <= upper,   until  |x - clip(x - gradient, lower, upper)|_inf <= tolerance

    ProjectedNewton      dense Hessian, Cholesky; for up to some 500 variables
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
from pdopt.types import record

DECREASE = 1e-4  # Armijo's constant (Nocedal, Wright 2006, section 3.1)
HALVINGS = 40
STILL = 4  # steps in a row that lower the value by no more than its rounding
STRETCHES = 60  # doublings of a step along which the model sees no curvature: 2^60 reaches any unbounded ray


class Model(Protocol):
    """What is minimised: `value(z)`; where Newton steps are taken `expansion(z)`, value, gradient and dense Hessian."""

    @property
    def lower(self) -> Any: ...

    @property
    def upper(self) -> Any: ...

    def value(self, z: Any) -> Any: ...

    def expansion(self, z: Any) -> tuple[Any, Any, Any]: ...


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
    """Newton steps on the free variables by Cholesky, the Hessian shifted until it is positive definite.

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
            x, _, _, work, still = carry
            value, g, hessian = model.expansion(x)
            error = residual(model, x, g)
            direction, shifted = _newton(model, x, g, hessian, error)
            good = (error <= tolerance) & ~plain
            trial = search(model, x, value, g, direction, shifted, good, plain)
            moved = jnp.where(jnp.isfinite(trial.value), trial.x, x)
            # Where no length is acceptable, or steps in a row change the value by rounding alone, more are no use.
            fell = trial.value < value - 10 * jnp.finfo(x.dtype).eps * jnp.abs(value)
            still = jnp.where(fell, 0, still + 1)
            over = good | ~trial.done | plain | (still >= STILL) | ~jnp.isfinite(error)
            work = Work(work.values + 1 + trial.tries, work.gradients + 1, work.hessians + 1, work.iterations + ~good)
            return moved, error, over, work, still

        def running(carry: tuple[Any, ...]) -> Any:
            return ~carry[2] & (carry[3].iterations < self.budget)

        first = (x, jnp.full((), jnp.inf, x.dtype), jnp.asarray(False), Work.none(), jnp.int32(0))
        x, error, _, work, _ = lax.while_loop(running, body, first)
        return Found(x, error, work)


def residual(model: Any, x: Any, g: Any) -> Any:
    """`|x - clip(x - g, lower, upper)|_inf`."""
    return jnp.max(jnp.abs(x - jnp.clip(x - g, model.lower, model.upper)), initial=0)


def outward(model: Any, x: Any, g: Any, error: Any) -> Any:
    """Variables that stay at (or go to) a bound: within `min(error, 1e-3)` of it, with the gradient pointing out."""
    near = jnp.minimum(error, 1e-3)
    return ((x <= model.lower + near) & (g > 0)) | ((x >= model.upper - near) & (g < 0))


def settle(model: Any, x: Any, g: Any, direction: Any, held: Any) -> Any:
    """The direction with the held variables sent to their bounds."""
    bound = jnp.where(g > 0, model.lower, model.upper)
    return jnp.where(held, jnp.where(jnp.isfinite(bound), bound, x) - x, direction)


def search(model: Any, x: Any, value: Any, g: Any, direction: Any, stretch: Any, skip: Any, plain: Any) -> Trial:
    """Armijo's rule along `clip(x + t d)`: t = 1, 1/2, ...; t = 1, 2, 4, ... while it still falls where `stretch`.

    `skip` takes no step; `plain` takes t = 1 whatever the value is.
    """
    rounding = 10 * jnp.finfo(x.dtype).eps * jnp.abs(value)

    def look(trial: Trial) -> Trial:
        length = jnp.where(trial.grow, 2, 0.5).astype(x.dtype) * trial.length
        z = jnp.clip(x + length * direction, model.lower, model.upper)
        reached = model.value(z)
        fall = jnp.minimum(jnp.sum(g * (z - x)), 0)
        enough = (reached <= value + DECREASE * fall + rounding) | plain
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


def _newton(model: Any, x: Any, g: Any, hessian: Any, error: Any) -> tuple[Any, Any]:
    """`-(H + tau I)^-1 g` on the free variables, and whether tau > 0."""
    held = outward(model, x, g, error)
    free = ~held
    matrix = jnp.where(free[:, None] & free[None, :] & jnp.isfinite(hessian), hessian, 0)
    size = jnp.max(jnp.abs(matrix), initial=0)
    matrix = matrix + jnp.diag(jnp.where(held, jnp.where(size > 0, size, 1), 0))
    gradient = jnp.where(free & jnp.isfinite(g), g, 0)
    # Without curvature a Newton step has no length: one of 1e3 times x then, so that an unbounded ray is soon seen.
    far = jnp.maximum(1, jnp.max(jnp.abs(x), initial=0))
    least = 1e-3 * jnp.max(jnp.abs(gradient), initial=0) / far
    first = jnp.where(size < least, least, 0)

    def factor(tau: Any) -> Any:
        return jnp.linalg.cholesky(matrix + tau * jnp.diag(free.astype(x.dtype)))

    def solved(L: Any) -> Any:
        # A pivot of the size of its rounding is a direction without curvature, along which a step would be noise.
        return jnp.all(jnp.isfinite(L)) & (jnp.min(jnp.diagonal(L)) ** 2 > x.size * jnp.finfo(x.dtype).eps * size)

    whole = factor(first)
    # A factor that exists is flat in some direction; one that does not met negative curvature.
    share = jnp.where(jnp.all(jnp.isfinite(whole)), jnp.finfo(x.dtype).eps ** 0.5, 1e-6)
    bump = jnp.maximum(jnp.maximum(least, share * size), jnp.finfo(x.dtype).tiny).astype(x.dtype)

    def again(carry: tuple[Any, Any]) -> tuple[Any, Any]:
        tau = jnp.maximum(4 * carry[0], bump)
        return tau, factor(tau)

    tau, L = lax.while_loop(lambda c: ~solved(c[1]) & (c[0] <= 1e8 * (size + least)), again, (first, whole))
    step = jax.scipy.linalg.cho_solve((L, True), -gradient)
    step = jnp.where(jnp.all(jnp.isfinite(step)), step, -gradient)
    return settle(model, x, g, step, held), tau > 0


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
