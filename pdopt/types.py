"""The nouns every floor shares: iterates, what travels with them, statuses, residuals, solutions.

Nothing here computes. A *record* is a frozen dataclass that is also a pytree: its float settings and arrays are
leaves (traced, so a sweep over them is a `vmap`), the fields named in `static` are compile-time constants.
"""

import dataclasses
import enum
from typing import Any, NamedTuple, dataclass_transform

import jax
import jax.tree_util as jtu


class Pair(NamedTuple):
    """Primal and dual iterate, each a pytree. Pairs may be averaged, reflected and restarted."""

    x: Any
    y: Any


class Memory(NamedTuple):
    """What travels beside the pair and is never averaged: optimiser state, keys, batches, signal history."""

    primal: Any = ()
    dual: Any = ()


class Steps(NamedTuple):
    """Step sizes of the two halves; scalars, or pytrees of arrays for a diagonal metric."""

    primal: Any
    dual: Any


class Visit(NamedTuple):
    """The pair before and after one plain saddle step, `z` and `T z`: what a check needs to judge the step."""

    before: Pair
    after: Pair


class Status(enum.IntEnum):
    """Why a run stopped. An `int32` inside traced code; `str(status)` is the name used in JSON."""

    RUNNING = 0
    OPTIMAL = 1
    PRIMAL_INFEASIBLE = 2
    DUAL_INFEASIBLE = 3
    LOCALLY_INFEASIBLE = 4
    ITERATION_LIMIT = 5
    TIME_LIMIT = 6
    PRECISION_LIMIT = 7
    PENALTY_LIMIT = 8
    INTERRUPTED = 9
    DIVERGED = 10
    NUMERICAL_ERROR = 11
    INVALID_PROBLEM = 12

    def __str__(self) -> str:
        return self.name.lower()

    @property
    def converged(self) -> bool:
        """Whether the residuals are below the tolerance."""
        return self is Status.OPTIMAL

    @property
    def proved(self) -> bool:
        """Whether a certificate of infeasibility or unboundedness was found."""
        return self in (Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE)

    @property
    def sentence(self) -> str:
        """One sentence for people."""
        return _SENTENCES[self]


_SENTENCES = {
    Status.RUNNING: "Still running.",
    Status.OPTIMAL: "Optimal: the relative primal residual, dual residual and gap are within the tolerance.",
    Status.PRIMAL_INFEASIBLE: "No point satisfies the constraints; the certificate holds a dual ray that proves it.",
    Status.DUAL_INFEASIBLE: "No dual feasible point exists (the problem is unbounded if it is feasible); "
    "the certificate holds a primal ray that proves it.",
    Status.LOCALLY_INFEASIBLE: "Stopped at a point where the violation cannot be reduced locally.",
    Status.ITERATION_LIMIT: "Stopped at the iteration limit before the tolerance was met.",
    Status.TIME_LIMIT: "Stopped at the time limit before the tolerance was met.",
    Status.PRECISION_LIMIT: "Progress stalled at what this floating-point type can resolve.",
    Status.PENALTY_LIMIT: "The penalty parameter reached its limit before the tolerance was met.",
    Status.INTERRUPTED: "Stopped by the user; the best pair so far is returned.",
    Status.DIVERGED: "The iterates grew without bound.",
    Status.NUMERICAL_ERROR: "A NaN or infinity appeared; the last finite pair is returned.",
    Status.INVALID_PROBLEM: "The data of this member of the batch are not a valid problem.",
}


class Residuals(NamedTuple):
    """Optimality of a pair on the user's own data: three relative numbers, the same three absolute, and the worst.

    `primal`, `dual` and `gap` are what a tolerance is compared with; how each is normalised is said by the problem
    that computes them. `worst` is the largest single violation of a row or bound, absolute.
    """

    primal: Any
    dual: Any
    gap: Any
    primal_absolute: Any
    dual_absolute: Any
    gap_absolute: Any
    worst: Any

    @property
    def error(self) -> Any:
        """The largest of the three relative residuals."""
        return jax.numpy.maximum(jax.numpy.maximum(self.primal, self.dual), self.gap)


