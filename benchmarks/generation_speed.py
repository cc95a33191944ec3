"""New tokens per CPU second and peak memory of generation: pdopt, transformers and Tunix on the same weights.

Every engine is a child process on one core that reads the same folder and prompts, left padded, and writes 64 tokens
for every row. The first call of a shape compiles and is told apart; then the engines take turns, several times over.
"""

import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.claims import Claim
from benchmarks.generation_engines import ENGINES
from benchmarks.generation_models import CASES
from benchmarks.harness import Options
from benchmarks.plots import line_look, picture_axes, save_picture
from benchmarks.report import Table, number

NEW = 64
REQUIRED = {("width 128 x 4", 1): 3.0, ("width 128 x 4", 16): 3.0, ("width 128 x 4", 64): 2.0}
REQUIRED_REAL, REQUIRED_TUNIX = 1.5, 1.0
# An interpreter that has google-tunix, whose pins need not be ours; default: this one.
TUNIX_PYTHON = "PDOPT_TUNIX_PYTHON"
QUICK_SECONDS = 240.0
PATIENCE = 900.0  # seconds for one answer


class Engine:
    """A child that answers one line at a time; a context manager that ends it."""

    module = "benchmarks.generation_engines"
    # Engine -> the variable that names its interpreter, for those whose pins need not be ours.
    pythons: Mapping[str, str] = {"tunix": TUNIX_PYTHON}

    def __init__(self, name: str, folder: Path) -> None:
        python = os.environ.get(self.pythons.get(name, ""), sys.executable)
        root = Path(__file__).resolve().parent.parent
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("a") as errors:
            self._child = subprocess.Popen(
                [python, "-m", self.module, name, str(folder)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=root, env=environment,
            )  # fmt: skip
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._pump, daemon=True).start()
        self.about = self._answer()

    def _pump(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=PATIENCE)
        except queue.Empty:
            return {"error": f"no answer within {PATIENCE:g} s"}
        if line is not None:
            return json.loads(line)
        self._lines.put(None)  # whoever asks again gets the same answer
        last = [text for text in self.log.read_text().splitlines() if text.strip()][-1:]
        missing = last and ("ModuleNotFoundError" in last[0] or "No module named" in last[0])
        return {"missing" if missing else "error": last[0][:300] if last else "the child ended without a word"}

    def ask(self, **order: Any) -> dict[str, Any]:
        """What the child measured, or `error` and why there is nothing."""
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its last words are in the log
            self._child.stdin.write(json.dumps(order) + "\n")
            self._child.stdin.flush()
        return self._answer()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *error: object) -> None:
        self._child.kill()
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def section(options: Options, say: Any = print) -> tuple[list[dict[str, Any]], list[Claim], list[Table], list[Path]]:
    """Records, claims, tables and pictures of every case."""
    deadline = time.monotonic() + (float("inf") if options.full else QUICK_SECONDS)
    records: list[dict[str, Any]] = []
    for case, settings in CASES.items():
        batches = settings.full if options.full else settings.quick
        if not batches:
            continue
        folder = options.output / case.replace(" ", "-")
        written = _written(case, folder)
        if written:
            records += [_base(case, batch, mode, engine) | {"outcome": written} for batch in batches
                        for mode in ("greedy", "sampled") for engine in ENGINES]  # fmt: skip
        else:
            times = settings.full_repetitions if options.full else settings.quick_repetitions
            records += compare(case, folder, batches, times, deadline, say)
        shutil.rmtree(folder, ignore_errors=True)
    pictures = [picture for case in CASES if (picture := plot(records, case, options.output)) is not None]
    return records, claims(records), tables(records), pictures


