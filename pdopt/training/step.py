"""One training step, from scored completions to the next state: pure, jitted, the old state's memory reused.

    respond     y' = move(y, signal(mean cost - limit))          the dual half of the saddle step, on this batch
    advance     x' = AdamW(x, grad L),  L from the advantage with y' priced in        the primal half, on the same batch

This is the library's saddle step started at its dual half: the batch that measures the violation of the present policy
is the one the next policy is made from. With one update a batch the old log-probabilities are the present ones with
their gradient stopped: no further pass. A step whose loss, gradient or violation is not finite changes neither policy
nor multipliers; it is counted.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from pdopt.models.sharding import tree_shardings
from pdopt.training.advantages import (
    FORMS,
    batch_normalise,
    constrained_advantage,
    effective_multipliers,
    leave_one_out,
    update_scales,
    zero_variance,
)
from pdopt.training.constraints import Constraints
from pdopt.training.gradients import Objective, Part, gradient, scores_in_parts, split_batch
from pdopt.training.objectives import policy_loss, token_mean
from pdopt.training.optimiser import make_optimiser
from pdopt.training.recipe import OptimiserConfig
from pdopt.training.regularisers import entropy_bonus, kl_cost, kl_loss, kl_report
from pdopt.training.state import Fixed, TrainState, policy
from pdopt.types import record


class Experience(NamedTuple):
    """A rollout and its scores: b = P G rows, the G completions of a prompt one after the other.

    Attributes:
        prompts, valid: `(b, p)`, left padded.
        tokens, mask, log_probs: `(b, t)`, as sampled (`rollout.Rollout`).
        finished: `(b,)` whether the row ended by itself.
        rewards: `(b,)`; NaN where there is none.
        values: constraint -> `(b,)` its cost or score; NaN where there is none. `length` and `kl` are measured here.
        classes: constraint -> `(P,)` class of each prompt, for constraints that have classes.
        weights: `(b, t)` of tokens that another engine drew (`objectives.engine_weights`); None: our own sampling.
    """

    prompts: Any
    valid: Any
    tokens: Any
    mask: Any
    log_probs: Any
    finished: Any
    rewards: Any
    values: dict[str, Any]
    classes: dict[str, Any]
    weights: Any = None


@record(
    static=(
        "loss", "advantage", "group", "micro", "passes", "minibatches", "optimiser", "mask_truncated", "kl_estimator",
        "max_new",
    )
)  # fmt: skip
class Plan:
    """What a policy step computes; numbers are traced, so that another value does not compile again.

    Attributes:
        constraints: what is held, and how.
        optimiser: resolved section of the recipe.
        group: completions a prompt.
        max_new: longest completion, the denominator of `dr_grpo`.
        micro: rows at once, None for all; passes, minibatches: optimiser steps a batch are their product.
        Others as in the recipe's section `objective`.
    """

    constraints: Constraints
    optimiser: OptimiserConfig
    group: int
    max_new: int
    loss: str = "dapo"
    advantage: str = "lagrangian"
    micro: int | None = None
    passes: int = 1
    minibatches: int = 1
    mask_truncated: bool = False
    kl_estimator: str = "k2"
    temperature: Any = 1.0
    epsilon_low: Any = None
    epsilon_high: Any = None
    dual_clip: Any = None
    kl: Any = 0.0
    entropy: Any = 0.0
    scale_decay: Any = 0.9
    scale_epsilon: Any = 0.01


@partial(jax.jit, donate_argnames=("state",))
def policy_step(plan: Plan, fixed: Fixed, state: TrainState, seen: Experience) -> tuple[TrainState, dict[str, Any]]:
    """The next state and what happened, scalars on the device.

    Args:
        plan: what to compute.
        fixed: what is read only; its reference is used where there is one.
        state: donated: its arrays must not be used again.
        seen: the batch; sharded over rows or not.
    """
    part = _as_part(plan, fixed, state, seen)
    held, scales, table = _answer(plan, state, seen, part)
    part = part._replace(advantage=table["advantage"].reshape(-1), weights=seen.weights)
    trainable, moments, metrics, fine = _climb(plan, fixed, state, part)
    fine &= jnp.all(jnp.isfinite(held.y)) & jnp.all(jnp.isfinite(part.advantage))
    made = TrainState(
        state.step + 1, trainable, moments, held, scales, state.key,
        jnp.where(fine, 0, state.bad + 1), state.skipped + ~fine,
    )  # fmt: skip
    kept = state._replace(step=made.step, bad=made.bad, skipped=made.skipped)
    report = metrics | _rollout_report(seen, part) | _score_report(plan, table, held, scales)
    return _kept_in_place(fixed, _choose(fine, made, kept)), report | {"skipped": made.skipped, "bad": made.bad}


@partial(jax.jit, static_argnames=("optimiser", "micro"), donate_argnames=("state",))
def supervised_step(
    optimiser: OptimiserConfig, fixed: Fixed, state: TrainState, part: Part, micro: int | None = None
) -> tuple[TrainState, dict[str, Any]]:
    """One step on given completions: `L = -(1 / N) sum_tokens log p`; multipliers rest."""
    loss, found, metrics = gradient(fixed, state.trainable, part, supervised, 1.0, micro)
    trainable, moments, size, fine = _update(optimiser, state.trainable, state.optimiser, loss, found)
    report = {"loss": loss, "gradient_norm": size, **metrics}
    bad, skipped = jnp.where(fine, 0, state.bad + 1), state.skipped + ~fine
    made = state._replace(step=state.step + 1, trainable=trainable, optimiser=moments, bad=bad, skipped=skipped)
    return _kept_in_place(fixed, made), report | {"skipped": skipped, "bad": bad}


def _kept_in_place(fixed: Fixed, state: TrainState) -> TrainState:
    """On a mesh, parameters and moments stay split as they came: else the next step would be another program."""
    mesh = fixed.model.execution.mesh
    if mesh is None:
        return state
    pair = (state.trainable, state.optimiser)
    x, moments = lax.with_sharding_constraint(pair, tree_shardings(mesh, fixed.model.config, pair))
    return state._replace(trainable=x, optimiser=moments)


def supervised(scores: Any, part: Part, totals: Any) -> tuple[Any, dict[str, Any]]:
    """The objective of supervised training: minus the mean log-probability of the tokens that count."""
    mean = lambda values: token_mean(values, part.mask, totals)
    return -mean(scores.log_probs), {"entropy": mean(scores.entropy)}


def policy_objective(plan: Plan) -> Objective:
    """The loss of a policy step: the policy's own, plus KL to the reference, minus entropy."""

    def objective(scores: Any, part: Part, whole: Any) -> tuple[Any, dict[str, Any]]:
        mask = part.mask
        loss, metrics = policy_loss(
            plan.loss, scores.log_probs, part.old, part.advantage, mask, whole,
            low=plan.epsilon_low, high=plan.epsilon_high, dual=plan.dual_clip, weights=part.weights,
        )  # fmt: skip
        bonus = entropy_bonus(scores.entropy, mask, whole)
        gap = token_mean(jnp.abs(scores.log_probs - part.sampled), mask, whole)
        metrics = metrics | {"entropy": -bonus, "gap": gap}
        if part.reference is not None:
            metrics |= kl_report(scores.log_probs, part.reference, mask, whole)
            loss += plan.kl * kl_loss(scores.log_probs, part.reference, mask, whole, plan.kl_estimator, part.old)
        return loss + plan.entropy * bonus, lax.stop_gradient(metrics)

    return objective


