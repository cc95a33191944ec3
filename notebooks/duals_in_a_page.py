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
# # Duals in a page
#
# Constrained problems are games: `x` minimises the Lagrangian `L(x, y) = f(x) + <y, v(x)>`, the multipliers `y`
# maximise it. `v` is the **violation**, positive where a constraint is broken; `y` is its **price**. Every method in
# pdopt is one step on the pair, written once, in `pdopt/rules/saddle.py`:
#
#     x'   = primal(x, y)                    advance: x answers the present prices
#     seen = x' + theta (x' - x)             respond: look ahead by theta,
#     y'   = move(y, violation(seen), step)           and move the prices inside their set
#
# What differs between methods is which functions are passed in. Here are four of them on a problem with two variables
# and two inequalities, so that both `x` and `y` can be drawn in a plane.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import pdopt
from pdopt.geometry import Entropic, Euclidean, Orthant
from pdopt.rules.saddle import row, saddle_step

# %% [markdown]
# ## The problem
#
#     minimise (x - a)'Q(x - a)/2    subject to    G x <= h
#
# The unconstrained minimiser `a` breaks both rows. At the solution both are tight, and `y = (1.85, 0.55)` says what
# each costs: the pull of `f` is held exactly, `grad f(x) + G'y = 0`.

# %%
Q = jnp.array([[2.0, 0.5], [0.5, 1.0]])
a = jnp.array([1.6, 1.2])
G = jnp.array([[1.0, 1.0], [1.0, -1.0]])
h = jnp.array([1.0, 0.2])

f = lambda x: (x - a) @ Q @ (x - a) / 2
violation = lambda x: G @ x - h

x_best = jnp.linalg.solve(G, h)
y_best = -jnp.linalg.solve(G.T, Q @ (x_best - a))
print("x* =", x_best, "  y* =", y_best)

# %% [markdown]
# ## Four settings of one step
#
# **Dual ascent**: `x` is the exact minimiser of the Lagrangian, `y` takes a projected gradient step. The gradient of
# the dual function is the violation, and its Lipschitz constant is `|G Q^-1 G'|`: one over it is a safe step.

# %%
minimiser = lambda x, y: jnp.linalg.solve(Q, Q @ a - G.T @ y)  # argmin f(x) + y'(G x - h)
L = float(jnp.linalg.norm(G @ jnp.linalg.solve(Q, G.T), 2))
dual_ascent = row(minimiser, violation, Euclidean(Orthant()), theta=0)

# %% [markdown]
# **Mirror descent** (on the dual): the same `primal`, another geometry for `y`. The entropic move multiplies, `y
# exp(step v)`, so a price never reaches 0 and never needs a projection.

# %%
mirror_descent = row(minimiser, violation, Entropic(Orthant()), theta=0)

# %% [markdown]
# **Augmented Lagrangian**: `x` minimises `f` plus a penalty, which is the Moreau envelope of the move. Its gradient
# is the moved multiplier `max(0, y + rho v(x))`, so `x` answers the prices that are about to be set, and `y` then
# moves with step rho. The inner problem is piecewise quadratic: a few Newton steps solve it.

# %%
rho = 2.0
move = Euclidean(Orthant())


def augmented_minimiser(x, y):
    augmented = lambda x: f(x) + move.penalty(y, violation(x), rho)
    for _ in range(6):
        x = x - jnp.linalg.solve(jax.hessian(augmented)(x), jax.grad(augmented)(x))
    return x


augmented_lagrangian = row(augmented_minimiser, violation, move, theta=0)

# %% [markdown]
# **PDHG**: `x` takes one proximal step of length tau instead of minimising, and theta = 1 shows the prices where `x` is
# going. Safe for `tau sigma |G|^2 <= 1`.

# %%
tau = sigma = 0.99 / float(jnp.linalg.norm(G, 2))
proximal = lambda x, y: jnp.linalg.solve(Q + jnp.eye(2) / tau, Q @ a - G.T @ y + x / tau)
pdhg = row(proximal, violation, Euclidean(Orthant()), theta=1)

