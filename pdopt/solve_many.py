"""`solve_many`: programs that differ in some data, a fixed number at a time, each place refilled when it falls free.

A `vmap` of `solve` runs until its slowest member ends. Here a compiled batch of `width` members advances by a few
checks at a time; between two advances members that have ended leave and waiting ones take their places, so that no
lane idles while others wait. The batch is carried along the last axis (`pdopt/runtime/batching.py`): products with a
matrix that all share are matrix-matrix products, and a member takes the iterations that it takes alone.
"""

import dataclasses
from collections.abc import Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdopt.errors import InvalidOption, InvalidProblem, UnsupportedProblem, unknown_name
from pdopt.operators.sparse import Sparse
from pdopt.rules.loop import advance_until
from pdopt.runtime.apart import UNSPLIT
from pdopt.runtime.batching import Last, all_last, is_last, within
from pdopt.runtime.fitted import knows
from pdopt.runtime.precision import as_array, precision_scope
from pdopt.solve import checked_options, checked_start, default_method, finish, floating_type, prepare
from pdopt.types import Pair, Solution, Status

WIDTH = 128  # bytes of the members advanced at a time: on a CPU the fastest of 16 to 48 floats, and of 8 to 32 doubles
ELSEWHERE = 256  # members on an accelerator, which has room for them; not measured
MARGIN = 0.95  # of the tolerance is asked of the narrow iterations: 1 % more of them, and hardly a member needs others
LANES = 8  # a batch is a multiple of it: members beyond the last full vector of a CPU may round another way
FIELDS = ("c", "A", "row_lower", "row_upper", "lower", "upper", "Q", "offset")
VECTORS = {"xla_cpu_prefer_vector_width": 512}  # of a CPU that has them: half the instructions
CHECKS = 16  # between two looks at who has ended


