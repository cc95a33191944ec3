"""Exact augmented Lagrangian: direct, Krylov and sketched Newton steps side by side, on three families.

CUTEst problems with equality constraints (judged by `constrained_judge.py`), logistic regression on a plane and sphere
(distance to a Newton reference in NumPy) and control of Poisson's equation (distance to SciPy's sparse LU). Cost is
counted in products with the matrix of the optimality system, and measured in CPU seconds of a warm run. A solver has a
budget of products for each linear system; what it does not solve within it is a miss, listed with its cause.
"""

import time
from functools import partial
from typing import Any

import jax
import numpy as np

import pdopt
from benchmarks import sketching_problems as family
from benchmarks.claims import Claim
from benchmarks.constrained_judge import judge
from benchmarks.constrained_peers import Functions
from benchmarks.harness import Options
from benchmarks.instances import cutest
from benchmarks.machine import machine
from benchmarks.plots import line_look, picture_axes, save_picture
from benchmarks.report import Report, Table, number
from pdopt.types import Status

ABOUT = "Newton steps of the exact augmented Lagrangian: direct, MINRES and block sketches on three families"

BLOCK, SMALL = 32, 8  # combinations of a sketch; the second on CUTEst, whose systems have some ten unknowns
LIMIT = 5000  # products with K that a sketch may spend on one system
FORCING = 0.1


def solvers(block: int, **settings: Any) -> dict[str, Any]:
    """The same method with three linear solvers; the iterative ones also with a forcing term in the published rule's
    place.
    """
    method = partial(pdopt.ExactAugmentedLagrangian, **settings)
    sketch = pdopt.BlockSketch(block=block, products=LIMIT)
    return {  # a forcing term is traced: two rules share a compilation
        "direct": method(linear=pdopt.Direct()),
        "minres": method(linear=pdopt.MinRes()),
        "minres, forcing": method(linear=pdopt.MinRes(), forcing=FORCING),
        "sketch": method(linear=sketch),
        "sketch, forcing": method(linear=sketch, forcing=FORCING),
    }


SOLVERS = tuple(solvers(BLOCK))
QUICK = ("HS7", "HS26", "BT8", "HS77")
GRIDS, LARGE = (8, 16, 31), (64, 128, 256)
SINES = "minres, sine transform"
PEER = "multipliers, L-BFGS"  # AugmentedLagrangian(inner=ProjectedLBFGS()), gradients only
SPARSE = "SciPy sparse LU"


def run(options: Options, say: Any = print) -> Report:
    """Measure, judge and draw."""
    began = time.monotonic()
    late = lambda: time.monotonic() - began > options.budget
    notes = [
        "A product is one with K: a Hessian and two Jacobian products, counted as two gradients. Published rule: "
        "|K| Psi |K z + r| <= delta |r|, whose delta sits at its floor of 1e-6 from the first step on; forcing: "
        f"|K z + r| <= min({FORCING}, sqrt|r|) |r|.",
        f"A sketch of {BLOCK} (CUTEst: {SMALL}) combinations may spend {LIMIT} products on one system, MINRES 10 a "
        "row. CPU seconds are of a second, warm run. The LIBSVM sets of the paper are replaced by two of scikit-learn "
        "and a synthetic one.",
    ]
    with jax.enable_x64(True):
        records = control_records(options.full, late, say)
        regressions, curves = regression_records(late, say)
        records += regressions
        if cutest.available():
            records += cutest_records(options.full, late, say)
        else:
            notes.append("CUTEst: skipped, sif2jax is not installed (pip install 'pdopt[cutest]').")
    pictures = [
        curve_plot(curves, options.output / "convergence.png"),
        cost_plot(records, options.output / "cost.png"),
    ]
    tables = [counts_table(records), *(cost_table(records, kind) for kind in KINDS), misses_table(records)]
    found = claims(records)
    return Report("sketching", records, found, tables, pictures, machine(), [*notes, verdict(records)])


