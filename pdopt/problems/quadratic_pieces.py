"""A quadratic program with rows and bounds of every kind, for the method of multipliers: Newton steps on its pieces.

    L(x, y, rho) = x'Qx/2 + c'x + penalty(y, -R x, rho),      R = [A; I],      gradient  Qx + c - R'y+(x)

with y+(x) = move(y, -R x, rho): the multipliers to which the dual half would move. L is piecewise quadratic in x, its
pieces by which rows are active (y+ not 0), and on each the Hessian is `Q + rho A_J'A_J + rho I_J`. A Newton step with
an exact search along it (the slope there is a broken line, so its root is found, not approximated) ends in the minimum
after finitely many steps (semismooth Newton; QPALM: Hermans, Themelis, Patrinos 2019, arXiv 1911.02934). Rows are
scaled first. A proximal term `delta |x - x0|^2 / 2` from the last x makes every piece definite (Rockafellar 1976).

Products with the rows of a chain or a grid carry news one neighbour further each, so a first-order method needs as
many as the chain is long, squared; here H is a narrow band, and its factor carries news from end to end.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pdopt.geometry.moves import Interval
from pdopt.operators.normal import BandPlan, Normal
from pdopt.operators.scaling import equilibrate
from pdopt.problems.quadratic import QuadraticProgram
from pdopt.types import Pair, record

RUIZ = 10  # passes
SEARCH = 60  # looks along one step
SHIFTS = 8  # of a factor that failed, each a thousand times the last


class Walk(NamedTuple):
    """A point of the inner minimisation: x, R (x - x0), y+, the gradient of L and its size, steps, whether it ends."""

    x: Any
    rows: Any
    moved: Any
    gradient: Any
    error: Any
    count: Any
    over: Any


@record
class QuadraticPieces:
    """`min x'Qx/2 + c'x` with rows `R x` in intervals, scaled: `x = x_s / E`, `y = y_s / (D objective)`.

    Attributes:
        Q, A: scaled operators; c: `(n,)`. sides: the move that holds the intervals of `R x`, `(m + n,)`.
        D, E, objective: the scaling. offset: of the objective, in the user's units.
        plan: of the band of H, or None. budget: Newton steps of one minimisation.
    """

    Q: Any
    A: Any
    c: Any
    sides: Interval
    D: Any
    E: Any
    objective_scale: Any
    offset: Any
    plan: BandPlan | None
    budget: Any

    # The first penalty may grow by this: what is ill-conditioned (LISWET, STADAT) needs it.
    reach = 1e14

    @staticmethod
    def make(qp: QuadraticProgram, plan: BandPlan | None, budget: Any) -> "QuadraticPieces":
        """The view of a minimisation."""
        Q, A = lax.stop_gradient((qp.Q, qp.A))
        D, E = equilibrate(A, RUIZ, False, Q)
        c = qp.c / E
        objective = 1 / jnp.maximum(1, jnp.max(jnp.abs(c), initial=0))
        rows = lambda row, own: jnp.concatenate([row / D, own * E])
        sides = Interval(rows(qp.row_lower, qp.lower), rows(qp.row_upper, qp.upper))
        Q, A = qp.Q.scale(objective / E, 1 / E), qp.A.scale(1 / D, 1 / E)
        return QuadraticPieces(Q, A, objective * c, sides, D, E, objective, qp.offset, plan, budget)

    def start(self) -> Pair:
        """Zeros."""
        return Pair(jnp.zeros_like(self.c), jnp.zeros_like(self.sides.row_lower))

    def into(self, pair: Pair) -> Pair:
        """A pair of the problem; multipliers of bounds are the reduced costs, all with signs that their rows allow."""
        x, y = self.E * pair.x, self.objective_scale * self.D * pair.y
        reduced = self.c + self.Q.matvec(x) - self.A.rmatvec(y)
        y = jnp.concatenate([y, reduced])
        low, high = jnp.isfinite(self.sides.row_lower), jnp.isfinite(self.sides.row_upper)
        return Pair(x, jnp.clip(y, jnp.where(high, -jnp.inf, 0), jnp.where(low, jnp.inf, 0)))

    def back(self, pair: Pair) -> Pair:
        """The pair without the multipliers of the bounds, which the problem finds again as reduced costs."""
        return Pair(pair.x / self.E, pair.y[: self.D.size] / (self.objective_scale * self.D))

    def objective(self, x: Any) -> Any:
        """`x'Qx/2 + c'x + offset`, scaled."""
        return x @ self.Q.matvec(x) / 2 + self.c @ x + self.objective_scale * self.offset

    def rows(self, x: Any) -> Any:
        """`R x`."""
        return jnp.concatenate([self.A.matvec(x), x])

    def violation(self, x: Any) -> Any:
        """`-R x`; the intervals are held by the move (design, section 7)."""
        return -self.rows(x)

    def move(self, y: Any, v: Any, step: Any) -> Any:
        """The prox of the two-sided rows at `y + step v`; for an equality `y + step (b - a'x)`."""
        return self.sides(y, v, step)

    def around(self, x: Any) -> "QuadraticPieces":
        """The same rows, measured from x: sides less `R x`."""
        here = self.rows(x)
        return dataclasses.replace(self, sides=Interval(self.sides.row_lower - here, self.sides.row_upper - here))

    def stiffness(self, x: Any = None) -> Any:
        """A first penalty, as OSQP and QPALM have: 20 in these units."""
        return jnp.full((), 20, self.c.dtype)

    def augmented_minimiser(self, y: Any, rho: Any, x: Any) -> tuple[Any, Any]:
        """The argmin of L plus the proximal term by Newton steps from x, where the rows are measured from (`around`).

        With it comes `R (x' - x)`, which has not lost its digits to `R x`. It stops where the gradient is that of
        rounding, or after `budget` steps: the outer step then goes on from there, as from an inexact minimum.
        """
        eps = jnp.finfo(x.dtype).eps
        delta = eps**0.7
        normal, m, first = Normal(self.Q, self.A, self.plan), self.D.size, x
        equal = self.sides.row_lower == self.sides.row_upper
        active = lambda moved: equal | (moved != 0)

        def at(x: Any, rows: Any, count: Any) -> Walk:
            moved = self.sides(y, -rows, rho)
            pull = self.A.rmatvec(moved[:m]) + moved[m:]
            curved = self.Q.matvec(x) + delta * (x - first)
            gradient = curved + self.c - pull
            error = jnp.max(jnp.abs(gradient), initial=0)
            terms = jnp.max(jnp.abs(curved) + jnp.abs(self.c) + jnp.abs(pull), initial=0)
            return Walk(x, rows, moved, gradient, error, count, error <= eps ** (2 / 3) * terms)

        def step(walk: Walk) -> Walk:
            weights = rho * active(walk.moved)

            def factor(shift: Any) -> Any:
                return normal.factor(weights[:m], weights[m:] + shift)

            def again(carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
                shift = 1e3 * carry[1]
                return factor(shift), shift, carry[2] + 1

            failed = lambda c: ~jnp.all(jnp.isfinite(c[0].inverse)) & (c[2] < SHIFTS)
            found = lax.while_loop(failed, again, (factor(delta), jnp.asarray(delta, x.dtype), jnp.int32(0)))[0]
            d = normal.solve(found, -walk.gradient)
            along = self.rows(d)
            curved = self.Q.matvec(d)
            length = _root(self, walk, d, along, curved, delta, y, rho, active)
            after = at(walk.x + length * d, walk.rows + length * along, walk.count + 1)
            # On the same piece after a whole step this is its minimum: another step only rounds.
            same = jnp.all(active(after.moved) == active(walk.moved)) & (jnp.abs(length - 1) <= 1e-6)
            settled = same & (after.error > 0.5 * walk.error)
            lost = ~jnp.isfinite(after.error)
            kept = jax.tree.map(lambda new, old: jnp.where(lost, old, new), after, walk)
            return kept._replace(over=after.over | settled | lost, count=after.count)

        begin = at(x, jnp.zeros_like(y), jnp.int32(0))
        found = lax.while_loop(lambda w: ~w.over & (w.count < self.budget), step, begin)
        return found.x, found.rows


def _root(
    view: QuadraticPieces, walk: Walk, d: Any, along: Any, curved: Any, delta: Any, y: Any, rho: Any, active: Any
) -> Any:
    """The length t at which the slope of L along d is 0: Newton steps on a rising broken line, kept in a bracket."""
    pull = jnp.vdot(walk.moved, along)
    smooth = jnp.vdot(walk.gradient, d) + pull
    bend = jnp.vdot(d, curved) + delta * jnp.vdot(d, d)

    def slope(t: Any) -> tuple[Any, Any]:
        moved = view.sides(y, -(walk.rows + t * along), rho)
        return smooth + t * bend - jnp.vdot(moved, along), bend + rho * jnp.sum(jnp.where(active(moved), along**2, 0))

    infinite = jnp.full((), jnp.inf, d.dtype)
    close = 1e-10 if d.dtype == jnp.float64 else 1e-5

    def look(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        t, low, high, count, _ = carry
        value, rise = slope(t)
        low, high = jnp.where(value <= 0, t, low), jnp.where(value > 0, t, high)
        next = t - value / rise
        middle = jnp.where(jnp.isfinite(high), (low + high) / 2, 2 * t)
        inside = (next > low) & (next < high) & jnp.isfinite(next)
        near = jnp.abs(value) <= close * jnp.abs(smooth - pull)
        return jnp.where(near, t, jnp.where(inside, next, middle)), low, high, count + 1, near

    one = jnp.ones((), d.dtype)
    start = (one, jnp.zeros_like(one), infinite, jnp.int32(0), jnp.asarray(False))
    return lax.while_loop(lambda c: ~c[4] & (c[3] < SEARCH), look, start)[0]
