"""One training step: against a loop by hand, cut into parts, with a batch that is not finite, with y = 0."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pdopt.models.config import Mixture
from pdopt.models.decoder import Decoder, initialise
from pdopt.rules.saddle import respond
from pdopt.training.constraint_kinds import Constraint
from pdopt.training.constraints import Constraints
from pdopt.training.gradients import Part, gradient, scores_in_parts, split_batch, split_part, split_rows
from pdopt.training.objectives import LOSSES
from pdopt.training.state import Fixed
from pdopt.training.step import Plan, policy_objective, policy_step, supervised, supervised_step
from pdopt.types import Memory
from tests.training import tiny

pytestmark = pytest.mark.usefixtures("quick_compiles")

NONE = Constraints()
POLICY_LOSSES = [loss for loss in LOSSES if loss != "sft"]
LENGTH = Constraints((Constraint("length", "length", 2.0), Constraint("bad", "rate", 0.25)))


def plan(constraints=NONE, **changes):
    return Plan(constraints, tiny.OPTIMISER, tiny.GROUP, tiny.MAX_NEW, **{"loss": "grpo", **changes})


def step(constraints=NONE, reference=None, seen=None, **changes):
    seen = tiny.experience() if seen is None else seen
    return policy_step(plan(constraints, **changes), tiny.fixed(reference), tiny.state(constraints), seen)


def grouped(seen):
    """The batch, each prompt once."""
    return Part(seen.prompts[:: tiny.GROUP], seen.valid[:: tiny.GROUP], seen.tokens, seen.mask, seen.mask)


def leaves(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state.trainable)]


@pytest.fixture(scope="module")
def plain():
    return step()


def by_hand(params, seen):
    """Plain GRPO, written from its definition: float64 advantages, a loop over rows, autodiff of the whole logits."""
    rewards = np.asarray(seen.rewards, np.float64).reshape(-1, tiny.GROUP)
    deviation = rewards - rewards.mean(axis=1, keepdims=True)
    advantage = (deviation / (np.sqrt(((rewards - rewards.mean()) ** 2).mean()) + 0.01)).ravel()

    def objective(params):
        tokens = jnp.concatenate([seen.prompts, seen.tokens], axis=1)
        valid = jnp.concatenate([seen.valid, seen.mask], axis=1)
        logits = tiny.model().replace(params=params)(tokens, None, valid)
        logs = jax.nn.log_softmax(logits)[:, 2:-1]
        rows = []
        for i in range(tokens.shape[0]):
            count = int(np.asarray(seen.mask)[i].sum())
            lp = logs[i, np.arange(count), np.asarray(seen.tokens)[i, :count]]
            ratio = jnp.exp(lp - jax.lax.stop_gradient(lp))
            rows.append(-ratio * advantage[i])
        return jnp.mean(jnp.stack([row.mean() for row in rows]))

    return jax.jit(jax.value_and_grad(objective))(params)


def test_plain_grpo_is_the_loop_by_hand(plain):
    """The gradient's norm and the parameters after Adam; Adam's first step is the gradient's sign, so norms decide."""
    made, report = plain
    params = tiny.model().params
    loss, found = by_hand(params, tiny.experience())
    assert float(report["loss"]) == pytest.approx(float(loss), abs=1e-6)
    assert float(report["gradient_norm"]) == pytest.approx(float(optax.tree.norm(found)), rel=1e-4)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    updates, moments = tx.update(found, tx.init(params), params)
    ours, theirs = jax.tree.leaves(made.optimiser), jax.tree.leaves(moments)
    for mine, other in zip((x for x in ours if jnp.ndim(x)), (x for x in theirs if jnp.ndim(x)), strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-6)
    for mine, other in zip(leaves(made), jax.tree.leaves(optax.apply_updates(params, updates)), strict=True):
        assert np.mean(np.abs(mine - np.asarray(other)) < 1e-5) > 0.99  # Adam amplifies rounding at zero gradients


