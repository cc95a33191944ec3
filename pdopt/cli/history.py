"""The checks of a run as a CSV file and as a convergence plot: relative residuals over iterations, log axis."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from pdopt.rules.loop import HISTORY
from pdopt.runtime.files import write_atomic

# Okabe and Ito's colours, told apart by colour-blind readers too; the dashes tell the curves apart in print.
_CURVES = {"primal": ("#0072B2", "-"), "dual": ("#D55E00", "--"), "gap": ("#009E73", "-.")}


def table(history: Any) -> np.ndarray:
    """The rows in use of `solution.history`, `(checks, 6)`, columns `pdopt.HISTORY`; none where presolve left none."""
    return np.zeros((0, len(HISTORY))) if history is None else np.asarray(history.rows)[: int(history.used)]


def write_rows(path: Path, history: Any) -> None:
    """Write the checks as CSV, whole or not at all; every number reads back as it was."""
    lines = [",".join(HISTORY)]
    lines += [",".join([str(int(row[0])), *(repr(float(value)) for value in row[1:])]) for row in table(history)]
    write_atomic(path, "\n".join(lines) + "\n")


def draw(path: Path, history: Any, tolerance: float, title: str) -> None:
    """Draw the relative residuals of the checks; exact zeros, which a log axis cannot show, are left out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = table(history)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, (colour, dashes) in _CURVES.items():
        values = rows[:, HISTORY.index(name)]
        shown = np.where((values > 0) & np.isfinite(values), values, np.nan)
        label = name if name == "gap" else f"{name} residual"
        axes.plot(rows[:, 0], shown, dashes, color=colour, label=label, marker="." if len(rows) < 40 else None)
    axes.axhline(tolerance, color="0.4", linewidth=1, linestyle=":", label=f"tolerance {tolerance:g}")
    axes.set_yscale("log")
    axes.set_xlabel("iterations")
    axes.set_ylabel("relative residual (l2)")
    axes.set_title(title if len(rows) else f"{title}: no check was made")
    axes.grid(True, which="major", color="0.9")
    axes.legend()
    new = path.with_name(f".{path.stem}.{os.getpid()}.new{path.suffix}")
    try:
        figure.savefig(new, dpi=150)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
