"""Expert balancing: the bias router against the auxiliary loss and four others on a byte-level language model; step
rules of the bias by regret and imbalance on streams; eight devices against one.

MaxVio of a window is `max load / mean load - 1` of the loads summed over its 100 steps. Every figure of a model is for
the last window and the held-out text. The routing score kept is the sum of the raw scores of what was selected on one
held-out batch over the optimum of the balanced assignment there (HiGHS, float64); above 1 it was bought by imbalance.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.balancing_stream import DEFAULT, RULES, SIGNS, Curves, compare, facts
from benchmarks.byte_model import Run, Size, Trainer, text
from benchmarks.claims import Claim
from benchmarks.harness import Options
from benchmarks.machine import machine
from benchmarks.plots import line_look, picture_axes, save_picture
from benchmarks.report import Report, Table, number
from pdopt.models.experts import ExpertsConfig
from pdopt.models.routers import ROUTERS, capacity, choose

ABOUT = "expert balancing: six routers in a trained layer, step rules by regret, devices"
WINDOW = 100
FACTOR = 1.25
ALPHAS = (1e-2, 1e-3)


def run(options: Options, say: Any = print) -> Report:
    """Train, follow the streams, compare devices; judge and draw."""
    size = Size(batch=32, steps=3000) if options.full else Size()
    records, histories = train_all(size, options, say)
    curves = compare(3 if options.full else 1, 2000, say)
    broken, wrong, switches = facts(1000 if options.full else 200)
    say(f"facts: {broken} and {wrong} breaks in {switches} switches")
    devices = compare_devices(options.output)
    say(f"devices: {devices}")
    for name, curve in curves.items():
        records.append({
            "kind": "rule", "rule": name, "regret": curve.regret[:, -1].tolist(),
            "imbalance_100": float(curve.imbalance[99]), "imbalance_last": float(curve.imbalance[-1]),
        })  # fmt: skip
    records += [{"kind": "facts", "dual": broken, "preference": wrong, "switches": switches}]
    records += [{"kind": "devices", **devices}]
    pictures = [
        load_plot(histories, options.output / "expert-load.png"),
        curve_plot({k: c.imbalance for k, c in curves.items()}, "MaxVio", "imbalance.png", options.output),
        curve_plot({k: c.regret.mean(0) for k, c in curves.items()}, "regret per token", "regret.png", options.output),
    ]
    notes = [
        f"Byte model: width {size.width}, {size.experts} experts, K = {size.top}, {size.steps} steps of "
        f"{size.batch * size.length} bytes, trained at capacity factor {FACTOR:g}; seeds {_seeds(options)}.",
        f"MaxVio over windows of {WINDOW} steps; dropped: choices without a place, for the two routers in which "
        "experts choose tokens that nobody took; both per token of the held-out text.",
        "Step times are CPU milliseconds of a whole training step on this machine, compiled before.",
    ]
    tables = [router_table(records), rule_table(curves)]
    return Report("balancing", records, claims(records), tables, pictures, machine(), notes)


def _seeds(options: Options) -> tuple[int, ...]:
    return tuple(options.seed + k for k in range(3))


def train_all(size: Size, options: Options, say: Any) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """One record a run: bias and auxiliary loss for three seeds, the others for one (three in a full run)."""
    data, records, histories = text(), [], {}
    for router in ROUTERS:
        config = ExpertsConfig(
            size.width, size.hidden, size.experts, size.top, router=router, capacity_factor=FACTOR
        )  # fmt: skip
        trainer = Trainer(config, size, data)
        seeds = _seeds(options) if options.full or router in ("bias", "aux_loss") else _seeds(options)[:1]
        alphas = ALPHAS if router == "aux_loss" else (0.0,)
        # Seeds outside, so that the two weights alternate.
        for seed, alpha in ((seed, alpha) for seed in seeds for alpha in alphas):
            found = trainer.run(seed, alpha)
            name = f"aux_loss {alpha:g}" if router == "aux_loss" else router
            record = judge(trainer, found) | {"kind": "router", "router": name, "alpha": alpha, "seed": seed}
            records.append(record | {"compile": trainer.compile})
            histories.setdefault(name, found.loads)
            say(f"{name}, seed {seed}: loss {record['loss']:.4f}, MaxVio {record['max_violation']:.4f}")
    return records, histories


def window_violation(loads: np.ndarray, width: int = WINDOW) -> np.ndarray:
    """MaxVio of every window of `width` steps, from loads `(N, E)`."""
    sums = np.cumsum(np.concatenate([np.zeros((1, loads.shape[1])), loads.astype(np.float64)]), axis=0)
    total = sums[width:] - sums[:-width]
    return total.max(1) / total.mean(1) - 1


def judge(trainer: Trainer, found: Run) -> dict[str, Any]:
    """The figures of one trained model."""
    loss, dropped = trainer.validate(found)
    width = min(WINDOW, len(found.loads))
    violation = window_violation(found.loads, width)
    single = found.loads[-width:].max(1) / found.loads[-width:].mean(1) - 1
    return {
        "loss": loss, "dropped": dropped, "max_violation": float(violation[-1]),
        "max_violation_mean": float(violation.mean()), "max_violation_batch": float(single.mean()),
        "kept": score_kept(trainer, found), "step_ms": 1000 * found.seconds,
    }  # fmt: skip


def score_kept(trainer: Trainer, found: Run) -> float:
    """Raw score selected on one held-out batch over HiGHS's balanced optimum, both summed in float64."""
    from scipy.optimize import linprog

    size, config = trainer.size, trainer.config
    scores, logits, bias = trainer.scores(found)
    places = capacity(scores.shape[0], size.experts, size.top, 1.0)
    routing = choose(
        config.router, jnp.asarray(logits), jnp.asarray(scores), jnp.asarray(bias), top=size.top, places=places
    )  # fmt: skip
    wide = scores.astype(np.float64)
    if routing.experts is not None:
        kept = np.take_along_axis(wide, np.asarray(routing.experts), axis=1).sum()
    else:
        tokens = np.asarray(routing.tokens)
        expert, place = np.nonzero(tokens < len(wide))
        kept = wide[tokens[expert, place], expert].sum()
    matrix, right = balance_rows(wide.shape, size.top)
    best = linprog(-wide.ravel(), A_eq=matrix, b_eq=right, bounds=(0, 1), method="highs")
    return float(kept / -best.fun)


