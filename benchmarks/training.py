"""Training: CPU seconds and memory of one GRPO step against TRL's `GRPOTrainer`, on the same model and rows.

A step samples 64 tokens for 8 completions of each of 8 prompts, scores them, and takes one AdamW update of the loss
`dapo`. Before the first step both libraries take the gradient of one fixed batch: what is timed is the same thing.
"""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.claims import Claim
from benchmarks.generation_speed import Engine
from benchmarks.harness import Options
from benchmarks.machine import machine
from benchmarks.report import Report, Table, number
from benchmarks.training_engines import ENGINES
from benchmarks.training_models import GROUP, NEW, PROMPTS, ROWS, SIZES

ABOUT = "a step of policy training against TRL"
# An interpreter that has trl, whose pins need not be ours; default: this one.
TRL_PYTHON = "PDOPT_TRL_PYTHON"
QUICK_STEPS, FULL_STEPS = 5, 12
PARTS = ("rollout", "update", "step")
REQUIRED = {"step": 1.7, "update": 1.0}
SAME_LOSS, SAME_GRADIENT, SAME_UPDATE = 1e-5, 1e-4, 1e-2


class Trainee(Engine):
    """A child that trains."""

    module = "benchmarks.training_engines"
    pythons: Mapping[str, str] = {"trl": TRL_PYTHON}


def run(options: Options, say: Any = print) -> Report:
    """Both engines in turn, after their gradients were compared."""
    folder = options.output / "model"
    records = measure(folder, FULL_STEPS if options.full else QUICK_STEPS, say)
    facts = machine() | next((r["versions"] for r in records if r["engine"] == "trl" and r["versions"]), {})
    facts.setdefault("trl", _version("trl"))
    notes = [
        f"Qwen2 shape {SIZES}, tied, float32; {PROMPTS} prompts x {GROUP} completions = {ROWS} rows, {NEW} tokens; "
        "no KL, no recomputation. CPU seconds of a process pinned to one core, torch on one thread; the engines take "
        "turns, the first step, which compiles, apart. The claims compare the best steps; medians stand beside them.",
        "Rollout has the reward in it. TRL is its `train`, timed between its callbacks; pdopt is what `train` calls, "
        "without reporters and checkpoints.",
        "The limit of the update: its products are 21 GFLOP (26 where every completion has its prompt again). Alone, "
        "at these shapes (512 to 5 056 rows, inner sizes 128 to 384), on one core of the machine it was tuned on, XLA "
        "made 85 to 130 GFLOP/s and torch 100 to 145: 0.2 s of products in either.",
        "Memory: the peak of the resident set in steps after the first, of the whole process, and beyond what it held "
        "with the model loaded. The first is what a machine needs; the second is without the imports.",
        f"TRL is run by the interpreter that {TRL_PYTHON} names, or by this one.",
    ]
    return Report("training", records, claims(records), [table(records)], [], facts, notes)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def measure(folder: Path, steps: int, say: Any) -> list[dict[str, Any]]:
    """One record an engine."""
    shutil.rmtree(folder, ignore_errors=True)
    written = _written(folder)
    if written:
        return [{"engine": name, "versions": {}, "outcome": written} for name in ENGINES]
    engines = [Trainee(name, folder) for name in ENGINES]
    try:
        records = _turns(folder, engines, steps)
    finally:
        for engine in engines:
            engine.__exit__()
    compare(folder, records)
    for r in records:
        parts = ", ".join(f"{part} {number(r.get(part))}" for part in PARTS)
        say(f"training, {r['engine']}: CPU seconds: {parts}; {r['outcome']}")
    shutil.rmtree(folder, ignore_errors=True)
    return records


def _written(folder: Path) -> str:
    """Write the folder in a child; why it could not be, or ""."""
    command = [sys.executable, "-m", "benchmarks.training_models", str(folder)]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    return "" if done.returncode == 0 else f"no model: {last[0][-200:]}"


def files(folder: Path, engine: str) -> tuple[Path, Path]:
    """Where an engine leaves its gradient and its updated parameters; pdopt writes folders."""
    names = (folder / f"gradient-{engine}", folder / f"updated-{engine}")
    return names if engine == "pdopt" else (names[0].with_suffix(".safetensors"), names[1].with_suffix(".safetensors"))


def _turns(folder: Path, engines: list[Trainee], steps: int) -> list[dict[str, Any]]:
    """The check of every engine, then `steps + 1` rounds in which each takes a step."""
    answers: dict[str, list[dict[str, Any]]] = {engine.name: [] for engine in engines}
    failed: dict[str, str] = {}
    for round_ in range(steps + 2):
        for engine in engines:
            if "missing" in engine.about or "error" in engine.about:
                failed[engine.name] = "not installed" if "missing" in engine.about else engine.about["error"]
            if engine.name in failed:
                continue
            gradient, updated = files(folder, engine.name)
            order = {"seed": round_} if round_ else {"gradient": str(gradient), "updated": str(updated)}
            answer = engine.ask(**order)
            if "error" in answer or "missing" in answer:
                failed[engine.name] = answer.get("error", answer.get("missing", ""))
            answers[engine.name].append(answer)
    return [record(engine.name, engine.about, answers[engine.name], failed.get(engine.name)) for engine in engines]


