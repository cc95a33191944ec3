"""Derivatives through a constrained lower level, and the last digits of a bilevel solution.

hypergradient(program, x)     value and gradient of x -> F(x, y*(x))
lower_solution(program, x)    y*(x) with its multipliers, differentiable: for an upper level of one's own
polish_bilevel(program, s)    Newton on the optimality system of the single-level problem, from a point nearby
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from pdopt.errors import InvalidOption, InvalidProblem, require_range
from pdopt.geometry.checks import concrete
from pdopt.methods.lower_level import lower_answer, solve_lower
from pdopt.problems.bilevel import BilevelProgram, Levels
from pdopt.problems.natural_map import newton
from pdopt.runtime.precision import as_array, precision_scope
from pdopt.solve import checked_start
from pdopt.types import Pair, Solution, Status


class Hypergradient(NamedTuple):
    """`F(x, y*(x))`, its gradient in x, and where they were taken.

    `lower`: `Pair(y*, multipliers)`. `residual`: `|N(x, lower)|_inf`, absolute: how exactly the lower level is solved.
    `degenerate`: a constraint is tight with a multiplier of 0; y* has a kink at x, and the gradient is that of the side
    on which such a constraint is inactive.
    """

    value: Any
    gradient: Any
    lower: Pair
    residual: Any
    degenerate: Any


def hypergradient(
    program: BilevelProgram, x: Any, start: Pair | None = None, *, tolerance: Any = None
) -> Hypergradient:
    """Value and gradient of `x -> F(x, y*(x))`, y* the lower level's constrained minimiser, by implicit derivatives.

    `r = grad_x F + N_x' p` with `N_w' p = -grad_w F`, N the natural map of the lower level's optimality conditions: one
    linear system of the size of y and the multipliers. `jit` and `vmap` pass through it.

    Args:
        program: a `BilevelProgram`; its X plays no part.
        x: where, shaped as the program's x.
        start: `Pair(y, multipliers)` to begin from, the last result's `lower` for instance; None for the program's.
        tolerance: of `|N|_inf`, absolute; None: 1e-9 in float64, 1e-5 in float32.

    Raises:
        InvalidProblem: x or start of another shape. InvalidOption: a tolerance that is not positive.

    Example:
        >>> import pdopt
        >>> program = pdopt.BilevelProgram(                           # y* = max(x, 1): the constraint holds below 1
        ...     upper=lambda x, y: y**2, lower=lambda x, y: (y - x) ** 2, start=(0.0, 0.0),
        ...     inequality=lambda x, y: 1 - y, dtype=jnp.float32)
        >>> [round(float(pdopt.hypergradient(program, x).gradient), 4) for x in (0.0, 3.0)]
        [0.0, 6.0]
    """
    with precision_scope(program):
        x, lower, tolerance = _inputs(program, x, start, tolerance)
        return _hypergradient(program, x, lower, tolerance)


@jax.jit
def _hypergradient(program: BilevelProgram, x: Any, start: Pair, tolerance: Any) -> Hypergradient:
    root = solve_lower(program, x, start, tolerance)
    w = root.point
    mu, g = w.y.inequality, program.constraints(x, w.x).inequality
    near = jnp.sqrt(tolerance)
    weak = [jnp.any((jnp.abs(a) <= near) & (jnp.abs(b) <= near)) for a, b in zip(*map(jax.tree.leaves, (mu, g)))]
    degenerate = jnp.any(jnp.stack(weak)) if weak else jnp.bool_(False)
    gradient = program.adjoint(x, w).hypergradient
    return Hypergradient(program.upper(x, w.x, *program.args), gradient, w, root.error, degenerate)


def lower_solution(program: BilevelProgram, x: Any, start: Pair | None = None, *, tolerance: Any = None) -> Pair:
    """`Pair(y*(x), multipliers)`, differentiable in x and in the program's floating data, forward and reverse.

    Args, Raises: as `hypergradient`. The derivative is that of the optimality conditions, of first order.

    Example:
        >>> import pdopt
        >>> program = pdopt.BilevelProgram(
        ...     upper=lambda x, y: y, lower=lambda x, y: (y - x) ** 2 / 2, start=(0.0, 0.0),
        ...     inequality=lambda x, y: y - x / 2, dtype=jnp.float32)
        >>> print(jax.grad(lambda x: pdopt.lower_solution(program, x).x ** 2)(2.0))
        1.0
    """
    with precision_scope(program):
        return _lower_solution(program, *_inputs(program, x, start, tolerance))


_lower_solution = jax.jit(lower_answer)


def polish_bilevel(
    program: BilevelProgram, start: Pair | Solution, *, tolerance: Any = None, steps: int = 20
) -> Solution:
    """Newton on `x = P_X(x - r)`, `N(x, w) = 0`, `grad_w F + N_w' p = 0` in (x, w, p), from a point near a solution.

    The projections carry the active sets of both levels; what is left is the optimality system of the single-level
    problem, and the convergence that of Newton: from an LV-HBA point to 1e-10 in a few steps. Small problems: the
    system has the size of x and twice that of y and the multipliers, and is dense.

    Args:
        start: the pair to begin from, or a solution; its lower level is solved first.
        tolerance: as in `solve`, by default 1e-8 in float64 and 1e-4 in float32.
        steps: of Newton, at most.

    Returns:
        `Solution`: OPTIMAL, PRECISION_LIMIT where Newton came to a halt above the tolerance, or NUMERICAL_ERROR; never
        a pair with larger residuals than the start. `iterations` are Newton's.

    Example:
        >>> import pdopt
        >>> program = pdopt.BilevelProgram(
        ...     upper=lambda x, y: x**2 / 2 + y**2 / 2, lower=lambda x, y: (y - x) ** 2 / 2,
        ...     inequality=lambda x, y: y - x + 1, start=(0.0, 0.0), dtype=jnp.float32)
        >>> solution = polish_bilevel(program, program.first())
        >>> print(solution.reason, solution.x.upper.round(4))
        optimal 0.5
    """
    if not isinstance(steps, int) or steps < 1:
        raise InvalidOption(f"steps is {steps!r}; expected an integer >= 1")
    with precision_scope(program):
        pair = checked_start(program, start)
        if pair is None:
            raise InvalidOption("start is None; expected a Pair or a Solution near which to look")
        tolerance = _tolerance(program, tolerance, 1e-8, 1e-4)
        return _polish(program, pair, tolerance, steps)


@partial(jax.jit, static_argnames="steps")
def _polish(program: BilevelProgram, pair: Pair, tolerance: Any, steps: int) -> Solution:
    dtype = tolerance.dtype
    fine = 4 * jnp.finfo(dtype).eps
    lower = solve_lower(program, pair.x.upper, Pair(pair.x.lower, pair.y), 100 * fine, blocks=0).point
    first = (pair.x.upper, lower, program.adjoint(pair.x.upper, lower).lower)
    flat, shaped = ravel_pytree(first)

    def system(v: Any) -> Any:
        x, w, p = shaped(v)
        natural, pull = jax.vjp(program.natural, x, w)
        slope_x, slope_y = jax.grad(program.upper, argnums=(0, 1))(x, w.x, *program.args)
        by_x, by_w = pull(p)
        r = jax.tree.map(jnp.add, slope_x, by_x)
        moved = program.X.project(jax.tree.map(jnp.subtract, x, r))
        rest = Pair(jax.tree.map(jnp.add, slope_y, by_w.x), by_w.y)
        return ravel_pytree((jax.tree.map(jnp.subtract, x, moved), natural, rest))[0]

    # Neither p nor, where the lower level has many solutions, w is alone: the nearest root is taken.
    root = newton(system, flat, steps=steps, tolerance=fine, singular=True)
    x, w, _ = shaped(root.point)
    before, after = program.optimality(pair), program.optimality(Pair(Levels(x, w.x), w.y))
    better = after.residuals.error <= before.residuals.error
    kept, found = jax.tree.map(
        lambda new, old: jnp.where(better, new, old), (Pair(Levels(x, w.x), w.y), after), (pair, before)
    )
    error = found.residuals.error
    status = jnp.where(error <= tolerance, int(Status.OPTIMAL), int(Status.PRECISION_LIMIT))
    status = jnp.where(jnp.isfinite(error), status, int(Status.NUMERICAL_ERROR)).astype(jnp.int32)
    ray = jax.tree.map(jnp.zeros_like, kept)
    return Solution(
        kept, status, found.objective, found.dual_objective, found.residuals, root.steps,
        program.certificate(found.proof, ray),
    )  # fmt: skip


def _tolerance(program: BilevelProgram, tolerance: Any, wide: float, narrow: float) -> Any:
    dtype = jnp.result_type(*jax.tree.leaves(program.start))
    tolerance = (wide if dtype == jnp.float64 else narrow) if tolerance is None else tolerance
    if concrete(tolerance):
        require_range("tolerance", tolerance, 0.0, open_low=True)
    return jnp.asarray(tolerance, dtype)


def _inputs(program: BilevelProgram, x: Any, start: Pair | None, tolerance: Any) -> tuple[Any, Pair, Any]:
    """x, start and tolerance as arrays of the program's shapes and type."""
    first = program.first()
    own = Pair(first.x.lower, first.y)
    given = own if start is None else start
    for name, value, like in (("x", x, first.x.upper), ("start", given, own)):
        if jax.tree.structure(value) != jax.tree.structure(like):
            raise InvalidProblem(
                f"{name} has structure {jax.tree.structure(value)}; expected {jax.tree.structure(like)}"
            )
        for a, b in zip(jax.tree.leaves(value), jax.tree.leaves(like)):
            if np.shape(a) != b.shape:
                raise InvalidProblem(f"{name} has shape {np.shape(a)}; expected {b.shape}")
    dtype = jnp.result_type(*jax.tree.leaves(first))
    cast = lambda name, tree: jax.tree.map(lambda leaf: as_array(name, leaf, dtype), tree)
    return cast("x", x), cast("start", given), _tolerance(program, tolerance, 1e-9, 1e-5)
