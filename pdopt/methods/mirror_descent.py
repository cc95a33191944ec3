"""Mirror descent-ascent on a saddle problem (Nemirovski, Yudin 1983; Beck, Teboulle 2003), with extrapolation theta.

On a saddle (matrix games, `solve`):

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

On a stream of requests (`Allocation`, `simulate`) it is dual mirror descent (Balseiro, Lu, Mirrokni, arXiv 2011.10124),
theta = 0 and the best response to the request that is there:

    x_t = argmax_x reward_t - <y, consumption_t>;    y' = move(y, consumption_t(x_t) - rate, s_t)

with the action x_t as wanted, whether or not the budget had room for it. With s of order 1/sqrt(T) the regret is
O(sqrt T) when requests are independent.

Not done here: restarts (PDHG has them, and reaches high accuracy), other sets than the problem's own.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pdopt.errors import InvalidOption, require_range, unknown_name
from pdopt.geometry.checks import concrete
from pdopt.geometry.entropic import Entropic
from pdopt.geometry.moves import Euclidean, Sign
from pdopt.problems.allocation import Allocation, Online
from pdopt.problems.views import mirrored
from pdopt.rules.acceleration import Averaged, Plain, Track
from pdopt.rules.saddle import Parts, row, saddle_step
from pdopt.types import Memory, Pair, Visit, record

PRIMALS = ("mirror", "best")
GAIN = 0.5  # of {0.3, 0.5, 0.7, 1, 2} the least regret over the four reference instances of the allocation benchmark


class State(NamedTuple):
    """Where the sequence and its mean are, the first step size, and the steps taken so far."""

    track: Track
    step: Any
    count: Any


@record(static=("primal", "every"))
class MirrorDescent:
    """Mirror descent-ascent; entropic (multiplicative weights) by default, with extrapolation.

    Attributes:
        stepsize: s > 0, of both halves. None: on a game `0.998 / |A|`, in the norms of the geometry; on a stream
            `gain u / sqrt(T)` with the unit u of the problem and the move (`Online.units`), or, with a decay, `gain u`.
        move: the geometry, `Entropic()` or `Euclidean()`, on streams `Sign()` too. None: `Entropic()` on games,
            `Entropic(scale="rate")` on streams. On a game its set is replaced by the problem's own.
        theta: >= -1; 1 is optimistic and safe for s <= 1/|A|, 0 is plain, -1 simultaneous. None: 1 on games, 0 on
            streams, where nothing else is possible.
        primal: "mirror" for a mirror step of x, "best" for the best response. None: "mirror" on games, "best" on
            streams, where nothing else is possible.
        decay: >= 0; step k is `s / (1 + k)^decay`; 1/2 on a stream needs no horizon.
        acceleration: of `solve`: `Averaged()` returns the mean of all pairs, weighted by their steps; `Plain()` the
            last one. `simulate` does not use it.
        every: steps between checks of `solve`, >= 1.
        gain: c > 0, the pure number in a stream's default step.

    Raises:
        InvalidOption: a setting outside its range, or one that the problem has no use for (`view`).

    Example:
        >>> import pdopt
        >>> game = pdopt.MatrixGame([[3.0, 0.0], [1.0, 2.0]], dtype=jnp.float32)
        >>> solution = pdopt.solve(game, MirrorDescent(), tolerance=1e-3)
        >>> print(solution.x.round(2), solution.y.round(2))
        [0.25 0.75] [0.5 0.5]
    """

    stepsize: Any = None
    move: Any = None
    theta: Any = None
    primal: str | None = None
    decay: Any = 0.0
    acceleration: Any = Averaged()
    every: int = 64
    gain: Any = GAIN

    def __post_init__(self) -> None:
        if self.primal is not None and self.primal not in PRIMALS:
            raise unknown_name("primal", self.primal, PRIMALS)
        if self.move is not None and not isinstance(self.move, Euclidean | Entropic | Sign):
            raise InvalidOption(f"move is {self.move!r}; expected Euclidean(), Entropic() or, on streams, Sign()")
        if not isinstance(self.acceleration, Averaged | Plain):
            raise InvalidOption(f"acceleration is {self.acceleration!r}; expected Averaged() or Plain()")
        if not isinstance(self.every, int) or self.every < 1:
            raise InvalidOption(f"every is {self.every!r}; expected an integer >= 1")
        if not concrete(self):
            return
        if self.stepsize is not None:
            require_range("stepsize", self.stepsize, 0.0, open_low=True)
        if self.theta is not None:
            require_range("theta", self.theta, -1.0)
        require_range("decay", self.decay, 0.0)
        require_range("gain", self.gain, 0.0, open_low=True)

    @staticmethod
    def best_response(**settings: Any) -> "MirrorDescent":
        """Dual mirror ascent against best responses, with steps `s / sqrt(k)`."""
        return MirrorDescent(**{"primal": "best", "theta": 0.0, "decay": 0.5, **settings})

    def view(self, problem: Any) -> Any:
        """The problem as this method sees it.

        Raises:
            InvalidOption: a setting that this kind of problem has no use for. UnsupportedProblem: no such view.
        """
        if isinstance(problem, Allocation):
            still = isinstance(self.theta, int | float) and self.theta == 0
            if self.theta is not None and not still:
                raise InvalidOption(f"theta is {self.theta}; expected 0 on a stream: actions cannot be extrapolated")
            if self.primal == "mirror":
                raise InvalidOption("primal is 'mirror'; expected 'best' on a stream: every request is answered anew")
            return mirrored(problem, Entropic(scale="rate") if self.move is None else self.move)
        move = Entropic() if self.move is None else self.move
        if isinstance(move, Entropic) and move.scale is not None:
            raise InvalidOption(
                f"scale of the move is {move.scale!r}; expected None: {type(problem).__name__} has none"
            )
        return mirrored(problem, move)

    def parts(self, view: Any, step: Any) -> Parts:
        """The row of the table: the functions that make the saddle step mirror descent.

        On a stream the memory of the primal half is the request that has come.
        """
        if isinstance(view, Online):
            answer = lambda x, y, memory: (view.best(memory.primal, y), memory)
            return Parts(answer, lambda seen, request: view.violation(request, seen), view.move)
        mirror = lambda x, y: view.descend(x, view.gradient(x, y), step)
        best = lambda x, y: view.best(y)
        theta = 1.0 if self.theta is None else self.theta
        return row(best if self.primal == "best" else mirror, view.violation, view.move, theta)

    def online_step(self, view: Online, horizon: Any) -> Any:
        """The first step s on a stream of this length: a scalar, or one for each resource."""
        dtype = view.rate.dtype
        if self.stepsize is not None:
            return jnp.asarray(self.stepsize, dtype)
        fading = jnp.asarray(self.decay, dtype) > 0
        length = jnp.where(fading, jnp.ones((), dtype), jnp.sqrt(jnp.asarray(horizon, dtype)))
        return jnp.asarray(self.gain, dtype) * view.units() / length

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
        step = self.step_at(state.step, state.count)
        T = lambda pair, memory: saddle_step(self.parts(view, step), step, pair, memory)
        track, _, visit = self.acceleration.apply(T, state.track, Memory(), step)
        return State(track, state.step, state.count + 1), visit

    def step_at(self, step: Any, count: Any) -> Any:
        """`s / (1 + k)^decay` after k steps."""
        if isinstance(self.decay, int | float) and self.decay == 0:
            return step
        return (step * (1 + jnp.asarray(count, step.dtype)) ** -self.decay).astype(step.dtype)

    def pair(self, view: Any, state: State, visit: Visit) -> Pair:
        """The pair to return now: the mean, or the latest pair once a step does not move it any more."""
        moved = optax.tree.norm(optax.tree.sub(visit.after, visit.before))
        return optax.tree.where(moved > 0, self.acceleration.best(state.track, visit), visit.after)

    def check(self, view: Any, state: State, visit: Visit) -> State:
        """Nothing to adapt."""
        return state
