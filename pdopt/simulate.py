"""`simulate`: an online policy on many paths of a stream, with only sums kept.

For t = 0, 1, ..., T - 1 on every path:

    x_t = best(request_t, y)                            the saddle step's primal half
    y   = move(y, consumption(request_t, x_t) - rate)   its dual half, on the action as wanted
    x_t is taken if every resource has enough left, else 0: the budget is outside of the step

Time runs in blocks. A block's requests are drawn at once, the steps run through them, and what is only counted
(rewards, acceptances) is counted after the block, so that the loop over steps carries no more than prices and budgets.
Paths are the last axis of everything in the loop: one instruction serves many of them. Memory is O(paths x block),
whatever T is.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pdopt.errors import InvalidProblem, UnsupportedProblem
from pdopt.methods.mirror_descent import MirrorDescent
from pdopt.problems.allocation import Allocation, Online
from pdopt.problems.ledger import Ledger, Pile, pile_up, total_of
from pdopt.problems.sampling import keys_of, path_keys, require_count, stretch
from pdopt.rules.saddle import saddle_step
from pdopt.runtime.precision import precision_scope
from pdopt.types import Memory, Pair, record

BLOCK = 64  # steps; measured on one core, 64 paths, 10 resources: 16 to 64 cost the same, 128 a tenth more


class Snapshots(NamedTuple):
    """The state of every path after some of its steps: `steps (r,)`, the others `(paths, r, ...)`."""

    steps: Any
    reward: Any
    consumption: Any
    multipliers: Any


@record
class Trajectory:
    """What became of every path.

    Attributes:
        reward: `(paths,)`, total reward of the actions taken.
        consumption: `(paths, m)`, total consumption; at most `budget` in every entry.
        multipliers: `(paths, m)`, the prices after the last step.
        accepted: `(paths,)` int32, steps at which something was taken.
        refused: `(paths,)` int32, steps at which something was wanted and the budget had no room for it.
        stopping_time: `(paths,)` int32, steps before the first refusal; the horizon where there was none.
        budget: `(m,)`, `horizon * rate`, rounded down to whole units where consumption has a unit.
        snapshots: `Snapshots` every `record_every` steps, or None.
    """

    reward: Any
    consumption: Any
    multipliers: Any
    accepted: Any
    refused: Any
    stopping_time: Any
    budget: Any
    snapshots: Any = None


class Path(NamedTuple):
    """What travels along a path: prices, budget left, rewards, counts, the stream's own state."""

    prices: Any
    left: Any
    reward: Pile
    accepted: Any
    refused: Any
    stopped: Any
    arrivals: Any


