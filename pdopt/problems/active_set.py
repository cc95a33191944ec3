"""Derivatives of a quadratic program's solution in all its data, by the optimality conditions of what is active.

At a solution let I be the variables between their bounds and J the rows that hold (equalities, and sides with a
price). Along a change of the data, variables at a bound move with it, multipliers of other rows stay 0, and

    [ Q_II   A_JI' ] [  dx_I ]     [ -(dQ x + dc - dA'y)_I - (Q dx_B)_I ]        B: variables at a bound
    [ A_JI   0     ] [ -dy_J ]  =  [ (db - dA x)_J - (A dx_B)_J         ]        b: the side that holds

(linear spec, section 13; Amos, Kolter, arXiv 1703.00443). The system is symmetric, so one `custom_linear_solve` serves
forward and reverse mode: by LU where `n + m` is at most `DENSE`, with a corner of sqrt(eps) that refinement takes out
again, else by MINRES on products with Q and A. Where it is singular (a degenerate or non-unique solution) no
derivative exists; what comes back is then that of a least-squares solution.

A linear program's solution is piecewise constant in c: `problems/proximal.py` gives it a curvature.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import lu_factor, lu_solve

from pdopt.operators.minres import minres
from pdopt.runtime.precision import precision_scope
from pdopt.types import Pair

DENSE = 1000  # up to this many variables and rows together the system is factorised
REFINEMENTS = 2


@jax.custom_jvp
def attach(pair: Pair, qp: Any) -> Pair:
    """`pair`, a solution of the minimisation `qp`, with its derivative in the program's floating leaves."""
    return lax.stop_gradient(pair)


@attach.defjvp
def _attach_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    pair, qp = primals
    pair = attach(pair, qp)
    with precision_scope(pair):
        return pair, _tangent(pair, qp, tangents[1])


def _tangent(pair: Pair, qp: Any, change: Any) -> Pair:
    x, y = pair
    n = x.size

    def conditions(data: Any) -> tuple[Any, Any]:
        """Reduced costs and activities at the pair."""
        return data.Q.matvec(x) + data.c - data.A.rmatvec(y), data.A.matvec(x)

    def sides(data: Any) -> tuple[Any, ...]:
        return tuple(jnp.where(jnp.isfinite(v), v, 0) for v in (data.lower, data.upper, data.row_lower, data.row_upper))

    (z, activity), (dz, da) = jax.jvp(conditions, (qp,), (change,))
    _, (dl, du, drl, dru) = jax.jvp(sides, (qp,), (change,))
    # What a projection with unit step would hold: nearer to the side than its price is large.
    at_low = (x - qp.lower <= z) & jnp.isfinite(qp.lower)
    at_high = (qp.upper - x <= -z) & jnp.isfinite(qp.upper) & ~at_low
    row_low = (activity - qp.row_lower <= y) & jnp.isfinite(qp.row_lower)
    row_high = (qp.row_upper - activity <= -y) & jnp.isfinite(qp.row_upper)
    equal = qp.row_lower == qp.row_upper
    free, held = ~(at_low | at_high), row_low | row_high | equal

    dx_bound = jnp.where(at_low, dl, jnp.where(at_high, du, 0))
    db = jnp.where(row_low & (~equal | (y >= 0)), drl, jnp.where(row_high | equal, dru, 0))
    right_x = jnp.where(free, -dz - qp.Q.matvec(dx_bound), 0)
    right_y = jnp.where(held, db - da - qp.A.matvec(dx_bound), 0)

    def product(v: Any) -> Any:
        u, w = jnp.where(free, v[:n], 0), jnp.where(held, v[n:], 0)
        top = jnp.where(free, qp.Q.matvec(u) + qp.A.rmatvec(w), v[:n])
        return jnp.concatenate([top, jnp.where(held, qp.A.matvec(u), v[n:])])

    right = jnp.concatenate([right_x, right_y])
    corner = jnp.concatenate([jnp.where(free, 1, 0), jnp.where(held, -1, 0)]).astype(x.dtype)
    answer = lax.custom_linear_solve(product, right, solver(right.size, corner), symmetric=True)
    return Pair(dx_bound + jnp.where(free, answer[:n], 0), jnp.where(held, -answer[n:], 0))


def solver(size: int, corner: Any) -> Callable[[Any, Any], Any]:
    """How a symmetric system given by its product is solved; `corner` has the signs of the blocks of the diagonal."""
    if size > DENSE:
        return minres

    def factorised(product: Any, right: Any) -> Any:
        matrix = jax.vmap(product, out_axes=1)(jnp.eye(size, dtype=right.dtype))
        shift = jnp.sqrt(jnp.finfo(right.dtype).eps) * jnp.maximum(jnp.max(jnp.abs(matrix), initial=0), 1)
        factor = lu_factor(matrix + jnp.diag(shift * corner))
        found = lu_solve(factor, right)
        for _ in range(REFINEMENTS):
            found = found + lu_solve(factor, right - matrix @ found)
        return found

    return factorised
