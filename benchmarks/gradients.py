"""Derivatives of 50 random linear and quadratic programs against central differences, all in one vmapped batch.

Value, solution and multipliers, in every field of the data, reverse and forward. The differences are of fourth order
(`[8 (f(h) - f(-h)) - (f(2h) - f(-2h))] / 12h`), of solves to 1e-12 in float64.
"""

import time
from typing import Any

import numpy as np

from benchmarks.claims import Claim
from benchmarks.harness import Options
from benchmarks.machine import machine
from benchmarks.plots import COLOURS, picture_axes, save_picture
from benchmarks.random_programs import FIELDS, directions, moved, stack
from benchmarks.report import Report, Table

ABOUT = "derivatives of values and solutions against central differences, in one vmapped batch"
COUNT, STEP, TOLERANCE, PROMISE = 50, 1e-3, 1e-12, 1e-6
WHAT = ("value", "x", "y")


def run(options: Options, say: Any = print) -> Report:
    """The same 50 programs quick and full: they take seconds."""
    import jax

    with jax.enable_x64(True):
        records = measure(COUNT, options.seed)
    for record in records:
        say(f"{record['field']}: largest error {record['error']:.1e} of {record['what']}")
    rows = [[r["field"], r["what"], f"{r['error']:.1e}", f"{r['modes']:.1e}", f"{r['largest']:.3g}"] for r in records]
    table = Table(
        f"{COUNT} programs: |derivative - difference| / (1 + |difference|)",
        ["field", "of", "largest error", "reverse - forward", "largest derivative"],
        rows,
    )
    held = [
        Claim(f"largest error of the derivatives of {what}", max(r["error"] for r in records if r["what"] == what),
              PROMISE, "<=", f"{COUNT} programs, {len(FIELDS)} fields")
        for what in WHAT
    ]  # fmt: skip
    held.append(Claim("largest difference between reverse and forward", max(r["modes"] for r in records), 1e-9, "<="))
    seconds = records[0]["seconds"]
    notes = [
        f"One reverse pass of {len(WHAT)} outputs of {COUNT} programs took {seconds['jacobian']:.2f} s of CPU, their "
        f"solves alone {seconds['solve']:.2f} s, compiled.",
        "Every second program is linear (Q = 0, a unique vertex); rows: equality, at least, at most, ranged, free; "
        "bounds: lower, upper, both, free, fixed.",
    ]
    return Report("gradients", records, held, [table], [_picture(records, options)], machine(), notes)


def measure(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """One record a field and output: the largest error over the programs, and what the passes took."""
    import jax
    import jax.numpy as jnp

    import pdopt

    data = stack(count, seed)
    as_arrays = lambda d: {name: jnp.asarray(d[name]) for name in FIELDS}
    rng = np.random.default_rng(seed)
    along_x, along_y = (jnp.asarray(rng.standard_normal(data[name].shape[1])) for name in ("x", "y"))

    def outputs(d: Any) -> Any:
        found = pdopt.solve(pdopt.QuadraticProgram(**d, check=False), tolerance=TOLERANCE, max_iterations=200_000)
        return jnp.stack([found.objective, along_x @ found.x, along_y @ found.y])

    solve = jax.jit(jax.vmap(outputs))
    reverse = jax.jit(jax.vmap(jax.jacrev(outputs)))
    forward = jax.jit(jax.vmap(lambda d, t: jax.jvp(outputs, (d,), (t,))[1]))
    seconds, values = {}, {}
    for name, function in (("solve", solve), ("jacobian", reverse)):
        jax.block_until_ready(function(as_arrays(data)))
        start = time.process_time()
        values[name] = jax.block_until_ready(function(as_arrays(data)))
        seconds[name] = time.process_time() - start
    slopes = {name: np.asarray(leaf).reshape(count, len(WHAT), -1) for name, leaf in values["jacobian"].items()}
    records = []
    for field, change in directions(data, seed + 1).items():
        at = {k: np.asarray(solve(as_arrays(moved(data, change, k * STEP)))) for k in (-2, -1, 1, 2)}
        difference = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * STEP)
        backward = sum(np.einsum("bkj,bj->bk", slopes[n], d.reshape(count, -1)) for n, d in change.items())
        tangent = as_arrays({name: change.get(name, np.zeros_like(data[name])) for name in FIELDS})
        ahead = np.asarray(forward(as_arrays(data), tangent))
        error, modes = (np.abs(v) / (1 + np.abs(difference)) for v in (backward - difference, backward - ahead))
        for place, what in enumerate(WHAT):
            records.append({
                "field": field, "what": what, "error": float(error[:, place].max()),
                "modes": float(modes[:, place].max()), "largest": float(np.abs(difference[:, place]).max()),
                "errors": error[:, place].tolist(), "seconds": seconds,
            })  # fmt: skip
    return records


def _picture(records: list[dict[str, Any]], options: Options) -> Any:
    """All errors, a column a field and a colour an output, with the promise as a line."""
    figure, axes = picture_axes("Derivatives against central differences", "changed field", "relative error")
    for number, what in enumerate(WHAT):
        for place, record in enumerate(r for r in records if r["what"] == what):
            across = place + 0.25 * (number - 1) + np.linspace(-0.08, 0.08, len(record["errors"]))
            label = what if place == 0 else None
            axes.plot(
                across, np.maximum(record["errors"], 1e-16), ".", markersize=3, color=COLOURS[number], label=label
            )
    axes.axhline(PROMISE, color="black", linewidth=0.9, linestyle="--")
    axes.set_yscale("log")
    axes.set_xticks(range(len(FIELDS)), FIELDS)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return save_picture(figure, options.output / "errors.png", records)