def _as_part(plan: Plan, fixed: Fixed, state: TrainState, seen: Experience) -> Part:
    """The batch as the gradient takes it, with the log-probabilities that do not depend on the update."""
    mask = seen.mask & seen.finished[:, None] if plan.mask_truncated else seen.mask
    once = lambda leaf: leaf.reshape(-1, plan.group, leaf.shape[1])[:, 0]
    part = Part(once(seen.prompts), once(seen.valid), seen.tokens, mask, seen.mask, seen.log_probs)
    if fixed.reference is not None:
        found = scores_in_parts(fixed.reference, part, plan.temperature, plan.micro).log_probs
        part = part._replace(reference=found)
    if plan.passes * plan.minibatches > 1:
        present = policy(fixed, state.trainable)
        part = part._replace(old=scores_in_parts(present, part, plan.temperature, plan.micro).log_probs)
    return part


def _answer(plan: Plan, state: TrainState, seen: Experience, part: Part) -> tuple[Any, Any, dict[str, Any]]:
    """The dual half: multipliers moved by this batch, the scales with it counted, and the tables of scores."""
    shape = (-1, plan.group)
    rewards = seen.rewards.reshape(shape)
    values = {name: value.reshape(shape) for name, value in (seen.values | _measured(plan, seen, part)).items()}
    costs = plan.constraints.costs(values, rewards.shape, seen.classes)
    idle = zero_variance(costs)
    held = plan.constraints.update(state.constraints, plan.constraints.violations(costs), idle)
    scales = update_scales(state.scales, rewards, costs, plan.scale_decay)
    price = plan.constraints.shown(held)
    advantage = _advantage(plan, rewards, costs, price, scales)
    return held, scales, {"rewards": rewards, "costs": costs, "advantage": lax.stop_gradient(advantage)}


