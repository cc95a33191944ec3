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
# # Prices that learn
#
# Requests arrive one at a time; each wants some of a few resources that must last until the end. Nobody knows who will
# come. **Dual mirror descent** keeps one price a resource and does two things a request:
#
#     x_t = argmax_x  reward_t(x) - <y, consumption_t(x)>        answer the request at the present prices
#     y   = move(y, consumption_t(x_t) - rate, step)             raise what was used too fast, lower the rest
#
# It is the saddle step of `pdopt/rules/saddle.py` with theta = 0 on a stream. With steps of order 1/sqrt(T) its regret
# is O(sqrt T) when requests are independent (Balseiro, Lu, Mirrokni, arXiv 2011.10124).

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import pdopt

# %% [markdown]
# ## A network of ten flights
#
# Fifty kinds of customers, each wanting seats on some of ten flights at some fare; seats for half of the mean demand.

# %%
rng = np.random.default_rng(0)
seats = (rng.random((50, 10)) < 0.3) * 1.0
seats[seats.sum(1) == 0, 0] = 1
fares, shares = rng.uniform(1, 10, 50), rng.dirichlet(np.ones(50))
float32 = np.float32
network = pdopt.Allocation(
    pdopt.RevenueManagement(fares.astype(float32), seats.astype(float32), shares.astype(float32)),
    (0.5 * shares @ seats).astype(float32),
)
fluid = pdopt.offline(network, tolerance=1e-5)
print(f"fluid optimum a step: {fluid.value:.4f}")
print("its prices:", np.asarray(fluid.multipliers).round(2))

# %% [markdown]
# ## Prices over time
#
# The requests are drawn inside the compiled loop and only sums are kept; snapshots are asked for.

# %%
path = pdopt.simulate(network, pdopt.MirrorDescent(), jax.random.key(0), horizon=20_000, record_every=100)
figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
for place, colour in enumerate(plt.cm.viridis(np.linspace(0, 0.95, 10))):
    axis.plot(path.snapshots.steps, path.snapshots.multipliers[0, :, place], color=colour, linewidth=1)
    axis.axhline(fluid.multipliers[place], color=colour, linestyle="--", linewidth=0.8)
axis.set(xlabel="request", ylabel="price", title="Ten prices on one path; dashes: prices of the fluid program")
plt.show()
print("seats sold:", np.asarray(path.consumption[0], int))
print("seats:     ", np.asarray(path.budget, int))
assert (np.asarray(path.consumption) <= np.asarray(path.budget)).all()

# %% [markdown]
# ## Regret on log axes
#
# Regret is what a path earned less than a *certificate* of the same requests: here the linear program that knows them
# all, solved by pdopt, and reported as the dual function at its prices, which no policy can beat.

# %%
horizons, means = np.array([100, 400, 1600]), []
for horizon in horizons:
    requests = pdopt.sample(network.stream, jax.random.key(1), horizon=int(horizon), paths=32)
    bound = pdopt.offline(network, requests, kind="hindsight", tolerance=1e-4)
    found = pdopt.simulate(network, pdopt.MirrorDescent(), None, horizon=int(horizon), paths=32, requests=requests)
    means.append(np.mean(horizon * np.asarray(bound.value) - np.asarray(found.reward)))
slope, height = np.polyfit(np.log(horizons), np.log(means), 1)
figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
axis.loglog(horizons, means, "o", color="#0072B2")
axis.loglog(horizons, np.exp(height) * horizons**slope, color="#0072B2", label=f"fit: T^{slope:.2f}")
axis.set(xlabel="horizon T", ylabel="mean regret of 32 paths", title="Regret grows like sqrt T")
axis.legend()
plt.show()
print(f"exponent {slope:.2f}")
assert 0.3 <= slope <= 0.6

# %% [markdown]
# ## The geometry matters
#
# The same stream by three moves; the step is a pure number over sqrt(T) in units that the problem gives.

# %%
moves = {"entropy / rate": pdopt.Entropic(scale="rate"), "Euclidean": pdopt.Euclidean(), "sign": pdopt.Sign()}
for name, move in moves.items():
    found = pdopt.simulate(network, pdopt.MirrorDescent(move=move), jax.random.key(2), horizon=5000, paths=16)
    lost = 1 - np.mean(found.reward) / (5000 * fluid.value)
    first = np.mean(found.stopping_time)
    print(f"{name:15s} below the fluid optimum: {100 * lost:.2f} %, first refusal at {first:.0f}")

# %% [markdown]
# ## An adversary
#
# Low fares first, enough to fill the plane, then high ones. No online policy can earn more than a share of the optimum;
# this one is promised `1/alpha - O(1/sqrt T)` of it, alpha = largest consumption / rate = 2.

# %%
low, high = (pdopt.RevenueManagement([fare], [[1.0]], [1.0]) for fare in (1.0, 5.0))
trap = pdopt.Allocation(pdopt.Phases(low, high, start=1000), 0.5)
found = pdopt.simulate(trap, pdopt.MirrorDescent(move=pdopt.Euclidean(), stepsize=1 / np.sqrt(2000)), jax.random.key(0),
                       horizon=2000, start=0.0)  # fmt: skip
print(f"share of the optimum: {float(found.reward[0]) / 5000:.2f}")
assert float(found.reward[0]) / 5000 > 0.4

# %% [markdown]
# ## What was learnt
#
# - **Prices are multipliers.** They rise while a resource is used faster than its rate and settle near those of the
#   program that knows the distribution, without knowing it.
# - **The action that moves them is the one wanted**, not the one the budget allowed; the budget stands outside.
# - **Divide by the rate.** The entropy scaled by the rate makes one step fit resources of all sizes.
# - **A bound must come from elsewhere.** Regret is measured against a certificate of the requests, never against the
#   prices of the run itself.
