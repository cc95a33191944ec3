"""The picture of a constrained run: what is gained, what is held, and at what price, over the steps.

Panels: reward, one for each constraint with its limit dashed, both with what evaluations found and their intervals; the
multipliers, KL, entropy, length. Points are what was reported; where there are many, the line is their running mean.
The data are the file of metrics itself.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pdopt.errors import InvalidFile
from pdopt.training.metric_files import read_lines
from pdopt.training.scalars import PREFIX, constraint_names

# Okabe and Ito's colours, told apart with any colour vision; vermillion is kept for limits.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
LIMIT = "#D55E00"
COLUMNS = 3
# Reports of one series up to which each is drawn as it is.
MANY = 150


def read_metrics(path: str | Path) -> dict[str, np.ndarray]:
    """The series of a file of metrics: name -> `(n, 2)` steps and values, in the order reported, missing ones left out.

    Raises:
        InvalidFile: no such file, or no report in it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "metrics.jsonl"
        ...     _ = file.write_text('{"step": 1, "reward": 0.5}\\n{"step": 2, "reward": null}\\n')
        ...     read_metrics(file)["reward"].tolist()
        [[1.0, 0.5]]
    """
    series: dict[str, list[tuple[float, float]]] = {}
    for row in read_lines(path):
        for name, value in row.items():
            # A step without a reward was a supervised one, whose loss is another quantity.
            name = "supervised loss" if name == "loss" and "reward" not in row else name
            if name != "step" and isinstance(value, bool | int | float):
                series.setdefault(name, []).append((float(row["step"]), float(value)))
    if not series:
        raise InvalidFile(path, "no metrics were reported in it")
    return {name: np.array(points) for name, points in series.items()}


def plot_training(metrics: str | Path, out: str | Path, *, title: str = "") -> None:
    """Write the picture of a run.

    Args:
        metrics: `metrics.jsonl` of the run.
        out: picture; its extension says the format (`.png`, `.pdf`, `.svg`).
        title: over the panels.

    Raises:
        InvalidFile: no metrics.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series = read_metrics(metrics)
    panels = _panels(series)
    rows = -(-len(panels) // COLUMNS)
    # A figure of its own: pyplot would keep it in a global list.
    figure = Figure(figsize=(4.2 * min(COLUMNS, len(panels)), 2.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(rows, min(COLUMNS, len(panels)), squeeze=False)).ravel()
    for axis, (name, lines) in zip(axes, panels):
        _draw(axis, name, lines, series)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    if title:
        figure.suptitle(title)
    figure.savefig(out, dpi=130)


Panel = tuple[str, list[tuple[str, str]]]


def _panels(series: dict[str, np.ndarray]) -> list[Panel]:
    """Title and (series, label) of each panel that has data."""
    names = constraint_names(series)
    told = sorted(n for n in series if n.startswith("evaluation/") and n.count("/") == 1)
    told = [n for n in told if n.removeprefix("evaluation/") in ("reward", "accuracy") or "pass@" in n]
    wanted: list[Panel] = [
        ("reward", [("reward", "training"), *((n, n.replace("/", " ")) for n in told)]),
        *((f"constraint: {name}", _constraint(name)) for name in names),
        ("multipliers", [(f"{PREFIX}{name}/multiplier", name) for name in names]),
        ("KL to the reference (nats a token)", [("kl_k3", "k3")]),
        ("entropy (nats a token)", [("entropy", "entropy")]),
        ("completion length (tokens)", [("length", "mean")]),
        ("supervised loss", [("supervised loss", "loss")]),
    ]
    found = [(title, [line for line in lines if line[0] in series]) for title, lines in wanted]
    kept = [(title, lines) for title, lines in found if lines]
    # A run without any of the known names is shown by what it has.
    return kept or [(name, [(name, name)]) for name in sorted(series)[: 2 * COLUMNS]]


def _constraint(name: str) -> list[tuple[str, str]]:
    start = f"{PREFIX}{name}"
    return [(f"{start}/value", "training"), (f"evaluation/{start}/value", "evaluation"), (f"{start}/limit", "limit")]


def _draw(axis: Any, title: str, lines: Sequence[tuple[str, str]], series: dict[str, np.ndarray]) -> None:
    for number, (name, label) in enumerate(lines):
        steps, values = series[name].T
        if name.startswith(PREFIX) and name.endswith("/limit"):
            axis.plot(steps, values, linestyle="--", color=LIMIT, linewidth=1.4, label=label)
            continue
        colour = COLOURS[number % len(COLOURS)]
        if name.startswith("evaluation/"):
            axis.plot(steps, values, color=colour, marker="o", markersize=3.5, linewidth=1.2, label=label)
            low, high = series.get(f"{name}/low"), series.get(f"{name}/high")
            if low is not None and high is not None and len(low) == len(high) == len(steps):
                axis.fill_between(steps, low[:, 1], high[:, 1], color=colour, alpha=0.15, linewidth=0)
        elif len(values) <= MANY or name.endswith("/multiplier"):  # a multiplier is known exactly
            axis.plot(steps, values, color=colour, linewidth=1.3, label=label, marker="." if len(values) == 1 else "")
        else:
            axis.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3)
            axis.plot(steps, running_mean(values), color=colour, linewidth=1.5, label=label)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("step", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25, linewidth=0.6)
    if title == "multipliers":
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
    if len(lines) > 1:
        axis.legend(fontsize=8, frameon=False)


def running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over a window of a fiftieth of the run, centred and cut at the ends."""
    half = max(1, len(values) // 100)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)
