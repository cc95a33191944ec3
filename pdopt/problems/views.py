"""Problems in the form that methods consume: a view is data plus pure verbs, never a closure.

`Saddle`: `min_x max_y f(x) + <v(x), y> - h(y)` with an affine violation `v`: what PDHG and mirror descent need.
`Mirrored`: a saddle view whose two sides also move by geometry, for mirror descent.
`Constrained`: `min f(x)` subject to constraints held by a move, with the two inner minimisers of dual ascent and of the
augmented Lagrangian. A view carries pairs in (`into`) and out (`back`) of its own units.

`saddle`, `mirrored` and `constrained` give a problem's views; those of games and quadratic programs are written in
`game_view.py` and `quadratic_view.py`.
"""

from functools import singledispatch
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jax import lax

from pdopt.errors import InvalidOption, UnsupportedProblem
from pdopt.geometry.balls import Simplex
from pdopt.geometry.entropic import Entropic
from pdopt.geometry.moves import Euclidean, Interval, Move
from pdopt.operators.base import Order, back, put
from pdopt.operators.laid import Laid
from pdopt.operators.norms import POWER_ITERATIONS, spectral_norm
from pdopt.operators.scaling import Scaling, equilibrate
from pdopt.operators.sparse import Sparse
from pdopt.operators.sums import Change, squared
from pdopt.problems.conic import ConicProgram
from pdopt.problems.conic_saddle import ConicSaddle
from pdopt.problems.game import MatrixGame
from pdopt.problems.game_view import GameSaddle
from pdopt.problems.linear import LinearProgram
from pdopt.problems.nonlinear import NonlinearProgram
from pdopt.problems.nonlinear_view import NonlinearView
from pdopt.problems.quadratic import QuadraticProgram
from pdopt.problems.quadratic_saddle import QuadraticSaddle
from pdopt.problems.quadratic_view import QuadraticConstrained, require_equalities, require_strictly_convex
from pdopt.runtime.apart import apart
from pdopt.types import Pair, record

LARGE = 2**16  # nonzeros from which a judge's products take the view's layout


@runtime_checkable
class Saddle(Protocol):
    """What a first-order saddle method sees.

    `prox(v, step)` is the prox of the nonsmooth part of f, `gradient(x, y)` the gradient in x of the smooth part of f
    plus that of `<v(x), y>`, `violation(x)` the affine v, `move(y, v, step)` the dual half's move. `norm(limit)` is
    the spectral norm of v's linear part after at most that many power iterations, `balance` the first primal weight.
    Optional: `judging(problem)`, the problem itself with products that the view has prepared.
    """

    def start(self) -> Pair: ...

    def into(self, pair: Pair) -> Pair: ...

    def back(self, pair: Pair) -> Pair: ...

    def prox(self, v: Any, step: Any) -> Any: ...

    def gradient(self, x: Any, y: Any) -> Any: ...

    def violation(self, x: Any) -> Any: ...

    def move(self, y: Any, v: Any, step: Any) -> Any: ...

    def norm(self, limit: int = POWER_ITERATIONS) -> Any: ...

    balance: Any


@runtime_checkable
class Mirrored(Saddle, Protocol):
    """A saddle view whose sides are moved by geometry (Euclidean or entropic).

    `descend(x, gradient, step)` is the primal mirror step, `best(y)` an exact argmin over x of `f(x) + <v(x), y>`;
    `move` is the dual mirror step, and `norm()` is taken in the norms in which the two divergences are 1-strongly
    convex.
    """

    def descend(self, x: Any, gradient: Any, step: Any) -> Any: ...

    def best(self, y: Any) -> Any: ...


