"""Pictures of the matching comparison: ratios by policy, bounds over the optimum, the worst small graphs."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.plots import COLOURS, save_picture

MARKERS = ("o", "s", "^", "D", "v", "P")


def ratio_plot(rows: list[dict[str, Any]], bands: dict[str, list[tuple[str, float, float]]], path: Path) -> Path:
    """Mean ratio with a 95 % interval for each policy, one panel a family; the promised bands are shaded."""
    figure, panels = _figure(1, len(bands), (10.5, 4.2))
    for axes, (family, promised) in zip(panels, bands.items()):
        chosen = [row for row in rows if row["family"] == family]
        policies = list(dict.fromkeys(row["policy"] for row in chosen))
        sizes = list(dict.fromkeys(row["size"] for row in chosen))
        for name, low, high in promised:
            place = policies.index(name)
            axes.fill_between([place - 0.45, place + 0.45], low, high, color="0.85", zorder=0)
        for number, size in enumerate(sizes):
            offset = 0.22 * (number - (len(sizes) - 1) / 2)
            mine = [row for row in chosen if row["size"] == size]
            across = [policies.index(row["policy"]) + offset for row in mine]
            axes.errorbar(
                across, [row["ratio"] for row in mine], yerr=[1.96 * row["error"] for row in mine], fmt=MARKERS[number],
                color=COLOURS[number], markersize=5, capsize=3, label=size,
            )  # fmt: skip
        axes.set_xticks(range(len(policies)), [name.replace(" ", "\n", 1) for name in policies], fontsize=8)
        axes.set_title(f"{family} family")
        axes.grid(True, axis="y", alpha=0.3)
        axes.axhline(1 - 1 / np.e, color="0.4", linestyle=":", linewidth=1)
    panels[0].set_ylabel("mean reward / LP value (bars: 95 %)")
    panels[0].annotate("1 - 1/e", (0.01, 1 - 1 / np.e), xycoords=("axes fraction", "data"), fontsize=8, va="bottom")
    panels[-1].legend(fontsize=8, frameon=False)
    return save_picture(figure, path, rows)


def bound_plot(rows: list[dict[str, Any]], path: Path) -> Path:
    """Every program over the exact optimum, graph by graph, sorted by the tightest; what is below 1 bounds nothing."""
    figure, (axes,) = _figure(1, 1, (7.5, 4.2))
    rows = sorted(rows, key=lambda row: row["stochastic"] / row["optimum"])
    across = range(1, len(rows) + 1)
    names = (
        ("matching", "matching"), ("configuration", "configuration"),
        ("stochastic", "stochastic configuration"), ("unweighted", "unweighted variant (invalid)"),
    )  # fmt: skip
    for number, (field, label) in enumerate(names):
        up = [row[field] / row["optimum"] for row in rows]
        axes.plot(across, up, MARKERS[number], color=COLOURS[number], markersize=4, label=label)
    axes.axhline(1, color="0.2", linewidth=1)
    axes.annotate(
        "best adaptive policy", (0.99, 1), xycoords=("axes fraction", "data"), fontsize=8, va="top", ha="right"
    )
    axes.set_xlabel("random graph (n = 3, 6 arrivals), sorted")
    axes.set_ylabel("value of the program / exact optimum")
    axes.set_title("Bounds on the best adaptive policy")
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return save_picture(figure, path, rows)


def worst_plot(rows: list[dict[str, Any]], path: Path) -> Path:
    """The worst table found for each policy: which group may try which offline vertex."""
    figure, panels = _figure(1, len(rows), (2.6 * len(rows), 3.7))
    for axes, row in zip(panels, rows):
        edges = np.array(row["edges"])
        axes.imshow(edges.T, cmap="Greys", vmin=0, vmax=1.6, aspect="equal")
        axes.set_xticks(range(len(edges)), range(1, len(edges) + 1))
        axes.set_yticks(range(len(edges)), range(1, len(edges) + 1))
        axes.set_xlabel("offline vertex")
        axes.set_title(f"{row['policy']}\n{row['ratio']:.3f} ± {row['error']:.3f}", fontsize=9)
    panels[0].set_ylabel("group, in order of arrival")
    figure.suptitle("Worst small graphs found (grey: an edge), ratio to the exact optimum", fontsize=10)
    return save_picture(figure, path, rows)


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).ravel())
