"""Assignment: give every row of a cost matrix a column of its own at least total cost, with a proof of how good it is.

    min_p sum_i C[i, p(i)]  =  min_T <C, T>,   T 1 = 1,  T'1 = 1,  T >= 0                            (Birkhoff 1946)

so the transport problem with unit masses decides it: its plan is rounded to a permutation, its potentials give a bound.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from pdopt.errors import InvalidProblem
from pdopt.problems.couplings import Potentials
from pdopt.problems.rounding import judged, permutation_of, permuted_costs
from pdopt.problems.transport import Transport
from pdopt.runtime.precision import as_array, precision_scope, resolve_dtype
from pdopt.solve import solve


class Assignment(NamedTuple):
    """Rows with their columns as `scipy.optimize.linear_sum_assignment` returns them, and the proof.

    `rows`, `columns`: `(min(n, m),)` int32, rows ascending. `objective`: the cost of the matching. `bound`: no matching
    costs less (more, when maximising). `gap`: the relative distance of the two. `status`: of the solve.
    """

    rows: Any
    columns: Any
    objective: Any
    bound: Any
    gap: Any
    status: Any


def assign(
    cost: Any,
    method: Any = None,
    *,
    maximise: bool = False,
    tolerance: Any = None,
    max_iterations: Any = None,
) -> Assignment:
    """Match rows and columns at least cost; `jit` and `vmap` pass through it.

    A certified gap of 0 is not what a first-order method gives: with `tolerance=1e-4` the matching may cost 1e-4 more
    than the best (scipy's is exact, and faster on a CPU; this one runs in a batch, on a device, inside `jit`).

    Args:
        cost: `(n, m)` matrix, finite. Where n != m the longer side is left partly unmatched.
        method: a method for `Transport`; None takes its default.
        maximise: look for the dearest matching.
        tolerance, max_iterations: as in `solve`.

    Returns:
        `Assignment`. A matching is returned whatever the status; its gap says how good it is proved to be.

    Raises:
        InvalidProblem: not a matrix, or entries that are not finite. InvalidOption: as `solve`.

    Example:
        >>> found = assign([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]])
        >>> print(found.columns, float(found.objective).__round__(4))
        [1 0 2] 5.0
    """
    C = as_array("cost", cost, resolve_dtype([("cost", cost)]))
    if C.ndim != 2:
        raise InvalidProblem(f"cost has shape {C.shape}; expected (n, m)")
    n, m = C.shape
    size = max(n, m)
    with precision_scope(C):
        signed = -C if maximise else C
        # Rows and columns that cost nothing take what is left over.
        square = jnp.zeros((size, size), C.dtype).at[:n, :m].set(signed)
        ones = jnp.ones(size, C.dtype)
        problem = Transport(square, ones, ones)
        options = {"tolerance": tolerance, "max_iterations": max_iterations, "gradient": "none"}
        solution = solve(problem, method, **options)
        y = Potentials(*solution.y)
        chosen = permutation_of(judged(problem.cost), solution.x.todense(), y)
        objective = jnp.sum(permuted_costs(problem.cost, chosen))
        bound = solution.dual_objective
        gap = (objective - bound) / (jnp.finfo(C.dtype).tiny + jnp.maximum(jnp.abs(objective), jnp.abs(bound)))
        sense = -1 if maximise else 1
        if n <= m:
            rows, columns = jnp.arange(n, dtype=jnp.int32), chosen[:n]
        else:
            rows = jnp.sort(jnp.argsort(chosen)[:m]).astype(jnp.int32)
            columns = chosen[rows]
        return Assignment(rows, columns, sense * objective, sense * bound, gap, solution.status)