@runtime_checkable
class Constrained(Protocol):
    """What the methods of multipliers see: `min f(x)` with violation `v(x)`, multipliers moved by `move`.

    `minimiser(y)` is the argmin over x of the Lagrangian `f(x) + <v(x), y>`, `augmented_minimiser(y, rho)` that of
    `augmented(x, y, rho) = f(x) + penalty(y, v(x), rho)`, the penalty being the Moreau envelope of the move.
    `smoothness()` is the Lipschitz constant of the dual gradient `v(minimiser(y))`, `stiffness(x)` a first
    penalty at x.
    """

    def start(self) -> Pair: ...

    def into(self, pair: Pair) -> Pair: ...

    def back(self, pair: Pair) -> Pair: ...

    def objective(self, x: Any) -> Any: ...

    def violation(self, x: Any) -> Any: ...

    def move(self, y: Any, v: Any, step: Any) -> Any: ...

    def minimiser(self, y: Any) -> Any: ...

    def augmented(self, x: Any, y: Any, rho: Any) -> Any: ...

    def augmented_minimiser(self, y: Any, rho: Any) -> Any: ...

    def smoothness(self) -> Any: ...

    def stiffness(self, x: Any = None) -> Any: ...


@record
class LinearSaddle:
    """A linear program scaled, in its operator's favourite order of rows and columns.

    `A_s = D^-1 A E^-1`, `c_s = s_o E^-1 c`, `rl_s = s_b D^-1 rl`, `l_s = s_b E l`; a pair comes back as
    `x = E^-1 x_s / s_b`, `y = D^-1 y_s / s_o` (linear spec, section 2).

    Attributes:
        operator: the violation's `-A_s` laid out for many products; entries: the same in the user's order, for few.
        c, lower, upper: `(n,)`; rows: the dual move that holds `row_lower <= A_s x <= row_upper`.
        D, E: `(m,)` and `(n,)`; bound, objective: the scalars s_b, s_o.
        balance: the first primal weight, 1 with bound-objective scaling, else `|c_s| / |b_s|`.
        row_order, column_order: the operator's orders, or None.
    """

    operator: Any
    entries: Any
    c: Any
    lower: Any
    upper: Any
    rows: Interval
    D: Any
    E: Any
    bound: Any
    objective: Any
    balance: Any
    row_order: Order | None = None
    column_order: Order | None = None

    def start(self) -> Pair:
        """The point of the box nearest to 0, and no multipliers."""
        return Pair(jnp.clip(jnp.zeros_like(self.c), self.lower, self.upper), jnp.zeros_like(self.D))

    def carried(self, pair: Pair) -> Pair:
        """A pair in the user's units, scaled."""
        x = self.bound * self.E * put(self.column_order, pair.x)
        return Pair(x, self.objective * self.D * put(self.row_order, pair.y))

    def into(self, pair: Pair) -> Pair:
        """A pair in the user's units, scaled and moved into its sets."""
        x, y = self.carried(pair)
        least = jnp.where(jnp.isfinite(self.rows.row_upper), -jnp.inf, 0)
        most = jnp.where(jnp.isfinite(self.rows.row_lower), jnp.inf, 0)
        return Pair(jnp.clip(x, self.lower, self.upper), jnp.clip(y, least, most))

    def back(self, pair: Pair) -> Pair:
        """A pair (or a direction) in the user's units and order."""
        x, y = pair.x / (self.bound * self.E), pair.y / (self.objective * self.D)
        return Pair(back(self.column_order, x), back(self.row_order, y))

    def judging(self, problem: Any) -> Any:
        """The problem on the user's data with its products by the view's layout, where A is large and sparse.

        A small one's are by segments: no faster, but a fourth copy of the layout would be a third more to compile.
        """
        A = problem.A
        if not isinstance(A, Sparse) or A.values.size < LARGE:
            return problem
        A = Laid(A, self.operator, self.row_order, self.column_order, -self.D, self.E)
        return problem.replace(A=A, check=False, allow_low_precision=True)

    def prox(self, v: Any, step: Any) -> Any:
        """Projection on the box."""
        return jnp.clip(v, self.lower, self.upper)

    def gradient(self, x: Any, y: Any) -> Any:
        """`c - A'y`."""
        return self.c + self.operator.rmatvec(y)

    def stride(self, x: Any, y: Any, step: Any) -> Any:
        """`prox(x - step gradient(x, y))`: made once and stored, where the operator takes its vectors apart."""
        if not hasattr(self.operator, "vdot"):
            return self.prox(x - step * self.gradient(x, y), step)
        return _stride(x, self.c, self.operator.rmatvec(y), self.lower, self.upper, step)

    def violation(self, x: Any) -> Any:
        """`-A x`; the interval of the row is held by the move (design, section 7)."""
        return self.operator.matvec(x)

    def violation_once(self, x: Any) -> Any:
        """The same from the entries: for a product that is no part of a loop, and compiles at once."""
        return put(self.row_order, self.entries.matvec(back(self.column_order, x)))

    def move(self, y: Any, v: Any, step: Any) -> Any:
        """The prox of two-sided rows at `y + step v`."""
        return self.rows(y, v, step)

    def inner(self, a: Change, b: Change) -> Any:
        """`a'b` of two changes that a step made, where the operator has its own way with vectors."""
        if hasattr(self.operator, "vdot"):
            return self.operator.vdot(a, b)
        return jnp.vdot(a.after - a.before, b.after - b.before)

    def norm(self, limit: int = POWER_ITERATIONS) -> Any:
        """`|A_s|_2` by power iteration, on the entries: a norm is asked for once, and they compile at once."""
        return spectral_norm(self.entries, self.D.shape[-1], self.c.dtype, limit=limit)


