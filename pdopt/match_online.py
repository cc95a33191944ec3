"""`match_online`: many independent runs of a policy on a graph, arrival by arrival (`lax.scan`), path by path (`vmap`).

For each arrival v: one saddle step chooses u and moves the loads; then nature draws a fresh `U(0, 1)` number, and u
succeeds where it is below `p_uv`: exact for every p, not only for small ones. Outcomes stay outside the step, as the
clipping to a budget does.

Since `E[success | try] = p`, reward and load have the same mean: `E[sum w_u matched_u] = E[sum w_u l_u]`.

Randomness: path k uses `fold_in(key, k)`, so that the first paths of a longer run are those of a shorter one. Within
a path `once, choices, outcomes = split(path, 3)`; `once` is the policy's, arrival t has `fold_in(choices, t)` for the
policy and `fold_in(outcomes, t)` for nature.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.methods.matching_policies import Arrival, parts
from pdopt.problems.matching import StochasticMatching
from pdopt.rules.saddle import saddle_step
from pdopt.runtime.precision import precision_scope
from pdopt.types import Memory, Pair


class MatchingRun(NamedTuple):
    """What became of each path.

    Attributes:
        reward: `(paths,)`, total weight of the vertices that succeeded.
        matched: `(paths, n)` bool, who succeeded.
        load: `(paths, n)`, the sum of p over the tries of each offline vertex.
        tried: `(paths, T)` int32, whom each arrival tried, -1 for nobody; None unless recorded.
        succeeded: `(paths, T)` bool; None unless recorded.
    """

    reward: Any
    matched: Any
    load: Any
    tried: Any = None
    succeeded: Any = None


def match_online(
    problem: StochasticMatching, policy: Any, key: Any, *, paths: int = 1, record: bool = False
) -> MatchingRun:
    """Run a policy on a graph, `paths` times; `jit` and `vmap` (over graphs, keys, weights) pass through it.

    Args:
        problem: the graph; arrivals come in the order of its columns.
        policy: `Balance()`, `Ranking()`, `Greedy()`, `UniformRandom()`, or a record with their two methods.
        key: a JAX key; the same key gives the same bits.
        paths: independent runs (>= 1), a batch of the loop and not a loop of its own.
        record: keep each arrival's decision and outcome; memory `paths x T`.

    Returns:
        `MatchingRun`. Rewards are exact sums of weights in the problem's dtype. float32 and float64 draw other numbers.

    Raises:
        InvalidProblem: not a `StochasticMatching`, or a priority that does not fit it. InvalidOption: not a policy;
            paths below 1.

    Example:
        >>> import pdopt
        >>> graph = pdopt.StochasticMatching([[1.0, 1.0], [0.0, 1.0]], dtype=jnp.float32)
        >>> run = match_online(graph, pdopt.Balance(), jax.random.key(0), record=True)
        >>> run.reward.tolist(), run.tried.tolist()
        ([2.0], [[0, 1]])
    """
    if not isinstance(problem, StochasticMatching):
        raise InvalidProblem(f"problem has type {type(problem).__name__}; expected StochasticMatching")
    if not (hasattr(policy, "score") and hasattr(policy, "draw")) or isinstance(policy, type):
        raise InvalidOption(f"policy is {policy!r}; expected one such as Balance(), with draw and score")
    if not isinstance(paths, int | np.integer) or isinstance(paths, bool) or paths < 1:
        raise InvalidOption(f"paths is {paths!r}; expected an integer >= 1")
    if hasattr(policy, "admit"):
        policy.admit(problem)
    with precision_scope(problem):
        return _match(problem, policy, key, int(paths), bool(record))


@partial(jax.jit, static_argnames=("paths", "record"))
def _match(problem: StochasticMatching, policy: Any, key: Any, paths: int, record: bool) -> MatchingRun:
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(paths, dtype=jnp.uint32))
    return jax.vmap(lambda path: _path(problem, policy, path, record))(keys)


def _path(problem: StochasticMatching, policy: Any, key: Any, record: bool) -> MatchingRun:
    """One run."""
    weights, dtype = problem.weights, problem.weights.dtype
    once, choices, outcomes = jax.random.split(key, 3)
    drawn = policy.draw(problem, once)
    step = parts(policy, weights)
    nobody = jnp.zeros_like(weights)

    def arrive(state: tuple[Any, Any], now: tuple[Any, Any]) -> tuple[tuple[Any, Any], Any]:
        (free, load), (number, p) = state, now
        arrival = Arrival(p, free, drawn, jax.random.fold_in(choices, number))
        one = jnp.ones((), dtype)
        (chosen, load), _ = saddle_step(step, one, Pair(nobody, load), Memory(arrival))
        success = jax.random.uniform(jax.random.fold_in(outcomes, number), (), dtype) < jnp.sum(chosen * p)
        free = free & ~((chosen > 0) & success)
        seen = (jnp.where(jnp.any(chosen > 0), jnp.argmax(chosen), -1).astype(jnp.int32), success) if record else ()
        return (free, load), seen

    numbers = jnp.arange(problem.shape[1], dtype=jnp.uint32)
    begin = (jnp.ones(weights.shape, bool), nobody)
    (free, load), seen = jax.lax.scan(arrive, begin, (numbers, problem.probabilities.T))
    reward = jnp.sum(jnp.where(free, jnp.zeros_like(weights), weights))
    return MatchingRun(reward, ~free, load, *seen)