KINDS = {
    "control": "control of Poisson's equation",
    "regression": "logistic regression",
    "cutest": "CUTEst, equalities",
}


def measured(kind: str, name: str, solver: str, problem: Any, method: Any, close: Any, **limits: Any) -> dict[str, Any]:
    """One record: a cold and a warm run, and what `close(solution) -> (passes, distance)` says of the answer."""
    seconds, found = [], None
    try:
        for _ in range(2):
            before = time.process_time()
            found = jax.block_until_ready(pdopt.solve(problem, method, gradient="none", **limits))
            seconds.append(time.process_time() - before)
    except Exception as error:
        return blank(kind, name, solver, "crash", repr(error)[:200])
    assert found is not None
    passes, distance = close(found)
    work = jax.tree.map(int, found.work)
    ours = hasattr(work, "products")
    gradients = work.values + work.gradients + 2 * (work.products if ours else work.hessians)
    shown = f"{found.reason}, {int(found.iterations)} steps"
    if ours:
        shown += f", {work.short} systems short, {work.descents} steps along the gradient"
    return blank(kind, name, solver, "solved" if passes else "missed", shown) | {
        "steps": int(found.iterations), "products": work.products if ours else None, "gradients": gradients,
        "values": work.values, "cpu": seconds[1], "compile": seconds[0] - seconds[1], "distance": distance,
        "error": float(found.residuals.error), "objective": float(found.objective),
        "size": sum(leaf.size for leaf in jax.tree.leaves(problem.pair_shapes())),
    }  # fmt: skip


def blank(kind: str, name: str, solver: str, outcome: str, detail: str) -> dict[str, Any]:
    """A record without figures."""
    return {
        "kind": kind, "instance": name, "solver": solver, "outcome": outcome, "detail": detail, "steps": None,
        "products": None, "gradients": None, "values": None, "cpu": None, "compile": None, "distance": None,
        "error": None, "objective": None, "size": None,
    }  # fmt: skip


def attempt(late: Any, say: Any, kind: str, name: str, solver: str, *rest: Any, **limits: Any) -> dict[str, Any]:
    """`measured`, or the record of a run that the budget did not reach."""
    if late():
        found = blank(kind, name, solver, "cut", "time budget of the whole run")
    else:
        found = measured(kind, name, solver, *rest, **limits)
    say(f"{kind} {name}, {solver}: {found['outcome']}; {found['detail']}; products {found['products']}, "
        f"CPU {number(found['cpu'])} s, compiling {number(found['compile'])} s")  # fmt: skip
    return found


def control_records(full: bool, late: Any, say: Any) -> list[dict[str, Any]]:
    """Every solver up to 31 x 31, MINRES with and without the sine transform beyond; one Newton step solves each."""
    records = []
    for size in (*GRIDS, *(LARGE if full else LARGE[-1:])):
        problem = family.control(size)
        before = time.process_time()
        w, z, _ = family.control_reference(size, np.asarray(problem.args[0]))
        cpu = time.process_time() - before
        scale = float(np.linalg.norm([*w.ravel(), *z.ravel()]))
        close = partial(_control_close, w=w, z=z, scale=scale)
        name, few = f"{size} x {size}", {"max_iterations": 10}
        records.append(blank("control", name, SPARSE, "solved", "assembled matrix, the reference") | {
            "cpu": cpu, "distance": 0.0, "size": 3 * size**2,
        })  # fmt: skip
        mine = solvers(BLOCK, rescale=False)
        if size in LARGE:
            limit = 100_000 if full else 20_000
            mine = {"minres": pdopt.ExactAugmentedLagrangian(linear=pdopt.MinRes(limit), rescale=False)}
            few = {"max_iterations": 2}
        if size == GRIDS[-1]:
            mine = {k: v for k, v in mine.items() if k != "sketch"}
        if full or size >= GRIDS[-1]:
            preconditioned = pdopt.MinRes(preconditioner=family.by_sines)
            mine[SINES] = pdopt.ExactAugmentedLagrangian(linear=preconditioned, rescale=False)
        for solver, method in mine.items():
            if solver == "minres" and size == LARGE[-1] and not full:
                continue
            # What a sketch does not do in three systems of a quadratic program it does not do.
            most = {"max_iterations": 3} if "sketch" in solver else few
            records.append(attempt(late, say, "control", name, solver, problem, method, close, **most))
        if size == GRIDS[-1]:
            # The spec's comparison: both to 1e-4.
            records += peer_records("control, 1e-4", name, problem, close, SINES, mine[SINES], late, say)
        jax.clear_caches()
    return records