@singledispatch
def saddle(problem: Any, scaling: Scaling) -> Any:
    """The saddle view of a problem; a problem joins by `saddle.register`.

    Raises:
        UnsupportedProblem: the problem has no saddle view.
    """
    raise UnsupportedProblem(f"{type(problem).__name__} has no saddle view")


def in_metric(view: Any, metric: str | None) -> Any:
    """A saddle view with another metric of the dual step; None and "scalar" leave a view that has one metric as it is.

    Raises:
        UnsupportedProblem: the view has the scalar metric only. InvalidOption: an unknown metric.
    """
    if metric is None or (metric == "scalar" and not hasattr(view, "in_metric")):
        return view
    if not hasattr(view, "in_metric"):
        raise UnsupportedProblem(f"{type(view).__name__} has no metric {metric!r}: its view has the scalar one only")
    return view.in_metric(metric)


@singledispatch
def mirrored(problem: Any, move: Move) -> Any:
    """The saddle view of a problem with both sides moved by the geometry of `move`, on the problem's own sets.

    Raises:
        UnsupportedProblem: the problem has no such view. InvalidOption: a move without that set.
    """
    raise UnsupportedProblem(f"{type(problem).__name__} has no mirrored saddle view: its sets have one geometry")


@singledispatch
def constrained(problem: Any) -> Any:
    """The constrained view of a problem, with exact inner minimisers; a problem joins by `constrained.register`.

    Raises:
        UnsupportedProblem: the problem has no exact inner minimiser.
    """
    raise UnsupportedProblem(f"{type(problem).__name__} has no constrained view: no exact minimiser of its Lagrangian")


@singledispatch
def require_minimiser(problem: Any) -> None:
    """Look at a problem's data before tracing: raise unless `constrained(problem).minimiser` exists.

    Raises:
        UnsupportedProblem: what is missing. Traced data pass; the run then tells by its status.
    """
    constrained(problem)


@singledispatch
def require_augmented_minimiser(problem: Any) -> None:
    """Likewise for `constrained(problem).augmented_minimiser`."""
    constrained(problem)


@saddle.register
def _(lp: LinearProgram, scaling: Scaling) -> LinearSaddle:
    lp = lp.minimised()
    return _scaled(lp, *equilibrate(lax.stop_gradient(lp.A), scaling.ruiz, scaling.pock_chambolle), scaling)


@saddle.register
def _(qp: QuadraticProgram, scaling: Scaling) -> QuadraticSaddle:
    qp = qp.minimised()
    A, Q = lax.stop_gradient((qp.A, qp.Q))
    D, E = equilibrate(A, scaling.ruiz, scaling.pock_chambolle, Q)
    largest = jnp.max(Q.scale(1 / E, 1 / E).row_norms("linf"), initial=0)
    linear = _scaled(qp.linear, D, E, scaling, largest)
    return QuadraticSaddle.make(linear, qp.Q.scale(linear.objective / linear.bound / E, 1 / E))


