"""LV-HBA: constrained bilevel programs by the proximal Lagrangian value function (Yao, Yu, Zeng, Zhang, ICLR 2024,
arXiv 2401.16164), in one loop and with gradients only.

With v of `problems/bilevel_view.py`, the program is `min F` over `(x, y) in C`, `z in Z`, `f - v <= 0`, and is
penalised, `F / c + f - v`. Two saddle steps of the core make an iteration. The inner pair seeks v's saddle point,

    theta' = P_Y(theta - eta (grad_y L(x, theta, lam) + (theta - y) / gamma1))
    lam'   = P_Z((lam + eta c(x, seen) + eta z / gamma2) / (1 + eta / gamma2)),     seen = theta' + t (theta' - theta)

(t = -1 as published, 0, 1: PDHG, or the extra-gradient wrapper), and the outer pair descends on what it says of v:

    (x, y)' = P_C((x, y) - alpha (grad F / c + grad f - grad v)),       z' = P_Z(z + beta (lam' - z) / gamma2)

The penalty either grows, `c (k+1)^p` (as published; the error falls like 1/c, hence like k^-p), or stands still for a
stage and is then multiplied; what the stages leave is smooth in 1/c and is extrapolated away (`rules/richardson.py`).
No multiplier is kept for `f - v <= 0`: its gradient vanishes at every feasible point, so none exists.

Not done here: stochastic gradients, lower levels that are not convex in y, a line search.
"""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from pdopt.errors import InvalidOption, UnsupportedProblem, require_range
from pdopt.geometry.checks import concrete
from pdopt.methods.projection import project
from pdopt.problems.bilevel import BilevelProgram, Levels, largest
from pdopt.problems.bilevel_view import BilevelView, Norms, require_affine
from pdopt.rules.richardson import richardson
from pdopt.rules.saddle import Parts, row, saddle_step
from pdopt.types import Memory, Pair, Solution, Visit, record

INNER = ("extragradient",)
MARKS = 3  # ends of earlier stages that the extrapolation sees
STILL = 4  # units of rounding by which a stage at rest may still move
REFRESH = 4  # power iterations at a check, on top of those before


@record
class Growing:
    """`c_k = first (k + 1)^power`, the published schedule.

    Attributes:
        first: c > 0.
        power: p in [0, 1/2), for which the paper proves its rate; 0 keeps c.

    Example:
        >>> print(Growing(2.0, 0.5).at(Clock(3, 0, 0)))
        4.0
    """

    first: Any = 1.0
    power: Any = 0.3

    def validate(self) -> None:
        """Raise `InvalidOption` outside the ranges."""
        require_range("first", self.first, 0.0, open_low=True)
        require_range("power", self.power, 0.0, 0.5)

    def at(self, clock: "Clock") -> Any:
        """The penalty of the next iteration."""
        return self.first * (clock.count + 1) ** self.power


@record
class Stages:
    """`c = first ratio^s`, s = 0, 1, ...; what the last four stages came to is extrapolated.

    A stage ends at the first check that finds it still (a step moves nothing but rounding), or after `steps`.

    Attributes:
        first: c of the first stage, > 0.
        ratio: > 1; a small one, as a stage that ends before it is still leaves what the next one has to mend.
        steps: iterations of a stage at most, >= 1.

    Example:
        >>> print(Stages(5.0, 2.0).at(Clock(9000, 3, 8000)))
        40.0
    """

    first: Any = 5.0
    ratio: Any = 1.5
    steps: Any = 3000

    def validate(self) -> None:
        """Raise `InvalidOption` outside the ranges."""
        require_range("first", self.first, 0.0, open_low=True)
        require_range("ratio", self.ratio, 1.0, open_low=True)
        require_range("steps", self.steps, 1)

    def at(self, clock: "Clock") -> Any:
        """The penalty of the next iteration."""
        return self.first * self.ratio**clock.stage


class Clock(NamedTuple):
    """Iterations so far, the stage, and the iterations at which it began; floating."""

    count: Any
    stage: Any
    began: Any


class Sizes(NamedTuple):
    """Step sizes of the outer points, the centre and the inner pair, and the norms that they come from."""

    alpha: Any
    beta: Any
    eta: Any
    norms: Norms


class State(NamedTuple):
    """Outer pair ((x, y), z), inner pair (theta, lam), multipliers of the projection, and ends of earlier stages."""

    outer: Pair
    inner: Pair
    shadow: Any
    clock: Clock
    sizes: Sizes
    marks: tuple[Pair, ...]


