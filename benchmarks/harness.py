"""Run solvers on instances in child processes with hard limits, judge every answer, and keep one record a run.

A child takes all tasks of one solver (see `benchmarks.worker`); when a task overruns, the child's process group is
killed, the task becomes a "time limit" row and a new child takes the rest. Nothing is dropped.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.data import Instance, save
from benchmarks.solvers import SOLVERS
from benchmarks.verify import check_point, proves_infeasible, proves_unbounded

COMPILE_ALLOWANCE = 30.0  # seconds beyond the limit that a solver compiled by JAX may take for compiling
OVERRUN = 1.1  # of a limit of CPU seconds, which no solver counts itself
GRACE = 2.0  # seconds for data and answers to pass between the processes


class Options(NamedTuple):
    """What the command line decides."""

    output: Path
    full: bool = False
    peers: tuple[str, ...] = ()
    tolerances: tuple[float, ...] = (1e-4, 1e-8)
    time_limit: float = 10.0
    budget: float = 150.0
    seed: int = 0
    data: Path = Path("../shared/data")
    source: str = "auto"
    families: tuple[str, ...] = ()
    patience: float = 0.0  # 0: the limit is of wall seconds; else of CPU seconds, and wall ones may be so many times it
    largest: int | None = None
    smallest: int = 0


def run_all(
    instances: list[Instance], solvers: tuple[str, ...], options: Options, say: Any = print
) -> list[dict[str, Any]]:
    """One record for each (solver, tolerance, instance); the time left is shared by the solvers still to run.

    Raises:
        ValueError: two instances of one name, whose records could not be told apart.
    """
    names = Counter(instance.name for instance in instances)
    if twice := sorted(name for name, times in names.items() if times > 1):
        raise ValueError(f"instances must have names of their own, got more than one {', '.join(twice)}")
    folder = options.output / "work"
    folder.mkdir(parents=True, exist_ok=True)
    for number, instance in enumerate(instances):
        save(instance.data, folder / f"{number}.npz")
    # Solvers that compile come last: the others need seconds, and what they leave of the budget goes to the rest. A
    # solver may take two shares of what is left, so that the first of those that compile is seldom cut.
    order = sorted(solvers, key=lambda solver: SOLVERS[solver].compiles)
    started, found = time.monotonic(), {}
    for place, solver in enumerate(order):
        left = options.budget - (time.monotonic() - started)
        deadline = time.monotonic() + max(left, 0.0) * 2 / (len(order) - place + 1)
        found[solver] = _run_solver(solver, instances, options, folder, deadline)
        say(f"{solver}: " + ", ".join(f"{n} {o}" for o, n in sorted(_count(found[solver]).items())))
    return [record for solver in solvers for record in found[solver]]


def _count(records: list[dict[str, Any]]) -> dict[str, int]:
    return Counter(record["outcome"] for record in records)


def _run_solver(
    solver: str, instances: list[Instance], options: Options, folder: Path, deadline: float
) -> list[dict[str, Any]]:
    """All runs of one solver, instance by instance so that a compiled program serves every tolerance."""
    compiling = COMPILE_ALLOWANCE if SOLVERS[solver].compiles else 0.0
    # More CPU than this cannot be a solve within its limit. MPAX has no limit of its own, and the wall one is patient.
    cpu = options.time_limit * OVERRUN + compiling + GRACE if options.patience else None
    tasks = [
        {
            "key": f"{number}:{tolerance:g}", "data": str(folder / f"{number}.npz"), "tolerance": tolerance,
            "limit": options.time_limit, "cpu": cpu, "answer": str(folder / f"{solver}-{number}-{tolerance:g}.npz"),
        }
        for number in sorted(range(len(instances)), key=lambda i: instances[i].data.nonzeros)
        for tolerance in options.tolerances
    ]  # fmt: skip
    results: dict[str, dict[str, Any]] = {}
    about: dict[str, Any] = {}
    pending = list(tasks)
    while pending:
        if time.monotonic() >= deadline:
            results.update({task["key"]: {"cut": "time budget of the whole run"} for task in pending})
            break
        order = folder / f"{solver}.json"
        order.write_text(json.dumps({"solver": solver, "tasks": pending}))
        command = [sys.executable, "-m", "benchmarks.worker", str(order)]
        allowed = (options.time_limit + compiling) * max(options.patience, 1.0) + GRACE
        found, about_child = run_child(command, allowed, deadline, folder / f"{solver}.log")
        about = about or about_child
        results.update(found)
        if "missing" in about_child:
            results.update({task["key"]: {"missing": about_child["missing"]} for task in pending})
            break
        if (
            not found and time.monotonic() < deadline
        ):  # the child ended before its first task, for a reason that its log holds
            results.update({task["key"]: {"crash": "the child process ended early"} for task in pending})
        pending = [task for task in pending if task["key"] not in results]
    return [_record(solver, task, results[task["key"]], instances, about, options) for task in tasks]


def run_child(
    command: list[str], allowed: float, deadline: float, log: Path
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """One child until it ends, overruns `allowed` seconds on a task, or the deadline passes.

    Returns:
        Results by task key (`overran`, `cut` or `crash` for the one that was under way), and what it said of itself.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("a") as errors:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True, env=environment,
            cwd=Path(__file__).resolve().parent.parent,
        )  # fmt: skip
    lines: queue.Queue[str | None] = queue.Queue()

    def pump() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            lines.put(line)
        lines.put(None)

    reader = threading.Thread(target=pump, daemon=True)
    reader.start()
    results: dict[str, dict[str, Any]] = {}
    about: dict[str, Any] = {}
    current: str | None = None
    ends = time.monotonic() + allowed + COMPILE_ALLOWANCE  # importing the peer
    try:
        while True:
            try:
                line = lines.get(timeout=max(min(ends, deadline) - time.monotonic(), 0.0))
            except queue.Empty:
                if current is not None:
                    why = (
                        {"overran": f"{allowed:g} s with compilation"}
                        if time.monotonic() >= ends
                        else {"cut": "time budget of the whole run"}
                    )
                    results[current] = why
                break
            if line is None:
                if current is not None:
                    code = child.wait()
                    results[current] = (
                        {"overran": "the CPU seconds of its limit and of compilation"}
                        if code == -signal.SIGXCPU
                        else {"crash": f"the child process ended with code {code}"}
                    )
                break
            message = json.loads(line)
            if "start" in message:
                current = message["start"]
                ends = time.monotonic() + allowed
            elif "done" in message:
                results[message.pop("done")] = message
                current = None
            else:
                about = message
    finally:
        if child.poll() is None:
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                child.poll()  # it ended between the look and the signal
        child.wait()
        reader.join()
        if child.stdout is not None:
            child.stdout.close()
    return results, about


