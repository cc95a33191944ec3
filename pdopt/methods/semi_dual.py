"""Dual ascent for quadratic and k-sparse transport: theta = 0, an exact plan, potentials moved by L-BFGS.

    T' = argmin_T  L(T; y) + lambda/2 |T - centre|^2;      y' = y + H (marginals wanted - marginals of T')

`Dual` moves both potentials, `SemiDual` only f, against plans whose columns have their mass exactly.

Where k binds, the k-sparse columns that answer y are not unique, and picking one leaves the rows open however y is
chosen: the dual function has kinks. The proximal term picks the right mixture of them, and makes the dual smooth with
constant 1/lambda. At each check the centre moves to the plan (the proximal point method; Rockafellar 1976), so that
nothing of the term is left at the end. Lambda falls while the gap is larger than the marginal error, and rises where
the marginal error lags: small ones need few centres, large ones few steps a centre. A few hundred steps then do what
averaging the k-sparse plans of 20 000 subgradient steps does.

Not done here: unbalanced sides, a derivative of the plan.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from pdopt.errors import InvalidOption, require_range
from pdopt.problems.checks import concrete
from pdopt.problems.dual_view import dual
from pdopt.rules.quasi_newton import QuasiNewton
from pdopt.rules.saddle import Parts, saddle_step
from pdopt.types import Memory, Pair, Visit, record

FIRST = 0.1  # the first move of a potential, in typical costs
RANGE = 1e4  # lambda stays within this factor of the first one


class State(NamedTuple):
    """The pair, the search of the signal, and the proximal term."""

    pair: Pair
    memory: Memory
    centre: Any
    smoothing: Any
    unit: Any
    error: Any
    best: Any
    idle: Any


@record(static=("every", "patience"))
class SemiDual:
    """Ascent on the semi-dual, a function of f alone.

    Attributes:
        smoothing: the first lambda, in units of typical cost over total mass; 0 for none at all (then where k binds the
            marginal error does not fall). A problem without kinks (`Quadratic`) has none.
        signal: `QuasiNewton()`.
        every: steps between checks, >= 1.
        patience: checks without progress, near what the type can resolve, after which the status is PRECISION_LIMIT.

    Raises:
        InvalidOption: a setting outside its range.

    Example:
        >>> import pdopt
        >>> cost = jnp.array([[0.0, 1.0, 4.0], [1.0, 0.0, 1.0]])
        >>> problem = pdopt.Transport(cost, regulariser=pdopt.KSparse(1.0, 1), dtype=jnp.float32)
        >>> solution = pdopt.solve(problem, SemiDual(), tolerance=1e-4)
        >>> print(solution.x.matvec(jnp.ones(3)).round(3), f"{solution.certificate.plan_error:.2f}")
        [0.5 0.5] 0.33
    """

    smoothing: Any = 1.0
    signal: QuasiNewton = QuasiNewton()
    every: int = 30
    patience: int = 20
    semi = True

    def __post_init__(self) -> None:
        for name in ("every", "patience"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InvalidOption(f"{name} is {value!r}; expected an integer >= 1")
        if not isinstance(self.signal, QuasiNewton):
            raise InvalidOption(f"signal is {self.signal!r}; expected QuasiNewton()")
        if concrete(self.smoothing) is not None:
            require_range("smoothing", self.smoothing, 0.0)

    def admit(self, problem: Any) -> None:
        """Raise `UnsupportedProblem` for what has no dual view; before tracing."""
        dual(problem, self.semi)

    def view(self, problem: Any) -> Any:
        """The problem as this method sees it."""
        return dual(problem, self.semi)

    def parts(self, view: Any, centre: Any, smoothing: Any) -> Parts:
        """The row of the table: the functions that make the saddle step dual ascent along `H v`."""

        def primal(x: Any, y: Any, memory: Memory) -> tuple[Any, Memory]:
            return view.plan(y, centre, smoothing), memory._replace(primal=y)

        return Parts(primal, lambda seen, _: view.violation(seen), view.move, 0, self.signal)

    def init(self, view: Any, start: Pair) -> State:
        """The first state from a pair in the view's units."""
        dtype = view.problem.cost.dtype
        size = view.size()
        unit = (size / jnp.sum(view.problem.a)).astype(dtype)
        search = self.signal.init(start.y, FIRST * size)
        smoothing = (self.smoothing * unit).astype(dtype)
        far = jnp.full((), jnp.inf, dtype)
        return State(start, Memory(start.y, search), start.x, smoothing, unit, far, far, jnp.int32(0))

    def step(self, view: Any, state: State) -> tuple[State, Visit]:
        """One saddle step."""
        parts = self.parts(view, state.centre, state.smoothing)
        pair, memory = saddle_step(parts, jnp.ones_like(state.unit), state.pair, state.memory)
        # The plan is a function of the potentials: they alone say whether a step moved anything.
        return state._replace(pair=pair, memory=memory), Visit(Pair((), state.pair.y), Pair((), pair.y))

    def stalled(self, state: State) -> Any:
        """Whether nothing got better for `patience` checks, near what the type can resolve."""
        return state.idle >= self.patience

    def pair(self, view: Any, state: State, visit: Visit) -> Pair:
        """The latest plan, with the potentials that it answers."""
        return Pair(state.pair.x, visit.before.y)

    def check(self, view: Any, state: State, visit: Visit) -> State:
        """Move the centre to the plan, weigh the proximal term, count checks without progress."""
        found = view.optimality(self.pair(view, state, visit)).residuals
        floor = jnp.sqrt(jnp.finfo(found.primal.dtype).eps)
        progress = found.error < 0.9 * state.best
        near = state.best <= floor
        idle = jnp.where(progress | ~near, 0, state.idle + 1)
        before = state.error
        state = state._replace(idle=idle, best=jnp.minimum(state.best, found.error), error=found.primal)
        if not view.kinks:
            return state
        lags = (found.primal > 0.5 * before) & (found.primal > 4 * found.gap)
        factor = jnp.where(found.gap > found.primal, 0.5, jnp.where(lags, 2.0, 1.0))
        wanted, first = state.smoothing * factor, self.smoothing * state.unit
        smoothing = jnp.clip(wanted, first / RANGE, first * RANGE).astype(state.smoothing.dtype)
        search = self.signal.restart(state.memory.dual)
        memory = state.memory._replace(dual=search)
        return state._replace(centre=state.pair.x, smoothing=smoothing, memory=memory)


@record(static=("every", "patience"))
class Dual(SemiDual):
    """Ascent on the dual, a function of both potentials: cheaper steps, and more of them.

    Settings as in `SemiDual`.

    Example:
        >>> import pdopt
        >>> cost = jnp.array([[0.0, 1.0, 4.0], [1.0, 0.0, 1.0]])
        >>> problem = pdopt.Transport(cost, regulariser=pdopt.Quadratic(1.0), dtype=jnp.float32)
        >>> solution = pdopt.solve(problem, Dual(), tolerance=1e-4)
        >>> print(solution.x.matvec(jnp.ones(3)).round(3))
        [0.5 0.5]
    """

    semi = False
