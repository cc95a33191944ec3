"""k-sparse transport: the row error of the plan where k binds, against L-BFGS alone, averaged subgradients and POT.

The instance of the spec: n colours of one photograph to m of another (squared distance in RGB), gamma the mean cost.
Every plan is judged here in float64 NumPy from its dense form. `section(options, say)` is one part of the comparison
`transport`: it returns records, claims, tables and pictures.
"""

import contextlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import pdopt
from benchmarks.claims import Claim
from benchmarks.harness import Options
from benchmarks.plots import COLOURS, STYLES
from benchmarks.report import Table, number
from pdopt.geometry import Euclidean, Reals
from pdopt.rules.acceleration import Averaged
from pdopt.rules.saddle import row, saddle_step
from pdopt.types import Memory, Pair

KS = (1, 2, 4, 16)
BINDING = (1, 2, 4)
TOLERANCE = 5e-5
STEPS = 20_000  # of the averaged subgradient method, as in the spec
LBFGS_STEPS = 600
REPEATS = 2
OURS, PLAIN, MEAN, POT = "pdopt", "L-BFGS alone", "averaged subgradients", "POT"


class Colours(NamedTuple):
    """Two clouds of colours: costs, masses, and the least cost of a plan."""

    name: str
    C: np.ndarray
    a: np.ndarray
    b: np.ndarray
    least: float

    @property
    def gamma(self) -> float:
        """The mean cost."""
        return float(self.C.mean())


class Answer(NamedTuple):
    """A dense plan, a lower bound (None: not told), the steps taken, and the marginal error by step if recorded."""

    plan: np.ndarray
    bound: float | None
    steps: int
    curve: dict[str, list[float]]


def colours(n: int, m: int, seed: int) -> Colours:
    """Pixels drawn from scikit-learn's two sample photographs; the least cost by HiGHS."""
    import scipy.sparse as sp
    from scipy.optimize import linprog
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(seed)
    pixels = [image.reshape(-1, 3) / 255.0 for image in load_sample_images().images]
    x, y = (p[rng.choice(len(p), size, replace=False)] for p, size in zip(pixels, (n, m)))
    C = ((x[:, None] - y) ** 2).sum(-1)
    a, b = np.full(n, 1 / n), np.full(m, 1 / m)
    A = sp.vstack([sp.kron(sp.eye(n), np.ones((1, m))), sp.kron(np.ones((1, n)), sp.eye(m))]).tocsc()
    found = linprog(C.ravel(), A_eq=A, b_eq=np.r_[a, b], method="highs")
    if found.status != 0:
        raise RuntimeError(f"HiGHS did not solve the exact problem: {found.message}")
    return Colours(f"colours {n}x{m} seed {seed}", C, a, b, float(found.fun))


def _problem(data: Colours, k: int, dtype: Any = jnp.float64) -> Any:
    return pdopt.Transport(data.C, data.a, data.b, pdopt.KSparse(data.gamma, k), dtype=dtype)


def _solved(problem: Any, method: Any, limit: int) -> tuple[Any, dict[str, list[float]]]:
    options = {"tolerance": TOLERANCE, "max_iterations": limit, "gradient": "none", "history": 64}
    solution = jax.block_until_ready(pdopt.solve(problem, method, **options))
    rows = np.asarray(solution.history.rows)[1 : int(solution.history.used)]
    return solution, {"steps": rows[:, 0].tolist(), "error": rows[:, 3].tolist()}


def ours(data: Colours, k: int) -> Answer:
    """The mixture by proximal saddle steps."""
    solution, curve = _solved(_problem(data, k), pdopt.SemiDual(), 20_000)
    plan = np.asarray(solution.x.todense(), np.float64)
    return Answer(plan, float(solution.dual_objective), int(solution.iterations), curve)


def plain(data: Colours, k: int) -> Answer:
    """The same search without the proximal term: its k-sparse plan."""
    solution, curve = _solved(_problem(data, k), pdopt.SemiDual(smoothing=0.0), LBFGS_STEPS)
    plan = np.asarray(solution.certificate.plan.todense(), np.float64)
    return Answer(plan, float(solution.dual_objective), int(solution.iterations), curve)


