"""Online allocation: requests come one at a time, and m resources must last until the end.

    max  sum_t reward_t(x_t)    subject to    sum_t consumption_t(x_t) <= T rate,   x_t in X_t chosen at step t

Its Lagrangian separates: at prices y >= 0 each request is answered by `argmax reward - <y, consumption>`, and the
violation of a step is `consumption - rate`. In the signs of this library (a cost is minus a reward) y rises while more
than the rate is used. The dual function of a sample of requests,

    dual(y) = <rate, y> + mean_t max_x (reward_t(x) - <y, consumption_t(x)>),

bounds the mean reward of every policy on it, for every y >= 0.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pdopt.errors import InvalidOption, InvalidProblem, require_shape
from pdopt.geometry.entropic import Entropic
from pdopt.geometry.moves import Euclidean, Move, Sign
from pdopt.geometry.sets import Orthant
from pdopt.problems.streams import Stream, require_sign_of
from pdopt.problems.views import mirrored
from pdopt.runtime.precision import as_array, precision_scope
from pdopt.types import record


@record
class Allocation:
    """A stream of requests and the rate at which each resource may be used; the budget is `horizon * rate`.

    Args:
        stream: who comes, what they may be given, what that earns and takes: a `Stream`.
        rate: `(m,)`, or a scalar for every resource; > 0. It takes the stream's type.

    Raises:
        InvalidProblem: not a stream, or a rate of another shape, with NaN, or not positive.

    Example:
        >>> import pdopt
        >>> seats = pdopt.RevenueManagement([1.0, 3.0], [[1.0], [1.0]], [0.5, 0.5])
        >>> flight = Allocation(seats, rate=0.5)
        >>> print(flight.dual(jnp.array([2.0])))
        1.5
    """

    stream: Any
    rate: Any

    def __post_init__(self) -> None:
        if not isinstance(self.stream, Stream):
            raise InvalidProblem(f"stream has type {type(self.stream).__name__}; expected a Stream")
        m = self.stream.resources
        with precision_scope(self.stream):
            rate = as_array("rate", self.rate, self.stream.dtype)
            rate = jnp.broadcast_to(rate, (m,)) if rate.ndim == 0 else rate
            require_shape("rate", rate.shape, (m,), f"the stream has {m} resources")
            require_sign_of("rate", rate, positive=True)
        object.__setattr__(self, "rate", rate)

    def dual(self, y: Any, requests: Any = None, weights: Any = None) -> Any:
        """`<rate, y> + mean_t max_x (reward_t - <y, consumption_t>)`: no policy's mean reward is above it.

        Args:
            y: `(m,)`, >= 0.
            requests: stacked on one leading axis; None for the stream's own distribution, where it is finite.
            weights: `(t,)`, of the requests, summing to 1; None for equal ones.
        """
        with precision_scope(self):
            if requests is None:
                kinds = self.stream.types()
                requests, weights = kinds.requests, kinds.probability
            earned, _ = self.answers(y, requests)
            mean = jnp.mean(earned) if weights is None else jnp.sum(weights * earned)
            return self.rate @ y + mean

    def answers(self, y: Any, requests: Any) -> tuple[Any, Any]:
        """For each request its `max_x (reward - <y, consumption>)` `(t,)`, and the consumption of that x `(t, m)`."""

        def one(request: Any) -> tuple[Any, Any]:
            x = self.stream.best(request, y)
            used = self.stream.consumption(request, x)
            return self.stream.reward(request, x) - jnp.sum(y * used), used

        return jax.vmap(one)(requests)


@record
class Online:
    """An allocation as mirror descent sees it: verbs on one request, and the move of the prices on the orthant.

    Attributes:
        stream: as in the problem; rate: `(m,)`; move: how prices move, its scale filled in.
    """

    stream: Any
    rate: Any
    move: Move

    def best(self, request: Any, y: Any) -> Any:
        """The best action at prices y."""
        return self.stream.best(request, y)

    def violation(self, request: Any, x: Any) -> Any:
        """`consumption - rate` of an action, whether or not the budget had room for it."""
        return self.stream.consumption(request, x) - self.rate

    def price(self) -> Any:
        """A first price: what a request earns for each unit of all it takes, in the stream's typical sizes."""
        size = self.stream.size()
        used = jnp.sum(size.consumption)
        price = jnp.abs(size.reward) / jnp.where(used > 0, used, jnp.ones_like(used))
        return jnp.broadcast_to(jnp.where(price > 0, price, jnp.ones_like(price)), self.rate.shape)

    def units(self) -> Any:
        """The unit of a step, so that a pure number times it fits the move.

        Entropy, scaled by the rate: 1; plain entropy: 1 / mean rate; Euclidean: price / rate, for each resource, the
        step that to first order is the scaled entropy's at the first price; sign: the price.
        """
        if isinstance(self.move, Entropic):
            one = jnp.ones((), self.rate.dtype)
            return one / jnp.mean(self.rate) if self.move.scale is None else one
        return self.price() if isinstance(self.move, Sign) else self.price() / self.rate

    def start(self, given: Any = None) -> Any:
        """The first prices `(m,)`: those given, after a look at them, or `price()`.

        Raises:
            InvalidOption: a negative price, or with the entropy one that is 0, where it would stay.
        """
        if given is None:
            return self.price()
        y = as_array("start", given, self.rate.dtype)
        y = jnp.broadcast_to(y, self.rate.shape) if y.ndim == 0 else y
        require_shape("start", y.shape, self.rate.shape, f"the stream has {self.stream.resources} resources")
        entropic = isinstance(self.move, Entropic)
        try:
            require_sign_of("start", y, positive=entropic)
        except InvalidProblem as error:
            why = ": the entropic move never leaves 0" if entropic else ""
            raise InvalidOption(f"{error}{why}") from error
        return y


@mirrored.register
def _(problem: Allocation, move: Move) -> Online:
    if not isinstance(move, Euclidean | Entropic | Sign) or not isinstance(move.set, Orthant):
        raise InvalidOption(f"move is {move!r}; expected Euclidean(), Entropic() or Sign() on the orthant")
    own = move.scaled(problem.rate) if isinstance(move, Entropic) else move
    return Online(problem.stream, problem.rate, own)
