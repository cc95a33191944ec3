"""Inputs that are not independent and identically distributed, made from streams that are.

    Phases(first, second, start)        requests of `first` before step `start`, of `second` from then on
    worst_order(requests, priority)     a sampled path re-ordered block by block, worst first (see `sampling.py`)
    Seasonal(stream, period, ...)       somebody comes with probability mean (1 + amplitude sin(2 pi t/period))
    Corrupted(stream, fraction)         a share of the requests is replaced by: no reward, full consumption
    Modulated(streams, transition)      a hidden Markov chain picks the stream of each step

Each wrapper is a stream: what a request is worth and takes is asked of the streams inside, which have to agree in their
requests. Under independent requests the regret of dual mirror descent is O(sqrt T); under the first two only a ratio is
guaranteed, `reward >= OPT / alpha - O(sqrt T)` with alpha = max(1, largest consumption / rate); under the last three
O(sqrt T) holds with a further term for the period, the corruption and the mixing time (arXiv 2011.10124).
"""

import abc
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdopt.errors import InvalidProblem, require_range, require_shape
from pdopt.geometry.checks import concrete as concrete_all
from pdopt.problems.streams import Menu, Size, Stream, Types, pick, require_probabilities
from pdopt.runtime.precision import as_array
from pdopt.types import record


class _Wrapper(Stream, abc.ABC):
    """A stream that asks another what a request is worth; it only decides which request comes."""

    @property
    @abc.abstractmethod
    def inner(self) -> Stream:
        """The stream that knows the requests."""

    @property
    def unit(self) -> float | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the stream inside."""
        return self.inner.unit

    @property
    def memoryless(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the stream inside is."""
        return self.inner.memoryless

    @property
    def resources(self) -> int:
        """Those of the stream inside."""
        return self.inner.resources

    @property
    def dtype(self) -> np.dtype:
        """That of the stream inside."""
        return self.inner.dtype

    def draw(self, key: Any, t: Any) -> Any:
        """The request of step t of a memoryless stream."""
        return self.arrive(key, t, ())[0]

    def begin(self, key: Any) -> Any:
        """The state of the stream inside."""
        return self.inner.begin(key)

    def best(self, request: Any, y: Any) -> Any:
        """As inside."""
        return self.inner.best(request, y)

    def reward(self, request: Any, x: Any) -> Any:
        """As inside."""
        return self.inner.reward(request, x)

    def consumption(self, request: Any, x: Any) -> Any:
        """As inside."""
        return self.inner.consumption(request, x)

    def size(self) -> Size:
        """As inside."""
        return self.inner.size()

    def absent(self, request: Any) -> Any:
        """As inside."""
        return self.inner.absent(request)

    def spoilt(self, request: Any) -> Any:
        """As inside."""
        return self.inner.spoilt(request)

    def menu(self, request: Any) -> Menu:
        """As inside."""
        return self.inner.menu(request)


