"""Derivatives of a nonlinear program's solution in its data, by the optimality conditions of what is active.

At a solution the free variables F (between their bounds) and active constraints A (`y > -g`; equalities always) obey

    grad_x L(x, y; data)_F = 0,      v(x; data)_A = 0,      x = bound elsewhere,      y = 0 elsewhere

so their derivatives along a change of the data solve one linear system,

    [ H_FF   J_AF' ] [ dx_F ]     [ d(grad_x L)_F ]
    [ J_AF   -e I  ] [ dy_A ] = - [ d(v)_A        ],      e = sqrt(eps) times the size of the matrix,

whose corner -e I keeps it solvable when constraints are dependent and costs a relative error of about sqrt(eps)
elsewhere (1e-8 in float64; float32 reaches 1e-3). The matrix is dense, `(n + m)^2`. Where a constraint is active
without a price (`degenerate`) the derivative is that of one side. Forward and reverse mode, batches and second
derivatives follow, since the rule is a `custom_jvp` made of differentiable code.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from pdopt.runtime.precision import precision_scope
from pdopt.types import Pair


@jax.custom_jvp
def attach(pair: Pair, program: Any) -> Pair:
    """`pair`, a solution of `program`, with its derivative in the program's floating leaves."""
    return jax.lax.stop_gradient(pair)


@attach.defjvp
def _attach_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    pair, program = primals
    pair = attach(pair, program)
    with precision_scope(pair):
        return pair, _tangent(pair, program, tangents[1])


def _tangent(pair: Pair, program: Any, change: Any) -> Pair:
    x, y = pair
    flat, unravel = ravel_pytree(x)
    prices, reprice = ravel_pytree(y)
    prices = prices.astype(flat.dtype)
    n = flat.size

    def conditions(z: Any, data: Any) -> Any:
        """`(grad_x L, v)` at z = (x, y), flat."""
        point, weight = unravel(z[:n]), z[n:]

        def both(x: Any) -> tuple[Any, Any]:
            return data.objective(x), ravel_pytree(data.violation(x))[0].astype(z.dtype)

        (_, v), pull = jax.vjp(both, point)
        (slope,) = pull((jnp.ones((), z.dtype), weight))
        return jnp.concatenate([ravel_pytree(slope)[0], v])

    z = jnp.concatenate([flat, prices])
    value = conditions(z, program)
    low, high = ravel_pytree(program.lower)[0], ravel_pytree(program.upper)[0]
    slope, v = value[:n], value[n:]
    # A bound holds x where the point lies on it, or nearer to it than its price is large.
    at_low = (flat - low <= slope) & jnp.isfinite(low)
    at_high = (high - flat <= -slope) & jnp.isfinite(high)
    active = jnp.concatenate([jnp.ones(_sizes(y)[0], bool), prices[_sizes(y)[0] :] > -v[_sizes(y)[0] :]])
    alive = jnp.concatenate([~(at_low | at_high), active])

    matrix = jax.jacfwd(conditions)(z, program)
    both = alive[:, None] & alive[None, :]
    size = jnp.max(jnp.abs(jnp.where(both, matrix, 0)), initial=0)
    corner = jnp.sqrt(jnp.finfo(z.dtype).eps) * jnp.where(size > 0, size, 1)
    diagonal = jnp.where(alive, jnp.where(jnp.arange(z.size) < n, 0, -corner), 1)
    system = jnp.where(both, matrix, 0) + jnp.diag(diagonal)

    _, moved = jax.jvp(lambda data: conditions(z, data), (program,), (change,))
    _, bounds = jax.jvp(lambda data: _bounds(data), (program,), (change,))
    held = jnp.where(at_low, bounds[0], jnp.where(at_high, bounds[1], 0))
    held = jnp.concatenate([held, jnp.zeros_like(prices)])
    right = jnp.where(alive, -(moved + matrix @ held), held)
    answer = jnp.linalg.solve(system, right)
    shaped = Pair(unravel(answer[:n]), reprice(answer[n:].astype(prices.dtype)))
    return jax.tree.map(lambda leaf, like: _as(leaf, like), shaped, pair)


def _bounds(data: Any) -> Any:
    """Both bounds, flat; infinite ones have no derivative, which is 0 here."""
    low, high = ravel_pytree(data.lower)[0], ravel_pytree(data.upper)[0]
    return jnp.stack([jnp.where(jnp.isfinite(b), b, 0) for b in (low, high)])


def _sizes(y: Any) -> tuple[int, int]:
    """Entries of the equality and of the inequality multipliers."""
    equal, unequal = (sum(int(np.size(leaf)) for leaf in jax.tree.leaves(part)) for part in y)
    return equal, unequal


def _as(leaf: Any, like: Any) -> Any:
    return leaf.astype(jnp.result_type(like)).reshape(jnp.shape(like))
