"""Point clouds: colours of two photographs, entropic transport at a share of the mean cost, to one true L1 error."""

import time
from typing import Any

import numpy as np

from benchmarks.claims import Claim
from benchmarks.harness import Options
from benchmarks.report import Table, number
from benchmarks.transport_peers import (
    OURS,
    POT_METHODS,
    Run,
    installed,
    ott_cloud,
    ott_run,
    ott_settings,
    pot_run,
    timed,
    true_error,
    value,
)  # fmt: skip

TARGET = 1e-4
SHARES = (0.05, 0.01, 0.003)


def photographs() -> list[np.ndarray]:
    """scikit-learn's china.jpg and flower.jpg, `(height, width, 3)` in [0, 1]."""
    from sklearn.datasets import load_sample_images

    return [np.asarray(image, np.float64) / 255 for image in load_sample_images().images]


def colours(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """n pixels of each photograph and their squared distances, float32."""
    rng = np.random.default_rng(seed)
    x, y = (
        p.reshape(-1, 3)[rng.choice(p.shape[0] * p.shape[1], n, replace=False)].astype(np.float32)
        for p in photographs()
    )
    return x, y, ((x[:, None] - y[None]) ** 2).sum(-1).astype(np.float32)


def ours(C: np.ndarray, epsilon: float, tolerance: float = TARGET, dtype: Any = np.float32) -> tuple[Run, Any]:
    """pdopt with its defaults, from a matrix; judged like everybody else."""
    import jax

    import pdopt

    n, m = C.shape
    problem = pdopt.Transport(C, regulariser=pdopt.Entropy(epsilon), dtype=dtype)
    cpu, first, found = timed(
        lambda: jax.block_until_ready(pdopt.solve(problem, tolerance=tolerance, gradient="none")), repeats=5
    )
    f, g = (np.asarray(v, np.float64) for v in found.y)
    T = np.exp((f[:, None] + g - C) / epsilon) / (n * m)
    error = true_error(T, np.full(n, 1 / n), np.full(m, 1 / m))
    outcome = "solved" if error <= 1.01 * tolerance else str(found.reason)
    return Run(OURS, cpu, first - cpu, int(found.iterations), error, outcome), T


def section(options: Options, say: Any) -> tuple[list[dict[str, Any]], list[Claim], list[Table], list[Any]]:
    """Every solver at every size and epsilon; the claims; agreement of the values."""
    sizes = (1000, 4000) if options.full else (1000,)
    limit = 20000 if options.full else 4000
    began = time.monotonic()
    records: list[dict[str, Any]] = []
    for n in sizes:
        x, y, C = colours(n, options.seed)
        solvers = {name: ott_cloud(s, limit) for name, s in ott_settings(options.full).items()} if _ott() else {}
        for share in SHARES:
            epsilon = float(share * C.mean())
            runs = [ours(C, epsilon)[0]]
            for name, solve in solvers.items():
                if time.monotonic() - began > options.budget:
                    runs.append(Run(f"OTT {name}", 0.0, 0.0, 0, float("inf"), "not run: budget"))
                    continue
                runs.append(ott_run(name, solve, x, y, C, epsilon, TARGET, limit))
            # POT's stabilised methods take minutes at these sizes (their inner loops do not converge): --full only.
            methods = POT_METHODS if options.full else POT_METHODS[: 2 if share > 0.02 else 1]
            for method in methods if installed("ot") else ():
                runs.append(pot_run(method, C.astype(np.float64), epsilon, TARGET, limit if options.full else 1000))
            runs.append(ours(C, epsilon)[0])
            first, last = runs[0], runs.pop()
            runs[0] = first._replace(cpu=min(first.cpu, last.cpu))
            records += [run._asdict() | {"section": "clouds", "n": n, "share": share} for run in runs]
            say(f"clouds n = {n}, epsilon = {share} mean cost: {len(runs)} solvers")
    return records, _claims(records, sizes), [_table(records)], []


def _ott() -> bool:
    return installed("ott")


def ratio(records: list[dict[str, Any]], prefix: str, name: str | None = None) -> tuple[float | None, str]:
    """CPU of a peer (its best solved run, or the named one) over ours; a cut run counts as at least its time."""
    mine = [r for r in records if r["solver"] == OURS and r["outcome"] == "solved"]
    theirs = [r for r in records if r["solver"].startswith(prefix) and (name is None or r["solver"] == name)]
    solved = [r for r in theirs if r["outcome"] == "solved"]
    cut = [r for r in theirs if r["outcome"] == "cut"]
    if not mine or not (solved or cut):
        return None, "no run to compare with"
    best = min(solved or cut, key=lambda r: r["cpu"])
    word = best["solver"] if solved else f"{best['solver']}, cut at {best['iterations']} sweeps: at least"
    return best["cpu"] / mine[0]["cpu"], word


def _claims(records: list[dict[str, Any]], sizes: tuple[int, ...]) -> list[Claim]:
    claims = []
    for n in sizes:
        for share in SHARES:
            here = [r for r in records if r["n"] == n and r["share"] == share]
            where = f"clouds n = {n}, epsilon = {share} mean: "
            if share < 0.02:
                for text, prefix, name, least in (
                    ("OTT's default", "OTT", "OTT default", 15.0), ("OTT's best", "OTT", None, 4.0),
                    ("POT's best", "POT", None, 6.0),
                ):  # fmt: skip
                    measured, note = ratio(here, prefix, name)
                    claims.append(Claim(where + f"CPU of {text} / pdopt", measured, least, ">=", note))
            else:
                found = [ratio(here, prefix) for prefix in ("OTT", "POT")]
                known = [pair for pair in found if pair[0] is not None]
                measured, note = min(known) if known else (None, "no peer")
                claims.append(Claim(where + "CPU of the best peer / pdopt", measured, 1.0, ">=", note))
    solved = [r["outcome"] == "solved" for r in records if r["solver"] == OURS]
    claims.append(Claim("clouds: ours within the true error (share)", sum(solved) / len(solved), 1.0, ">="))
    return claims


def _table(records: list[dict[str, Any]]) -> Table:
    rows = []
    for r in records:
        mine = next(q for q in records if q["solver"] == OURS and q["n"] == r["n"] and q["share"] == r["share"])
        rows.append([
            f"{r['n']}", f"{r['share']}", r["solver"], number(r["cpu"]), number(r["cpu"] / mine["cpu"]),
            f"{r['iterations']}", f"{r['error']:.1e}", number(r["first"]), r["outcome"],
        ])  # fmt: skip
    columns = ["n", "epsilon / mean", "solver", "CPU s", "/ pdopt", "sweeps", "true L1 error", "compile s", "outcome"]
    return Table(f"Colour clouds, true L1 error of both marginals <= {TARGET:g}", columns, rows)


def agreement(options: Options, say: Any) -> tuple[list[dict[str, Any]], list[Claim], list[Table], list[Any]]:
    """Values of ours, OTT's and POT's plans at one epsilon, by one formula."""
    import jax

    n = 200
    x, y, C = colours(n, options.seed)
    a = np.full(n, 1 / n)
    epsilon = float(0.02 * C.mean())
    records, claims = [], []
    with jax.enable_x64(True):
        wide = value(C, ours(C.astype(np.float64), epsilon, 1e-11, np.float64)[1], a, a, epsilon)
    narrow = value(C, ours(C, epsilon, 1e-5)[1], a, a, epsilon)
    if installed("ot"):
        import ot

        T = ot.sinkhorn(a, a, C.astype(np.float64), epsilon, method="sinkhorn_log", stopThr=1e-13, numItermax=20000)
        difference = abs(wide - value(C, T, a, a, epsilon)) / wide
        records.append({"section": "agreement", "peer": "POT", "dtype": "float64", "difference": difference})
        claims.append(Claim("relative difference of the value to POT, float64", difference, 1e-9, "<="))
    if installed("ott"):
        f, g, _, _ = ott_cloud({}, 5000)(x, y, C, epsilon, 1e-5)
        T = np.exp((np.asarray(f, np.float64)[:, None] + np.asarray(g, np.float64) - C) / epsilon)
        difference = abs(narrow - value(C, T, a, a, epsilon)) / wide
        records.append({"section": "agreement", "peer": "OTT", "dtype": "float32", "difference": difference})
        claims.append(Claim("relative difference of the value to OTT, float32", difference, 1e-4, "<="))
    return records, claims, [], []
