"""Advantages: how much better each completion is than its group, with constraints priced in.

For P prompts with G completions each, rewards r and costs c_1..c_K (larger is worse) `(P, G)`, multipliers y `(K,)`:

    lagrangian   A = [ (r - mean_g r)/s_r - sum_k y_k (c_k - mean_g c_k)/s_k ] / (1 + sum_k |y_k|)
    centred      the same with every scale 1: y is the price in the user's own units
    joint        A = D / std_g D,   D = (r - mean_g r) - sum_k y_k (c_k - mean_g c_k)
    separate     A = Z(r) - sum_k y_k Z(c_k),   Z(x) = (x - mean_g x) / std_g x

`mean_g`, `std_g` run over one prompt's completions; s_r, s_k are scales of the whole batch, kept as a running mean
(`Scales`). Only with scales that are the same for every prompt is the policy gradient `E[A grad log pi]` that of the
Lagrangian `E[r] - sum_k y_k (E[c_k] - limit_k)`, with the price `y_k s_r / s_k` in raw units: `lagrangian`, `centred`.
`joint` weighs each prompt by `1 / std_g D`; `separate` gives each prompt its own price, `y_k std_g r / std_g c_k`.

NaN marks a score that a completion does not have: means and deviations run over the others, and it adds 0. A group of
equal values has advantages of exactly 0: the smallest value is taken off before the mean, so that nothing is rounded.
A prompt's group must lie on one device; `axes` names the mesh axes that batch-wide statistics run over, inside
`shard_map` (under `jit` with sharded arrays they are global already). Everything is float32 or wider.

Sources: Shao et al. 2024 (GRPO, arXiv 2402.03300); Liu et al. 2025 (no deviation, arXiv 2503.20783); Ahmadian et al.
2024 (leave-one-out, arXiv 2402.14740); Dai et al. 2023 (the division by 1 + y, arXiv 2310.12773).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from pdopt.errors import InvalidProblem, require_range, require_shape, unknown_name
from pdopt.geometry.checks import concrete

Axes = str | tuple[str, ...]


class Scales(NamedTuple):
    """Running variances of the reward (entry 0) and of the K costs, `(K + 1,)`, and the weight each has collected.

    Both start at 0 and follow an exponential mean, so that `variance / weight` is a mean without bias from the first
    batch on. A cost that no completion of a batch has leaves its entry as it was.
    """

    variance: Any
    weight: Any

    def deviations(self, eps: Any = 0.01) -> Any:
        """`(s_r, s_1, ..., s_K)`: standard deviations plus eps; 1 where nothing was seen yet."""
        seen = self.weight > 0
        mean = self.variance / jnp.where(seen, self.weight, jnp.ones_like(self.weight))
        return jnp.where(seen, _root(mean) + eps, jnp.ones_like(mean))


def centre(x: Any, axis: int = -1) -> Any:
    """`x - mean x` along an axis; 0 at NaN, and exactly 0 where all values are equal.

    Example:
        >>> print(centre(jnp.array([[1.0, 3.0, jnp.nan], [0.1, 0.1, 0.1]])))
        [[-1.  1.  0.]
         [ 0.  0.  0.]]
    """
    x, present = _scores(x)
    low = jnp.min(jnp.where(present, x, jnp.inf), axis=axis, keepdims=True)
    above = jnp.where(present, x - low, 0)
    count = jnp.maximum(jnp.sum(present, axis=axis, keepdims=True), 1)
    return jnp.where(present, above - jnp.sum(above, axis=axis, keepdims=True) / count, 0)


def group_normalise(x: Any, eps: Any = 1e-4, scale: bool = True, ddof: int = 1) -> Any:
    """`(x - mean_g x) / (std_g x + eps)` over the last axis: the advantage of GRPO.

    Args:
        x: `(..., P, G)`.
        eps: 1e-4 as in TRL; 1e-2 suits scores in [0, 1], of which 1e-4 makes unit advantages from one small deviation.
        scale: False leaves the difference (Dr. GRPO, Liu et al. 2025).
        ddof: 1 divides the squares by G - 1 (TRL, verl, torch), 0 by G.

    Example:
        >>> print(group_normalise(jnp.array([[0.0, 1.0], [2.0, 2.0]])).round(3))
        [[-0.707  0.707]
         [ 0.     0.   ]]
    """
    deviation = centre(x)
    return deviation / (_spread(deviation, _scores(x)[1], ddof) + eps) if scale else deviation


def batch_normalise(x: Any, eps: Any = 1e-4, axes: Axes = ()) -> Any:
    """`(x - mean x) / (std x + eps)` over the last two axes, the whole batch: the advantage of REINFORCE++.

    Source: Hu 2025 (arXiv 2501.03262). Its variant with a group baseline is `batch_normalise(centre(x))`.

    Example:
        >>> print(batch_normalise(jnp.array([[0.0, 1.0], [1.0, 0.0]]), eps=0.0))
        [[-1.  1.]
         [ 1. -1.]]
    """
    x, present = _scores(x)
    deviation, variance, _ = _moments(x, present, axes)
    return deviation / (_root(variance)[..., None, None] + eps)


def leave_one_out(x: Any) -> Any:
    """`x_i - mean of the others in the group = G/(G-1) (x_i - mean_g x)`: the advantage of RLOO; 0 in a group of one.

    Example:
        >>> print(leave_one_out(jnp.array([[3.0, 0.0, 0.0]])))
        [[ 3.  -1.5 -1.5]]
    """
    count = jnp.sum(_scores(x)[1], axis=-1, keepdims=True)
    return centre(x) * (count / jnp.maximum(count - 1, 1))


def step_advantage(rewards: Any, active: Any, gamma: Any = 1.0) -> Any:
    """Return-to-go of each step less its mean over the members of the group that are still active at that step.

        G_t = sum_{s >= t} gamma^(s - t) r_s,    A_t = G_t - mean over active members of G_t

    Rewards whose mean is not 0 reward length itself, and this baseline alone does not undo it: take a running mean off
    the rewards first (hongruhou89/ProRL).

    Args:
        rewards: `(..., P, G, S)`; a step without a reward counts 0.
        active: the same shape, bool; the decision to end counts as an active step.

    Raises:
        InvalidProblem: shapes that differ. InvalidOption: gamma outside [0, 1].

    Example:
        >>> r, active = jnp.array([[[1.0, 1.0], [1.0, 0.0]]]), jnp.array([[[True, True], [True, False]]])
        >>> print(step_advantage(r, active))
        [[[ 0.5  0. ]
          [-0.5  0. ]]]
    """
    require_shape("active", jnp.shape(active), jnp.shape(rewards), "rewards has that shape")
    if concrete(gamma):
        require_range("gamma", gamma, 0.0, 1.0)
    rewards, present = _scores(rewards)
    given = jnp.moveaxis(jnp.where(present & active, rewards, 0), -1, 0)

    def back(later: Any, reward: Any) -> tuple[Any, Any]:
        now = reward + jnp.asarray(gamma, reward.dtype) * later
        return now, now

    _, returns = lax.scan(back, jnp.zeros_like(given[0]), given, reverse=True)
    return centre(jnp.where(active, jnp.moveaxis(returns, 0, -1), jnp.nan), axis=-2)


def zero_variance(x: Any, axes: Axes = ()) -> Any:
    """The share of groups whose values are all equal, `(..., P, G) -> (...)`: they carry no signal for this score.

    Groups without any value are left out; NaN where no group has one.

    Example:
        >>> print(zero_variance(jnp.array([[1.0, 1.0], [0.0, 1.0]])))
        0.5
    """
    x, present = _scores(x)
    some = jnp.any(present, axis=-1)
    flat = jnp.max(jnp.where(present, x, -jnp.inf), axis=-1) == jnp.min(jnp.where(present, x, jnp.inf), axis=-1)
    count = _reduce(jnp.sum(some, axis=-1), axes)
    share = _reduce(jnp.sum(some & flat, axis=-1), axes) / jnp.maximum(count, 1)
    return jnp.where(count > 0, share, jnp.nan).astype(x.dtype)


def init_scales(constraints: int) -> Scales:
    """Scales before the first batch, for K constraints.

    Example:
        >>> init_scales(2).variance.shape
        (3,)
    """
    return Scales(jnp.zeros(constraints + 1, jnp.float32), jnp.zeros(constraints + 1, jnp.float32))


def update_scales(scales: Scales, rewards: Any, costs: Any, decay: Any = 0.9, axes: Axes = ()) -> Scales:
    """The scales with this batch counted: `v' = decay v + (1 - decay) var`, the variance over the whole batch.

    Args:
        rewards: `(P, G)`; costs: `(K, P, G)`.
        decay: in [0, 1); 0 takes each batch's own deviation.

    Raises:
        InvalidProblem: shapes that do not match. InvalidOption: decay outside [0, 1].

    Example:
        >>> scales = update_scales(init_scales(0), jnp.array([[0.0, 2.0]]), jnp.zeros((0, 1, 2)))
        >>> print(scales.deviations(0.0))
        [1.]
    """
    _require_table(rewards, costs)
    if concrete(decay):
        require_range("decay", decay, 0.0, 1.0)
    require_shape("scales", jnp.shape(scales.variance), (jnp.shape(costs)[0] + 1,), "there is a reward and K costs")
    both, present = _scores(jnp.concatenate([jnp.asarray(rewards)[None], costs]))
    _, variance, count = _moments(both, present, axes)
    keep = lambda old, new: jnp.where(count > 0, old + (1 - decay) * (new - old), old).astype(old.dtype)
    return Scales(keep(scales.variance, variance), keep(scales.weight, jnp.ones_like(scales.weight)))


def constrained_advantage(
    form: str,
    rewards: Any,
    costs: Any,
    y: Any,
    scales: Scales | None = None,
    *,
    eps: Any = 0.01,
    ddof: int = 1,
    divide: bool | None = None,
) -> Any:
    """The advantage of each completion, `(P, G)`, in one of the four forms above; with y = 0 that of the reward alone.

    Args:
        form: "lagrangian", "centred", "joint" or "separate".
        rewards: `(P, G)`; costs: `(K, P, G)`, signed as in `constraints.py` (larger is worse); y: `(K,)`.
        scales: the running scales, this batch counted; None takes those of this batch. Only `lagrangian` reads them.
        eps: added to every deviation; ddof: of the deviations within a group, see `group_normalise`.
        divide: by `1 + sum |y|`, which only keeps the size of the step; None does so for the first two forms.

    Raises:
        InvalidProblem: shapes that do not match. InvalidOption: a form that does not exist.

    Example:
        >>> r, c = jnp.array([[0.0, 1.0]]), jnp.array([[[0.0, 1.0]]])
        >>> for price in (0.0, 1.0):
        ...     print(constrained_advantage("centred", r, c, jnp.array([price])))
        [[-0.5  0.5]]
        [[0. 0.]]
    """
    _require_table(rewards, costs)
    require_shape("y", jnp.shape(y), jnp.shape(costs)[:1], "costs has a table for each constraint")
    require_form(form)
    combine, divides = FORMS[form]
    advantage = combine(rewards, costs, y, scales, eps, ddof)
    return advantage / (1 + jnp.sum(jnp.abs(y))) if (divides if divide is None else divide) else advantage


def effective_multipliers(form: str, y: Any, scales: Scales, eps: Any = 0.01) -> Any:
    """Multipliers as prices in raw units of reward per unit of cost, `(K,)`: `y_k s_r / s_k`, or y where y is one.

    For `separate` that is the price at the batch's deviations; each prompt has its own.

    Example:
        >>> scales = Scales(jnp.array([4.0, 1.0]), jnp.ones(2))
        >>> print(effective_multipliers("lagrangian", jnp.array([3.0]), scales, eps=0.0))
        [6.]
    """
    require_form(form)
    if form in ("centred", "joint"):
        return y
    deviations = scales.deviations(eps)
    return y * (deviations[0] / deviations[1:])


def require_form(form: str) -> None:
    """Raise `InvalidOption` unless the form exists.

    Example:
        >>> require_form("lagrangian")
    """
    if form not in FORMS:
        raise unknown_name("advantage form", form, FORMS)


def _lagrangian(rewards: Any, costs: Any, y: Any, scales: Scales | None, eps: Any, ddof: int) -> Any:
    if scales is None:
        scales = update_scales(init_scales(jnp.shape(costs)[0]), rewards, costs, 0.0)
    deviations = scales.deviations(eps)
    return centre(rewards) / deviations[0] - _priced(y, centre(costs) / deviations[1:, None, None])


def _centred(rewards: Any, costs: Any, y: Any, scales: Scales | None, eps: Any, ddof: int) -> Any:
    return centre(rewards) - _priced(y, centre(costs))


def _joint(rewards: Any, costs: Any, y: Any, scales: Scales | None, eps: Any, ddof: int) -> Any:
    present = _scores(rewards)[1] | jnp.any(_scores(costs)[1], axis=0)
    total = _centred(rewards, costs, y, scales, eps, ddof)
    # Where every completion has every score the mean of D is 0 already. Where some do not, D is not centred again: a
    # completion without a score is neither better nor worse for it.
    return total / (_spread(total, present, ddof) + eps)


def _separate(rewards: Any, costs: Any, y: Any, scales: Scales | None, eps: Any, ddof: int) -> Any:
    return group_normalise(rewards, eps, ddof=ddof) - _priced(y, group_normalise(costs, eps, ddof=ddof))


Form = Callable[[Any, Any, Any, Scales | None, Any, int], Any]
# Each form, and whether it is divided by 1 + sum |y| unless the caller says otherwise.
FORMS: dict[str, tuple[Form, bool]] = {
    "lagrangian": (_lagrangian, True),
    "centred": (_centred, True),
    "joint": (_joint, False),
    "separate": (_separate, False),
}


def _priced(y: Any, deviations: Any) -> Any:
    """`sum_k y_k d_k`, as products and a sum: a matrix product would round to the device's matmul precision."""
    return jnp.sum(jnp.asarray(y, deviations.dtype)[:, None, None] * deviations, axis=0)


