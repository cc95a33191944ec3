"""Transport linear programs: pdopt on sums and broadcasts, OR-tools PDLP on the explicit matrix of 2 n m entries.

`min <C, T>  subject to  T 1 = a, T' 1 = b, T >= 0` with uniform costs and marginals of mean 1. The two stop by
different tests, so both answers are made feasible and judged alike: the plan rounded to the marginals (Altschuler and
others 2017), the potentials shifted below the costs, and the relative gap between what is left, at most 1e-4. PDLP is
asked for tighter and tighter tolerances until its answer passes, and only that last solve counts (its 1e-4 is a gap of
a percent or so after rounding). Memory of ours: the buffers of the compiled program, its answer among them, beside the
costs and with them.
`python -m benchmarks.structured SIDE N LIMIT` is one child, on one core.
"""

import json
import os
import sys
import time
from typing import Any

import numpy as np

from benchmarks.children import measured
from benchmarks.claims import Claim
from benchmarks.harness import Options
from benchmarks.machine import machine
from benchmarks.plots import COLOURS, picture_axes, save_picture
from benchmarks.report import Report, Table, number
from pdopt.runtime.cache import set_cpu_flags

ABOUT = "transport by an operator that is never stored, against OR-tools PDLP on the explicit matrix"
SIDES, SIZES = ("pdopt", "pdlp"), (300, 2000)
TOLERANCE, FASTER, ARRAYS = 1e-4, 5.0, 4.0
BLOCKS = 0.25  # of an array: the vectors and the blocks of the judge, where the costs are counted too
TIGHTER = (1e-5, 1e-6, 1e-7, 1e-8)  # what PDLP is asked for, one after the other
LIMIT = 300.0  # wall seconds of PDLP; what it has not ended by then is a lower bound


def run(options: Options, say: Any = print) -> Report:
    """300 x 300 in quick mode, and 2 000 x 2 000 in full, with a limit on PDLP."""
    sizes = SIZES if options.full else SIZES[:1]
    limit = max(options.time_limit, LIMIT)
    records = []
    for n in sizes:
        for side in SIDES:
            about = {"solver": side, "n": n}
            records.append(measured("benchmarks.structured", (side, str(n), repr(limit)), about, 4 * limit + 600))
            say(f"{side}, n = {n}: {records[-1].get('cpu', float('nan')):.3g} s, {records[-1].get('outcome')}")
    rows = [
        [r["solver"], str(r["n"]), r["outcome"]]
        + [number(r.get(k)) for k in ("cpu", "iterations", "micro", "marginals", "error", "objective", "arrays", "all")]
        for r in records
    ]  # fmt: skip
    columns = ["side", "n", "outcome", "CPU s", "iterations", "us an iteration", "marginal error / mass",
               "certified gap", "objective", "memory / (n m doubles)", "with the costs"]  # fmt: skip
    table = Table(f"Transport n x n at {TOLERANCE:g}, float64", columns, rows)
    notes = ["A pdopt run is compiled beforehand; PDLP's time is of its solve alone, its matrix built beforehand."]
    return Report("structured", records, claims(records), [table], [_picture(records, options)], machine(), notes)


def claims(records: list[dict[str, Any]]) -> list[Claim]:
    """What is promised of an operator that is never stored."""
    held = []
    for n in dict.fromkeys(r["n"] for r in records):
        sides = {r["solver"]: r for r in records if r["n"] == n}
        peer = sides["pdlp"]
        note = f"PDLP {peer.get('outcome')} at {peer.get('asked', 0):g}"
        ours = sides["pdopt"]
        known = ours.get("outcome") == "solved" and "cpu" in peer
        ratio = peer["cpu"] / ours["cpu"] if known else None
        held.append(Claim(f"CPU seconds of PDLP / pdopt, {n} x {n}", ratio, FASTER, ">=", note))
        promise = f"memory of pdopt in arrays of {n} x {n} doubles"
        held.append(Claim(f"{promise}, beside the costs", ours.get("arrays"), ARRAYS, "<=", "compiled program"))
        whole = f"and {BLOCKS:g} for vectors and blocks"
        held.append(Claim(f"{promise}, with the costs", ours.get("all"), ARRAYS + BLOCKS, "<=", whole))
        gap = abs(ours["objective"] - peer["objective"]) / (1 + abs(peer["objective"])) if known else None
        solved = gap if peer.get("outcome") == "solved" else None
        held.append(Claim(f"relative difference of the values, {n} x {n}", solved, 10 * TOLERANCE, "<="))
    return held