def record(name: str, about: dict[str, Any], answers: list[dict[str, Any]], failed: str | None) -> dict[str, Any]:
    """What an engine said, in one row: the check, the step that compiles, and those after it."""
    found = {"engine": name, "versions": about.get("versions", {})}
    if failed is not None:
        return found | {"outcome": failed}
    check, first, *warm = answers
    for part in PARTS:
        seconds = [answer[part] for answer in warm]
        found |= {part: min(seconds), f"{part}_median": median(seconds), f"{part}_all": seconds}
    peaks = [answer["peak_mb"] for answer in warm if answer["peak_mb"] is not None]
    loaded, peak = about.get("loaded_mb"), max(peaks, default=None)
    return found | {
        "outcome": "done", "loss": check["loss"], "first": first["step"], "tokens": warm[-1]["tokens"],
        "peak_mb": peak, "loaded_mb": loaded,
        "growth_mb": peak - loaded if peak is not None and loaded is not None else None,
        "first_peak_mb": first["peak_mb"],
    }  # fmt: skip


def compare(folder: Path, records: list[dict[str, Any]]) -> None:
    """Into pdopt's record: how far its loss, gradient and update of the fixed batch are from TRL's."""
    sides = {r["engine"]: r for r in records if r["outcome"] == "done"}
    if len(sides) < len(ENGINES):
        return
    ours, theirs = (files(folder, name) for name in ("pdopt", "trl"))
    start = read(folder)
    gradients = read(ours[0]), read(theirs[0])
    moved = [{name: leaf - start[name] for name, leaf in read(side[1]).items()} for side in (ours, theirs)]
    loss = sides["trl"]["loss"]
    sides["pdopt"] |= {
        "loss_error": abs(sides["pdopt"]["loss"] - loss) / max(abs(loss), 1e-30),
        "gradient_error": distance(*gradients), "update_error": distance(*moved),
    }  # fmt: skip


def read(place: Path) -> dict[str, np.ndarray]:
    """Arrays of a safetensors file, or of all in a folder."""
    from safetensors.numpy import load_file

    found: dict[str, np.ndarray] = {}
    for file in sorted(place.glob("*.safetensors")) if place.is_dir() else [place]:
        if "-trl" not in file.name or not place.is_dir():
            found |= load_file(file)
    return found


def distance(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """`|a - b| / |b|` over all arrays; infinite where one side has a name that the other lacks.

    Example:
        >>> distance({"w": np.ones(4)}, {"w": np.ones(4) * 2})
        0.5
    """
    if a.keys() != b.keys():
        return float("inf")
    square = lambda x: float(np.sum(np.square(x, dtype=np.float64)))
    return (sum(square(a[name] - b[name]) for name in b) / max(sum(map(square, b.values())), 1e-300)) ** 0.5


def ratio(records: list[dict[str, Any]], field: str) -> float | None:
    """TRL's figure over pdopt's; None where one is missing."""
    sides = {r["engine"]: r.get(field) for r in records if r["outcome"] == "done"}
    ours, theirs = sides.get("pdopt"), sides.get("trl")
    return theirs / ours if ours and theirs else None


def claims(records: list[dict[str, Any]]) -> list[Claim]:
    """That both do the same, and that pdopt is faster and needs no more memory."""
    why = "; ".join(f"{r['engine']}: {r['outcome']}" for r in records if r["outcome"] != "done")
    ours = next(r for r in records if r["engine"] == "pdopt")
    same = (
        ("loss", "loss of a fixed batch", SAME_LOSS), ("gradient", "its gradient", SAME_GRADIENT),
        ("update", "its AdamW update", SAME_UPDATE),
    )  # fmt: skip
    made = [
        Claim(f"relative difference from TRL, {what}", ours.get(f"{field}_error"), most, "<=", why)
        for field, what, most in same
    ]
    for part, least in REQUIRED.items():
        middle = ratio(records, f"{part}_median")
        note = why if middle is None else f"by medians {middle:.3g}"
        made.append(Claim(f"TRL's CPU seconds over pdopt's, {part}", ratio(records, part), least, ">=", note))
    for field, what in (("peak_mb", "whole process"), ("growth_mb", "beyond the loaded model")):
        share = ratio(records, field)
        note = why or ", ".join(f"{r['engine']} {number(r.get(field))} MB" for r in records)
        made.append(Claim(f"pdopt's peak memory over TRL's, {what}", 1 / share if share else None, 1.0, "<=", note))
    return made


def table(records: list[dict[str, Any]]) -> Table:
    """Seconds, best and median, and memory."""
    columns = ["engine", *PARTS, *(f"{part}, median" for part in PARTS), "first step", "peak MB", "growth MB",
               "first step's peak MB", "outcome"]  # fmt: skip
    fields = [*PARTS, *(f"{part}_median" for part in PARTS), "first", "peak_mb", "growth_mb", "first_peak_mb"]
    rows = [[r["engine"], *(number(r.get(field)) for field in fields), r["outcome"]] for r in records]
    if ratio(records, "step") is not None:
        rows.append(["TRL / pdopt", *(number(ratio(records, field)) for field in fields), ""])
    return Table(f"CPU seconds of a step, {ROWS} rows of {NEW} tokens, width {SIZES['width']}", columns, rows)