def solve_many(
    problem: Any,
    changes: Mapping[str, Any],
    method: Any = None,
    *,
    starts: Pair | Solution | None = None,
    tolerance: Any = None,
    max_iterations: Any = None,
    width: int | None = None,
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
        width: members advanced at a time, >= 1; a multiple of 8 where members should round as they do alone. None: 16
            in float64 and 32 in float32 on a CPU, 256 elsewhere.
        inner: a narrower floating dtype to iterate in first (`jnp.float32`). Every member is then judged on its data in
            their own precision, and goes on from there in it unless that says OPTIMAL: half the time where float32
            can reach the tolerance, of which it is asked for 0.95. Iterations of both are counted.

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
    if width is not None and (not isinstance(width, int) or width < 1):
        raise InvalidOption(f"width is {width!r}; expected an integer >= 1")
    if getattr(method, "remakes", False):
        raise UnsupportedProblem(f"{method.acceleration} keeps only a part of its pair; use it with solve")
    count = _count(problem, changes)
    starts = starts.pair if isinstance(starts, Solution) else starts
    if inner is not None:
        narrow = jnp.dtype(inner)
        with precision_scope(problem):
            asked = float(checked_options(problem, tolerance, None, "none", 0)[0])
        reached = max(MARGIN * asked, 20 * float(jnp.finfo(narrow).eps))
        first = solve_many(
            _cast(problem, narrow), changes, method, starts=starts, tolerance=reached, max_iterations=max_iterations,
            width=width,
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
        best = WIDTH // dtype.itemsize if jax.default_backend() == "cpu" else ELSEWHERE
        places = min(best if width is None else width, -(-count // LANES) * LANES)
        return _pool(problem, method, members, starts, count, places, options)


class Lot(NamedTuple):
    """Members that are advanced together: their judge, view and carry (batch last), and the number of each (-1: none).

    Beginners, whose checks come more often, are a lot of their own until they are none any more: among others they
    would wait at each check for those whose block is longer.
    """

    judge: Any
    view: Any
    carry: Any
    places: np.ndarray


class Programs(NamedTuple):
    """What is compiled: once each, for a width."""

    enter: Any
    advance: Any
    exchange: Any
    leave: Any


def _pool(
    problem: Any, method: Any, members: Any, starts: Any, count: int, width: int, options: tuple[Any, Any]
) -> Solution:
    """The host's loop: let a lot begin, fill places from it, advance all, take out who has ended."""
    programs = _programs(jax.default_backend() == "cpu")
    tolerance, limit = options
    beginning = np.full(width, getattr(method, "early", 0), np.int32)
    taken = lambda places: jax.tree.map(lambda leaf: leaf[np.maximum(places, 0)], (members, starts))
    out: Any = None
    left = count

    def advanced(lot: Lot, until: np.ndarray) -> Lot:
        """The lot after more checks, without those who have ended; they are in `out`."""
        nonlocal out, left
        carry = programs.advance(lot.judge, lot.view, method, lot.carry, until, tolerance, limit, width=width)
        done = np.flatnonzero((lot.places >= 0) & (np.asarray(carry.status.value) != Status.RUNNING))
        places = lot.places.copy()
        if done.size:
            found = programs.leave(problem, taken(places)[0], carry, tolerance, width=width)
            found = jax.tree.map(np.asarray, found)
            if out is None:
                out = jax.tree.map(lambda leaf: np.zeros((count, *leaf.shape[1:]), leaf.dtype), found)
            for target, leaf in zip(jax.tree.leaves(out), jax.tree.leaves(found)):
                target[places[done]] = leaf[done]
            places[done] = -1
            left -= done.size
        return lot._replace(carry=carry, places=places)

    def begun(first: int) -> Lot:
        """The next members, past the checks of beginners; places beyond the last one hold it once more, unread."""
        places = np.arange(first, first + width)
        held = programs.enter(problem, method, *taken(np.minimum(places, count - 1)), tolerance, width=width)
        return advanced(Lot(*held, places=np.where(places < count, places, -1)), beginning)

    def filled(pool: Lot, room: Lot) -> tuple[Lot, Lot]:
        """The pool with members of the room in places that are free, and the room without them."""
        free, ready = np.flatnonzero(pool.places < 0), np.flatnonzero(room.places >= 0)
        free, ready = free[: ready.size], ready[: free.size]
        source, places, rest = np.full(width, -1), pool.places.copy(), room.places.copy()
        source[free], places[free], rest[ready] = ready, room.places[ready], -1
        held = programs.exchange(pool[:3], room[:3], source)
        return Lot(*held, places=places), room._replace(places=rest)

    pool, waiting = begun(0), width
    room = pool._replace(places=np.full(width, -1))
    while left:
        while np.any(pool.places < 0) and (waiting < count or np.any(room.places >= 0)):
            if np.all(room.places < 0):
                room, waiting = begun(waiting), waiting + width
            pool, room = filled(pool, room)
        if left:
            done = np.maximum(np.asarray(pool.carry.iterations.value), 0)
            pool = advanced(pool, done + CHECKS * method.every)
    return out


def _enter(problem: Any, method: Any, members: Any, starts: Any, tolerance: Any, width: int, unsplit: bool) -> Any:
    """Judges, views and first carries of members."""

    def one(problem: Any, method: Any, member: Any, start: Any, tolerance: Any) -> Any:
        judge, view, first = prepare(_changed(problem, member), method, start, tolerance, 0)
        return _laid(judge), view, first

    given = (problem, method, *_ranked((members, starts)), tolerance)
    judge, view, carry = within(one, width, given, unsplit)
    return judge, view, all_last(carry, width)


def _advance(
    judge: Any, view: Any, method: Any, carry: Any, until: Any, tolerance: Any, limit: Any, width: int, unsplit: bool
) -> Any:
    given = (judge, view, method, carry, Last(until), tolerance, limit)
    return all_last(within(advance_until, width, given, unsplit), width)


def _exchange(pool: Any, room: Any, source: Any) -> Any:
    """The pool with what the room has at place `source[k]` in its place k; nothing new where that is negative."""
    put = lambda old, new: Last(jnp.where(source < 0, old.value, new.value[..., source])) if is_last(old) else old
    return jax.tree.map(put, pool, room, is_leaf=is_last)


def _leave(problem: Any, members: Any, carry: Any, tolerance: Any, width: int, unsplit: bool) -> Solution:
    """The solutions as they stand, the members in front."""
    one = lambda problem, member, carry, tolerance: finish(_changed(problem, member), carry, tolerance)
    found = within(one, width, (problem, _ranked(members), carry, tolerance), unsplit)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf.value, -1, 0), all_last(found, width), is_leaf=is_last)


def _ranked(tree: Any) -> Any:
    """Leaves with their members in front, with them last."""
    return jax.tree.map(lambda leaf: Last(jnp.moveaxis(leaf, 0, -1)), tree)


@cache
def _programs(cpu: bool) -> Programs:
    """Compiled on a CPU so that no kernel is split between threads: each is a few microseconds of work."""
    unsplit = cpu and knows(UNSPLIT)
    options = {**UNSPLIT, **VECTORS} if unsplit else None
    fitted = lambda function: jax.jit(
        partial(function, unsplit=unsplit), static_argnames=("width",), compiler_options=options
    )
    return Programs(fitted(_enter), fitted(_advance), jax.jit(_exchange, compiler_options=options), fitted(_leave))


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
