"""`solve_many`: programs that differ in some data, a fixed number at a time, each place refilled when it falls free.

A `vmap` of `solve` runs until its slowest member ends. Here a compiled batch of `width` members advances by a few
checks at a time; between two advances members that have ended leave and waiting ones take their places, so that no
lane idles while others wait. The batch is carried along the last axis (`pdopt/runtime/batching.py`): products with a
matrix that all share are matrix-matrix products, and a member takes the iterations that it takes alone.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pdopt.errors import InvalidOption, InvalidProblem, UnsupportedProblem, unknown_name
from pdopt.operators.sparse import Sparse
from pdopt.rules.loop import advance_until
from pdopt.runtime.batching import along_last
from pdopt.runtime.precision import as_array, precision_scope
from pdopt.solve import checked_options, checked_start, default_method, finish, floating_type, prepare
from pdopt.types import Pair, Solution, Status

WIDTH = 32  # members at a time: on a CPU the fastest of 16 to 256 on e226 (their vectors stay in the second cache)
LANES = 8  # a batch is a multiple of it: members beyond the last full vector of a CPU may round another way
FIELDS = ("c", "A", "row_lower", "row_upper", "lower", "upper", "Q", "offset")
CHECKS = 16  # between two looks at who has ended


def solve_many(
    problem: Any,
    changes: Mapping[str, Any],
    method: Any = None,
    *,
    starts: Pair | Solution | None = None,
    tolerance: Any = None,
    max_iterations: Any = None,
    width: int = WIDTH,
    inner: Any = None,
) -> Solution:
    """Solve `problem` once for every row of `changes`; what comes back is stacked, in their order.

    Args:
        problem: a `LinearProgram` or `QuadraticProgram` that holds what all members share.
        changes: field name -> array with a leading axis of K members. Of a `Sparse` A: `(K, nnz)`, the values of its
            stored entries, row by row.
        method: as for `solve`.
        starts: pairs with a leading axis of K, or an earlier result.
        tolerance, max_iterations: as for `solve`; of each member.
        width: members advanced at a time, >= 1; a multiple of 8 where members should round as they do alone.
        inner: a narrower floating dtype to iterate in first (`jnp.float32`). Every member is then judged on its data in
            their own precision, and goes on from there in it unless that says OPTIMAL: half the time where float32
            can reach the tolerance. Iterations of both are counted.

    Returns:
        A `Solution` of NumPy arrays with a leading axis of K: statuses, counts and residuals are each member's own.

    Raises:
        InvalidProblem: an unknown field, or leading axes that differ. InvalidOption: a width below 1.
        UnsupportedProblem: a method that keeps only a part of its pair (`PDHG.lean()`, `PDHG.transport()`).

    Example:
        >>> import pdopt
        >>> lp = pdopt.LinearProgram([1.0, 2.0], [[1.0, 1.0]], [1.0], [jnp.inf], [0.0, 0.0], dtype=jnp.float32)
        >>> found = solve_many(lp, {"row_lower": np.array([[1.0], [2.0], [3.0]])}, tolerance=1e-5, width=2)
        >>> print(found.objective.round(3), [str(Status(int(s))) for s in found.status])
        [1. 2. 3.] ['optimal', 'optimal', 'optimal']
    """
    method = default_method(problem) if method is None else method
    if not isinstance(width, int) or width < 1:
        raise InvalidOption(f"width is {width!r}; expected an integer >= 1")
    if getattr(method, "remakes", False):
        raise UnsupportedProblem(f"{method.acceleration} keeps only a part of its pair; use it with solve")
    count = _count(problem, changes)
    starts = starts.pair if isinstance(starts, Solution) else starts
    if inner is not None:
        narrow = jnp.dtype(inner)
        with precision_scope(problem):
            asked = float(checked_options(problem, tolerance, None, "none", 0)[0])
        first = solve_many(
            _cast(problem, narrow), changes, method, starts=starts, tolerance=max(asked, 20 * jnp.finfo(narrow).eps),
            max_iterations=max_iterations, width=width,
        )  # fmt: skip
        found = solve_many(
            problem, changes, method, starts=first.pair, tolerance=tolerance, max_iterations=max_iterations, width=width
        )
        return dataclasses.replace(found, iterations=first.iterations + found.iterations)
    with precision_scope(problem):
        options = checked_options(problem, tolerance, max_iterations, "none", 0)
        if hasattr(method, "admit"):
            method.admit(problem)
        dtype = floating_type(problem)
        members = {name: np.asarray(value, dtype) for name, value in changes.items()}
        if starts is not None:
            starts = jax.tree.map(np.asarray, starts)
            checked_start(problem, jax.tree.map(lambda leaf: leaf[0], starts))
            starts = jax.tree.map(lambda leaf: leaf.astype(dtype), starts)
        return _pool(problem, method, members, starts, count, min(width, -(-count // LANES) * LANES), options)


def _pool(
    problem: Any, method: Any, members: Any, starts: Any, count: int, width: int, options: tuple[Any, Any]
) -> Solution:
    """The host's loop: fill places, advance all, take out who has ended."""
    places, waiting = np.full(width, -1), 0
    out: Any = None
    none = np.zeros(width, bool)
    rows = np.zeros(width, int)
    taken = lambda rows: jax.tree.map(lambda leaf: leaf[rows], (members, starts))
    # The carry of nobody, so that the first advance is the same compiled program as all others.
    shapes = _advance.eval_shape(problem, method, *taken(rows), None, none, *options, width=width)[0]
    carry: Any = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    left = count
    while left:
        empty = np.flatnonzero(places < 0)[: count - waiting]
        fresh = np.full(width, waiting == 0)  # at first a place without a member takes the first one's problem
        fresh[empty] = True
        places[empty] = np.arange(waiting, waiting + empty.size)
        waiting += empty.size
        # A place that nobody waits for goes on holding somebody who has ended: frozen, and never read again.
        rows = np.maximum(places, 0)
        carry, found = _advance(problem, method, *taken(rows), carry, fresh, *options, width=width)
        status = np.asarray(carry.status)
        done = np.flatnonzero((places >= 0) & (status != Status.RUNNING))
        if done.size:
            found = jax.tree.map(np.asarray, found)
            if out is None:
                out = jax.tree.map(lambda leaf: np.zeros((count, *leaf.shape[1:]), leaf.dtype), found)
            for target, leaf in zip(jax.tree.leaves(out), jax.tree.leaves(found)):
                target[places[done]] = leaf[done]
            places[done] = -1
            left -= done.size
    return out


