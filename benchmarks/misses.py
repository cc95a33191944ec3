"""What a solver did not solve, each with the numbers that it was short of and how it was going.

A run that ended at its limit was either too slow or at rest. Its own history tells: the best error so far at half of
the iterations, and at their end.
"""

import math
from typing import Any

from benchmarks.profiles import FINISHED
from benchmarks.report import Table, number

DONE = (*FINISHED, "claimed", "not installed")  # an infeasibility that presolve found has no ray, and is right
HOPELESS = 6  # doublings beyond which a rate says nothing
RESTS = 0.05  # decades that the best error falls in the second half of a run: below, it rests


def misses(records: list[dict[str, Any]], tolerance: float, solver: str) -> Table:
    """The runs of `solver` that were not solved, with the judge's numbers and a reason, and who else solved them."""
    rows = []
    for r in records:
        if r["solver"] != solver or r["tolerance"] != tolerance or r["outcome"] in DONE:
            continue
        others = [
            o["solver"] for o in records
            if o["instance"] == r["instance"] and o["tolerance"] == tolerance and o["outcome"] in FINISHED
        ]  # fmt: skip
        figures = [number(r.get(name)) for name in ("primal", "dual", "gap")]
        count = str(r.get("iterations", "-"))
        rows.append([r["instance"], str(r["nonzeros"]), r["outcome"], count, *figures, reason(r), ", ".join(others)])
    columns = ["instance", "nonzeros", "outcome", "iterations", "primal", "dual", "gap", "why", "solved by"]
    return Table(f"Tolerance {tolerance:g}: what {solver} did not solve", columns, rows)


def reason(record: dict[str, Any]) -> str:
    """What a run was short of: the largest of its numbers, and whether the error was falling still.

    Example:
        >>> history = {"iterations": [100, 200, 400], "error": [1e-1, 1e-2, 1e-3]}
        >>> reason({"tolerance": 1e-4, "outcome": "limit", "dual": 1e-3, "gap": 1e-5, "history": history})
        'dual residual; 10 times smaller by a doubling, so about 800 iterations'
    """
    numbers = {name: record[name] for name in ("primal", "dual", "gap") if record.get(name) is not None}
    if not numbers:
        return str(record.get("detail") or "no answer")
    largest = max(numbers, key=lambda name: numbers[name])
    word = "gap" if largest == "gap" else f"{largest} residual"
    if record["outcome"] != "limit":
        return f"{word}; said to be {record.get('status', 'solved')}"
    return f"{word}; {_trend(record.get('history', {}), record['tolerance'])}"


def _trend(history: dict[str, list[float]], tolerance: float) -> str:
    """How the best error so far fell over the last doubling of iterations, and what it would take to go on so."""
    pairs = [(k, e) for k, e in zip(history.get("iterations", []), history.get("error", [])) if math.isfinite(e) and k]
    if len(pairs) < 2:
        return "no history"
    last, best = pairs[-1][0], min(e for _, e in pairs)
    half = min([e for k, e in pairs if 2 * k <= last] or [pairs[0][1]])
    reached = next(k for k, e in pairs if e == best)
    decades = math.log10(half / best) if best > 0 else math.inf
    if decades < RESTS:
        return f"no better after iteration {reached:.0f} of {last:.0f}"
    doublings = max(math.log10(best / tolerance), 0.0) / decades
    if doublings > HOPELESS:
        return f"{half / best:.3g} times smaller by a doubling: {2**HOPELESS} times as many iterations would not do"
    needed = float(f"{last * 2**doublings:.2g}")
    return f"{half / best:.3g} times smaller by a doubling, so about {needed:.0f} iterations"
