"""What one whole iteration of pdopt costs beside the two sparse products that it cannot do without.

    t = (wall of a solve with LONG iterations - wall of one with SHORT) / (LONG - SHORT),    r = t / (A x, A'y by SciPy)

Both in one process, in turn, compilation apart; the products are SciPy's compiled ones, A and A' both in rows. Checks,
restarts and step sizes are in t. Nothing stops earlier: the tolerance is out of reach.

The limit: an iteration reads a value of 8 and a place of 4 bytes for every nonzero of A and of A', and about twenty
vectors of 8 bytes an entry of x and of y (bounds, costs, anchors, movement, blend): `24 nnz + 160 (m + n)` bytes in
float64, against SciPy's `24 nnz + 24 (m + n)`. Within the cache it is not bytes that bound it but gathers, about
0.25 to 0.5 ns each on one core, two for every nonzero. The bytes a second that follow from t are in the record.

`python -m benchmarks.linear_iteration DATA.npz` measures one program and prints a line of JSON.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.children import measured
from benchmarks.claims import Claim
from benchmarks.data import Instance, load, read_mps, save
from pdopt.runtime.cache import set_cpu_flags

# Family and name of the programs measured: three above 10 000 nonzeros, two above 100 000.
PROGRAMS = (("kennington", "cre-a"), ("netlib", "dfl001"), ("netlib", "pilot"), ("netlib", "fit2d"),
            ("kennington", "osa-07"))  # fmt: skip
SIZES = ((10_000, 100_000, 1.5), (100_000, None, 1.2))
ROUNDS = 5
SPAN = 0.15  # seconds that the longer solve takes beyond the shorter
SHORT = 64
UNREACHABLE = 1e-14
LIMIT = 120.0  # seconds for a child


def iteration_records(folder: Path, output: Path, instances: list[Instance]) -> list[dict[str, Any]]:
    """One record a program: those of `PROGRAMS` that the folder has, else the largest generated ones."""
    found = []
    for family, name in PROGRAMS:
        path = folder / "lp" / family / f"{name}.mps.gz"
        if path.exists() and (data := read_mps(path)) is not None:
            found.append((name, data))
    large = sorted((i for i in instances if i.data.nonzeros > SIZES[0][0]), key=lambda i: i.data.nonzeros)
    found = found or [(i.name, i.data) for i in large[-2:]]
    records = []
    for name, data in found:
        path = output / "work" / f"iteration-{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        save(data, path)
        about = {"instance": name, "nonzeros": data.nonzeros}
        records.append(measured("benchmarks.linear_iteration", (str(path),), about, LIMIT))
    return records


def iteration_claims(records: list[dict[str, Any]]) -> list[Claim]:
    """The worst ratio of each size."""
    claims = []
    for low, high, required in SIZES:
        own = [r for r in records if "ratio" in r and low < r["nonzeros"] <= (high or r["nonzeros"])]
        size = f"{low} to {high} nonzeros" if high else f"more than {low} nonzeros"
        note = "; ".join(
            f"{r['instance']} {r['iteration'] * 1e6:.0f} us / {r['products'] * 1e6:.0f} us = {r['ratio']:.2f} "
            f"(CPU {r['ratio_cpu']:.2f})"
            for r in own
        )
        promise = f"wall of one whole iteration / SciPy's two products, {size}"
        worst = max((r["ratio"] for r in own), default=None)
        claims.append(Claim(promise, worst, required, "<=", note or "no such program"))
    return claims


def measure(path: Path) -> dict[str, Any]:
    """Medians over rounds in turn: seconds an iteration and a pair of products, their ratio, bytes a second."""
    set_cpu_flags()
    import jax

    import pdopt
    from benchmarks.solvers.library import problem_of

    data = load(path)
    with jax.enable_x64(True):
        problem = problem_of(data)

        def solve(most: int) -> tuple[int, float, float]:
            wall, cpu = time.perf_counter(), time.process_time()
            found = pdopt.solve(problem, pdopt.PDHG(), tolerance=UNREACHABLE, max_iterations=most)
            jax.block_until_ready(found)
            return int(found.iterations), time.perf_counter() - wall, time.process_time() - cpu

        solve(SHORT)
        _, begun, _ = solve(SHORT)
        _, once, _ = solve(4 * SHORT)
        longer = SHORT + max(int(SPAN / max(once - begun, 1e-6) * 3), 3) * SHORT
        A = data.A.tocsr()
        adjoint = A.T.tocsr()
        x, y = np.ones(A.shape[1]), np.ones(A.shape[0])

        def products(times: int) -> tuple[float, float]:
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(times):
                _ = A @ x
                _ = adjoint @ y
            return (time.perf_counter() - wall) / times, (time.process_time() - cpu) / times

        times = max(int(SPAN / products(3)[0]), 1)
        rounds = []
        for _ in range(ROUNDS):
            few, short, short_cpu = solve(SHORT)
            many, long, long_cpu = solve(longer)
            step = ((long - short) / (many - few), (long_cpu - short_cpu) / (many - few))
            rounds.append((*step, *products(times)))
    iteration, cpu, pair, pair_cpu = (float(v) for v in np.median(rounds, axis=0))
    ratio, ratio_cpu = (float(np.median([r[k] / r[k + 2] for r in rounds])) for k in (0, 1))
    moved = 24 * A.nnz + 160 * sum(A.shape)
    return {
        "iteration": iteration, "iteration_cpu": cpu, "products": pair, "products_cpu": pair_cpu, "ratio": ratio,
        "ratio_cpu": ratio_cpu, "bytes": moved, "bytes_per_second": moved / iteration,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
