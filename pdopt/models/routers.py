"""Routers of a mixture of experts: which tokens go to which experts, as pure functions of the scores of one batch.

    name            choice                                                   balance
    bias            K best of `score + bias`, the bias moved by a Balancer   over time, by prices (arXiv 2408.15664)
    aux_loss        K best scores                                            by a term of the loss (arXiv 2006.16668)
    sinkhorn        K best of `logit - y`, y after a few Sinkhorn sweeps     softly, in the batch (arXiv 2202.01169)
    base            exact balanced assignment                                exactly, in the batch (arXiv 2103.16716)
    expert_choice   each expert takes its C best tokens                      exactly; some tokens unserved (2202.09368)
    ksparse_ot      each expert its k-sparse best of `score - y_token`       exactly; prices on tokens (2209.15466)

Each is the assignment problem of `pdopt.problems.balancing` read another way: prices kept over time, prices found anew
by Sinkhorn's or the semi-dual's saddle step, an exact solution, or a penalty. All of them only *select*: the gate
weights come from the raw scores of what was selected (`gates`), gradients flow through the gates alone, and selection
is not differentiated. Ties go to the smaller index.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pdopt.geometry.moves import Euclidean
from pdopt.geometry.zero_sum import ZeroSum
from pdopt.methods.balanced_assignment import balanced_assignment
from pdopt.problems.balancing import OCTAVES, Tally, load_counts, select
from pdopt.rules.saddle import row, saddle_step
from pdopt.types import Pair

ROUTERS = ("bias", "aux_loss", "sinkhorn", "base", "expert_choice", "ksparse_ot")

# Sparsity-constrained transport as a router: the quadratic weight of its authors (google-research/vmoe), whose scores
# are probabilities as well.
GAMMA = 1.0


class Routing(NamedTuple):
    """Who goes where, in one of two forms; the other one's field is None.

    Attributes:
        experts: `(T, K)` int32, the experts of each token, best first.
        tokens: `(E, C)` int32, the tokens of each expert, best first; T marks an empty place.
        tally: loads and gap counts of the batch, before any capacity.
    """

    experts: Any
    tokens: Any
    tally: Tally


def capacity(tokens: int, experts: int, top: int, factor: float) -> int:
    """`C = ceil(factor K T / E)`, at least 1 and at most T: how many tokens an expert has room for.

    Example:
        >>> capacity(64, 8, 2, 1.25)
        20
    """
    return max(1, min(tokens, math.ceil(factor * top * tokens / experts)))


def choose(
    router: str, logits: Any, scores: Any, bias: Any, *, top: int, places: int, iterations: int = 8, valid: Any = None
) -> Routing:
    """Route a batch by name; see the table at the head of this file.

    Args:
        router: one of `ROUTERS`.
        logits: `(T, E)`, what Sinkhorn balances.
        scores: `(T, E)`, the raw scores (sigmoid or softmax of the logits), what all others look at.
        bias: `(E,)`, used by "bias" alone.
        top: K.
        places: C, tokens an expert can take; used by the two routers in which experts choose.
        iterations: saddle steps of "sinkhorn" and "ksparse_ot".
        valid: `(T,)` bool, the tokens that the tally of "bias" counts; None: all.

    Returns:
        `Routing`.

    Example:
        >>> logits = jnp.array([[3.0, 1.0], [2.5, 0.0], [1.0, 0.8], [1.0, 0.9]])
        >>> scores = jax.nn.sigmoid(logits)
        >>> for router in ROUTERS:
        ...     print(router, choose(router, logits, scores, jnp.zeros(2), top=1, places=2).tally.loads)
        bias [4 0]
        aux_loss [4 0]
        sinkhorn [2 2]
        base [2 2]
        expert_choice [2 2]
        ksparse_ot [2 2]
    """
    logits, scores, bias = lax.stop_gradient((logits, scores, bias))
    count = scores.shape[1]
    if router == "bias":
        return by_tokens(scores, bias, top, valid)
    if router == "aux_loss":
        return by_tokens(scores, jnp.zeros(count, scores.dtype), top)
    if router == "sinkhorn":
        return by_tokens(logits, -sinkhorn_prices(logits, iterations), top)
    if router == "base":
        experts = balanced_assignment(scores, top).experts
        return Routing(experts, None, Tally(load_counts(experts, count), jnp.zeros(OCTAVES, jnp.int32)))
    if router == "expert_choice":
        return by_experts(scores, jnp.ones(scores.shape, bool), places)
    return ksparse(scores, top, places, iterations)


def by_tokens(scores: jax.Array, bias: jax.Array, top: int, valid: Any = None) -> Routing:
    """Each token takes its K best of `scores + bias`; the tally counts those that are valid."""
    experts, tally = select(scores, bias, top, valid)
    return Routing(experts, None, tally)


def by_experts(scores: jax.Array, open_: jax.Array, places: int) -> Routing:
    """Each expert takes its C best tokens among those `(T, E)` that are open to it."""
    count = scores.shape[0]
    values, tokens = lax.top_k(jnp.where(open_, scores, -jnp.inf).T, places)
    tokens = jnp.where(values > -jnp.inf, tokens, count).astype(jnp.int32)
    loads = jnp.sum(tokens < count, axis=1, dtype=jnp.int32)
    return Routing(None, tokens, Tally(loads, jnp.zeros(OCTAVES, jnp.int32)))


def sinkhorn_prices(logits: jax.Array, iterations: int) -> jax.Array:
    """Prices `(E,)` at which a softmax over experts spreads the batch evenly, after some sweeps in the log domain.

    One sweep is one saddle step: x, the log-loads of `softmax(logits - y)` over the tokens, answers y; the violation is
    `x - log(1/E)`; y moves by it with step 1. The row scaling is implied by the softmax.

    Example:
        >>> prices = sinkhorn_prices(jnp.array([[1.0, 0.0], [1.0, 0.0]]), 8)
        >>> print((prices[0] - prices[1]).round(3))
        1.0
    """
    tokens, count = logits.shape
    loads = lambda x, y: jax.nn.logsumexp(jax.nn.log_softmax(logits - y, axis=1), axis=0) - math.log(tokens)
    parts = row(loads, lambda x: x + math.log(count), Euclidean(ZeroSum()))
    one = jnp.ones((), logits.dtype)
    start = Pair(jnp.zeros(count, logits.dtype), jnp.zeros(count, logits.dtype))
    return lax.fori_loop(0, iterations, lambda _, pair: saddle_step(parts, one, pair)[0], start).y


def ksparse(scores: jax.Array, top: int, places: int, iterations: int) -> Routing:
    """Transport from experts to tokens with at most C tokens an expert, by steps on its semi-dual (arXiv 2209.15466).

    Expert j spreads its mass `b = T / E` over at most C tokens, best for `score - y_i`:
    `t_j = b proj_simplex(top_C(scores_j - y) / (gamma b))`, gamma = 1; y_i is the price of token i, moved by the mass
    that it gets above 1, with steps `s / sqrt(n)`, s the spread of the scores. Of the last plan the entries above 0 are
    the routing; for large batches the quadratic term fills all C places.
    """
    count, experts = scores.shape
    mass = count / experts

    def plan(x: Any, y: jax.Array) -> jax.Array:
        values, tokens = lax.top_k((scores - y[:, None]).T, places)
        return jnp.zeros(scores.shape, scores.dtype).at[tokens.T, jnp.arange(experts)].set(_shares(values, mass).T)

    parts = row(plan, lambda x: jnp.sum(x, axis=1) - 1, Euclidean(ZeroSum()))
    spread = jnp.std(scores)
    step = lambda n, pair: saddle_step(parts, spread * (n + 1.0) ** -0.5, pair)[0]
    first = Pair(jnp.zeros(scores.shape, scores.dtype), jnp.zeros(count, scores.dtype))
    found = lax.fori_loop(0, iterations, lambda n, pair: step(jnp.asarray(n, scores.dtype), pair), first)
    last = plan(None, found.y)
    return by_experts(scores, last > 0, places)


def _shares(values: jax.Array, mass: float) -> jax.Array:
    """`mass proj_simplex(values / (gamma mass))` for rows in falling order `(E, C)`."""
    u = values / (GAMMA * mass)
    u = u - u[:, :1]  # the projection does not change, and the sums below stay small
    places = jnp.arange(1, u.shape[1] + 1, dtype=u.dtype)
    excess = (jnp.cumsum(u, axis=1) - 1) / places
    last = jnp.sum(u > excess, axis=1, keepdims=True) - 1
    return mass * jnp.maximum(u - jnp.take_along_axis(excess, last, axis=1), 0)


def gates(scores: Any, routing: Routing, *, normalise: bool = True) -> jax.Array:
    """The weights of what was selected, `(T, K)` or `(E, C)`: the raw scores, divided by their sum for each token.

    Prices never enter: the bias moves tokens between experts, not the output of an expert. Differentiable in scores.

    Example:
        >>> scores = jnp.array([[0.6, 0.2, 0.1]])
        >>> routing = by_tokens(scores, jnp.array([0.0, 0.0, 9.0]), 2)
        >>> print(routing.experts, (100 * gates(scores, routing)).round())
        [[2 0]] [[14. 86.]]
    """
    count, experts = scores.shape
    if routing.experts is not None:
        weights = jnp.take_along_axis(scores, routing.experts, axis=1)
        return weights / _positive(jnp.sum(weights, axis=1, keepdims=True)) if normalise else weights
    tokens = routing.tokens
    weights = scores.at[tokens, jnp.arange(experts)[:, None]].get(mode="fill", fill_value=0)
    if not normalise:
        return weights
    total = jnp.zeros(count, scores.dtype).at[tokens].add(weights, mode="drop")
    return weights / _positive(total.at[tokens].get(mode="fill", fill_value=1))


def _positive(total: jax.Array) -> jax.Array:
    """The sum, or 1 where every selected score underflowed to 0."""
    return jnp.where(total > 0, total, jnp.ones_like(total))


def balance_loss(scores: Any, loads: Any) -> jax.Array:
    """`E sum_j f_j P_j`: f the share of the load, P the mean share of the scores; 1 at a perfect balance.

    The auxiliary loss of GShard and Switch (arXiv 2006.16668, 2101.03961), to be added with a weight of 1e-2 or 1e-3.
    Its gradient goes through P only. It is not additive over microbatches.

    Example:
        >>> float(balance_loss(jnp.full((4, 2), 0.5), jnp.array([2, 2])))
        1.0
    """
    shares = scores / _positive(jnp.sum(scores, axis=1, keepdims=True))
    load = loads.astype(scores.dtype)
    return scores.shape[1] * jnp.sum(load / _positive(jnp.sum(load)) * jnp.mean(shares, axis=0))
