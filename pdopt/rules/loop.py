"""The one loop that every method runs in: blocks of steps, a check after each, traceable, in chunks of any length.

A *judge* is the problem on the user's own data: it alone says how good a pair is. A *view* is the problem as the method
sees it. `until`, `tolerance` and `limit` are traced, so the host can drive chunks of any length with one compilation,
and a solve without a listener is a single chunk.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import lax

from pdopt.types import Optimality, Pair, Residuals, Status, Visit

# Iterates beyond this norm (squared it must not overflow) count as diverged.
GROWTH = 1e15
HISTORY = ("iterations", "objective", "dual_objective", "primal", "dual", "gap")


class Method(Protocol):
    """What the loop asks of a method.

    Optional: `direction` (methods that can meet rays), and `looks`, checks from one look for a ray to the next;
    `block(view, state, steps) -> (state, visit)`, the same steps at once where they share work; `idles`, that `block`
    may take none: the start is then judged by the code that judges every other pair, which compiles once; `early`,
    iterations up to which checks come twice as often; `stalled(state)`, whether rounding keeps the method from going
    on; `judged(view, state, visit, found) -> (state, status)` in place of `check` where the next state depends on how
    good the pair is, with a status of its own (RUNNING for none); `trusted(state, visit)`, whether small residuals may
    be believed, without which no pair is OPTIMAL; `shared(state, after)`, the state before a check with the buffers
    that the check has written to; `width(problem)`, how many members of a `vmap` a CPU takes at a time
    (`runtime/batching.py`; None: all). A step may leave a view with `rests` where it is, which then ends nothing.
    """

    every: int

    def view(self, problem: Any) -> Any: ...

    def init(self, view: Any, start: Pair) -> Any: ...

    def step(self, view: Any, state: Any) -> tuple[Any, Visit]: ...

    def pair(self, view: Any, state: Any, visit: Visit) -> Pair: ...

    def check(self, view: Any, state: Any, visit: Visit) -> Any: ...


class History(NamedTuple):
    """A fixed-size table of checks: every `stride`-th one; when it fills, every other row goes and stride doubles."""

    rows: Any
    used: Any
    stride: Any
    seen: Any


class Carry(NamedTuple):
    """What travels from chunk to chunk: the method's state, the best pair so far and how good it is, why it stopped.

    `iterations` is -1 for a start that is not judged yet.
    """

    state: Any
    pair: Pair
    optimality: Optimality
    status: Any
    iterations: Any
    ray: Pair
    history: History


def begin(judge: Any, view: Any, method: Any, start: Pair | None, tolerance: Any, history: int = 0) -> Carry:
    """The first carry; the start is judged too, so a warm start at the optimum takes no step.

    Args:
        judge: the problem on the user's data: `optimality(pair)`, optionally `valid()`, `crossed()`, `rays(direction)`.
        start: a pair in the user's units; None for the view's own.
        history: rows of history to keep (static).
    """
    inside = view.start() if start is None else view.into(start)
    state = method.init(view, inside)
    pair = view.back(inside)
    idles = getattr(method, "idles", False)
    optimality = _unknown(judge, pair) if idles else judge.optimality(pair)
    status = _code(Status.RUNNING)
    if not idles:
        status = jnp.where(_met(optimality.residuals, tolerance), _code(Status.OPTIMAL), status)
    if hasattr(judge, "crossed"):
        status = jnp.where(judge.crossed(), _code(Status.PRIMAL_INFEASIBLE), status)
    if hasattr(judge, "valid"):
        status = jnp.where(judge.valid(), status, _code(Status.INVALID_PROBLEM))
    dtype = jnp.result_type(optimality.objective)
    table = History(jnp.zeros((history, len(HISTORY)), dtype), jnp.int32(0), jnp.int32(1), jnp.int32(0))
    kept = _kept(view, method, pair)
    done = jnp.int32(-1 if idles else 0)
    return Carry(state, kept, optimality, status, done, optax.tree.zeros_like(kept), table)


def _short(method: Any) -> int:
    """Steps between the first checks: half of `every`."""
    return max(method.every // 2, 1)


def _unknown(judge: Any, pair: Pair) -> Optimality:
    """In place of a judgement to come: zeros, and no residual known."""
    shapes = jax.eval_shape(judge.optimality, pair)
    found = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return found._replace(residuals=jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.inf), found.residuals))


def advance_until(judge: Any, view: Any, method: Any, carry: Carry, until: Any, tolerance: Any, limit: Any) -> Carry:
    """Run blocks until a status is reached, or `until` iterations (the host wants to look), or `limit` (a status)."""
    if hasattr(view, "judging"):
        judge = view.judging(judge)

    def running(carry: Carry) -> Any:
        return (carry.status == Status.RUNNING) & (carry.iterations < until) | (carry.iterations < 0)

    def block(carry: Carry) -> Carry:
        # Plain steps, then one whose visit is looked at; none before the start is judged.
        first = carry.iterations < 0
        every = method.every
        if getattr(method, "early", 0):
            every = jnp.where(carry.iterations < method.early, _short(method), every)
        steps = jnp.where(first, 0, jnp.clip(limit - carry.iterations, 1, every))
        state, visit = _steps(view, method, carry.state, steps)
        return _checked(judge, view, method, carry, state, visit, steps, tolerance, limit)

    return lax.while_loop(running, block, carry)


def advance_unrolled(judge: Any, view: Any, method: Any, carry: Carry, tolerance: Any, limit: int) -> Carry:
    """The run of `advance_until` with `limit` (static) iterations, written as a scan: reverse mode goes through it.

    A run that ends earlier is frozen, so both return the same; its steps are still computed. Memory: one state a block
    of `method.every` steps, plus those of one block, which are made again on the way back. What a check reads is held
    constant: statuses, restarts, step sizes and weights have no derivative.
    """

    def block(carry: Carry, steps: int) -> Carry:
        state = lax.scan(lambda s, _: (method.step(view, s)[0], None), carry.state, length=steps - 1)[0]
        state, visit = method.step(view, state)
        after = _checked(judge, view, method, carry, state, visit, jnp.int32(steps), tolerance, limit)
        return optax.tree.where(carry.status == Status.RUNNING, after, carry)

    short = _short(method)
    soon = min(limit // short, -(-getattr(method, "early", 0) // short))
    whole, rest = divmod(limit - soon * short, method.every)
    full = jax.checkpoint(lambda carry: block(carry, method.every))
    if getattr(method, "idles", False):
        still = lax.stop_gradient((method, view, carry.state))  # reverse mode cannot go through the loop of a block
        visit = still[0].block(still[1], still[2], 0)[1]
        carry = _checked(judge, view, method, carry, carry.state, visit, jnp.int32(0), tolerance, limit)
    carry = carry._replace(optimality=lax.stop_gradient(carry.optimality))
    if soon:
        half = jax.checkpoint(lambda carry: block(carry, short))
        carry = lax.scan(lambda c, _: (half(c), None), carry, length=soon)[0]
    carry = lax.scan(lambda c, _: (full(c), None), carry, length=whole)[0]
    return block(carry, rest) if rest else carry


def _checked(
    judge: Any, view: Any, method: Any, carry: Carry, state: Any, visit: Visit, steps: Any, tolerance: Any, limit: Any
) -> Carry:
    """The carry after a block of steps: its pair judged, the status decided, the method's own check done.

    After no step (`idles`) the start is judged and nothing else is done: what begin said of the status stands.
    """
    first = carry.iterations < 0 if getattr(method, "idles", False) else jnp.bool_(False)
    iterations = jnp.maximum(carry.iterations, 0) + steps
    whole = not _keeps_part(view, method)
    pair = view.back(method.pair(view, state, visit))
    pair = optax.tree.where(first, carry.pair, pair) if whole else pair
    # A derivative, where one is taken through the steps, does not go through the judgement.
    fixed = lax.stop_gradient((judge, view, method, state, visit, pair))
    found = fixed[0].optimality(fixed[5])
    status, ray = _verdict(*fixed, found, iterations, tolerance, limit, carry.ray)
    started = jnp.where(_met(found.residuals, tolerance), _code(Status.OPTIMAL), _code(Status.RUNNING))
    started = jnp.where(carry.status == Status.RUNNING, started, carry.status)
    status = jnp.where(first, started, status)
    best, optimality = _kept(view, method, pair), found
    if whole:
        better = first | (found.residuals.error <= carry.optimality.residuals.error)
        if hasattr(method, "trusted"):  # of the pairs before, those that met the tolerance were not believed
            better |= status == Status.OPTIMAL
        best, optimality = _either(better, (pair, found), (carry.pair, carry.optimality))
    if hasattr(method, "judged"):
        after, own = method.judged(view, state, visit, found)
        status = jnp.where((status == Status.RUNNING) | (status == Status.ITERATION_LIMIT) & (own > 0), own, status)
    else:
        after = method.check(view, state, visit)
    # A run resumed with a later limit goes on as if it had not stopped, but where the answer is made of the state.
    onward = (status == Status.RUNNING) | (status == Status.ITERATION_LIMIT) & whole
    if whole:
        before = method.shared(state, after) if hasattr(method, "shared") else state
        state = _either(onward & ~first, after, before)
    else:  # too large to be kept twice, and for the copies of a branch
        ended = method.ended(state, visit) if hasattr(method, "ended") else state
        state = optax.tree.where(onward & ~first, after, ended)
    history = _remember(carry.history, found, iterations, ~first)
    return Carry(state, best, optimality, status, iterations, ray, history)


def _either(first: Any, one: Any, other: Any) -> Any:
    """`one` where `first`, else `other`: a branch is copied, where each select would be a kernel to compile.

    What is the same array in both stays where it is.
    """
    ones, structure = jax.tree.flatten(one)
    others = structure.flatten_up_to(other)
    differ = [k for k, (a, b) in enumerate(zip(ones, others)) if a is not b]
    chosen = lax.cond(first, lambda: [ones[k] for k in differ], lambda: [others[k] for k in differ])
    for k, leaf in zip(differ, chosen):
        ones[k] = leaf
    return structure.unflatten(ones)


def _steps(view: Any, method: Any, state: Any, steps: Any) -> tuple[Any, Visit]:
    if hasattr(method, "block"):
        return method.block(view, state, steps)
    if isinstance(method.every, int) and method.every == 1:  # none before the last: a long step compiles once
        return method.step(view, state)
    state = lax.fori_loop(0, steps - 1, lambda _, s: method.step(view, s)[0], state)
    return method.step(view, state)


def completed(view: Any, method: Any, carry: Carry) -> Carry:
    """The carry with its pair whole: where only a part was kept, the last judged pair is made again from the state."""
    if not _keeps_part(view, method):
        return carry
    return carry._replace(pair=view.back(method.whole(view, carry.state)))


def _kept(view: Any, method: Any, pair: Pair) -> Pair:
    """What the carry keeps of a judged pair: the pair itself, of which the best is kept.

    A view whose pairs are too large to be kept twice (`keep`), and a method that can make the last judged pair from its
    state (`remakes`, `whole`), keeps a part of the latest one: an OPTIMAL run ends there, and so does any other.
    """
    return view.keep(pair) if _keeps_part(view, method) else pair


def _keeps_part(view: Any, method: Any) -> bool:
    return hasattr(view, "keep") and getattr(method, "remakes", False)


def _verdict(
    judge: Any, view: Any, method: Any, state: Any, visit: Visit, pair: Pair, found: Optimality,
    iterations: Any, tolerance: Any, limit: Any, ray: Pair,
) -> tuple[Any, Pair]:  # fmt: skip
    """The status after a block, the strongest reason first."""
    status = jnp.where(iterations >= limit, _code(Status.ITERATION_LIMIT), _code(Status.RUNNING))
    size = optax.tree.norm(visit.after)
    # A fixed point of the step that is not optimal, which more steps would repeat: near an optimum rounding holds it,
    # far from one something is wrong.
    still = optax.tree.norm(optax.tree.sub(visit.after, visit.before)) == 0
    floor = jnp.sqrt(jnp.finfo(size.dtype).eps)
    stalled = jnp.where(found.residuals.error <= floor, _code(Status.PRECISION_LIMIT), _code(Status.NUMERICAL_ERROR))
    if not getattr(view, "rests", False):
        status = jnp.where(still, stalled, status)
    if hasattr(method, "stalled"):
        status = jnp.where(method.stalled(state), _code(Status.PRECISION_LIMIT), status)
    status = jnp.where(size > GROWTH, _code(Status.DIVERGED), status)
    if hasattr(judge, "rays") and hasattr(method, "direction"):

        def look() -> tuple[Any, Pair]:
            rays = judge.rays(view.back(method.direction(view, state, visit)))
            which = jnp.where(rays.primal_infeasible, _code(Status.PRIMAL_INFEASIBLE), _code(Status.DUAL_INFEASIBLE))
            return jnp.where(rays.primal_infeasible | rays.dual_infeasible, which, status), rays.ray

        looks = getattr(method, "looks", 1)
        due = True if looks == 1 else ((iterations // method.every) % looks == 0) | (status != Status.RUNNING)
        status, direction = look() if due is True else lax.cond(due, look, lambda: (status, ray))
        proved = (status == Status.PRIMAL_INFEASIBLE) | (status == Status.DUAL_INFEASIBLE)
        ray = _either(proved, direction, ray)
    met = _met(found.residuals, tolerance)
    met = met & method.trusted(state, visit) if hasattr(method, "trusted") else met
    status = jnp.where(met, _code(Status.OPTIMAL), status)
    finite = jnp.isfinite(size) & jnp.isfinite(found.residuals.error)
    return jnp.where(finite, status, _code(Status.NUMERICAL_ERROR)), ray


def _met(residuals: Residuals, tolerance: Any) -> Any:
    return residuals.error <= tolerance


def _code(status: Status) -> Any:
    return jnp.int32(int(status))


def _remember(history: History, found: Optimality, iterations: Any, counts: Any) -> History:
    """The table with one check more, where it `counts`."""
    capacity = history.rows.shape[0]
    if not capacity:
        return history
    r = found.residuals
    numbers = (iterations, found.objective, found.dual_objective, r.primal, r.dual, r.gap)
    row = jnp.stack([jnp.asarray(v, history.rows.dtype) for v in numbers])
    # A table of one row keeps the first check: there is nothing to thin.
    full = (history.used >= capacity) & (capacity > 1)
    half = (capacity + 1) // 2
    thinned = jnp.zeros_like(history.rows).at[:half].set(history.rows[::2])
    rows = jnp.where(full, thinned, history.rows)
    used = jnp.where(full, half, history.used)
    stride = jnp.where(full, 2 * history.stride, history.stride)
    due = counts & (lax.rem(history.seen, stride) == 0) & (used < capacity)
    rows = jnp.where(due, lax.dynamic_update_slice(rows, row[None], (used, jnp.int32(0))), rows)
    return History(rows, used + due.astype(jnp.int32), stride, history.seen + counts.astype(jnp.int32))
