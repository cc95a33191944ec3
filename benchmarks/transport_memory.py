"""Memory of a large squared-Euclidean transport problem, value and gradient: pdopt against OTT's online mode.

Each side runs in a child process of its own. Its growth is the peak of the resident set (`ru_maxrss`, or `VmHWM`, which
a child does not inherit) less what the interpreter, JAX, the library and a small solve of the same kind take; that
baseline is reported apart. Few sweeps are enough: memory depends on how a sweep and a gradient work, not on how many
sweeps there are. `python -m benchmarks.transport_memory SOLVER N SWEEPS` is one child; it prints one JSON object.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.claims import Claim
from benchmarks.harness import Options
from benchmarks.report import Table, number

ABOUT = "peak memory of value and gradient at n = m = 20 000"
POINTS, LIMIT_MB = 20_000, 400.0
DIMENSIONS, SWEEPS, BATCH = 3, 3, 1024
SOLVERS = ("pdopt", "ott-online")
QUICK_SECONDS, FULL_SECONDS = 40.0, 600.0
# The smaller size of quick mode: a plan of it takes 400 MB in float32, as much as the claim allows at full size.
QUICK_POINTS = 10_000


def peak_mb() -> float:
    """The largest resident set of this process so far, MB."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def points(n: int) -> tuple[Any, Any]:
    """Two clouds of n points, float32."""
    import numpy as np

    rng = np.random.default_rng(0)
    x, y = rng.uniform(size=(n, DIMENSIONS)), rng.normal(0.5, 0.2, (n, DIMENSIONS))
    return x.astype(np.float32), y.astype(np.float32)


def pdopt_value(sweeps: int) -> Any:
    """The value of entropic transport by pdopt as a function of x and y."""
    import pdopt

    def value(x: Any, y: Any) -> Any:
        problem = pdopt.Transport(pdopt.SqEuclidean(x, y), regulariser=pdopt.Entropy(0.05), check=False)
        method = pdopt.Sinkhorn(every=sweeps, anneal=False, mode="streamed")
        return pdopt.solve(problem, method, max_iterations=sweeps).objective

    return value


def ott_value(sweeps: int) -> Any:
    """The same by OTT with a point cloud in online mode: `batch_size` rows at a time."""
    from jax.interpreters import batching

    if not hasattr(batching, "is_vmappable"):
        # OTT 0.6 asks JAX for a name that JAX 0.10 made private; arrays are all it is asked about here.
        batching.is_vmappable = lambda x: False  # pyright: ignore[reportAttributeAccessIssue]
    from ott.geometry import pointcloud
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    def value(x: Any, y: Any) -> Any:
        geometry = pointcloud.PointCloud(x, y, epsilon=0.05, batch_size=BATCH)
        found = sinkhorn.Sinkhorn(max_iterations=sweeps, min_iterations=sweeps, inner_iterations=sweeps)
        return found(linear_problem.LinearProblem(geometry)).reg_ot_cost

    return value


def child(solver: str, n: int, sweeps: int) -> dict[str, Any]:
    """Value and gradient in this process; growth of its peak beyond that of a small problem, and seconds."""
    import jax
    import numpy as np

    value = {"pdopt": pdopt_value, "ott-online": ott_value}[solver](sweeps)
    both = jax.jit(jax.value_and_grad(value))
    small = min(n, 2 * BATCH + 2)
    jax.block_until_ready(both(*points(small)))
    before = peak_mb()
    x, y = points(n)
    started, cpu = time.perf_counter(), time.process_time()
    program = both.lower(x, y).compile()
    compiled = time.process_time() - cpu
    cpu = time.process_time()
    cost, slope = jax.block_until_ready(program(x, y))
    return {
        "solver": solver, "n": n, "sweeps": sweeps, "baseline_mb": before, "growth_mb": peak_mb() - before,
        "cpu": time.process_time() - cpu, "compile_cpu": compiled, "wall": time.perf_counter() - started,
        "value": float(cost), "gradient_norm": float(np.linalg.norm(np.asarray(slope))), "outcome": "solved",
    }  # fmt: skip


def measure(solver: str, n: int, limit: float, sweeps: int = SWEEPS) -> dict[str, Any]:
    """One child under a limit of seconds."""
    command = [sys.executable, "-m", "benchmarks.transport_memory", solver, str(n), str(sweeps)]
    about = {"solver": solver, "n": n, "sweeps": sweeps}
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    folder = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, cwd=folder, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return about | {"outcome": "time limit", "limit": limit}
    if done.returncode:
        missing = "ModuleNotFoundError" in done.stderr
        last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
        return about | {"outcome": "not installed" if missing else "crash", "error": last[:300]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def section(options: Options, say: Any = print) -> tuple[list[dict[str, Any]], list[Claim], list[Table], list[Path]]:
    """Records, claims, tables and pictures (none) of the memory comparison.

    Quick mode runs the claim's size if a trial at half the size says that it fits its seconds, else that half: the
    claim is then judged on a quarter of the entries against the same 400 MB, which a stored plan would already take.
    """
    limit = FULL_SECONDS if options.full else QUICK_SECONDS
    records = []
    for solver in SOLVERS:
        trial = measure(solver, QUICK_POINTS, limit)
        records.append(trial)
        enough = trial["outcome"] == "solved" and 4 * trial["wall"] + 10 < limit
        if options.full or (solver == "pdopt" and enough):
            records.append(measure(solver, POINTS, limit))
        for record in records:
            if record["solver"] == solver:
                say(f"memory, {solver}, n = {record['n']}: {number(record.get('growth_mb'))} MB, {record['outcome']}")
    return records, claims(records), [table(records)], []


def claims(records: list[dict[str, Any]]) -> list[Claim]:
    """The memory bound, from the largest problem that was run."""
    ours = [r for r in records if r["solver"] == "pdopt" and r["outcome"] == "solved"]
    promise = "MB that value and gradient of a squared-Euclidean problem take, n = m = {}"
    if not ours:
        return [Claim(promise.format(POINTS), None, LIMIT_MB, "<=", "no run finished")]
    largest = max(ours, key=lambda r: r["n"])
    promise = promise.format(largest["n"])
    note = "" if largest["n"] == POINTS else f"--full takes n = {POINTS}"
    growths = {r["n"]: r["growth_mb"] for r in records if r["solver"] == "ott-online" and r["outcome"] == "solved"}
    peers = ", ".join(f"OTT online at n = {n}: {mb:.0f} MB" for n, mb in growths.items())
    return [Claim(promise, largest["growth_mb"], LIMIT_MB, "<=", "; ".join(p for p in (note, peers) if p))]


def table(records: list[dict[str, Any]]) -> Table:
    """Growth beyond the baseline, and the plan that is not stored."""
    rows = [
        [
            r["solver"], f"{r['n']}", f"{r['sweeps']}", number(r.get("growth_mb")), number(r.get("baseline_mb")),
            number(4e-6 * r["n"] ** 2), number(r.get("cpu")), number(r.get("compile_cpu")), r["outcome"],
        ]
        for r in records
    ]  # fmt: skip
    columns = [
        "solver", "n = m", "sweeps", "growth MB", "baseline MB", "a plan would be MB", "CPU s", "compile CPU s",
        "outcome",
    ]  # fmt: skip
    return Table("Memory of value and gradient in x, float32, few sweeps", columns, rows)


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
