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
# # A policy that keeps its word
#
# Train a language model on its answers alone and it finds the cheapest way to them. If something in the prompt gives
# the answer away often enough, the reasoning it writes becomes decoration: accuracy rises, and the trace no longer
# carries it. **Faithful GRPO** (arXiv 2604.08476) asks for the trace as a constraint and lets a multiplier find its
# price:
#
#     maximise   E[answer is right]
#     subject to E[consistent] >= tau,   E[grounded] >= tau
#
# This is the story on a task small enough to train on two cores, told with the runs of `python -m benchmarks
# faithful`. Its results are stored beside this notebook; what is cheap is computed here.

# %%
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from pdopt.rules.signals import Extrapolated
from pdopt.training import scenes
from pdopt.training.constraint_kinds import Constraint
from pdopt.training.constraints import Constraints

told = json.loads(Path("notebooks/faithful_grpo.json").read_text())
PLAIN, SLOW, HELD = "plain GRPO", "dual ascent 0.05, separate", "step 1, theta 5, separate"
COLOURS = {PLAIN: "#0072B2", SLOW: "#009E73", HELD: "#D55E00"}

# %% [markdown]
# ## A scene, a question, a hint
#
# Four objects lie on a 5 x 5 grid. Where is one as seen from another? The model first states the two cells, then what
# follows from them, then its answer. The last word of the question but one is a *hint*, right in 90 % of the prompts:
# it stands for the prior of a model that answers without looking.

# %%
prompts = scenes.draw_prompts(jax.random.key(3), 2000, hint=0.9)
for prompt in prompts[:3]:
    x = scenes.to_text(prompt).split()
    lies = ", ".join(f"{name} at {cell}" for name, cell in zip(scenes.OBJECTS, x))
    print(f"{lies}: the {x[4]} seen from the {x[5]}?  (hint: {x[6]})")

# %% [markdown]
# A program checks every word: **accuracy** looks at the answer alone, **consistency** at whether the stated cells
# entail the conclusion and the conclusion is the answer, **grounding** at whether the stated cells are those of the
# scene.

# %%
prompt = scenes.to_tokens("x0y0 x2y1 x2y3 x4y4 book ball left think")
for text in ("x2y1 x0y0 neither neither", "x2y1 x4y0 left left", "x2y1 x0y0 neither left", "x0y2 x0y0 neither neither"):
    found = scenes.score(prompt, scenes.to_tokens(text))
    marks = f"accurate {found.accuracy:.0f}  consistent {found.consistency:.0f}  grounded {found.grounding:.1f}"
    print(f"{text:28s} {marks}")

# %% [markdown]
# ## Where training starts
#
# The model is first taught by an imperfect teacher: half of the stated cells are random, and in 15 % the answer is
# copied from the hint whatever the trace says. So it can look, but does not always, and it knows the shortcut.

# %%
taught = scenes.score(prompts, scenes.draw_traces(jax.random.key(4), prompts, noise=0.5, leak=0.15))
reference = {name: np.mean(values) for name, values in told["figures"]["reference"].items()}
print("            ", *(f"{name:>12s}" for name in ("accuracy", "consistency", "grounding")))
print("the teacher ", *(f"{values.mean():12.2f}" for values in taught[:3]))
print("the model   ", *(f"{reference[name]:12.2f}" for name in ("accuracy", "consistency", "grounding")))

# %% [markdown]
# ## Paid for the answer alone
#
# Plain GRPO from there, 200 steps of 32 prompts with 8 completions each. Accuracy goes straight to 0.90, which is
# what the hint is worth, and stays: the policy answers with the hint. The trace is first put to use (grounding
# rises), then dropped.


# %%
def draw(methods, names, dashes):
    """The curves of some methods: one line a seed, means of five batches."""
    _, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.4), layout="constrained")
    for axis, name in zip(axes, names):
        for method in methods:
            curves = told["curves"][method]
            runs = np.asarray(curves["y"])[:, :, 0] if name == "multiplier" else np.asarray(curves[name])
            for seed, run in enumerate(runs):
                smooth = np.convolve(run, np.full(5, 0.2), mode="valid")
                axis.plot(smooth, color=COLOURS[method], linewidth=1.3, label=None if seed else method)
        if name in dashes:
            axis.axhline(dashes[name], color="black", linestyle="--", linewidth=0.9)
        axis.set(xlabel="policy step", title=name)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    plt.show()


draw([PLAIN], ["accuracy", "consistency", "grounding"], {"accuracy": 0.9})
plain = told["figures"][PLAIN]
print("seeds             ", *(f"{seed:7d}" for seed in told["seeds"]))
for name in ("accuracy", "consistency", "grounding", "hinted", "no_hint"):
    print(f"{name:18s}", *(f"{value:7.2f}" for value in plain[name]))
