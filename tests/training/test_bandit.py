"""The constrained bandit whose answer is known: advantages, constraints and the saddle step together.

Two prompts, six actions a, reward spreads 1.0 and 0.1, cost `(a/5)^2`, E[cost] <= 0.3, entropy weight 0.02. The exact
policy is `pi ~ exp((r - y c) / 0.02)`, with y found by bisection.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pdopt.geometry import Euclidean, Orthant
from pdopt.rules.saddle import Parts, advance, respond, saddle_step
from pdopt.rules.signals import Averaged, Chain, Extrapolated, Raw
from pdopt.training.advantages import constrained_advantage, effective_multipliers, init_scales, update_scales
from pdopt.training.constraints import Constraint, Constraints
from pdopt.types import Memory, Pair

ACTIONS = np.arange(6) / 5
REWARD = np.outer([1.0, 0.1], ACTIONS).astype(np.float32)
COST = (ACTIONS**2).astype(np.float32)
LIMIT, WEIGHT = 0.3, 0.02


def exact():
    """(multiplier, reward, objective): E[cost] falls with y, so bisection finds E[cost] = limit."""

    def policy(y):
        z = (REWARD.astype(float) - y * COST) / WEIGHT
        p = np.exp(z - z.max(1, keepdims=True))
        return p / p.sum(1, keepdims=True)

    low, high = 0.0, 100.0
    for _ in range(100):
        y = (low + high) / 2
        low, high = (y, high) if (policy(y) @ COST).mean() > LIMIT else (low, y)
    p = policy(y)
    entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(1).mean()
    reward = (p * REWARD).sum(1).mean()
    return y, reward, reward + WEIGHT * entropy


def test_the_exact_answer_is_the_one_of_the_specification():
    y, reward, objective = exact()
    assert (y, reward, objective) == pytest.approx((0.665, 0.3805, 0.3974), abs=5e-4)


# --- sampled training -------------------------------------------------------------------------------------------------

GROUPS, SIZE = 32, 8
PROMPT = np.arange(GROUPS) % 2


class State(NamedTuple):
    """The policy's logits, what holds the constraint, the running scales."""

    logits: jax.Array
    held: object
    scales: object


def constraint(**settings):
    return Constraints((Constraint("cost", "mean", LIMIT),), **settings)


def one_step(form, held_by, rate, state, key):
    """respond, then advance, on one batch; returns what the exact policy is worth after it."""
    lp = jax.nn.log_softmax(state.logits)
    actions = jax.random.categorical(key, lp[PROMPT][:, None], shape=(GROUPS, SIZE))
    rewards, cost = jnp.asarray(REWARD)[PROMPT[:, None], actions], jnp.asarray(COST)[actions]
    costs = held_by.costs({"cost": cost}, (GROUPS, SIZE))
    scales = update_scales(state.scales, rewards, costs)
    held = held_by.update(state.held, held_by.violations(costs))
    y = held_by.shown(held)
    advantage = constrained_advantage(form, rewards, costs, y, scales)
    weight = WEIGHT / scales.deviations()[0] / (1 + jnp.sum(y)) if form == "lagrangian" else WEIGHT

    def loss(logits):
        lp = jax.nn.log_softmax(logits)
        taken = lp[PROMPT[:, None], actions]
        return -jnp.mean(advantage * taken) + weight * jnp.mean(jnp.sum(jnp.exp(lp) * lp, axis=1))

    logits = state.logits - rate * jax.grad(loss)(state.logits)
    lp = jax.nn.log_softmax(logits)
    p = jnp.exp(lp)
    worth = [jnp.mean(jnp.sum(x, axis=1)) for x in (p * REWARD, p * COST, -p * lp)]
    return State(logits, held, scales), jnp.stack([*worth, effective_multipliers(form, y, scales)[0]])


@partial(jax.jit, static_argnames=("form", "seeds", "steps"))
def train(form, held_by, seeds, steps, rate=0.3):
    """(seeds, steps, 4): reward, cost, entropy of the exact policy and the multiplier in raw units."""

    def run(seed):
        start = State(jnp.zeros((2, 6)), held_by.init(), init_scales(1))
        keys = jax.random.split(jax.random.key(seed), steps)
        return jax.lax.scan(partial(one_step, form, held_by, rate), start, keys)[1]

    return jax.vmap(run)(jnp.arange(seeds))


def summary(trace, last):
    """Means over the last steps, for each seed: reward, cost, multiplier, objective."""
    reward, cost, entropy, y = np.moveaxis(np.asarray(trace, float)[:, -last:].mean(1), -1, 0)
    return reward, cost, y, reward + WEIGHT * entropy


def test_the_lagrangian_form_finds_the_optimum_and_the_multiplier():
    """Fewer seeds and steps than the table below; the same bounds: 0.01 of the objective, 5 % of the multiplier."""
    y, _, objective = exact()
    _, cost, found, worth = summary(train("lagrangian", constraint(step=0.05, signal=Raw()), 3, 2000, rate=1.2), 500)
    np.testing.assert_allclose(worth, objective, atol=0.01)
    np.testing.assert_allclose(found, y, rtol=0.05)
    np.testing.assert_allclose(cost, LIMIT, atol=0.01)


