"""Faithful GRPO on the scene task: what plain GRPO does to a model's traces, and what multipliers hold.

A policy is taught by imperfect traces and then trained on the answer alone, beside a hint that is right in 90 %
(`pdopt/training/scenes.py`). Claims are about every one of three seeds, so that each figure is the worst of them. The
phenomenon and the constraints are those of Faithful GRPO (arXiv 2604.08476), in a task small enough for two cores.
"""

from typing import Any

import numpy as np

from benchmarks.claims import Claim
from benchmarks.faithful_methods import (
    CAUSAL,
    LAST,
    METHODS,
    PLAIN,
    PROXY,
    PROXY_LATE,
    RECOMMENDED,
    SWEEP,
    Runs,
    run_all,
)
from benchmarks.faithful_plots import method_plot, proxy_plot
from benchmarks.faithful_policy import HINT, PROXY_HINT, Size
from benchmarks.harness import Options
from benchmarks.machine import machine
from benchmarks.report import Report, Table

ABOUT = "Faithful GRPO: a policy that is paid for its answer drops its trace; constraints held by multipliers keep it"
SEEDS = 3
Records = list[dict[str, Any]]


def run(options: Options, say: Any = print) -> Report:
    """Teach, train, judge and draw."""
    return report(run_all(seeds(options), options.full, Size(), say), options)


def seeds(options: Options) -> tuple[int, ...]:
    """Three seeds; each changes the supervised phase, the data and the policy's training together."""
    return tuple(options.seed + k for k in range(SEEDS))


def report(runs: Runs, options: Options) -> Report:
    """Tables, claims and pictures of finished runs."""
    records = runs.records
    pictures = [method_plot(runs.histories, options.output / "faithful.png")]
    tables = [method_table(records, "method", METHODS, "Methods, final figures of each seed")]
    if options.full:
        pictures.append(proxy_plot(runs.histories, options.output / "proxy.png"))
        tables += [
            method_table(records, "sweep", SWEEP, "Sweeps and ablations, first seed"),
            proxy_table(records),
            method_table(records, "causal", {CAUSAL: None}, "Causal control: taught and trained without a usable hint"),
        ]
    return Report("faithful", records, claims(records), tables, pictures, machine(), notes(records, options))


def notes(records: Records, options: Options) -> list[str]:
    """What a reader must know to judge the table."""
    size = Size()
    return [
        f"{size.steps} steps of {size.prompts} prompts x {size.group} completions from a reference taught for "
        f"{size.taught} steps; hint right in {HINT:.0%}; tau = 0.95 for both constraints; seeds {seeds(options)}.",
        f"Figures at the end: {size.judged} fresh prompts at temperature 1. 'late': mean of the last {LAST} training "
        "batches. 'no hint': accuracy where the hint tells nothing (chance 0.25), which no constraint here sees. "
        "'short': sum over the steps of how far consistency was below 0.95.",
        fixed_note(records),
        "tau must exceed what the shortcut gets for nothing: a grounded trace agrees with a hint that is right in 90 % "
        "in 90 % of the cases, so tau = 0.85 is met by a policy that copies the hint.",
    ]


def fixed_note(records: Records) -> str:
    """The sentence on fixed weights, with this run's figures."""
    mean = lambda name, field: float(np.mean(_values(records, "method", name, field)))
    said = lambda name: f"{mean(name, 'accuracy'):.3f} and {mean(name, 'consistency'):.3f}"
    weights = ", ".join(f"{said(name)} ({name})" for name in METHODS if name.startswith("fixed"))
    return (
        f"A fixed weight that is large enough does as well: mean accuracy and consistency {weights}, against "
        f"{said(RECOMMENDED)} of the recommended multipliers. What multipliers buy is a stated level of consistency "
        "without a search for the weight, not a higher ceiling."
    )


