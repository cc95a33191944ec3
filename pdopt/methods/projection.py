"""The projection on a polyhedron, warm: what a loop around it pays for is how far the active set moved.

First the active set of the last multipliers is guessed and solved for (see `problems/polyhedron.py`). Where that does
not end, or u is also kept in a set, dual ascent (theta = 0, the argmin is exact) goes on in blocks, each followed by
another guess, and the better of the two is kept.
"""

from typing import Any

import jax.numpy as jnp
import optax
from jax import lax

from pdopt.problems.polyhedron import Polyhedron
from pdopt.rules.saddle import row, saddle_step
from pdopt.types import Pair

BLOCK = 50  # steps of dual ascent before the next guess
BLOCKS = 8


def project(rows: Polyhedron, target: Any, mu: Any) -> Pair:
    """`Pair(u, mu)`: the point of the polyhedron nearest to a flat target, from multipliers that may be near.

    Exact to rounding where the active set is found; else after `BLOCK * BLOCKS` steps of dual ascent, whose error
    `Polyhedron.error` shows and the next call goes on from.

    Example:
        >>> rows = Polyhedron.make(jnp.array([[1.0, 1.0]]), jnp.array([-1.0]), jnp.array([False]))
        >>> print(project(rows, jnp.array([2.0, 1.0]), jnp.zeros(1)).x)
        [1. 0.]
    """
    tolerance = jnp.finfo(target.dtype).eps ** 0.7
    first = rows.settle(target, mu)
    if rows.planes:
        return first
    parts = row(lambda u, mu: rows.closest(target, mu), rows.excess, rows.move, theta=0)

    def going(carry: tuple[Pair, Any]) -> Any:
        pair, count = carry
        return (rows.error(pair) > tolerance) & (count < BLOCKS)

    def block(carry: tuple[Pair, Any]) -> tuple[Pair, Any]:
        pair, count = carry
        step = 1 / jnp.where(rows.norm > 0, rows.norm, 1)
        pair = lax.fori_loop(0, BLOCK, lambda _, held: saddle_step(parts, step, held)[0], pair)
        pair = pair._replace(x=rows.closest(target, pair.y))
        guessed = rows.settle(target, pair.y)
        return optax.tree.where(rows.error(guessed) < rows.error(pair), guessed, pair), count + 1

    return lax.while_loop(going, block, (first, jnp.int32(0)))[0]