# %% [markdown]
# ## One loop for all four
#
# The start is the same too (the entropic move needs positive prices, so all begin at `y = (0.2, 1.5)`).


# %%
@partial(jax.jit, static_argnums=(0, 3))
def run(parts, step, start, steps=60):
    def one(pair, _):
        pair, _ = saddle_step(parts, step, pair)
        return pair, pair

    pairs = jax.lax.scan(one, start, None, steps)[1]
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start, pairs)


start = pdopt.Pair(jnp.array([-0.6, 1.4]), jnp.array([0.2, 1.5]))
methods = {
    "dual ascent": (dual_ascent, 1 / L),
    "mirror descent": (mirror_descent, 0.6 / L),
    "augmented Lagrangian": (augmented_lagrangian, rho),
    "PDHG": (pdhg, sigma),
}
paths = {name: run(parts, step, start) for name, (parts, step) in methods.items()}
for name, path in paths.items():
    print(f"{name:22s} after 60 steps: x = {path.x[-1]}, y = {path.y[-1]}")

# %% [markdown]
# ## The pictures
#
# Above: `x` over the level lines of `f`; the shaded half-planes are forbidden, the square is the start, the star the
# solution. Below: `y` over the level lines of the dual function `d(y) = min_x L(x, y)`, which every method climbs in
# its own way.

# %%
colours = dict(zip(methods, ("#0072B2", "#E69F00", "#009E73", "#CC79A7")))  # Okabe and Ito: safe for colour blindness


def dual(y):
    x = minimiser(None, y)
    return f(x) + y @ violation(x)


def levels(ax, function, across, up, count=14):
    p, q = jnp.meshgrid(jnp.linspace(*across, 120), jnp.linspace(*up, 120))
    values = jax.vmap(jax.vmap(function))(jnp.stack([p, q], -1))
    ax.contour(p, q, values, count, colors="0.75", linewidths=0.7, zorder=1)
    return p, q


figure, axes = plt.subplots(2, 4, figsize=(13, 6.6), sharex="row", sharey="row", layout="constrained")
for (name, path), (above, below) in zip(paths.items(), axes.T):
    p, q = levels(above, f, (-1.0, 2.4), (-0.2, 3.4))
    for k in (0, 1):
        broken = G[k, 0] * p + G[k, 1] * q > h[k]
        above.contourf(p, q, broken, levels=[0.5, 1.5], colors="0.5", alpha=0.13, zorder=0)
    levels(below, dual, (0.0, 3.0), (0.0, 2.0))
    for ax, points, best in ((above, path.x, x_best), (below, path.y, y_best)):
        ax.plot(*np.asarray(points).T, "-o", color=colours[name], markersize=3, linewidth=1.2, zorder=3)
        ax.plot(*best, "*", color="black", markersize=13, zorder=4)
        ax.plot(*points[0], "s", color=colours[name], markersize=6, zorder=4)
    above.set_title(name)
    above.set_xlabel("$x_1$")
    below.set_xlabel("$y_1$")
axes[0, 0].set_ylabel("$x_2$")
axes[1, 0].set_ylabel("$y_2$")
plt.show()

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), sharex=True, sharey=True, layout="constrained")
for name, path in paths.items():
    left.semilogy(jnp.linalg.norm(path.x - x_best, axis=1), color=colours[name], label=name)
    right.semilogy(jnp.linalg.norm(path.y - y_best, axis=1), color=colours[name])
left.set_ylabel("$|x - x^*|_2$")
right.set_ylabel("$|y - y^*|_2$")
for ax in (left, right):
    ax.set_xlabel("saddle steps")
    ax.grid(alpha=0.3)
    ax.axhspan(1e-8, 1e-6, color="0.9", zorder=0)
    ax.set_ylim(1e-8, 10)
left.legend()
right.text(30, 1.5e-8, "below 1e-6: rounding of float32")
plt.show()

# %%
for name, path in paths.items():
    wrong = jnp.maximum(jnp.linalg.norm(path.x - x_best, axis=1), jnp.linalg.norm(path.y - y_best, axis=1))
    print(f"{name:22s} steps until x and y are within 0.001: {int(jnp.argmax(wrong < 1e-3))}")

