"""Primal-dual hybrid gradient (Chambolle, Pock 2011): `min_x max_y f(x) + <v(x), y> - h(y)` with affine v.

    x' = prox(x - tau grad(x, y), tau);   seen = 2x' - x;   y' = move(y, v(seen), sigma)

with `tau = eta / omega` and `sigma = eta omega`.

The iterate carries its violation, `x = Image(point, v(point))`: extrapolating both is extrapolating v (v is affine),
so one product with A and one with A' make a step, and what a step size or a restart wants to know (`<dy, dv>`) costs
none. Around the step: reflected Halpern (Lu, Yang 2024), restarts on the fixed-point error and a primal weight
(cuPDLPx), restarts to Anderson means, and the step size of PDLP (Applegate et al. 2021) taken inside the epoch.

A quadratic objective, whose step bounds its curvature, is a view: `problems/quadratic_saddle.py`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.core import Tracer

from pdopt.errors import InvalidOption, unknown_name
from pdopt.operators.scaling import Scaling
from pdopt.operators.sums import Change
from pdopt.problems.transport_saddle import require_balanced
from pdopt.problems.views import in_metric, saddle
from pdopt.rules.acceleration import Ahead, Averaged, Halpern, Lean, Plain, Relaxed, Track, check_averaged
from pdopt.rules.mixing import Anderson
from pdopt.rules.restart import Epoch, FixedPointRestart, PrimalWeight, Weight
from pdopt.rules.saddle import Parts, extrapolate, respond, row, saddle_step
from pdopt.rules.stepsize import AdaptiveStep, ConstantStep, Movement, Size
from pdopt.types import Memory, Pair, Steps, Visit, record

ACCELERATIONS = {rule.__name__.lower(): rule for rule in (Halpern, Averaged, Relaxed, Plain, Lean, Ahead)}


class Image(NamedTuple):
    """A primal point with its violation `v(point)`; both are averaged, reflected and extrapolated together.

    Where f is curved its slope `Q point` travels too; where it is not, () adds nothing.
    """

    point: Any
    violation: Any
    slope: Any = ()


class State(NamedTuple):
    """What the next step needs."""

    track: Track
    size: Size
    weight: Weight
    epoch: Epoch
    past: Any = ()


@record(static=("metric", "every"))
class PDHG:
    """Restarted PDHG. The default engine is reflected Halpern with a step size that adapts inside the epoch.

    Float settings are traced: a sweep over them is a `vmap` and one compilation.

    Attributes:
        acceleration: `Halpern`, `Averaged`, `Relaxed`, `Plain`, `Lean` or `Ahead`, or its lower-case name.
        stepsize: `AdaptiveStep` or `ConstantStep`.
        restart: when an epoch ends; weight: how the primal weight moves then.
        mixing: where an epoch may end in a mean of its points (`Halpern` only), or None.
        scaling: what the problem is scaled by first.
        metric: of transport's dual step: "scalar", "deflated" or "douglas_rachford"; None takes the view's own.
        every: steps between checks, >= 1 (64 on a CPU; 200 where a check costs several steps).

    Raises:
        InvalidOption: a setting outside its range, or more reflection than PDHG allows (1).

    Example:
        >>> import pdopt
        >>> lp = pdopt.LinearProgram([1.0, 2.0], [[1.0, 1.0]], [1.0], [jnp.inf], [0.0, 0.0], dtype=jnp.float32)
        >>> solution = pdopt.solve(lp, PDHG(), tolerance=1e-5)
        >>> str(solution.reason), round(float(solution.objective), 3)
        ('optimal', 1.0)
    """

    acceleration: Any = Halpern(0.85)
    stepsize: Any = AdaptiveStep()
    restart: FixedPointRestart = FixedPointRestart()
    weight: PrimalWeight = PrimalWeight()
    mixing: Anderson | None = Anderson()
    scaling: Scaling = Scaling()
    metric: str | None = None
    every: int = 64
    early = 1024  # iterations whose checks come twice as often: 0.84 times the iterations on 27 easy programs at 1e-8
    looks = 4  # a look for a ray costs as much as all else that a check does
    unrolls = True  # its steps have no loops of their own, whatever `block` makes of them

    def __post_init__(self) -> None:
        if isinstance(self.acceleration, str):
            if self.acceleration not in ACCELERATIONS:
                raise unknown_name("acceleration", self.acceleration, ACCELERATIONS)
            object.__setattr__(self, "acceleration", ACCELERATIONS[self.acceleration]())
        if not isinstance(self.acceleration, tuple(ACCELERATIONS.values())):
            raise InvalidOption(f"acceleration is {self.acceleration!r}; expected one of {sorted(ACCELERATIONS)}")
        if not isinstance(self.every, int) or self.every < 1:
            raise InvalidOption(f"every is {self.every!r}; expected an integer >= 1")
        if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(self)):
            for rule in filter(None, (self.stepsize, self.restart, self.weight, self.mixing)):
                rule.validate()
        check_averaged(self.acceleration, 0.5, "PDHG")

    @staticmethod
    def constant(**settings: Any) -> "PDHG":
        """Reflected Halpern with a constant step 0.998 / |A| (r2HPDHG as in cuPDLPx): no reduction inside the loop."""
        fixed = {
            "acceleration": Halpern(1.0),
            "stepsize": ConstantStep(),
            "weight": PrimalWeight(gain=0.99, balance=0.0),
            "restart": FixedPointRestart(artificial=0.36),
            "mixing": None,
        }
        return PDHG(**{**fixed, **settings})

    @staticmethod
    def averaged(**settings: Any) -> "PDHG":
        """Restarted averaged PDHG with the adaptive step, restarting to the better of iterate and mean.

        As PDLP's engine, except that the better one and the restart are judged by the fixed-point error, not by KKT
        residuals, so that one restart rule serves all engines.
        """
        fixed = {
            "acceleration": Averaged(),
            "stepsize": AdaptiveStep(factor=1.0),
            "restart": FixedPointRestart(0.2, 0.8, 0.36),
            "weight": PrimalWeight(gain=0.5, integral=0.0, balance=0.0),
        }
        return PDHG(**{**fixed, **settings})

    @staticmethod
    def quadratic(**settings: Any) -> "PDHG":
        """The default engine with a primal weight that may go far: what `solve` takes for a quadratic program.

        The size of a quadratic program's gradient is known at its solution only, so no scaling can bring the weight
        near 1 beforehand: HUESTIS of Maros and Meszaros ends at 7e-9, and stays unsolved within the bound of 1e5.
        """
        return PDHG(**{"weight": PrimalWeight(bound=1e9), **settings})

    @staticmethod
    def lean(**settings: Any) -> "PDHG":
        """Plain PDHG with the adaptive step and no second point anywhere: what a large transport has room for.

        A plan of few entries meets a far smaller spectrum than `|A|`, and the adaptive step finds it: on uniform
        assignment problems of n = 500 and 1000 it took a tenth of the iterations of a constant step.
        """
        return PDHG(**{"acceleration": Lean(), "every": 40, **settings})

    @staticmethod
    def transport(**settings: Any) -> "PDHG":
        """The default engine with two plans in its state, the point and its anchor: what `solve` takes for transport.

        Restarted Halpern took a tenth to a thirtieth of the iterations of plain steps on random costs. The means that
        `Anderson` remembers gained nothing there and are twelve plans more.
        """
        return PDHG(**{"acceleration": Ahead(0.85), "mixing": None, **settings})

    @property
    def remakes(self) -> bool:
        """Whether `whole` makes the last judged pair from the state, so that a loop need not keep it."""
        return isinstance(self.acceleration, Lean | Ahead)

    @property
    def lone(self) -> bool:
        """Whether a point has no anchor."""
        return isinstance(self.acceleration, Lean)

    @property
    def mixer(self) -> Anderson | None:
        """What may end an epoch in a mean of its points: only Halpern's are those of one map; `Ahead` keeps none."""
        return self.mixing if isinstance(self.acceleration, Halpern) and not self.remakes else None

    @property
    def idles(self) -> bool:
        """Whether `block` may take no step."""
        return not self.remakes

    def view(self, problem: Any) -> Any:
        """The problem as this method sees it."""
        return in_metric(saddle(problem, self.scaling), self.metric)

    def admit(self, problem: Any) -> None:
        """Refuse an unbalanced transport before tracing."""
        require_balanced(problem)

    def parts(self, view: Any, steps: Steps) -> Parts:
        """The row of the table: the functions that make the saddle step PDHG."""

        def primal(x: Image, y: Any) -> Image:
            if hasattr(view, "stride"):  # the two in a pass of the view's own
                point = view.stride(x.point, y, steps.primal)
            elif hasattr(view, "slope"):
                point = view.curved_step(x.point, x.slope, y, steps.primal)
            else:
                point = view.prox(x.point - steps.primal * view.gradient(x.point, y), steps.primal)
            return image(view, point)

        return row(primal, lambda seen: seen.violation, view.move, theta=1.0)

    def _map(self, view: Any, size: Size, omega: Any) -> Any:
        steps = size.steps(omega)
        parts = self.parts(view, steps)
        return lambda pair, memory: saddle_step(parts, steps.dual, pair, memory)

    def init(self, view: Any, start: Pair) -> State:
        """The first state from a pair in the view's units."""
        violation = getattr(view, "violation_once", view.violation)(start.x)
        point = Pair(Image(start.x, violation, view.slope(start.x) if hasattr(view, "slope") else ()), start.y)
        size = self.stepsize.init(jax.lax.stop_gradient(view).norm(self.stepsize.products))
        dtype = jnp.result_type(size.eta)
        past = self.mixer.init(point, Pair(start.x, start.y)) if self.mixer else ()
        return State(self.acceleration.init(point), size, self.weight.init(view.balance), Epoch.begin(dtype), past)

    def step(self, view: Any, state: State) -> tuple[State, Visit]:
        """One saddle step, accelerated; a step that the size rule rejects leaves the point where it was."""
        omega, size, epoch = state.weight.omega, state.size, state.epoch
        after, _ = self._map(view, size, omega)(state.track.point, Memory())
        visit, accepted, taken = Visit(state.track.point, after), True, jnp.int32(1)
        if self.stepsize.adapts:
            moved = movement(view, visit)
            size = self.stepsize.update(size, moved, omega)
            accepted, taken = size.accepted, size.accepted.astype(jnp.int32)
            # The error of an epoch's first step is at hand here; a constant step computes it at the restart.
            begins = (epoch.steps == 0) & size.accepted
            epoch = epoch._replace(first=jnp.where(begins, moved.error(state.size.eta, omega), epoch.first))
        track = self.acceleration.follow(state.track, after, state.size.eta, accepted)
        epoch = epoch._replace(steps=epoch.steps + taken, total=epoch.total + 1)
        return state._replace(track=track, size=size, epoch=epoch), visit

    def block(self, view: Any, state: State, steps: Any) -> tuple[State, Visit]:
        """`steps` steps (none for 0) and the last one's visit, by one compiled loop: all but the last, then the last.

        Beside the state the loop carries x' and its violation, which a product made; y' is made again from them. A
        `Lean` point has no room for that, and its step is compiled twice; so is that of `Ahead`, which looks one step
        further and stays where it is.
        """
        if isinstance(self.acceleration, Ahead):
            return self._look(view, lax.fori_loop(0, steps, lambda _, s: self.step(view, s)[0], state))
        if self.remakes:
            state = lax.fori_loop(0, steps - 1, lambda _, s: self.step(view, s)[0], state)
            return self.step(view, state)

        def one(carry: tuple[Any, State, Any]) -> tuple[Any, State, Any]:
            left, state, _ = carry
            state, visit = self.step(view, state)
            return left - 1, state, visit.after.x

        def part(carry: Any) -> Any:
            half, left, state, ahead, _, _ = carry
            stop = 1 - half
            left, after, ahead = lax.while_loop(lambda inner: inner[0] > stop, one, (left, state, ahead))
            return half + 1, left, after, ahead, state.track.point, state.size

        begun = (jnp.int32(0), jnp.int32(steps), state, state.track.point.x, state.track.point, state.size)
        _, _, state, ahead, before, size = lax.while_loop(lambda carry: carry[0] < 2, part, begun)
        sizes = size.steps(state.weight.omega)
        parts = self.parts(view, sizes)
        y, _ = respond(parts, before.y, extrapolate(parts.theta, before.x, ahead), sizes.dual, Memory())
        return state, Visit(before, Pair(ahead, optax.tree.where(steps > 0, y, before.y)))

    def _look(self, view: Any, state: State) -> tuple[State, Visit]:
        """The step ahead of a state, and whether the size rule would accept it."""
        point, omega = state.track.point, state.weight.omega
        visit = Visit(point, self._map(view, state.size, omega)(point, Memory())[0])
        if not self.stepsize.adapts:
            return state, visit
        accepted = state.size.eta <= movement(view, visit).limit(omega)
        return state._replace(size=state.size._replace(accepted=accepted)), visit

    def pair(self, view: Any, state: State, visit: Visit) -> Pair:
        """The pair to return now, in the view's units."""
        candidate, _ = self._candidate(view, state, visit)
        return Pair(candidate.x.point, candidate.y)

    def whole(self, view: Any, state: State) -> Pair:
        """The pair that belongs to a state, where the acceleration is `Lean` or `Ahead`."""
        point = state.track.point
        if isinstance(self.acceleration, Ahead):  # which restarts, and ends, at what was judged
            after, _ = self._map(view, state.size, state.weight.omega)(point, Memory())
            point = optax.tree.where(state.epoch.steps == 0, point, after)
        return Pair(point.x.point, point.y)

    def ended(self, state: State, visit: Visit) -> State:
        """The state of a run that ends with this visit, where a part of its pair is kept: `whole` makes that pair."""
        if not isinstance(self.acceleration, Ahead):
            return state
        return state._replace(track=self.acceleration.init(visit.after), epoch=state.epoch._replace(steps=jnp.int32(0)))

    def _candidate(self, view: Any, state: State, visit: Visit) -> tuple[Pair, Any]:
        """The point a restart would go to, and its fixed-point error."""
        omega, eta = state.weight.omega, state.size.eta
        error = movement(view, visit).error(eta, omega)
        if not isinstance(self.acceleration, Averaged):
            return self.acceleration.best(state.track, visit), error
        mean = state.track.mean
        of_mean, _ = self._map(view, state.size, omega)(mean, Memory())
        mean_error = movement(view, Visit(mean, of_mean)).error(eta, omega)
        return optax.tree.where(mean_error < error, mean, visit.after), jnp.minimum(mean_error, error)

    def direction(self, view: Any, state: State, visit: Visit) -> Pair:
        """Where the iterates drift: the last step, or the way since the restart, at every other look.

        Both converge to the infimal displacement of T, which holds a ray when there is one (arXiv 2102.04592).
        """
        far = (state.epoch.total // (self.looks * self.every)) % 2 == 0
        before = visit.before if self.lone else optax.tree.where(far, state.track.anchor, visit.before)
        drift = optax.tree.sub(visit.after, before)
        return Pair(drift.x.point, drift.y)

    def shared(self, state: State, after: State) -> State:
        """The state before a check, with the row that the check wrote: it is written over before it is read."""
        return state._replace(past=state.past._replace(rows=after.past.rows)) if state.past else state

    def check(self, view: Any, state: State, visit: Visit) -> State:
        """Restart and move the primal weight where the rules say so.

        The carried violation of a blended point is a blend too, but needs no refreshing: `T z` has its own product, and
        the rounding error of the blend enters the next one times at most the reflection.
        """
        candidate, error = self._candidate(view, state, visit)
        ends = self.restart.decide(state.epoch, error) & state.size.accepted
        omega = state.weight.omega
        ratio, past, jump, mixer = movement(view, visit).ratio(omega), (), None, self.mixer
        if mixer is not None:
            rest = partial(_residual, visit, omega)
            past, jump = mixer.look(state.past, candidate, rest, state.size.accepted, ends, error, state.epoch)

        def begin() -> tuple[Track, Weight, Epoch, Any]:
            # Without an anchor the last step stands for the epoch.
            end, anchor = (visit.after, visit.before) if self.lone else (candidate, state.track.anchor)
            dx, dy = (_distance(view, *ends) for ends in ((end.x.point, anchor.x.point), (end.y, anchor.y)))
            weight, kept, point = self.weight.update(state.weight, dx, dy, ratio), (), end
            if mixer is not None and jump is not None:
                weight = optax.tree.where(jump.back, state.weight, weight)
                point = optax.tree.where(jump.taken | jump.back, jump.point(), end)
                kept = mixer.begun(past, jump, error)
            return self.acceleration.init(point), weight, self.restart.update(state.epoch, True, error), bare(kept)

        def go_on() -> tuple[Track, Weight, Epoch, Any]:
            return state.track, state.weight, self.restart.update(state.epoch, False, error), bare(past)

        bare = lambda past: past._replace(rows=()) if past else ()  # a branch would copy the rows
        over = ends if jump is None else ends | jump.taken | jump.back
        if self.remakes:
            # A branch would copy both points. A select is in place, after the last that reads them: the new weight.
            begun = begin()
            track, weight, epoch, kept = optax.tree.where(over & jnp.isfinite(begun[1].omega), begun, go_on())
        else:
            track, weight, epoch, kept = lax.cond(over, begin, go_on)
        past = kept._replace(rows=past.rows) if past else ()
        if not self.stepsize.adapts:
            after, _ = self._map(view, state.size, weight.omega)(track.point, Memory())
            first = movement(view, Visit(track.point, after)).error(state.size.eta, weight.omega)
            epoch = epoch._replace(first=jnp.where(over, first, epoch.first))
        return State(track, state.size, weight, epoch, past)


def image(view: Any, point: Any) -> Image:
    """A point with everything that is linear in it."""
    return Image(point, view.violation(point), view.slope(point) if hasattr(view, "slope") else ())


def movement(view: Any, visit: Visit) -> Movement:
    """What one step moved: `|dx|^2`, `|dy|^2`, `<dy, dv>`, and `dx'(H - Q)dx` where f is curved."""
    # Step sizes, weights and restarts are decided by it: constants, where a derivative goes through the steps.
    view, visit = jax.lax.stop_gradient((view, visit))
    inner = getattr(view, "inner", _inner)
    dx, dv, dy = (Change(*ends) for ends in zip(_ends(visit.after), _ends(visit.before)))
    bend = None
    if hasattr(view, "slope"):
        bend = view.bend(dx.after - dx.before, visit.after.x.slope - visit.before.x.slope)
    return Movement(inner(dx, dx), inner(dy, dy), inner(dy, dv), bend)


def _ends(pair: Pair) -> tuple[Any, Any, Any]:
    return pair.x.point, pair.x.violation, pair.y


def _inner(a: Change, b: Change) -> Any:
    """`<a, b>` of changes of pytrees."""
    return optax.tree.vdot(optax.tree.sub(a.after, a.before), optax.tree.sub(b.after, b.before))


def _residual(visit: Visit, omega: Any) -> Pair:
    """`T z - z` of the latest step, where an error is `sqrt(omega |dx|^2 + |dy|^2 / omega)`; times `sqrt(omega)`."""
    change = jax.lax.stop_gradient(optax.tree.sub(visit.after, visit.before))
    return Pair(optax.tree.scale(omega, change.x.point), change.y)


def _distance(view: Any, a: Any, b: Any) -> Any:
    change = Change(*jax.lax.stop_gradient((a, b)))
    return jnp.sqrt(getattr(view, "inner", _inner)(change, change))
