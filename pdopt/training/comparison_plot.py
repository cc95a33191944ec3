"""The picture of a comparison: reward, each constraint with its limit, and each multiplier, over the policy steps.

A line is the mean over the seeds of running means of a fiftieth of the run, its shade the range of the seeds. The data
are the files of metrics of the runs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pdopt.training.metric_files import METRICS
from pdopt.training.scalars import PREFIX, constraint_names
from pdopt.training.training_plot import COLOURS, LIMIT, read_metrics, running_mean

STYLES = ("-", "--", "-.", ":")


def plot_comparison(runs: Mapping[str, Sequence[str | Path]], out: str | Path, *, title: str = "") -> None:
    """Write the picture.

    Args:
        runs: name of a variant -> folders of its runs, one a seed.
        out: picture; its extension says the format.
        title: over the panels.

    Raises:
        InvalidFile: a run without metrics.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series = {name: [read_metrics(Path(folder) / METRICS) for folder in folders] for name, folders in runs.items()}
    names = list(dict.fromkeys(n for each in series.values() for one in each for n in constraint_names(one)))
    panels = [("reward", "reward", None)]
    panels += [(n, f"{PREFIX}{n}/value", f"{PREFIX}{n}/limit") for n in names]
    panels += [(f"multiplier of {n}", f"{PREFIX}{n}/multiplier", None) for n in names]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (label, key, limit) in zip(axes, panels):
        _draw(axis, label, series, key, limit)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=8)
    if title:
        figure.suptitle(title)
    figure.savefig(out, dpi=130)


def _draw(axis: Any, label: str, series: Mapping[str, list[dict[str, np.ndarray]]], key: str, limit: Any) -> None:
    for place, (name, runs) in enumerate(series.items()):
        found = [run[key] for run in runs if key in run]
        if not found:
            continue
        length = min(map(len, found))
        # Policy steps are counted from 1: the supervised ones are the same for all.
        steps = found[0][:length, 0] - found[0][0, 0] + 1
        curves = np.stack([running_mean(one[:length, 1]) for one in found])
        colour, style = COLOURS[place % len(COLOURS)], STYLES[place // len(COLOURS) % len(STYLES)]
        axis.fill_between(steps, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.15, linewidth=0)
        axis.plot(steps, curves.mean(axis=0), color=colour, linestyle=style, linewidth=1.5, label=name)
    limits = [run[limit][-1, 1] for runs in series.values() for run in runs if limit in run]
    for value in dict.fromkeys(limits):
        axis.axhline(value, color=LIMIT, linestyle="--", linewidth=1.2)
    axis.set_title(label, fontsize=10)
    axis.set_xlabel("policy step", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25, linewidth=0.6)
