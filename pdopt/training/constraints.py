"""Constraints of a policy trainer: what is measured, how it is held, and what is reported.

    maximise E[r]   subject to   E[c_k] <= limit_k,   k = 1..K

The trainer is the library's saddle step, started at its dual half: with a batch sampled from the present policy

    v = mean c - limit          > 0 when broken, averaged over every device before the move      (`violations`)
    y = move(y, signal(v), step)                                        `rules.saddle.respond`   (`update`)
    x = primal(x, y)            an optimiser step on the advantage with y priced in              (`advantages.py`)

so the batch that measures a violation is the one the next policy step trains on. Signs are those of the design: a score
that must be at least a limit is the cost `-score`. A constraint with classes (of prompts) is that many rows, each with
its own limit and multiplier; a row's cost is NaN outside its class, and NaN is what means and advantages leave out.

| move        | y'                                 | starts at | sources                                             |
|-------------|------------------------------------|-----------|-----------------------------------------------------|
| projection  | clip(y + step u, 0, y_max)         | 0         | dual ascent; the lower end is -y_max for an equality|
| entropic    | clip(y exp(step u), y_min, y_max)  | 1         | Kivinen and Warmuth 1997                            |
| logarithmic | clip(y exp(step y u), y_min, y_max)| 1         | gradient ascent in log y: Dai et al. 2023           |

The default signal is `Extrapolated(theta = 5 / step, start="zero")`, a PI controller with proportional gain 5: what
damps is theta times step. Every signal of `rules/signals.py` fits, and `Offer` for the positional PI form.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from pdopt.errors import InvalidOption, InvalidProblem, require_range, require_shape, unknown_name
from pdopt.geometry import Box, Entropic, Euclidean
from pdopt.geometry.checks import concrete, require_sign
from pdopt.rules.multipliers import Entrywise, Measured, keep
from pdopt.rules.saddle import Parts, respond
from pdopt.rules.signals import Extrapolated, Offer, Signal
from pdopt.training.advantages import Axes, zero_variance
from pdopt.training.constraint_kinds import KINDS, Constraint
from pdopt.types import Memory, record


class Held(NamedTuple):
    """What holds the constraints between steps; a checkpoint keeps all of it.

    Attributes:
        y: multipliers `(K,)`, float32.
        history: of the signal, one entry a row.
        steps: updates so far, int32.
    """

    y: Any
    history: Any
    steps: Any


class Report(NamedTuple):
    """One row's line: scalars, in the user's own units and sign.

    Attributes:
        value: mean cost or score of the batch; NaN if no completion has one.
        limit: what it is compared with.
        violation: > 0 when broken; of an equality, with its sign.
        multiplier: what the policy step is shown.
        effective: the same as a price in raw units (`advantages.effective_multipliers`).
        idle: the share of groups whose costs are all equal, which give the policy no gradient.
        capped: whether the multiplier is at y_max.
    """

    value: Any
    limit: Any
    violation: Any
    multiplier: Any
    effective: Any
    idle: Any
    capped: Any


@record
class Floored:
    """The move `clip(y exp(step u), low, high)`: mirror ascent by the entropy, projected by the same entropy.

    Example:
        >>> print(Floored(0.5, 10.0)(jnp.ones(2), jnp.log(jnp.array([4.0, 0.1])), 1.0).round(3))
        [4.  0.5]
    """

    low: Any
    high: Any

    def __call__(self, y: Any, u: Any, step: Any) -> Any:
        return jnp.clip(Entropic()(y, u, step), self.low, self.high)


@record
class Logarithmic:
    """The move `clip(y exp(step y u), low, high)`: gradient ascent of `<y, u>` in log y.

    Example:
        >>> print(Logarithmic(0.5, 10.0)(jnp.array([2.0]), jnp.log(jnp.array([2.0])), 0.5).round(3))
        [4.]
    """

    low: Any
    high: Any

    def __call__(self, y: Any, u: Any, step: Any) -> Any:
        return jnp.clip(Entropic()(y, u, step * y), self.low, self.high)


def _projection(low: Any, high: Any) -> Euclidean:
    return Euclidean(Box(low, high))


# Each move by its name, made from the ends of the range, and the multiplier it starts at.
MOVES: dict[str, tuple[Callable[[Any, Any], Any], float]] = {
    "projection": (_projection, 0.0),
    "entropic": (Floored, 1.0),
    "logarithmic": (Logarithmic, 1.0),
}


def planned_step(steps: int) -> float:
    """The default dual step for a run of that many policy steps: `min(1, 200 / steps)`.

    Example:
        >>> planned_step(100), planned_step(1000)
        (1.0, 0.2)
    """
    require_range("steps", steps, 1)
    return min(1.0, 200 / steps)


@record(static=("move",))
class Constraints:
    """All constraints of a run and how their multipliers move; K rows in the order of `rows`.

    Attributes:
        given: the constraints, names apart.
        step: dual step, a number or one for each row (see `planned_step`); 0 keeps a multiplier where it starts, and
            needs a signal.
        signal: None for `Extrapolated(5 / step, start="zero")`, else a signal or an `Offer`; its settings may be
            arrays, one entry a row.
        move: a key of `MOVES`.
        delay: updates before the first move.
        idle: a multiplier does not grow while more than this share of the groups have equal costs: such groups give the
            policy no gradient, and the multiplier would only wind up. It may always fall.

    Raises:
        InvalidOption: a setting outside its range, names that repeat, a move that does not exist, or an equality under
            a move that keeps multipliers positive.

    Example:
        >>> held_by = Constraints((Constraint("toxic", "rate", 0.25),), step=0.5)
        >>> costs = held_by.costs({"toxic": jnp.array([[1.0, 0.0], [1.0, 1.0]])}, (2, 2))
        >>> v = held_by.violations(costs)
        >>> held = held_by.update(held_by.init(), v)
        >>> print(v, held.y)
        [0.5] [2.75]
    """

    given: tuple[Constraint, ...] = ()
    step: Any = 1.0
    signal: Signal | Offer | None = None
    move: str = "projection"
    delay: Any = 0
    idle: Any = 0.9

    def __post_init__(self) -> None:
        object.__setattr__(self, "given", tuple(self.given))
        names = [constraint.name for constraint in self.given]
        if len(set(names)) < len(names):
            raise InvalidOption(f"constraints are named {names}; expected names that differ")
        if self.move not in MOVES:
            raise unknown_name("move", self.move, MOVES)
        require_sign("step", self.step, positive=self.signal is None)
        require_sign("delay", self.delay)
        if concrete(self.idle):
            require_range("idle", self.idle, 0.0, 1.0)
        if self.signal is None:
            object.__setattr__(self, "signal", Extrapolated(5.0 / self.step, start="zero"))
        elif not isinstance(self.signal, Signal | Offer):
            raise InvalidOption(f"signal is {self.signal!r}; expected a signal of rules/signals.py, an Offer or None")
        for constraint in self.given:
            if KINDS[constraint.kind].free and self.move != "projection":
                raise InvalidOption(
                    f"move is {self.move!r} and {constraint.name} is an equality; expected 'projection', "
                    "since the others keep multipliers positive"
                )
            self._require_start(constraint)

    def _require_start(self, constraint: Constraint) -> None:
        start, y_max = constraint.start, constraint.y_max
        if start is not None and concrete(start, y_max):
            low = constraint.y_min if self.move != "projection" else -y_max if KINDS[constraint.kind].free else 0.0
            require_range(f"start of {constraint.name}", start, low, y_max)

    @property
    def rows(self) -> tuple[str, ...]:
        """The names of the K rows."""
        return tuple(name for constraint in self.given for name in constraint.rows)

    def costs(
        self,
        values: Mapping[str, Any],
        shape: tuple[int, int],
        classes: Mapping[str, Any] | None = None,
        mask: Any = None,
    ) -> Any:
        """The table of costs `(K, P, G)` that `violations` and `advantages.constrained_advantage` read.

        Args:
            values: what each constraint's function returned, `(P, G)` by name, NaN where a completion has none.
            shape: `(P, G)`.
            classes: of the constraints with classes, by name, the class of each prompt `(P,)` int; another number than
                0..classes-1 is in none.
            mask: `(P, G)` bool, completions that count; None for all.

        Raises:
            InvalidProblem: a value or a class that is missing, or of another shape.
        """
        table = []
        for constraint in self.given:
            value = _named("values", values, constraint.name, shape)
            value = value.astype(jnp.promote_types(value.dtype, jnp.float32))
            if constraint.threshold is not None:
                value = jnp.where(jnp.isnan(value), value, (value > constraint.threshold).astype(value.dtype))
            value = KINDS[constraint.kind].sign * value
            if mask is not None:
                value = jnp.where(mask, value, jnp.nan)
            if constraint.classes:
                own = _named("classes", classes or {}, constraint.name, shape[:1])
                inside = own == jnp.arange(constraint.classes)[:, None]
                table.append(jnp.where(inside[:, :, None], value, jnp.nan))
            else:
                table.append(value[None])
        return jnp.concatenate(table) if table else jnp.zeros((0, *shape), jnp.float32)

    def init(self) -> Held:
        """Multipliers at their start, a signal without history, no steps."""
        first = MOVES[self.move][1]
        start = self._each(lambda c: first if c.start is None else c.start)
        return Held(start, self._entrywise().init(start), jnp.zeros((), jnp.int32))

    def violations(self, costs: Any, mask: Any = None, axes: Axes = ()) -> Any:
        """`v = mean c - limit`, `(K,)`, over the completions that have the cost; NaN for a row that none has.

        Args:
            costs: `(K, P, G)` from `costs`; mask: `(P, G)`, completions that count.
            axes: mesh axes to average over, inside `shard_map`: sums and counts are added up before they are divided.
        """
        return _mean(costs, mask, axes) - self._limits()

    def update(self, held: Held, v: Any, idle: Any = None) -> Held:
        """The dual half of the saddle step: `y' = move(y, signal(v / unit), step)`.

        A row keeps its multiplier and its history where v is NaN (nothing was measured), during the delay, and where
        the move would take the multiplier further from 0 while its groups are idle. Keeping the history as well means
        that the proportional part of a PI signal is whole again at the first move after.

        Args:
            held: the present state.
            v: `(K,)` from `violations`, the same on every device.
            idle: `(K,)` shares of groups with equal costs (`advantages.zero_variance`); None never freezes.
        """
        require_shape("v", jnp.shape(v), (len(self.rows),), "there is a row for each constraint and class")
        measured = jnp.where(held.steps < self.delay, jnp.nan, v / self._units()).astype(held.y.dtype)
        moved, memory = respond(self._parts(), held.y, measured, self.step, Memory(dual=held.history))
        if idle is None:
            return Held(moved, memory.dual, held.steps + 1)
        frozen = (idle > self.idle) & (jnp.abs(moved) > jnp.abs(held.y))
        # A positional signal shows its proportional part itself, so that only its integral is frozen.
        history = memory.dual if isinstance(self.signal, Offer) else keep(frozen, held.history, memory.dual)
        return Held(jnp.where(frozen, held.y, moved), history, held.steps + 1)

    def shown(self, held: Held) -> Any:
        """The multipliers `(K,)` that the policy step is shown: y itself, or what an `Offer` makes of it."""
        return self._parts().offer(held.y, Memory(dual=held.history))

    def report(self, held: Held, costs: Any, effective: Any = None, axes: Axes = ()) -> dict[str, Report]:
        """A line for each row, of the batch that moved the multipliers last.

        Args:
            held: after `update`; costs: of the batch.
            effective: `(K,)` from `advantages.effective_multipliers`; None repeats the multiplier.
            axes: as for `violations`.
        """
        value, limit, shown = _mean(costs, None, axes), self._limits(), self.shown(held)
        sign = self._each(lambda c: KINDS[c.kind].sign)
        capped = jnp.abs(held.y) >= self._each(lambda c: c.y_max)
        idle = zero_variance(costs, axes)
        price = shown if effective is None else effective
        own = lambda x: jnp.where(x == 0, 0, sign * x)  # a score of 0 is not -0
        columns = (own(value), own(limit), value - limit, shown, price, idle, capped)
        return {name: Report(*(column[k] for column in columns)) for k, name in enumerate(self.rows)}

    def _each(self, setting: Any) -> Any:
        """A setting of the constraints as `(K,)` float32."""
        given = [jnp.broadcast_to(jnp.asarray(setting(c), jnp.float32), (max(c.classes, 1),)) for c in self.given]
        return jnp.concatenate(given) if given else jnp.zeros(0, jnp.float32)

    def _limits(self) -> Any:
        return self._each(lambda c: KINDS[c.kind].sign * jnp.asarray(c.limit, jnp.float32))

    def _units(self) -> Any:
        return self._each(lambda c: jnp.maximum(1, jnp.abs(jnp.asarray(c.limit))) if c.unit is None else c.unit)

    def _range(self) -> tuple[Any, Any]:
        """Where the multipliers of the rows live, `(K,)` each."""
        high = self._each(lambda c: c.y_max)
        if self.move != "projection":
            return self._each(lambda c: c.y_min), high
        return jnp.where(self._each(lambda c: KINDS[c.kind].free) > 0, -high, jnp.zeros_like(high)), high

    def _entrywise(self) -> Entrywise:
        """The signal, an entry a row; an `Offer` projects on the range of the multipliers."""
        signal: Any = self.signal
        return Entrywise(dataclasses.replace(signal, set=Box(*self._range())) if isinstance(signal, Offer) else signal)

    def _parts(self) -> Parts:
        """The functions of the dual half; the primal half is the trainer's optimiser step."""
        each, move = self._entrywise(), MOVES[self.move][0](*self._range())
        return Parts(_no_primal, lambda seen, _: seen, Measured(move), 0.0, each, each.offer)


def _no_primal(x: Any, y: Any, memory: Memory) -> tuple[Any, Memory]:
    return x, memory


def _mean(costs: Any, mask: Any, axes: Axes) -> Any:
    """The mean of each row over the completions that have the cost, `(K,)`; NaN where there is none."""
    costs = jnp.asarray(costs)
    present = ~jnp.isnan(costs) if mask is None else ~jnp.isnan(costs) & mask
    total = jnp.sum(jnp.where(present, costs, 0), axis=(-2, -1))
    count = jnp.sum(present, axis=(-2, -1))
    if axes:
        total, count = lax.psum((total, count), axes)
    return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)


def _named(what: str, given: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> Any:
    if name not in given:
        raise InvalidProblem(f"{what} has no entry for constraint {name!r}; it has {sorted(given)}")
    require_shape(f"{what}[{name!r}]", jnp.shape(given[name]), shape, "the batch has that many prompts and completions")
    return jnp.asarray(given[name])
