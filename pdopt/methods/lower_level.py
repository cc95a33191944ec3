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


def solve_lower(program: BilevelProgram, x: Any, start: Pair, tolerance: Any, blocks: int = BLOCKS) -> Root:
    """`Root` whose point is `Pair(y, multipliers)` with `|N(x, .)|_inf <= tolerance`, or the best that was found.

    Args:
        start: `Pair(y, multipliers)` to begin from.
        tolerance: absolute.
        blocks: at most so many blocks of saddle steps; each compiles once, and none is run where Newton suffices.

    Example:
        >>> program = BilevelProgram(lambda x, y: y, lambda x, y: (y - x) ** 2 / 2, (0.0, 0.0), dtype=jnp.float32,
        ...                          inequality=lambda x, y: y - 1)
        >>> first = program.first()
        >>> root = solve_lower(program, jnp.float32(3), Pair(first.x.lower, first.y), 1e-6)
        >>> print(root.point.x, root.point.y.inequality)
        1.0 2.0
    """
    flat, shaped = ravel_pytree(start)
    natural = lambda v: ravel_pytree(program.natural(x, shaped(v)))[0]
    first = newton(natural, flat, steps=STEPS, tolerance=tolerance)
    if blocks == 0:
        return first._replace(point=shaped(first.point))
    # Without the proximal terms the inner step of LV-HBA is PDHG on the lower level itself.
    method = LVHBA(gamma1=jnp.inf, gamma2=jnp.inf)

    def going(carry: tuple[Root, Pair, Any]) -> Any:
        return (carry[0].error > tolerance) & (carry[2] < blocks)

    def block(carry: tuple[Root, Pair, Any]) -> tuple[Root, Pair, Any]:
        best, w, count = carry
        view = BilevelView.make(program, jnp.inf)
        inside = view.into(Pair(Levels(x, w.x), w.y))
        eta = method.largest_eta(view.norms(inside))
        inner = Pair(w.x, inside.y)
        step = lambda _, inner: method.inner_step(view, inside, inner, eta)
        inner = lax.fori_loop(0, BLOCK, step, inner)
        reached = view.back(inner._replace(x=Levels(x, inner.x)))
        w = Pair(reached.x.lower, reached.y)
        found = newton(natural, ravel_pytree(w)[0], steps=STEPS, tolerance=tolerance)
        better = found._replace(steps=best.steps + found.steps)
        return optax.tree.where(found.error < best.error, better, best), w, count + 1

    best, _, _ = lax.while_loop(going, block, (first, start, jnp.int32(0)))
    return best._replace(point=shaped(best.point))


def answered(program: BilevelProgram, pair: Pair, tolerance: Any, blocks: int = 0) -> Pair:
    """The pair of the program with its lower level solved at its x, warm.

    Example:
        >>> program = BilevelProgram(lambda x, y: y, lambda x, y: (y - x) ** 2 / 2, (2.0, 0.0), dtype=jnp.float32)
        >>> print(answered(program, program.first(), 1e-6).x.lower)
        2.0
    """
    point = solve_lower(program, pair.x.upper, pair._replace(x=pair.x.lower), tolerance, blocks).point
    return point._replace(x=Levels(pair.x.upper, point.x))


@jax.custom_jvp
def lower_answer(program: BilevelProgram, x: Any, start: Pair, tolerance: Any) -> Pair:
    """`solve_lower(...).point`, with the derivative of the lower level's answer in x and the program's data.

    `dw = -N_w^-1 (N_x dx + N_p dp)` at the returned point, forward, reverse and batched; of first order.

    Example:
        >>> program = BilevelProgram(lambda x, y: y, lambda x, y: (y - 3 * x) ** 2, (0.0, 0.0), dtype=jnp.float32)
        >>> answer = lambda x: lower_answer(program, x, Pair(jnp.float32(0), program.first().y), 1e-6).x
        >>> print(jax.grad(answer)(1.0))
        3.0
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
