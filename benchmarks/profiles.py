"""Shifted geometric means and performance profiles (Dolan, More 2002) of lists of measurements."""

from typing import Any

import numpy as np

FINISHED = ("solved", "certified")


def shifted_geometric_mean(values: list[float], shift: float) -> float:
    """`exp(mean log(v + shift)) - shift`; NaN for no values.

    Example:
        >>> round(shifted_geometric_mean([1.0, 100.0], 0.0), 9)
        10.0
    """
    if not values:
        return float("nan")
    return float(np.exp(np.mean(np.log(np.asarray(values) + shift))) - shift)


def paired_ratio(
    records: list[dict[str, Any]], ours: str, theirs: str, field: str, tolerance: float
) -> tuple[float, int]:
    """Geometric mean of ours / theirs over the instances both solved at the tolerance, and their number."""
    tables = [
        {r["instance"]: r[field] for r in records if _is(r, solver, tolerance) and r["outcome"] == "solved"}
        for solver in (ours, theirs)
    ]
    shared = [name for name in tables[0] if name in tables[1] and min(tables[0][name], tables[1][name]) > 0]
    ratios = [tables[0][name] / tables[1][name] for name in shared]
    return shifted_geometric_mean(ratios, 0.0), len(shared)


def _is(record: dict[str, Any], solver: str, tolerance: float) -> bool:
    return record["solver"] == solver and record["tolerance"] == tolerance


def performance_profile(costs: dict[str, dict[str, float]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Solver -> (ratios, fractions): the share of all problems solved within each ratio of the best solver's cost.

    Args:
        costs: solver -> problem -> cost; infinite, or absent, where not solved. Problems that no solver solved count.
    """
    problems = sorted({name for table in costs.values() for name in table})
    best = {p: min(table.get(p, np.inf) for table in costs.values()) for p in problems}
    profiles = {}
    for solver, table in costs.items():
        ratios = sorted(table[p] / best[p] for p in problems if np.isfinite(table.get(p, np.inf)))
        profiles[solver] = (np.array(ratios), np.arange(1, len(ratios) + 1) / max(len(problems), 1))
    return profiles
