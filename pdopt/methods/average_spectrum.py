"""PDHG by the average spectrum: a plain Arrow-Hurwicz step predicts, a correction makes it converge (arXiv 2603.00644).

    x~ = prox(x - grad(x, y) / r, 1/r),    y~ = move(y, v(x~), 1/s)                      the saddle step with theta = 0
    (x, y) <- (x, y) - gamma (phi / psi) (dx - K'dy / r, dy)                             `rules/correction.py`

`r = q omega`, `s = q / omega`. Chambolle and Pock need `q >= |K|`; here only `t = |K'dy|^2 / (q^2 |dy|^2)` of the steps
that are really taken must stay below 4: t > 3 rejects a prediction and enlarges q, a long run of t < 1 lowers it. On
assignment problems all singular values but one are sqrt(n) where |K| is sqrt(2n), and q settles at sqrt(n) or less.

The state is the corrected pair; what was predicted from it is made again when it is corrected, since a prox costs less
than keeping a second plan. One plan, the cost, and one array for the plan being made are all a transport solve needs.

Not done here: certificates of infeasibility, restarts.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pdopt.errors import InvalidOption, UnsupportedProblem, require_range
from pdopt.geometry.checks import concrete
from pdopt.operators.scaling import Scaling
from pdopt.problems.quadratic import QuadraticProgram
from pdopt.problems.transport_saddle import require_balanced
from pdopt.problems.views import in_metric, saddle
from pdopt.rules.correction import Bend, correct, imaged, towards
from pdopt.rules.saddle import NO_MEMORY, Parts, advance, row, saddle_step
from pdopt.types import Memory, Pair, Visit, record

REJECT, LOWER = 3.0, 1.0  # bounds on t (linear spec, section 10)
GROW, SHRINK = 1.3**0.5, 1.25**-0.5  # of q, so 1.3 and 1.25 of r s
LOWERINGS = 40


class Image(NamedTuple):
    """A point with an affine image of it that is carried along: x with its violation or (), y with its slope or ()."""

    point: Any
    image: Any


class Size(NamedTuple):
    """`q = sqrt(r s)` and the primal weight omega."""

    q: Any
    omega: Any

    @property
    def r(self) -> Any:
        """Inverse primal step."""
        return self.q * self.omega

    @property
    def s(self) -> Any:
        """Inverse dual step."""
        return self.q / self.omega


class Tuning(NamedTuple):
    """The size of the next prediction, and counts: quiet steps in a row, lowerings of q, changes of omega, checks."""

    size: Size
    quiet: Any
    lowered: Any
    weighed: Any
    checks: Any


class State(NamedTuple):
    """The pair, what was predicted from it (violation of x~ and y~), and how far the correction will go.

    `size` is that of this prediction; `began` is False until there is one.
    """

    pair: Pair
    ahead: Pair
    shift: Any
    size: Size
    bend: Bend
    tuning: Tuning
    began: Any


@record(static=("metric", "every", "weigh_every"))
class AverageSpectrum:
    """Adaptive PDHG by the average spectrum, for linear programs, games and exact transport.

    Float settings are traced.

    Attributes:
        gamma: length of the correction, in (0, 2); 1.5 (1.9 finds the value sooner and settles later).
        share: > 0; q starts at `share |K|`. t is then at most `1 / share^2`: 0.7 gives about 2.
        gain: in [0, 1]; how strongly the primal weight follows the imbalance of the two halves. The k-th change is
            damped by `1 / sqrt(k)`, so that the metric settles. 0 keeps the first weight.
        weight: > 0; multiplies the first primal weight.
        metric: of transport's dual step: "scalar", "deflated", "douglas_rachford"; None takes the view's own.
        scaling: what a linear program is scaled by first.
        every: steps between checks, >= 1; weigh_every: checks between changes of the weight, >= 1.

    Raises:
        InvalidOption: a setting outside its range.

    Example:
        >>> import pdopt
        >>> problem = pdopt.Transport([[0.0, 2.0, 3.0], [2.0, 1.0, 1.0], [3.0, 1.0, 4.0]], dtype=jnp.float32)
        >>> solution = pdopt.solve(problem, AverageSpectrum())
        >>> print(solution.certificate.permutation, round(float(solution.objective), 4))
        [0 2 1] 0.6667
    """

    gamma: Any = 1.5
    share: Any = 0.7
    gain: Any = 0.3
    weight: Any = 1.0
    metric: str | None = None
    scaling: Scaling = Scaling()
    every: int = 40
    weigh_every: int = 5
    remakes = True  # `whole` makes the last judged pair from the state, so that a loop need not keep it

    def __post_init__(self) -> None:
        for name in ("every", "weigh_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InvalidOption(f"{name} is {value!r}; expected an integer >= 1")
        if not concrete(self):
            return
        require_range("gamma", self.gamma, 0.0, 2.0, open_low=True)
        if float(self.gamma) >= 2:
            raise InvalidOption(f"gamma is {self.gamma}; expected a number below 2")
        require_range("share", self.share, 0.0, open_low=True)
        require_range("gain", self.gain, 0.0, 1.0)
        require_range("weight", self.weight, 0.0, open_low=True)

    def admit(self, problem: Any) -> None:
        """Refuse an unbalanced transport, and a quadratic program, before tracing."""
        require_balanced(problem)
        if isinstance(problem, QuadraticProgram):
            raise UnsupportedProblem("AverageSpectrum has no view of a QuadraticProgram: its step knows no curvature")

    def view(self, problem: Any) -> Any:
        """The problem as this method sees it."""
        return in_metric(saddle(problem, self.scaling), self.metric)

    def parts(self, view: Any, size: Size) -> Parts:
        """The row of the table: PDHG's functions with theta = 0.

        Where the view knows `K K'` (`twice`), the violation of x travels and the gradient is made when needed; else
        the gradient in x travels with y, so that a step costs one product with A and one with A'.
        """
        closed = hasattr(view, "twice")

        def primal(x: Image, y: Image) -> Image:
            if closed:
                point = view.stride(x.point, y.point, 1 / size.r)
                return Image(point, view.violation(point))
            return Image(view.prox(x.point - y.image / size.r, 1 / size.r), ())

        def violation(seen: Image) -> Any:
            return seen.image if closed else view.violation(seen.point)

        move = imaged(view.move, lambda point: self._dual(view, point))
        return row(primal, violation, move, theta=0.0)

    def _dual(self, view: Any, point: Any) -> Image:
        return Image(point, () if hasattr(view, "twice") else view.gradient((), point))

    def init(self, view: Any, start: Pair) -> State:
        """The first state: no prediction yet, and nothing to correct."""
        x = Image(start.x, view.violation(start.x) if hasattr(view, "twice") else ())
        pair = Pair(x, self._dual(view, start.y))
        norm = view.norm(64)
        size = Size(jnp.where(norm > 0, self.share * norm, 1), jnp.asarray(self.weight * view.balance, norm.dtype))
        zero, none = jnp.zeros((), norm.dtype), jnp.int32(0)
        ahead = Pair(x.image, pair.y)
        return State(pair, ahead, zero, size, Bend(zero, zero, zero, zero), Tuning(size, none, none, none, none),
                     jnp.bool_(False))  # fmt: skip

    def _predicted(self, view: Any, state: State) -> Pair:
        """The prediction that the state stands for, its x made again."""
        x, _ = advance(self.parts(view, state.size), state.pair, NO_MEMORY)
        return Pair(Image(x.point, state.ahead.x), state.ahead.y)

    def _corrected(self, view: Any, state: State) -> Pair:
        """The pair after the correction that is due."""
        predicted, pair, r = self._predicted(view, state), state.pair, state.size.r
        dy = optax.tree.sub(pair.y, predicted.y)
        points = Pair(pair.x.point, pair.y), Pair(predicted.x.point, predicted.y)
        if not hasattr(view, "twice"):
            moved = correct(*points, dy.image, state.shift, r)
            return Pair(Image(moved.x, ()), moved.y)
        moved = correct(*points, view.tilt(dy.point), state.shift, r)
        image = towards(pair.x.image, predicted.x.image, state.shift)
        image = jax.tree.map(lambda v, w: v + state.shift * w / r, image, view.twice(dy.point))
        return Pair(Image(moved.x, image), moved.y)

    def _bend(self, view: Any, pair: Pair, predicted: Pair) -> Bend:
        """What the prediction met."""
        dx = optax.tree.sub(pair.x.point, predicted.x.point)
        dy = optax.tree.sub(pair.y, predicted.y)
        squares = optax.tree.vdot(dx, dx), optax.tree.vdot(dy.point, dy.point)
        if not hasattr(view, "twice"):
            return Bend(*squares, optax.tree.vdot(dx, dy.image), optax.tree.vdot(dy.image, dy.image))
        dv = optax.tree.sub(pair.x.image, predicted.x.image)
        return Bend(*squares, optax.tree.vdot(dv, dy.point), optax.tree.vdot(dy.point, view.twice(dy.point)))

    def step(self, view: Any, state: State) -> tuple[State, Visit]:
        """Correct what was predicted, then predict from there."""
        pair, size = self._corrected(view, state), state.tuning.size
        predicted, _ = saddle_step(self.parts(view, size), 1 / size.s, pair, Memory())
        bend = self._bend(view, pair, predicted)
        t = bend.ratio(size.r, size.s)
        rejected = t > REJECT
        shift = jnp.where(rejected, 0, bend.shift(size.r, size.s, self.gamma))
        tuning = self._tuned(state.tuning, t, rejected)
        ahead = Pair(predicted.x.image, predicted.y)
        return State(pair, ahead, shift, size, bend, tuning, jnp.bool_(True)), Visit(pair, predicted)

    def _tuned(self, tuning: Tuning, t: Any, rejected: Any) -> Tuning:
        """q grows where t is too large, and shrinks after 20 quiet steps."""
        quiet = jnp.where(t < LOWER, tuning.quiet + 1, 0)
        lower = (quiet >= 20) & (tuning.lowered < LOWERINGS)
        q = tuning.size.q * jnp.where(rejected, GROW, jnp.where(lower, SHRINK, 1)).astype(tuning.size.q.dtype)
        return tuning._replace(
            size=tuning.size._replace(q=q),
            quiet=jnp.where(lower, 0, quiet),
            lowered=tuning.lowered + lower.astype(jnp.int32),
        )

    def pair(self, view: Any, state: State, visit: Visit) -> Pair:
        """The prediction, which lies in the sets; the corrected pair may not."""
        return Pair(visit.after.x.point, visit.after.y.point)

    def whole(self, view: Any, state: State) -> Pair:
        """The pair that belongs to a state: its prediction, or the start where there is none yet."""
        now, ahead = state.pair, self._predicted(view, state)
        begun = Pair(ahead.x.point, ahead.y.point)
        return optax.tree.where(state.began, begun, Pair(now.x.point, now.y.point))

    def check(self, view: Any, state: State, visit: Visit) -> State:
        """Balance the two halves now and then; make a carried violation afresh (its recursion collects rounding)."""
        tuning, size = state.tuning, state.tuning.size
        checks = tuning.checks + 1
        due = checks % self.weigh_every == 0
        damping = 1 / jnp.sqrt(1 + tuning.weighed.astype(size.q.dtype))
        push = self.gain * damping * jnp.clip(state.bend.imbalance(state.size.r, state.size.s), -2.0, 2.0)
        omega = jnp.where(due, size.omega * jnp.exp(push), size.omega)
        tuning = tuning._replace(
            size=size._replace(omega=omega), checks=checks, weighed=tuning.weighed + due.astype(jnp.int32)
        )
        pair = state.pair
        if hasattr(view, "twice"):
            pair = pair._replace(x=pair.x._replace(image=view.violation(pair.x.point)))
        return state._replace(pair=pair, tuning=tuning)
