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
        artificial: in (0, 1); share of all iterations after which an epoch ends anyway.
    """

    sufficient: Any = 0.3
    necessary: Any = 0.6
    artificial: Any = 0.36

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

    def update(self, epoch: Epoch, restarted: Any, error: Any, first: Any) -> Epoch:
        """The epoch after a check: `first` is the error of the step that begins a new one."""
        infinite = jnp.full_like(error, jnp.inf)
        return Epoch(
            jnp.where(restarted, first, epoch.first),
            jnp.where(restarted, infinite, error),
            jnp.where(restarted, 0, epoch.steps),
            epoch.total,
            epoch.restarts + restarted.astype(jnp.int32),
        )


class Weight(NamedTuple):
    """The primal weight and the leaky integral of its log error."""

    omega: Any
    integral: Any


@record
class PrimalWeight:
    """PI control of `log omega` towards `log(|dy| / |dx|)` of the last epoch (cuPDLPx; gains of linear spec, 4b).

        e = log|dy| - log|dx| - log omega;   I = 0.3 I + e;   omega <- omega exp(gain e + integral I)

    Attributes:
        gain: in [0, 1]; 0.7 (0.99 makes some nearly degenerate programs diverge).
        integral: weight of the leaky integral, 0.01.
        leak: share of the integral kept, 0.3.
        bound: omega stays within [1/bound, bound]. On an infeasible program one side grows without end; an unbounded
            weight would follow it and freeze the other side, and with it the ray.
    """

    gain: Any = 0.7
    integral: Any = 0.01
    leak: Any = 0.3
    bound: Any = 1e5

    def init(self, omega: Any) -> Weight:
        """Start from a weight."""
        return Weight(omega, jnp.zeros_like(omega))

    def update(self, weight: Weight, dx: Any, dy: Any) -> Weight:
        """The weight after an epoch that moved the pair by `dx`, `dy` (norms); unchanged where one did not move."""
        tiny, huge = 1e-16, 1e16
        moved = (dx > tiny) & (dy > tiny) & (dx < huge) & (dy < huge)
        error = jnp.log(jnp.where(moved, dy, 1)) - jnp.log(jnp.where(moved, dx, 1)) - jnp.log(weight.omega)
        total = self.leak * weight.integral + error
        omega = weight.omega * jnp.exp(self.gain * error + self.integral * total)
        omega = jnp.clip(omega, 1 / self.bound, self.bound)
        return Weight(jnp.where(moved, omega, weight.omega), jnp.where(moved, total, weight.integral))
