"""Policy losses: what an optimiser step descends, given log-probabilities, advantages and a mask.

With `lp`, `old` the log-probabilities `(b, t)` under the present policy and the one that sampled, A the advantage, m
the mask, `rho = exp(lp - old)`, and `len` the tokens of a row, a loss is a term for each token and a way to add up:

| name        | term of a token                                  | summed as            | low, high  | source          |
|-------------|--------------------------------------------------|----------------------|------------|-----------------|
| grpo        | -min(rho A, clip(rho, 1-low, 1+high) A)          | mean of rows' means  | 0.2, 0.2   | 2402.03300      |
| bnpo        | the same                                         | mean of tokens       | 0.2, 0.2   | TRL             |
| dapo        | the same                                         | mean of tokens       | 0.2, 0.28  | 2503.14476      |
| dr_grpo     | the same                                         | sum / (rows max_new) | 0.2, 0.2   | 2503.20783      |
| reinforce++ | the same                                         | mean of tokens       | 0.2, 0.2   | 2501.03262      |
| gspo        | the same, s for rho                              | mean of rows' means  | 3e-4, 4e-4 | 2507.18071      |
| gspo_token  | the same, sg(s) exp(lp - sg(lp)) for rho         | mean of rows' means  | 3e-4, 4e-4 | 2507.18071      |
| cispo       | -sg(min(rho, 1+high)) A lp                       | mean of tokens       | -, 4       | 2506.13585      |
| sapo        | -(4/tau) sigmoid(tau (rho-1)) A, tau by A's sign | mean of rows' means  | -, -       | TRL             |
| reinforce   | -A lp                                            | mean of tokens       | -, -       | Williams (1992) |
| rloo        | -A lp                                            | mean of rows' sums   | -, -       | 2402.14740      |
| mdpo        | -rho A + (rho log rho - rho + 1) / mirror        | mean of tokens       | -, -       | 2005.09814      |

`s = exp(sum_t (lp - old) m / len)` is the ratio of the sequence and `sg` stops the gradient. The advantage makes the
rest of a method: `group_normalise` for GRPO and most others, without `scale` for Dr. GRPO, `leave_one_out` for RLOO,
`batch_normalise` for REINFORCE++ (whose KL goes into the reward); see `advantages.py`. The second term of mdpo is an
estimate of KL(new, old) / mirror from samples of old, with the gradient of the divergence and no variance at rho = 1.

Denominators are those of the whole batch (`totals`), taken before it is cut into micro-batches, so that the gradients
of the parts *add up* to that of the whole; so do the diagnostics. (In TRL bnpo divides by the tokens of a micro-batch,
which is this loss where there is only one; a sum of local means depends on the cut.) With one update for each rollout
`old` may be None: the ratio is then 1 and carries the gradient, without a second forward pass.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pdopt.errors import InvalidOption, require_range, require_shape, unknown_name
from pdopt.geometry.checks import concrete

# Log-ratios are kept within this before exp: e^20 = 5e8, beyond which a gradient means nothing.
LOG_RATIO_LIMIT = 20.0


class Totals(NamedTuple):
    """Denominators of a whole batch: tokens that count, rows, rows with a token, and rows times `max_new`."""

    tokens: Any
    rows: Any
    sequences: Any
    budget: Any


class Terms(NamedTuple):
    """What a token's term reads: `lp`, log-ratio and ratio (of its level), advantage; settings of the loss."""

    log_probs: Any
    log_ratio: Any
    ratio: Any
    advantages: Any
    low: Any
    high: Any
    dual: Any
    tau: Any
    mirror: Any


class Loss(NamedTuple):
    """A row of the table: the term, the sum, the level of the ratio and the default clip range."""

    term: Callable[[Terms], Any]
    reduction: str
    level: str = "token"
    low: float | None = None
    high: float | None = None


