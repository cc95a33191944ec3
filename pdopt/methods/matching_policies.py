"""Policies of online matching with stochastic rewards, as settings of the one saddle step.

    x' = argmax over free neighbours u of score_u       (a unit vector, or 0 when nobody is free)     primal
    l' = [l + p_v x']_+                                 the load moves by what the try consumes       move, theta = 0

The loads are the multipliers: violation = consumption (a try of u by v consumes `p_uv` of u), step 1, Euclidean move in
the orthant. A policy is its score:

    policy           score_u                        what u costs
    Balance          p_uv w_u (1 - g(l_u))          w_u g(l_u): the more was tried, the dearer (g increasing)
    Ranking          p_uv w_u (1 - e^(r_u - 1))     w_u e^(r_u - 1), r_u ~ U(0, 1) drawn once: prices that never move
    Greedy           p_uv w_u, or a fixed order     nothing
    UniformRandom    U(0, 1) drawn for each arrival

So Balance is dual mirror descent on a stream (best response `argmax w p - price p`, then one move), and Ranking is the
same best response to random prices. Ties go to the lowest index. Known ratios for vanishing p: Balance 0.596 (Huang,
Zhang 2020), 0.611 and with equal p 0.613 against a stochastic benchmark (arXiv 2309.10289); Greedy 1/2.

Not done here: policies that know the arrivals to come.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pdopt.errors import InvalidOption, require_shape
from pdopt.geometry.moves import Euclidean
from pdopt.geometry.sets import Orthant
from pdopt.problems.checks import check_finite
from pdopt.problems.matching import StochasticMatching
from pdopt.rules.saddle import Parts
from pdopt.types import Memory, record


class Arrival(NamedTuple):
    """What a policy sees when v arrives: `p (n,)`, who is `free (n,)`, its own `drawn` numbers, a fresh key."""

    p: Any
    free: Any
    drawn: Any
    key: Any


def survival(load: Any) -> Any:
    """`1 - g(l) = e^-l`: the chance that a vertex of load l has not succeeded yet, for small p.

    Example:
        >>> print(survival(jnp.array([0.0, 1.0])))
        [1.         0.36787...]
    """
    return jnp.exp(-load)


@record(static=("discount",))
class Balance:
    """Stochastic Balance: `argmax p_uv w_u (1 - g(l_u))` over free neighbours (Mehta, Panigrahi 2012; Huang, Zhang
    2020; arXiv 2309.10289).

    With equal p and w, every increasing g means "the least loaded free neighbour" and makes the same decisions.
    With unequal ones g matters; the papers choose theirs to prove a ratio. The default, `1 - g = survival`, is not
    theirs: its score `p w e^-l` weighs a try by the chance that u would still be free.

    Attributes:
        discount: `1 - g`, a decreasing function of the loads `(n,)`, elementwise, in [0, 1]; static, so pass a
            module-level function. (1 - g is asked for, as it keeps its digits where the load is large.)

    Raises:
        InvalidOption: discount is not callable.

    Example:
        >>> import pdopt
        >>> graph = pdopt.upper_triangular(4, 5, jnp.float32)
        >>> run = pdopt.match_online(graph, Balance(), jax.random.key(0), paths=3)
        >>> run.matched.shape
        (3, 4)
    """

    discount: Callable[[Any], Any] = survival

    def __post_init__(self) -> None:
        if not callable(self.discount):
            raise InvalidOption(f"discount is {self.discount!r}; expected a function of the loads")

    def draw(self, problem: StochasticMatching, key: Any) -> Any:
        """Nothing is drawn."""
        return ()

    def score(self, weights: Any, load: Any, arrival: Arrival) -> Any:
        """`p (w - price)` with `price = w g(load)`, that is `p w (1 - g)`, `(n,)`."""
        return arrival.p * weights * self.discount(load)


@record
class Ranking:
    """Ranking with perturbed weights: `argmax p_uv w_u (1 - e^(r_u - 1))`, `r_u ~ U(0, 1)` drawn once a run.

    With equal p and w: the free neighbour of least rank (Karp, Vazirani, Vazirani 1990); weights as in Aggarwal et al.
    (2011), stochastic rewards as in Mehta and Panigrahi (2012).

    Example:
        >>> import pdopt
        >>> graph = pdopt.upper_triangular(4, 5, jnp.float32)
        >>> run = pdopt.match_online(graph, Ranking(), jax.random.key(0), paths=3)
        >>> run.reward.shape
        (3,)
    """

    def draw(self, problem: StochasticMatching, key: Any) -> Any:
        """The ranks, `(n,)`."""
        return jax.random.uniform(key, problem.weights.shape, problem.weights.dtype)

    def score(self, weights: Any, load: Any, arrival: Arrival) -> Any:
        """`p (w - price)` with the constant `price = w e^(r - 1)`, `(n,)`."""
        return arrival.p * weights * -jnp.expm1(arrival.drawn - 1)


@record
class Greedy:
    """Greedy: the free neighbour with the largest `p_uv w_u`, or the first one of a fixed order. Ratio 1/2 at worst.

    Attributes:
        priority: None, or `(n,)` numbers: the free neighbour with the largest one is tried, whatever its p. An
            adversary's order is `-arange(n)` or `arange(n)` on the families of `pdopt/problems/matching.py`.

    Raises:
        InvalidProblem: at the run: a priority of another length, or not finite.

    Example:
        >>> import pdopt
        >>> graph = pdopt.upper_triangular(4, 1, jnp.float32)  # p = 1: no chance is left
        >>> last_first = Greedy(jnp.arange(4, dtype=jnp.float32))
        >>> pdopt.match_online(graph, last_first, jax.random.key(0)).reward.tolist()
        [2.0]
        >>> pdopt.match_online(graph, Greedy(), jax.random.key(0)).reward.tolist()
        [4.0]
    """

    priority: Any = None

    def admit(self, problem: StochasticMatching) -> None:
        """Look at the priority before anything is compiled."""
        if self.priority is not None:
            require_shape("priority", jnp.shape(self.priority), problem.weights.shape, "the graph has so many rows")
            check_finite("priority", self.priority)

    def draw(self, problem: StochasticMatching, key: Any) -> Any:
        """Nothing is drawn."""
        return ()

    def score(self, weights: Any, load: Any, arrival: Arrival) -> Any:
        """`p w`, or the priority, `(n,)`."""
        return arrival.p * weights if self.priority is None else jnp.asarray(self.priority, weights.dtype)


@record
class UniformRandom:
    """Any free neighbour with equal chance: the baseline that knows nothing.

    Example:
        >>> import pdopt
        >>> graph = pdopt.upper_triangular(4, 5, jnp.float32)
        >>> run = pdopt.match_online(graph, UniformRandom(), jax.random.key(0), paths=3)
        >>> run.load.shape
        (3, 4)
    """

    def draw(self, problem: StochasticMatching, key: Any) -> Any:
        """Nothing is drawn in advance."""
        return ()

    def score(self, weights: Any, load: Any, arrival: Arrival) -> Any:
        """Fresh `U(0, 1)` numbers, `(n,)`."""
        return jax.random.uniform(arrival.key, weights.shape, weights.dtype)


def parts(policy: Any, weights: Any) -> Parts:
    """The row of the table: the saddle step of one arrival, which travels in `memory.primal`."""

    def primal(x: Any, load: Any, memory: Memory) -> tuple[Any, Memory]:
        arrival = memory.primal
        eligible = arrival.free & (arrival.p > 0)
        score = jnp.where(eligible, policy.score(weights, load, arrival), -jnp.inf)
        # Twice as fast as argmax on a CPU. The barrier makes the scores one set of numbers: computed again for the
        # comparison, they might round differently and none would equal the largest.
        score = jax.lax.optimization_barrier(score)
        place = jnp.arange(score.shape[0], dtype=jnp.int32)
        first = jnp.min(jnp.where(score == jnp.max(score), place, score.shape[0]))
        return ((place == first) & eligible).astype(weights.dtype), memory

    consumption = lambda chosen, arrival: arrival.p * chosen
    return Parts(primal, consumption, Euclidean(Orthant()))