def instance(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Costs uniform in [0, 1] and two marginals of mass n, entries within 0.5 to 1.5 times each other."""
    rng = np.random.default_rng(n)
    C, a, b = rng.uniform(size=(n, n)), rng.uniform(0.5, 1.5, n), rng.uniform(0.5, 1.5, n)
    return C, n * a / a.sum(), n * b / b.sum()


def judge(C: np.ndarray, a: np.ndarray, b: np.ndarray, T: np.ndarray, f: np.ndarray) -> dict[str, float]:
    """The value of the plan once it is feasible, that of the potentials once they are, and the relative gap between.

    `marginals` is the L1 error of the plan as it came, over the mass.
    """
    T = np.maximum(T, 0)
    mass = float((np.abs(T.sum(1) - a).sum() + np.abs(T.sum(0) - b).sum()) / a.sum())
    T = T * np.minimum(1, a / np.maximum(T.sum(1), 1e-300))[:, None]
    T = T * np.minimum(1, b / np.maximum(T.sum(0), 1e-300))
    rows, columns = a - T.sum(1), b - T.sum(0)
    value = float(np.sum(C * T) + rows @ C @ columns / max(rows.sum(), 1e-300))
    dual = float(f @ a + np.min(C - f[:, None], axis=0) @ b)
    gap = (value - dual) / (1 + abs(value) + abs(dual))
    return {"objective": value, "error": gap, "marginals": mass}


def child(side: str, n: int, limit: float) -> dict[str, Any]:
    """One side's figures."""
    C, a, b = instance(n)
    found = _pdlp(C, a, b, limit) if side == "pdlp" else _ours(C, a, b)
    passed = abs(found["error"]) <= 1.01 * TOLERANCE
    outcome = "solved" if passed else "time limit" if "time" in found["status"] else "inaccurate"
    return found | {"outcome": outcome, "micro": 1e6 * found["cpu"] / max(found["iterations"], 1)}


def _ours(C: np.ndarray, a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    import pdopt
    from pdopt.solve import _solve, checked_options, default_method

    with jax.enable_x64(True):
        whole = lambda p, most: jax.block_until_ready(
            pdopt.solve(p, tolerance=TOLERANCE, max_iterations=most, gradient="none")
        )
        problem = pdopt.Transport(C, a, b, dtype=jnp.float64)
        method = default_method(problem)
        given = checked_options(problem, TOLERANCE, 1, "none", 0)
        sizes: Any = _solve.plain.lower(problem, method, None, *given, "none", 0).compile().memory_analysis()
        whole(problem, 1)
        start = time.process_time()
        solution = whole(problem, 1_000_000)
        seconds = time.process_time() - start
        f = np.asarray(solution.y.f)
        plan = solution.x.todense() if hasattr(solution.x, "todense") else solution.x
        judged = judge(C, a, b, np.asarray(plan), f)
    own = sizes.temp_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return judged | {
        "status": str(solution.reason), "cpu": seconds, "iterations": int(solution.iterations),
        "arrays": own / C.nbytes, "all": (own + sizes.argument_size_in_bytes) / C.nbytes,
    }  # fmt: skip


def _pdlp(C: np.ndarray, a: np.ndarray, b: np.ndarray, limit: float) -> dict[str, Any]:
    import scipy.sparse as sp

    from benchmarks.data import make
    from benchmarks.solvers.ortools_pdlp import solve

    n, m = C.shape
    entry = np.arange(n * m)
    row = np.concatenate([entry // m, n + entry % m])
    A = sp.csr_matrix((np.ones(2 * n * m), (row, np.concatenate([entry, entry]))), shape=(n + m, n * m))
    right = np.concatenate([a, b])
    data = make(C.ravel(), A, right, right, np.zeros(n * m), np.full(n * m, np.inf))
    found: dict[str, Any] = {}
    for tolerance in TIGHTER:
        answer = solve(data, tolerance, limit)
        assert answer.x is not None
        assert answer.y is not None
        found = judge(C, a, b, answer.x.reshape(n, m), answer.y[:n])
        found |= {
            "status": answer.status,
            "cpu": answer.timing.cpu,
            "iterations": answer.iterations,
            "asked": tolerance,
        }
        if abs(found["error"]) <= 1.01 * TOLERANCE or answer.status != "optimal":
            break
    return found


def _picture(records: list[dict[str, Any]], options: Options) -> Any:
    """CPU seconds by size, a bar a side."""
    figure, axes = picture_axes("Transport n x n: CPU seconds", "n", "CPU seconds")
    sizes = list(dict.fromkeys(r["n"] for r in records))
    for number_, side in enumerate(SIDES):
        heights = [
            next((r.get("cpu", 0.0) for r in records if r["n"] == n and r["solver"] == side), 0.0) for n in sizes
        ]
        axes.bar(np.arange(len(sizes)) + 0.28 * number_ - 0.28, heights, 0.26, color=COLOURS[number_], label=side)
    axes.set_xticks(range(len(sizes)), [str(n) for n in sizes])
    axes.set_yscale("log")
    axes.legend(fontsize=8)
    return save_picture(figure, options.output / "seconds.png", records)


if __name__ == "__main__":
    set_cpu_flags()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(json.dumps(child(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))))