def _control_close(found: Any, w: np.ndarray, z: np.ndarray, scale: float) -> tuple[bool, float]:
    apart = np.concatenate([(np.asarray(found.x["state"]) - w).ravel(), (np.asarray(found.x["control"]) - z).ravel()])
    distance = float(np.linalg.norm(apart)) / scale
    return found.reason is Status.OPTIMAL and distance <= 1e-4, distance


def peer_records(
    kind: str, name: str, problem: Any, close: Any, solver: str, method: Any, late: Any, say: Any
) -> list[dict[str, Any]]:
    """The same problem to 1e-4 by us and by the method of multipliers with gradients only."""
    peer = pdopt.AugmentedLagrangian(inner=pdopt.ProjectedLBFGS())
    both = ((solver, method), (PEER, peer))
    return [attempt(late, say, kind, name, who, problem, how, close, tolerance=1e-4) for who, how in both]


def regression_records(late: Any, say: Any) -> tuple[list[dict[str, Any]], dict[str, dict[str, list[float]]]]:
    """Every solver on each data set; on the first also the residual after each step."""
    records, curves = [], {}
    for name in family.DATA:
        data = family.samples(name)
        problem = family.regression(data)
        mine = solvers(BLOCK)
        for solver, method in mine.items():
            few = {"max_iterations": (5 if name == "synthetic" else 30) if "sketch" in solver else 100}
            close = partial(_regression_close, data=data)
            records.append(attempt(late, say, "regression", name, solver, problem, method, close, **few))
            if name == family.DATA[0] and not late():
                curves[solver] = followed(problem, method, 8 if "sketch" in solver else 40)
        if name == "synthetic":
            close = partial(_regression_close, data=data, limit=1e-2)
            chosen = mine["minres, forcing"]
            records += peer_records("regression, 1e-4", name, problem, close, "minres, forcing", chosen, late, say)
        jax.clear_caches()
    return records, curves


def _regression_close(found: Any, data: family.Samples, limit: float = 1e-4) -> tuple[bool, float]:
    x = np.asarray(found.x)
    best, _ = family.regression_reference(data, x)
    distance = float(np.linalg.norm(x - best) / np.linalg.norm(best))
    return found.reason is Status.OPTIMAL and distance <= limit, distance


def cutest_names() -> list[str]:
    """The equality set without problems that have bounds: those are outside the method."""
    free = []
    for name in cutest.names("equality"):
        program = cutest.load(name)
        if not (np.isfinite(program.lower).any() or np.isfinite(program.upper).any()):
            free.append(name)
    return free


def cutest_records(full: bool, late: Any, say: Any) -> list[dict[str, Any]]:
    """Every solver on each problem, judged by least squares on the gradients at the point where it ended."""
    records = []
    for name in cutest_names() if full else QUICK:
        program = cutest.load(name)
        problem = pdopt.NonlinearProgram(program.f, program.start, (), program.equality)
        functions = Functions(program)
        close = partial(_judged, functions=functions, lower=program.lower, upper=program.upper)
        for solver, method in solvers(SMALL).items():
            records.append(attempt(late, say, "cutest", name, solver, problem, method, close, tolerance=1e-8))
        jax.clear_caches()  # nothing of one problem serves another
    return records


def _judged(found: Any, functions: Functions, lower: np.ndarray, upper: np.ndarray) -> tuple[bool, float]:
    x = np.asarray(found.x)
    verdict = judge(x, functions.point(x), lower, upper)
    return verdict.passes(), max(verdict.violation, verdict.stationarity)