def simulate(
    problem: Allocation,
    method: MirrorDescent | None,
    key: Any,
    *,
    horizon: int,
    paths: int = 1,
    record_every: int | None = None,
    requests: Any = None,
    start: Any = None,
) -> Trajectory:
    """Run an online policy on independent paths of a stream; `jit` and `vmap` pass through it.

    Paths never communicate. Where the keys are placed decides where they run: hand in `paths` keys sharded over a mesh
    and every device runs its own.

    Args:
        problem: `Allocation(stream, rate)`.
        method: `MirrorDescent(...)`; None for its default on streams.
        key: one key, split into one for each path, or a vector of `paths` keys; not looked at (None will do) when
            requests are given. Path p is the same whatever the number of others only if keys are given.
        horizon: T, steps of every path. A new horizon compiles nothing new, unless snapshots are kept.
        paths: how many.
        record_every: keep a snapshot after every so many steps and after the last.
        requests: replay: a pytree of arrays with leading axes `(paths, horizon)`, as `sample` makes them.
        start: first prices, a scalar or `(m,)`; None for the problem's own (`Online.price`).

    Returns:
        `Trajectory`. Consumption is exact to the last unit (see `problems/ledger.py`) in float32 too; rewards are
        summed with their rounding error. float32 and float64 part where a decision is nearly a tie: by about 1e-5 of
        the reward at T = 10^4.

    Raises:
        InvalidOption: a count below 1, a key that is none, a start with a negative price, or for the entropic move one
            that is 0. InvalidProblem: requests of another structure or shape. UnsupportedProblem: not an `Allocation`.

    Example:
        >>> import pdopt
        >>> flight = pdopt.Allocation(pdopt.RevenueManagement([1.0, 3.0], [[1.0], [1.0]], [0.5, 0.5]), rate=0.5)
        >>> found = pdopt.simulate(flight, pdopt.MirrorDescent(), jax.random.key(0), horizon=2000, paths=4)
        >>> bool((found.consumption <= found.budget).all()), bool((found.reward > 0.9 * 3000).all())
        (True, True)
    """
    if not isinstance(problem, Allocation):
        raise UnsupportedProblem(f"problem has type {type(problem).__name__}; expected an Allocation")
    chosen = MirrorDescent() if method is None else method
    for name, count in (("horizon", horizon), ("paths", paths)):
        require_count(name, count)
    if record_every is not None:
        require_count("record_every", record_every)
        record_every = min(record_every, horizon)
    with precision_scope(problem):
        view = chosen.view(problem)
        if not isinstance(view, Online):
            raise UnsupportedProblem(f"{type(chosen).__name__} has no view of a stream")
        first = view.start(start)
        Ledger.open(problem.rate * horizon, horizon, problem.stream.unit)  # refuses what an int32 cannot count
        if requests is None:
            keys = keys_of(key, paths)
        else:
            keys, requests = None, _checked(problem, requests, paths, horizon)
        records = 0 if record_every is None else math.ceil(horizon / record_every)
        return _simulate(problem, chosen, keys, requests, first, jnp.int32(horizon), paths, record_every, records)


def _checked(problem: Allocation, requests: Any, paths: int, horizon: int) -> Any:
    """Requests for replay, in the stream's types."""
    like = jax.eval_shape(problem.stream.draw, jax.random.key(0), jnp.int32(0))
    if jax.tree.structure(requests) != jax.tree.structure(like):
        raise InvalidProblem(
            f"requests has structure {jax.tree.structure(requests)}; expected {jax.tree.structure(like)}"
        )

    def leaf(given: Any, like: Any) -> Any:
        want = (paths, horizon, *like.shape)
        if np.shape(given) != want:
            raise InvalidProblem(f"requests has a leaf of shape {np.shape(given)}; expected {want}: (paths, horizon)")
        return jnp.asarray(given, like.dtype)

    return jax.tree.map(leaf, requests, like)


@partial(jax.jit, static_argnames=("paths", "record_every", "records"))
def _simulate(
    problem: Any, method: Any, keys: Any, requests: Any, first: Any, horizon: Any, paths: int,
    record_every: int | None, records: int,
) -> Trajectory:  # fmt: skip
    """The whole run: blocks until the horizon, or record by record."""
    view = method.view(problem)
    stream, dtype = problem.stream, problem.rate.dtype
    ledger = Ledger.open(problem.rate * horizon.astype(dtype), horizon, stream.unit)
    size = method.online_step(view, horizon)

    def begin(key: Any) -> tuple[Any, Path]:
        later, state = None, ()
        if key is not None:
            own, later = path_keys(key)
            state = stream.begin(own)
        zero, count = jnp.zeros((), dtype), jnp.int32(0)
        return later, Path(first, ledger.start(), Pile(zero, zero), count, count, horizon, state)

    in_axes = None if keys is None else 0
    later, path = jax.vmap(begin, in_axes=in_axes, out_axes=(in_axes, -1), axis_size=paths)(keys)
    run = _Run(view, method, ledger, size, later, requests)
    if not records:
        path = run.until(path, jnp.int32(0), horizon)
        return _trajectory(path, ledger, None)

    def leg(path: Path, number: Any) -> tuple[Path, Any]:
        begins = number * record_every
        ends = jnp.minimum(begins + record_every, horizon)
        path = run.until(path, begins, ends)
        return path, (ends, _sums(path, ledger))

    path, (steps, sums) = lax.scan(leg, path, jnp.arange(records, dtype=jnp.int32))
    reward, consumption, multipliers = sums
    snapshots = Snapshots(steps, reward.T, jnp.moveaxis(consumption, 0, 1), jnp.moveaxis(multipliers, 0, 1))
    return _trajectory(path, ledger, snapshots)