def _scores(x: Any) -> tuple[Any, Any]:
    """The scores in float32 or wider, and which of them are there."""
    x = jnp.asarray(x)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x, ~jnp.isnan(x)


def _spread(deviation: Any, present: Any, ddof: int) -> Any:
    count = jnp.sum(present, axis=-1, keepdims=True)
    return _root(jnp.sum(deviation**2, axis=-1, keepdims=True) / jnp.maximum(count - ddof, 1))


def _root(square: Any) -> Any:
    """The square root, with gradient 0 at 0."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def _moments(x: Any, present: Any, axes: Axes) -> tuple[Any, Any, Any]:
    """Deviations from the mean over the last two axes (0 at NaN), their mean square, and how many values there are."""
    count = _reduce(jnp.sum(present, axis=(-2, -1)), axes)
    over = jnp.maximum(count, 1)
    low = jnp.min(jnp.where(present, x, jnp.inf), axis=(-2, -1), keepdims=True)
    above = jnp.where(present, x - (lax.pmin(low, axes) if axes else low), 0)
    mean = _reduce(jnp.sum(above, axis=(-2, -1)), axes) / over
    deviation = jnp.where(present, above - mean[..., None, None], 0)
    return deviation, _reduce(jnp.sum(deviation**2, axis=(-2, -1)), axes) / over, count


def _reduce(x: Any, axes: Axes) -> Any:
    return lax.psum(x, axes) if axes else x


def _require_table(rewards: Any, costs: Any) -> None:
    shape = jnp.shape(rewards)
    if len(shape) != 2:
        raise InvalidProblem(f"rewards has shape {shape}; expected (prompts, completions of each)")
    require_shape("costs", jnp.shape(costs), (*jnp.shape(costs)[:1], *shape), "rewards is a table of that shape")