def followed(problem: Any, method: Any, steps: int) -> dict[str, list[float]]:
    """Products and error of the best pair after each number of steps; the limit is traced, so nothing compiles anew."""
    products, errors = [], []
    for k in range(1, steps + 1):
        found = pdopt.solve(problem, method, max_iterations=k, gradient="none")
        products.append(int(found.work.products))
        errors.append(float(found.residuals.error))
        if found.reason is not Status.ITERATION_LIMIT:
            break
    return {"products": products, "error": errors}


# --- the report -------------------------------------------------------------------------------------------------------


def _of(records: list[dict[str, Any]], **keys: Any) -> list[dict[str, Any]]:
    return [r for r in records if all(r[key] == value for key, value in keys.items())]


def _ratios(records: list[dict[str, Any]], ours: str, theirs: str, field: str, kinds: Any = KINDS) -> list[float]:
    """ours / theirs on every instance that both solved."""
    ratios = []
    for r in records:
        if r["solver"] == ours and r["kind"] in kinds and r["outcome"] == "solved":
            other = _of(records, kind=r["kind"], instance=r["instance"], solver=theirs, outcome="solved")
            ratios += [r[field] / o[field] for o in other if o[field]]
    return ratios


def _mean(ratios: list[float]) -> float | None:
    return float(np.exp(np.mean(np.log(ratios)))) if ratios else None


def claims(records: list[dict[str, Any]]) -> list[Claim]:
    """The promises, from this run's figures alone."""

    def count(solver: str, kind: str) -> tuple[float | None, int]:
        mine = [r for r in _of(records, solver=solver, kind=kind) if r["outcome"] != "cut"]
        return (float(np.mean([r["outcome"] == "solved" for r in mine])) if mine else None), len(mine)

    found = []
    for solver, kind in (("direct", "cutest"), ("direct", "regression"), ("minres", "regression"), (SINES, "control")):
        share, total = count(solver, kind)
        required = 0.9 if kind == "cutest" else 1.0
        found.append(Claim(f"share solved by {solver}: {KINDS[kind]}", share, required, ">=", f"of {total}"))
    large = _of(records, solver=SINES, kind="control", instance="256 x 256")
    products = large[0]["products"] if large and large[0]["outcome"] == "solved" else None
    found.append(Claim("products with K on the 256 x 256 grid (n = 131 072, no matrix)", products, 500, "<="))
    for kind, solver in (("control, 1e-4", SINES), ("regression, 1e-4", "minres, forcing")):
        ratios = _ratios(records, solver, PEER, "gradients", (kind,))
        note = f"{solver}; {_of(records, kind=kind)[0]['instance']}" if _of(records, kind=kind) else ""
        found.append(Claim(f"gradient-equivalents / those of multipliers with L-BFGS, {kind}", _mean(ratios), 1.0, "<=",
                           note))  # fmt: skip
    for ours in ("sketch", "minres"):
        ratios = _ratios(records, f"{ours}, forcing", ours, "products")
        found.append(Claim(f"{ours}: products under forcing / under the published rule", _mean(ratios), 1.0, "<=",
                           f"geometric mean of {len(ratios)} instances"))  # fmt: skip
    ratios = _ratios(records, "sketch, forcing", "minres, forcing", "products")
    found.append(Claim("sketch: products / those of MINRES, both under forcing", _mean(ratios), 1.0, "<=",
                       f"what sketching would have to show; {len(ratios)} instances that both solved"))  # fmt: skip
    return found