@jax.jit
def _averaged(problem: Any) -> tuple[Any, Any, Any]:
    """Subgradient steps `3 / sqrt(i)` by the same saddle step; the mean of the plans of the second half."""
    view = pdopt.SemiDual().view(problem)
    start, none = view.start(), jnp.zeros((), problem.a.dtype)
    dense = lambda y: view.plan(y, start.x, none).todense()
    lack = lambda x: problem.a - jnp.sum(x, axis=1)
    parts, mean = row(lambda x, y: dense(y), lack, Euclidean(Reals())), Averaged()

    def one(track: Any, i: Any) -> tuple[Any, Any]:
        step = (3 / jnp.sqrt(i + 1.0)).astype(none.dtype)
        T = lambda pair, memory: saddle_step(parts, step, pair, memory)
        return mean.apply(T, track, Memory(), step)[0], None

    def block(track: Any, numbers: Any) -> tuple[Any, Any]:
        track = jax.lax.scan(one, track, numbers)[0]
        return track, jnp.sum(jnp.abs(lack(track.mean.x)))

    numbers = jnp.arange(STEPS, dtype=none.dtype).reshape(2, 25, -1)
    track, first = jax.lax.scan(block, mean.init(Pair(dense(start.y), start.y)), numbers[0])
    track, second = jax.lax.scan(block, mean.init(track.point), numbers[1])
    bound = problem.regulariser.columns(problem).sparse(track.mean.y)[1]
    return track.mean.x, bound, jnp.concatenate([first, second])


def averaged(data: Colours, k: int) -> Answer:
    """20 000 subgradient steps, in float32: ten times cheaper a step than in float64, and the error is far above it."""
    plan, bound, errors = jax.block_until_ready(_averaged(_problem(data, k, jnp.float32)))
    every = STEPS // errors.shape[0]
    curve = {"steps": [float(every * (i + 1)) for i in range(errors.shape[0])], "error": errors.tolist()}
    return Answer(np.asarray(plan, np.float64), float(bound), STEPS, curve)


def by_pot(data: Colours, k: int) -> Answer:
    """POT's semi-dual, on a copy of the cost: its k-sparse conjugate edits its argument in place."""
    import ot

    with contextlib.redirect_stdout(io.StringIO()):  # it prints a shape at every step
        plan, log = ot.smooth.smooth_ot_semi_dual(
            data.a, data.b, data.C.copy(), data.gamma, reg_type="sparsity_constrained", max_nz=k,
            numItermax=LBFGS_STEPS, stopThr=1e-12, log=True,
        )  # fmt: skip
    return Answer(np.asarray(plan), None, int(log.get("nit", LBFGS_STEPS)), {})


SOLVERS: dict[str, Callable[[Colours, int], Answer]] = {OURS: ours, PLAIN: plain, MEAN: averaged, POT: by_pot}


def section(options: Options, say: Any = print) -> tuple[list[dict[str, Any]], list[Claim], list[Table], list[Path]]:
    """Run all solvers on all instances; quick: one instance, k that bind, averaged subgradients for one of them."""
    instances = [colours(100, 80, options.seed)]
    if options.full:
        instances += [colours(100, 80, options.seed + 1), colours(100, 80, options.seed + 2), colours(300, 240, 0)]
    records, curves = [], {}
    for data in instances:
        for k in KS if options.full else BINDING:
            names = [name for name in SOLVERS if name != MEAN or k == 2 or (options.full and k in BINDING)]
            for name, (record, curve) in _compared(data, k, names).items():
                records.append(record)
                say(f"{data.name} k={k} {name}: row error {record['row_error']:.1e}, {record['cpu']:.2f} s")
                if curve and data is instances[0] and k in BINDING:
                    curves.setdefault(k, {})[name] = curve
    pictures = [_picture(curves, options.output / "transport-sparse.png")]
    return records, _claims(records), [_table(records)], pictures


def _compared(data: Colours, k: int, names: list[str]) -> dict[str, tuple[dict[str, Any], dict[str, list[float]]]]:
    """First runs (with compilation), then warm ones in alternating order; each plan judged afresh."""
    answers, first, warm = {}, {}, {name: [] for name in names}
    for name in names:
        began = time.process_time()
        answers[name] = SOLVERS[name](data, k)
        first[name] = time.process_time() - began
    for turn in range(REPEATS):
        for name in names if turn % 2 else names[::-1]:
            if name == POT or (turn and first[name] > 2):
                continue  # nothing to compile; a long run needs no repetition
            began = time.process_time()
            SOLVERS[name](data, k)
            warm[name].append(time.process_time() - began)
    found = {}
    for name, answer in answers.items():
        cpu = float(np.median(warm[name] or [first[name]]))
        found[name] = ({**_judged(data, k, name, answer), "cpu": cpu, "compile": first[name] - cpu}, answer.curve)
    return found


