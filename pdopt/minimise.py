"""`minimise`: smooth objectives and constraints on pytrees, by the method of multipliers."""

from collections.abc import Callable
from typing import Any

from pdopt.problems.nonlinear import Multipliers, NonlinearProgram
from pdopt.solve import solve
from pdopt.types import Pair, Solution


def minimise(
    f: Callable[..., Any],
    start: Any,
    *,
    args: Any = (),
    equality: Callable[..., Any] | None = None,
    inequality: Callable[..., Any] | None = None,
    lower: Any = None,
    upper: Any = None,
    method: Any = None,
    tolerance: Any = None,
    max_iterations: Any = None,
    multipliers: Multipliers | None = None,
    gradient: str = "implicit",
    history: int = 0,
) -> Solution:
    """`min f(x, *args)` subject to `equality(x, *args) = 0`, `inequality(x, *args) <= 0`, `lower <= x <= upper`.

    A local minimiser by the augmented Lagrangian with an inner method (`AugmentedLagrangian`; by default Newton,
    dense, for up to some 500 variables; `ProjectedNewtonCG` and `ProjectedLBFGS` go further). Traceable: `vmap` over
    starts or args solves many problems at once, `jit` and `grad` pass through. For one compilation pass the same
    functions at each call, with data in `args`. On a CPU a `vmap` takes 32 members at a time, and the flag of XLA that
    the README names, set before JAX starts, about halves its time where the problem is small.

    Args:
        f: scalar function of x and args, twice differentiable near the solution, traceable by JAX.
        start: pytree of arrays with the structure, shapes and floating type of x; or a previous `Solution`, which is a
            warm start with its multipliers. It need not be feasible.
        args: pytree of arrays handed to the three functions, each member of the tuple as one argument. Solution and
            value are differentiable in it, forward and reverse (`gradient="implicit"`).
        equality: pytree of arrays, 0 when satisfied; None for none. inequality: likewise, `<= 0` when satisfied.
        lower: bounds: a scalar, or a pytree that is a prefix of `start`; None for none. upper: likewise.
        method: an `AugmentedLagrangian`; None takes its defaults.
        tolerance: see `NonlinearProgram`'s residuals: each must be at most this. None: 1e-6 in float64, 1e-4 in float32
            (which badly scaled problems do not reach: PRECISION_LIMIT).
        max_iterations: moves of the multipliers (each an inner minimisation). None: 200.
        multipliers: `Multipliers(equality, inequality)` to begin with, in the shapes of the constraints; None: 0.
        gradient: "implicit" or "none" (a constant).
        history: rows of `solution.history` to keep.

    Returns:
        `Solution`: `x`; `y.equality`, `y.inequality` (`L = f + <y, v>`, `y.inequality >= 0`: what loosening a
        constraint by one unit would save); `certificate` (`slope`: multipliers of bounds, `degenerate`); `work`
        (evaluations).
        Status OPTIMAL, LOCALLY_INFEASIBLE, PENALTY_LIMIT, PRECISION_LIMIT, ITERATION_LIMIT, DIVERGED (unbounded below),
        NUMERICAL_ERROR (the best finite pair is returned) or PRIMAL_INFEASIBLE (crossed bounds).

    Raises:
        InvalidProblem: a function that cannot be traced, or returns what is not a scalar or arrays; shapes that differ;
            NaN in `start`. InvalidOption: an option outside its range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> f = lambda x, centre: jnp.sum((x["a"] - centre) ** 2) + x["b"] ** 2
        >>> inside = lambda x, centre: jnp.sum(x["a"] ** 2) - 1
        >>> start = {"a": jnp.zeros(2), "b": jnp.float32(1.0)}
        >>> solution = minimise(f, start, args=(jnp.array([3.0, 4.0]),), inequality=inside)
        >>> print(solution.x["a"].round(3), solution.y.inequality.round(2), solution.reason.name)
        [0.6 0.8] 4.0 OPTIMAL
    """
    if isinstance(start, Solution):
        multipliers = start.y if multipliers is None else multipliers
        start = start.x
    program = NonlinearProgram(f, start, args, equality, inequality, lower, upper)
    first = None if multipliers is None else Pair(program.start, multipliers)
    return solve(
        program, method, start=first, tolerance=tolerance, max_iterations=max_iterations, gradient=gradient,
        history=history,
    )  # fmt: skip
