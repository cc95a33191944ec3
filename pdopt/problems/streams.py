"""Streams: requests that arrive one at a time, each with its own actions, rewards and consumption of m resources.

    x_t = argmax_{x in X_t}  reward(request_t, x) - <y, consumption(request_t, x)>        the verb `best`

`0 in X_t` uses nothing and earns nothing, so that `max(...) >= 0` at any prices y >= 0, and so for any y

    dual(y) = <rate, y> + mean_t max_x (reward_t - <y, consumption_t>)

bounds what any policy, even one that knows the future, can earn a step on those requests.

A stream is a record of arrays with pure verbs, on one request; batches are `vmap`. Randomness is an explicit key: the
request of step t of a path is drawn with `fold_in(path key, t)`, so it depends on neither the horizon nor the number of
paths, and no array of all requests is ever made (`sample` makes one, for replay and for certificates).
"""

import abc
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.problems.checks import check_finite, concrete


class Size(NamedTuple):
    """What is typical of a request: its reward, a scalar, and its consumption of each resource, `(m,)`.

    Used for units alone: a first price `reward / sum consumption` and the unit of a step.
    """

    reward: Any
    consumption: Any


class Menu(NamedTuple):
    """The actions of a request but 0, when they are finitely many: rewards `(a,)`, consumption `(a, m)`."""

    reward: Any
    consumption: Any


class Types(NamedTuple):
    """A finite distribution of requests: probabilities `(k,)` and the requests, stacked."""

    probability: Any
    requests: Any


class Stream(abc.ABC):
    """What every stream offers. `unit` and `memoryless` are facts, not settings.

    `unit`: every consumption is a whole multiple of it (budgets are then kept in integers), or None.
    `memoryless`: requests are independent given t, so that many can be drawn at once; else `begin` and `arrive` carry
    a state from step to step.

    Example:
        >>> from pdopt import Auctions
        >>> stream = Auctions()
        >>> isinstance(stream, Stream), stream.resources, stream.memoryless
        (True, 1, True)
    """

    unit: float | None = None
    memoryless: bool = True

    @property
    @abc.abstractmethod
    def resources(self) -> int:
        """m."""

    @property
    @abc.abstractmethod
    def dtype(self) -> np.dtype:
        """The floating type of rewards and consumption."""

    @abc.abstractmethod
    def draw(self, key: Any, t: Any) -> Any:
        """The request of step t (0, 1, ...), a pytree of arrays."""

    @abc.abstractmethod
    def best(self, request: Any, y: Any) -> Any:
        """`argmax_x reward - <y, consumption>`, which is 0 in every entry for the action that uses nothing."""

    @abc.abstractmethod
    def reward(self, request: Any, x: Any) -> Any:
        """A scalar, 0 at x = 0."""

    @abc.abstractmethod
    def consumption(self, request: Any, x: Any) -> Any:
        """`(m,)`, >= 0, 0 at x = 0."""

    @abc.abstractmethod
    def size(self) -> Size:
        """What is typical of a request."""

    @abc.abstractmethod
    def absent(self, request: Any) -> Any:
        """The request of nobody: every action but 0 is useless. Of the same structure, shapes and types."""

    @abc.abstractmethod
    def spoilt(self, request: Any) -> Any:
        """The request of an adversary: no reward, full consumption of every resource."""

    def begin(self, key: Any) -> Any:
        """The state before the first arrival; () for a memoryless stream."""
        return ()

    def arrive(self, key: Any, t: Any, state: Any) -> tuple[Any, Any]:
        """The request of step t and the next state."""
        return self.draw(key, t), state

    def menu(self, request: Any) -> Menu:
        """The actions of a request, for linear programs over them.

        Raises:
            InvalidOption: the actions are not finitely many.
        """
        raise InvalidOption(f"{type(self).__name__} has no finite set of actions; use kind='dual'")

    def types(self) -> Types:
        """The distribution of the requests.

        Raises:
            InvalidOption: it is not finite, or not the same at every step.
        """
        raise InvalidOption(f"{type(self).__name__} has no finite distribution of requests; give a sample of requests")


def require_probabilities(name: str, value: Any) -> None:
    """Raise `InvalidProblem` unless every row (last axis) is a distribution, to 1e-4."""
    check_finite(name, value)
    seen = concrete(value)
    if seen is None:
        return
    if seen.min(initial=0.0) < 0:
        raise InvalidProblem(f"{name} has the entry {seen.min():g}; expected numbers >= 0")
    off = seen.sum(-1).ravel()
    worst = off[np.argmax(np.abs(off - 1))]
    if abs(worst - 1) > 1e-4:
        raise InvalidProblem(f"{name} sums to {worst:g}; expected 1")


def require_sign_of(name: str, value: Any, *, positive: bool = False) -> None:
    """Raise `InvalidProblem` unless every entry is finite and >= 0 (> 0 with `positive`)."""
    check_finite(name, value)
    seen = concrete(value)
    if seen is not None and seen.size and (seen.min() < 0 or (positive and seen.min() == 0)):
        raise InvalidProblem(f"{name} has the entry {seen.min():g}; expected numbers {'> 0' if positive else '>= 0'}")


def pick(cumulative: Any, u: Any) -> Any:
    """The index k with `cumulative[k-1] <= u < cumulative[k]`: a draw of a type from a uniform u, as an int32.

    Comparing with every entry is a fused sum; a binary search of 50 entries is a loop of gathers.
    """
    return jnp.sum(cumulative[:-1] <= u, dtype=jnp.int32)