def test_multipliers_at_zero_change_no_bit(plain):
    still = Constraints(LENGTH.given, delay=1000)
    made, report = step(still, seen=tiny.experience({"bad": np.arange(8) % 2}))
    assert float(report["constraint/length/value"]) == pytest.approx(25 / 8)
    for mine, other in zip(leaves(made), leaves(plain[0]), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_constraints_move_by_the_one_saddle_step_before_the_policy(plain):
    seen = tiny.experience({"bad": np.arange(8) % 2})
    made, report = step(LENGTH, seen=seen)
    violation = np.array([(25 / 8 - 2) / 2, 0.5 - 0.25], np.float32)  # in units of max(1, limit)
    expected, _ = respond(LENGTH._parts(), jnp.zeros(2), violation, 1.0, Memory(dual=LENGTH.init().history))
    np.testing.assert_allclose(made.constraints.y, expected, rtol=1e-6)
    assert float(report["constraint/bad/multiplier"]) == pytest.approx(1.5)
    assert any(np.any(a != b) for a, b in zip(leaves(made), leaves(plain[0]), strict=True)), "y' is priced in at once"


@pytest.fixture(scope="module")
def cut():
    """`(number of a loss, rows at once) -> (loss, gradient)` by the step's own path; all losses in one program."""
    seen, reference = tiny.experience(), tiny.model(seed=1)
    fixed, params = tiny.fixed(), tiny.model().params
    part = grouped(seen)._replace(mask=seen.mask & (jnp.arange(8) != 3)[:, None])
    part = part._replace(
        sampled=seen.log_probs, old=seen.log_probs - 0.1 * jnp.sin(jnp.arange(32.0).reshape(8, 4)),
        reference=scores_in_parts(reference, part, 1.0, None).log_probs, advantage=jnp.sin(jnp.arange(8.0)),
    )  # fmt: skip
    objectives = [policy_objective(plan(loss=loss, kl=0.1, entropy=0.01)) for loss in POLICY_LOSSES]

    @partial(jax.jit, static_argnums=1)
    def found(number, micro):
        def objective(*given):
            return jax.lax.switch(number, [lambda one=one: one(*given)[0] for one in objectives]), {}

        return gradient(fixed, params, part, objective, 1.0, micro, tiny.MAX_NEW)[:2]

    return found


@pytest.mark.parametrize("loss", POLICY_LOSSES)
def test_parts_add_up_to_the_whole(loss, cut):
    """Four micro-batches of unequal lengths, one row without a token that counts."""
    number = POLICY_LOSSES.index(loss)
    (value, whole), (other, parts) = cut(number, 8), cut(number, 2)
    assert float(other) == pytest.approx(float(value), abs=1e-6)
    size = float(optax.tree.norm(whole))
    assert size > 1e-3
    for mine, theirs in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6 * max(1.0, size))


