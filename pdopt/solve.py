"""`solve`: a traceable solve of any problem by any method that accepts it.

A problem offers its judgement (`optimality(pair)` on the user's data), its minimised form and, through the views of
`problems/views.py`, the form that a method consumes. `solve` never prints and never waits for the device; `pdopt.run`
is the same loop driven from the host.
"""

import dataclasses
import warnings
from functools import partial, singledispatch
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from pdopt.errors import InvalidOption, InvalidProblem, UnsupportedProblem, require_range
from pdopt.methods.augmented_lagrangian import AugmentedLagrangian
from pdopt.methods.balancing import Balancer
from pdopt.methods.bilevel import LVHBA
from pdopt.methods.bregman_projections import BregmanProjections
from pdopt.methods.pdhg import PDHG
from pdopt.methods.piecewise_newton import PiecewiseNewton, banded
from pdopt.methods.semi_dual import SemiDual
from pdopt.methods.sinkhorn import Sinkhorn
from pdopt.problems.balancing import Balancing
from pdopt.problems.barycenter import Barycenter
from pdopt.problems.bilevel import BilevelProgram
from pdopt.problems.checks import concrete
from pdopt.problems.conic import ConicProgram
from pdopt.problems.entropy import Entropy
from pdopt.problems.game import MatrixGame
from pdopt.problems.linear import LinearProgram
from pdopt.problems.nonlinear import NonlinearProgram
from pdopt.problems.quadratic import QuadraticProgram
from pdopt.problems.sharded import ShardedProgram
from pdopt.problems.sparsity import KSparse, Quadratic
from pdopt.problems.transport import Transport
from pdopt.rules.implicit import GRADIENTS, envelope, guard, smooth_envelope
from pdopt.rules.loop import Carry, advance_unrolled, advance_until, begin, completed
from pdopt.runtime.batching import minor
from pdopt.runtime.fitted import compiled
from pdopt.runtime.precision import as_array, precision_scope
from pdopt.types import Pair, Solution

MAX_ITERATIONS = 1_000_000


@singledispatch
def default_method(problem: Any) -> Any:
    """The method used when none is named; a problem joins by `default_method.register`.

    Raises:
        UnsupportedProblem: not a problem of this library.
    """
    raise UnsupportedProblem(
        f"problem has type {type(problem).__name__}; expected a pdopt problem (LinearProgram, ...)"
    )


@default_method.register
def _(problem: LinearProgram) -> PDHG:
    return PDHG()


@default_method.register
def _(problem: ShardedProgram) -> PDHG:
    return PDHG()


@default_method.register
def _(problem: MatrixGame) -> PDHG:
    return PDHG()


@default_method.register
def _(problem: ConicProgram) -> PDHG:
    return PDHG()


@default_method.register
def _(problem: Balancing) -> Balancer:
    return Balancer()


@default_method.register
def _(problem: Transport) -> Any:
    if isinstance(problem.regulariser, Quadratic | KSparse):
        return SemiDual()
    return Sinkhorn() if isinstance(problem.regulariser, Entropy) else PDHG.transport()


@default_method.register
def _(problem: QuadraticProgram) -> Any:
    plan = banded(problem)
    return PDHG.quadratic() if plan is None else AugmentedLagrangian(inner=PiecewiseNewton(plan))


@default_method.register
def _(problem: NonlinearProgram) -> AugmentedLagrangian:
    return AugmentedLagrangian()


@default_method.register
def _(problem: Barycenter) -> BregmanProjections:
    return BregmanProjections()


@default_method.register
def _(problem: BilevelProgram) -> LVHBA:
    return LVHBA.staged()


