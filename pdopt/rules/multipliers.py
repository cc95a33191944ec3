"""The dual half for multipliers that are measured a few at a time: whoever trains on batches shares these.

    y_i' = move(y, signal(v), step)_i        where v_i was measured,
    y_i' = y_i, and its history as it was    where v_i is NaN: nothing was measured

A constraint that no row of a batch concerns has no violation, and a multiplier must not drift for want of one. NaN is
carried through both functions of the saddle step: `Entrywise` keeps the history of such an entry and passes NaN on,
`Measured` keeps its multiplier. So `respond` and `saddle_step` are what they are elsewhere:

    each = Entrywise(signal)
    parts = Parts(primal, violation, Measured(move), theta, each, each.offer)
    memory = Memory(dual=each.init(y))
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pdopt.errors import InvalidOption
from pdopt.rules.signals import Offer, Signal
from pdopt.types import Memory, record


@record
class Measured:
    """A move of the entries that were measured; an entry whose signal is NaN keeps its multiplier.

    Attributes:
        move: any move that acts on each entry by itself.

    Example:
        >>> from pdopt.geometry import Euclidean
        >>> print(Measured(Euclidean())(jnp.array([1.0, 1.0]), jnp.array([jnp.nan, -3.0]), 0.5))
        [1. 0.]
    """

    move: Any

    def __call__(self, y: Any, u: Any, step: Any) -> Any:
        """`move(y, u, step)` where u is a number, y elsewhere; one array."""
        return jnp.where(jnp.isnan(u), y, self.move(y, u, step))


@record
class Entrywise:
    """A signal, or an `Offer`, for each entry by itself: with its own settings, history and start.

    Attributes:
        signal: its settings are numbers, or arrays that broadcast against the multipliers.

    Raises:
        InvalidOption: something that is neither a signal nor an `Offer`.

    Example:
        >>> from pdopt.rules.signals import Extrapolated
        >>> each = Entrywise(Extrapolated(1.0))
        >>> memory = Memory(dual=each.init(jnp.zeros(2)))
        >>> for v in ([1.0, jnp.nan], [3.0, 3.0]):  # the second entry is new at the second call
        ...     u, memory = each(jnp.array(v), memory)
        ...     print(u)
        [ 1. nan]
        [5. 3.]
    """

    signal: Signal | Offer

    def __post_init__(self) -> None:
        if not isinstance(self.signal, Signal | Offer):
            raise InvalidOption(f"signal is {self.signal!r}; expected a signal of rules/signals.py or an Offer")

    def init(self, y: Any) -> Any:
        """The history of multipliers like y, an array: every leaf has the shape of y in front."""
        return _each(lambda signal, y: signal.init(y), y.ndim)(self._spread(jnp.shape(y)), y)

    def __call__(self, v: Any, memory: Memory) -> tuple[Any, Memory]:
        """The function for `Parts.signal`: `(u, memory)`, NaN and the old history where v is NaN."""
        absent, history = jnp.isnan(v), memory.dual
        shown = jnp.where(absent, 0, v)
        u, later = _each(_update, shown.ndim)(self._spread(shown.shape), shown, history)
        return jnp.where(absent, jnp.nan, u), memory._replace(dual=keep(absent, history, later))

    def offer(self, y: Any, memory: Memory) -> Any:
        """The function for `Parts.offer`: y itself, or what an `Offer` makes of it."""
        if not isinstance(self.signal, Offer):
            return y
        return _each(_offered, y.ndim)(self._spread(jnp.shape(y)), y, memory.dual)

    def _spread(self, shape: tuple[int, ...]) -> Any:
        """The signal with every setting of that shape."""
        return jax.tree.map(lambda leaf: jnp.broadcast_to(jnp.asarray(leaf), shape), self.signal)


def keep(still: Any, old: Any, new: Any) -> Any:
    """`old` where `still`, else `new`; every leaf has the shape of `still`.

    Example:
        >>> print(keep(jnp.array([True, False]), jnp.zeros(2), jnp.ones(2)))
        [0. 1.]
    """
    return jax.tree.map(lambda old, new: jnp.where(still, old, new), old, new)


def _each(function: Callable[..., Any], axes: int) -> Callable[..., Any]:
    """The function of one entry, for arrays of that many axes."""
    for _ in range(axes):
        function = jax.vmap(function)
    return function


def _update(signal: Any, v: Any, history: Any) -> tuple[Any, Any]:
    if isinstance(signal, Offer):
        u, memory = signal.signal(v, Memory(dual=history))
        return u, memory.dual
    return signal.update(v, history)


def _offered(offer: Any, y: Any, history: Any) -> Any:
    return offer(y, Memory(dual=history))
