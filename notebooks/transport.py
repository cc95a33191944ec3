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
# # Moving mass
#
# Optimal transport moves the masses `a` to the masses `b` at least cost:
#
#     min_T  <C, T> + R(T)        T 1 = a,   T'1 = b,   T >= 0
#
# The multipliers of the two marginals are the **potentials** `f` and `g`, prices: `(f, g) = d value / d(a, b)`.
# What `R` is decides what the plan looks like: entropy spreads it, a quadratic gives it zeros, and a bound on the
# entries of each column keeps it as sparse as you like. All are solved by the same step, with the plan as the exact
# answer to the present prices.

# %%
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits, load_sample_images

import pdopt

# %% [markdown]
# ## Colour transfer
#
# Two photographs that come with scikit-learn. A few hundred pixels of each stand for its colours; the cost of moving a
# colour is the squared distance in RGB. `SqEuclidean` makes it block by block and never stores it.

# %%
china, flower = (image[::4, ::4] / 255.0 for image in load_sample_images().images)
rng = np.random.default_rng(0)
pixels = [image.reshape(-1, 3) for image in (china, flower)]
sources, targets = (p[rng.choice(len(p), 400, replace=False)].astype(np.float32) for p in pixels)
cost = pdopt.SqEuclidean(jnp.asarray(sources), jnp.asarray(targets))
print("colours:", cost.shape, "  mean cost:", f"{float(cost.mean()):.3f}")

entropic = pdopt.solve(pdopt.Transport(cost, regulariser=pdopt.Entropy(0.01 * float(cost.mean()))))
print(entropic.reason, "after", int(entropic.iterations), "sweeps; value", f"{float(entropic.objective):.4f}")

# %% [markdown]
# Each source colour goes to the mean of where its mass goes, and each pixel of the photograph follows the source colour
# nearest to it.


# %%
def recoloured(image, plan):
    mass = plan.matvec(jnp.ones(len(targets)))
    moved = jnp.stack([plan.matvec(jnp.asarray(targets[:, c])) for c in range(3)], axis=1) / mass[:, None]
    flat = image.reshape(-1, 3)
    near = ((flat[:, None] - sources) ** 2).sum(-1).argmin(1)
    shift = np.asarray(moved) - sources
    return np.clip(flat + shift[near], 0, 1).reshape(image.shape)


figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
pictures = (china, flower, recoloured(china, entropic.x))
for ax, picture, title in zip(axes, pictures, ("china", "flower", "china in the colours of the flower")):
    ax.imshow(picture)
    ax.set_title(title)
    ax.axis("off")
plt.show()

# %% [markdown]
# ## Sparse plans
#
# The same two clouds, 60 colours each, under four regularisers. Entropy uses every entry (what is white underflows in
# float32); the quadratic has exact zeros; `KSparse(gamma, k)` allows k entries in each column.
#
# Where k is in the way there is something to know: no k-sparse plan answers any prices with the right row sums. The
# optimum is a **mixture** of k-sparse columns, which has a few entries more. pdopt returns both, the mixture as
# `solution.x`, feasible to the tolerance, and one k-sparse plan in the certificate, with its own row error.

# %%
C = np.asarray(((sources[:60, None] - targets[None, :60]) ** 2).sum(-1))
gamma = float(C.mean())
rules = {
    "entropy": pdopt.Entropy(0.02 * gamma),
    "quadratic": pdopt.Quadratic(gamma),
    "k = 2": pdopt.KSparse(gamma, 2),
    "k = 1": pdopt.KSparse(gamma, 1),
}
solutions = {name: pdopt.solve(pdopt.Transport(C, regulariser=rule)) for name, rule in rules.items()}
print(f"{'':10s} {'status':8s} steps  <C, T>   rows open  entries a column   k-sparse plan: rows open")
for name, solution in solutions.items():
    T = np.asarray(solution.x.todense())
    rows = np.abs(T.sum(1) - 1 / 60).sum()
    alone = f"{float(solution.certificate.plan_error):.3f}" if name.startswith("k") else ""
    line = f"{name:10s} {solution.reason!s:8s} {int(solution.iterations):5d}  {(C * T).sum():.5f}  {rows:.1e}"
    print(line, f"{(T > 0).sum(0).mean():15.2f}", f"{alone:>22s}")
    assert solution.reason is pdopt.Status.OPTIMAL

