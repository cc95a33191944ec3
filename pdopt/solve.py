"""`solve`: a traceable solve of any problem by any method that accepts it."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdopt.errors import InvalidOption, require_range
from pdopt.methods.pdhg import PDHG
from pdopt.problems.linear import LinearProgram
from pdopt.rules.loop import Carry, advance_until, begin
from pdopt.runtime.precision import precision_scope
from pdopt.types import Pair, Solution, record

MAX_ITERATIONS = 1_000_000


def default_method(problem: Any) -> Any:
    return PDHG()


def solve(
    problem: Any,
    method: Any = None,
    *,
    start: Any = None,
    tolerance: Any = None,
    max_iterations: Any = None,
    gradient: str = "implicit",
    history: int = 0,
) -> Solution:
    with precision_scope(problem):
        method = default_method(problem) if method is None else method
        dtype = problem.c.dtype
        tolerance = (1e-6 if dtype == np.float64 else 1e-4) if tolerance is None else tolerance
        limit = jnp.int32(MAX_ITERATIONS if max_iterations is None else max_iterations)
        carry = _solve(problem, method, start, jnp.asarray(tolerance, dtype), limit, history)
        return finish(problem, carry)


def finish(problem, carry):
    o = carry.optimality
    s = problem.sense
    return Solution(problem.flip(carry.pair), carry.status, s*o.objective, s*o.dual_objective, o.residuals, carry.iterations, problem.certificate(o.proof, carry.ray), carry.history)


@jax.jit
def _solve_(problem, method, start, tolerance, limit):
    judge = problem.minimised()
    view = method.view(problem)
    start = view.back(view.start()) if start is None else start
    carry = begin(judge, view, method, start, tolerance)
    return advance_until(judge, view, method, carry, limit, tolerance, limit)


def _solve(problem, method, start, tolerance, limit, history):
    return _solve_(problem, method, start, tolerance, limit)
