"""Balancing by prices: one move of the experts' prices a batch, each a subgradient step on the dual of the assignment.

    x  = the K best of scores - y for each token                         advance: route the batch
    y' = project(y + step_n u(v)),   v = (load - L) / T                  respond: the overloaded become dearer

with the projection on `sum y = 0`. In the words of the routers that do this, the bias is `p = -y` and
`p' = p + step (L - load) / T`. Step rules, n = 1, 2, ... counting the moves, w_n = max((n + n0)^-a, floor):

    proportional, decaying  (default)   step_n = w_n / kappa       a = 1; kappa the running curvature of the dual
    proportional, c / n                 step_n = c w_n             a = 1
    proportional, c / sqrt n            step_n = c w_n             a = 1/2
    proportional, constant              step_n = c                 a = 0
    signs (arXiv 2408.15664)            step_n = rate, u = sign v  a = 0

Where the expected dual is strongly convex on `sum y = 0` the first has regret O(log n) (Hazan, Agarwal, Kale 2007);
that needs c above half the inverse of the smallest curvature, which is why c is measured and not guessed: kappa is the
density of tokens about to switch (`problems.balancing.curvature`), and 1 / kappa a Newton step, tuned to nothing. The
floor keeps the prices following scores that drift; a step that never shrinks leaves a residual imbalance of the order
of the tokens whose gap is below the step.

For a stream of batches or a training loop, keep `Prices` and call `update(prices, tally)` once a step, with the tally
summed over devices and microbatches. For fixed scores `pdopt.solve(Balancing(scores, top))` runs the same move and
averages the plans, since the plan of the last prices need not be balanced where tokens tie.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pdopt.errors import InvalidOption, UnsupportedProblem, require_range
from pdopt.geometry.checks import concrete
from pdopt.geometry.moves import Euclidean
from pdopt.geometry.zero_sum import ZeroSum
from pdopt.problems.balancing import OCTAVES, Balancing, Tally, curvature, load_violation
from pdopt.rules.saddle import NO_MEMORY, Parts, respond, row
from pdopt.rules.signals import Raw, Signal
from pdopt.types import Pair, Visit, record


@record
class Signs(Signal):
    """`u = sign v`: the violation without its size, as in DeepSeek's rule (arXiv 2408.15664, algorithm 1).

    Example:
        >>> from pdopt.types import Memory
        >>> print(Signs()(jnp.array([-3.0, 0.0, 0.1]), Memory())[0])
        [-1.  0.  1.]
    """

    def update(self, v: Any, history: Any) -> tuple[Any, Any]:
        """The signs."""
        return jax.tree.map(jnp.sign, v), history


class Prices(NamedTuple):
    """What travels from batch to batch: the prices `(E,)`, the moves made, and the mean of the gap counts."""

    y: Any
    count: Any
    near: Any


class State(NamedTuple):
    """For fixed scores: the prices, the latest plan, and the mean of the plans since the last restart of the mean."""

    prices: Prices
    plan: Any
    mean: Any
    weight: Any


@record(static=("every",))
class Balancer:
    """The move of the experts' prices with its step rule; see the head of this file.

    Attributes:
        stepsize: c > 0, multiplying violations per token, `(load - L) / T`; None takes 1 / kappa.
        decay: a >= 0: 1 for c / n, 1/2 for c / sqrt n, 0 for a constant step.
        offset: n0 >= 0: how many moves later the decay begins.
        floor: in [0, 1]; w_n never falls below it. The default 0.01 follows a drift over about 100 batches.
        share: in (0, 1]; of the tokens that the curvature is measured on, those nearest to a switch.
        signal: what the move is fed with: `Raw()` or `Signs()`.
        every: steps between checks of `solve`, >= 1.

    Raises:
        InvalidOption: a setting outside its range.

    Example:
        >>> balancer = Balancer()
        >>> prices = balancer.start(2)
        >>> tally = Tally(jnp.array([3, 1]), jnp.zeros(OCTAVES, jnp.int32).at[8].set(4))    # gaps in [1/2, 1)
        >>> print(balancer.update(prices, tally, top=1).y)
        [ 0.25 -0.25]
    """

    stepsize: Any = None
    decay: Any = 1.0
    offset: Any = 0.0
    floor: Any = 0.01
    share: Any = 0.25
    signal: Any = Raw()
    every: int = 32

    def __post_init__(self) -> None:
        if not isinstance(self.signal, Raw | Signs):
            raise InvalidOption(f"signal is {self.signal!r}; expected Raw() or Signs(), which have no history")
        if not isinstance(self.every, int) or self.every < 1:
            raise InvalidOption(f"every is {self.every!r}; expected an integer >= 1")
        if not concrete(self):
            return
        if self.stepsize is not None:
            require_range("stepsize", self.stepsize, 0.0, open_low=True)
        require_range("decay", self.decay, 0.0)
        require_range("offset", self.offset, 0.0)
        require_range("floor", self.floor, 0.0, 1.0)
        require_range("share", self.share, 0.0, 1.0, open_low=True)

    @staticmethod
    def constant(stepsize: Any, **settings: Any) -> "Balancer":
        """Proportional with a constant step."""
        return Balancer(**{"stepsize": stepsize, "decay": 0.0, **settings})

    @staticmethod
    def root(stepsize: Any, **settings: Any) -> "Balancer":
        """Proportional with steps `c / sqrt n`."""
        return Balancer(**{"stepsize": stepsize, "decay": 0.5, "floor": 0.0, **settings})

    @staticmethod
    def signs(rate: Any = 1e-3, **settings: Any) -> "Balancer":
        """DeepSeek's rule: the bias moves by the rate against the sign of the violation (their rate: 1e-3)."""
        return Balancer(**{"stepsize": rate, "decay": 0.0, "signal": Signs(), **settings})

    def start(self, experts: int, dtype: Any = jnp.float32) -> Prices:
        """Prices of 0 for E experts, no move made; float32 whatever the model computes in."""
        return Prices(jnp.zeros(experts, dtype), jnp.zeros((), jnp.int32), jnp.zeros(OCTAVES, dtype))

    def parts(self, top: int) -> Parts:
        """The row of the table: primal the K best, violation load - L per token, move on `sum y = 0`."""
        return row(
            lambda problem, y: problem.choose(y)[1].loads,
            lambda loads: load_violation(loads, top),
            Euclidean(ZeroSum()),
            signal=self.signal,
        )

    def update(self, prices: Prices, tally: Tally, *, top: int) -> Prices:
        """The dual half of the saddle step: the prices after a batch.

        Args:
            prices: from `start`, or from the batch before.
            tally: of the whole batch: summed over every device and microbatch first.
            top: K, experts a token is sent to.

        Returns:
            New `Prices`, of the dtype of the old ones.
        """
        dtype = prices.y.dtype
        count = prices.count + 1
        # The mean of the gap counts forgets as the step does: w_1 = 1 for offset 0, so that the first batch replaces 0.
        weight = self.weight(count, dtype)
        near = tally.near.astype(dtype)
        near = prices.near + jnp.where(prices.count > 0, weight, jnp.ones((), dtype)) * (near - prices.near)
        step = weight * self._scale(near, prices.y.shape[-1]).astype(dtype)
        y, _ = respond(self.parts(top), prices.y, tally.loads, step, NO_MEMORY)
        return Prices(y, count, near)

    def weight(self, count: Any, dtype: Any) -> jax.Array:
        """`w_n = max((n + n0)^-a, floor)`; 1 for a constant step."""
        fall = (jnp.asarray(count, dtype) + self.offset) ** -jnp.asarray(self.decay, dtype)
        return jnp.maximum(fall, self.floor).astype(dtype)

    def _scale(self, near: jax.Array, experts: int) -> jax.Array:
        """c, or 1 / kappa; 0 where no token could switch, as when K = E."""
        if self.stepsize is not None:
            return jnp.asarray(self.stepsize)
        kappa = curvature(near, experts, self.share)
        return jnp.where(kappa > 0, 1 / jnp.where(kappa > 0, kappa, 1), 0)

    # For fixed scores: what the loop of `solve` asks of a method.

    def view(self, problem: Any) -> Balancing:
        """The problem as this method sees it: itself."""
        if not isinstance(problem, Balancing):
            raise UnsupportedProblem(f"Balancer routes tokens; expected Balancing, not {type(problem).__name__}")
        return problem

    def init(self, view: Balancing, start: Pair) -> State:
        """The first state from a pair: its prices count, and its plan until the first step."""
        prices = self.start(view.experts, view.scores.dtype)._replace(y=start.y)
        return State(prices, start.x, start.x, jnp.zeros((), view.scores.dtype))

    def step(self, view: Balancing, state: State) -> tuple[State, Visit]:
        """Route at the present prices, move them, and add the plan to the mean, weighted by its step."""
        y = state.prices.y
        experts, tally = view.choose(y)
        prices = self.update(state.prices, tally, top=view.top)
        plan = view.plan(experts)
        # A mean over the moves since the last power of two forgets the first, unbalanced plans.
        fresh = (state.prices.count & (state.prices.count - 1)) == 0
        weight = jnp.where(fresh, 0, state.weight) + self.weight(prices.count, plan.dtype)
        mean = state.mean + self.weight(prices.count, plan.dtype) / weight * (plan - state.mean)
        after = State(prices, plan, mean, weight)
        return after, Visit(Pair(state.plan, y), Pair(plan, prices.y))

    def pair(self, view: Balancing, state: State, visit: Visit) -> Pair:
        """The mean plan and the latest prices; the latest plan once it is balanced and no step moves it any more."""
        moved = optax.tree.norm(optax.tree.sub(visit.after, visit.before))
        return optax.tree.where(moved > 0, Pair(state.mean, state.prices.y), visit.after)

    def check(self, view: Balancing, state: State, visit: Visit) -> State:
        """Nothing to adapt."""
        return state


def route(problem: Balancing, balancer: Balancer, prices: Prices) -> tuple[jax.Array, Prices]:
    """One whole saddle step on a fresh batch: `(experts (T, K), prices')`, for streams.

    Example:
        >>> scores = jax.nn.sigmoid(jax.random.normal(jax.random.key(0), (8, 256, 4)) + jnp.arange(4.0))
        >>> balancer = Balancer()
        >>> step = lambda prices, batch: route(Balancing(batch, 1), balancer, prices)[::-1]
        >>> prices, _ = jax.lax.scan(step, balancer.start(4), scores)
        >>> print(bool(jnp.all(jnp.diff(prices.y) > 0)))        # experts with higher scores cost more
        True
    """
    experts, tally = problem.choose(prices.y)
    return experts, balancer.update(prices, tally, top=problem.top)