@partial(jax.jit, static_argnames=("width",))
def _advance(
    problem: Any, method: Any, members: Any, starts: Any, carry: Any, fresh: Any, tolerance: Any, limit: Any, width: int
) -> tuple[Any, Solution]:
    def one(
        problem: Any, method: Any, member: Any, start: Any, carry: Any, fresh: Any, tolerance: Any, limit: Any
    ) -> Any:
        changed = _changed(problem, member)
        judge, view, first = prepare(changed, method, start, tolerance, 0)
        judge = _laid(judge)
        carry = first if carry is None else optax.tree.where(fresh, first, carry)
        until = jnp.maximum(carry.iterations, 0) + CHECKS * method.every
        carry = advance_until(judge, view, method, carry, until, tolerance, limit)
        return carry, finish(changed, carry, tolerance)

    arguments = (problem, method, members, starts, carry, fresh, tolerance, limit)
    shared = (False, False, True, True, True, True, False, False)
    marks = tuple(jax.tree.map(lambda _, mark=mark: mark, part) for part, mark in zip(arguments, shared))
    return along_last(one, width, marks, arguments)


def _changed(problem: Any, member: Mapping[str, Any]) -> Any:
    """The problem of one member."""
    fields = dict(member)
    if "A" in fields and isinstance(problem.A, Sparse):
        fields["A"] = problem.A.replace(values=fields["A"])
    return problem.replace(**fields, check=False, allow_low_precision=True)


def _laid(judge: Any) -> Any:
    """The judge with the layout of a sparse A: its products are a third of an iteration of the batch, not twice one."""
    if not isinstance(judge.A, Sparse):
        return judge
    return judge.replace(A=judge.A.laid(), check=False, allow_low_precision=True)


def _cast(problem: Any, dtype: Any) -> Any:
    """The problem in another floating dtype."""
    floats = lambda leaf: jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return jax.tree.map(lambda leaf: as_array("problem", leaf, dtype) if floats(leaf) else leaf, problem)


def _count(problem: Any, changes: Mapping[str, Any]) -> int:
    """K, after a look at names and shapes."""
    if not changes:
        raise InvalidProblem("changes is empty; expected at least one field with a leading axis of members")
    sizes = {}
    for name, value in changes.items():
        held = getattr(problem, name, None)
        if held is None or isinstance(held, bool):
            raise unknown_name("field", name, list(FIELDS))
        own = held.values.shape if isinstance(held, Sparse) else np.shape(getattr(held, "matrix", held))
        if np.shape(value)[1:] != tuple(own):
            raise InvalidProblem(f"changes[{name!r}] has shape {np.shape(value)}; expected (K, *{tuple(own)})")
        sizes[name] = np.shape(value)[0]
    if len(set(sizes.values())) > 1 or not min(sizes.values()):
        raise InvalidProblem(f"changes have leading axes {sizes}; expected one number of members, at least 1")
    return next(iter(sizes.values()))