def _judged(data: Colours, k: int, name: str, answer: Answer) -> dict[str, Any]:
    T = answer.plan
    entries = (T > 0).sum(0)
    return {
        "comparison": "transport_sparse", "instance": data.name, "solver": name, "k": k,
        "row_error": float(np.abs(T.sum(1) - data.a).sum()), "column_error": float(np.abs(T.sum(0) - data.b).sum()),
        "excess": float((data.C * T).sum() / data.least - 1), "bound": answer.bound, "steps": answer.steps,
        "entries_mean": float(entries.mean()), "entries_max": int(entries.max()),
    }  # fmt: skip


def _claims(records: list[dict[str, Any]]) -> list[Claim]:
    binding = [r for r in records if r["k"] in BINDING]
    chosen = lambda name: [r for r in binding if r["solver"] == name]
    own, pot, alone = chosen(OURS), chosen(POT), chosen(PLAIN)
    worst = lambda runs, field: max(runs, key=lambda r: abs(r[field]))
    least = min(pot + alone, key=lambda r: r["row_error"])
    error, excess = worst(own, "row_error"), worst(own, "excess")
    note = lambda r: f"{r['instance']}, k = {r['k']}"
    mean = {(r["instance"], r["k"]): r for r in chosen(MEAN)}
    pairs = [(mean[key]["steps"] / r["steps"], r) for r in own if (key := (r["instance"], r["k"])) in mean]
    fewer = min(pairs, key=lambda pair: pair[0]) if pairs else (None, None)
    free = [r for r in records if r["k"] not in BINDING and r["solver"] == OURS]
    return [
        Claim("k-sparse: row error of the mixture at k = 1, 2, 4", error["row_error"], 1e-4, "<=", note(error)),
        Claim("k-sparse: row error that L-BFGS and POT leave there", least["row_error"], 1e-2, ">=", note(least)),
        Claim("k-sparse: |cost / exact cost - 1|", abs(excess["excess"]), 0.01, "<=", note(excess)),
        Claim(
            "k-sparse: row error where k does not bind", max((r["row_error"] for r in free), default=None), 1e-4, "<=",
            "k = 16" if free else "in the full comparison only",
        ),
        Claim(
            "k-sparse: steps of averaged subgradients / ours", fewer[0], 10.0, ">=",
            note(fewer[1]) if fewer[1] else "not run",
        ),
    ]  # fmt: skip


def _table(records: list[dict[str, Any]]) -> Table:
    columns = ["instance", "k", "solver", "row error", "column error", "cost - exact, %", "bound", "entries", "steps"]
    rows = [
        [
            r["instance"], str(r["k"]), r["solver"], f"{r['row_error']:.1e}", f"{r['column_error']:.1e}",
            f"{100 * r['excess']:.3f}", number(r["bound"]), f"{r['entries_mean']:.1f} (max {r['entries_max']})",
            str(r["steps"]), number(r["cpu"]), number(r["compile"]),
        ]
        for r in records
    ]  # fmt: skip
    return Table("k-sparse transport, gamma = mean cost", [*columns, "CPU s", "compile s"], rows)


def _picture(curves: dict[int, dict[str, dict[str, list[float]]]], path: Path) -> Path:
    """Error of the marginals by step, one panel for each k."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    names = [name for name in SOLVERS if any(name in curve for curve in curves.values())]
    for place, (k, found) in enumerate(curves.items()):
        axes = figure.add_subplot(1, len(curves), place + 1)
        for name, curve in found.items():
            look = {"color": COLOURS[names.index(name)], "linestyle": STYLES[names.index(name) % len(STYLES)]}
            axes.loglog(curve["steps"], curve["error"], label=name, linewidth=1.8, **look)
        axes.axhline(1e-4, color="0.6", linewidth=1)
        axes.set(title=f"k = {k}", xlabel="saddle steps", xlim=(40, 3e4), ylim=(1e-6, 3))
        axes.grid(True, alpha=0.3)
        if place == 0:
            axes.set_ylabel("L1 error of the plan's rows")
        if len(found) == len(names):
            axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
    path.with_suffix(".json").write_text(json.dumps(curves))
    return path
