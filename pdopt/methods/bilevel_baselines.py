"""What LV-HBA is compared with: implicit gradients, and the value-function penalty where there are no constraints.

    ImplicitGradient   w = the lower level's answer at x, by Newton from the last one;   x' = P_X(x - step of Adam on r)
    ValuePenalty       BOME (Liu, Ye, Wright, Stone, Liu, NeurIPS 2022, arXiv 2209.08709): theta = T gradient steps on
                       f(x, .) from y, q = f(x, y) - f(x, theta) with theta held, and a step along
                       grad F + weight grad q,   weight = max(share |grad q|^2 - <grad F, grad q>, 0) / |grad q|^2

The first solves a linear system of the lower level's size a step and has no bias; the second needs gradients only, and
its bias is what T steps leave of the lower level. Neither moves a multiplier: those of the first are part of an answer.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pdopt.errors import InvalidOption, UnsupportedProblem, require_range
from pdopt.geometry.checks import concrete
from pdopt.methods.lower_level import answered
from pdopt.problems.bilevel import BilevelProgram, Levels
from pdopt.types import Pair, Visit, record


@record
class Whole:
    """The view of a method that works on the program itself."""

    program: BilevelProgram

    def start(self) -> Pair:
        """The program's start."""
        return self.program.first()

    def into(self, pair: Pair) -> Pair:
        """The pair itself."""
        return Pair(Levels(*pair.x), pair.y)

    def back(self, pair: Pair) -> Pair:
        """The pair itself."""
        return pair


class ImplicitState(NamedTuple):
    """The pair and the optimiser's state."""

    pair: Pair
    optimiser: Any


@record(static=("every",))
class ImplicitGradient:
    """Adam on the hypergradient, projected on X.

    Attributes:
        stepsize: of Adam, in the units of x; > 0.
        tolerance: of the lower level's `|N|_inf`, > 0; a warm start takes one to three Newton steps.
        every: steps between checks.

    Raises:
        InvalidOption: a setting outside its range. UnsupportedProblem: another kind of problem.

    Example:
        >>> import pdopt
        >>> program = pdopt.BilevelProgram(
        ...     upper=lambda x, y: x**2 / 2 + y**2 / 2, lower=lambda x, y: (y - x) ** 2 / 2,
        ...     inequality=lambda x, y: y - x + 1, start=(0.0, 0.0), dtype=jnp.float32)
        >>> print(pdopt.solve(program, ImplicitGradient(), tolerance=1e-3).x.upper.round(2))
        0.5
    """

    stepsize: Any = 0.1
    tolerance: Any = 1e-6
    every: int = 10

    def __post_init__(self) -> None:
        _check_every(self.every)
        if concrete(self):
            require_range("stepsize", self.stepsize, 0.0, open_low=True)
            require_range("tolerance", self.tolerance, 0.0, open_low=True)

    def view(self, problem: Any) -> Whole:
        """The problem as this method sees it."""
        return _whole(problem, "ImplicitGradient")

    def init(self, view: Whole, start: Pair) -> ImplicitState:
        """The first state."""
        return ImplicitState(start, optax.adam(self.stepsize).init(start.x.upper))

    def step(self, view: Whole, state: ImplicitState) -> tuple[ImplicitState, Visit]:
        """Solve the lower level, take the hypergradient, step."""
        program = view.program
        pair = answered(program, state.pair, self.tolerance)
        r = program.adjoint(pair.x.upper, pair._replace(x=pair.x.lower)).hypergradient
        change, optimiser = optax.adam(self.stepsize).update(r, state.optimiser)
        x = program.X.project(optax.apply_updates(pair.x.upper, change))
        return ImplicitState(pair._replace(x=pair.x._replace(upper=x)), optimiser), Visit(state.pair, pair)

    def pair(self, view: Whole, state: ImplicitState, visit: Visit) -> Pair:
        """The last x with its lower level solved."""
        return visit.after

    def check(self, view: Whole, state: ImplicitState, visit: Visit) -> ImplicitState:
        """Nothing to adapt."""
        return state