@saddle.register
def _(program: ConicProgram, scaling: Scaling) -> ConicSaddle:
    program = program.minimised()
    rows, columns, linear = program.cone_rows, program.cone_columns, program.linear
    D, E = equilibrate(linear.A, scaling.ruiz, scaling.pock_chambolle)
    view = _scaled(linear, rows.even(D), columns.even(E), scaling)
    return ConicSaddle(view, rows.put(view.row_order), columns.put(view.column_order))


def _scaled(lp: LinearProgram, D: Any, E: Any, scaling: Scaling, curved: Any = None) -> LinearSaddle:
    """The view of a minimisation with row factors D and column factors E.

    `curved` is the largest entry of the scaled Q of a quadratic program: with points of the size of the right-hand
    sides its gradient is that much larger than c, and so is the objective's factor.
    """
    # With the sign of the violation, so that a product is one and need not be negated.
    scaled = lp.A.scale(-1 / D, 1 / E)
    operator, row_order, column_order = scaled.ordered()
    c, rl, ru, l, u = lp.c / E, lp.row_lower / D, lp.row_upper / D, lp.lower * E, lp.upper * E
    one = jnp.ones((), lp.c.dtype)
    high, low = jnp.where(jnp.isfinite(ru), ru, 0), jnp.where(jnp.isfinite(rl) & (rl != ru), rl, 0)
    high, low, size = lax.stop_gradient((high, low, c))
    b_norm, c_norm = jnp.sqrt(squared(high) + squared(low)), jnp.sqrt(squared(size))
    if scaling.bound_objective:
        c_norm = c_norm if curved is None else c_norm + curved * (1 + b_norm)
        bound, objective, balance = 1 / (1 + b_norm), 1 / (1 + c_norm), one
    else:
        both = (b_norm > 0) & (c_norm > 0)
        bound, objective, balance = one, one, jnp.where(both, c_norm / jnp.where(both, b_norm, 1), 1)
    move = Interval(put(row_order, bound * rl), put(row_order, bound * ru))
    D, E = put(row_order, D), put(column_order, E)
    c, l, u = (put(column_order, v) for v in (objective * c, bound * l, bound * u))
    return LinearSaddle(operator, scaled, c, l, u, move, D, E, bound, objective, balance, row_order, column_order)


@saddle.register
def _(game: MatrixGame, scaling: Scaling) -> GameSaddle:
    return mirrored(game, Euclidean(Simplex()))


@mirrored.register
def _(game: MatrixGame, move: Move) -> GameSaddle:
    if not isinstance(move, Euclidean | Entropic):
        raise InvalidOption(f"move is {move!r}; expected Euclidean() or Entropic(), which move inside a simplex")
    own = type(move)(Simplex())
    dtype = game.payoff.dtype
    return GameSaddle(game.payoff, own, own, jnp.ones((), dtype))


@constrained.register
def _(qp: QuadraticProgram) -> QuadraticConstrained:
    return QuadraticConstrained.make(qp.minimised())


@constrained.register
def _(program: NonlinearProgram) -> NonlinearView:
    return NonlinearView.make(program)


@require_minimiser.register
def _(program: NonlinearProgram) -> None:
    raise UnsupportedProblem(
        "a NonlinearProgram has no exact minimiser of its Lagrangian in view; AugmentedLagrangian minimises it by an "
        "inner method"
    )


@require_augmented_minimiser.register
def _(program: NonlinearProgram) -> None:
    """Nothing: the method's inner minimiser takes any."""


@require_minimiser.register
def _(qp: QuadraticProgram) -> None:
    require_strictly_convex(qp)


@require_augmented_minimiser.register
def _(qp: QuadraticProgram) -> None:
    require_equalities(qp)


@apart
def _stride(x: Any, c: Any, product: Any, lower: Any, upper: Any, step: Any) -> Any:
    return jnp.clip(x - step * (c + product), lower, upper)