def _record(
    solver: str,
    task: dict[str, Any],
    result: dict[str, Any],
    instances: list[Instance],
    about: dict[str, Any],
    options: Options,
) -> dict[str, Any]:
    """One flat record: what was run, what came back, and the judge's verdict."""
    instance = instances[int(task["key"].split(":")[0])]
    m, n = instance.data.A.shape
    record = {
        "solver": solver, "instance": instance.name, "family": instance.family, "tolerance": task["tolerance"],
        "rows": m, "columns": n, "nonzeros": instance.data.nonzeros, "expected": instance.expected,
        "time_limit": task["limit"], "versions": about.get("versions", {}), "flags": about.get("flags", ""),
        "device": about.get("device", ""),
    }  # fmt: skip
    for word, outcome in (("missing", "not installed"), ("cut", "cut"), ("overran", "time limit"), ("crash", "crash")):
        if word in result:
            return record | {"outcome": outcome, "detail": str(result[word])}
    record |= result
    clock = "cpu" if options.patience else "wall"
    if result[clock] > task["limit"] * (OVERRUN if options.patience else 1.0):  # its solve is not allowed longer
        return record | {"outcome": "time limit", "detail": f"{result[clock]:.3g} s"}
    with np.load(task["answer"]) as file:
        arrays = {name: file[name] for name in file.files}
    if "history" in arrays:
        record["history"] = dict(zip(("iterations", "error"), arrays["history"].T.tolist()))
    return record | verdict(instance, result["status"], arrays, task["tolerance"])


def verdict(instance: Instance, status: str, arrays: dict[str, np.ndarray], tolerance: float) -> dict[str, Any]:
    """The outcome of an answer, whatever the solver's own status says.

    solved: x, y pass the judge; certified: the claimed infeasibility is proved by the ray returned; claimed: it agrees
    with the reference, or nothing is known, but no ray proves it; wrong: it contradicts the reference; inaccurate:
    called optimal, yet the judge's numbers fail; limit: the solver gave up.
    """
    found: dict[str, Any] = {}
    if "x" in arrays and "y" in arrays:
        check = check_point(instance.data, arrays["x"], arrays["y"], arrays.get("z"))
        found = check._asdict() | {"error": check.error}
        if instance.objective is not None:
            value = instance.data.sense * check.objective
            found["objective_error"] = abs(value - instance.objective) / (1 + abs(instance.objective))
        if status not in ("primal_infeasible", "dual_infeasible") and check.passes(tolerance):
            contradicts = instance.expected not in ("", "optimal")
            return found | {"outcome": "wrong" if contradicts else "solved"}
    if status == "optimal":
        return found | {"outcome": "inaccurate"}
    if status in ("primal_infeasible", "dual_infeasible"):
        proof = (
            proves_infeasible(instance.data, arrays.get("ray_y"))
            if status == "primal_infeasible"
            else proves_unbounded(instance.data, arrays.get("ray_x"))
        )
        # A ray that proves the dual infeasible contradicts an optimum only: the primal may be infeasible as well.
        if instance.expected not in ("", status) and not (proof and instance.expected != "optimal"):
            return found | {"outcome": "wrong"}
        return found | {"outcome": "certified" if proof else "claimed"}
    return found | {"outcome": "limit"}
