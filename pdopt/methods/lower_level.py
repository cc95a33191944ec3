"""The lower level of a bilevel program at a given x: `min_y f(x, y)` with its constraints, to rounding.

Newton on the natural map finds the answer at once where the active set is right or nearly so (a warm start, a small
problem). Where it comes to a halt, saddle steps go on (theta = 1: PDHG with the smooth f taken explicitly, step
`0.9 / (|L_yy| + |c_y|)`), and Newton tries again. Nothing is ever taken that has a larger `|N|`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from pdopt.methods.bilevel import LVHBA
from pdopt.problems.bilevel import BilevelProgram, Levels
from pdopt.problems.bilevel_view import BilevelView
from pdopt.problems.natural_map import Root, newton, solve_jacobian
from pdopt.types import Pair

BLOCK = 500  # saddle steps between two attempts of Newton
BLOCKS = 20
STEPS = 12  # of Newton in an attempt
PRODUCTS = 40  # power iterations for the saddle step's size


def solve_lower(program: BilevelProgram, x: Any, start: Pair, tolerance: Any, blocks: int = BLOCKS) -> Root:
    """`Root` whose point is `Pair(y, multipliers)` with `|N(x, .)|_inf <= tolerance`, or the best that was found.

    Args:
        start: `Pair(y, multipliers)` to begin from.
        tolerance: absolute.
        blocks: at most so many blocks of saddle steps; none is run where Newton suffices.
    """
    flat, shaped = ravel_pytree(start)
    natural = lambda v: ravel_pytree(program.natural(x, shaped(v)))[0]
    # Without the proximal terms the inner step of LV-HBA is PDHG on the lower level itself.
    method, view = LVHBA(gamma1=jnp.inf, gamma2=jnp.inf), BilevelView.make(program, jnp.inf)

    def advanced(w: Pair, steps: Any, products: Any) -> Pair:
        inside = view.into(Pair(Levels(x, w.x), w.y))
        eta = method.largest_eta(view.norms(inside, steps=products))
        step = lambda _, inner: method.inner_step(view, inside, inner, eta)
        inner = lax.fori_loop(0, steps, step, inside._replace(x=w.x))
        reached = view.back(inner._replace(x=Levels(x, inner.x)))
        return reached._replace(x=reached.x.lower)

    def going(carry: tuple[Root, Pair, Any]) -> Any:
        return (carry[0].error > tolerance) & (carry[2] <= blocks)

    def attempt(carry: tuple[Root, Pair, Any]) -> tuple[Root, Pair, Any]:
        best, w, count = carry
        later = count > 0  # the first attempt is Newton's alone
        w = advanced(w, jnp.where(later, BLOCK, 0), jnp.where(later, PRODUCTS, 0))
        found = newton(natural, ravel_pytree(w)[0], steps=STEPS, tolerance=tolerance)
        better = found._replace(steps=best.steps + found.steps)
        return optax.tree.where(found.error < best.error, better, best), w, count + 1

    first = Root(flat, jnp.asarray(jnp.inf, flat.dtype), jnp.int32(0))
    best, _, _ = lax.while_loop(going, attempt, (first, start, jnp.int32(0)))
    return best._replace(point=shaped(best.point))


def answered(program: BilevelProgram, pair: Pair, tolerance: Any, blocks: int = BLOCKS) -> Pair:
    """The pair of the program with its lower level solved at its x, warm."""
    point = solve_lower(program, pair.x.upper, pair._replace(x=pair.x.lower), tolerance, blocks).point
    return point._replace(x=Levels(pair.x.upper, point.x))


@jax.custom_jvp
def lower_answer(program: BilevelProgram, x: Any, start: Pair, tolerance: Any) -> Pair:
    """`solve_lower(...).point`, with the derivative of the lower level's answer in x and the program's data.

    `dw = -N_w^-1 (N_x dx + N_p dp)` at the returned point, forward, reverse and batched; of first order.
    """
    return solve_lower(program, x, start, tolerance).point


@lower_answer.defjvp
def _lower_answer_jvp(primals: Any, tangents: Any) -> tuple[Pair, Pair]:
    program, x, start, tolerance = primals
    w = lower_answer(program, x, start, tolerance)
    flat, shaped = ravel_pytree(w)
    natural = lambda program, x: ravel_pytree(program.natural(x, w))[0]
    _, moved = jax.jvp(natural, (program, x), (tangents[0], tangents[1]))
    at = lambda v: ravel_pytree(program.natural(x, shaped(v)))[0]
    return w, shaped(-solve_jacobian(at, flat, moved))
