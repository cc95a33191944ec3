"""Regularisers: divergence from a reference, entropy, length; as a report, as a loss, as a reward.

With `d = log pi - log ref` of a sampled token, three estimates of KL(pi, ref) (Schulman 2020):

    k1 = d          k2 = d^2 / 2          k3 = exp(-d) - 1 + d   (>= 0, little variance)

All three have (nearly) the right *value*; as a loss their gradients differ. On texts sampled from pi:

    grad k1 = grad log pi                   mean 0: no regulariser at all
    grad k2 = d grad log pi                 mean grad KL(pi, ref): the one for a loss
    grad k3 = (1 - exp(-d)) grad log pi     mean grad KL(ref, pi): the other direction, equal to first order in d

so k3 is for reports, k2 for a loss, k1 for a reward or a cost (`kl_cost`), where the policy gradient does the rest.
On texts of an older policy each is weighted by `rho = pi / old`; then rho k1 and rho k3, with the gradient of rho, have
the gradient of KL(pi, ref) too (TRL: `use_bias_correction_kl`), and k2 is weighted by rho as a constant.

A penalty that is computed from constants changes the loss and moves nothing: each function of `entropy` or `log_probs`
here has a gradient where it is active, and what acts through samples (`kl_cost`, `overlong`) belongs in a reward.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from pdopt.errors import InvalidOption, require_range, require_shape, unknown_name
from pdopt.geometry.checks import concrete
from pdopt.training.objectives import LOG_RATIO_LIMIT, Totals, kept, token_mean


def k1(d: Any) -> Any:
    """`d`: right on average, of either sign.

    Example:
        >>> k1(0.5)
        0.5
    """
    return d


def k2(d: Any) -> Any:
    """`d^2 / 2`: right to second order, and its gradient is that of the divergence.

    Example:
        >>> k2(2.0)
        2.0
    """
    return d**2 / 2


def k3(d: Any) -> Any:
    """`exp(-d) - 1 + d`: right on average and never negative; `-d` is cut at 20 before the exponential.

    Example:
        >>> print(k3(jnp.array([0.0, -100.0])))
        [0.000000e+00 4.851651e+08]
    """
    return jnp.exp(jnp.minimum(-d, LOG_RATIO_LIMIT)) - 1 + d


ESTIMATORS: dict[str, Callable[[Any], Any]] = {"k1": k1, "k2": k2, "k3": k3}


def kl_report(log_probs: Any, reference: Any, mask: Any, totals: Totals) -> dict[str, Any]:
    """Means over tokens of k1 and k3, `{"kl_k1", "kl_k3"}`, without gradient; they add up over micro-batches.

    Args:
        log_probs, reference: `(b, t)`; mask: `(b, t)`; totals: of the whole batch (`objectives.totals`).

    Example:
        >>> from pdopt.training.objectives import totals
        >>> mask = jnp.ones((1, 2), bool)
        >>> kl_report(jnp.zeros((1, 2)), jnp.zeros((1, 2)), mask, totals(mask, 2))["kl_k3"].item()
        0.0
    """
    d = lax.stop_gradient(_difference(log_probs, reference, mask))
    return {f"kl_{name}": token_mean(ESTIMATORS[name](d), mask, totals) for name in ("k1", "k3")}


def kl_loss(
    log_probs: Any, reference: Any, mask: Any, totals: Totals, kind: str = "k2", old_log_probs: Any = None
) -> Any:
    """The mean over tokens of an estimate of KL(pi, reference), to be multiplied by a coefficient and added to a loss.

    Args:
        log_probs, reference: `(b, t)`, the second a constant; mask: `(b, t)`; totals: of the whole batch.
        kind: "k2" for the gradient of KL(pi, reference); see above for what the others do.
        old_log_probs: `(b, t)` under the policy that sampled, for the weights rho; None where it is the present one.

    Raises:
        InvalidOption: a kind that does not exist. InvalidProblem: shapes that differ.

    Example:
        >>> from pdopt.training.objectives import totals
        >>> mask = jnp.ones((1, 1), bool)
        >>> print(kl_loss(jnp.array([[-1.0]]), jnp.array([[-3.0]]), mask, totals(mask, 1)))
        2.0
    """
    if kind not in ESTIMATORS:
        raise unknown_name("estimator", kind, ESTIMATORS)
    terms = ESTIMATORS[kind](_difference(log_probs, lax.stop_gradient(reference), mask))
    if old_log_probs is not None:
        d = _difference(log_probs, lax.stop_gradient(old_log_probs), mask)
        rho = jnp.exp(jnp.clip(d, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
        terms = terms * (lax.stop_gradient(rho) if kind == "k2" else rho)
    return token_mean(terms, mask, totals)


def kl_cost(log_probs: Any, reference: Any, mask: Any, kind: str = "k1", level: str = "sum") -> Any:
    """The divergence of each row, `(b,)`, a constant: the cost of a KL constraint, or a penalty in the reward.

    Args:
        log_probs, reference, mask: `(b, t)`.
        kind: "k1" is unbiased for `level="sum"`; "k3" never negative.
        level: "sum" over the tokens of a row, the divergence of texts; "mean", so that long texts cost no more.

    Raises:
        InvalidOption: a kind or level that does not exist. InvalidProblem: shapes that differ.

    Example:
        >>> print(kl_cost(jnp.array([[-1.0, -1.0]]), jnp.array([[-1.5, -3.0]]), jnp.ones((1, 2), bool)))
        [2.5]
    """
    if kind not in ESTIMATORS:
        raise unknown_name("estimator", kind, ESTIMATORS)
    if level not in ("sum", "mean"):
        raise unknown_name("level", level, ("sum", "mean"))
    mask = jnp.asarray(mask, bool)
    d = lax.stop_gradient(_difference(log_probs, reference, mask))
    total = jnp.sum(jnp.where(mask, ESTIMATORS[kind](d), 0), axis=1)
    return total / jnp.maximum(jnp.sum(mask, axis=1), 1) if level == "mean" else total


def entropy_bonus(entropy: Any, mask: Any, totals: Totals) -> Any:
    """`-mean entropy` over tokens, to be multiplied by a coefficient > 0 and added to a loss.

    Args:
        entropy: `(b, t)` in nats, differentiable (`models.log_probs.token_log_probs`).

    Example:
        >>> from pdopt.training.objectives import totals
        >>> mask = jnp.array([[True, False]])
        >>> print(entropy_bonus(jnp.array([[2.0, jnp.nan]]), mask, totals(mask, 2)))
        -2.0
    """
    require_shape("mask", jnp.shape(mask), jnp.shape(entropy), "entropy has that shape")
    return -token_mean(kept(entropy, mask), mask, totals)


def entropy_band(entropy: Any, mask: Any, totals: Totals, low: Any, high: Any) -> Any:
    """The mean over tokens of `max(0, low - H) + max(0, H - high)`: 0, without gradient, inside the band.

    The differentiable form of the band of EPO (arXiv 2509.22576), whose released code adds a constant. For a band that
    holds without a coefficient to tune, make entropy the score of two constraints.

    Args:
        entropy: `(b, t)` in nats; low, high: its band, constants for differentiation.

    Raises:
        InvalidOption: low above high. InvalidProblem: shapes that differ.

    Example:
        >>> from pdopt.training.objectives import totals
        >>> mask = jnp.ones((1, 3), bool)
        >>> print(entropy_band(jnp.array([[0.5, 1.5, 4.0]]), mask, totals(mask, 3), 1.0, 2.0).round(4))
        0.8333
    """
    require_shape("mask", jnp.shape(mask), jnp.shape(entropy), "entropy has that shape")
    if concrete(low, high) and not bool(low <= high):
        raise InvalidOption(f"low is {low} and high is {high}; expected low <= high")
    h, low, high = kept(entropy, mask), lax.stop_gradient(low), lax.stop_gradient(high)
    return token_mean(jnp.maximum(low - h, 0) + jnp.maximum(h - high, 0), mask, totals)


def overlong(lengths: Any, max_new: Any, buffer: Any) -> Any:
    """DAPO's soft penalty of long texts, a reward in [-1, 0] (arXiv 2503.14476, equation 13).

        0 up to max_new - buffer,   then linear,   -1 from max_new on

    Args:
        lengths: any shape, tokens of a completion; max_new: where it reaches -1; buffer: tokens of the slope, > 0.

    Raises:
        InvalidOption: a buffer that is not in (0, max_new].

    Example:
        >>> print(overlong(jnp.array([10, 90, 95, 100, 120]), max_new=100, buffer=10))
        [ 0.   0.  -0.5 -1.  -1. ]
    """
    if concrete(max_new, buffer):
        require_range("buffer", buffer, 0.0, float(max_new), open_low=True)
    return jnp.clip((max_new - buffer - jnp.asarray(lengths)) / buffer, -1, 0)


def _difference(log_probs: Any, other: Any, mask: Any) -> Any:
    """`log_probs - other`, 0 outside the mask whatever lies there."""
    require_shape("mask", jnp.shape(mask), jnp.shape(log_probs), "log_probs has that shape")
    require_shape("the other log-probabilities", jnp.shape(other), jnp.shape(log_probs), "log_probs has that shape")
    return kept(log_probs, mask) - kept(other, mask)