class _Run(NamedTuple):
    """Everything about a run that does not change from step to step."""

    view: Online
    method: MirrorDescent
    ledger: Ledger
    size: Any
    keys: Any
    requests: Any

    def until(self, path: Path, begins: Any, ends: Any) -> Path:
        """All steps from `begins` to `ends`: whole blocks, then single steps."""
        blocks = (ends - begins) // BLOCK
        path = lax.fori_loop(0, blocks, lambda k, path: self.block(path, begins + k * BLOCK, BLOCK), path)
        return lax.fori_loop(begins + blocks * BLOCK, ends, lambda t, path: self.block(path, t, 1), path)

    def block(self, path: Path, first: Any, length: int) -> Path:
        """`length` steps of all paths, and the counts after them."""
        requests, arrivals = self.arrive(path.arrivals, first, length)
        times = first + jnp.arange(length, dtype=jnp.int32)

        # All at once: a power a step would be taken again for every price.
        sizes = jax.vmap(lambda t: self.method.step_at(self.size, t))(times)

        def step(carry: Any, visit: Any) -> Any:
            size, request = visit
            return jax.vmap(partial(self.step, size), in_axes=-1, out_axes=-1)(carry, request)

        (prices, left), (actions, fits) = lax.scan(step, (path.prices, path.left), (sizes, requests))
        wanted = _some(actions)
        taken = wanted & fits
        of_path = jax.vmap(self.view.stream.reward, in_axes=-1, out_axes=-1)
        rewards = jax.vmap(of_path)(requests, actions)
        earned = jnp.sum(jnp.where(taken, rewards, jnp.zeros_like(rewards)), axis=0)
        # The first step without room; the horizon's own number where there is none.
        never = jnp.int32(2**31 - 1)
        refusal = jnp.min(jnp.where(fits, never, times[:, None]), axis=0)
        return Path(
            prices, left, pile_up(path.reward, earned),
            path.accepted + jnp.sum(taken, axis=0, dtype=jnp.int32),
            path.refused + jnp.sum(~fits, axis=0, dtype=jnp.int32),
            jnp.minimum(path.stopped, refusal), arrivals,
        )  # fmt: skip

    def step(self, size: Any, carry: Any, request: Any) -> Any:
        """One step of one path: the saddle step, then the budget."""
        prices, left = carry
        pair, _ = saddle_step(self.method.parts(self.view, size), size, Pair((), prices), Memory(primal=request))
        use = self.view.stream.consumption(request, pair.x)
        fits = self.ledger.fits(left, use)
        return (pair.y, self.ledger.spend(left, use, fits)), (pair.x, fits)

    def arrive(self, state: Any, first: Any, length: int) -> tuple[Any, Any]:
        """The block's requests, time on the first axis and paths on the last, drawn or replayed."""
        if self.requests is not None:
            cut = jax.tree.map(lambda v: lax.dynamic_slice_in_dim(v, first, length, axis=1), self.requests)
            return jax.tree.map(lambda v: jnp.moveaxis(v, 0, -1), cut), state
        draw = lambda key, state: stretch(self.view.stream, key, state, first, length)
        return jax.vmap(draw, in_axes=(0, -1), out_axes=-1)(self.keys, state)


def _some(actions: Any) -> Any:
    """Whether an action is not 0, `(block, paths)`."""
    flags = [jnp.any(leaf != 0, axis=tuple(range(1, leaf.ndim - 1))) for leaf in jax.tree.leaves(actions)]
    return jnp.any(jnp.stack(flags), axis=0)


def _sums(path: Path, ledger: Ledger) -> tuple[Any, Any, Any]:
    """Reward, consumption and prices, paths first."""
    spent = jax.vmap(ledger.spent, in_axes=-1)(path.left)
    return total_of(path.reward), spent, path.prices.T


def _trajectory(path: Path, ledger: Ledger, snapshots: Snapshots | None) -> Trajectory:
    reward, spent, prices = _sums(path, ledger)
    return Trajectory(
        reward, spent, prices, path.accepted, path.refused, path.stopped, ledger.budget, snapshots
    )  # fmt: skip
