"""Penalty rules of the method of multipliers: when it grows, when multipliers wait, how exact the next minimiser is.

With V the violation of a step, `max(|h|, |max(g, -y/rho)|)`:

    algencan          multipliers always move; rho grows by `growth` unless V <= shrink V_before; omega falls tenfold
                      where V fell (Andreani, Birgin, Martinez, Schuverdt 2007)
    nocedal_wright    multipliers move only where V <= eta; then eta <- eta rho^-0.9, omega <- omega / rho; else rho
                      grows and eta <- rho^-0.1, omega <- 1 / rho (Nocedal, Wright 2006, algorithm 17.4)

A rule is a function of (schedule, V, growth, shrink) and makes the next schedule; a method clips its penalty.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp


class Schedule(NamedTuple):
    """Where the outer loop stands.

    Attributes:
        penalty: rho of the next step.
        broken: V of the last step, infinite before the first.
        eta: multipliers of the next step move only where V <= eta; infinite: always.
        omega: the projected gradient to which the next step minimises.
    """

    penalty: Any
    broken: Any
    eta: Any
    omega: Any


def algencan(schedule: Schedule, broken: Any, growth: Any, shrink: Any) -> Schedule:
    """The next schedule by ALGENCAN's test.

    Example:
        >>> print(*algencan(Schedule(10.0, jnp.inf, jnp.inf, 0.1), 1.0, 10.0, 0.5))
        10.0 1.0 inf 0.010...
    """
    fell = broken <= shrink * schedule.broken
    penalty = jnp.where(fell, schedule.penalty, growth * schedule.penalty)
    return Schedule(penalty, broken, jnp.full_like(schedule.eta, jnp.inf), 0.1 * schedule.omega)


def nocedal_wright(schedule: Schedule, broken: Any, growth: Any, shrink: Any) -> Schedule:
    """The next schedule by algorithm 17.4; `shrink` is not used.

    Example:
        >>> after = nocedal_wright(Schedule(10.0, jnp.inf, 0.5, 0.1), 1.0, 10.0, 0.5)
        >>> print(f"{after.penalty:.3g} {after.eta:.3g} {after.omega:.3g}")  # V > eta: the penalty grew
        100 0.631 0.01
    """
    good = broken <= schedule.eta
    first = ~jnp.isfinite(schedule.eta)  # the first step moves the multipliers whatever V is
    penalty = jnp.where(good, schedule.penalty, growth * schedule.penalty)
    size = jnp.maximum(penalty, 10)  # below 1 its powers would loosen what they are to tighten
    eta = jnp.where(good & ~first, schedule.eta * size**-0.9, size**-0.1)
    omega = jnp.where(good, schedule.omega, 1) / size
    return Schedule(penalty, broken, eta, omega)
