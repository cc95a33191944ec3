"""Exact balanced assignment of tokens to experts: best total score with loads as equal as integers allow.

    max sum_i sum_{j in S_i} gamma_ij    over sets S_i of K experts,   floor(K T / E) <= load_j <= ceil(K T / E)

What BASE layers solve for each batch (Lewis et al. 2021, arXiv 2103.16716, there K = 1 by an auction, whose answer is
within its bid increment of the best). Here by shortest exchange paths, which is exact and takes any K and remainder:

1. Prices near the optimum, by a few moves of `Balancer` on this batch. Each token's K best at any prices are optimal
   for the loads that they happen to have; few loads are off by then.
2. Moving a token out of expert j into k costs `w_jk = min { gamma_ij - gamma_ik : i in j, not in k }`. Shifting one
   token along each edge of a *shortest* path from an overloaded to an underloaded expert keeps the assignment optimal
   for its loads (successive shortest paths: Jewell 1958, Busacker and Gowen 1960). Repeat until all loads are within
   the two bounds, then while a path between experts of different load gains anything: the best score is an M-concave
   function of the loads (Murota 2003), so an assignment that no exchange improves is the best one.

Memory `(T, E)`; each path costs `T E^2` comparisons and a Bellman-Ford on E nodes, so it is meant for E in the tens.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pdopt.errors import InvalidOption
from pdopt.methods.balancing import Balancer, Prices
from pdopt.problems.balancing import Balancing, check_choice, widened

# Moves before the exact part. The surplus falls like 1 / n; more moves cost as much as the paths they save.
MOVES = 24


class Assignment(NamedTuple):
    """Experts `(T, K)` int32, best score first, what they score in total, and how many paths were shifted."""

    experts: Any
    score: Any
    paths: Any


class Search(NamedTuple):
    """State of step 2: who is where `(T, E)` bool, the paths shifted so far, and whether to go on."""

    chosen: Any
    paths: Any
    active: Any


def balanced_assignment(scores: Any, top: int, *, moves: int = MOVES) -> Assignment:
    """The best balanced assignment of a batch; exact up to rounding of the scores.

    Args:
        scores: `(T, E)`, finite; low precision is widened to float32. Not differentiable: an assignment is integers.
        top: K.
        moves: moves of the prices before the exact part, >= 0; they change the time, not the answer.

    Returns:
        `Assignment`; ties between assignments of equal score are broken by index.

    Raises:
        InvalidProblem: scores that are no `(T, E)` array, or K outside 1..E. InvalidOption: `moves` below 0.

    Example:
        >>> scores = jnp.array([[0.9, 0.5], [0.8, 0.6], [0.7, 0.1], [0.3, 0.2]])
        >>> found = balanced_assignment(scores, 1)
        >>> print(found.experts.ravel(), round(float(found.score), 2))
        [0 1 0 1] 2.4
    """
    scores = lax.stop_gradient(widened(scores))
    count = check_choice(scores.shape, top)
    if not isinstance(moves, int) or moves < 0:
        raise InvalidOption(f"moves is {moves!r}; expected an integer >= 0")
    tokens = scores.shape[0]
    low, high = tokens * top // count, -(-tokens * top // count)
    problem, balancer = Balancing(scores, top, check=False), Balancer(floor=0.0)

    def one_move(_: Any, prices: Prices) -> Prices:
        return balancer.update(prices, problem.choose(prices.y)[1], top=top)

    prices = lax.fori_loop(0, moves, one_move, balancer.start(count, scores.dtype))
    chosen = problem.plan(problem.choose(prices.y)[0]) > 0
    # Path costs are sums of at most E differences of scores: a gain below their rounding is none.
    slack = count * jnp.finfo(scores.dtype).eps * jnp.maximum(jnp.max(jnp.abs(scores)), 1e-30)
    shift = lambda search: _shift(scores, search, low, high, slack)
    search = lax.while_loop(lambda search: search.active, shift, Search(chosen, jnp.int32(0), jnp.bool_(True)))
    kept = jnp.where(search.chosen, scores, -jnp.inf)
    values, experts = lax.top_k(kept, top)
    return Assignment(experts.astype(jnp.int32), jnp.sum(values), search.paths)


def _shift(scores: jax.Array, search: Search, low: int, high: int, slack: jax.Array) -> Search:
    """One path: from the overloaded to the underloaded, or, when nobody is, wherever it gains."""
    loads = jnp.sum(search.chosen, axis=0, dtype=jnp.int32)
    over, under = loads > high, loads < low
    forced = jnp.any(over) | jnp.any(under)
    sources = jnp.where(jnp.any(over), over, loads > low)
    sinks = jnp.where(jnp.any(under), under, loads < high)
    distance, before = _shortest(_edges(scores, search.chosen), sources, slack)
    reach = jnp.where(sinks & ~sources, distance, jnp.inf)
    end = jnp.argmin(reach)
    go = jnp.isfinite(reach[end]) & (forced | (reach[end] < -slack))

    def walk(place: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        chosen, expert = place
        origin = before[expert]
        token = jnp.argmin(_leaving(scores, search.chosen, origin)[:, expert])  # of the assignment before this path
        return chosen.at[token, origin].set(False).at[token, expert].set(True), origin

    shifted = lax.while_loop(lambda place: before[place[1]] >= 0, walk, (search.chosen, end))[0]
    return Search(jnp.where(go, shifted, search.chosen), search.paths + go.astype(jnp.int32), go)


def _edges(scores: jax.Array, chosen: jax.Array) -> jax.Array:
    """`(E, E)`: the cheapest way from expert j into k; j by j, so that nothing of size `T E^2` is stored."""
    return lax.map(lambda expert: jnp.min(_leaving(scores, chosen, expert), axis=0), jnp.arange(scores.shape[1]))


def _leaving(scores: jax.Array, chosen: jax.Array, expert: jax.Array) -> jax.Array:
    """`(T, E)`: what it costs to move each token from the expert into another, infinite where it cannot go."""
    inside = jnp.take(chosen, expert, axis=1)[:, None] & ~chosen
    return jnp.where(inside, jnp.take(scores, expert, axis=1)[:, None] - scores, jnp.inf)


def _shortest(cost: jax.Array, sources: jax.Array, slack: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Bellman-Ford from all sources: distances, and the expert before each (-1 where a path starts)."""
    count = cost.shape[0]

    def relax(carry: tuple[jax.Array, jax.Array, jax.Array, jax.Array]) -> Any:
        distance, before, _, rounds = carry
        through = distance[:, None] + cost
        origin = jnp.argmin(through, axis=0)
        best = jnp.take_along_axis(through, origin[None], axis=0)[0]
        # Only what exceeds rounding counts, so that a cycle of cost 0 cannot become a loop of predecessors. Edges may
        # be negative, so the way to a source may lead over another one.
        better = best < distance - slack
        return jnp.where(better, best, distance), jnp.where(better, origin, before), jnp.any(better), rounds + 1

    start = jnp.where(sources, 0.0, jnp.inf).astype(cost.dtype)
    going = lambda carry: carry[2] & (carry[3] < count)
    found = lax.while_loop(going, relax, (start, jnp.full(count, -1), jnp.bool_(True), jnp.int32(0)))
    return found[0], found[1]
