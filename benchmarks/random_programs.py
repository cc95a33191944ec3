"""Random linear and quadratic programs with every kind of row and bound, stacked for one `vmap`."""

from typing import Any

import numpy as np

KINDS = ("equality", "at least", "at most", "ranged", "free", "at least")
BOUNDS = ("lower", "upper", "both", "free", "fixed", "lower", "both")
LEAST = 0.15  # singular value of the optimality system of a program that is kept
FIELDS = ("Q", "c", "A", "row_lower", "row_upper", "lower", "upper")


def program(seed: int, curved: bool) -> dict[str, np.ndarray]:
    """One program as arrays: 6 rows, 7 columns; `curved` decides between a definite Q and Q = 0.

    Built around a strictly complementary pair: some sides hold, each with a price of at least 0.5; all others have
    room of at least 0.5. A linear program has as many rows that hold as free variables, so its vertex is unique;
    `regular` says whether the system of all that holds is well away from singular.
    """
    rng = np.random.default_rng(seed)
    m, n = len(KINDS), len(BOUNDS)
    price = room = lambda: float(rng.uniform(0.5, 2.0))
    half = rng.standard_normal((n, n))
    Q = half @ half.T / n + 0.3 * np.eye(n) if curved else np.zeros((n, n))
    A, x = rng.standard_normal((m, n)), rng.standard_normal(n)
    z, lower, upper = np.zeros(n), np.full(n, -np.inf), np.full(n, np.inf)
    free = 0
    for j, kind in enumerate(BOUNDS):
        low, high = kind in ("lower", "both"), kind in ("upper", "both")
        held = (low or high) and rng.uniform() < 0.5
        if kind == "fixed":
            lower[j] = upper[j] = x[j]
            z[j] = price() * rng.choice([-1, 1])
            continue
        side = "lower" if held and low and (not high or rng.uniform() < 0.5) else "upper" if held else ""
        free += not held
        z[j] = {"lower": 1, "upper": -1, "": 0}[side] * price()
        lower[j] = x[j] - (0 if side == "lower" else room()) if low else -np.inf
        upper[j] = x[j] + (0 if side == "upper" else room()) if high else np.inf
    activity, y = A @ x, np.zeros(m)
    row_lower, row_upper = np.full(m, -np.inf), np.full(m, np.inf)
    candidates = [i for i, kind in enumerate(KINDS) if kind not in ("equality", "free")]
    # The equality always holds; a linear program needs `free` rows in all, a curved one has about half of them.
    chosen = candidates[: free - 1] if not curved else [i for i in candidates[: free - 1] if rng.uniform() < 0.5]
    for i, kind in enumerate(KINDS):
        holds, sign = kind == "equality" or i in chosen, rng.choice([-1, 1])
        sign = 1 if kind == "at least" else -1 if kind == "at most" else sign
        y[i] = sign * price() if holds else 0
        if kind in ("at least", "ranged", "equality"):
            row_lower[i] = activity[i] - (0 if (holds and sign > 0) or kind == "equality" else room())
        if kind in ("at most", "ranged", "equality"):
            row_upper[i] = activity[i] + (0 if (holds and sign < 0) or kind == "equality" else room())
    c = A.T @ y + z - Q @ x
    data = {"Q": Q, "c": c, "A": A, "row_lower": row_lower, "row_upper": row_upper, "lower": lower, "upper": upper}
    # The system that the free variables and the rows that hold obey: near-singular ones have no useful differences.
    inside, rows = np.abs(z) == 0, np.abs(y) > 0
    size = int(inside.sum() + rows.sum())
    system = np.zeros((size, size))
    block = A[np.ix_(rows, inside)]
    system[: inside.sum(), : inside.sum()] = Q[np.ix_(inside, inside)]
    system[inside.sum() :, : inside.sum()], system[: inside.sum(), inside.sum() :] = block, block.T
    regular = size > 0 and bool(np.linalg.svd(system, compute_uv=False)[-1] >= LEAST)
    return data | {"x": x, "y": y, "regular": np.array(regular)}


def stack(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """`count` programs, every second one linear, each field with a leading axis."""
    found: list[dict[str, np.ndarray]] = []
    while len(found) < count:
        made = program(seed, curved=len(found) % 2 == 0)
        seed += 1
        if bool(made["regular"]):
            found.append(made)
    return {name: np.stack([f[name] for f in found]) for name in found[0]}


def directions(data: dict[str, np.ndarray], seed: int = 1) -> dict[str, dict[str, np.ndarray]]:
    """For each field a random change of that field; equal sides move together, infinite ones not at all."""
    rng = np.random.default_rng(seed)
    changes: dict[str, dict[str, np.ndarray]] = {}
    for name in FIELDS:
        d = rng.standard_normal(data[name].shape) * np.isfinite(data[name])
        if name == "Q":
            curved = np.any(data["Q"] != 0, axis=(1, 2), keepdims=True)
            d = curved * (d + np.swapaxes(d, 1, 2)) / 2
        changes[name] = {name: d}
        for pair in (("row_lower", "row_upper"), ("lower", "upper")):
            if name == pair[0]:
                changes[name][pair[1]] = np.where(data[pair[0]] == data[pair[1]], d, 0)
            if name == pair[1]:
                changes[name][name] = np.where(data[pair[0]] == data[pair[1]], 0, d)
    return changes


def moved(data: dict[str, Any], change: dict[str, Any], step: float) -> dict[str, Any]:
    """The data along a change."""
    return {name: data[name] + step * change[name] if name in change else data[name] for name in FIELDS}