def solve(
    problem: Any,
    method: Any = None,
    *,
    start: Pair | Solution | None = None,
    tolerance: Any = None,
    max_iterations: Any = None,
    gradient: str = "implicit",
    history: int = 0,
) -> Solution:
    """Solve a problem; `jit`, `vmap` and `grad` pass through it.

    Args:
        problem: `LinearProgram` and its kin.
        method: a method object such as `PDHG()`; None takes the problem's default.
        start: a `Pair` in the user's units or a previous `Solution` to begin from; it is moved into its sets. A start
            that is optimal already is returned after 0 iterations.
        tolerance: all three relative residuals must be at most this (> 0). None: 1e-6 in float64, 1e-4 in float32
            (transport: 1e-4 in both).
        max_iterations: saddle steps (>= 1). None: 1 000 000 (entropic transport: 2000 sweeps; nonlinear programs: 200).
        gradient: "implicit": `solution.objective` has the derivative of the optimal value with respect to every
            floating leaf of the problem (envelope theorem), and the pair has one where its problem offers
            `differentiated` (quadratic and nonlinear programs, entropic transport); elsewhere it refuses (a linear
            program's solution: see `proximal_program`). "unrolled": pair and objective have the derivative of
            `max_iterations` steps of the method, which must be given as an int; reverse mode keeps a state a check.
            "none": the result is a constant.
        history: rows of `solution.history` to keep: a fixed-size table of checks (columns `pdopt.HISTORY`).

    Returns:
        `Solution`, whose `status` says why it stopped; its residuals are those of the returned pair on the user's data.
        float32 reaches a tolerance of about 1e-4 on well-scaled problems. Small residuals do not prove that there is a
        point at all: `confirmed`, which `run` calls, looks at small linear programs again.

    Raises:
        InvalidOption: an option outside its range. InvalidProblem: a start of the wrong shape, or with NaN.
        UnsupportedProblem: the method has no use for this kind of problem.

    Example:
        >>> import pdopt
        >>> lp = pdopt.LinearProgram([-1.0, -1.0], [[1.0, 2.0]], [-jnp.inf], [4.0], [0.0, 0.0], [3.0, 3.0],
        ...                          dtype=jnp.float32)
        >>> solution = pdopt.solve(lp, tolerance=1e-5)
        >>> print(solution.x.round(2), round(float(solution.objective), 3))
        [3.  0.5] -3.5
    """
    method = default_method(problem) if method is None else method
    with precision_scope(problem):
        if hasattr(method, "admit"):
            method.admit(problem)
        options = checked_options(problem, tolerance, max_iterations, gradient, history)
        first = checked_start(problem, start)
        if gradient == "unrolled":
            return _unrolled(problem, method, first, options[0], unrolled_steps(method, max_iterations), history)
        given = (problem, method, first, *options)
        return _solve.fitting(*given)(*given, gradient, history)


def checked_options(problem: Any, tolerance: Any, max_iterations: Any, gradient: str, history: int) -> tuple[Any, Any]:
    """Tolerance and iteration limit as arrays of the right type, after validation."""
    dtype = floating_type(problem)
    wide = dtype == np.float64
    own = getattr(problem, "defaults", {})
    tolerance = own.get("tolerance", 1e-6 if wide else 1e-4) if tolerance is None else tolerance
    max_iterations = own.get("max_iterations") or MAX_ITERATIONS if max_iterations is None else max_iterations
    if not isinstance(tolerance, Tracer):
        require_range("tolerance", tolerance, 0.0, open_low=True)
        floor = 10 * float(jnp.finfo(dtype).eps)
        if float(tolerance) < floor:
            message = f"tolerance {float(tolerance):g} is below what {dtype.name} can reach, about {floor:.1e}"
            warnings.warn(message, stacklevel=3)
    if not isinstance(max_iterations, Tracer):
        require_range("max_iterations", max_iterations, 1, 2**30)
    if gradient not in GRADIENTS:
        raise InvalidOption(f"gradient is {gradient!r}; expected one of {GRADIENTS}")
    if not isinstance(history, int) or history < 0:
        raise InvalidOption(f"history is {history!r}; expected an integer >= 0, the rows to keep")
    return jnp.asarray(tolerance, dtype), jnp.asarray(max_iterations, jnp.int32)


def unrolled_steps(method: Any, max_iterations: Any) -> int:
    """The number of steps to differentiate through.

    Raises:
        InvalidOption: not given as an int. UnsupportedProblem: a method whose steps have loops of their own.
    """
    if not isinstance(max_iterations, int):
        raise InvalidOption(
            f"max_iterations is {max_iterations!r}; expected an int: gradient='unrolled' takes that many"
        )
    plain = getattr(method, "unrolls", not hasattr(method, "block"))
    if not plain or hasattr(method, "judged") or getattr(method, "remakes", False):
        raise UnsupportedProblem(
            f"{type(method).__name__} cannot be unrolled; gradient='unrolled' is for methods of plain steps (PDHG())"
        )
    return max_iterations


