"""SciPy's SLSQP and trust-constr, and Ipopt (`ipyopt`), on the functions of a CUTEst problem, with evaluations counted.

All see the same jitted float64 functions of JAX, gradients and Jacobians; trust-constr and Ipopt also exact Hessians.
"""

import importlib.util
import time
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize
from scipy.optimize import minimize

from benchmarks.constrained_judge import Point
from benchmarks.instances.cutest import Program

# SciPy's annotations of these two know numbers and names only, not arrays and functions.
Bounds, NonlinearConstraint = cast(Any, optimize.Bounds), cast(Any, optimize.NonlinearConstraint)

PEERS = ("SLSQP", "trust-constr", "Ipopt")
ITERATIONS = 3000


class Answer(NamedTuple):
    """Where a solver stopped, evaluations of f, CPU seconds without compilation, and what it says of itself."""

    x: np.ndarray
    evaluations: int
    cpu: float
    says: str


class Functions:
    """Values and derivatives of a problem at x in one compiled call, the last point kept; counts of f and Hessians."""

    def __init__(self, program: Program) -> None:
        self.program, self.calls, self._at, self._point = program, 0, None, None
        none = lambda x: jnp.zeros(0, x.dtype)
        rows = [c or none for c in (program.equality, program.inequality)]

        def stacked(x: Any) -> Any:
            return jnp.concatenate([program.f(x)[None], *(row(x) for row in rows)])

        self._look = jax.jit(lambda x: (stacked(x), jax.jacrev(stacked)(x)))
        self._bend = jax.jit(jax.hessian(lambda x, w: stacked(x) @ w))
        shapes = [jax.eval_shape(row, jax.ShapeDtypeStruct(program.start.shape, np.float64)).shape[0] for row in rows]
        self.equal, self.unequal = shapes

    def point(self, x: np.ndarray) -> Point:
        """Everything of first order at x."""
        x = np.asarray(x, float)
        if self._at is None or not np.array_equal(x, self._at):
            value, slopes = (np.asarray(part) for part in self._look(x))
            cut = 1 + self.equal
            self._point = Point(float(value[0]), slopes[0], value[1:cut], slopes[1:cut], value[cut:], slopes[cut:])
            self._at, self.calls = x.copy(), self.calls + 1
        assert self._point is not None
        return self._point

    def hessian(self, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Of `weights[0] f + weights[1:] (h, g)`."""
        return np.asarray(self._bend(np.asarray(x, float), weights))

    def warm(self, second: bool) -> None:
        """Compile."""
        self.point(self.program.start)
        if second:
            self.hessian(self.program.start, np.ones(1 + self.equal + self.unequal))
        self.calls, self._at = 0, None


def available(name: str) -> bool:
    """Whether a peer is installed."""
    return name != "Ipopt" or importlib.util.find_spec("ipyopt") is not None


def solve(name: str, functions: Functions) -> Answer:
    """One run of a peer from the problem's start, its bounds respected; compilation is not in the time."""
    functions.warm(name != "SLSQP")
    began = time.process_time()
    x, says = {"SLSQP": _slsqp, "trust-constr": _trust, "Ipopt": _ipopt}[name](functions)
    return Answer(np.asarray(x, float), functions.calls, time.process_time() - began, says)


def _slsqp(functions: Functions) -> tuple[Any, str]:
    program, at = functions.program, functions.point
    rows = []
    if functions.equal:
        rows.append({"type": "eq", "fun": lambda x: at(x).h, "jac": lambda x: at(x).h_slopes})
    if functions.unequal:
        rows.append({"type": "ineq", "fun": lambda x: -at(x).g, "jac": lambda x: -at(x).g_slopes})
    found = minimize(
        lambda x: at(x).f, program.start, jac=lambda x: at(x).slope, method="SLSQP", constraints=rows,
        bounds=Bounds(program.lower, program.upper), options={"maxiter": ITERATIONS, "ftol": 1e-12},
    )  # fmt: skip
    return found.x, str(found.message)


def _trust(functions: Functions) -> tuple[Any, str]:
    program, at = functions.program, functions.point
    zeros = np.zeros(functions.unequal)
    rows: list[Any] = []
    if functions.equal:
        hess = lambda x, w: functions.hessian(x, np.concatenate([[0.0], w, zeros]))
        rows.append(NonlinearConstraint(lambda x: at(x).h, 0, 0, jac=lambda x: at(x).h_slopes, hess=hess))
    if functions.unequal:
        blank = np.zeros(1 + functions.equal)
        bend = lambda x, w: functions.hessian(x, np.concatenate([blank, w]))
        rows.append(NonlinearConstraint(lambda x: at(x).g, -np.inf, 0, jac=lambda x: at(x).g_slopes, hess=bend))
    alone = np.eye(1 + functions.equal + functions.unequal)[0]
    bounded = np.isfinite(program.lower).any() or np.isfinite(program.upper).any()
    found = minimize(
        lambda x: at(x).f, np.clip(program.start, program.lower, program.upper), jac=lambda x: at(x).slope,
        hess=lambda x: functions.hessian(x, alone), method="trust-constr", constraints=rows,
        bounds=Bounds(program.lower, program.upper) if bounded else None,
        options={"maxiter": ITERATIONS, "gtol": 1e-10, "xtol": 1e-12},
    )  # fmt: skip
    return found.x, str(found.message)


def _ipopt(functions: Functions) -> tuple[Any, str]:
    import ipyopt  # pyright: ignore[reportMissingImports]

    program, at = functions.program, functions.point
    n, m = program.start.size, functions.equal + functions.unequal
    low = np.concatenate([np.zeros(functions.equal), np.full(functions.unequal, -2e19)])
    rows, columns = (part.ravel() for part in np.indices((m, n)))
    lower = np.tril_indices(n)

    def put(out: Any, value: Any) -> Any:
        out[()] = value
        return out

    problem = ipyopt.Problem(
        n, np.maximum(program.lower, -2e19), np.minimum(program.upper, 2e19), m, low, np.zeros(m),
        (rows, columns), lower,
        lambda x: at(x).f,
        lambda x, out: put(out, at(x).slope),
        lambda x, out: put(out, np.concatenate([at(x).h, at(x).g])),
        lambda x, out: put(out, np.concatenate([at(x).h_slopes, at(x).g_slopes]).ravel()),
        lambda x, y, factor, out: put(out, functions.hessian(x, np.concatenate([[factor], y]))[lower]),
        ipopt_options={"print_level": 0, "sb": "yes", "max_iter": ITERATIONS, "tol": 1e-9},
    )  # fmt: skip
    x, _, status = problem.solve(np.array(program.start, float))
    return x, f"status {status}"
