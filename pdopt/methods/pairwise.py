"""Entropic transport between many pairs of histograms on one cost: one matrix product serves a chunk of pairs.

    U = A / (V K'),   V = B / (U K),   K = exp(-C / eps),   a row of A, B, U, V for each pair

is Sinkhorn's method at omega = 1 (`sinkhorn.py`), the saddle step in multiplicative form: `u' = u (a / (u K v))`. The
products are matrix by matrix, where a batch of separate solves would have matrix by vector. Chunks of pairs small enough
for the cache run one after the other, each until its own worst pair is within the tolerance.

K underflows once `max C / eps` is large. From there on each pair gets a kernel that holds its own potentials, and
annealing and over-relaxation with it: a batch of `Sinkhorn` solves, in chunks all the same.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from pdopt.errors import InvalidOption, InvalidProblem, require_range, require_shape, unknown_name
from pdopt.methods.sinkhorn import Sinkhorn
from pdopt.problems.checks import concrete
from pdopt.problems.couplings import Marginals, Potentials
from pdopt.problems.entropy import Entropy
from pdopt.problems.transport import Transport
from pdopt.rules.loop import advance_until, begin
from pdopt.rules.saddle import row, saddle_step
from pdopt.runtime.precision import as_array, precision_scope
from pdopt.types import Pair, Solution, Status

MODES = ("auto", "shared", "apart")
# Largest `max C / eps` for one shared kernel: scalings then stay within exp(+-60), far from what float32 holds.
SHARED_EXPONENT = 60.0


def pairwise(
    problem: Transport,
    A: Any,
    B: Any,
    *,
    tolerance: float = 1e-4,
    max_iterations: int = 2000,
    mode: str = "auto",
    chunk: int = 64,
    every: int = 10,
) -> Solution:
    """Transport `A[k]` to `B[k]` for every k, all at the cost and epsilon of one balanced problem.

    Args:
        problem: `Transport` with `Entropy`; its own masses are not used.
        A: `(pairs, n)` masses >= 0; B: `(pairs, m)`, of the same totals.
        tolerance: L1 error of both marginals over the mass, of every pair.
        max_iterations: sweeps of each pair, at most.
        mode: "shared", one kernel for all; "apart", a kernel each, for small epsilon; "auto": shared where its entries
            are within range, which takes data that are not traced (traced data are solved apart).
        chunk: pairs solved together, >= 1.
        every: sweeps between checks, >= 1.

    Returns:
        `Solution` whose leaves have a leading axis of pairs: `objective` the values, `pair.y` the potentials, `pair.x`
        the marginals of the plans. A constant: it has no derivative.

    Raises:
        InvalidProblem: masses of a wrong shape, negative, without mass, or of unequal totals.
        InvalidOption: not an entropic balanced problem, or a setting outside its range.

    Example:
        >>> import pdopt
        >>> line = (jnp.arange(4.0, dtype=jnp.float32)[:, None] - jnp.arange(4.0, dtype=jnp.float32)) ** 2
        >>> problem = pdopt.Transport(line, regulariser=pdopt.Entropy(0.5))
        >>> found = pairwise(problem, jnp.eye(4)[:2], jnp.eye(4)[2:])
        >>> print(found.objective.round(3))
        [4. 4.]
    """
    if not isinstance(problem.regulariser, Entropy):
        raise InvalidOption(f"regulariser is {problem.regulariser!r}; expected Entropy(epsilon)")
    weights = [concrete(weight) for weight in problem.unbalanced]
    if any(weight is not None and np.isfinite(weight) for weight in weights):
        raise InvalidOption("unbalanced weights are finite; pairwise solves balanced problems")
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    for name, value in (("max_iterations", max_iterations), ("chunk", chunk), ("every", every)):
        if not isinstance(value, int) or value < 1:
            raise InvalidOption(f"{name} is {value!r}; expected an integer >= 1")
    if not isinstance(tolerance, Tracer):
        require_range("tolerance", tolerance, 0.0, open_low=True)
    dtype = problem.cost.dtype
    with precision_scope(problem):
        A, B = _masses(problem, A, B, dtype)
        if mode == "auto":
            mode = _mode(problem)
        # A chunk that is not full does work for nothing: the last one is filled up with its last pair.
        size = min(chunk, A.shape[0])
        solve = _shared if mode == "shared" else _apart
        return _chunks(problem, A, B, jnp.asarray(tolerance, dtype), jnp.int32(max_iterations), solve, size, every)


def _masses(problem: Transport, A: Any, B: Any, dtype: Any) -> tuple[Any, Any]:
    A, B = as_array("A", A, dtype), as_array("B", B, dtype)
    for name, masses, size in (("A", A, problem.shape[0]), ("B", B, problem.shape[1])):
        if masses.ndim != 2 or not masses.shape[0]:
            raise InvalidProblem(f"{name} has shape {masses.shape}; expected (pairs, {size})")
        require_shape(name, masses.shape, (A.shape[0], size), f"cost has shape {problem.shape}, A {A.shape[0]} rows")
        seen = concrete(masses)
        if seen is not None and not (np.isfinite(seen).all() and (seen >= 0).all() and (seen.sum(1) > 0).all()):
            raise InvalidProblem(f"{name} has a negative mass, NaN, or a row without mass; expected masses >= 0")
    seen, also = concrete(A), concrete(B)
    if seen is not None and also is not None:
        totals, others = seen.sum(1, dtype=np.float64), also.sum(1, dtype=np.float64)
        wrong = np.abs(totals - others) > float(jnp.finfo(dtype).eps) ** 0.5 * totals
        if wrong.any():
            k = int(np.argmax(wrong))
            raise InvalidProblem(f"A[{k}] has the total {totals[k]:.9g}, B[{k}] {others[k]:.9g}; expected equal totals")
    return A, B


def _mode(problem: Transport) -> str:
    leaves = jax.tree.leaves((problem.cost, problem.regulariser))
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        return "apart"
    return "shared" if float(problem.cost.largest() / problem.regulariser.epsilon) <= SHARED_EXPONENT else "apart"


@partial(jax.jit, static_argnames=("solve", "size", "every"))
def _chunks(
    problem: Transport, A: Any, B: Any, tolerance: Any, limit: Any, solve: Any, size: int, every: int
) -> Solution:
    """Chunk after chunk, and the pairs in one row again."""
    pairs = A.shape[0]
    number = -(-pairs // size)

    def split(masses: Any) -> Any:
        filled = jnp.concatenate([masses, jnp.repeat(masses[-1:], number * size - pairs, axis=0)])
        return filled.reshape(number, size, -1)

    one = solve(problem, tolerance, limit, every)
    found = lax.map(lambda masses: one(*masses), (split(A), split(B)))
    return jax.tree.map(lambda leaf: leaf.reshape((number * size, *leaf.shape[2:]))[:pairs], found)


def _shared(problem: Transport, tolerance: Any, limit: Any, every: int) -> Any:
    """A chunk on one kernel."""
    epsilon = problem.regulariser.epsilon
    C = problem.cost.todense()
    K = jnp.exp(-C / epsilon)
    # What rounding of the potentials may add, so that the last look is within the tolerance too.
    unseen = jnp.finfo(C.dtype).eps * problem.cost.largest() / epsilon
    aim = jnp.maximum(tolerance - unseen, tolerance / 2)
    times = partial(jnp.matmul, precision=lax.Precision.HIGHEST)

    def one(A: Any, B: Any) -> Solution:
        # In multiplicative form the violation is the scaling that makes the marginal exact, and the move takes it.
        rows = row(
            primal=lambda x, y: x._replace(row=times(y.g, K.T)),
            violation=lambda seen: A / seen.row,
            move=lambda y, v, step: y._replace(f=v),
        )
        columns = row(
            primal=lambda x, y: x._replace(column=times(y.f, K)),
            violation=lambda seen: B / seen.column,
            move=lambda y, v, step: y._replace(g=v),
        )
        totals = jnp.sum(A, axis=1)

        def sweep(pair: Pair) -> Pair:
            pair, _ = saddle_step(rows, 1.0, pair)
            pair, _ = saddle_step(columns, 1.0, pair)
            return pair

        def block(carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            pair, _, done = carry
            steps = jnp.minimum(every, limit - done)
            pair = lax.fori_loop(0, steps - 1, lambda _, p: sweep(p), pair)
            # The columns are exact after their half sweep, so the rows' error is the whole of it; it is that of the
            # sweep before the last, which is not smaller.
            before = pair.y
            pair, _ = saddle_step(rows, 1.0, pair)
            error = jnp.sum(jnp.abs(before.f * pair.x.row - A), axis=1) / totals
            pair, _ = saddle_step(columns, 1.0, pair)
            return pair, error, done + steps

        first = Pair(Marginals(A, B), Potentials(jnp.ones_like(A), jnp.ones_like(B)))
        start = (first, jnp.full_like(totals, jnp.inf), jnp.int32(0))
        going = lambda carry: (carry[2] < limit) & ~jnp.all(carry[1] <= aim) & ~jnp.any(jnp.isnan(carry[1]))
        pair, _, sweeps = lax.while_loop(going, block, start)
        U, V = pair.y
        marginals = Marginals(U * times(V, K.T), V * times(U, K))
        logs = Potentials(*(_potential(scaling, masses, epsilon) for scaling, masses in zip(pair.y, (A, B))))
        judged = lambda a, b, x, y: problem.replace(a=a, b=b, check=False).optimality(Pair(x, y))
        found = jax.vmap(judged)(A, B, marginals, logs)
        error = found.residuals.error
        status = jnp.where(error <= tolerance, int(Status.OPTIMAL), int(Status.ITERATION_LIMIT))
        hidden = (error > tolerance) & (sweeps < limit)
        status = jnp.where(hidden, int(Status.PRECISION_LIMIT), status)
        status = jnp.where(jnp.isfinite(error), status, int(Status.NUMERICAL_ERROR)).astype(jnp.int32)
        counts = jnp.full(status.shape, sweeps, jnp.int32)
        return Solution(
            Pair(marginals, logs), status, found.objective, found.dual_objective, found.residuals, counts, found.proof
        )

    return one


def _potential(scaling: Any, masses: Any, epsilon: Any) -> Any:
    """`eps log(u / a)`, 0 in empty bins."""
    there = masses > 0
    return epsilon * (jnp.log(jnp.where(there, scaling, 1)) - jnp.log(jnp.where(there, masses, 1)))


def _apart(problem: Transport, tolerance: Any, limit: Any, every: int) -> Any:
    """A chunk of separate solves, each with its own kernel."""
    method = Sinkhorn(every=every)

    def single(a: Any, b: Any) -> Solution:
        judge = problem.replace(a=a, b=b, check=False)
        view = method.view(judge)
        carry = begin(judge, view, method, view.start(), tolerance)
        carry = advance_until(judge, view, method, carry, limit, tolerance, limit)
        found, status = judge.audited(carry.pair, carry.optimality, carry.status, tolerance)
        return Solution(
            carry.pair, status, found.objective, found.dual_objective, found.residuals,
            carry.iterations, found.proof,
        )  # fmt: skip

    return jax.vmap(single)
