"""A run in one picture: reward, each constraint against its limit, and the multipliers, over the steps."""

import json
import math
import os
from pathlib import Path
from typing import Any

# Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
METRICS, PLOT = "metrics.jsonl", "plot.png"


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics that are whole; null reads as NaN."""
    lines = []
    for line in (Path(folder) / METRICS).read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # a run that was killed may leave half a line
            continue
        lines.append({name: math.nan if value is None else value for name, value in record.items()})
    return lines


def draw_run(folder: str | Path) -> Path:
    """Draw `plot.png` in a run's folder from its metrics, which lie beside it; the path of the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = read_metrics(folder)
    names = sorted({name.split("/")[1] for line in lines for name in line if name.startswith("constraint/")})
    figure = Figure(figsize=(8, 2.6 * (2 + bool(names) + max(len(names) - 1, 0))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1 + len(names) + bool(names), 1, sharex=True, squeeze=False)[:, 0])
    top = axes[0]
    if _line(top, lines, "reward", COLOURS[0], "reward"):
        top.set_ylabel("reward")
    else:
        _line(top, lines, "loss", COLOURS[0], "loss")
        top.set_ylabel("loss")
    _line(top, lines, "evaluation/reward", COLOURS[1], "evaluation", marker="o")
    top.legend()
    for colour, name, axis in zip(COLOURS[1:] * len(names), names, axes[1:]):
        _line(axis, lines, f"constraint/{name}/value", colour, name)
        _line(axis, lines, f"constraint/{name}/limit", "0.3", "limit", linestyle="--")
        axis.set_ylabel(name)
        axis.legend()
        _line(axes[-1], lines, f"constraint/{name}/multiplier", colour, name)
    if names:
        axes[-1].set_ylabel("multipliers")
        axes[-1].legend()
    axes[-1].set_xlabel("step")
    for axis in axes:
        axis.grid(True, color="0.9")
    path = Path(folder) / PLOT
    new = path.with_name(f".plot.{os.getpid()}.new.png")
    try:
        figure.savefig(new, dpi=120)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
    return path


def _line(axis: Any, lines: list[dict[str, Any]], name: str, colour: str, label: str, **style: Any) -> bool:
    points = [(line["step"], line[name]) for line in lines if name in line]
    if points:
        axis.plot(*zip(*points), color=colour, label=label, **style)
    return bool(points)
