"""The method of multipliers (Hestenes 1969, Powell 1969; Rockafellar 1974): dual ascent on a penalised Lagrangian.

    x' = argmin_x f(x) + penalty(y, v(x), rho);     y' = move(y, v(x'), rho)         (theta = 0, step = penalty)

The penalty is the Moreau envelope of the move, whose gradient in v is the moved multiplier. So the primal half is a
minimiser against the multipliers that the dual half is about to take, `offer(y) = move(y, v(x'), rho)`: after each step
`grad f(x') + <y', v'(x')> = 0` holds and only the violation is left to shrink. For equalities it is

    x' = argmin_x f(x) + <y, c(x)> + rho |c(x)|^2 / 2;     y' = y + rho c(x')

which is dual ascent on `f + rho |c|^2 / 2` with step rho, and proximal point on the dual with step rho: every rho > 0
converges, with the factor `1 / (1 + rho sigma)` for a quadratic program, sigma the smallest eigenvalue of `A Q^-1 A'`
that is not 0. A larger penalty means fewer steps and a worse conditioned inner problem.

Not done here: inequality rows and bounds (their inner problem is piecewise; the view refuses them), inexact inner
minimisers, a penalty for each row. At its limit the penalty stays there; the steps go on.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pdopt.errors import InvalidOption, require_range
from pdopt.geometry.checks import concrete
from pdopt.problems.views import constrained, require_augmented_minimiser
from pdopt.rules.saddle import Parts, row, saddle_step
from pdopt.types import Memory, Pair, Visit, record


class State(NamedTuple):
    """The pair, the penalty, and how far the last check's step moved y over the penalty: the size of the violation."""

    pair: Pair
    penalty: Any
    limit: Any
    broken: Any


@record(static=("every",))
class AugmentedLagrangian:
    """Method of multipliers with an exact inner minimiser.

    Attributes:
        penalty: first rho, > 0; None takes ten times the size of the objective against that of the rows (the view's
            `stiffness`).
        growth: rho is multiplied by this at a check where the violation did not shrink enough; >= 1, 1 keeps rho.
        shrink: in (0, 1): the share of the last check's violation that counts as enough (Conn, Gould, Toint 1991 and
            ALGENCAN: 0.25 to 0.5).
        largest: rho stops growing at this multiple of the first one, >= 1.
        every: steps between checks, >= 1; a step solves a linear system, so each is looked at.

    Raises:
        InvalidOption: a setting outside its range.

    Example:
        >>> import pdopt
        >>> qp = pdopt.QuadraticProgram([[4.0]], [0.0], [[1.0]], [3.0], [3.0], dtype=jnp.float32)
        >>> solution = pdopt.solve(qp, AugmentedLagrangian(penalty=10.0), tolerance=1e-5)
        >>> print(f"{solution.x[0]:.3f} {solution.y[0]:.3f}")
        3.000 12.000
    """

    penalty: Any = None
    growth: Any = 10.0
    shrink: Any = 0.25
    largest: Any = 1e6
    every: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.every, int) or self.every < 1:
            raise InvalidOption(f"every is {self.every!r}; expected an integer >= 1")
        if not concrete(self):
            return
        if self.penalty is not None:
            require_range("penalty", self.penalty, 0.0, open_low=True)
        require_range("growth", self.growth, 1.0)
        require_range("shrink", self.shrink, 0.0, 1.0, open_low=True)
        require_range("largest", self.largest, 1.0)

    def admit(self, problem: Any) -> None:
        """Raise `UnsupportedProblem` for data without an exact augmented minimiser; before tracing."""
        require_augmented_minimiser(problem)

    def view(self, problem: Any) -> Any:
        """The problem as this method sees it."""
        return constrained(problem)

    def parts(self, view: Any, penalty: Any) -> Parts:
        """The row of the table: the functions that make the saddle step the method of multipliers."""
        return row(lambda x, y: view.augmented_minimiser(y, penalty), view.violation, view.move, theta=0)

    def init(self, view: Any, start: Pair) -> State:
        """The first state from a pair in the view's units."""
        dtype = jnp.result_type(*jax.tree.leaves(start))
        first = jnp.asarray(view.stiffness() if self.penalty is None else self.penalty, dtype)
        return State(start, first, (first * self.largest).astype(dtype), jnp.full((), jnp.inf, dtype))

    def step(self, view: Any, state: State) -> tuple[State, Visit]:
        """One saddle step, whose dual step size is the penalty."""
        parts = self.parts(view, state.penalty)
        after, _ = saddle_step(parts, state.penalty, state.pair, Memory())
        return state._replace(pair=after), Visit(state.pair, after)

    def pair(self, view: Any, state: State, visit: Visit) -> Pair:
        """The pair to return now."""
        return visit.after

    def direction(self, view: Any, state: State, visit: Visit) -> Pair:
        """Where the iterates drift: when no feasible point exists, y grows along a ray that proves it."""
        return optax.tree.sub(visit.after, visit.before)

    def check(self, view: Any, state: State, visit: Visit) -> State:
        """Raise the penalty unless the violation `|y' - y| / rho` fell to `shrink` of what it was at the last check."""
        broken = optax.tree.norm(optax.tree.sub(visit.after.y, visit.before.y)) / state.penalty
        slow = broken > self.shrink * state.broken
        raised = jnp.minimum(state.penalty * self.growth, state.limit)
        penalty = jnp.where(slow, raised, state.penalty).astype(state.penalty.dtype)
        return state._replace(penalty=penalty, broken=broken)
