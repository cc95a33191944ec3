"""What a constraint is: the kinds, and one constraint with its limit and the range of its multiplier.

    mean, rate, kl, length   v = E[c] - limit <= 0        at_least   v = limit - E[score] <= 0        equality   v = 0

A constraint says nothing of how its cost is computed: it has the name of a cost function, or is one of the two that a
trainer measures itself, `kl` (log-ratio to the reference, `regularisers.py`) and `length` (tokens of a completion).
"""

from typing import Any, NamedTuple

import numpy as np

from pdopt.errors import InvalidOption, require_range, unknown_name
from pdopt.geometry.checks import concrete, require_sign
from pdopt.types import record


class Kind(NamedTuple):
    """The sign that makes a cost of a score, whether the multiplier has a free sign, and the range of the limit."""

    sign: int
    free: bool
    low: float
    high: float


KINDS = {
    "mean": Kind(1, False, -np.inf, np.inf),  # E[c] <= limit
    "rate": Kind(1, False, 0.0, 1.0),  # share of completions <= limit
    "at_least": Kind(-1, False, -np.inf, np.inf),  # E[score] >= limit
    "equality": Kind(1, True, -np.inf, np.inf),  # E[c] = limit
    "kl": Kind(1, False, 0.0, np.inf),  # divergence from the reference, measured by the trainer
    "length": Kind(1, False, 0.0, np.inf),  # tokens of a completion, measured by the trainer
}


@record(static=("name", "kind", "classes"))
class Constraint:
    """One constraint: a cost, its limit, and the range of its multiplier.

    Attributes:
        name: the name of its cost function and of its column in reports.
        kind: a key of `KINDS`.
        limit: in the units of the cost or score; a number, or one for each class.
        classes: number of prompt classes with a multiplier each; 0 for a single one.
        threshold: for a rate only: a completion counts when its cost exceeds this; None if the cost is an indicator.
        y_max: cap of the multiplier (of its size, for an equality).
        y_min: floor of the multiplicative moves, which cannot leave 0.
        start: first multiplier; None for that of the move.
        unit: the violation is divided by it before the signal, so that one step serves tokens and rates; None for
            `max(1, |limit|)`.

    Raises:
        InvalidOption: a setting outside its range, or a kind that does not exist.

    Example:
        >>> Constraint("length", "length", 200.0).rows
        ('length',)
        >>> Constraint("refusals", "rate", (0.01, 0.2), classes=2).rows
        ('refusals[0]', 'refusals[1]')
    """

    name: str
    kind: str
    limit: Any
    classes: int = 0
    threshold: Any = None
    y_max: Any = 100.0
    y_min: Any = 1e-3
    start: Any = None
    unit: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InvalidOption(f"name is {self.name!r}; expected a text that is not empty")
        if self.kind not in KINDS:
            raise unknown_name("kind of constraint", self.kind, KINDS)
        if not isinstance(self.classes, int) or self.classes < 0:
            raise InvalidOption(f"classes of {self.name} is {self.classes!r}; expected an integer >= 0")
        if np.shape(self.limit) not in ((), (self.classes,)):
            wanted = f"a number, or {self.classes} of them" if self.classes else "a number"
            raise InvalidOption(f"limit of {self.name} has shape {np.shape(self.limit)}; expected {wanted}")
        if self.threshold is not None and self.kind != "rate":
            raise InvalidOption(f"threshold of {self.name} is {self.threshold}; expected None for kind {self.kind!r}")
        _, _, low, high = KINDS[self.kind]
        for value in np.ravel(self.limit) if concrete(self.limit) else ():
            require_range(f"limit of {self.name}", value, low, high)
            if not np.isfinite(value):
                raise InvalidOption(f"limit of {self.name} is {value}; expected a finite number")
        for name, value in (("y_max", self.y_max), ("y_min", self.y_min), ("unit", self.unit)):
            if value is not None:
                require_sign(f"{name} of {self.name}", value, positive=True)
        if isinstance(self.limit, tuple | list):
            object.__setattr__(self, "limit", np.asarray(self.limit, np.float32))

    @property
    def rows(self) -> tuple[str, ...]:
        """The names of its rows: one, or one for each class."""
        return tuple(f"{self.name}[{i}]" for i in range(self.classes)) if self.classes else (self.name,)
