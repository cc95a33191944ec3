"""When to restart, and how to balance the primal against the dual afterwards. Used by a method's `check`.

A restart rule reads the fixed-point error `r = |z - T z|` of the step and knows no method; the primal weight omega is
the ratio by which the primal step is shortened and the dual one lengthened (`tau = eta/omega`, `sigma = eta omega`).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from pdopt.errors import require_range
from pdopt.types import record


class Epoch(NamedTuple):
    """Progress since the last restart: error of its first step, error at the last check, steps now and in all."""

    first: Any
    last: Any
    steps: Any
    total: Any
    restarts: Any

    @staticmethod
    def begin(dtype: Any) -> "Epoch":
        """Before the first step; the first check of a run always restarts."""
        infinite = jnp.full((), jnp.inf, dtype)
        return Epoch(infinite, infinite, jnp.int32(0), jnp.int32(0), jnp.int32(0))


@record
class FixedPointRestart:
    """Restart at a check when the error fell enough, fell some and now rises, or the epoch is long (cuPDLPx).

        r <= sufficient r0,   or   r <= necessary r0 and r > r_last,   or   steps >= artificial total

    and always at the very first check.

    Attributes:
        sufficient: in (0, 1); 0.3 took the fewest iterations on the development set (cuPDLPx: 0.2).
        necessary: in (sufficient, 1); 0.6 (cuPDLPx: 0.5).
        artificial: in (0, 1); share of all iterations after which an epoch ends anyway; 0.2 took 0.8 times the
            iterations of cuPDLPx's 0.36 at 1e-8 on 22 development programs of more than 3000.
    """

    sufficient: Any = 0.3
    necessary: Any = 0.6
    artificial: Any = 0.2

    def validate(self) -> None:
        """Raise `InvalidOption` for shares outside (0, 1)."""
        for name in ("sufficient", "necessary", "artificial"):
            require_range(name, getattr(self, name), 0.0, 1.0, open_low=True)

    def decide(self, epoch: Epoch, error: Any) -> Any:
        """Whether to restart now, given the error of the latest step."""
        sufficient = error <= self.sufficient * epoch.first
        necessary = (error <= self.necessary * epoch.first) & (error > epoch.last)
        long = epoch.steps >= self.artificial * epoch.total
        return sufficient | necessary | long | (epoch.restarts == 0)

    def update(self, epoch: Epoch, ends: bool, error: Any) -> Epoch:
        """The epoch after a check; where it `ends`, a new one, whose `first` error its first step brings."""
        if not ends:
            return epoch._replace(last=error)
        infinite = jnp.full_like(error, jnp.inf)
        return Epoch(infinite, infinite, jnp.int32(0), epoch.total, epoch.restarts + 1)


class Weight(NamedTuple):
    """The primal weight and the leaky integral of its log error."""

    omega: Any
    integral: Any


@record
class PrimalWeight:
    """Control of `log omega` at restarts: towards `log(|dy| / |dx|)` of the epoch, and towards balanced residuals.

        e = log|dy| - log|dx| - log omega;   I = leak I + e;   r = log(primal / dual residual of the last step)
        omega <- omega exp(gain e + integral I + balance clip(r, -4, 4))

    The first two terms are cuPDLPx's. The distances alone let omega drift for tens of thousands of steps with one
    residual at rounding level and the other stuck; the last term pulls it back (geometric mean of 15 development
    programs at 1e-4: 0.77 times the iterations, two more solved).

    Attributes:
        gain: in [0, 1]; 0.7 (0.99 makes some nearly degenerate programs diverge).
        integral: weight of the leaky integral, 0.01; leak: share of the integral kept, 0.3.
        balance: weight of the residual term, 0.2; 0 leaves it out.
        bound: omega stays within [1/bound, bound]. On an infeasible program one side grows without end; an unbounded
            weight would follow it and freeze the other side, and with it the ray. 1e7: lpl2 needs a weight of 1e-6 (6e3
            iterations to 1e-6, more than 2e5 with 1e5), 11 of 12 others never meet it.
    """

    gain: Any = 0.7
    integral: Any = 0.01
    leak: Any = 0.3
    balance: Any = 0.2
    bound: Any = 1e7

    def validate(self) -> None:
        """Raise `InvalidOption` for weights outside [0, 1] or a bound below 1."""
        for name in ("gain", "integral", "leak", "balance"):
            require_range(name, getattr(self, name), 0.0, 1.0)
        require_range("bound", self.bound, 1.0)

    def init(self, omega: Any) -> Weight:
        """Start from a weight."""
        return Weight(omega, jnp.zeros_like(omega))

    def update(self, weight: Weight, dx: Any, dy: Any, ratio: Any) -> Weight:
        """The weight after an epoch that moved the pair by `dx`, `dy` (norms); unchanged where one did not move.

        Args:
            weight: the present weight.
            dx, dy: distances from the epoch's anchor to where it ended.
            ratio: log of primal over dual residual of the last step.
        """
        tiny, huge = 1e-16, 1e16
        moved = (dx > tiny) & (dy > tiny) & (dx < huge) & (dy < huge)
        error = jnp.log(jnp.where(moved, dy / (jnp.where(moved, dx, 1) * weight.omega), 1))
        total = self.leak * weight.integral + error
        push = self.gain * error + self.integral * total + self.balance * jnp.clip(ratio, -4.0, 4.0)
        omega = jnp.clip(weight.omega * jnp.exp(push), 1 / self.bound, self.bound)
        return Weight(jnp.where(moved, omega, weight.omega), jnp.where(moved, total, weight.integral))