@pytest.mark.slow
def test_a_step_in_parts_is_the_step(plain):
    whole, report = plain
    parts, other = step(micro=2)
    for name in ("gradient_norm", "loss", "entropy"):
        assert float(other[name]) == pytest.approx(float(report[name]), rel=1e-5, abs=1e-6)
    for mine, theirs in zip(jax.tree.leaves(parts.optimiser), jax.tree.leaves(whole.optimiser), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_what_is_not_finite_is_skipped_and_counted():
    """An infinite reward, as a broken scorer on the devices could give: nothing moves, the next good step does."""
    seen = tiny.experience({"bad": np.zeros(8)}, rewards=np.where(np.arange(8) == 3, np.inf, 1.0))
    before = tiny.state(LENGTH)
    whole = lambda s: jax.tree.leaves((s.trainable, s.optimiser, s.constraints, s.scales))
    kept = [np.array(x) for x in whole(before)]
    made, report = policy_step(plan(LENGTH), tiny.fixed(), before, seen)
    for mine, other in zip(whole(made), kept, strict=True):
        np.testing.assert_array_equal(mine, other)
    assert (int(made.step), int(made.bad), int(made.skipped)) == (1, 1, 1)
    assert int(report["bad"]) == 1
    later, _ = policy_step(plan(LENGTH), tiny.fixed(), made, tiny.experience({"bad": np.zeros(8)}))
    assert (int(later.step), int(later.bad), int(later.skipped)) == (2, 0, 1)
    assert float(later.constraints.y[0]) > 0


@pytest.mark.slow
def test_a_reference_is_measured_and_held():
    """The reference is another model, so KL is not 0; both the budget and the loss term see it."""
    budget = Constraints((Constraint("kl", "kl", 0.5),))
    made, report = step(budget, reference=tiny.model(seed=1), kl=0.1, entropy=0.01, passes=2, minibatches=2)
    assert float(report["constraint/kl/value"]) > 0.5
    assert float(made.constraints.y[0]) > 0
    assert float(report["kl_k3"]) > 0
    assert int(made.optimiser[1].count) == 4, "passes x minibatches optimiser steps"
    assert 0.5 < float(report["ratio"]) < 1.5


def test_equal_rewards_move_multipliers_and_not_the_policy_part():
    """Rows 67 and 68: all groups equal, no constraint's price: the gradient is exactly 0."""
    made, report = step(seen=tiny.experience(rewards=np.ones(8)))
    assert float(report["gradient_norm"]) == 0
    assert float(report["idle_groups"]) == 1
    for mine, other in zip(leaves(made), jax.tree.leaves(tiny.model().params), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_supervised_steps_raise_the_probability_of_their_tokens():
    seen = tiny.experience()
    part = Part(seen.prompts, seen.valid, seen.tokens, seen.mask, seen.mask)
    state, losses = tiny.state(NONE), []
    for _ in range(5):
        state, report = supervised_step(tiny.OPTIMISER, tiny.fixed(), state, part)
        losses.append(float(report["loss"]))
    lp = np.where(seen.mask, seen.log_probs, 0)
    assert losses[0] == pytest.approx(-float(lp.sum() / seen.mask.sum()), rel=1e-5)
    assert losses[-1] < losses[0] - 0.1
    assert int(state.step) == 5


def test_rows_keep_their_device_when_they_are_cut():
    rows = jnp.arange(8)
    np.testing.assert_array_equal(split_rows(rows, 2), [[0, 2, 4, 6], [1, 3, 5, 7]])


def test_micro_batches_take_as_much_of_a_group_as_fits():
    """Three prompts, groups of four: whole groups, halves, and prompts side by side where two devices share rows."""
    from pdopt.models.sharding import make_mesh

    rows, prompts = jnp.arange(12)[:, None], jnp.arange(3)[:, None]
    part = Part(prompts, prompts == prompts, rows, rows >= 0, rows >= 0)
    two = split_part(part, 2)
    np.testing.assert_array_equal(two.tokens[..., 0], np.arange(12).reshape(6, 2))
    np.testing.assert_array_equal(two.prompts[..., 0], [[0], [0], [1], [1], [2], [2]])
    six = split_part(part, 6)
    np.testing.assert_array_equal(six.tokens[..., 0], [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]])
    np.testing.assert_array_equal(six.prompts[..., 0], [[0, 1, 2]] * 2)
    mesh = make_mesh(2, 1, 1, jax.devices()[:2])
    four = split_part(part._replace(prompts=prompts[:2], valid=part.valid[:2]), 4, mesh)
    assert four.prompts.shape == (3, 2, 1), "on each of two devices, two completions of a prompt of its own"


def test_minibatches_are_every_nth_row():
    rows, prompts = jnp.arange(8)[:, None], jnp.arange(2)[:, None]
    part = Part(prompts, prompts >= 0, rows, rows >= 0, rows >= 0)
    two, eight = split_batch(part, 2), split_batch(part, 8)
    np.testing.assert_array_equal(two.tokens[..., 0], [[0, 2, 4, 6], [1, 3, 5, 7]])
    np.testing.assert_array_equal(two.prompts[..., 0], [[0, 1], [0, 1]])
    np.testing.assert_array_equal(eight.prompts[..., 0], [[0]] * 4 + [[1]] * 4)


def test_scores_in_parts_come_back_in_order():
    seen = tiny.experience()
    for micro in (2, 8):
        found = scores_in_parts(tiny.model(), grouped(seen), 1.0, micro).log_probs
        np.testing.assert_allclose(np.where(seen.mask, found, 0), seen.log_probs, atol=1e-5)


def test_the_supervised_objective_counts_only_its_mask():
    from pdopt.models.log_probs import TokenScores
    from pdopt.training.objectives import totals

    mask = jnp.array([[True, False]])
    scores = TokenScores(jnp.array([[-1.0, jnp.nan]]), jnp.array([[0.5, jnp.nan]]))
    loss, metrics = supervised(scores, Part(None, None, None, mask, mask), totals(mask, 2))
    assert (float(loss), float(metrics["entropy"])) == (1.0, 0.5)


@pytest.mark.slow
def test_experts_are_trained_and_parts_add_up():
    """The router has a gradient, and no token is dropped for its company in a micro-batch."""
    config = dataclasses.replace(tiny.CONFIG, experts=Mixture(count=4, top=2, hidden=16))
    params, seen = initialise(config, jax.random.key(0)), tiny.experience()
    part = Part(seen.prompts, seen.valid, seen.tokens, seen.mask, seen.mask)
    one, two = (gradient(Fixed(Decoder(None, config)), params, part, supervised, 1.0, micro)[1] for micro in (8, 2))
    assert float(optax.tree.norm(one["layers"]["experts"]["router"])) > 0
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