# %% [markdown]
# ## What theta does
#
# In matching pennies nothing is curved, and the look-ahead decides everything. Both players start lopsided and take
# entropic steps of the same length: with theta = 1 the pair spirals into the equilibrium, with theta = 0 it circles,
# and with theta = -1 (both move at once, each against the other's old strategy) it spirals out.

# %%
pennies = pdopt.MatrixGame([[1.0, -1.0], [-1.0, 1.0]])
lopsided = pdopt.Pair(jnp.array([0.7, 0.3]), jnp.array([0.5, 0.5]))
figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), sharex=True, sharey=True, layout="constrained")
for ax, theta, colour in zip(axes, (1.0, 0.0, -1.0), ("#0072B2", "#009E73", "#D55E00")):
    method = pdopt.MirrorDescent(stepsize=0.25, theta=theta)
    view = method.view(pennies)
    path = run(method.parts(view, 0.25), 0.25, lopsided, 80)
    ax.plot(path.x[:, 0], path.y[:, 0], "-o", color=colour, markersize=2.5, linewidth=0.9)
    ax.plot(0.5, 0.5, "*", color="black", markersize=12)
    ax.plot(0.7, 0.5, "s", color=colour, markersize=6)
    ax.set(title=f"theta = {theta:g}", xlabel="weight of heads in $x$", xlim=(0, 1), ylim=(0, 1), aspect="equal")
axes[0].set_ylabel("weight of heads in $y$")
plt.show()

# %% [markdown]
# ## From the library
#
# The same problem as data; the multipliers of `<=` rows come back as `y = d value / d right-hand side`, here negative:
# more room lowers the cost.

# %%
problem = pdopt.QuadraticProgram(Q, -Q @ a, G, [-jnp.inf, -jnp.inf], h, offset=a @ Q @ a / 2)
solution = pdopt.solve(problem, pdopt.DualAscent(), tolerance=1e-5)
print(solution.reason.sentence)
print("x =", solution.x, "  y =", solution.y, "  steps:", int(solution.iterations))
assert np.allclose(solution.x, x_best, atol=1e-3)
assert np.allclose(solution.y, -y_best, atol=1e-3)

# %% [markdown]
# Tight rows are equalities, and those the method of multipliers takes:

# %%
tight = pdopt.QuadraticProgram(Q, -Q @ a, G, h, h, offset=a @ Q @ a / 2)
solution = pdopt.solve(tight, pdopt.AugmentedLagrangian(penalty=rho), tolerance=1e-5)
print("x =", solution.x, "  y =", solution.y, "  steps:", int(solution.iterations))
assert np.allclose(solution.x, x_best, atol=1e-3)
assert np.allclose(solution.y, -y_best, atol=1e-3)

# %% [markdown]
# ## What was learnt
#
# - **One step, four methods.** Only `primal`, `move` and `theta` changed; `run` did not. Nothing else moved a
#   multiplier.
# - **The primal half sets the cost of a step.** An exact minimiser (dual ascent) asks for a linear solve, a penalised
#   one (augmented Lagrangian) for several and takes the fewest steps (7 against 16 to three digits); PDHG asks for a
#   proximal step, here a solve too, but for a linear program only for a product with the matrix and a clip.
# - **The move sets the geometry.** Euclidean steps may land on the boundary, as PDHG's second price did; entropic steps
#   never do. Near an interior solution multiplying is no faster than adding, and its safe step depends on the size of
#   `y`: 0.6 of dual ascent's step was used here. On simplices, where it avoids the projection and its step depends only
#   on the largest payoff, it is at home.
# - **theta sets the stability.** With an exact primal 0 is right: `x` already sees what `y` does. Where `x` only takes
#   a step, theta = 1 looks ahead, and in a game it is the difference between arriving and circling.
# - **The sign is always the same.** `v > 0` is broken, `y` rises while it is, and `y` is what the constraint costs. For
#   two-sided rows the library reports `d value / d right-hand side`, the same price counted from the other side.
