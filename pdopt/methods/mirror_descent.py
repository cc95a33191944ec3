"""Mirror descent-ascent on a saddle problem (Nemirovski, Yudin 1983; Beck, Teboulle 2003), with extrapolation theta.

    x' = argmin_z <z, grad(x, y)> + D(z, x) / s,   or a best response argmin_z L(z, y)
    seen = x' + theta (x' - x);     y' = move(y, v(seen), s)

D is the divergence of the geometry: for the entropy on a simplex both halves are multiplicative weights,
`x' ~ x exp(-s A y)`, `y' ~ y exp(s A'seen)`; for the Euclidean one they are projected gradient steps. What converges is
the mean of the pairs:

    theta = 1, mirror primal    s <= 1/|A|: gap of the mean <= (D_x + D_y) / (s k), the rate 1/k of Chambolle and Pock
                                (2016, "On the ergodic convergence rates"): extrapolating x is what makes it optimistic
    theta = 0, mirror primal    the pairs circle the equilibrium; no bound is claimed for their mean
    theta = -1 (simultaneous)   the pairs drift away from it; gap of the mean <= (D_x + D_y) / (s k) + O(s)
    theta = 0, best response    dual mirror ascent on `min_x L(x, .)`: 1/sqrt(k) for steps s / sqrt(k) up to a factor
                                log k (Freund, Schapire 1999, for constant steps and a known k)

Not done here: restarts (PDHG has them, and reaches high accuracy), other sets than the problem's own.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pdopt.errors import InvalidOption, require_range, unknown_name
from pdopt.geometry.checks import concrete
from pdopt.geometry.entropic import Entropic
from pdopt.geometry.moves import Euclidean
from pdopt.problems.views import mirrored
from pdopt.rules.acceleration import Averaged, Plain, Track
from pdopt.rules.saddle import Parts, row, saddle_step
from pdopt.types import Memory, Pair, Visit, record

PRIMALS = ("mirror", "best")


class State(NamedTuple):
    """Where the sequence and its mean are, the first step size, and the steps taken so far."""

    track: Track
    step: Any
    count: Any


@record(static=("primal", "every"))
class MirrorDescent:
    """Mirror descent-ascent; entropic (multiplicative weights) by default, with extrapolation.

    Attributes:
        stepsize: s > 0, of both halves; None takes `0.998 / |A|`, in the norms of the geometry.
        move: the geometry, `Entropic()` or `Euclidean()`; its set is replaced by the problem's own.
        theta: >= -1; 1 is optimistic and safe for s <= 1/|A|, 0 is plain, -1 simultaneous.
        primal: "mirror" for a mirror step of x, "best" for the best response.
        decay: >= 0; step k is `s / (1 + k)^decay`.
        acceleration: `Averaged()` returns the mean of all pairs, weighted by their steps; `Plain()` the last one.
        every: steps between checks, >= 1.

    Raises:
        InvalidOption: a setting outside its range.

    Example:
        >>> import pdopt
        >>> game = pdopt.MatrixGame([[3.0, 0.0], [1.0, 2.0]], dtype=jnp.float32)
        >>> solution = pdopt.solve(game, MirrorDescent(), tolerance=1e-3)
        >>> print(solution.x.round(2), solution.y.round(2))
        [0.25 0.75] [0.5 0.5]
    """

    stepsize: Any = None
    move: Any = Entropic()
    theta: Any = 1.0
    primal: str = "mirror"
    decay: Any = 0.0
    acceleration: Any = Averaged()
    every: int = 64

    def __post_init__(self) -> None:
        if self.primal not in PRIMALS:
            raise unknown_name("primal", self.primal, PRIMALS)
        if not isinstance(self.move, Euclidean | Entropic):
            raise InvalidOption(f"move is {self.move!r}; expected Euclidean() or Entropic()")
        if not isinstance(self.acceleration, Averaged | Plain):
            raise InvalidOption(f"acceleration is {self.acceleration!r}; expected Averaged() or Plain()")
        if not isinstance(self.every, int) or self.every < 1:
            raise InvalidOption(f"every is {self.every!r}; expected an integer >= 1")
        if not concrete(self):
            return
        if self.stepsize is not None:
            require_range("stepsize", self.stepsize, 0.0, open_low=True)
        require_range("theta", self.theta, -1.0)
        require_range("decay", self.decay, 0.0)

    @staticmethod
    def best_response(**settings: Any) -> "MirrorDescent":
        """Dual mirror ascent against best responses, with steps `s / sqrt(k)`."""
        return MirrorDescent(**{"primal": "best", "theta": 0.0, "decay": 0.5, **settings})

    def view(self, problem: Any) -> Any:
        """The problem as this method sees it."""
        return mirrored(problem, self.move)

    def parts(self, view: Any, step: Any) -> Parts:
        """The row of the table: the functions that make the saddle step mirror descent."""
        mirror = lambda x, y: view.descend(x, view.gradient(x, y), step)
        best = lambda x, y: view.best(y)
        return row(best if self.primal == "best" else mirror, view.violation, view.move, self.theta)

    def init(self, view: Any, start: Pair) -> State:
        """The first state from a pair in the view's units."""
        dtype = jnp.result_type(*jax.tree.leaves(start))
        if self.stepsize is None:
            norm = view.norm()
            step = jnp.where(norm > 0, 0.998 / jnp.where(norm > 0, norm, 1), 1)
        else:
            step = self.stepsize
        return State(self.acceleration.init(start), jnp.asarray(step, dtype), jnp.zeros((), dtype))

    def step(self, view: Any, state: State) -> tuple[State, Visit]:
        """One saddle step, and the mean moved by its share."""
        step = (state.step * (1 + state.count) ** -self.decay).astype(state.step.dtype)
        T = lambda pair, memory: saddle_step(self.parts(view, step), step, pair, memory)
        track, _, visit = self.acceleration.apply(T, state.track, Memory(), step)
        return State(track, state.step, state.count + 1), visit

    def pair(self, view: Any, state: State, visit: Visit) -> Pair:
        """The pair to return now: the mean, or the latest pair once a step does not move it any more."""
        moved = optax.tree.norm(optax.tree.sub(visit.after, visit.before))
        return optax.tree.where(moved > 0, self.acceleration.best(state.track, visit), visit.after)

    def check(self, view: Any, state: State, visit: Visit) -> State:
        """Nothing to adapt."""
        return state
