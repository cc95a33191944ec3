"""Exact augmented Lagrangian with inexact Newton steps (Hong, Na, Mahoney, Kolar, ICML 2023, arXiv 2305.18379).

For `min f(x)` subject to `c(x) = 0`, with `L = f + <y, c>`, `r = (grad_x L, c)` and `J = c'(x)`, a step solves

    [ H + tau I   J' ] [ dx ]
    [ J           0  ] [ dy ] = -r,       H = grad_xx L,

as exactly as its rule asks for, and goes along (dx, dy) until the merit has fallen enough (Armijo),

    M(x, y) = L + eta1 |c|^2 / 2 + eta2 |grad_x L|^2 / 2,      grad M = r + K (eta2 grad_x L, eta1 c),

K the matrix at tau = 0. M is a penalised Lagrangian whose minimisers, for a large eta1 and a small eta2, are the
solutions themselves, multipliers included: nothing has to go to infinity, and full steps pass near a solution. The
authors' code has the Hessian of f in the place of H in grad M, which is its slope for affine c alone.

Every direction must be one along which M falls at the rate `<grad M, z> <= -eta2 |r|^2 / 2`; where an accurate one is
not, eta1 grows by nu^2 and eta2 shrinks by nu (up to 1e8 and 1e-8), and the same direction is solved for further.

It is a saddle step whose dual half sees the violation in the metric of the Schur complement: the second row of the
system, the first eliminated, says `dy = (J B^-1 J')^-1 (c - J B^-1 grad_x L)`, `B = H + tau I`, the violation that is
left when x has answered to y. The primal half finds dx, dy and the length; the move adds the latter's share of dy.

Where no direction is accepted a step goes along -grad M, or, where the rows are broken and the system has no solution
(dependent rows that contradict each other), along Cauchy's step on |c|^2 / 2: M has no lower bound at such points.

Not done here: inequalities and bounds (`AugmentedLagrangian` takes them), second-order certificates.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pdopt.errors import InvalidOption, UnsupportedProblem, require_range
from pdopt.geometry.checks import concrete
from pdopt.methods.augmented_lagrangian import UNBOUNDED
from pdopt.methods.exact_merit import SHIFT, Linearised, Merit, Sizes, Weights, inverse_size, l2
from pdopt.methods.inner import DECREASE, search
from pdopt.methods.newton_systems import Direct, LinearSolver, System
from pdopt.problems.nonlinear import NonlinearProgram
from pdopt.problems.nonlinear_view import NonlinearView
from pdopt.rules.saddle import Parts, saddle_step
from pdopt.types import Memory, Optimality, Pair, Status, Visit, record

LARGEST, SMALLEST = 1e8, 1e-8  # of eta1 and eta2 (authors' code)
FLOOR = 1e-6  # delta never falls below this (authors' code)
CURVED = 1e-6  # the curvature a direction must show, times its length squared (authors' code: of the reduced Hessian)
ROUNDS = 80  # solves of one step: 24 growths of eta1, 40 of eta2 and the shifts end before
POWER = 20, 2  # power iterations for the sizes of H and J: at the start, and at each step from where they were
CLEAR = 1e-3  # the share of a right-hand side that a direction may leave and still be laid to curvature
STALL = 12  # steps without a better pair that end a run
ROWS = 1_000_000  # entries of J beyond which its rows are not scaled: their slopes would be formed all at once


class Effort(NamedTuple):
    """Counts: values of M, each with the gradient of L; linearisations; products with K; linear systems; steps whose
    system was not solved to its tolerance (`short`); steps along a gradient because no Newton direction was accepted.
    """

    values: Any
    gradients: Any
    products: Any
    systems: Any
    short: Any
    descents: Any

    @staticmethod
    def none() -> "Effort":
        """All 0."""
        return Effort(*(jnp.int32(0) for _ in range(6)))


class Progress(NamedTuple):
    """The best error, for how many steps it has not improved, and whether the line search found no length."""

    best: Any
    stall: Any
    stuck: Any


class State(NamedTuple):
    """The pair, the key, weights, sizes, progress, costs."""

    pair: Pair
    key: Any
    weights: Weights
    sizes: Sizes
    progress: Progress
    work: Effort


class Spot(NamedTuple):
    """What the primal half leaves: the dual change, and the next state but for its pair."""

    change: Any
    weights: Weights
    sizes: Sizes
    stuck: Any
    work: Effort


@record(static=("every", "rescale"))
class ExactAugmentedLagrangian:
    """Newton steps on the optimality system of an equality-constrained `NonlinearProgram`, guarded by an exact merit.

    Attributes:
        linear: what solves for a step: `Direct()`, `MinRes()`, `BlockSketch()`.
        forcing: in [0, 1]. 0: the published rule, `|K| Psi |K z + r| <= theta delta |r|`, whose constants ask for `5e-9
            |r| / |K|` or less from the first step on. Else a step is solved for to `min(forcing, sqrt|r|) |r|`: cheap
            at first, and exact as r falls (Dembo, Eisenstat, Steihaug 1982).
        theta: > 0, of the published rule.
        feasible, stationary, delta: first eta1 > 0, eta2 > 0 and delta in (0, 1].
        growth: nu > 1.
        seed: of the sketches; an integer.
        rescale: scale f and rows by their gradients at the start, as other methods do; None: where J has at most 1e6
            entries (`n m`; scaling forms its rows). False keeps the user's units, as published.
        every: steps between looks; each step is looked at.

    Raises:
        InvalidOption: a setting outside its range. UnsupportedProblem: inequalities, bounds, another kind of problem.

    Example:
        >>> import pdopt
        >>> circle = lambda x: jnp.sum(x**2) - 2
        >>> problem = pdopt.NonlinearProgram(jnp.sum, jnp.array([-2.0, -0.5]), equality=circle)
        >>> solution = pdopt.solve(problem, ExactAugmentedLagrangian())
        >>> print(solution.x.round(3), solution.y.equality.round(3))
        [-1. -1.] 0.5
    """

    linear: LinearSolver = Direct()
    forcing: Any = 0.0
    theta: Any = 1.0
    feasible: Any = 1.0
    stationary: Any = 0.1
    delta: Any = 0.1
    growth: Any = 1.5
    seed: Any = 0
    rescale: bool | None = None
    every: int = 1

    def __post_init__(self) -> None:
        if not hasattr(self.linear, "solve"):
            raise InvalidOption(f"linear is {self.linear!r}; expected a solver such as Direct() or MinRes()")
        if self.every != 1:
            raise InvalidOption(f"every is {self.every!r}; expected 1: each step is looked at")
        if not concrete(self):
            return
        for name in ("theta", "feasible", "stationary"):
            require_range(name, getattr(self, name), 0.0, open_low=True)
        require_range("growth", self.growth, 1.0, open_low=True)
        require_range("delta", self.delta, 0.0, 1.0, open_low=True)
        require_range("forcing", self.forcing, 0.0, 1.0)

    def admit(self, problem: Any) -> None:
        """Raise `UnsupportedProblem` for what is not an equality-constrained `NonlinearProgram`; before tracing."""
        if not isinstance(problem, NonlinearProgram):
            raise UnsupportedProblem(
                f"{type(problem).__name__} has no view for ExactAugmentedLagrangian; expected a NonlinearProgram"
            )
        if problem.inequality is not None:
            raise UnsupportedProblem("ExactAugmentedLagrangian takes equality constraints only; inequality was given")
        for name in ("lower", "upper"):
            for leaf in jax.tree.leaves(getattr(problem, name)):
                if concrete(leaf) and np.isfinite(np.asarray(leaf)).any():
                    raise UnsupportedProblem(f"ExactAugmentedLagrangian takes free variables only; {name} was given")

    def view(self, problem: Any) -> NonlinearView:
        """The problem as this method sees it."""
        self.admit(problem)
        rescale = self.rescale
        if rescale is None:
            n, m = (sum(leaf.size for leaf in jax.tree.leaves(part)) for part in problem.pair_shapes())
            rescale = n * m <= ROWS
        return NonlinearView.make(problem, rescale, rescale)

    def init(self, view: NonlinearView, start: Pair) -> State:
        """The first state from a pair in the view's units."""
        dtype = start.x.dtype
        number = lambda value: jnp.asarray(value, dtype)
        weights = Weights(number(self.feasible), number(self.stationary), number(self.delta), number(0))
        key, own = jax.random.split(jax.random.PRNGKey(self.seed))
        n, m = start.x.size, start.y.size
        vectors = jax.random.normal(own, (3, n + m), dtype)
        vectors = jnp.where((jnp.arange(n + m) < n) == jnp.array([[True], [False], [False]]), vectors, 0)
        sizes = Sizes(number(0), number(0), number(0), vectors)
        progress = Progress(number(jnp.inf), jnp.int32(0), jnp.asarray(False))
        return State(start, key, weights, sizes, progress, Effort.none())

    def parts(self, view: NonlinearView, state: State) -> Parts:
        """The row of the table: the functions that make the saddle step a Newton step."""

        def primal(x: Any, y: Any, memory: Memory) -> tuple[Any, Memory]:
            here = Linearised.at(view, Pair(x, y))
            count = jnp.where(state.work.gradients > 0, POWER[1], POWER[0])
            sizes = here.sizes(state.sizes, count)
            found = self._direction(here, state, sizes)
            weights, going = found.weights, found.accepted
            # Without a direction: where the rows are broken and the system has no solution, back to the rows by
            # Cauchy's step on |c|^2 / 2 (M has no lower bound there); else down along -grad M.
            broken = here.split(r := here.residual)[1]
            restoring = ~going & found.short & (l2(broken) > jnp.finfo(x.dtype).eps ** 0.25)
            keep = jnp.where(restoring, 0, 1).astype(x.dtype)
            merit = Merit(view, weights.feasible, weights.stationary, keep)
            slope = here.merit_slope(weights, keep)
            slope = jnp.where(restoring & (jnp.arange(r.size) >= x.size), 0, slope)
            bend = l2(here.split(here.product(slope))[1]) ** 2 * weights.feasible
            length = jnp.where(restoring, jnp.sum(slope**2) / jnp.where(bend > 0, bend, 1), 1)
            length = jnp.where(restoring, length, 1 / jnp.maximum(1, l2(slope)))
            direction = jnp.where(going, found.step, -length * slope)
            point = jnp.concatenate([x, y])
            no = jnp.asarray(False)
            stretch = (weights.shift > 0) | ~going
            trial = search(merit, point, merit.value(point), slope, direction, stretch, no, no)
            stuck = ~trial.done
            spent = Effort(1 + trial.tries, 1, found.products + 5 * count + 2, found.systems, found.short, ~going)
            work = jax.tree.map(lambda total, more: total + jnp.asarray(more, jnp.int32), state.work, spent)
            spot = Spot(trial.x[x.size :] - y, weights, sizes, stuck, work)
            return trial.x[: x.size], memory._replace(primal=spot)

        signal = lambda v, memory: (memory.primal.change, memory)
        return Parts(primal, lambda seen, _: view.violation(seen), view.move, 0, signal)

    def step(self, view: NonlinearView, state: State) -> tuple[State, Visit]:
        """One saddle step; the length of the move is in the signal."""
        one = jnp.ones((), state.pair.x.dtype)
        after, memory = saddle_step(self.parts(view, state), one, state.pair, Memory())
        spot: Spot = memory.primal
        progress = state.progress._replace(stuck=spot.stuck)
        key, _ = jax.random.split(state.key)
        return State(after, key, spot.weights, spot.sizes, progress, spot.work), Visit(state.pair, after)

    def block(self, view: NonlinearView, state: State, steps: Any) -> tuple[State, Visit]:
        """`step`: each is looked at, so `steps` is 1; a loop of one would compile the step twice."""
        return self.step(view, state)

    def pair(self, view: NonlinearView, state: State, visit: Visit) -> Pair:
        """The pair to return now."""
        return visit.after

    def check(self, view: NonlinearView, state: State, visit: Visit) -> State:
        """Itself: weights change where directions are looked for."""
        return state

    def judged(self, view: NonlinearView, state: State, visit: Visit, found: Optimality) -> tuple[State, Any]:
        """The state, and why a run that makes no progress ends; RUNNING if it does."""
        residuals, last = found.residuals, state.progress
        error = residuals.error
        eps = jnp.finfo(error.dtype).eps
        better = error < 0.9 * last.best
        progress = Progress(jnp.minimum(error, last.best), jnp.where(better, 0, last.stall + 1), last.stuck)
        still = progress.stuck | (progress.stall >= STALL)
        near = progress.best <= eps**0.25
        held = (residuals.primal > eps**0.25) & (found.proof.unmovable <= eps**0.4 * residuals.primal)
        unbounded = (found.objective < UNBOUNDED) & (residuals.primal <= 1e-6 * jnp.abs(found.objective))
        limits = (state.weights.feasible >= LARGEST) | (state.weights.stationary <= SMALLEST)
        status = jnp.int32(int(Status.RUNNING))
        for fact, name in (
            (progress.stuck, Status.NUMERICAL_ERROR),
            (still & limits, Status.PENALTY_LIMIT),
            (still & near, Status.PRECISION_LIMIT),
            (still & held, Status.LOCALLY_INFEASIBLE),
            (unbounded, Status.DIVERGED),
        ):
            status = jnp.where(fact, jnp.int32(int(name)), status)
        return state._replace(progress=progress), status

    def _direction(self, here: "Linearised", state: State, sizes: Sizes) -> "_Hunt":
        """A step z that the rules accept, with the weights that it took; or the last one tried."""
        r, size = here.residual, l2(here.residual)
        eps = jnp.finfo(r.dtype).eps
        # The largest shift gives a step of about x's size at most where there is no curvature.
        slope, point = l2(here.split(r)[0]), l2(state.pair.x)
        most = sizes.hessian + jnp.maximum(SHIFT, slope / jnp.maximum(1, point))

        def tolerance(z: Any, w: Weights, tight: Any) -> Any:
            rounding = 10 * eps * ((sizes.hessian + w.shift + sizes.jacobian) * l2(z) + size)
            wide = sizes.hessian + w.shift
            published = self.theta * w.delta * size / ((wide + sizes.jacobian) * inverse_size(sizes, w.shift))
            forced = jnp.minimum(self.forcing, jnp.sqrt(size)) * size
            ask = jnp.where(jnp.asarray(self.forcing) > 0, forced, published)
            return jnp.maximum(tight * ask, rounding)

        def body(hunt: _Hunt) -> _Hunt:
            w = hunt.weights
            shift = here.shift(w.shift)
            missing = -(hunt.image + shift * hunt.step + r)
            # Round by round, as refinement: what rounding allows is known when the size of z is.
            ask = jnp.maximum(tolerance(hunt.step, w, hunt.tight), eps**0.5 * l2(missing))
            key, own = jax.random.split(hunt.key)
            system = System(lambda z: here.product(z) + shift * z, here.primal, here.conditioned)
            found = self.linear.solve(system, missing, own, ask)
            z = hunt.step + found.step
            image = here.product(z)
            dx, dy = here.split(z)
            image_x, image_y = here.split(image)
            bend = jnp.sum(dx * image_x) - jnp.sum(dy * image_y) + w.shift * jnp.sum(dx**2)
            held = (sizes.hessian + w.shift) / jnp.maximum(sizes.least**2, eps**0.5) * jnp.sum(image_y**2)
            flat = (bend + held < CURVED * jnp.sum(dx**2)) | ~jnp.isfinite(bend)
            falls = jnp.sum(r * z) + jnp.sum(here.weighted(w) * image)
            steep = falls <= -0.5 * w.stationary * size**2
            left = found.residual
            solved = left <= tolerance(z, w, hunt.tight)
            more = ~solved & (left <= ask)
            # What a budget of products did not solve is judged as it is. A poor direction is laid to curvature or to
            # the weights only where it is accurate enough to show it, and solved for further before.
            short = ~solved & ~more
            clear = left <= CLEAR * size
            poor = ~more & (flat | (short & ~steep))
            accepted = steep & ~flat & ~more
            tighten = solved & ~clear & ~accepted
            bent = poor & ~tighten & (w.shift < most)
            adapt = solved & clear & ~flat & ~steep
            shifted = jnp.minimum(jnp.maximum(8 * w.shift, 0.1 * most), most)
            grown = w._replace(feasible=self.growth**2 * w.feasible, stationary=w.stationary / self.growth)
            bound = self._delta(grown, sizes)
            grown = grown._replace(delta=jnp.maximum(jnp.minimum(w.delta / self.growth**4, bound), FLOOR))
            limits = (grown.feasible > LARGEST) | (grown.stationary < SMALLEST)
            over = (adapt & limits) | (poor & ~bent & ~tighten)
            tight = jnp.where(tighten, 0.1, 1) * hunt.tight
            weights = jax.tree.map(lambda a, b: jnp.where(adapt & ~limits, a, b), grown, w)
            weights = weights._replace(shift=jnp.where(bent, shifted, weights.shift))
            clean = lambda v: jnp.where(bent, 0, v)
            return _Hunt(clean(z), clean(image), weights, key, hunt.products + found.products + 1, hunt.systems + 1,
                         tight.astype(r.dtype), short, accepted, over)  # fmt: skip

        def running(hunt: _Hunt) -> Any:
            return ~hunt.accepted & ~hunt.over & (hunt.systems < ROUNDS)

        w = state.weights
        w = w._replace(shift=jnp.where(w.shift / 8 < 1e-3 * most, 0, w.shift / 8))
        w = w._replace(delta=jnp.maximum(jnp.minimum(w.delta, self._delta(w, sizes)), FLOOR))
        zero, no = jnp.zeros_like(r), jnp.asarray(False)
        one = jnp.ones((), r.dtype)
        first = _Hunt(zero, zero, w, state.key, jnp.int32(0), jnp.int32(0), one, no, no, no)
        return lax.while_loop(running, body, first)

    def _delta(self, w: Weights, sizes: Sizes) -> Any:
        """The bound of delta under which every accurate enough direction is one of descent (their theory)."""
        wide = jnp.maximum(jnp.maximum(sizes.jacobian, sizes.hessian), 1)
        scale = (1 + w.feasible + w.stationary) * wide**2 * inverse_size(sizes, w.shift) ** 2
        return (0.5 - DECREASE) * w.stationary / scale


class _Hunt(NamedTuple):
    """The step so far, K at tau = 0 times it, weights, the key, costs, by what its tolerance is cut, how it stands."""

    step: Any
    image: Any
    weights: Weights
    key: Any
    products: Any
    systems: Any
    tight: Any
    short: Any
    accepted: Any
    over: Any