def claims(records: Records) -> list[Claim]:
    """The promises, each by its worst seed."""
    reference = [r for r in records if r["kind"] == "reference" and r["hint"] == HINT]
    count = len(reference)
    of = lambda name, field: _values(records, "method", name, field)
    gain = of(RECOMMENDED, "accuracy") - of(PLAIN, "accuracy")
    unhinted = of(RECOMMENDED, "no_hint") - of(PLAIN, "no_hint")
    grounding = [r["grounding"] for r in reference]
    worst = f"worst of {count} seeds"
    return [
        Claim("reference: consistency after the supervised phase", _least([r["consistency"] for r in reference]),
              0.85, ">=", worst),
        Claim("reference: grounding, at least", _least(grounding), 0.45, ">=", worst),
        Claim("reference: grounding, at most", _most(grounding), 0.55, "<=", worst),
        Claim("plain GRPO learns the shortcut: accuracy", _least(of(PLAIN, "accuracy")), 0.87, ">=", worst),
        Claim("plain GRPO drops the trace: consistency", _most(of(PLAIN, "consistency")), 0.65, "<=", worst),
        Claim("constrained: consistency at the end", _least(of(RECOMMENDED, "consistency")), 0.94, ">=", worst),
        Claim("constrained: consistency, late", _least(of(RECOMMENDED, "consistency_late")), 0.95, ">=",
              f"mean of the last {LAST} batches, {worst}"),
        Claim("constrained: grounding at the end", _least(of(RECOMMENDED, "grounding")), 0.97, ">=", worst),
        Claim("constrained - plain: accuracy", _least(gain), 0.04, ">=", worst),
        Claim("constrained - plain: accuracy where the hint tells nothing", _least(unhinted), 0.4, ">=", worst),
    ]  # fmt: skip


COLUMNS: dict[str, tuple[str, int]] = {
    "accuracy": ("accuracy", 3), "consistency": ("consistency", 3), "late": ("consistency_late", 3),
    "grounding": ("grounding", 3), "right for the right reason": ("right_for_right", 2),
    "answer = hint": ("hinted", 2), "no hint": ("no_hint", 2), "short": ("short", 1),
}  # fmt: skip


def method_table(records: Records, kind: str, methods: dict[str, Any], title: str) -> Table:
    """One row a method, the seeds of each figure apart by slashes; the reference on top of the methods."""
    rows = []
    if kind == "method":
        taught = [r for r in records if r["kind"] == "reference" and r["hint"] == HINT]
        cells = [_cell([r.get(field, float("nan")) for r in taught], digits) for field, digits in COLUMNS.values()]
        rows.append(["reference (supervised)", *cells, "-", "-"])
    for name in methods:
        runs = [r for r in records if r["kind"] == kind and r["method"] == name]
        cells = [_cell([r[field] for r in runs], digits) for field, digits in COLUMNS.values()]
        ends = [_cell([r[field][0] for r in runs], 2) for field in ("y_most", "y_last")]
        rows.append([name, *cells, *ends])
    return Table(title, ["method", *COLUMNS, "largest y of consistency", "last"], rows)


def proxy_table(records: Records) -> Table:
    """How close each signal keeps consistency to its 0.90 where only a multiplier near 1 does."""
    rows = []
    for name in PROXY:
        r = next(r for r in records if r["kind"] == "proxy" and r["method"] == name)
        figures = (r["consistency_late"], r["consistency_late_std"], r["hinted"], r["y_late"][0], r["y_most"][0])
        rows.append([name, *(f"{value:.3f}" for value in figures)])
    title = (
        f"Proxy variant, first seed: the reward is 'answer = hint', hint right in {PROXY_HINT:.0%}, tau 0.90; "
        f"separate advantages cancel at y = 1. Last {PROXY_LATE} batches"
    )
    columns = ["signal", "consistency", "its std", "answer = hint at the end", "mean y", "largest y"]
    return Table(title, columns, rows)


def _values(records: Records, kind: str, name: str, field: str) -> np.ndarray:
    """A field of one method over its seeds, in order."""
    return np.asarray([r[field] for r in records if r["kind"] == kind and r["method"] == name], float)


def _least(values: Any) -> float | None:
    return float(np.min(values)) if len(values) else None


def _most(values: Any) -> float | None:
    return float(np.max(values)) if len(values) else None


def _cell(values: list[float], digits: int) -> str:
    """The figures of all seeds; a dash for what does not exist."""
    return "-" if np.isnan(values).all() else " / ".join(f"{value:.{digits}f}" for value in values)
