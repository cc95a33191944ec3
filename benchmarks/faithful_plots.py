"""Pictures of the `faithful` comparison: scores and multipliers against steps, with tau dashed."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faithful_methods import PLAIN, PROXY, RECOMMENDED
from benchmarks.faithful_policy import HINT, TAU
from benchmarks.plots import COLOURS, STYLES, save_picture

Histories = dict[tuple[str, str], list[dict[str, np.ndarray]]]
SHOWN = (PLAIN, "fixed weight 0.5, joint", "dual ascent 0.05, separate", RECOMMENDED, "step 1, theta 5, lagrangian")
WINDOW = 5  # batches whose running mean is drawn


def method_plot(histories: Histories, path: Path, shown: tuple[str, ...] = SHOWN) -> Path:
    """Accuracy, consistency, grounding and the multiplier of consistency: mean over seeds, their range shaded."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2, sharex=True).ravel()
    names = ("accuracy", "consistency", "grounding", "multiplier of consistency")
    for panel, name in zip(panels, names):
        panel.set_title(name)
        panel.grid(True, alpha=0.3)
        for place, method in enumerate(shown):
            curves = np.stack([_curve(run, name) for run in histories["method", method]])
            steps = np.arange(curves.shape[1]) + WINDOW
            colour = COLOURS[place]
            panel.fill_between(steps, curves.min(0), curves.max(0), color=colour, alpha=0.15, linewidth=0)
            panel.plot(steps, curves.mean(0), color=colour, linestyle=STYLES[place % len(STYLES)], linewidth=1.8,
                       label=method)  # fmt: skip
    panels[0].set_ylim(0.55, 1.02)
    for panel in panels[1:3]:
        panel.set_ylim(-0.03, 1.03)
    for panel in panels[1:3]:
        panel.axhline(TAU[0], color="black", linestyle="--", linewidth=1, label=f"tau = {TAU[0]}")
    panels[0].axhline(HINT, color="grey", linestyle="--", linewidth=1, label=f"copying the hint: {HINT}")
    for panel in panels[2:]:
        panel.set_xlabel("policy step")
    handles, labels = panels[0].get_legend_handles_labels()
    extra = panels[1].get_legend_handles_labels()
    figure.legend([*handles, extra[0][-1]], [*labels, extra[1][-1]], loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(f"Scene task, running means of {WINDOW} batches; shaded: range over the seeds")
    return save_picture(figure, path, {method: kept(histories["method", method]) for method in shown})


def kept(runs: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """The curves of one method behind the picture, batch by batch: name -> one list a seed."""
    names = ("accuracy", "consistency", "grounding", "hinted", "y", "idle")
    return {name: [run[name].astype(np.float64).round(5).tolist() for run in runs] for name in names}


def proxy_plot(histories: Histories, path: Path) -> Path:
    """Consistency and its multiplier where the multiplier that balances is known to be 1."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    data: dict[str, Any] = {}
    for panel, name in zip(panels, ("consistency", "multiplier of consistency")):
        panel.set_title(name)
        panel.set_xlabel("policy step")
        panel.grid(True, alpha=0.3)
        for place, method in enumerate(PROXY):
            curve = _curve(histories["proxy", method][0], name)
            steps = np.arange(len(curve)) + WINDOW
            panel.plot(steps, curve, color=COLOURS[place % len(COLOURS)], linestyle=STYLES[place % len(STYLES)],
                       linewidth=1.3, label=method)  # fmt: skip
            data.setdefault(method, {})[name] = curve.round(4).tolist()
    panels[0].axhline(0.9, color="black", linestyle="--", linewidth=1, label="tau = 0.9")
    panels[1].axhline(1.0, color="black", linestyle="--", linewidth=1)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle("Proxy variant: paid for the hint, held to consistency 0.9 (balance at y = 1, dashed)")
    return save_picture(figure, path, data)


def _curve(run: dict[str, np.ndarray], name: str) -> np.ndarray:
    """A running mean of one run's curve."""
    curve = run["y"][:, 0] if name.startswith("multiplier") else run[name]
    return np.convolve(curve.astype(np.float64), np.full(WINDOW, 1 / WINDOW), mode="valid")
