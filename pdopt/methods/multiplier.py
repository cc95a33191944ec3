"""What holds one constraint while a model is trained on batches: a multiplier, a penalty, or both.

    term(x) = <y, v(x)>                       without a penalty: the Lagrangian
            = move.penalty(y, v(x), rho)      with one: the Moreau envelope of the move, of gradient move(y, v, rho)
    y'      = move(y, signal(v), step)        where v was measured

Two numbers choose the form of an inequality `v(x) <= 0`; rho is the penalty:

| form                       | penalty | step | term                                  | multiplier         |
|----------------------------|---------|------|---------------------------------------|--------------------|
| Lagrangian                 | None    | s    | y v                                   | max(0, y + s v)    |
| augmented Lagrangian       | rho     | None | (max(0, y + rho v)^2 - y^2) / (2 rho) | max(0, y + rho v)  |
| PI: integral s, prop. rho  | rho     | s    | the same                              | max(0, y + s v)    |
| quadratic penalty          | rho     | 0    | rho max(0, v)^2 / 2                   | 0                  |

The step of an augmented multiplier is its penalty unless it is said otherwise: with `step = penalty` and an exact inner
minimiser this is the method of multipliers. With a step of its own the same term is a PI controller, since its gradient
shows `max(0, y + rho v)` to x while y collects `s v` (design, section 1).

PI, PID and nuPI multipliers are signals: `PID(proportional, integral, derivative, smoothing)` is nuPI (Sohrabi et al.
2024, arXiv 2406.04558), times the step; `start="zero"` and `"first"` are its two initial states.

The rate of a group is `jnp.mean(score, where=group)`: NaN in a batch without the group, which is then not measured, and
its gradient is 0. Of `sum(score * group) / sum(group)` it would be NaN, and no weight of 0 undoes that.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pdopt.errors import InvalidOption, InvalidProblem, require_range, require_shape
from pdopt.geometry import Entropic, Euclidean, Move, Reals
from pdopt.geometry.checks import concrete, require_sign
from pdopt.rules.multipliers import Entrywise
from pdopt.rules.signals import Offer, Raw, Signal
from pdopt.types import record

Axes = str | tuple[str, ...]


class Violation(NamedTuple):
    """How far a constraint is broken, where it takes more than one array to say so; positive when broken.

    Attributes:
        smooth: what x is moved by, differentiable; None if the constraint says nothing to x this time.
        strict: what the multiplier is moved by, of the same shape (a rate beside its surrogate); None for `smooth`.
        index: `(m,)` integers: which entries of a multiplier `(n, ...)` the `(m, ...)` violations belong to. Entries
            named twice add up; an index outside 0..n-1 is padding.
        primal: whether this measurement moves x; may be traced.
        dual: whether it moves the multiplier; may be traced.
    """

    smooth: Any = None
    strict: Any = None
    index: Any = None
    primal: Any = True
    dual: Any = True


@record
class Growth:
    """How a penalty grows: `rho' = min(largest, factor rho + increment)` where the violation exceeds the tolerance.

    Attributes:
        factor: >= 1.
        increment: >= 0.
        tolerance: of the strict violation, `max(v, 0)` or for equalities `|v|`, entry by entry.
        restart: whether rho returns to its first value where an inequality holds.
        largest: rho stops there.

    Raises:
        InvalidOption: a setting outside its range.

    Example:
        >>> Growth(factor=2.0).largest
        1000000.0
    """

    factor: Any = 1.01
    increment: Any = 0.0
    tolerance: Any = 1e-4
    restart: Any = False
    largest: Any = 1e6

    def __post_init__(self) -> None:
        if concrete(self.factor):
            require_range("factor", self.factor, 1.0)
        require_sign("increment", self.increment)
        require_sign("tolerance", self.tolerance)
        require_sign("largest", self.largest, positive=True)


@record(static=("shape",))
class Multiplier:
    """One multiplier, or an array of them for constraints of one kind.

    Attributes:
        step: dual step, >= 0, a number or an array that broadcasts against `shape`; None takes the penalty.
        penalty: rho > 0; None for none.
        signal: what becomes of the violation before the move: `PID`, `Extrapolated`, `Averaged`, `Offer`, ...
        move: how the multiplier moves and where it lives; `Multiplier.equality(...)` takes the reals. `Euclidean(Box(0,
            cap))` caps it, `Entropic()` is multiplicative.
        growth: of the penalty, or None.
        shape: of the multiplier; () for a single constraint, `(n,)` for n.
        start: first multiplier.

    Raises:
        InvalidOption: neither step nor penalty, a setting outside its range, growth without a penalty, an `Offer` with
            one (both are a proportional part), or a multiplicative move that starts at 0 and could never leave it.

    Example:
        >>> Multiplier(0.1).penalty is None, Multiplier(penalty=5.0).dual_step(7.0)
        (True, 7.0)
    """

    step: Any = None
    penalty: Any = None
    signal: Signal | Offer = Raw()
    move: Move = Euclidean()
    growth: Growth | None = None
    shape: tuple[int, ...] = ()
    start: Any = 0.0

    def __post_init__(self) -> None:
        if self.step is None and self.penalty is None:
            raise InvalidOption("step and penalty are None; expected a dual step, a penalty, or both")
        if not (isinstance(self.shape, tuple) and all(isinstance(n, int) and n >= 0 for n in self.shape)):
            raise InvalidOption(f"shape is {self.shape!r}; expected a tuple of integers >= 0")
        if self.step is not None:
            require_sign("step", self.step)
        if self.penalty is not None:
            require_sign("penalty", self.penalty, positive=True)
        elif self.growth is not None:
            raise InvalidOption(f"growth is {self.growth!r} and penalty is None; expected a penalty that can grow")
        if not isinstance(self.move, Move):
            raise InvalidOption(f"move is {self.move!r}; expected a move of pdopt.geometry")
        Entrywise(self.signal)
        if self.penalty is not None and isinstance(self.signal, Offer):
            raise InvalidOption("signal is an Offer and there is a penalty; expected one proportional part, not both")
        for name in ("step", "penalty", "start"):
            self._require_broadcast(name, getattr(self, name))
        if isinstance(self.move, Entropic) and concrete(self.start) and not np.all(np.asarray(self.start) > 0):
            raise InvalidOption(f"start is {self.start} and the move is Entropic, which never leaves 0; expected > 0")

    @classmethod
    def equality(cls, step: Any = None, penalty: Any = None, **settings: Any) -> "Multiplier":
        """The multiplier of `v(x) = 0`, whose sign is free.

        Example:
            >>> Multiplier.equality(0.1).free
            True
        """
        return Multiplier(step, penalty, move=Euclidean(Reals()), **settings)

    @property
    def free(self) -> bool:
        """Whether it holds an equality: what counts as broken is then `|v|`."""
        return isinstance(getattr(self.move, "set", None), Reals)

    def dual_step(self, rho: Any) -> Any:
        """The step of the move: its own, or the penalty rho of the moment."""
        return rho if self.step is None else self.step

    def init(self, dtype: Any) -> Any:
        """The first multiplier."""
        return jnp.broadcast_to(jnp.asarray(self.start, dtype), self.shape)

    def first_penalty(self, dtype: Any) -> Any:
        """The first rho: an entry each where it grows; () where there is none."""
        if self.penalty is None:
            return ()
        first = jnp.asarray(self.penalty, dtype)
        return jnp.broadcast_to(first, self.shape) if self.growth is not None else first

    def grown(self, rho: Any, v: Any) -> Any:
        """The penalty after a strict violation `v` of the multiplier's shape; NaN entries keep theirs."""
        if self.growth is None:
            return rho
        rule = self.growth
        broken = jnp.abs(v) if self.free else jnp.maximum(v, 0)
        raised = jnp.minimum(jnp.asarray(rule.factor * rho + rule.increment, rho.dtype), rule.largest)
        later = jnp.where(broken > rule.tolerance, jnp.maximum(raised, rho), rho)
        if self.free:
            return later
        return jnp.where(jnp.asarray(rule.restart) & (broken == 0), self.first_penalty(rho.dtype), later)

    def term(self, shown: Any, rho: Any, violation: Violation, axes: Axes = ()) -> Any:
        """What the constraint adds to the loss, a scalar in the multiplier's dtype; entries that are not finite add 0.

        Args:
            shown: multipliers to price with, of the multiplier's shape; constants for differentiation.
            rho: penalty; () for none.
            violation: of this batch; axes: mesh axes, see `observe`.
        """
        if violation.smooth is None or violation.primal is False:
            return jnp.zeros((), shown.dtype)
        v = jnp.asarray(violation.smooth).astype(shown.dtype)
        measured, move = jnp.isfinite(v), self.move
        if violation.index is not None:
            places = self._places(violation.index)
            measured = measured & _rows(places >= 0, v)
            take = lambda leaf: jnp.asarray(leaf)[places] if jnp.ndim(leaf) else leaf
            shown, rho, move = jax.tree.map(take, (shown, rho, move))
        v = jnp.where(measured, v, 0)
        if axes and violation.index is None:
            # The value of all devices with the gradient of this one: averaged over them it is that of the mean.
            devices, count = lax.psum(1, axes), lax.psum(measured.astype(v.dtype), axes)
            own = v * (devices / jnp.maximum(count, 1))
            measured, v = count > 0, own + lax.stop_gradient(lax.pmean(own, axes) - own)
        price = lax.stop_gradient(shown)
        value = jnp.sum(price * v) if self.penalty is None else move.penalty(price, v, lax.stop_gradient(rho))
        value = value if violation.primal is True else jnp.where(violation.primal, value, 0)
        # Each device has entries of its own, which are added up: so that the mean over devices is their sum.
        return value * lax.psum(1, axes) if axes and violation.index is not None else value

    def observe(self, violation: Violation, dtype: Any, axes: Axes = ()) -> tuple[Any, Any]:
        """`(v, missed)`: the strict violation of the multiplier's shape, NaN where nothing was measured, and how many
        measurements were NaN or infinite.

        Args:
            violation: of this batch.
            dtype: of the multiplier.
            axes: mesh axes inside `shard_map`: violations are averaged over the devices that measured them, indexed
                ones added up. Under `jit` with sharded arrays a mean is global already.
        """
        given = violation.smooth if violation.strict is None else violation.strict
        if given is None or violation.dual is False:
            return jnp.full(self.shape, jnp.nan, dtype), jnp.zeros((), jnp.int32)
        v = lax.stop_gradient(jnp.asarray(given)).astype(dtype)
        finite = jnp.isfinite(v)
        inside = jnp.ones(v.shape, bool)
        if violation.index is not None:
            places = self._places(violation.index)
            inside = jnp.broadcast_to(_rows(places >= 0, v), v.shape)
            gather = lambda x: jnp.zeros(self.shape, dtype).at[places].add(jnp.where(inside & finite, x, 0))
            total, count = gather(v), gather(jnp.ones_like(v))
        else:
            total, count = jnp.where(finite, v, 0), finite.astype(dtype)
        missed = jnp.sum(inside & ~finite, dtype=jnp.int32)
        if axes:
            total, count, missed = lax.psum((total, count, missed), axes)
        mean = total if violation.index is not None else total / jnp.maximum(count, 1)
        used = (count > 0) & violation.dual
        return jnp.where(used, mean, jnp.nan), jnp.where(violation.dual, missed, 0)

    def require(self, name: str, violation: Violation) -> None:
        """Raise `InvalidProblem` unless the violation of constraint `name` has the shapes and dtypes that it needs."""
        because = "its multiplier has that shape"
        shape = self.shape
        if violation.index is not None:
            if not self.shape:
                raise InvalidProblem(f"index of {name!r} is given; expected none because its multiplier has shape ()")
            kind = jnp.result_type(violation.index)
            if jnp.ndim(violation.index) != 1 or not jnp.issubdtype(kind, jnp.integer):
                seen = f"shape {jnp.shape(violation.index)} and dtype {kind}"
                raise InvalidProblem(f"index of {name!r} has {seen}; expected integers of shape (m,)")
            because = "its index names that many entries"
            shape = (*jnp.shape(violation.index), *self.shape[1:])
        for part in ("smooth", "strict"):
            value = getattr(violation, part)
            if value is None:
                continue
            require_shape(f"{part} violation of {name!r}", jnp.shape(value), shape, because)
            kind = jnp.result_type(value)
            wanted = jnp.floating if part == "smooth" else jnp.number
            if not jnp.issubdtype(kind, wanted) or jnp.issubdtype(kind, jnp.complexfloating):
                what = (
                    "a floating dtype: x is moved by its gradient" if part == "smooth" else "numbers, > 0 when broken"
                )
                raise InvalidProblem(f"{part} violation of {name!r} has dtype {kind}; expected {what}")

    def _places(self, index: Any) -> Any:
        """The index, with -1 for everything outside the multiplier: who reads or adds there masks it."""
        index = jnp.asarray(index)
        return jnp.where((index >= 0) & (index < self.shape[0]), index, -1)

    def _require_broadcast(self, name: str, value: Any) -> None:
        if value is None:
            return
        try:
            fits = np.broadcast_shapes(np.shape(value), self.shape) == self.shape
        except ValueError:
            fits = False
        if not fits:
            raise InvalidOption(f"{name} has shape {np.shape(value)}; expected one that broadcasts to {self.shape}")


def _rows(flags: Any, v: Any) -> Any:
    """A flag a row, `(m,)`, against violations `(m, ...)`."""
    return flags.reshape(flags.shape + (1,) * (v.ndim - 1))