def balance_rows(shape: tuple[int, ...], top: int) -> tuple[Any, np.ndarray]:
    """The rows of the assignment problem as a sparse matrix, and their right-hand side."""
    import scipy.sparse as sp

    tokens, experts = shape
    token, expert = np.divmod(np.arange(tokens * experts), experts)
    place = (np.concatenate([token, tokens + expert]), np.tile(np.arange(tokens * experts), 2))
    matrix = sp.csr_array((np.ones(2 * tokens * experts), place), shape=(tokens + experts, tokens * experts))
    return matrix, np.concatenate([np.full(tokens, float(top)), np.full(experts, top * tokens / experts)])


def compare_devices(folder: Path) -> dict[str, int]:
    """Bits that differ between eight devices and one, counted by a child process; {} where it failed."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "benchmarks.balancing_devices"]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        (folder / "devices.log").write_text(done.stderr)
        return {}
    return json.loads(done.stdout.splitlines()[-1])


def _mean(records: list[dict[str, Any]], router: str, field: str) -> float:
    values = [r[field] for r in records if r.get("router") == router]
    return float(np.mean(values)) if values else float("nan")


def claims(records: list[dict[str, Any]]) -> list[Claim]:
    """The promises of the balancing comparison, from this run's figures alone."""
    aux = [f"aux_loss {alpha:g}" for alpha in ALPHAS]
    balance = min(_mean(records, name, "max_violation") for name in aux)
    loss = min(_mean(records, name, "loss") for name in aux)
    count = len({r["seed"] for r in records if r.get("router") == "bias"})
    rules = {r["rule"]: r for r in records if r["kind"] == "rule"}
    ratio = max(a / b for a, b in zip(rules[DEFAULT]["regret"], rules[SIGNS]["regret"]))
    fact = next(r for r in records if r["kind"] == "facts")
    devices = next(r for r in records if r["kind"] == "devices")
    moved = devices.get("stream_moved", 0) > 0 and devices.get("layer_moved", 0) > 0 and devices.get("devices") == 8
    return [
        Claim(
            "MaxVio of the bias router / least of the auxiliary-loss routers",
            _mean(records, "bias", "max_violation") / balance, 1 / 3, "<=",
            f"last {WINDOW} steps, means of {count} seeds, the weight of least MaxVio",
        ),
        Claim(
            "validation loss of the bias router - least of the auxiliary-loss routers (nats a byte)",
            _mean(records, "bias", "loss") - loss, 0.0, "<=", f"means of {count} seeds, the weight of least loss",
        ),
        Claim(
            "regret of the decaying proportional step / the sign rule's", ratio, 0.05, "<=",
            f"2000 batches, worst of {len(rules[DEFAULT]['regret'])} streams",
        ),
        Claim(
            "breaks of the dual's bounds and of the preference rule", float(fact["dual"] + fact["preference"]), 0.0,
            "<=", f"{fact['switches']} tokens switched",
        ),
        Claim(
            "prices whose bits differ between 8 devices and 1",
            float(devices["stream"] + devices["layer"]) if moved else None, 0.0, "<=", "stream and layer",
        ),
    ]  # fmt: skip


