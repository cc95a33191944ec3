"""Signals: what the violation becomes before a move is fed with it, `(v, memory) -> (u, memory)`.

    Raw                     u = v
    Extrapolated(theta)     u = v + theta (v - v_1)                                v_1, v_2: the one and two before
    PID(kp, ki, kd)         u = ki v + kp (v - v_1) + kd (v - 2 v_1 + v_2)         fed to a move with step 1
    Momentum(decay)         u = v + decay u_1                                      heavy ball (Polyak 1964)
    Nesterov(decay)         m = v + decay m_1,  u = v + decay m
    Averaged(decay)         u = exponential mean of v, without bias
    Clipped(limit)          u = clip(v, -limit, limit)
    Chain(signals)          one after the other

A signal never returns a multiplier; only a move does. Its history travels in `memory.dual`, which `init` makes; use

    parts = Parts(primal, violation, move, signal=signal)
    memory = Memory(dual=signal.init(violation_like))

The incremental PID and the positional one are the same without clipping: summing u with step 1 from `v_1 = v_2 = 0`
gives `y_t = ki sum v + kp v_t + kd (v_t - v_(t-1))`. So `Extrapolated(theta)` with step s is a PI controller with
`ki = s` and `kp = theta s`. With the projection they part: the incremental form keeps y itself in the set, so on noise
the kicks up stay and the kicks below 0 are cut off; the positional form (`Offer`) projects what is shown to the primal
and integrates plainly. Sources: Stooke, Achiam and Abbeel (arXiv 2007.03964) for PID multipliers; Sohrabi et al., "On
PI Controllers for Updating Lagrange Multipliers" (arXiv 2406.04558) for nuPI, which is `PID(kp, ki, smoothing=nu)`.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdopt.errors import InvalidOption
from pdopt.geometry.checks import concrete, require_sign
from pdopt.geometry.points import floating, like
from pdopt.geometry.sets import ConvexSet, Orthant
from pdopt.types import Memory, record


class Signal(abc.ABC):
    """A pure function of the violation and of its own history; violations are arrays or pytrees."""

    def init(self, violation: Any) -> Any:
        """The history before the first step, for violations of this structure, shape and dtype (values unused)."""
        return ()

    @abc.abstractmethod
    def update(self, v: Any, history: Any) -> tuple[Any, Any]:
        """`(u, history')`: the signal and the history that the next call needs."""

    def __call__(self, v: Any, memory: Memory) -> tuple[Any, Memory]:
        """The form that `Parts.signal` has: `update` on `memory.dual`."""
        u, history = self.update(v, memory.dual)
        return u, memory._replace(dual=history)


class Earlier(NamedTuple):
    """The violations one and two steps back, and whether there has been a step at all."""

    one: Any
    two: Any
    started: Any


@record
class Raw(Signal):
    """The violation itself.

    Example:
        >>> Raw()(1.0, Memory())
        (1.0, Memory(primal=(), dual=()))
    """

    def update(self, v: Any, history: Any) -> tuple[Any, Any]:
        """`u = v`."""
        return v, history


@record(static=("start",))
class Extrapolated(Signal):
    """`u = v + theta (v - v_1)`: theta on the violation, where x cannot be extrapolated.

    The same as theta on x wherever the violation is affine in x. Use one of the two, never both.

    Attributes:
        theta: >= -1; 0 is plain, -1 shows the earlier violation, larger values damp.
        start: "first" takes the first violation as its own predecessor, so that the first step is plain; "zero" takes
            0, so that the proportional part acts at once.

    Raises:
        InvalidOption: theta below -1, or another start.

    Example:
        >>> signal = Extrapolated(2.0)
        >>> u, memory = signal(jnp.array(1.0), Memory(dual=signal.init(0.0)))
        >>> later, _ = signal(jnp.array(2.0), memory)
        >>> print(u, later)
        1.0 4.0
    """

    theta: Any
    start: str = "first"

    def __post_init__(self) -> None:
        _require("theta", self.theta, np.greater_equal, -1, "a number >= -1")
        _require_start(self.start)

    def init(self, violation: Any) -> Earlier:
        """No earlier violation."""
        return Earlier(_zeros(violation), (), jnp.asarray(self.start == "zero", bool))

    def update(self, v: Any, history: Any) -> tuple[Any, Any]:
        """`u = v + theta (v - v_1)`."""
        v = jax.tree.map(floating, v)
        one = _before(history.started, history.one, v)
        u = jax.tree.map(lambda v, one: v + like(self.theta, v) * (v - one), v, one)
        return u, Earlier(v, (), jnp.ones_like(history.started))


@record(static=("start",))
class PID(Signal):
    """The increment of a PID controller: `u = ki v + kp (w - w_1) + kd (w - 2 w_1 + w_2)`, `w = nu w_1 + (1 - nu) v`.

    Feed it to a move with step 1: the multiplier is then the PID controller's, kept in the set by the projection. It
    cannot wind up below 0. The derivative is two-sided and not smoothed unless nu > 0.

    Attributes:
        proportional: kp.
        integral: ki, the step of plain dual ascent.
        derivative: kd.
        smoothing: nu in [0, 1), the exponential mean under the differences; 0 for none.
        start: "zero" takes `w_1 = w_2 = 0`, so that the proportional part acts at once; "first" takes the first
            violation, so that the first step is `ki v`.

    Raises:
        InvalidOption: a gain that is negative or not finite, a smoothing outside [0, 1), or another start.

    Example:
        >>> pid = PID(proportional=2.0, integral=1.0)
        >>> u, memory = pid(jnp.array(1.0), Memory(dual=pid.init(0.0)))
        >>> later, _ = pid(jnp.array(1.0), memory)
        >>> print(u, later)
        3.0 1.0
    """

    proportional: Any = 0.0
    integral: Any = 0.0
    derivative: Any = 0.0
    smoothing: Any = 0.0
    start: str = "zero"

    def __post_init__(self) -> None:
        for name in ("proportional", "integral", "derivative"):
            require_sign(name, getattr(self, name))
        require_sign("smoothing", self.smoothing)
        _require("smoothing", self.smoothing, np.less, 1, "a number below 1")
        _require_start(self.start)

    def init(self, violation: Any) -> Earlier:
        """No earlier violations."""
        return Earlier(_zeros(violation), _zeros(violation), jnp.asarray(self.start == "zero", bool))

    def update(self, v: Any, history: Any) -> tuple[Any, Any]:
        """The increment, and the two smoothed violations that the next one needs."""
        v = jax.tree.map(floating, v)
        one, two = _before(history.started, history.one, v), _before(history.started, history.two, v)
        smooth = jax.tree.map(lambda v, one: v + like(self.smoothing, v) * (one - v), v, one)

        def increment(v: jax.Array, w: jax.Array, one: jax.Array, two: jax.Array) -> jax.Array:
            kp, ki, kd = (like(gain, v) for gain in (self.proportional, self.integral, self.derivative))
            return ki * v + kp * (w - one) + kd * ((w - one) - (one - two))

        return jax.tree.map(increment, v, smooth, one, two), Earlier(smooth, one, jnp.ones_like(history.started))


@record
class Momentum(Signal):
    """`u = v + decay u_1`: with a plain move of step s, the heavy ball `y' = y + s v + decay (y - y_1)`.

    Attributes:
        decay: in [0, 1), else `InvalidOption` is raised.

    Example:
        >>> signal = Momentum(0.5)
        >>> u, memory = signal(jnp.array(1.0), Memory(dual=signal.init(0.0)))
        >>> print(u, signal(jnp.array(1.0), memory)[0])
        1.0 1.5
    """

    decay: Any

    def __post_init__(self) -> None:
        require_sign("decay", self.decay)
        _require("decay", self.decay, np.less, 1, "a number below 1")

    def init(self, violation: Any) -> Any:
        """No momentum."""
        return _zeros(violation)

    def update(self, v: Any, history: Any) -> tuple[Any, Any]:
        """`u = v + decay u_1`, which is also the new history."""
        u = _decayed(self.decay, v, history)
        return u, u


@record
class Nesterov(Signal):
    """`m = v + decay m_1, u = v + decay m`: Nesterov's momentum (Nesterov 1983, in the form of Sutskever et al. 2013).

    Attributes:
        decay: in [0, 1), else `InvalidOption` is raised.

    Example:
        >>> signal = Nesterov(0.5)
        >>> print(signal(jnp.array(1.0), Memory(dual=signal.init(0.0)))[0])
        1.5
    """

    decay: Any

    def __post_init__(self) -> None:
        require_sign("decay", self.decay)
        _require("decay", self.decay, np.less, 1, "a number below 1")

    def init(self, violation: Any) -> Any:
        """No momentum."""
        return _zeros(violation)

    def update(self, v: Any, history: Any) -> tuple[Any, Any]:
        """The look-ahead signal and the momentum."""
        m = _decayed(self.decay, v, history)
        return _decayed(self.decay, v, m), m


@record
class Averaged(Signal):
    """The exponential mean of the violations, divided by the weight collected so far, so that the first u is v.

    Attributes:
        decay: in [0, 1); else `InvalidOption`; the mean remembers about `1 / (1 - decay)` steps.

    Example:
        >>> signal = Averaged(0.5)
        >>> u, memory = signal(jnp.array(3.0), Memory(dual=signal.init(0.0)))
        >>> print(u, signal(jnp.array(0.0), memory)[0])
        3.0 1.0
    """

    decay: Any

    def __post_init__(self) -> None:
        require_sign("decay", self.decay)
        _require("decay", self.decay, np.less, 1, "a number below 1")

    def init(self, violation: Any) -> Any:
        """Nothing seen: a mean of 0 with weight 0, one for each leaf so that both follow its dtype."""
        return _zeros(violation), jax.tree.map(lambda v: jnp.zeros((), floating(v).dtype), violation)

    def update(self, v: Any, history: Any) -> tuple[Any, Any]:
        """The mean without bias."""
        v = jax.tree.map(floating, v)
        blend = lambda old, new: old + (1 - like(self.decay, old)) * (new - old)
        mean = jax.tree.map(blend, history[0], v)
        weight = jax.tree.map(lambda weight: blend(weight, jnp.ones_like(weight)), history[1])
        return jax.tree.map(jnp.divide, mean, weight), (mean, weight)


@record
class Clipped(Signal):
    """`u = clip(v, -limit, limit)`: a saturated signal, bounded whatever a batch contains.

    Attributes:
        limit: > 0 and finite, else `InvalidOption` is raised.

    Example:
        >>> print(Clipped(0.5)(jnp.array([-2.0, 0.25]), Memory())[0])
        [-0.5   0.25]
    """

    limit: Any

    def __post_init__(self) -> None:
        require_sign("limit", self.limit, positive=True)

    def update(self, v: Any, history: Any) -> tuple[Any, Any]:
        """The clipped violation."""
        clip = lambda v: jnp.clip(v, -like(self.limit, v), like(self.limit, v))
        return jax.tree.map(lambda v: clip(floating(v)), v), history


@record
class Chain(Signal):
    """Signals one after the other, the first nearest to the violation; the history is the tuple of theirs.

    Attributes:
        signals: tuple of signals; empty is `Raw`.

    Raises:
        InvalidOption: something that is not a signal.

    Example:
        >>> chain = Chain((Clipped(1.0), Momentum(0.5)))
        >>> print(chain(jnp.array(5.0), Memory(dual=chain.init(0.0)))[0])
        1.0
    """

    signals: tuple[Signal, ...]

    def __post_init__(self) -> None:
        for part in self.signals:
            if not isinstance(part, Signal):
                raise InvalidOption(f"signals contains {part!r}; expected signals")

    def init(self, violation: Any) -> Any:
        """The histories of the parts."""
        return tuple(part.init(violation) for part in self.signals)

    def update(self, v: Any, history: Any) -> tuple[Any, Any]:
        """Each part on the output of the one before."""
        later = []
        for part, own in zip(self.signals, history):
            v, own = part.update(v, own)
            later.append(own)
        return v, tuple(later)


@record
class Offer:
    """Positional PI: y is the integral, moved plainly; the primal half is handed `project(y + kp v)`.

    `v` is the violation that moved y last (0 before the first step), remembered by `signal`. Use both halves:

        offer = Offer(kp)
        parts = Parts(primal, violation, move, signal=offer.signal, offer=offer)
        memory = Memory(dual=offer.init(violation_like))

    With `kp = rho = step` and v at the present x this is the multiplier `max(0, y + rho v)` of the augmented
    Lagrangian's gradient.

    Attributes:
        proportional: kp >= 0.
        set: where multipliers live.
        before: a signal for the integral part; the offer still shows the violation itself.

    Raises:
        InvalidOption: a gain that is negative or not finite.

    Example:
        >>> offer = Offer(2.0)
        >>> v, memory = offer.signal(jnp.array(-1.0), Memory(dual=offer.init(0.0)))
        >>> print(offer(jnp.array(5.0), memory), offer(jnp.array(1.0), memory))
        3.0 0.0
    """

    proportional: Any
    set: ConvexSet = Orthant()
    before: Signal = Raw()

    def __post_init__(self) -> None:
        require_sign("proportional", self.proportional)

    def init(self, violation: Any) -> Any:
        """A violation of 0, and the history of the inner signal."""
        return _zeros(violation), self.before.init(violation)

    def signal(self, v: Any, memory: Memory) -> tuple[Any, Memory]:
        """Passes the violation to the inner signal and remembers it; the function for `Parts.signal`."""
        v = jax.tree.map(floating, v)
        u, history = self.before.update(v, memory.dual[1])
        return u, memory._replace(dual=(v, history))

    def __call__(self, y: Any, memory: Memory) -> Any:
        """`project(y + kp v)`; the function for `Parts.offer`."""
        shown = lambda y, v: floating(y) + like(self.proportional, floating(y)) * like(v, floating(y))
        return self.set.project(jax.tree.map(shown, y, memory.dual[0]))


def _zeros(violation: Any) -> Any:
    return jax.tree.map(lambda v: jnp.zeros(jnp.shape(v), floating(v).dtype), violation)


def _before(started: Any, earlier: Any, v: Any) -> Any:
    """The earlier violation, or the present one where there has been none."""
    return jax.tree.map(lambda old, new: jnp.where(started, old, new), earlier, v)


def _decayed(decay: Any, v: Any, m: Any) -> Any:
    return jax.tree.map(lambda v, m: floating(v) + like(decay, m) * m, v, m)


def _require_start(start: str) -> None:
    if start not in ("first", "zero"):
        raise InvalidOption(f"start is {start!r}; expected 'first' or 'zero'")


def _require(name: str, value: Any, compare: Callable[[Any, Any], Any], bound: float, expected: str) -> None:
    if concrete(value) and not np.all(compare(np.asarray(value), bound)):
        raise InvalidOption(f"{name} is {value}; expected {expected}")