@record(static=("inner", "every"))
class LVHBA:
    """Single-loop, Hessian-free method for `BilevelProgram`.

    Attributes:
        inner: what the inner multipliers see: -1.0 the old point (as published), 0.0 the new one, 1.0 the extrapolated
            one (PDHG), or "extragradient" (two evaluations; any of these is the same saddle step).
        penalty: `Growing(first, power)` or `Stages(first, ratio, steps)`.
        gamma1, gamma2: > 0, the proximal weights of v.
        alpha, beta: step sizes of (x, y) and z, > 0; None takes eta, so that the outer pair is no faster than the inner
            one that it listens to, but at most `1 / (|F''| / c + 2 |f''| + 1 / gamma1)` and gamma2.
        eta: step size of the inner pair; None takes its bound, `0.9 / (|L_yy| + 1 / gamma1 + |c_y|)` by power
            iterations, and for the old point also `m / (m^2 + |c_y|^2)`, m the smaller of 1 / gamma1 and 1 / gamma2,
            above which that step need not contract. A larger one draws a warning.
        largest: r of Z = [0, r]; a multiplier of the (scaled) rows above it is cut.
        every: steps between checks, each of which solves one linear system of the lower level's size.

    float32 reaches residuals near 1e-3: the slope of `F / c` is lost where a step moves less than rounding.

    Raises:
        InvalidOption: a setting outside its range. UnsupportedProblem: another kind of problem. InvalidProblem: rows
        that are not affine where the program has no `project`.

    Example:
        >>> import pdopt
        >>> program = pdopt.BilevelProgram(
        ...     upper=lambda x, y: x**2 / 2 + y**2 / 2, lower=lambda x, y: (y - x) ** 2 / 2,
        ...     inequality=lambda x, y: y - x + 1, start=(0.0, 0.0), dtype=jnp.float32,
        ... )
        >>> solution = pdopt.solve(program, LVHBA(penalty=Stages(steps=400)), tolerance=1e-3)
        >>> print(solution.x.upper.round(2), solution.x.lower.round(2), solution.y.inequality.round(2))
        0.5 -0.5 1.0
    """

    inner: Any = 1.0
    penalty: Any = Growing()
    gamma1: Any = 2.0
    gamma2: Any = 1.0
    alpha: Any = None
    beta: Any = None
    eta: Any = None
    largest: Any = 1e6
    every: int = 100

    def __post_init__(self) -> None:
        if self.inner not in INNER and not (isinstance(self.inner, int | float) and self.inner >= -1):
            raise InvalidOption(f"inner is {self.inner!r}; expected a number >= -1 or 'extragradient'")
        if not isinstance(self.penalty, Growing | Stages):
            raise InvalidOption(f"penalty is {self.penalty!r}; expected Growing or Stages")
        if not isinstance(self.every, int) or self.every < 1:
            raise InvalidOption(f"every is {self.every!r}; expected an integer >= 1")
        if not concrete(self):
            return
        self.penalty.validate()
        for name in ("gamma1", "gamma2", "largest", "alpha", "beta", "eta"):
            if getattr(self, name) is not None:
                require_range(name, getattr(self, name), 0.0, open_low=True)

    @staticmethod
    def staged(**settings: Any) -> "LVHBA":
        """Stages of constant penalty with extrapolation: errors of 1e-5 where the growing penalty leaves 1e-2."""
        return LVHBA(**{"penalty": Stages(), **settings})

    def admit(self, problem: Any) -> None:
        """Look at concrete data before tracing: rows must be affine or have a `project`, eta within its bound."""
        _require_bilevel(problem, "LVHBA")
        if not concrete(problem):
            return
        require_affine(problem)
        if self.eta is not None and concrete(self.eta):
            bound = float(_bound(problem, self))
            if float(self.eta) > bound:
                warnings.warn(f"eta is {float(self.eta):g}, above its bound {bound:.3g}: the inner pair may diverge",
                              RuntimeWarning, stacklevel=4)  # fmt: skip

    def view(self, problem: Any) -> BilevelView:
        """The problem as this method sees it."""
        _require_bilevel(problem, "LVHBA")
        return BilevelView.make(problem, self.largest)

    def sizes(self, view: BilevelView, norms: Norms, penalty: Any) -> Sizes:
        """Step sizes that the norms allow, or the user's own."""
        dtype = norms.curvature.dtype
        eta = self.largest_eta(norms) if self.eta is None else self.eta
        free = 1 / (norms.upper / penalty + 2 * norms.lower + 1 / self.gamma1)
        alpha = jnp.minimum(free, eta) if self.alpha is None else self.alpha
        beta = jnp.minimum(eta, self.gamma2) if self.beta is None else self.beta
        alpha, beta, eta = (jnp.asarray(size, dtype) for size in (alpha, beta, eta))
        return Sizes(alpha, beta, eta, norms)

    def largest_eta(self, norms: Norms) -> Any:
        """The bound of `eta`."""
        bound = 0.9 / (norms.curvature + 1 / self.gamma1 + norms.rows)
        if self.inner != -1:
            return bound
        m = 1 / jnp.maximum(self.gamma1, self.gamma2)
        return jnp.minimum(bound, m / (m**2 + norms.rows**2))

    def init(self, view: BilevelView, start: Pair) -> State:
        """The first state from a pair in the view's units: theta = y, lam = z."""
        dtype = start.y.dtype
        shadow = jnp.zeros(view.rows.A.shape[0] if view.kind == "polyhedron" else 0, dtype)
        clock = Clock(*(jnp.zeros((), dtype) for _ in Clock._fields))
        point, shadow = self.project(view, start.x, shadow)
        outer = Pair(point, start.y)
        sizes = self.sizes(view, view.norms(outer), self.penalty.at(clock))
        missing = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), outer)
        marks = (missing,) * MARKS if isinstance(self.penalty, Stages) else ()
        return State(outer, Pair(point.lower, start.y), shadow, clock, sizes, marks)

    def project(self, view: BilevelView, point: Levels, shadow: Any) -> tuple[Levels, Any]:
        """The projection on C and its multipliers, which the next one begins from."""
        program = view.program
        if view.kind == "user":
            return Levels(*program.project(*point, *program.args)), shadow  # pyright: ignore[reportOptionalCall]
        if view.kind == "free":
            return Levels(program.X.project(point.upper), program.Y.project(point.lower)), shadow
        if view.coupled:
            flat, shaped = ravel_pytree(point)
            found = project(view.rows, flat, shadow)
            return shaped(found.x), found.y
        flat, shaped = ravel_pytree(point.lower)
        found = project(view.rows, flat, shadow)
        return Levels(program.X.project(point.upper), shaped(found.x)), found.y

    def inner_step(self, view: BilevelView, outer: Pair, inner: Pair, eta: Any) -> Pair:
        """One step of (theta, lam) towards v's saddle point at the outer pair."""
        (x, y), z = outer

        def primal(theta: Any, lam: Any, at: Any) -> Any:
            slope = jax.grad(view.lagrangian, argnums=1)(x, at, lam)
            lower = lambda th, d, a, c: th - eta * (d + (a - c) / self.gamma1)
            return view.program.Y.project(jax.tree.map(lower, theta, slope, at, y))

        move = lambda lam, v, step: view.anchored(lam, v, step, z, self.gamma2)
        violation = lambda seen: view.violation(x, seen)
        if self.inner != "extragradient":
            parts = row(lambda theta, lam: primal(theta, lam, theta), violation, move, self.inner)
            return saddle_step(parts, eta, inner)[0]
        # Korpelevich 1976: a step from the same pair, with slopes and violation of where a first step would lead.
        parts = row(lambda theta, lam: primal(theta, lam, theta), violation, move, -1)
        ahead, _ = saddle_step(parts, eta, inner)
        parts = row(lambda theta, _: primal(theta, ahead.y, ahead.x), lambda _: violation(ahead.x), move, -1)
        return saddle_step(parts, eta, inner)[0]

    def outer_parts(self, view: BilevelView, inner: Pair, penalty: Any, sizes: Sizes) -> Parts:
        """The row of the table for ((x, y), z): a projected gradient step, and z towards lam."""

        def primal(point: Levels, z: Any, memory: Memory) -> tuple[Levels, Memory]:
            slopes = view.slopes(point, inner, penalty, self.gamma1)
            target = jax.tree.map(lambda u, d: u - sizes.alpha * d, point, slopes)
            nearest, shadow = self.project(view, target, memory.primal)
            return nearest, memory._replace(primal=shadow)

        return Parts(primal, lambda _, __: (), lambda z, _, step: view.hold(z, (inner.y - z) / self.gamma2, step), 0)

    def step(self, view: BilevelView, state: State) -> tuple[State, Visit]:
        """One iteration: the inner saddle step, then the outer one."""
        sizes, penalty = state.sizes, self.penalty.at(state.clock)
        if view.kind == "user":  # rows may bend, and with them what a step may be
            around = state.inner._replace(x=state.outer.x._replace(lower=state.inner.x))
            sizes = self.sizes(view, view.norms(around, sizes.norms, 1), penalty)
        inner = self.inner_step(view, state.outer, state.inner, sizes.eta)
        parts = self.outer_parts(view, inner, penalty, sizes)
        outer, memory = saddle_step(parts, sizes.beta, state.outer, Memory(state.shadow))
        clock = state.clock._replace(count=state.clock.count + 1)
        # The clock is part of the visit: a stage that has come to rest is no end of the run.
        visit = Visit(Pair((state.outer.x, state.clock), state.inner.y), Pair((outer.x, clock), inner.y))
        return State(outer, inner, memory.primal, clock, sizes, state.marks), visit

    def pair(self, view: BilevelView, state: State, visit: Visit) -> Pair:
        """(x, y) with the inner multipliers; at the end of a stage the extrapolated one, put back into C and Z."""
        plain = _shown(visit.after)
        if not isinstance(self.penalty, Stages):
            return plain
        found = richardson((*state.marks, plain), self.penalty.ratio)
        point, _ = self.project(view, found.point.x, state.shadow)
        taken = self._ended(state, visit) & (found.order > 0)
        inside = view.inside(found.point._replace(x=point))
        return jax.tree.map(lambda new, old: jnp.where(taken, new, old), inside, plain)

    def _ended(self, state: State, visit: Visit) -> Any:
        """Whether the stage is over."""
        before, after = _shown(visit.before), _shown(visit.after)
        moved = largest(jax.tree.map(jnp.subtract, after, before))
        still = moved <= STILL * jnp.finfo(moved.dtype).eps * (1 + largest(after))
        return still | (state.clock.count - state.clock.began >= self.penalty.steps)

    def direction(self, view: BilevelView, state: State, visit: Visit) -> Pair:
        """Where we are, and where the multipliers drift: with rows that cannot be met, along a ray that proves it."""
        drift = visit.after.y - visit.before.y
        if view.kind == "polyhedron":  # the projection on an empty set has multipliers that are such a ray themselves
            unmet = largest(state.shadow) > 1 / jnp.sqrt(jnp.finfo(drift.dtype).eps)
            drift = jnp.where(unmet, state.shadow, drift)
        return Pair(_shown(visit.after).x, drift)

    def check(self, view: BilevelView, state: State, visit: Visit) -> State:
        """Refresh the norms and with them the step sizes; at the end of a stage remember where it led."""
        norms = view.norms(Pair(state.outer.x, state.inner.y), state.sizes.norms, REFRESH)
        clock, marks = state.clock, state.marks
        if isinstance(self.penalty, Stages):
            ended = self._ended(state, visit)
            later = (clock._replace(stage=clock.stage + 1, began=clock.count), (*marks[1:], _shown(visit.after)))
            clock, marks = jax.tree.map(lambda new, old: jnp.where(ended, new, old), later, (clock, marks))
        return state._replace(sizes=self.sizes(view, norms, self.penalty.at(clock)), clock=clock, marks=marks)

    def residual(self, problem: BilevelProgram, pair: Pair | Solution, penalty: Any, *, steps: int = 20_000) -> Any:
        """The paper's measure at a pair: `dist(0, grad F/c + grad f - grad v + N_{C x Z}) + |max(f - v, 0)|`.

        The distance is that of the projected gradient step, `|u - P(u - alpha d)| / alpha`, equal to it in the limit of
        small steps. v is found by up to `steps` inner steps from the pair. In the units of the scaled rows.
        """
        view = self.view(problem)
        outer = view.into(pair.pair if isinstance(pair, Solution) else pair)
        sizes = self.sizes(view, view.norms(outer), jnp.asarray(penalty, outer.y.dtype))
        floor = 10 * jnp.finfo(outer.y.dtype).eps

        def moving(carry: tuple[Pair, Any, Any]) -> Any:
            inner, moved, count = carry
            return (moved > floor * (1 + largest(inner))) & (count < steps)

        def body(carry: tuple[Pair, Any, Any]) -> tuple[Pair, Any, Any]:
            before, _, count = carry
            after = self.inner_step(view, outer, before, sizes.eta)
            return after, largest(jax.tree.map(jnp.subtract, after, before)), count + 1

        first = (Pair(outer.x.lower, outer.y), jnp.asarray(jnp.inf, outer.y.dtype), jnp.int32(0))
        inner, _, _ = lax.while_loop(moving, body, first)
        shadow = jnp.zeros(view.rows.A.shape[0] if view.kind == "polyhedron" else 0, outer.y.dtype)
        after, _ = saddle_step(self.outer_parts(view, inner, penalty, sizes), sizes.beta, outer, Memory(shadow))
        squares = [
            jnp.sum(((a - b) / step) ** 2)
            for half, step in ((0, sizes.alpha), (1, sizes.beta))
            for a, b in zip(jax.tree.leaves(after[half]), jax.tree.leaves(outer[half]))
        ]
        gap = view.gap(outer.x, outer.y, inner, (self.gamma1, self.gamma2))
        return jnp.sqrt(sum(squares)) + jnp.maximum(gap, 0)


def _shown(side: Pair) -> Pair:
    """The pair of a visit, without the clock."""
    return Pair(side.x[0], side.y)


@jax.jit
def _bound(problem: BilevelProgram, method: LVHBA) -> Any:
    view = method.view(problem)
    return method.largest_eta(view.norms(view.start()))


def _require_bilevel(problem: Any, method: str) -> None:
    if not isinstance(problem, BilevelProgram):
        raise UnsupportedProblem(f"{method} solves a BilevelProgram; got {type(problem).__name__}")
