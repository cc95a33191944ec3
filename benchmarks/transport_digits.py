"""Pairs of digit images as one batch, and what their distances are good for: nearest neighbours."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.claims import Claim
from benchmarks.harness import Options
from benchmarks.plots import save_picture
from benchmarks.report import Table, number
from benchmarks.transport_clouds import TARGET, ratio
from benchmarks.transport_peers import OURS, Run, installed, ott_solver, pot_run, timed, true_error

SHARES = (0.05, 0.01, 0.003)


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images as histograms `(1797, 64)`, their labels, and squared distances between the 64 pixels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = data.images.reshape(-1, 64)
    place = np.stack(np.meshgrid(np.arange(8), np.arange(8), indexing="ij"), -1).reshape(64, 2)
    C = ((place[:, None] - place[None]) ** 2).sum(-1).astype(np.float32)
    return (images / images.sum(1, keepdims=True)).astype(np.float32), data.target, C


def worst_error(A: np.ndarray, B: np.ndarray, f: Any, g: Any, C: np.ndarray, epsilon: float, weighted: bool) -> float:
    """The largest true error over pairs; `weighted`: the plan is `a b' exp`, else its potentials hold the masses."""
    worst = 0.0
    for k in range(A.shape[0]):
        with np.errstate(over="ignore", invalid="ignore"):
            T = np.exp((np.asarray(f[k], np.float64)[:, None] + np.asarray(g[k], np.float64) - C) / epsilon)
        there = np.outer(A[k] > 0, B[k] > 0)
        T = np.where(there, T * np.outer(A[k], B[k]) if weighted else T, 0)
        worst = max(worst, true_error(T, A[k].astype(float), B[k].astype(float)))
    return worst


def ott_batch(name: str, limit: int) -> Any:
    """A compiled, vmapped `solve(A, B, epsilon, threshold)` for one way to state the geometry."""
    import jax
    import jax.numpy as jnp
    from ott.geometry import geometry, grid, pointcloud

    C = jnp.asarray(digits()[2])
    axis = jnp.arange(8, dtype=jnp.float32)[:, None]
    points = jnp.stack(jnp.meshgrid(axis[:, 0], axis[:, 0], indexing="ij"), -1).reshape(64, 2)
    makes = {
        "default": lambda epsilon: pointcloud.PointCloud(points, points, epsilon=epsilon),
        "matrix": lambda epsilon: geometry.Geometry(cost_matrix=C, epsilon=epsilon),
        "matrix, omega 1.5": lambda epsilon: geometry.Geometry(cost_matrix=C, epsilon=epsilon),
        "matrix, kernel": lambda epsilon: geometry.Geometry(cost_matrix=C, epsilon=epsilon),
        "grid": lambda epsilon: grid.Grid(x=[axis[:, 0], axis[:, 0]], epsilon=epsilon),
    }
    settings = {"matrix, omega 1.5": {"momentum": 1.5}, "matrix, kernel": {"lse": False}}.get(name, {})
    solve = ott_solver(settings, limit)
    one = lambda a, b, epsilon, threshold: solve(makes[name](epsilon), threshold, a, b)
    return jax.jit(jax.vmap(one, in_axes=(0, 0, None, None)))


def section(options: Options, say: Any) -> tuple[list[dict[str, Any]], list[Claim], list[Table], list[Any]]:
    """CPU seconds a pair."""
    import jax

    import pdopt

    images, _, C = digits()
    rng = np.random.default_rng(options.seed)
    pairs, alone = (1000, 100) if options.full else (1000, 12)
    A, B = (images[rng.integers(0, len(images), pairs)] for _ in range(2))
    limit, began = 2000, time.monotonic()
    geometries = ("default", "matrix", "matrix, omega 1.5", "matrix, kernel", "grid")
    solvers = {name: ott_batch(name, limit) for name in geometries} if installed("ott") else {}
    records: list[dict[str, Any]] = []
    for share in SHARES:
        epsilon = float(share * C.mean())
        problem = pdopt.Transport(C, regulariser=pdopt.Entropy(epsilon), dtype=np.float32)
        call = lambda problem=problem: jax.block_until_ready(pdopt.pairwise(problem, A, B, tolerance=TARGET))
        cpu, first, found = timed(call, repeats=5)
        error = worst_error(A[:50], B[:50], *found.y, C, epsilon, weighted=True)
        solved = float(np.mean(np.asarray(found.status) == int(pdopt.Status.OPTIMAL)))
        runs = [Run(OURS, cpu / pairs, first - cpu, int(np.max(found.iterations)), error, "solved")]
        if solved < 1:
            say(f"digits, epsilon {share}: {solved:.1%} of pairs within the tolerance, the others at the float32 floor")
        for name, solve in solvers.items():
            if not options.full and (share < 0.02 or time.monotonic() - began > options.budget / 3):
                continue
            # At these thresholds float32 potentials of the smallest epsilon never arrive; a cut is shown as one.
            again = lambda solve=solve: jax.block_until_ready(solve(A, B, epsilon, 0.9 * TARGET))
            cpu, first, (f, g, sweeps, good) = timed(again, repeats=2)
            error = worst_error(A[:50], B[:50], f, g, C, epsilon, weighted=False)
            outcome = "solved" if error <= 2 * TARGET else "cut" if int(np.max(sweeps)) >= limit else "failed"
            runs.append(Run(f"OTT {name}", cpu / pairs, first - cpu, int(np.max(sweeps)), error, outcome))
        for method in ("sinkhorn", "sinkhorn_log") if installed("ot") else ():
            each = [
                pot_run(method, C.astype(np.float64), epsilon, TARGET, limit, *(_whole(v[k]) for v in (A, B)))
                for k in range(alone)
            ]
            good = [run for run in each if run.outcome == "solved"]
            outcome = (
                "solved" if len(good) == len(each) else "cut" if any(r.outcome == "cut" for r in each) else "failed"
            )
            runs.append(Run(
                f"POT {method}, {alone} pairs one by one", float(np.mean([r.cpu for r in each])), 0.0,
                max(r.iterations for r in each), max(r.error for r in each), outcome,
            ))  # fmt: skip
        records += [run._asdict() | {"section": "digits", "pairs": pairs, "share": share} for run in runs]
        say(f"digits, epsilon = {share} mean cost: {len(runs)} solvers")
    return records, _claims(records), [_table(records)], []


def _whole(masses: np.ndarray) -> np.ndarray:
    """float64 masses of total 1 exactly, which POT checks."""
    wide = masses.astype(np.float64)
    return wide / wide.sum()


def _claims(records: list[dict[str, Any]]) -> list[Claim]:
    claims = []
    for share in SHARES:
        here = [r for r in records if r["share"] == share]
        where = f"digits, epsilon = {share} mean: "
        if share == SHARES[0]:
            for text, prefix, name, least in (
                ("OTT's default", "OTT", "OTT default", 60.0), ("OTT's best geometry", "OTT", None, 20.0),
                ("POT one by one", "POT", None, 50.0),
            ):  # fmt: skip
                measured, note = ratio(here, prefix, name)
                claims.append(Claim(where + f"CPU of {text} / pdopt", measured, least, ">=", note))
        else:
            known = [pair for pair in (ratio(here, prefix) for prefix in ("OTT", "POT")) if pair[0] is not None]
            measured, note = min(known) if known else (None, "no peer")
            claims.append(Claim(where + "CPU of the best peer / pdopt", measured, 1.0, ">=", note))
    return claims


def _table(records: list[dict[str, Any]]) -> Table:
    rows = []
    for r in records:
        mine = next(q for q in records if q["solver"] == OURS and q["share"] == r["share"])
        rows.append([
            f"{r['share']}", r["solver"], number(1e6 * r["cpu"]), number(r["cpu"] / mine["cpu"]), f"{r['iterations']}",
            f"{r['error']:.1e}", number(r["first"]), r["outcome"],
        ])  # fmt: skip
    columns = ["epsilon / mean", "solver", "CPU us / pair", "/ pdopt", "sweeps", "worst error", "compile s", "outcome"]
    return Table(f"Pairs of digit images, {records[0]['pairs']} as one batch", columns, rows)


def neighbours(options: Options, say: Any) -> tuple[list[dict[str, Any]], list[Claim], list[Table], list[Any]]:
    """Nearest neighbour by Wasserstein and by Euclidean distance, on few examples, and a picture of what they choose."""
    import pdopt

    images, labels, C = digits()
    rng = np.random.default_rng(options.seed)
    order = rng.permutation(len(images))
    known, asked = order[:50], order[50 : 50 + (300 if options.full else 60)]
    problem = pdopt.Transport(C, regulariser=pdopt.Entropy(float(0.05 * C.mean())), dtype=np.float32)
    A, B = np.repeat(images[asked], len(known), axis=0), np.tile(images[known], (len(asked), 1))
    cross = np.asarray(pdopt.pairwise(problem, A, B, tolerance=1e-3).objective).reshape(len(asked), len(known))
    # The entropic value is not 0 between equals: half of each one's value to itself is taken off (the divergence).
    self_known = np.asarray(pdopt.pairwise(problem, images[known], images[known], tolerance=1e-3).objective)
    distance = {
        "Wasserstein": cross - self_known / 2,
        "Euclidean": np.linalg.norm(images[asked][:, None] - images[known][None], axis=-1),
    }
    share = {name: float(np.mean(labels[known[d.argmin(1)]] == labels[asked])) for name, d in distance.items()}
    say(f"digits, nearest of {len(known)} known: " + ", ".join(f"{k} {v:.1%}" for k, v in share.items()))
    records = [
        {"section": "neighbours", "distance": name, "right": v, "known": len(known)} for name, v in share.items()
    ]
    rows = [[name, f"{v:.1%}"] for name, v in share.items()]
    picture = _picture(images, labels, asked[:8], known, distance, options.output / "digits.png")
    return records, [], [Table(f"Nearest of {len(known)} known digits", ["distance", "right"], rows)], [picture]


def _picture(images: Any, labels: Any, asked: Any, known: Any, distance: dict[str, Any], path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, len(asked))
    chosen = {name: known[d[: len(asked)].argmin(1)] for name, d in distance.items()}
    for row, (name, which) in enumerate({"asked": asked, **chosen}.items()):
        for k, image in enumerate(which):
            axes[row, k].imshow(images[image].reshape(8, 8), cmap="gray_r")
            right = labels[image] == labels[asked[k]]
            axes[row, k].set_title(f"{labels[image]}" + ("" if right else " (wrong)"), fontsize=9)
            axes[row, k].set_xticks([])
            axes[row, k].set_yticks([])
        axes[row, 0].set_ylabel(name)
    figure.suptitle("Nearest of 50 known digits")
    return save_picture(figure, path, {name: [int(labels[i]) for i in which] for name, which in chosen.items()})