@pytest.mark.slow
def test_the_three_forms_over_eight_seeds(capsys):
    """Only the Lagrangian finds the optimum. The other two depend on eps, which decides what a group that has almost
    collapsed weighs. Measured objective and multiplier (exact: 0.3974, 0.665), seeds 0 to 7:

        eps 0.01   lagrangian 0.3977, 0.656   joint 0.4003, 0.779 at cost 0.320   separate 0.3654, 1.43 at cost 0.276
        eps 1e-6                              joint 0.3836, 0.768 at cost 0.296   separate 0.3056, 2.67 at cost 0.309
    """
    y, _, objective = exact()
    lines, rows = [], {}
    for form in ("lagrangian", "joint", "separate"):
        rows[form] = summary(train(form, constraint(step=0.02, signal=Raw()), 8, 6000), 1500)
        lines.append(form.ljust(12) + "  ".join(f"{x.mean():.4f} +- {x.std():.4f}" for x in rows[form]))
    with capsys.disabled():
        print("\nform        reward             cost               multiplier         objective", *lines, sep="\n")
    _, cost, found, worth = rows["lagrangian"]
    np.testing.assert_allclose(worth, objective, atol=0.01)
    np.testing.assert_allclose(found, y, rtol=0.05)
    np.testing.assert_allclose(cost, LIMIT, atol=0.01)
    # Each prompt trades at a price of its own: feasible, and at a loss.
    assert rows["separate"][1].mean() < LIMIT
    assert rows["separate"][3].mean() < objective - 0.02


@pytest.mark.slow
def test_extrapolation_damps_and_an_average_takes_its_noise(capsys):
    """Dual step 0.1: the largest cost after step 100, and the time above 0.33, fall with theta."""
    found = {}
    signals = {f"theta {theta:g}": Extrapolated(theta) for theta in (0.0, 2.0, 5.0, 20.0)}
    signals["theta 20, averaged"] = Chain((Averaged(0.9), Extrapolated(20.0)))
    for name, signal in signals.items():
        trace = np.asarray(train("lagrangian", constraint(step=0.1, signal=signal), 8, 6000))[:, 100:]
        found[name] = trace[..., 1].max(1).mean(), (trace[..., 1] > 0.33).mean(), trace[:, -1500:, 3].std(1).mean()
    with capsys.disabled():
        print("\n                     largest cost, time above 0.33, std of the multiplier")
        for name, (largest, above, std) in found.items():
            print(name.ljust(20), f"{largest:.3f}  {100 * above:.1f} %  {std:.3f}")
    assert found["theta 0"][0] > found["theta 5"][0] > found["theta 20"][0]
    assert found["theta 0"][1] > found["theta 5"][1] > found["theta 20"][1]
    assert found["theta 20, averaged"][2] < found["theta 20"][2]


# --- the trainer's order is the saddle step's -------------------------------------------------------------------------

TABLE_R = np.linspace(0, 1, 6).astype(np.float32)
TABLE_C = (np.linspace(0, 1, 6) ** 2).astype(np.float32)
ADAM = optax.adam(0.05)


NOISE = np.random.default_rng(0).gumbel(size=(402, 64, 6)).astype(np.float32)


def draw(logits, t):
    """64 actions of the policy with the noise of step t: the same whenever it is asked for."""
    return jnp.argmax(logits + jnp.asarray(NOISE)[t], axis=1)


def violation(x, t):
    return jnp.mean(jnp.asarray(TABLE_C)[draw(x[0], t)], keepdims=True) - LIMIT


def primal(x, y, memory):
    """One Adam step on the batch that the present policy draws with the noise of the step, which the memory counts."""
    logits, optimiser = x
    actions = draw(logits, memory.primal)
    score = jnp.asarray(TABLE_R)[actions] - y[0] * jnp.asarray(TABLE_C)[actions]
    advantage = score - jnp.mean(score)
    slope = jax.grad(lambda logits: -jnp.mean(advantage * jax.nn.log_softmax(logits)[actions]))(logits)
    change, optimiser = ADAM.update(slope, optimiser, logits)
    return (optax.apply_updates(logits, change), optimiser), memory._replace(primal=memory.primal + 1)


def test_respond_then_advance_has_the_bits_of_the_saddle_step():
    """400 scanned steps, theta 0.5: the solver's order, the trainer's order, and the trainer's with `Constraints`."""
    step, signal = 0.2, Extrapolated(0.5, start="zero")
    held_by = constraint(step=step, signal=signal)
    parts = Parts(primal, violation, Euclidean(Orthant()), 0.0, signal)
    logits = jnp.zeros(6)
    x, y = (logits, ADAM.init(logits)), jnp.zeros(1)
    memory = Memory(primal=jnp.asarray(0, jnp.int32), dual=signal.init(y))

    def solver(carry, _):
        pair, memory = saddle_step(parts, step, *carry)
        return (pair, memory), (pair.x[0], pair.y)

    def trainer(carry, _):
        pair, memory = carry
        y, memory = respond(parts, pair.y, pair.x, step, memory)
        x, memory = advance(parts, Pair(pair.x, y), memory)
        return (Pair(x, y), memory), (x[0], y)

    def constrained(carry, _):
        pair, memory, held = carry
        held = held_by.update(held, violation(pair.x, memory.primal))
        x, memory = advance(parts, Pair(pair.x, held_by.shown(held)), memory)
        return (Pair(x, held.y), memory, held), (x[0], held.y)

    run = jax.jit(lambda body, start: jax.lax.scan(body, start, None, 400)[1], static_argnums=0)
    first, later = jax.jit(lambda: respond(parts, y, x, step, memory))()  # the solver starts half a beat later
    expected = run(solver, (Pair(x, first), later))
    for body, start in ((trainer, (Pair(x, y), memory)), (constrained, (Pair(x, y), memory, held_by.init()))):
        logits, ys = run(body, start)
        np.testing.assert_array_equal(logits, expected[0])
        np.testing.assert_array_equal(ys[1:], expected[1][:-1])
    without = run(solver, (Pair(x, y), memory))
    assert np.abs(without[0] - expected[0]).max() > 0.1
    assert 0 < ys.max() < math.inf
