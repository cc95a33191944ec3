"""Newton's method and linear solves for natural maps, `N(v) = v - P(v - G(v))`: zero where -G is normal to the set.

P is the projection on a convex set, so N is piecewise smooth and its derivative, which automatic differentiation takes
from the branch that the point is on, knows the active set by itself: a coordinate at a bound has the row `dv = 0`, one
inside has the row of G. Newton on N is therefore an active-set method (Qi, Sun 1993: semismooth Newton), and
`dv*/dp = -N_v^-1 N_p` is the derivative of a solution by its optimality conditions.

Dense up to `DENSE` unknowns (one LU factorisation), matrix-free above (BiCGSTAB on products with N_v or its transpose).
The matrix is shifted by a small multiple of the identity, a proximal term that keeps dependent constraints from making
it singular; refinement takes the shift out of the answer again.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap
from jax.scipy.linalg import lu_factor, lu_solve
from jax.scipy.sparse.linalg import bicgstab

DENSE = 2000  # unknowns; the factorisation of 2000 takes about a second on a CPU core
REFINEMENTS = 3
SHARES = (1.0, 0.5, 0.2, 0.05, 0.01)  # of Newton's step that are tried


def solve_jacobian(function: Callable[[Any], Any], v: Any, right: Any, *, transpose: bool = False) -> Any:
    """`d` with `N_v d = right` (`N_v' d = right` with `transpose`), N_v the derivative of `function` at v.

    Args:
        function: `(n,)` to `(n,)`; v, right: `(n,)`.

    Example:
        >>> print(solve_jacobian(lambda v: v**2, jnp.array([1.0, 2.0]), jnp.array([2.0, 8.0])))
        [1. 2.]
    """
    if v.shape[0] == 0:
        return right
    if v.shape[0] > DENSE:
        return _matrix_free(function, v, right, transpose)
    rows = _transposed(function, v)
    matrix = rows if transpose else rows.T
    size = jnp.max(jnp.abs(matrix))
    shift = jnp.finfo(v.dtype).eps ** 0.6 * jnp.where(size > 0, size, 1)
    factor = _lu(lax.stop_gradient(matrix + shift * jnp.eye(v.shape[0], dtype=v.dtype)))
    found = lu_solve(factor, right)
    refine = lambda _, found: found + lu_solve(factor, right - matrix @ found)
    return lax.fori_loop(0, REFINEMENTS, refine, found)


@sequential_vmap
def _lu(matrix: Any) -> Any:
    """`lu_factor`, a batch one by one: a batched call of LAPACK waits on the pool of threads that it runs on, and two
    of them, on the two threads of a small machine, wait for ever (jaxlib 0.10).
    """
    return lu_factor(matrix)


def _transposed(function: Callable[[Any], Any], v: Any) -> Any:
    """`N_v'`; the barrier keeps XLA from folding products with the unit vectors while it compiles."""
    units = lax.optimization_barrier(jnp.eye(v.shape[0], dtype=v.dtype))
    return jax.vmap(lambda unit: jax.jvp(function, (v,), (unit,))[1])(units)


def _matrix_free(function: Callable[[Any], Any], v: Any, right: Any, transpose: bool) -> Any:
    if transpose:
        _, pull = jax.vjp(function, v)
        product = lambda d: pull(d)[0]
    else:
        product = lambda d: jax.jvp(function, (v,), (d,))[1]
    return bicgstab(product, right, tol=float(jnp.finfo(v.dtype).eps) ** 0.75, maxiter=2000)[0]


class Root(NamedTuple):
    """Where Newton's method ended: the point, the largest entry of N there, and the steps taken."""

    point: Any
    error: Any
    steps: Any


def newton(
    function: Callable[[Any], Any], start: Any, *, steps: int = 20, tolerance: Any = None, singular: bool = False
) -> Root:
    """Damped semismooth Newton on `N(v) = 0`: the best of a few shares of the step, while that lowers `|N|_2`.

    Never leaves a point for one with a larger `|N|_2`; stops at `|N|_inf <= tolerance` (None: 4 units of rounding),
    where no share helps, or after `steps`. `singular`: shortest least-squares steps (a singular value decomposition
    each), for roots that are not isolated.

    Example:
        >>> root = newton(lambda v: v - jnp.maximum(v - (v**3 - 8), 0), jnp.array([3.0]))
        >>> print(root.point.round(4))
        [2.]
    """
    tolerance = 4 * float(jnp.finfo(start.dtype).eps) if tolerance is None else tolerance
    shares = jnp.asarray(SHARES, start.dtype)

    def going(carry: tuple[Any, Any, Any, Any]) -> Any:
        _, value, count, moved = carry
        return (jnp.max(jnp.abs(value)) > tolerance) & (count < steps) & moved

    def body(carry: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
        v, value, count, _ = carry
        way = jnp.linalg.lstsq(_transposed(function, v).T, value)[0] if singular else solve_jacobian(function, v, value)
        points = v - shares[:, None] * way
        values = lax.map(function, points)
        sizes = jnp.linalg.norm(values, axis=1)
        sizes = jnp.where(jnp.isfinite(sizes), sizes, jnp.inf)
        best = jnp.argmin(sizes)
        better = sizes[best] < jnp.linalg.norm(value)
        return jnp.where(better, points[best], v), jnp.where(better, values[best], value), count + 1, better

    first = function(start)
    point, value, count, _ = lax.while_loop(going, body, (start, first, jnp.int32(0), jnp.bool_(True)))
    return Root(point, jnp.max(jnp.abs(value), initial=0), count)