def _written(case: str, folder: Path) -> str:
    """Write the model of a case in a child, whose memory is then given back; why it could not be, or ""."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.generation_models", case, str(folder)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    return f"no model: {last[0][-200:]}"


def _base(case: str, batch: int, mode: str, engine: str) -> dict[str, Any]:
    return {"case": case, "batch": batch, "mode": mode, "engine": engine, "new": NEW}


def compare(
    case: str, folder: Path, batches: tuple[int, ...], times: int, deadline: float, say: Any
) -> list[dict[str, Any]]:
    """One record an engine, batch and mode."""
    found: list[dict[str, Any]] = []
    engines = [Engine(name, folder) for name in ENGINES]
    try:
        for batch in batches:
            for mode in ("greedy", "sampled"):
                if time.monotonic() > deadline:
                    found += [_base(case, batch, mode, e.name) | {"outcome": "cut"} for e in engines]
                    continue
                rows = _turns(case, folder, engines, batch, mode, times)
                found += rows
                rates = ", ".join(f"{r['engine']} {number(r.get('rate'))}" for r in rows)
                say(f"{case}, batch {batch}, {mode}: tokens per CPU second: {rates}")
    finally:
        for engine in engines:
            engine.__exit__()
    return found


def _turns(case: str, folder: Path, engines: list[Engine], batch: int, mode: str, times: int) -> list[dict[str, Any]]:
    """The first call of every engine, then `times` rounds in which each has a turn."""
    order = {"prompts": str(folder / f"prompts-{batch}.npz"), "new": NEW, "sampled": mode == "sampled"}
    answers: dict[str, list[dict[str, Any]]] = {engine.name: [] for engine in engines}
    failed: dict[str, str] = {}
    for round_ in range(times + 1):
        for engine in engines:
            if "missing" in engine.about or "error" in engine.about:
                failed[engine.name] = "not installed" if "missing" in engine.about else engine.about["error"]
            if engine.name in failed:
                continue
            answer = engine.ask(**order, seed=round_, tokens=str(folder / f"{engine.name}-{mode}-{batch}.npy"))
            if "error" in answer or "missing" in answer:
                failed[engine.name] = answer.get("error", answer.get("missing", ""))
            else:
                answers[engine.name].append(answer)
    return [_record(case, folder, engine, batch, mode, answers[engine.name], failed.get(engine.name))
            for engine in engines]  # fmt: skip


def _record(
    case: str, folder: Path, engine: Engine, batch: int, mode: str, answers: list[dict[str, Any]], failed: str | None
) -> dict[str, Any]:
    record = _base(case, batch, mode, engine.name) | {"versions": engine.about.get("versions", {})}
    if failed is not None:
        return record | {"outcome": failed}
    first, *warm = answers
    seconds = [answer["cpu"] for answer in warm]
    peaks = [answer["peak_mb"] for answer in warm if answer["peak_mb"] is not None]
    record |= {
        "outcome": "done", "cpu": min(seconds), "cpu_median": median(seconds), "cpu_all": seconds,
        "wall_median": median(answer["wall"] for answer in warm),
        "compile_cpu": max(0.0, first["cpu"] - min(seconds)), "peak_mb": max(peaks, default=None),
        "rate": batch * NEW / min(seconds), "rate_median": batch * NEW / median(seconds),
    }  # fmt: skip
    reference = folder / f"transformers-{mode}-{batch}.npy"
    if mode == "greedy" and reference.is_file():
        theirs, ours = np.load(reference), np.load(folder / f"{engine.name}-{mode}-{batch}.npy")
        record["first_equal"] = float((theirs[:, 0] == ours[:, 0]).mean())
        record["equal"] = float((theirs == ours).mean())
    return record


def ratio(records: list[dict[str, Any]], case: str, batch: int, peer: str, field: str = "rate") -> float | None:
    """The rate of pdopt over a peer's, the worse of greedy and sampled; None where one is missing."""
    found = []
    for mode in ("greedy", "sampled"):
        sides = {r["engine"]: r for r in records if (r["case"], r["batch"], r["mode"]) == (case, batch, mode)}
        if all(sides.get(name, {}).get("outcome") == "done" for name in ("pdopt", peer)):
            found.append(sides["pdopt"][field] / sides[peer][field])
    return min(found) if found else None