def totals(mask: Any, max_new: Any, axes: str | tuple[str, ...] = ()) -> Totals:
    """The denominators of a batch; take them before it is cut into micro-batches.

    Args:
        mask: `(b, t)`, tokens that count.
        max_new: most new tokens of a completion, the fixed length of Dr. GRPO.
        axes: mesh axes to add up over, inside `shard_map`.

    Raises:
        InvalidOption: max_new below 1.

    Example:
        >>> print(*totals(jnp.array([[True, True, False], [False, False, False]]), max_new=3))
        2.0 2.0 1.0 6.0
    """
    if concrete(max_new):
        require_range("max_new", max_new, 1)
    mask = jnp.asarray(mask, bool)
    rows = jnp.asarray(mask.shape[0], jnp.float32)
    counts = jnp.stack([jnp.sum(mask).astype(jnp.float32), rows, jnp.sum(jnp.any(mask, axis=1)).astype(jnp.float32)])
    tokens, rows, sequences = lax.psum(counts, axes) if axes else counts
    return Totals(tokens, rows, sequences, rows * max_new)


def policy_loss(
    kind: str,
    log_probs: Any,
    old_log_probs: Any,
    advantages: Any,
    mask: Any,
    totals: Totals,
    *,
    low: Any = None,
    high: Any = None,
    dual: Any = None,
    level: str | None = None,
    weights: Any = None,
    tau: tuple[Any, Any] = (1.0, 1.05),
    mirror: Any = 1.0,
) -> tuple[Any, dict[str, Any]]:
    """A loss of the table, to be minimised, and its diagnostics; differentiable in `log_probs`.

    Args:
        kind: a key of `LOSSES`.
        log_probs: `(b, t)` under the present policy; old_log_probs: under the one that sampled, or None for the same.
        advantages: `(b,)`, or `(b, t)` for advantages of steps; a constant for differentiation.
        mask: `(b, t)`, tokens that count; what the others hold, NaN included, is not read.
        totals: of the whole batch (`totals`).
        low, high: clip range; None for the table's. In cispo the ratio is cut at `1 + high` (TRL cuts it at its
            `epsilon_high` itself: the default 4 is its recommended 5).
        dual: where A < 0, the term is at most `-dual A` (dual clip, Ye et al. 2020, arXiv 1912.09729, with 3; TRL's
            `delta`); > 1, None for none.
        level: "token", "sequence" or "sequence_token", what the ratio is of; None for the table's.
        weights: `(b, t)` factors of the terms, a constant for differentiation: `engine_weights`.
        tau: of sapo, for advantages above 0 and for the others; mirror: t of mdpo, the step of the mirror descent.

    Returns:
        The loss, and a dict of scalars that add up over micro-batches: `ratio` (mean over tokens), `clip_low`,
        `clip_high` (share of tokens whose gradient the clip removed), `clip_dual`, `kl_old` (mean of the estimator k3
        of KL(old, new)).

    Raises:
        InvalidOption: a kind or level that does not exist, a ratio of sequences under a sum of tokens, settings that
            the loss does not have or outside their range. InvalidProblem: shapes that do not match.

    Example:
        >>> lp, mask = jnp.log(jnp.array([[0.5, 0.25]])), jnp.ones((1, 2), bool)
        >>> loss, seen = policy_loss("grpo", lp, lp - jnp.log(2.0), jnp.ones(1), mask, totals(mask, 2))
        >>> print(loss.round(3), seen["clip_high"])
        -1.2 1.0
    """
    loss = _settled(kind, low, high, dual, level)
    require_shape("mask", jnp.shape(mask), jnp.shape(log_probs), "log_probs has that shape")
    if old_log_probs is not None:
        require_shape("old_log_probs", jnp.shape(old_log_probs), jnp.shape(log_probs), "log_probs has that shape")
    if jnp.ndim(advantages) == 1:
        advantages = jnp.asarray(advantages)[:, None]
    shape = jnp.shape(log_probs)
    require_shape(
        "advantages", jnp.shape(advantages), (shape[0], jnp.shape(advantages)[-1]), "there is one for each row"
    )
    mask = jnp.asarray(mask, bool)
    lp = _kept(log_probs, mask)
    old = lax.stop_gradient(lp if old_log_probs is None else _kept(old_log_probs, mask))
    advantage = _kept(jnp.broadcast_to(lax.stop_gradient(advantages), shape), mask)
    token = jnp.clip(lp - old, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    log_ratio = LEVELS[loss.level](lp, token, mask)
    given = Terms(lp, log_ratio, jnp.exp(log_ratio), advantage, loss.low, loss.high, dual, tau, mirror)
    terms = loss.term(given)
    if weights is not None:
        require_shape("weights", jnp.shape(weights), shape, "log_probs has that shape")
        terms = terms * _kept(lax.stop_gradient(weights), mask)
    value = REDUCTIONS[loss.reduction](jnp.where(mask, terms, 0), mask, totals)
    return value, _diagnostics(given, token, loss, mask, totals)


def engine_weights(
    old_log_probs: Any, sampler_log_probs: Any, mask: Any, cap: Any = 2.0, level: str = "token", masked: bool = False
) -> Any:
    """Importance weights `(b, t)` for texts sampled by another engine: `min(exp(old - sampler), cap)`.

    The engine that samples and the model that trains do not give a token the same probability; the truncated weight
    corrects for it at bounded variance (TIS; TRL's `vllm_importance_sampling_correction`).

    Args:
        old_log_probs: under the trained model before its update; sampler_log_probs: under the engine; both `(b, t)`.
        mask: `(b, t)`.
        cap: largest weight, > 0.
        level: "token", or "sequence" for the ratio of the whole text, the product of its tokens'.
        masked: a weight above the cap becomes 0 instead of the cap (MIS).

    Raises:
        InvalidOption: a level that does not exist, or a cap that is not positive.

    Example:
        >>> mask = jnp.ones((1, 2), bool)
        >>> print(engine_weights(jnp.log(jnp.array([[0.5, 0.8]])), jnp.log(jnp.array([[0.5, 0.1]])), mask))
        [[1. 2.]]
    """
    if level not in ("token", "sequence"):
        raise unknown_name("level", level, ("token", "sequence"))
    if concrete(cap):
        require_range("cap", cap, 0.0, open_low=True)
    mask = jnp.asarray(mask, bool)
    log_ratio = _kept(old_log_probs, mask) - _kept(sampler_log_probs, mask)
    if level == "sequence":
        log_ratio = jnp.broadcast_to(jnp.sum(log_ratio, axis=1, keepdims=True), log_ratio.shape)
    weight = jnp.exp(jnp.clip(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    cut = jnp.where(weight > cap, 0, weight) if masked else jnp.minimum(weight, cap)
    return lax.stop_gradient(jnp.where(mask, cut, 0))


def _clipped(t: Terms) -> Any:
    kept = jnp.clip(t.ratio, 1 - t.low, 1 + t.high)
    terms = -jnp.minimum(t.ratio * t.advantages, kept * t.advantages)
    return terms if t.dual is None else jnp.where(t.advantages < 0, jnp.minimum(terms, -t.dual * t.advantages), terms)


def _cispo(t: Terms) -> Any:
    return -lax.stop_gradient(jnp.minimum(t.ratio, 1 + t.high)) * t.advantages * t.log_probs


def _sapo(t: Terms) -> Any:
    tau = jnp.where(t.advantages > 0, *(jnp.asarray(value, t.ratio.dtype) for value in t.tau))
    return -(4 / tau) * jax.nn.sigmoid(tau * (t.ratio - 1)) * t.advantages


def _reinforce(t: Terms) -> Any:
    return -t.advantages * t.log_probs


def _mdpo(t: Terms) -> Any:
    return -t.ratio * t.advantages + (t.ratio * t.log_ratio - t.ratio + 1) / t.mirror


LOSSES = {
    "grpo": Loss(_clipped, "rows", low=0.2, high=0.2),
    "bnpo": Loss(_clipped, "tokens", low=0.2, high=0.2),
    "dapo": Loss(_clipped, "tokens", low=0.2, high=0.28),
    "dr_grpo": Loss(_clipped, "budget", low=0.2, high=0.2),
    "reinforce++": Loss(_clipped, "tokens", low=0.2, high=0.2),
    "gspo": Loss(_clipped, "rows", "sequence", low=3e-4, high=4e-4),
    "gspo_token": Loss(_clipped, "rows", "sequence_token", low=3e-4, high=4e-4),
    "cispo": Loss(_cispo, "tokens", high=4.0),
    "sapo": Loss(_sapo, "rows"),
    "reinforce": Loss(_reinforce, "tokens"),
    "rloo": Loss(_reinforce, "row_sums"),
    "mdpo": Loss(_mdpo, "tokens"),
}


def _row_mean(x: Any, mask: Any) -> Any:
    return jnp.sum(x, axis=1, keepdims=True) / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)


def _sequence(lp: Any, token: Any, mask: Any) -> Any:
    return jnp.broadcast_to(_row_mean(token, mask), token.shape)


def _sequence_token(lp: Any, token: Any, mask: Any) -> Any:
    return lax.stop_gradient(_row_mean(token, mask)) + lp - lax.stop_gradient(lp)


# What the ratio is of: from lp, the tokens' log-ratios (0 outside the mask) and the mask, the log-ratio of each token.
LEVELS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "token": lambda lp, token, mask: token,
    "sequence": _sequence,
    "sequence_token": _sequence_token,
}

# How terms (0 outside the mask) become a loss. The first is the only one that a ratio of sequences may have.
REDUCTIONS: dict[str, Callable[[Any, Any, Totals], Any]] = {
    "rows": lambda x, mask, totals: jnp.sum(_row_mean(x, mask)) / jnp.maximum(totals.rows, 1),
    "tokens": lambda x, mask, totals: jnp.sum(x) / jnp.maximum(totals.tokens, 1),
    "budget": lambda x, mask, totals: jnp.sum(x) / jnp.maximum(totals.budget, 1),
    "row_sums": lambda x, mask, totals: jnp.sum(x) / jnp.maximum(totals.rows, 1),
}


def require_loss(kind: str, low: Any = None, high: Any = None, dual: Any = None, level: str | None = None) -> None:
    """Raise `InvalidOption` unless `policy_loss` has that kind with those settings; for checks before a run.

    Example:
        >>> require_loss("dapo", high=0.3)
    """
    _settled(kind, low, high, dual, level)


def _settled(kind: str, low: Any, high: Any, dual: Any, level: str | None) -> Loss:
    """The row of the table with what the caller says in place of its defaults, checked."""
    if kind not in LOSSES:
        raise unknown_name("loss", kind, LOSSES)
    loss = LOSSES[kind]
    for name, given, default, most in (("low", low, loss.low, 1.0), ("high", high, loss.high, jnp.inf)):
        if given is not None and default is None:
            raise InvalidOption(f"{name} is {given}; expected None because {kind} has no such clip")
        if given is not None and concrete(given):
            require_range(name, given, 0.0, most)
    if dual is not None and loss.term is not _clipped:
        raise InvalidOption(f"dual is {dual}; expected None because {kind} has no clipped term")
    if dual is not None and concrete(dual):
        require_range("dual", dual, 1.0, open_low=True)
    level = loss.level if level is None else level
    if level not in LEVELS:
        raise unknown_name("level", level, LEVELS)
    if level != loss.level and loss.term is _reinforce:
        raise InvalidOption(f"level is {level!r}; expected 'token' because {kind} has no ratio")
    if level != "token" and loss.reduction != "rows":
        raise InvalidOption(
            f"level is {level!r} and {kind} sums over {loss.reduction}; expected a mean of rows (grpo, gspo, sapo): "
            "a ratio of the sequence would count once for each of its tokens"
        )
    return loss._replace(level=level, low=loss.low if low is None else low, high=loss.high if high is None else high)


def _diagnostics(t: Terms, token: Any, loss: Loss, mask: Any, totals: Totals) -> dict[str, Any]:
    mean = lambda x: jnp.sum(jnp.where(mask, x, 0)) / jnp.maximum(totals.tokens, 1)
    never = jnp.zeros_like(mask)
    clips = loss.term is _clipped
    found = {
        "ratio": mean(t.ratio),
        "clip_low": mean((t.ratio < 1 - t.low) & (t.advantages < 0) if clips else never),
        "clip_high": mean(_above(t, clips, loss) if loss.high is not None else never),
        "clip_dual": mean((t.ratio > t.dual) & (t.advantages < 0) if t.dual is not None else never),
        "kl_old": mean(jnp.exp(token) - 1 - token),
    }
    return lax.stop_gradient(found)


def _above(t: Terms, clips: bool, loss: Loss) -> Any:
    """Above the range; where the term is a minimum, the clip only acts if the advantage is positive."""
    above = t.ratio > 1 + t.high
    return above & (t.advantages > 0) if clips else above


def _kept(x: Any, mask: Any) -> Any:
    """Float32 or wider, with 0 in place of what does not count, so that no gradient meets what lies there."""
    x = jnp.asarray(x)
    return jnp.where(mask, x.astype(jnp.promote_types(x.dtype, jnp.float32)), 0)