def checked_start(problem: Any, start: Any) -> Pair | None:
    """The start as a pair of the problem's shapes and type, or None.

    Raises:
        InvalidProblem: another structure or shape, or NaN.
    """
    if start is None:
        return None
    pair = start.pair if isinstance(start, Solution) else start
    if not isinstance(pair, Pair):
        raise InvalidOption(f"start has type {type(start).__name__}; expected a Pair or a Solution")
    if hasattr(problem, "inside"):
        pair = problem.inside(pair)
    shapes = problem.pair_shapes()
    for name, given, like in zip(("start.x", "start.y"), pair, shapes):
        if jax.tree.structure(given) != jax.tree.structure(like):
            raise InvalidProblem(
                f"{name} has structure {jax.tree.structure(given)}; expected {jax.tree.structure(like)}"
            )
        for leaf, shape in zip(jax.tree.leaves(given), jax.tree.leaves(like)):
            if np.shape(leaf) != shape.shape:
                raise InvalidProblem(f"{name} has shape {np.shape(leaf)}; expected {shape.shape}")
            seen = concrete(leaf)
            if seen is not None and np.isnan(seen).any():
                raise InvalidProblem(f"{name} has NaN")
    return jax.tree.map(lambda leaf, shape: as_array("start", leaf, shape.dtype), pair, shapes)


def floating_type(problem: Any) -> Any:
    """The problem's floating dtype: that of its leaves."""
    leaves = [leaf.dtype for leaf in jax.tree.leaves(problem) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return np.dtype(jnp.result_type(*leaves))


def prepare(problem: Any, method: Any, start: Pair | None, tolerance: Any, history: int) -> tuple[Any, Any, Carry]:
    """Judge, view and first carry of a run, in the sense of the minimisation."""
    judge = problem.minimised()
    view = method.view(judge)
    first = None if start is None else problem.flip(start)
    return judge, view, begin(judge, view, method, first, tolerance, history)


def finish(problem: Any, carry: Carry, tolerance: Any) -> Solution:
    """The solution in the user's sense."""
    found, status = carry.optimality, carry.status
    if hasattr(problem, "audited"):
        found, status = problem.audited(carry.pair, found, status, tolerance)
    pair = problem.flip(carry.pair)
    return Solution(
        problem.shown(pair) if hasattr(problem, "shown") else pair,
        status,
        problem.sense * found.objective,
        problem.sense * found.dual_objective,
        found.residuals,
        jnp.maximum(carry.iterations, 0),
        problem.certificate(found.proof, carry.ray),
        carry.history if carry.history.rows.shape[0] else None,
        getattr(carry.state, "work", None),
    )


def _iterated(problem: Any, method: Any, start: Any, tolerance: Any, limit: Any, history: int) -> Any:
    """The last carry and the solution of a run without derivatives."""
    judge, view, carry = prepare(problem, method, start, tolerance, history)
    carry = completed(view, method, advance_until(judge, view, method, carry, limit, tolerance, limit))
    return carry, finish(problem, carry, tolerance)


@partial(jax.jit, static_argnames=("limit", "history"))
def _unrolled(problem: Any, method: Any, start: Any, tolerance: Any, limit: int, history: int) -> Solution:
    judge, view, carry = prepare(problem, method, start, tolerance, history)
    carry = advance_unrolled(judge, view, method, carry, tolerance, limit)
    solution = finish(problem, carry, tolerance)
    still = jax.lax.stop_gradient(solution)
    return dataclasses.replace(still, pair=solution.pair, objective=problem.objective(solution.x))


def _solved(problem: Any, method: Any, start: Any, tolerance: Any, limit: Any, gradient: str, history: int) -> Solution:
    still = jax.lax.stop_gradient((problem, method, start, tolerance))
    width = method.width(problem) if hasattr(method, "width") else None
    carry, solution = minor(partial(_iterated, history=history), width)(*still, limit)
    if gradient == "none" or not hasattr(problem, "lagrangian"):
        return solution

    proof = carry.optimality.proof
    moved = problem.differentiated(carry.pair) if hasattr(problem, "differentiated") else None
    held = carry.pair if moved is None else moved
    if moved is not None and hasattr(problem, "proof_moved"):
        proof = problem.proof_moved(moved, proof)

    def lagrangian(data: Any) -> Any:
        return data.sense * data.minimised().lagrangian(held, proof)

    if moved is not None:
        objective = smooth_envelope(solution.objective, lagrangian, problem)
        pair = problem.flip(moved)
        pair = problem.shown(pair) if hasattr(problem, "shown") else pair
        return dataclasses.replace(solution, objective=objective, pair=pair)
    objective = envelope(solution.objective, lagrangian, problem)
    floats = [leaf for leaf in jax.tree.leaves(problem) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return dataclasses.replace(solution, objective=objective, pair=guard(solution.pair, floats))


_solve = compiled(_solved, static_argnames=("gradient", "history"))