@record
class Phases(_Wrapper):
    """Two phases: requests of `first` before step `start`, of `second` from then on.

    The classical trap is low fares, enough of them to eat the whole budget, before high ones: `start >= T rate`.

    Args:
        first, second: memoryless streams with the same kind of requests.
        start: the first step of the second phase, >= 0.

    Raises:
        InvalidProblem: streams that differ in kind, resources or type. InvalidOption: a negative start.

    Example:
        >>> from pdopt import Phases, RevenueManagement
        >>> fares = [RevenueManagement([fare], [[1.0]], [1.0]) for fare in (1.0, 5.0)]
        >>> trap = Phases(*fares, start=10)
        >>> print(trap.draw(jax.random.key(0), 9).fare, trap.draw(jax.random.key(0), 10).fare)
        1.0 5.0
    """

    first: Any
    second: Any
    start: Any

    def __post_init__(self) -> None:
        _require_alike((self.first, self.second))
        if concrete_all(self.start):
            require_range("start", self.start, 0, 2**31 - 1)

    @property
    def inner(self) -> Stream:
        """The first phase's stream."""
        return self.first

    @property
    def unit(self) -> float | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The common unit, if there is one."""
        return self.first.unit if self.first.unit == self.second.unit else None

    def arrive(self, key: Any, t: Any, state: Any) -> tuple[Any, Any]:
        """Both are drawn, one is kept."""
        early = t < self.start
        one, two = self.first.draw(key, t), self.second.draw(key, t)
        return jax.tree.map(lambda a, b: jnp.where(early, a, b), one, two), state

    def size(self) -> Size:
        """The mean of both."""
        return jax.tree.map(lambda a, b: (a + b) / 2, self.first.size(), self.second.size())

    def spoilt(self, request: Any) -> Any:
        """The entrywise larger of both, in what it consumes."""
        return jax.tree.map(jnp.maximum, self.first.spoilt(request), self.second.spoilt(request))


@record
class Seasonal(_Wrapper):
    """Arrivals with a season: somebody comes at step t with probability `mean (1 + amplitude sin(2 pi t / period))`.

    Args:
        stream: who comes.
        period: q > 0, in steps.
        amplitude: in [0, 1].
        mean: in (0, 1 / (1 + amplitude)], so that the rate is a probability.

    Raises:
        InvalidOption: a number outside its range.

    Example:
        >>> from pdopt import RevenueManagement
        >>> flights = Seasonal(RevenueManagement([1.0], [[1.0]], [1.0]), period=4.0, amplitude=1.0, mean=0.5)
        >>> print([round(float(flights.rate(t)), 3) for t in range(4)])
        [0.5, 1.0, 0.5, 0.0]
    """

    stream: Any
    period: Any = 50.0
    amplitude: Any = 0.8
    mean: Any = 0.5

    def __post_init__(self) -> None:
        _require_stream(self.stream)
        if concrete_all(self.period, self.amplitude, self.mean):
            require_range("period", self.period, 0.0, open_low=True)
            require_range("amplitude", self.amplitude, 0.0, 1.0)
            require_range("mean", self.mean, 0.0, 1 / (1 + float(self.amplitude)), open_low=True)

    @property
    def inner(self) -> Stream:
        """Who comes."""
        return self.stream

    def rate(self, t: Any) -> Any:
        """The chance that somebody comes at step t."""
        dtype = self.dtype
        period, amplitude, mean = (jnp.asarray(v, dtype) for v in (self.period, self.amplitude, self.mean))
        # The remainder first: t / period of a late step has no digits left for the phase in float32.
        phase = jnp.mod(jnp.asarray(t, dtype), period) / period
        return mean * (1 + amplitude * jnp.sin(2 * math.pi * phase))

    def arrive(self, key: Any, t: Any, state: Any) -> tuple[Any, Any]:
        """A request of the stream, or nobody."""
        own, theirs = jax.random.split(key)
        request, state = self.stream.arrive(theirs, t, state)
        comes = jax.random.uniform(own, dtype=self.dtype) < self.rate(t)
        return _choose(comes, request, self.stream.absent(request)), state

    def size(self) -> Size:
        """That of those who come, times the mean rate."""
        return jax.tree.map(lambda v: v * jnp.asarray(self.mean, v.dtype), self.stream.size())


@record
class Corrupted(_Wrapper):
    """A share of the requests, at random, is replaced by one without reward that takes all it can of every resource.

    Args:
        stream: the honest requests.
        fraction: delta in [0, 1].

    Raises:
        InvalidOption: a fraction outside [0, 1].

    Example:
        >>> from pdopt import RevenueManagement
        >>> honest = RevenueManagement([2.0], [[1.0]], [1.0])
        >>> print(Corrupted(honest, 1.0).draw(jax.random.key(0), 0))
        Booking(fare=Array(0., dtype=float32), column=Array([1.], dtype=float32))
    """

    stream: Any
    fraction: Any = 0.1

    def __post_init__(self) -> None:
        _require_stream(self.stream)
        if concrete_all(self.fraction):
            require_range("fraction", self.fraction, 0.0, 1.0)

    @property
    def inner(self) -> Stream:
        """The honest requests."""
        return self.stream

    def arrive(self, key: Any, t: Any, state: Any) -> tuple[Any, Any]:
        """A request of the stream, or its spoilt twin."""
        own, theirs = jax.random.split(key)
        request, state = self.stream.arrive(theirs, t, state)
        spoilt = jax.random.uniform(own, dtype=self.dtype) < jnp.asarray(self.fraction, self.dtype)
        return _choose(spoilt, self.stream.spoilt(request), request), state


@record
class Modulated(_Wrapper):
    """A Markov chain s_t picks the stream of each step: `P(s_(t+1) = j | s_t = i) = transition[i, j]`, ergodic.

    The first state is drawn from the chain's stationary distribution.

    Args:
        streams: a tuple of S memoryless streams with the same kind of requests.
        transition: `(S, S)`, rows are distributions.

    Raises:
        InvalidProblem: streams that differ, a transition of another shape, rows that are no distributions, or a chain
            whose stationary distribution is not unique.

    Example:
        >>> from pdopt import RevenueManagement
        >>> fares = tuple(RevenueManagement([fare], [[1.0]], [1.0]) for fare in (1.0, 5.0))
        >>> chain = Modulated(fares, [[0.9, 0.1], [0.3, 0.7]])
        >>> [round(float(share), 3) for share in chain.stationary]
        [0.75, 0.25]
    """

    streams: Any
    transition: Any
    stationary: Any = None

    def __post_init__(self) -> None:
        streams = tuple(self.streams)
        _require_alike(streams)
        transition = as_array("transition", self.transition, streams[0].dtype)
        require_shape("transition", transition.shape, (len(streams),) * 2, f"there are {len(streams)} streams")
        require_probabilities("transition", transition)
        stationary = self.stationary
        if stationary is None:
            if not concrete_all(transition):
                raise InvalidProblem("transition is traced; expected numbers, or the stationary distribution beside it")
            stationary = _stationary(np.asarray(transition, float))
        stationary = as_array("stationary", stationary, streams[0].dtype)
        require_shape("stationary", stationary.shape, (len(streams),), f"there are {len(streams)} streams")
        require_probabilities("stationary", stationary)
        for name, value in (("streams", streams), ("transition", transition), ("stationary", stationary)):
            object.__setattr__(self, name, value)

    @property
    def inner(self) -> Stream:
        """The first stream."""
        return self.streams[0]

    @property
    def unit(self) -> float | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The common unit, if there is one."""
        units = {stream.unit for stream in self.streams}
        return self.inner.unit if len(units) == 1 else None

    @property
    def memoryless(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """No: the chain remembers its state."""
        return False

    def draw(self, key: Any, t: Any) -> Any:
        """A request of the stationary mixture, which is what any single step sees."""
        first, later = jax.random.split(key)
        return self.arrive(later, t, self.begin(first))[0]

    def begin(self, key: Any) -> Any:
        """A state from the stationary distribution."""
        return pick(jnp.cumsum(self.stationary), jax.random.uniform(key, dtype=self.dtype))

    def arrive(self, key: Any, t: Any, state: Any) -> tuple[Any, Any]:
        """A request of the present state's stream, and the chain's next state."""
        own, theirs = jax.random.split(key)
        stacked = [stream.draw(theirs, t) for stream in self.streams]
        request = jax.tree.map(lambda *leaves: jnp.stack(leaves)[state], *stacked)
        later = pick(jnp.cumsum(self.transition[state]), jax.random.uniform(own, dtype=self.dtype))
        return request, later

    def size(self) -> Size:
        """The mean of the streams' under the stationary distribution."""
        sizes = [stream.size() for stream in self.streams]
        return jax.tree.map(lambda *leaves: jnp.tensordot(self.stationary, jnp.stack(leaves), axes=1), *sizes)

    def spoilt(self, request: Any) -> Any:
        """The entrywise largest of the streams', in what it consumes."""
        spoilt = [stream.spoilt(request) for stream in self.streams]
        return jax.tree.map(lambda *leaves: jnp.max(jnp.stack(leaves), axis=0), *spoilt)

    def types(self) -> Types:
        """The types of all streams, weighted by the stationary distribution: the long-run mixture."""
        kinds = [stream.types() for stream in self.streams]
        weights = jnp.concatenate([w * kind.probability for w, kind in zip(self.stationary, kinds)])
        return Types(weights, jax.tree.map(lambda *v: jnp.concatenate(v), *[kind.requests for kind in kinds]))


def _stationary(transition: np.ndarray) -> np.ndarray:
    """The row vector with `pi P = pi`, `sum pi = 1`."""
    states = len(transition)
    system = np.vstack([transition.T - np.eye(states), np.ones(states)])
    if np.linalg.matrix_rank(system, tol=1e-6) < states:
        raise InvalidProblem("transition has several stationary distributions; expected an irreducible chain")
    pi = np.linalg.lstsq(system, np.append(np.zeros(states), 1.0), rcond=None)[0]
    return np.maximum(pi, 0) / np.maximum(pi, 0).sum()


def _choose(flag: Any, one: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(flag, a, b), one, other)


def _require_stream(stream: Any) -> None:
    if not isinstance(stream, Stream):
        raise InvalidProblem(f"stream has type {type(stream).__name__}; expected a Stream")


def _require_alike(streams: tuple[Any, ...]) -> None:
    if not streams:
        raise InvalidProblem("streams is empty; expected at least one")
    for stream in streams:
        _require_stream(stream)
        if not stream.memoryless:
            raise InvalidProblem(f"{type(stream).__name__} remembers a state; expected memoryless streams inside")
    first = streams[0]
    for stream in streams[1:]:
        seen = (type(stream).__name__, stream.resources, str(stream.dtype))
        want = (type(first).__name__, first.resources, str(first.dtype))
        if seen != want:
            raise InvalidProblem(f"streams are {want} and {seen}; expected one kind, number of resources and type")
