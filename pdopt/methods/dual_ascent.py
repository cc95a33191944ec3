"""Dual ascent (Uzawa 1958): maximise the dual function by moving y along the violation of the Lagrangian's minimiser.

    x' = argmin_x f(x) + <v(x), y>;     y' = move(y, v(x'), step)                    (theta = 0, primal exact)

`v(x')` is the gradient of the dual function's smooth part, so this is proximal gradient ascent on the dual: the move
keeps y in its set, and holds the intervals of two-sided rows. For a strongly convex f that gradient is Lipschitz with a
constant L (for `x'Qx/2` with rows R: `|R Q^-1 R'|_2`); every step in (0, 2/L) converges and 1/L never lowers the dual
function (Beck and Teboulle 2009 for the proximal form). The rate is linear, `1 - 1/cond(R Q^-1 R')` for equality rows.

Not done here: objectives that are not strongly convex, momentum, line search.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pdopt.errors import InvalidOption, require_range
from pdopt.geometry.checks import concrete
from pdopt.problems.views import constrained, require_minimiser
from pdopt.rules.acceleration import Averaged, Plain, Relaxed, Track, check_averaged
from pdopt.rules.saddle import Parts, row, saddle_step
from pdopt.types import Memory, Pair, Visit, record


class State(NamedTuple):
    """Where the accelerated sequence is, and the step size of y."""

    track: Track
    step: Any


@record(static=("every",))
class DualAscent:
    """Dual ascent with an exact primal minimiser.

    Attributes:
        stepsize: > 0, below 2/L for convergence; None takes 1/L, computed from the data.
        acceleration: `Plain()`; `Averaged()` keeps the mean beside it and returns the better of the two;
            `Relaxed(omega)` takes up to 1.5 times the step (with a step up to 1/L the map is 2/3-averaged: a gradient
            step, then a prox).
        every: steps between checks, >= 1.

    Raises:
        InvalidOption: a setting outside its range, or more relaxation than the map allows.

    Example:
        >>> import pdopt
        >>> qp = pdopt.QuadraticProgram([[4.0]], [0.0], [[1.0]], [3.0], [jnp.inf], dtype=jnp.float32)
        >>> solution = pdopt.solve(qp, DualAscent(), tolerance=1e-5)
        >>> print(f"{solution.x[0]:.3f} {solution.y[0]:.3f}")
        3.000 12.000
    """

    stepsize: Any = None
    acceleration: Any = Plain()
    every: int = 16

    def __post_init__(self) -> None:
        if not isinstance(self.acceleration, Plain | Averaged | Relaxed):
            raise InvalidOption(f"acceleration is {self.acceleration!r}; expected Plain, Averaged or Relaxed")
        if not isinstance(self.every, int) or self.every < 1:
            raise InvalidOption(f"every is {self.every!r}; expected an integer >= 1")
        if self.stepsize is not None and concrete(self.stepsize):
            require_range("stepsize", self.stepsize, 0.0, open_low=True)
        check_averaged(self.acceleration, 2 / 3, "dual ascent")

    def admit(self, problem: Any) -> None:
        """Raise `UnsupportedProblem` for data without a unique minimiser of the Lagrangian; before tracing."""
        require_minimiser(problem)

    def view(self, problem: Any) -> Any:
        """The problem as this method sees it."""
        return constrained(problem)

    def parts(self, view: Any) -> Parts:
        """The row of the table: the functions that make the saddle step dual ascent."""
        return row(lambda x, y: view.minimiser(y), view.violation, view.move, theta=0)

    def init(self, view: Any, start: Pair) -> State:
        """The first state from a pair in the view's units."""
        dtype = jnp.result_type(*jax.tree.leaves(start))
        if self.stepsize is not None:
            return State(self.acceleration.init(start), jnp.asarray(self.stepsize, dtype))
        L = view.smoothness()
        # Without rows the dual function is constant and any step will do.
        return State(self.acceleration.init(start), jnp.where(L > 0, 1 / jnp.where(L > 0, L, 1), 1).astype(dtype))

    def _map(self, view: Any, state: State) -> Any:
        return lambda pair, memory: saddle_step(self.parts(view), state.step, pair, memory)

    def step(self, view: Any, state: State) -> tuple[State, Visit]:
        """One saddle step, accelerated."""
        T = self._map(view, state)
        track, _, visit = self.acceleration.apply(T, state.track, Memory(), state.step)
        return State(track, state.step), visit

    def pair(self, view: Any, state: State, visit: Visit) -> Pair:
        """The pair to return now; of a mean and the latest pair the one whose y a step moves less."""
        best = self.acceleration.best(state.track, visit)
        if not isinstance(self.acceleration, Averaged):
            return best
        of_mean, _ = self._map(view, state)(best, Memory())
        return optax.tree.where(_moved(best, of_mean) < _moved(*visit), best, visit.after)

    def direction(self, view: Any, state: State, visit: Visit) -> Pair:
        """Where the iterates drift: when no feasible point exists, y grows along a ray that proves it."""
        return optax.tree.sub(visit.after, visit.before)

    def check(self, view: Any, state: State, visit: Visit) -> State:
        """Nothing to adapt."""
        return state


def _moved(before: Pair, after: Pair) -> Any:
    return optax.tree.norm(optax.tree.sub(after.y, before.y))
