"""`offline`: what could have been earned with everything known, as a certificate: prices whose dual value bounds it.

    hindsight   the linear program over the requests of a realised path, every action of each a column
    fluid       the same over a finite distribution of requests: a bound on the expectation for every horizon
    dual        min_{y >= 0} <rate, y> + mean_t max_x (reward_t - <y, consumption_t>) on a sample, without listing
                actions: by dual ascent, one saddle step with theta = 0 on all requests at once

Whatever found the prices, the value reported is the dual function *at* them, computed by the stream's own `best`: by
weak duality no policy's mean reward on those requests is above it, however inexact the solver was. Dual ascent is for
duals that are smooth (auctions, entropic matching); where actions are few and requests repeat, hindsight is far closer.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pdopt.errors import InvalidOption, InvalidProblem, UnsupportedProblem, unknown_name
from pdopt.geometry.moves import Euclidean
from pdopt.methods.mirror_descent import MirrorDescent
from pdopt.problems.allocation import Allocation
from pdopt.problems.linear import LinearProgram
from pdopt.problems.streams import Stream
from pdopt.rules.saddle import row, saddle_step
from pdopt.runtime.precision import precision_scope
from pdopt.solve import solve
from pdopt.types import Pair

KINDS = ("hindsight", "fluid", "dual")
STEPS = 400  # of dual ascent; the smooth duals of the four applications stop moving before 200
LARGEST_PROGRAM = 20_000_000  # entries of the dense matrix of a hindsight program


class Certificate(NamedTuple):
    """A bound on the mean reward a step: the dual value at `multipliers (m,)`, and how they were found.

    `value * horizon` bounds the reward of any policy on the requests (hindsight, dual: those of the path or sample;
    fluid: in expectation). With several paths value is `(paths,)` and multipliers `(paths, m)`.
    """

    value: Any
    multipliers: Any
    kind: str


def offline(problem: Allocation, requests: Any = None, *, kind: str | None = None, tolerance: float = 1e-6) -> Any:
    """A certificate for the best that could have been earned.

    Args:
        problem: `Allocation(stream, rate)`.
        requests: realised ones, with leading axes `(horizon,)` or `(paths, horizon)`; None for the distribution.
        kind: "hindsight", "fluid" or "dual"; None: fluid without requests, else dual.
        tolerance: of the linear programs (pdopt's own solver, in the problem's type).

    Returns:
        `Certificate`.

    Raises:
        InvalidOption: another kind, or one that the stream cannot offer. InvalidProblem: requests of another structure
            or shape. UnsupportedProblem: not an `Allocation`.

    Example:
        >>> import pdopt
        >>> seats = pdopt.RevenueManagement([1.0, 3.0], [[1.0], [1.0]], [0.5, 0.5])
        >>> bound = pdopt.offline(pdopt.Allocation(seats, rate=0.75))
        >>> print(bound.kind, round(float(bound.value), 2), round(float(bound.multipliers[0]), 2))
        fluid 1.75 1.0
    """
    if not isinstance(problem, Allocation):
        raise UnsupportedProblem(f"problem has type {type(problem).__name__}; expected an Allocation")
    kind = ("fluid" if requests is None else "dual") if kind is None else kind
    if kind not in KINDS:
        raise unknown_name("kind", kind, KINDS)
    if (requests is None) != (kind == "fluid"):
        raise InvalidOption(f"kind is {kind!r} and requests {'absent' if requests is None else 'given'}; "
                            "expected requests for 'hindsight' and 'dual', none for 'fluid'")  # fmt: skip
    with precision_scope(problem):
        if kind == "fluid":
            kinds = problem.stream.types()
            y = _by_program(problem, kinds.requests, kinds.probability[None], tolerance)[0]
            return Certificate(problem.dual(y), y, kind)
        requests, batched = _paths_first(problem.stream, requests)
        if kind == "dual":
            multipliers = _by_ascent(problem, requests)
        else:
            support, weights = _distinct(requests, problem.rate.dtype)
            multipliers = _by_program(problem, support, weights, tolerance)
        value = _values(problem, multipliers, requests)
        return Certificate(value, multipliers, kind) if batched else Certificate(value[0], multipliers[0], kind)


def _paths_first(stream: Stream, requests: Any) -> tuple[Any, bool]:
    """Requests with leading axes `(paths, horizon)`, and whether they came so."""
    like = jax.eval_shape(stream.draw, jax.random.key(0), jnp.int32(0))
    if jax.tree.structure(requests) != jax.tree.structure(like):
        raise InvalidProblem(
            f"requests has structure {jax.tree.structure(requests)}; expected {jax.tree.structure(like)}"
        )
    leaves = list(zip(jax.tree.leaves(requests), jax.tree.leaves(like)))
    extra = {np.ndim(given) - len(want.shape) for given, want in leaves}
    leading = {np.shape(given)[: np.ndim(given) - len(want.shape)] for given, want in leaves}
    fit = all(np.shape(given)[np.ndim(given) - len(want.shape) :] == want.shape for given, want in leaves)
    if not fit or len(leading) != 1 or extra - {1, 2} or 0 in next(iter(leading)):
        shapes = [np.shape(given) for given, _ in leaves]
        raise InvalidProblem(f"requests has leaves of shapes {shapes}; expected (horizon, ...) or (paths, horizon, ...)"
                             f" before {[want.shape for _, want in leaves]}")  # fmt: skip
    batched = extra == {2}
    cast = lambda given, want: jnp.asarray(given, want.dtype) if batched else jnp.asarray(given, want.dtype)[None]
    return jax.tree.map(cast, requests, like), batched


@jax.jit
def _values(problem: Allocation, multipliers: Any, requests: Any) -> Any:
    return jax.vmap(problem.dual)(multipliers, requests)


def _distinct(requests: Any, dtype: Any) -> tuple[Any, Any]:
    """The different requests of all paths `(k, ...)`, and how often each path has each `(paths, k)`, summing to 1."""
    leaves, tree = jax.tree.flatten(jax.tree.map(np.asarray, requests))
    paths, horizon = leaves[0].shape[:2]
    flat = np.concatenate([leaf.reshape(paths * horizon, -1) for leaf in leaves], axis=1)
    _, first, which = np.unique(flat, axis=0, return_index=True, return_inverse=True)
    support = [jnp.asarray(leaf.reshape(paths * horizon, *leaf.shape[2:])[first]) for leaf in leaves]
    place = np.arange(paths).repeat(horizon) * len(first) + which.ravel()
    counts = np.bincount(place, minlength=paths * len(first)).reshape(paths, len(first))
    return jax.tree.unflatten(tree, support), jnp.asarray(counts / horizon, dtype)


def _by_program(problem: Allocation, support: Any, weights: Any, tolerance: float) -> Any:
    """Multipliers `(paths, m)` of `max sum_ka f_ka x_ka`, `sum_ka b_ka x_ka <= rate`, `0 <= sum_a x_ka <= w_k`."""
    menu = jax.vmap(problem.stream.menu)(support)
    k, actions, m = menu.consumption.shape
    single = actions == 1
    if k * actions * (m + (0 if single else k)) > LARGEST_PROGRAM:
        raise InvalidOption(f"requests has {k} different ones with {actions} actions; expected fewer: use kind='dual'")
    return _programs(problem.rate, menu, weights, jnp.asarray(tolerance, problem.rate.dtype), single)


@partial(jax.jit, static_argnames=("single",))
def _programs(rate: Any, menu: Any, weights: Any, tolerance: Any, single: bool) -> Any:
    """The programs of all paths, which differ in their weights alone; `single`: one action each, a bound will do."""
    k, actions, m = menu.consumption.shape
    resources = menu.consumption.reshape(k * actions, m).T
    shares = jnp.zeros((0, k * actions), rate.dtype) if single else jnp.repeat(jnp.eye(k, dtype=rate.dtype), actions, 1)
    A = jnp.concatenate([resources, shares])

    def program(w: Any) -> Any:
        rows = jnp.concatenate([rate, w[: 0 if single else k]])
        none = jnp.full(rows.shape, -jnp.inf, rate.dtype)
        lp = LinearProgram(
            menu.reward.ravel(), A, none, rows, jnp.zeros(k * actions, rate.dtype), jnp.repeat(w, actions),
            maximise=True, check=False,
        )  # fmt: skip
        return jnp.maximum(solve(lp, tolerance=tolerance, gradient="none").y[:m], 0)

    return jax.vmap(program)(weights)


@partial(jax.jit, static_argnames=("steps",))
def _by_ascent(problem: Allocation, requests: Any, steps: int = STEPS) -> Any:
    """Multipliers `(paths, m)` of the least dual value met by dual ascent with steps that adapt.

    The dual function falls along its own subgradient step unless the step is too long: a step that did not make it fall
    is undone and halved, one that did is kept and lengthened by a quarter.
    """
    units = MirrorDescent(move=Euclidean()).view(problem).units()
    start = MirrorDescent().view(problem).price()

    def one(requests: Any) -> Any:
        def violation(used: Any) -> Any:
            return jnp.mean(used, axis=0) - problem.rate

        parts = row(lambda x, y: problem.answers(y, requests)[1], violation, Euclidean())

        def attempt(carry: Any, _: Any) -> Any:
            y, value, size = carry
            pair, _ = saddle_step(parts, size * units, Pair((), y))
            reached = problem.dual(pair.y, requests)
            better = reached < value
            carry = jnp.where(better, pair.y, y), jnp.where(better, reached, value)
            return (*carry, size * jnp.where(better, 1.25, 0.5).astype(size.dtype)), None

        first = (start, problem.dual(start, requests), jnp.full((), 0.1, start.dtype))
        return lax.scan(attempt, first, length=steps)[0][0]

    return jax.vmap(one)(requests)