class Optimality(NamedTuple):
    """Everything one look at a pair gives: residuals, both objectives, and what else proves them.

    `proof` is the problem's own: the reduced costs of a linear program, () where the pair says it all.
    """

    residuals: Residuals
    objective: Any
    dual_objective: Any
    proof: Any = ()


@dataclass_transform(frozen_default=True)
def record(cls: type | None = None, *, static: tuple[str, ...] = ()) -> Any:
    """Make a class a frozen dataclass and a pytree: problems, views, methods and rules are records.

    Fields named in `static` are part of the tree's structure (hashable, constant under `jit`), all others are its
    children. Rebuilding a record inside JAX does not call its constructor, so a constructor may validate and convert
    what a user passes. Records gain `replace(**changes)`, which does call it.

    Example:
        >>> @record(static=("name",))
        ... class Scale:
        ...     factor: float
        ...     name: str = "scale"
        >>> jax.tree.leaves(Scale(2.0))
        [2.0]
        >>> Scale(2.0).replace(factor=3.0)
        Scale(factor=3.0, name='scale')
    """

    def wrap(cls: type) -> type:
        made = dataclasses.dataclass(frozen=True, eq=False, repr="__repr__" not in cls.__dict__)(cls)
        names = tuple(f.name for f in dataclasses.fields(made))
        missing = [name for name in static if name not in names]
        if missing:
            raise TypeError(f"static names {missing} are not fields of {cls.__name__}: {names}")
        children = tuple(name for name in names if name not in static)

        def flatten_with_keys(self: Any) -> tuple[tuple[tuple[Any, Any], ...], tuple[Any, ...]]:
            keyed = tuple((jtu.GetAttrKey(name), getattr(self, name)) for name in children)
            return keyed, tuple(getattr(self, name) for name in static)

        def flatten(self: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
            return tuple(getattr(self, name) for name in children), tuple(getattr(self, name) for name in static)

        def unflatten(fixed: tuple[Any, ...], values: Any) -> Any:
            self = object.__new__(made)
            for name, value in zip(static, fixed):
                object.__setattr__(self, name, value)
            for name, value in zip(children, values):
                object.__setattr__(self, name, value)
            return self

        jtu.register_pytree_with_keys(made, flatten_with_keys, unflatten, flatten)
        made.replace = _replace  # pyright: ignore[reportAttributeAccessIssue]
        return made

    return wrap if cls is None else wrap(cls)


def _replace(self: Any, **changes: Any) -> Any:
    """A copy with some fields changed; the constructor checks the new values."""
    return dataclasses.replace(self, **changes)


@record
class Solution:
    """What `solve` returns: the pair, why it stopped, and how good it is on the user's own data.

    Attributes:
        pair: primal and dual iterate; `x` and `y` are shorthands.
        status: `Status` as an int32 (array under `vmap`); `solution.reason` is the enum on the host.
        objective: primal objective in the user's units (negated back for a maximisation).
        dual_objective: dual objective, same units.
        residuals: relative and absolute residuals of the pair.
        iterations: saddle steps taken.
        certificate: what proves the status: reduced costs at an optimum, a ray when infeasible.
        history: fixed-size table of checks, or None unless asked for.
        work: counts of what the steps cost, where the method keeps them (evaluations of a user's functions).
    """

    pair: Pair
    status: Any
    objective: Any
    dual_objective: Any
    residuals: Residuals
    iterations: Any
    certificate: Any = None
    history: Any = None
    work: Any = None

    @property
    def x(self) -> Any:
        """Primal iterate."""
        return self.pair.x

    @property
    def y(self) -> Any:
        """Multipliers, `y = d value / d right-hand side` for linear programs."""
        return self.pair.y

    @property
    def reason(self) -> Status:
        """The status as an enum; for a single (not batched) solution, on the host."""
        return Status(int(self.status))