# %%
order, across = sources[:60].sum(1).argsort(), targets[:60].sum(1).argsort()  # by brightness
figure, axes = plt.subplots(1, 4, figsize=(13, 3.5), sharex=True, sharey=True, layout="constrained")
for ax, (name, solution) in zip(axes, solutions.items()):
    T = np.asarray(solution.x.todense())[order][:, across]
    ax.imshow(np.where(T > 0, T, np.nan), cmap="viridis", vmin=0, vmax=1 / 60)
    ax.set_title(f"{name}: {(T > 0).sum()} entries")
    ax.set_xlabel("colours of the flower")
axes[0].set_ylabel("colours of china")
plt.show()

# %% [markdown]
# ## Prices
#
# The derivative of the value is free: `d/da = f`, `d/db = g`, `d/dC = T` (envelope theorem). A little mass moved from
# one source to another changes the value by the difference of their potentials.

# %%
quadratic = solutions["quadratic"]
first, second = 3, 17
step = 1e-3
a = np.full(60, 1 / 60, np.float32)
a[first] += step
a[second] -= step
changed = pdopt.solve(pdopt.Transport(C, a, np.full(60, 1 / 60, np.float32), rules["quadratic"]), start=quadratic)
slope = float(quadratic.y.f[first] - quadratic.y.f[second])
print("by the potentials:", f"{slope:.3f}", "  by solving again:", end=" ")
print(f"{float(changed.objective - quadratic.objective) / step:.3f}", f"({int(changed.iterations)} steps, warm)")

# %% [markdown]
# ## Distances between digits
#
# A picture of a digit is a histogram on an 8 x 8 grid. Many pairs at one cost are one batch: `pairwise`. Digits of one
# class are near to each other; the nearest other picture is nearly always of the same class.

# %%
digits = load_digits()
chosen = np.concatenate([np.flatnonzero(digits.target == digit)[:4] for digit in range(10)])
images = digits.images[chosen].reshape(40, 64).astype(np.float32)
masses = images / images.sum(1, keepdims=True)
grid = np.stack(np.meshgrid(np.arange(8), np.arange(8), indexing="ij"), -1).reshape(64, 2)
ground = (((grid[:, None] - grid) ** 2).sum(-1) / 49).astype(np.float32)
problem = pdopt.Transport(ground, regulariser=pdopt.Entropy(0.02 * float(ground.mean())))
i, j = np.triu_indices(40)
found = pdopt.pairwise(problem, jnp.asarray(masses[i]), jnp.asarray(masses[j]))
raw = np.zeros((40, 40))
raw[i, j] = raw[j, i] = np.asarray(found.objective)
distance = raw - (raw.diagonal()[:, None] + raw.diagonal()) / 2  # the divergence: 0 between equal pictures
print(len(i), "pairs;", int((np.asarray(found.status) == pdopt.Status.OPTIMAL).sum()), "to the tolerance")
others = distance + np.diag(np.full(40, np.inf))
labels = digits.target[chosen]
print("nearest picture of the same class:", f"{(labels[others.argmin(1)] == labels).mean():.0%}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", width_ratios=(1, 1.3))
shown = left.imshow(np.sqrt(np.maximum(distance, 0)), cmap="magma")
left.set_xticks(np.arange(1.5, 40, 4), range(10))
left.set_yticks(np.arange(1.5, 40, 4), range(10))
left.set_title("Wasserstein distances of 40 digits, by class")
figure.colorbar(shown, ax=left, shrink=0.8)
number = 13
near = np.argsort(others[number])[:5]
strip = np.concatenate([images[k].reshape(8, 8) for k in (number, *near)], axis=1)
right.imshow(strip, cmap="gray_r")
right.set_xticks(4 + 8 * np.arange(6) - 0.5, ["digit", *(f"{np.sqrt(max(others[number, k], 0)):.2f}" for k in near)])
right.set_yticks([])
right.set_title("a digit, its five nearest, and how far they are")
plt.show()

# %% [markdown]
# ## What was learnt
#
# - **The regulariser makes the plan**: entropy leaves no entry at 0, a quadratic leaves few, k-sparse columns as many
#   as they are allowed, and a mixture of them a few more.
# - **A plan that is k-sparse and one that is feasible are two plans** where k is in the way; the row error of each says
#   which is which, and the dual objective bounds both from below.
# - **Prices are derivatives**, so a changed problem starts from the old potentials and ends after a few steps.