def router_table(records: list[dict[str, Any]]) -> Table:
    """Means over seeds."""
    runs = [r for r in records if r["kind"] == "router"]
    fields = ("loss", "max_violation", "max_violation_mean", "max_violation_batch", "dropped", "kept", "step_ms")
    rows = []
    for name in dict.fromkeys(r["router"] for r in runs):
        seeds = [r["loss"] for r in runs if r["router"] == name]
        spread = number(float(np.std(seeds, ddof=1))) if len(seeds) > 1 else "-"
        values = [number(_mean(runs, name, field)) for field in fields]
        rows.append([name, f"{len(seeds)}", values[0], spread, *values[1:]])
    columns = ["router", "seeds", "validation loss", "its std", "MaxVio last window", "mean window", "one batch",
               "dropped / token", "score kept", "step CPU ms"]  # fmt: skip
    return Table("Routers in the byte model", columns, rows)


def rule_table(curves: dict[str, Curves]) -> Table:
    """Regret after 30, 300 and all batches, and MaxVio on fixed scores."""
    rows = []
    for name, curve in curves.items():
        mean, last = curve.regret.mean(0), len(curve.imbalance) - 1
        marks = [mean[29], mean[299], mean[-1], curve.imbalance[min(99, last)], curve.imbalance[last]]
        rows.append([name, *map(number, map(float, marks))])
    columns = ["rule", "regret 30", "regret 300", "regret 2000", "MaxVio 100", "MaxVio 1000"]
    return Table("Step rules of the bias: regret per token on fresh batches, MaxVio on fixed scores", columns, rows)


def load_plot(histories: dict[str, np.ndarray], path: Path) -> Path:
    """Each expert's share of the load over the steps, bias beside auxiliary loss; 1 is the fair share."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = ["bias", *(f"aux_loss {alpha:g}" for alpha in ALPHAS)]
    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    data, every = {}, 20
    panels = figure.subplots(1, len(names), sharey=True)
    for panel, name in zip(panels, names):
        loads = histories[name].astype(np.float64)
        count = len(loads) // every
        shares = loads[: count * every].reshape(count, every, -1).mean(1)
        shares = shares / shares.mean(1, keepdims=True)
        steps = (np.arange(count) + 1) * every
        panel.plot(steps, shares, linewidth=0.9, color="#0072B2", alpha=0.6)
        panel.plot(steps, shares.max(1), linewidth=1.8, color="#D55E00", label="most loaded")
        panel.axhline(1.0, color="black", linewidth=0.8, linestyle="--", label="fair share")
        panel.set_title(name)
        panel.set_xlabel("training step")
        panel.grid(True, alpha=0.3)
        data[name] = {"steps": steps.tolist(), "shares": shares.tolist()}
    panels[0].set_ylabel(f"load / fair share (means of {every} steps)")
    panels[0].legend(fontsize=8)
    return save_picture(figure, path, data)


def curve_plot(curves: dict[str, np.ndarray], label: str, name: str, folder: Path) -> Path:
    """Curves over steps on log axes; what is not positive is left out."""
    title = "Regret against the best fixed bias" if "regret" in label else "Imbalance on fixed scores"
    figure, axes = picture_axes(title, "step", label)
    for place, rule in enumerate(RULES):
        steps = np.arange(1, len(curves[rule]) + 1)
        axes.loglog(steps, np.where(curves[rule] > 0, curves[rule], np.nan), label=rule, **line_look(place))
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return save_picture(figure, folder / name, {rule: curve.tolist() for rule, curve in curves.items()})
