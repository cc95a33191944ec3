"""Many linear programs of one shape with different costs: one batch of pdopt against as many calls of OR-tools PDLP.

Each side runs in a child process on one core (PDLP with one thread): CPU seconds of all solves, compilation apart,
every answer judged on its own data. `python -m benchmarks.batch SIDE COUNT TOLERANCE PROGRAM.npz` is one child.

The limit of the batch: a member's share of the products, `A X` and `A' Y` with the batch along the last axis, measured
alone; and the bytes that an iteration moves, at least 12 vectors of n + m, which the second cache has to bring.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.children import measured
from benchmarks.claims import Claim
from benchmarks.data import LinearData, load, read_mps, save
from benchmarks.harness import Options
from benchmarks.instances.generated import generated
from benchmarks.machine import machine
from benchmarks.plots import COLOURS, picture_axes, save_picture
from benchmarks.report import Report, Table, number
from pdopt.runtime.cache import set_cpu_flags

ABOUT = "256 linear programs with different costs in one batch, against as many calls of OR-tools PDLP"
SIDES = ("pdopt float32 first", "pdopt", "pdlp")
SPREAD = 0.1  # of the costs: each entry times 1 + SPREAD times a normal number
MOST = 200_000  # iterations of a member
ALONE = 8  # members that are solved one by one as well: a full vector of the CPU
FASTER = 8.0


def run(options: Options, say: Any = print) -> Report:
    """64 programs in quick mode, 256 in full; `e226`, or a generated program where the data folder is absent."""
    count = 256 if options.full else 64
    name, data = _program(options)
    path = options.output / "program.npz"
    save(data, path)
    tolerance = max(options.tolerances)
    records = []
    for side in SIDES:
        if options.peers and side == "pdlp" and "pdlp" not in options.peers:
            continue
        about = {"solver": side, "instance": name, "count": count, "tolerance": tolerance}
        arguments = (side, str(count), repr(tolerance), str(path))
        records.append(measured("benchmarks.batch", arguments, about, max(options.budget, 600.0)))
        say(f"{side}: {records[-1].get('cpu', float('nan')):.3g} s of CPU, {records[-1].get('outcome')}")
    held = claims({r["solver"]: r for r in records})
    rows = [
        [r["solver"], str(r.get("solved", "-"))]
        + [number(r.get(name)) for name in ("cpu", "compile", "iterations", "most", "micro")]
        for r in records
    ]  # fmt: skip
    columns = ["side", "solved", "CPU s", "compile s", "mean iterations", "most", "us an iteration and member"]
    table = Table(f"{count} programs of the size of {name} at {tolerance:g}", columns, rows)
    own = next((r for r in records if "limit" in r), {})
    m, n = data.A.shape
    notes = [
        f"Products alone, a member and iteration: {number(own.get('limit'))} us batched, {number(own.get('single'))} "
        f"us one by one; 12 vectors of n + m = {n + m} doubles are {12 * 8 * (n + m) / 1000:.0f} kB.",
    ]
    return Report("batch", records, held, [table], [_picture(records, options)], machine(), notes)


def claims(sides: dict[str, dict[str, Any]]) -> list[Claim]:
    """What is promised of a batch, from the records of the sides."""
    mixed, plain, peer = (sides.get(side, {}) for side in SIDES)
    done = lambda r: r.get("outcome") == "done"
    held = []
    for side, ours in ((SIDES[0], mixed), (SIDES[1], plain)):
        ratio = peer["cpu"] / ours["cpu"] if done(peer) and done(ours) else None
        note = f"{peer.get('cpu', 0):.3g} s against {ours.get('cpu', 0):.3g} s" if ratio else "a side did not end"
        needed = FASTER if ours is mixed else 1.0
        held.append(Claim(f"CPU seconds of the PDLP calls / one batch of {side}", ratio, needed, ">=", note))
    for side, ours in ((SIDES[0], mixed), (SIDES[1], plain)):
        share = ours["solved"] / ours["count"] if done(ours) else None
        held.append(Claim(f"members solved by {side}, judged on their own data (share)", share, 1.0, ">="))
    apart = plain.get("apart")
    note = f"{ALONE} members, by vmap and by solve_many"
    held.append(Claim("vmap == loop: statuses that differ (count)", plain.get("statuses"), 0, "<=", note))
    held.append(Claim("vmap == loop: largest difference of iterations, in checks", apart, 1, "<=", note))
    return held


def _program(options: Options) -> tuple[str, LinearData]:
    path = options.data / "lp" / "core" / "e226.mps.gz"
    if options.source == "auto" and path.exists():
        data = read_mps(path)
        if data is not None:
            return "e226", data
    feasible = [i for i in generated(options.seed, scale=1) if i.expected == "optimal"]
    nearest = min(feasible, key=lambda i: abs(np.log(i.data.nonzeros / 2600)))
    return nearest.name, nearest.data


def costs(data: LinearData, count: int) -> np.ndarray:
    """`(count, n)`: the program's costs, each entry changed by about a tenth; the first member keeps them."""
    changes = np.random.default_rng(0).standard_normal((count, data.c.size))
    changes[0] = 0
    return data.c * (1 + SPREAD * changes)