def claims(records: list[dict[str, Any]]) -> list[Claim]:
    """Speed against each peer, and that all say the same."""
    found = []
    for case, batch in dict.fromkeys((r["case"], r["batch"]) for r in records):
        required = REQUIRED.get((case, batch), REQUIRED_REAL if CASES[case].sizes is None else None)
        for peer, least in (("transformers", required), ("tunix", REQUIRED_TUNIX)):
            if least is None:
                continue
            middle = ratio(records, case, batch, peer, "rate_median")
            outcomes = {r["outcome"] for r in records if (r["case"], r["batch"], r["engine"]) == (case, batch, peer)}
            note = f"by medians {middle:.3g}" if middle is not None else "; ".join(sorted(outcomes - {"done"}))
            found.append(Claim(
                f"new tokens per CPU second over {peer}'s, {case}, batch {batch}",
                ratio(records, case, batch, peer), least, ">=", note,
            ))  # fmt: skip
    same = [r for r in records if "first_equal" in r and r["engine"] != "transformers"]
    for engine in sorted({r["engine"] for r in same}):
        mine = [r for r in same if r["engine"] == engine]
        note = f"of all {NEW} tokens: {min(r['equal'] for r in mine):.3f} or more"
        promise = f"share of first greedy tokens of {engine} equal to transformers'"
        found.append(Claim(promise, min(r["first_equal"] for r in mine), 1.0, ">=", note))
    return found


def tables(records: list[dict[str, Any]]) -> list[Table]:
    """One table a case."""
    columns = ["batch, mode", "engine", "tokens / CPU s", "by median", "ratio to transformers", "compile CPU s",
               "peak MB", "equal tokens", "outcome"]  # fmt: skip
    made = []
    for case in dict.fromkeys(r["case"] for r in records):
        rows = []
        for r in (r for r in records if r["case"] == case):
            other = [p for p in records if p["engine"] == "transformers" and "rate" in p
                     and all(p[k] == r[k] for k in ("case", "batch", "mode"))]  # fmt: skip
            share = r["rate"] / other[0]["rate"] if other and "rate" in r else None
            values = (
                r.get("rate"),
                r.get("rate_median"),
                share,
                r.get("compile_cpu"),
                r.get("peak_mb"),
                r.get("equal"),
            )
            rows.append([f"{r['batch']}, {r['mode']}", r["engine"], *map(number, values), r["outcome"]])
        made.append(Table(f"Generation of {NEW} tokens a row, {case}, float32, one core", columns, rows))
    return made


def plot(records: list[dict[str, Any]], case: str, folder: Path) -> Path | None:
    """Tokens per CPU second against the batch, an engine a colour, a mode a line style; None without a measurement."""
    done = [r for r in records if r["case"] == case and r["outcome"] == "done"]
    if not done:
        return None
    figure, axes = picture_axes(f"Generation, {case}, float32, one core", "batch", "new tokens per CPU second")
    curves: dict[str, dict[str, list[float]]] = {}
    for place, engine in enumerate(ENGINES):
        for mode, style in (("greedy", "-"), ("sampled", "--")):
            rows = [r for r in done if (r["engine"], r["mode"]) == (engine, mode)]
            if rows:
                curve = {"batch": [r["batch"] for r in rows], "rate": [r["rate"] for r in rows]}
                curves[f"{engine}, {mode}"] = curve
                look = line_look(place) | {"linestyle": style}
                axes.loglog(curve["batch"], curve["rate"], marker="o", label=f"{engine}, {mode}", **look)
    batches = sorted({r["batch"] for r in done})
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set_xticks([], minor=True)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return save_picture(figure, folder / f"generation-{case.replace(' ', '-')}.png", curves)