def verdict(records: list[dict[str, Any]]) -> str:
    """One paragraph from the figures."""
    counts = []
    for solver in SOLVERS:
        mine = [r for r in _of(records, solver=solver) if r["kind"] in KINDS and r["outcome"] != "cut"]
        counts.append(f"{solver} {sum(r['outcome'] == 'solved' for r in mine)} of {len(mine)}")
    products = _ratios(records, "sketch, forcing", "minres, forcing", "products")
    cpu = _ratios(records, "sketch, forcing", "direct", "cpu")
    wins = sum(ratio < 1 for ratio in _ratios(records, "sketch, forcing", "minres, forcing", "cpu"))
    return (
        f"Verdict. Solved: {'; '.join(counts)}. Where both end, a sketch takes {number(_mean(products))} times the "
        f"products of MINRES and {number(_mean(cpu))} times the CPU time of the direct solver (geometric means of "
        f"{len(products)} and {len(cpu)} instances), and is faster than MINRES on {wins}."
    )


def counts_table(records: list[dict[str, Any]]) -> Table:
    """Solver by family: solved of tried."""
    rows = []
    for solver in (*SOLVERS, SINES):
        cells = []
        for kind in KINDS:
            mine = [r for r in _of(records, solver=solver, kind=kind) if r["outcome"] != "cut"]
            cells.append(f"{sum(r['outcome'] == 'solved' for r in mine)} / {len(mine)}" if mine else "-")
        rows.append([solver, *cells])
    return Table("Solved / tried", ["linear solver", *KINDS.values()], rows)


def cost_table(records: list[dict[str, Any]], kind: str) -> Table:
    """Instance by solver: Newton steps / products / CPU milliseconds where solved, the outcome elsewhere."""
    mine = [r for r in records if r["kind"] == kind]
    names = list(dict.fromkeys(r["solver"] for r in mine))
    rows = []
    for instance in dict.fromkeys(r["instance"] for r in mine):
        row = [instance, str(next((r["size"] for r in _of(mine, instance=instance) if r["size"]), "-"))]
        for solver in names:
            r = next(iter(_of(mine, instance=instance, solver=solver)), None)
            if r is None or r["outcome"] != "solved":
                row.append("-" if r is None else r["outcome"])
            elif r["products"] is None:
                row.append(f"{1000 * r['cpu']:.3g} ms")
            else:
                row.append(f"{r['steps']} / {r['products']} / {1000 * r['cpu']:.3g} ms")
        rows.append(row)
    return Table(f"{KINDS[kind]}: Newton steps / products with K / CPU", ["instance", "n + m", *names], rows)


def misses_table(records: list[dict[str, Any]]) -> Table:
    """What was not solved, and how it ended."""
    rows = [
        [r["kind"], r["instance"], r["solver"], number(r["error"]), number(r["distance"]), number(r["products"]),
         r["detail"][:90]]
        for r in records
        if r["outcome"] in ("missed", "crash")
    ]  # fmt: skip
    columns = ["family", "instance", "solver", "residual", "distance", "products", "how it ended"]
    return Table("Misses", columns, rows)


def curve_plot(curves: dict[str, dict[str, list[float]]], path: Any) -> Any:
    """Residual against products."""
    title = "Logistic regression, breast cancer: after each Newton step"
    figure, axes = picture_axes(title, "products with K", "largest relative residual")
    for place, (solver, curve) in enumerate(curves.items()):
        errors = np.maximum(curve["error"], 1e-16)
        axes.loglog(curve["products"], errors, label=solver, marker="o", markersize=3, **line_look(place))
    if curves:
        axes.legend(fontsize=8)
    return save_picture(figure, path, curves)


def cost_plot(records: list[dict[str, Any]], path: Any) -> Any:
    """CPU seconds of what was solved against the size of the system, control and regression."""
    figure, axes = picture_axes("Cost of a solution", "unknowns n + m", "CPU s, warm")
    data = {}
    for place, solver in enumerate((*SOLVERS, SINES, SPARSE)):
        mine = [r for r in _of(records, solver=solver, outcome="solved") if r["kind"] == "control"]
        points = sorted((r["size"], r["cpu"]) for r in mine)
        if points:
            axes.loglog(*zip(*points), label=f"control, {solver}", marker="o", markersize=4, **line_look(place))
            data[solver] = points
    if data:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return save_picture(figure, path, data)
