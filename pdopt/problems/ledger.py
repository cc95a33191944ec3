"""Budgets that are spent a little at a time, a million times, without drifting in float32.

    lattice   consumption comes in multiples of a unit: whole units left, in int32; every comparison is exact
    floating  no unit: what is left as an unevaluated sum `high + low` (Knuth's two-sum, 1969), which loses at most
              eps^2 budget a step, 4e-15 of it in float32; a guard of `horizon eps^2 budget` is kept back, so that the
              true consumption, too, is within the budget

A budget of `B` with unit u is worth `floor(B / u)` units; a quotient within half a thousandth of the next whole number
counts as that number, since `horizon * rate` is rounded before it gets here.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pdopt.errors import InvalidProblem
from pdopt.problems.checks import concrete
from pdopt.types import record

SLACK = 5e-4  # of a unit
LARGEST_COUNT = 2**31 - 1


class Pile(NamedTuple):
    """A running sum and the part of it that its type cannot hold."""

    high: Any
    low: Any


def pile_up(pile: Pile, amount: Any) -> Pile:
    """`pile + amount`, with the rounding error kept.

    The second sum keeps the low part below a unit of the high one's last place; left to grow it drifts itself.
    """
    high, lost = two_sum(pile.high, amount)
    return Pile(*two_sum(high, pile.low + lost))


def two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """`(s, e)` with `s = fl(a + b)` and `s + e = a + b` exactly, whichever is larger.

    Example:
        >>> [int(part) for part in two_sum(jnp.float32(2**24), jnp.float32(1))]
        [16777216, 1]
    """
    s = a + b
    shadow = s - a
    return s, (a - (s - shadow)) + (b - shadow)


@record(static=("unit",))
class Ledger:
    """The rules of one budget; what is left travels in a loop's carry.

    Attributes:
        budget: `(m,)`, what may be spent; with a unit, rounded down to whole units by `open`.
        guard: `(m,)`, what is kept back for rounding (floating ledgers only).
        unit: the unit of consumption, or None.

    Example:
        >>> ledger = Ledger.open(jnp.array([2.5]), horizon=10, unit=1.0)
        >>> left = ledger.start()
        >>> for _ in range(3):
        ...     fits = ledger.fits(left, jnp.array([1.0]))
        ...     left = ledger.spend(left, jnp.array([1.0]), fits)
        ...     print(bool(fits), ledger.spent(left))
        True [1.]
        True [2.]
        False [2.]
    """

    budget: Any
    guard: Any
    unit: float | None = None

    @staticmethod
    def open(budget: Any, horizon: Any, unit: float | None) -> "Ledger":
        """The ledger of a budget `(m,)`.

        Raises:
            InvalidProblem: more units than an int32 can count.
        """
        if unit is not None:
            units = jnp.floor(budget / unit + SLACK)
            seen = concrete(units)
            if seen is not None and seen.max(initial=0.0) > LARGEST_COUNT:
                raise InvalidProblem(
                    f"budget is {seen.max():g} units of {unit:g}; expected at most {LARGEST_COUNT}: pass a larger unit"
                )
            return Ledger(units * unit, jnp.zeros_like(budget), unit)
        eps = jnp.finfo(budget.dtype).eps
        return Ledger(budget, budget * (eps * eps) * jnp.asarray(horizon, budget.dtype), None)

    def start(self) -> Any:
        """Nothing spent."""
        if self.unit is not None:
            return self._units(self.budget)
        return Pile(self.budget, jnp.zeros_like(self.budget))

    def fits(self, left: Any, use: Any) -> Any:
        """Whether every resource has enough left; also where nothing is used."""
        if self.unit is not None:
            return jnp.all(self._units(use) <= left)
        high, lost = two_sum(left.high, -use)
        return jnp.all((high + (lost + left.low) >= self.guard) | (use <= 0))

    def spend(self, left: Any, use: Any, flag: Any) -> Any:
        """What is left after `use`, or the same where the flag is not set."""
        if self.unit is not None:
            units = self._units(use)
            return left - jnp.where(flag, units, jnp.zeros_like(units))
        return pile_up(left, jnp.where(flag, -use, jnp.zeros_like(use)))

    def spent(self, left: Any) -> Any:
        """The consumption so far."""
        if self.unit is not None:
            return (self._units(self.budget) - left).astype(self.budget.dtype) * self.unit
        return (self.budget - left.high) - left.low

    def _units(self, amount: Any) -> Any:
        """Whole units, to the nearest: amounts are multiples of the unit up to rounding."""
        return jnp.round(amount / self.unit).astype(jnp.int32)


def total_of(pile: Pile) -> jax.Array:
    """The sum, rounded once."""
    return pile.high + pile.low
