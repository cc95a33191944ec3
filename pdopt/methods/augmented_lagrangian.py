"""The method of multipliers (Hestenes 1969, Powell 1969; Rockafellar 1974): dual ascent on a penalised Lagrangian.

    x' = argmin_x f(x) + penalty(y, v(x), rho);     y' = move(y, v(x'), rho)         (theta = 0, step = penalty)

The penalty is the Moreau envelope of the move, whose gradient in v is the moved multiplier. So the primal half is a
minimiser against the multipliers that the dual half is about to take, `offer(y) = move(y, v(x'), rho)`: after each step
`grad f(x') + <y', v'(x')> = 0` holds and only the violation is left to shrink. For equalities it is

    x' = argmin_x f(x) + <y, c(x)> + rho |c(x)|^2 / 2;     y' = y + rho c(x')

which is dual ascent on `f + rho |c|^2 / 2` with step rho, and proximal point on the dual with step rho: every rho > 0
converges, with the factor `1 / (1 + rho sigma)` for a quadratic program, sigma the smallest eigenvalue of `A Q^-1 A'`
that is not 0. A larger penalty means fewer steps and a worse conditioned inner problem.

A quadratic program with equality rows has an exact minimiser. A nonlinear program has an inner one (`methods/inner.py`)
which stops at the projected gradient that the rule of `rules/penalty.py` asks for. Near a solution steps are
*polished*: one minimisation of the model

    min over dx in the box   <grad f, dx> + <dx, H(y) dx> / 2 + penalty(y, v + J dx, r),       r >= eps^-1/4

replaces the inner one, and the move sees the linearised violation: `y' = move(y, v + J dx, r)`, the same saddle step.
On the rows that it leaves active this is a Newton step on the optimality conditions,

    [ H   J' ] [ dx ]     [ grad_x L ]
    [ J  -1/r] [ dy ] = - [ v        ]

whose corner -1/r keeps it solvable when constraints are dependent (stabilised sequential quadratic programming: Wright
1998, Fernandez, Solodov 2010). A polished pair is kept only where its largest residual shrank, else the last pair is
taken back and the plain steps go on.

Not done here: a penalty for each row, a trust region on polished steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pdopt.errors import InvalidOption, require_range
from pdopt.geometry.checks import concrete
from pdopt.methods.inner import ProjectedNewton, Work
from pdopt.methods.piecewise_newton import PiecewiseNewton
from pdopt.problems.nonlinear import NonlinearProgram
from pdopt.problems.views import constrained, require_augmented_minimiser
from pdopt.rules.penalty import Schedule, algencan
from pdopt.rules.saddle import Parts, row, saddle_step
from pdopt.types import Memory, Optimality, Pair, Status, Visit, record

GATE = 1e-1  # a residual from which polished steps are tried; each must shrink it
PATIENCE = 3  # checks in a row that must agree before the penalty or infeasibility ends a run
STALL = 12  # checks without a better pair, near the precision of the type, that end a run
FEASIBLE = 1e-6  # a violation of this share of |x| is small for its size
RUNAWAY = 1e8  # an x that grew by this in one minimisation ran away
WIDTH = 32  # members that a CPU takes at a time: the slowest of a group keeps the others waiting
SHORT, STILL, LEAST = 0.1, 1e-3, 1e-3  # of the size of y, which is at least LEAST: steps after which it is settled
UNBOUNDED = -1e12  # an objective below this, at a point that is feasible for its size, is taken for unbounded


class Progress(NamedTuple):
    """What the judgements so far say: the last error and the best, and for how many checks nothing got better.

    `gate` is the error at which the next polished step is tried, `plain` how many steps in a row were not polished;
    `slow` counts checks in a row that raised the penalty; `moved` is how far the last step moved the multipliers.
    """

    error: Any
    best: Any
    gate: Any
    plain: Any
    slow: Any
    stall: Any
    moved: Any


class State(NamedTuple):
    """The pair, the schedule of the penalty, V of the last step, the limit of rho, whether to polish next, costs."""

    pair: Pair
    schedule: Schedule
    broken: Any
    limit: Any
    polish: Any
    progress: Progress
    work: Any


class Spot(NamedTuple):
    """What the primal half leaves for the dual one: where the violation is taken, along which change; `lost`; the cost.

    `lost`: the penalised Lagrangian fell without end off the constraints (HS56): x stays, rho was too small.
    """

    base: Any
    change: Any
    lost: Any
    work: Any


@record(static=("every", "rule"))
class AugmentedLagrangian:
    """Method of multipliers, with an exact inner minimiser where the problem has one, else with `inner`.

    Attributes:
        penalty: first rho, > 0; None takes the size of the objective against that of the constraints (the view's
            `stiffness`).
        growth: rho is multiplied by this at a check where the violation did not shrink enough; >= 1, 1 keeps rho.
        shrink: in (0, 1): the share of the last check's violation that counts as enough (Conn, Gould, Toint 1991 and
            ALGENCAN: 0.25 to 0.5).
        largest: rho stops growing at this multiple of the first one, >= 1; None: 1e6 with an exact minimiser; with an
            inner one rho stops at 1e12, and the run soon after with PENALTY_LIMIT.
        every: steps between checks, >= 1; a step solves a linear system at least, so each is looked at.
        inner: minimiser over a box: `ProjectedNewton()`, `ProjectedNewtonCG()`, `ProjectedLBFGS()`; for quadratic
            programs with inequality rows or bounds `PiecewiseNewton()`.
        rule: `algencan` or `nocedal_wright` of `pdopt.rules.penalty`, or a function like them.

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
    largest: Any = None
    every: int = 1
    inner: Any = ProjectedNewton()
    rule: Callable[..., Schedule] = algencan

    def __post_init__(self) -> None:
        if not isinstance(self.every, int) or self.every < 1:
            raise InvalidOption(f"every is {self.every!r}; expected an integer >= 1")
        if not callable(self.rule):
            raise InvalidOption(f"rule is {self.rule!r}; expected algencan, nocedal_wright or a function like them")
        if not hasattr(self.inner, "minimise") and not isinstance(self.inner, PiecewiseNewton):
            raise InvalidOption(f"inner is {self.inner!r}; expected a minimiser such as ProjectedNewton()")
        if not concrete(self):
            return
        for name in ("penalty", "largest"):
            if getattr(self, name) is not None:
                require_range(name, getattr(self, name), 1.0 if name == "largest" else 0.0, open_low=name == "penalty")
        require_range("growth", self.growth, 1.0)
        require_range("shrink", self.shrink, 0.0, 1.0, open_low=True)

    def admit(self, problem: Any) -> None:
        """Raise `UnsupportedProblem` for data without an augmented minimiser; before tracing."""
        if isinstance(self.inner, PiecewiseNewton):
            self.inner.admit(problem)
        else:
            require_augmented_minimiser(problem)

    def view(self, problem: Any) -> Any:
        """The problem as this method sees it."""
        return self.inner.view(problem) if isinstance(self.inner, PiecewiseNewton) else constrained(problem)

    def width(self, problem: Any) -> int | None:
        """Members of a `vmap` that a CPU takes at a time: few where each member has Newton steps of its own number."""
        return WIDTH if isinstance(problem, NonlinearProgram) else None

    def init(self, view: Any, start: Pair) -> State:
        """The first state from a pair in the view's units."""
        dtype = jnp.result_type(*jax.tree.leaves(start))
        number = lambda value: jnp.asarray(value, dtype)
        infinite = number(jnp.inf)
        first = number(view.stiffness(start.x) if self.penalty is None else self.penalty)
        exact = hasattr(view, "augmented_minimiser")
        if self.largest is None:
            limit = first * getattr(view, "reach", 1e6) if exact else number(1e12)
        else:
            limit = first * self.largest
        # An infinite eta: the first step moves the multipliers under either rule.
        schedule = Schedule(first, infinite, infinite, number(0.1))
        progress = Progress(infinite, infinite, number(GATE), jnp.int32(0), jnp.int32(0), jnp.int32(0), infinite)
        return State(start, schedule, infinite, limit, jnp.asarray(False), progress, Work.none())

    def parts(self, view: Any, state: State) -> Parts:
        """The row of the table: the functions that make the saddle step the method of multipliers."""
        rho = self._penalty(state)
        if hasattr(view, "around"):
            # Both halves see the rows from x: what is left of them is small, and so is rho times its rounding.
            near = view.around(state.pair.x)

            def shorten(x: Any, y: Any, memory: Memory) -> tuple[Any, Memory]:
                after, change = near.augmented_minimiser(y, rho, x)
                return after, memory._replace(primal=change)

            return Parts(shorten, lambda x, change: -change, near.move, 0)
        if hasattr(view, "augmented_minimiser"):
            return row(lambda x, y: view.augmented_minimiser(y, rho), view.violation, view.move, theta=0)
        polish = state.polish
        floor = jnp.finfo(rho.dtype).eps ** (2 / 3)

        def primal(x: Any, y: Any, memory: Memory) -> tuple[Any, Memory]:
            model = view.model(y, rho, polish)
            found = self.inner.minimise(model, x, jnp.maximum(state.schedule.omega, floor), polish)
            # A polished step shows the multipliers v(x) + J dx, any other v(x').
            lost = ~polish & self._lost(view, x, found.x)
            after = jnp.where(lost, x, found.x)
            spot = Spot(jnp.where(polish, x, after), jnp.where(polish, after - x, 0), lost, found.work)
            return after, memory._replace(primal=spot)

        def violation(x: Any, spot: Spot) -> Any:
            value, change = jax.jvp(view.violation, (spot.base,), (spot.change,))
            return value + change

        def signal(v: Any, memory: Memory) -> tuple[Any, Memory]:
            broken = jnp.max(jnp.abs(jnp.where(view.equalities, v, jnp.maximum(v, -state.pair.y / rho))), initial=0)
            broken = jnp.where(memory.primal.lost, jnp.finfo(rho.dtype).max, broken)
            waits = memory.primal.lost | (~polish & (broken > state.schedule.eta))
            return jnp.where(waits, 0, v), memory._replace(dual=broken)

        return Parts(primal, violation, view.move, 0, signal)

    def step(self, view: Any, state: State) -> tuple[State, Visit]:
        """One saddle step, whose dual step size is the penalty."""
        after, memory = saddle_step(self.parts(view, state), self._penalty(state), state.pair, Memory())
        visit = Visit(state.pair, after)
        if not isinstance(memory.primal, Spot):
            moved = optax.tree.sub(after.y, state.pair.y)
            broken = jnp.max(jnp.abs(moved), initial=0) / state.schedule.penalty
            return state._replace(pair=after, broken=broken), visit
        work = jax.tree.map(jnp.add, state.work, memory.primal.work)
        # The move, and the judgement after it, look at f and v once more each, the latter with a gradient.
        work = work._replace(values=work.values + 2, gradients=work.gradients + 1)
        return state._replace(pair=after, broken=memory.dual, work=work), visit

    def pair(self, view: Any, state: State, visit: Visit) -> Pair:
        """The pair to return now."""
        return visit.after

    def direction(self, view: Any, state: State, visit: Visit) -> Pair:
        """Where the iterates drift: when no feasible point exists, y grows along a ray that proves it."""
        return optax.tree.sub(visit.after, visit.before)

    def check(self, view: Any, state: State, visit: Visit) -> State:
        """The rule's next schedule, from the violation `|y' - y| / rho` of the last step."""
        after = self.rule(state.schedule, state.broken, self.growth, self.shrink)
        # A violation at its rounding does not shrink, and no penalty would make it.
        exact = state.broken <= 100 * jnp.finfo(state.limit.dtype).eps
        after = after._replace(
            penalty=jnp.where(exact, state.schedule.penalty, jnp.minimum(after.penalty, state.limit))
        )
        after = jax.tree.map(lambda new, old: new.astype(old.dtype), after, state.schedule)
        return state._replace(schedule=after)

    def trusted(self, state: State, visit: Visit) -> Any:
        """Whether the multipliers of quadratic pieces have settled.

        `f(x) - D(y)` is `y'(A x - b)`: it bounds how far the objective is off only where y is near its limit. On LISWET
        all residuals are below 1e-4 where y is 1 of 3e6 and the objective a fifth off. Settled: the step was short for
        y, and half of the last one, which it is not where a larger penalty only drives y on.
        """
        if not isinstance(self.inner, PiecewiseNewton):
            return jnp.asarray(True)
        size, moved = jnp.max(jnp.abs(visit.after.y), initial=LEAST), _moved(visit)
        shrinks = moved <= 0.5 * state.progress.moved
        return (moved <= SHORT * size) & shrinks | (moved <= STILL * size)

    def judged(self, view: Any, state: State, visit: Visit, found: Optimality) -> tuple[State, Any]:
        """`check`, and with an inner minimiser: polish next, take a polished step back, or end the run."""
        running = jnp.int32(int(Status.RUNNING))
        if hasattr(view, "augmented_minimiser"):
            after = self.check(view, state, visit)
            after = after._replace(progress=after.progress._replace(moved=_moved(visit)))
            return self._ended(state, after, found) if hasattr(view, "around") else (after, running)
        error, last = found.residuals.error, state.progress
        plain = ~state.polish
        shrank = error < last.error
        kept = optax.tree.where(plain | shrank, visit.after, visit.before)
        outer = self.check(view, state, visit)
        raised = outer.schedule.penalty > state.schedule.penalty
        at_limit = outer.schedule.penalty >= state.limit
        schedule = optax.tree.where(plain, outer.schedule, state.schedule)
        error = jnp.where(plain | shrank, error, last.error)
        # A polished step that did not halve the error gives way to plain ones until that error is a tenth. Where they
        # do not get there, but x is near, one is tried now and then: it may be the multipliers that are far.
        gate = jnp.where(plain | (found.residuals.error <= 0.5 * last.error), last.gate, 0.1 * error)
        count = jnp.where(plain, last.plain + 1, 0)
        again = (count >= PATIENCE) & (found.residuals.primal <= GATE)
        polish = ((error <= gate) | again) & self.inner.polishes
        better = error < 0.9 * last.best
        progress = Progress(
            error,
            jnp.minimum(error, last.best),
            gate,
            count,
            jnp.where(plain & (raised | at_limit), last.slow + 1, jnp.where(plain, 0, last.slow)),
            jnp.where(better, 0, last.stall + 1),
            last.moved,
        )
        state = state._replace(pair=kept, schedule=schedule, polish=polish, progress=progress)
        return state, self._own(state, found, at_limit & plain)

    def _ended(self, before: State, after: State, found: Optimality) -> tuple[State, Any]:
        """PRECISION_LIMIT or PENALTY_LIMIT where the largest rho brought nothing better for long, or RUNNING."""
        error, last = found.residuals.error, before.progress
        # Rows that hold better than the slopes are held well enough: a larger rho makes the slopes round more.
        enough = found.residuals.primal <= 0.1 * found.residuals.dual
        rho = jnp.where(enough, before.schedule.penalty, after.schedule.penalty)
        stall = jnp.where(error < 0.9 * last.best, 0, last.stall + 1)
        progress = after.progress._replace(error=error, best=jnp.minimum(error, last.best), stall=stall)
        near = progress.best <= jnp.finfo(error.dtype).eps ** 0.25
        name = jnp.where(near, int(Status.PRECISION_LIMIT), int(Status.PENALTY_LIMIT))
        stuck = (stall >= STALL) & ((rho >= after.limit) | enough)
        status = jnp.where(stuck, name, int(Status.RUNNING)).astype(jnp.int32)
        return after._replace(schedule=after.schedule._replace(penalty=rho), progress=progress), status

    def _own(self, state: State, found: Optimality, at_limit: Any) -> Any:
        """LOCALLY_INFEASIBLE, PENALTY_LIMIT, PRECISION_LIMIT, DIVERGED, or RUNNING."""
        progress, residuals = state.progress, found.residuals
        eps = jnp.finfo(residuals.error.dtype).eps
        patient = progress.slow >= PATIENCE
        near = progress.best <= eps**0.25
        stuck = (residuals.primal > eps**0.25) & (found.proof.unmovable <= eps**0.4 * residuals.primal)
        unbounded = (found.objective < UNBOUNDED) & (residuals.primal <= 1e-6 * jnp.abs(found.objective))
        status = jnp.int32(int(Status.RUNNING))
        for fact, name in (
            (near & (progress.stall >= STALL), Status.PRECISION_LIMIT),
            (at_limit & patient, Status.PENALTY_LIMIT),
            (patient & stuck, Status.LOCALLY_INFEASIBLE),
            (unbounded, Status.DIVERGED),
        ):
            status = jnp.where(fact, jnp.int32(int(name)), status)
        return status

    def _lost(self, view: Any, before: Any, after: Any) -> Any:
        """Whether x ran away, to where it breaks the constraints for its size; unbounded problems stay on them."""
        far, near = (jnp.max(jnp.abs(x), initial=1) for x in (after, before))
        v = view.violation(after)
        off = jnp.max(jnp.where(view.equalities, jnp.abs(v), jnp.maximum(v, 0)), initial=0)
        return (far > RUNAWAY * near) & ~(off <= FEASIBLE * far)

    def _penalty(self, state: State) -> Any:
        """rho of the next step: the schedule's, and at least `eps^-1/4` for a polished one.

        A polished step shrinks the error of y by about 1/r and adds the rounding of v times r.
        """
        rho = state.schedule.penalty
        return jnp.where(state.polish, jnp.maximum(rho, jnp.finfo(rho.dtype).eps ** -0.25), rho).astype(rho.dtype)


def _moved(visit: Visit) -> Any:
    """How far the step moved the multipliers, at most."""
    return jnp.max(jnp.abs(visit.after.y - visit.before.y), initial=0)