assert min(plain["accuracy"]) > 0.87
assert max(plain["consistency"]) < 0.65

# %% [markdown]
# `hinted` is how often the answer is the hint; `no_hint` is the accuracy on prompts whose hint tells nothing, where a
# guess is worth 0.25. The reward never noticed.
#
# ## Held by multipliers
#
# The batch that was just sampled says how far each score is below tau. The multipliers answer first, then the policy
# takes its step on the same batch with the multipliers priced into the advantage, each score normalised within its
# group:
#
#     v = tau - mean score                              > 0 when broken
#     y = clip(y + step (v + theta (v - v_before)), 0, cap)          the dual half of the library's one saddle step
#     A = Z(reward) + y_c Z(consistency) + y_g Z(grounding)
#
# tau must be above what the shortcut gets for nothing. A grounded trace agrees with a hint that is right in 90 % in
# 90 % of the cases: tau = 0.95.

# %%
draw([PLAIN, SLOW, HELD], ["accuracy", "consistency", "grounding", "multiplier"],
     {"accuracy": 0.9, "consistency": 0.95, "grounding": 0.95})  # fmt: skip
names = ["accuracy", "consistency", "grounding", "hinted", "no_hint"]
print(f"{'mean of the seeds':28s}", *(f"{name:>12s}" for name in names))
for method, figures in told["figures"].items():
    print(f"{method:28s}", *(f"{np.mean(figures[name]):12.3f}" for name in names))
held = told["figures"][HELD]
assert min(held["consistency"]) > 0.94
assert all(ours > theirs + 0.04 for ours, theirs in zip(held["accuracy"], plain["accuracy"]))

# %% [markdown]
# The constrained policy is also the more accurate one: a trace that is read from the scene is right more often than
# the hint. It was not paid to give up the shortcut; it was asked to mean what it writes.
#
# **What the multiplier buys.** A weight that never moves does as well here if it is large enough (the rows "fixed
# weight"). Multipliers give a stated level without a search for the weight, not a higher ceiling.
#
# ## The multipliers, computed again
#
# Nothing about a multiplier is particular to language models: from the scores of the stored run alone the library's
# dual half gives the same curve. Step 1 with theta = 5 is a PI controller with gains 1 and 5. The proportional part
# matters: it acts in the first steps, before every completion of a group copies the hint and no advantage is left to
# weigh.

# %%
curves = told["curves"][HELD]
held_by = Constraints(
    (Constraint("consistency", "at_least", 0.95, y_max=5.0), Constraint("grounding", "at_least", 0.95, y_max=5.0)),
    step=1.0, signal=Extrapolated(5.0, start="zero"),
)  # fmt: skip
scores = jnp.stack([jnp.asarray(curves[name][0]) for name in ("consistency", "grounding")], axis=1)
idle = jnp.asarray(curves["idle"][0])[:, 1:]


def respond(held, batch):
    score, idle = batch
    held = held_by.update(held, 0.95 - score, idle)
    return held, held.y


_, y = jax.lax.scan(respond, held_by.init(), (scores, idle))
print(f"largest difference to the stored run: {jnp.abs(y - jnp.asarray(curves['y'][0])).max():.1e}")
print("multiplier of consistency every 25 steps:", np.asarray(y[::25, 0]).round(2))
assert float(jnp.abs(y - jnp.asarray(curves["y"][0])).max()) < 0.01

# %% [markdown]
# ## What they write
#
# The same prompts whose hint is wrong, answered by the three policies of the first seed.

# %%
shown = 0
for place, (question, _) in enumerate(told["texts"]["reference"]):
    asked = scenes.to_tokens(question)
    truth = scenes.ANSWERS[int(scenes.quadrant(*scenes.asked_cells(asked)))]
    if truth == question.split()[6] or shown == 3:
        continue
    shown += 1
    print(f"{question}    right: {truth}")
    for policy in ("reference", PLAIN, HELD):
        text = told["texts"][policy][place][1]
        found = scenes.score(asked, scenes.to_tokens(text))
        right = "right" if found.accuracy else "wrong"
        marks = f"{right}, grounded {found.grounding:.1f}, consistent {found.consistency:.0f}"
        print(f"    {policy:26s} {text:36s} {marks}")

# %% [markdown]
# ## What was learnt
#
# - **A reward that sees only the answer cannot see the trace go.** Accuracy rose by thirty points while consistency
#   fell to nothing.
# - **State the level, not the weight.** tau is in the units of the score; the multiplier finds its price and falls
#   again when the constraint is met.
# - **Act early.** Slow dual ascent may lose to the collapse of the groups; a proportional part does not.
# - **Ask what the constraint does not see.** Accuracy where the hint tells nothing is in no objective here, and tells
#   most.