@record(static=("inner_steps", "every"))
class ValuePenalty:
    """BOME: first-order bilevel descent with a dynamic barrier, for lower levels without constraint functions.

    Attributes:
        stepsize: of (x, y), > 0.
        inner_stepsize: of theta, > 0 and below `2 / |f_yy|`.
        inner_steps: T, >= 1.
        share: eta of the paper, > 0: how fast q is to fall.
        every: steps between checks.

    Raises:
        InvalidOption: a setting outside its range. UnsupportedProblem: another kind of problem, or a lower level with
            constraints.

    Example:
        >>> import pdopt
        >>> program = pdopt.BilevelProgram(
        ...     upper=lambda x, y: (x - 1) ** 2 + y**2, lower=lambda x, y: (y - x) ** 2 / 2, start=(0.0, 0.0),
        ...     dtype=jnp.float32)
        >>> found = pdopt.solve(program, ValuePenalty(0.05), max_iterations=500)  # near the optimum, 0.5, and no nearer
        >>> print(found.reason, found.objective.round(1))
        iteration_limit 0.5
    """

    stepsize: Any = 0.01
    inner_stepsize: Any = 0.1
    inner_steps: int = 10
    share: Any = 0.5
    every: int = 50

    def __post_init__(self) -> None:
        _check_every(self.every)
        if not isinstance(self.inner_steps, int) or self.inner_steps < 1:
            raise InvalidOption(f"inner_steps is {self.inner_steps!r}; expected an integer >= 1")
        if concrete(self):
            for name in ("stepsize", "inner_stepsize", "share"):
                require_range(name, getattr(self, name), 0.0, open_low=True)

    def view(self, problem: Any) -> Whole:
        """The problem as this method sees it."""
        view = _whole(problem, "ValuePenalty")
        if problem.equality is not None or problem.inequality is not None:
            raise UnsupportedProblem("ValuePenalty takes lower levels without equality or inequality; LVHBA takes both")
        return view

    def init(self, view: Whole, start: Pair) -> Pair:
        """The first state: the pair."""
        return start

    def step(self, view: Whole, state: Pair) -> tuple[Pair, Visit]:
        """T inner steps, then one along the barrier's direction."""
        program, (x, y) = view.program, state.x
        less = lambda a, b, step: jax.tree.map(lambda p, d: p - step * d, a, b)
        f = lambda x, y: program.lower(x, y, *program.args)

        def inner(_: Any, theta: Any) -> Any:
            return program.Y.project(less(theta, jax.grad(f, argnums=1)(x, theta), self.inner_stepsize))

        theta = jax.lax.stop_gradient(jax.lax.fori_loop(0, self.inner_steps, inner, y))
        slope = jax.grad(lambda u: program.upper(*u, *program.args))(state.x)
        barrier = jax.grad(lambda u: f(*u) - f(u.upper, theta))(state.x)
        square, across = (jnp.asarray(optax.tree.vdot(each, barrier)) for each in (barrier, slope))
        weight = jnp.maximum(self.share * square - across, 0) / jnp.where(square > 0, square, 1)
        moved = less(state.x, jax.tree.map(lambda a, b: a + weight * b, slope, barrier), self.stepsize)
        after = state._replace(x=Levels(program.X.project(moved.upper), program.Y.project(moved.lower)))
        return after, Visit(state, after)

    def pair(self, view: Whole, state: Pair, visit: Visit) -> Pair:
        """The latest point."""
        return visit.after

    def check(self, view: Whole, state: Pair, visit: Visit) -> Pair:
        """Nothing to adapt."""
        return state


def _check_every(every: Any) -> None:
    if not isinstance(every, int) or every < 1:
        raise InvalidOption(f"every is {every!r}; expected an integer >= 1")


def _whole(problem: Any, method: str) -> Whole:
    if not isinstance(problem, BilevelProgram):
        raise UnsupportedProblem(f"{method} solves a BilevelProgram; got {type(problem).__name__}")
    return Whole(problem)