def _advantage(plan: Plan, rewards: Any, costs: Any, price: Any, scales: Any) -> Any:
    """The advantage of each completion `(P, G)`: the forms of `advantages`, and the two that are not of a group."""
    if plan.advantage == "leave_one_out":
        priced = jnp.sum(price[:, None, None] * leave_one_out(costs), axis=0)
        return (leave_one_out(rewards) - priced) / (1 + jnp.sum(jnp.abs(price)))
    if plan.advantage == "batch":
        present = ~jnp.isnan(costs)
        mean = jnp.sum(jnp.where(present, costs, 0), (1, 2)) / jnp.maximum(jnp.sum(present, (1, 2)), 1)
        above = jnp.where(present, costs - mean[:, None, None], 0)
        return batch_normalise(rewards - jnp.sum(price[:, None, None] * above, axis=0), plan.scale_epsilon)
    return constrained_advantage(plan.advantage, rewards, costs, price, scales, eps=plan.scale_epsilon)


def _measured(plan: Plan, seen: Experience, part: Part) -> dict[str, Any]:
    """Costs that the trainer measures itself: tokens, and the log-ratio to the reference, of each completion."""
    found = {}
    for constraint in plan.constraints.given:
        if constraint.kind == "length":
            found[constraint.name] = jnp.sum(seen.mask, axis=1, dtype=jnp.float32)
        elif constraint.kind == "kl":
            found[constraint.name] = kl_cost(seen.log_probs, part.reference, seen.mask)
    return found


def _climb(plan: Plan, fixed: Fixed, state: TrainState, part: Part) -> tuple[Any, Any, dict[str, Any], Any]:
    """The primal half: `passes x minibatches` optimiser steps."""
    objective = policy_objective(plan)

    def one(carry: tuple[Any, Any], part: Part) -> tuple[Any, Any, dict[str, Any], Any]:
        x, moments = carry
        loss, found, metrics = gradient(fixed, x, part, objective, plan.temperature, plan.micro, plan.max_new)
        x, moments, size, fine = _update(plan.optimiser, x, moments, loss, found)
        return x, moments, metrics | {"loss": loss, "gradient_norm": size}, fine

    if plan.passes * plan.minibatches == 1:
        return one((state.trainable, state.optimiser), part)

    def body(carry: Any, part: Part) -> tuple[Any, Any]:
        x, moments, metrics, fine = one(carry, part)
        return (x, moments), (metrics, fine)

    parts = split_batch(part, plan.minibatches)
    parts = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * plan.passes), parts)
    (x, moments), (metrics, fine) = lax.scan(body, (state.trainable, state.optimiser), parts)
    return x, moments, jax.tree.map(jnp.mean, metrics), jnp.all(fine)


def _update(settings: OptimiserConfig, x: Any, moments: Any, loss: Any, found: Any) -> tuple[Any, Any, Any, Any]:
    """`(x', moments', |g|, whether all was finite)`; nothing moves where it was not."""
    size = optax.tree.norm(found)
    fine = jnp.isfinite(loss) & jnp.isfinite(size)
    updates, later = make_optimiser(settings).update(found, moments, x)
    return _choose(fine, optax.apply_updates(x, updates), x), _choose(fine, later, moments), size, fine


def _choose(flag: Any, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: a if a is b else jnp.where(flag, a, b), yes, no)


def _rollout_report(seen: Experience, part: Part) -> dict[str, Any]:
    """Lengths, ends, and rewards of the batch."""
    lengths = jnp.sum(seen.mask, axis=1, dtype=jnp.float32)
    present = ~jnp.isnan(seen.rewards)
    count = jnp.maximum(jnp.sum(present), 1)
    mean = jnp.sum(jnp.where(present, seen.rewards, 0)) / count
    spread = jnp.sqrt(jnp.sum(jnp.where(present, (seen.rewards - mean) ** 2, 0)) / count)
    return {
        "reward": mean, "reward_std": spread, "rewarded": jnp.mean(present, dtype=jnp.float32),
        "length": jnp.mean(lengths), "length_max": jnp.max(lengths),
        "truncated": jnp.mean(~seen.finished, dtype=jnp.float32), "tokens": jnp.sum(lengths),
        "advantage_max": jnp.max(jnp.abs(part.advantage)),
    }  # fmt: skip


def _score_report(plan: Plan, table: dict[str, Any], held: Any, scales: Any) -> dict[str, Any]:
    """A line for each constraint, and how many groups say nothing."""
    found = {"idle_groups": zero_variance(table["rewards"])}
    form = plan.advantage if plan.advantage in FORMS else "centred"
    price = effective_multipliers(form, plan.constraints.shown(held), scales, plan.scale_epsilon)
    for name, line in plan.constraints.report(held, table["costs"], price).items():
        found |= {f"constraint/{name}/{field}": value for field, value in line._asdict().items()}
    return found