def child(side: str, count: int, tolerance: float, data: LinearData) -> dict[str, Any]:
    """One side's figures."""
    return _pdlp(count, tolerance, data) if side == "pdlp" else _ours(side, count, tolerance, data)


def _pdlp(count: int, tolerance: float, data: LinearData) -> dict[str, Any]:
    from benchmarks.solvers.ortools_pdlp import solve

    total, iterations, solved = 0.0, [], 0
    for c in costs(data, count):
        start = time.process_time()
        answer = solve(data._replace(c=c), tolerance, 60.0)
        # The adapter repeats a short solve to time it: what it says is of one.
        total += min(answer.timing.cpu, time.process_time() - start)
        iterations.append(answer.iterations)
        solved += _passes(data, c, answer.x, answer.y, answer.z, tolerance)
    return _figures(total, 0.0, iterations, solved)


def _ours(side: str, count: int, tolerance: float, data: LinearData) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    import pdopt

    C = costs(data, count)
    inner = jnp.float32 if "float32" in side else None
    with jax.enable_x64(True):
        lp = pdopt.LinearProgram(
            data.c, data.A, data.row_lower, data.row_upper, data.lower, data.upper, data.offset, dtype=jnp.float64
        )
        run = lambda most: pdopt.solve_many(lp, {"c": C}, tolerance=tolerance, max_iterations=most, inner=inner)
        start = time.process_time()
        run(1)
        compiled = time.process_time() - start
        start = time.process_time()
        found = run(MOST)
        total = time.process_time() - start
        z = found.certificate.z
        solved = sum(_passes(data, C[k], found.x[k], found.y[k], z[k], tolerance) for k in range(count))
        figures = _figures(total, compiled, found.iterations, solved)
        if inner is not None:
            return figures
        one = jax.jit(lambda c: pdopt.solve(lp.replace(c=c, check=False), tolerance=tolerance, max_iterations=MOST))
        few = jnp.asarray(C[:ALONE])
        together, alone = jax.vmap(one)(few), [one(c) for c in few]
        pairs = [(b, a) for a, single in enumerate(alone) for b in (together, found)]
        differ = sum(int(b.status[a]) != int(alone[a].status) for b, a in pairs)
        apart = max(abs(int(b.iterations[a]) - int(alone[a].iterations)) for b, a in pairs) / pdopt.PDHG().every
        limit, single = _products(lp)
    return figures | {"statuses": differ, "apart": apart, "limit": limit, "single": single}


def _passes(data: LinearData, c: np.ndarray, x: Any, y: Any, z: Any, tolerance: float) -> bool:
    from benchmarks.verify import check_point

    x, y, z = (np.asarray(v, float) for v in (x, y, z))
    return check_point(data._replace(c=c), x, y, z).passes(tolerance)


def _figures(total: float, compiled: float, iterations: Any, solved: int) -> dict[str, Any]:
    counts = [int(k) for k in iterations]
    return {
        "outcome": "done", "cpu": total, "compile": compiled, "solved": int(solved), "counts": counts,
        "iterations": float(np.mean(counts)), "most": max(counts), "micro": 1e6 * total / sum(counts),
    }  # fmt: skip


def _products(lp: Any) -> tuple[float, float]:
    """Microseconds a member of a pair of products alone: batched along the last axis as many as in `solve_many`, and
    one by one."""
    import jax
    import jax.numpy as jnp

    from pdopt.runtime.batching import minor
    from pdopt.solve_many import WIDTH

    A, repeats, width = lp.A.ordered()[0], 500, WIDTH // lp.c.dtype.itemsize
    x = jnp.asarray(np.random.default_rng(0).standard_normal((width, lp.shape[1])))

    def pairs(x: Any, count: Any) -> Any:  # a traced count, as in the solver's loop
        return jax.lax.fori_loop(0, count, lambda _, x: 0.5 * x + 1e-9 * A.rmatvec(A.matvec(x)), x)

    spans = []
    for function, argument, members in (
        (jax.jit(jax.vmap(minor(pairs), (0, None))), x, width),
        (jax.jit(pairs), x[0], 1),
    ):
        jax.block_until_ready(function(argument, repeats))
        times = []
        for _ in range(3):
            start = time.process_time()
            jax.block_until_ready(function(argument, repeats))
            times.append(time.process_time() - start)
        spans.append(1e6 * min(times) / repeats / members)
    return spans[0], spans[1]


def _picture(records: list[dict[str, Any]], options: Options) -> Any:
    """How many iterations the members of each side need: the spread that refilling lives on."""
    figure, axes = picture_axes("Iterations of the members, sorted", "share of members", "iterations")
    data = {r["solver"]: sorted(r["counts"]) for r in records if "counts" in r}
    for place, (side, counts) in enumerate(data.items()):
        axes.plot(np.linspace(0, 1, len(counts)), counts, color=COLOURS[place], label=side, linewidth=1.8)
    axes.set_yscale("log")
    if data:
        axes.legend(fontsize=8)
    return save_picture(figure, options.output / "iterations.png", data)


if __name__ == "__main__":
    set_cpu_flags()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    which, size, tight, where = sys.argv[1:]
    print(json.dumps(child(which, int(size), float(tight), load(Path(where)))))
