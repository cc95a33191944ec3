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
# # Linear programs in a page
#
#     min  c'x   subject to   row_lower <= A x <= row_upper,   lower <= x <= upper
#
# Read a file, solve it, solve many like it, differentiate, and prove that there is nothing to solve. One method does it
# all: PDHG, the saddle step of `pdopt/rules/saddle.py` with theta = 1, reflected and restarted.

# %%
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import pdopt

# %% [markdown]
# ## Read
#
# A small plant: two products, hours of two machines, and a contract for at least 2 of the first. Files may be MPS or
# LP, plain or gzipped; a program read from a file is float64 whatever JAX's own default is.

# %%
MPS = """NAME plant
OBJSENSE
    MAX
ROWS
 N profit
 L milling
 L turning
 G contract
COLUMNS
    chairs    profit    3.0    milling   1.0
    chairs    turning   2.0    contract  1.0
    tables    profit    5.0    milling   2.0
    tables    turning   1.0
RHS
    hours     milling   14.0   turning   16.0
    hours     contract  2.0
ENDATA
"""
path = Path(tempfile.mkdtemp()) / "plant.mps"
path.write_text(MPS)
plant = pdopt.read_mps(path)
print("rows, columns:", plant.shape, "dtype:", plant.c.dtype)

# %% [markdown]
# ## Solve
#
# The answer carries its residuals on the data as given, and a price for every row: one more hour of milling earns
# `y[0]` more.

# %%
best = pdopt.solve(plant, tolerance=1e-8)
print(best.reason, "after", int(best.iterations), "steps; profit", round(float(best.objective), 4))
print("chairs and tables:", np.asarray(best.x).round(3), " prices of hours and contract:", np.asarray(best.y).round(3))
print(f"largest relative residual {float(best.residuals.error):.1e}")
assert best.reason.converged

# %% [markdown]
# ## Many at once
#
# 200 plants whose hours of milling differ, in one call. `jax.vmap(pdopt.solve)` does the same inside traced code; it
# runs until its slowest member ends, where `solve_many` refills the places of those that have ended.

# %%
hours = np.linspace(2.0, 30.0, 200)
rows = np.column_stack([hours, np.full((200, 2), np.asarray(plant.row_upper)[1:])])
many = pdopt.solve_many(plant, {"row_upper": rows}, tolerance=1e-8)
assert (many.status == pdopt.Status.OPTIMAL).all()
print("steps: least", many.iterations.min(), "median", int(np.median(many.iterations)), "most", many.iterations.max())

# %% [markdown]
# ## Differentiate
#
# The value has the slope of the Lagrangian (envelope theorem): its derivative in the hours is the price, wherever it is
# defined. The solution of a linear program jumps from vertex to vertex as prices change; with a curvature
# (`proximal_program`) it moves smoothly, and its derivative comes from the optimality conditions.

# %%
with jax.enable_x64(True):
    profit = lambda upper: pdopt.solve(plant.replace(row_upper=upper), tolerance=1e-9).objective
    slopes = jax.jit(jax.vmap(jax.grad(profit)))(jnp.asarray(rows))[:, 0]
    prices = np.linspace(1.0, 5.0, 81)
    costs = jnp.asarray(np.column_stack([prices, np.full(81, 5.0)]))

    def smooth(weight):
        program = lambda c: pdopt.proximal_program(plant.replace(c=c), weight, jnp.array([5.0, 3.0]))
        made = lambda c: pdopt.solve(program(c), tolerance=1e-9).x[0]
        return jax.jit(jax.vmap(jax.value_and_grad(made)))(costs)

    chairs = {weight: smooth(weight) for weight in (0.3, 2.0)}
    slopes = np.asarray(slopes)
between = np.abs(np.diff(many.objective) / np.diff(hours) - (slopes[1:] + slopes[:-1]) / 2)
print(f"slopes against differences of the 200 values: median {np.median(between):.1e}, largest {between.max():.2f}")
print("(the largest is where the price jumps between two of them)")
assert np.median(between) < 1e-5

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
left.plot(hours, many.objective, color="#0072B2")
left.set(xlabel="hours of milling", ylabel="profit", title="Value")
middle.plot(hours, slopes, color="#D55E00")
middle.set(xlabel="hours of milling", ylabel="d profit / d hour", title="Its gradient: the price")
for (weight, (x, slope)), colour in zip(chairs.items(), ("#0072B2", "#009E73")):
    right.plot(prices, x, color=colour, label=f"chairs, weight {weight:g}")
    right.plot(prices, slope[:, 0], color=colour, linestyle="--", label="its derivative")
right.set(xlabel="profit of a chair", title="A solution with curvature")
right.legend(fontsize=8)
plt.savefig("notebooks/linear_programs.png", dpi=110)
plt.show()

# %% [markdown]
# ## Certify
#
# A contract for 9 chairs needs 18 hours of turning; there are 16. The solver does not say so and leave it at that: it
# returns a ray, a combination of the rows that contradicts itself, which three lines of NumPy check.

# %%
greedy = plant.minimised().replace(row_lower=np.array([-np.inf, -np.inf, 9.0]))
answer = pdopt.solve(greedy)
print(answer.reason.sentence)
ray = np.asarray(answer.certificate.ray.y)  # with the signs of multipliers of a minimisation: >= 0 at a lower side
reach = ray @ np.asarray(greedy.A.todense())  # A'ray: at most 0 in every column, and x >= 0
promised = ray[2] * 9.0 + ray[:2] @ np.asarray(greedy.row_upper)[:2]
print("combination of the rows:", ray.round(4), " of the columns:", reach.round(4))
print(f"so 0 >= (A'ray)'x >= {promised:.3f} for every x >= 0 within the rows: a contradiction")
assert (reach <= 1e-8).all()
assert promised > 0

# %% [markdown]
# ## What was learnt
#
# - **A multiplier is a price**, and the gradient of the optimal value is made of prices: no second solve is needed.
# - **A batch is one program.** Members that share A share its products; each has its own status and count.
# - **A solution needs a curvature to be differentiated**; the value does not.
# - **Infeasible is an answer with a proof**, on the data as they were given.
