"""Pictures: performance profiles and convergence, as PNG with the numbers behind each saved beside it as JSON."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.profiles import FINISHED, performance_profile

# Okabe and Ito's palette (2008) without yellow, told apart by the colour-blind; line styles tell apart what repeats.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")


def picture_axes(title: str, across: str, up: str) -> tuple[Any, Any]:
    """A figure with one titled pair of axes; no window system is asked for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(True, alpha=0.3)
    return figure, axes


def line_look(number: int) -> dict[str, Any]:
    """Colour, style and width of a picture's line by its number."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": STYLES[(number // 2) % len(STYLES)], "linewidth": 1.8}


def profile_plot(records: list[dict[str, Any]], field: str, tolerance: float, label: str, path: Path) -> Path | None:
    """The profile of one field at one tolerance, infeasible problems included; None where nothing was solved.

    Runs that never took place (cut, not installed) count as unsolved, as a reader of the picture would expect.
    """
    costs: dict[str, dict[str, float]] = {}
    for record in records:
        if record["tolerance"] == tolerance and record["outcome"] != "not installed":
            done = record["outcome"] in FINISHED
            table = costs.setdefault(record["solver"], {})
            table[record["instance"]] = max(float(record[field]), 1e-9) if done else np.inf
    profiles = performance_profile(costs)
    if not any(len(ratios) for ratios, _ in profiles.values()):
        return None
    figure, axes = picture_axes(
        f"Performance profile: {label}, tolerance {tolerance:g}", f"{label} / best", "share of instances"
    )
    last = max(ratios[-1] for ratios, _ in profiles.values() if len(ratios))
    for number, (solver, (ratios, shares)) in enumerate(profiles.items()):
        across = np.concatenate([[1.0], ratios, [max(2.0, 1.1 * last)]])
        up = np.concatenate([[0.0], shares, [shares[-1] if len(shares) else 0.0]])
        axes.step(across, up, where="post", label=solver, **line_look(number))
    axes.set_xscale("log", base=2)
    axes.set_ylim(0, 1.03)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return save_picture(figure, path, {s: {"ratio": r.tolist(), "share": f.tolist()} for s, (r, f) in profiles.items()})


def convergence_plot(curves: dict[str, dict[str, list[float]]], title: str, path: Path) -> Path | None:
    """Largest relative residual against iterations: curve name -> {"iterations", "error"}; None without curves."""
    if not curves:
        return None
    figure, axes = picture_axes(title, "iterations", "largest relative residual")
    for number, (name, curve) in enumerate(curves.items()):
        axes.loglog(curve["iterations"], curve["error"], label=name, **line_look(number))
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return save_picture(figure, path, curves)


def regret_plot(curves: dict[str, dict[str, list[float]]], path: Path) -> Path:
    """Regret against the horizon on log axes, each curve with its fitted line: name -> {horizon, regret, error}."""
    figure, axes = picture_axes("Regret against a certificate of each path", "horizon T", "mean regret")
    for place, (name, curve) in enumerate(curves.items()):
        across, up = np.asarray(curve["horizon"], float), np.asarray(curve["regret"])
        slope, height = np.polyfit(np.log(across), np.log(np.maximum(up, 1e-12)), 1)
        look = line_look(place)
        axes.errorbar(across, up, 2 * np.asarray(curve["error"]), fmt="o", color=look["color"], capsize=3)
        axes.plot(across, np.exp(height) * across**slope, **look, label=f"{name}: $T^{{{slope:.2f}}}$")
    axes.set_xscale("log")
    axes.set_yscale("log")
    marks = sorted({T for curve in curves.values() for T in curve["horizon"]})
    axes.set_xticks(marks, [f"{T:g}" for T in marks])
    axes.set_xticks([], minor=True)
    axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return save_picture(figure, path, curves)


def price_plot(run: dict[str, Any], fluid: dict[str, Any], path: Path) -> Path:
    """Prices of one path over its steps, and those of the fluid program as dashes at the right."""
    figure, axes = picture_axes("Prices learnt on one path; dashes: prices of the fluid program", "step", "price")
    prices = np.asarray(run["prices"])
    for place in range(prices.shape[1]):
        colour = COLOURS[place % len(COLOURS)]
        axes.plot(run["steps"], prices[:, place], color=colour, linewidth=1.1, label=f"resource {place + 1}",
                  linestyle="-" if place < len(COLOURS) else ":")  # fmt: skip
        axes.axhline(fluid["prices"][place], color=colour, linewidth=0.9, linestyle="--", alpha=0.6)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return save_picture(figure, path, {"run": run, "fluid": fluid})


def save_picture(figure: Any, path: Path, data: Any) -> Path:
    """The picture as PNG, the numbers behind it as JSON beside it."""
    figure.savefig(path, dpi=130)
    path.with_suffix(".json").write_text(json.dumps(data))
    return path
