"""Bilevel programs: LV-HBA on its toys, on sample weights and on flipped labels, beside implicit gradients and BOME.

Every x that a method ends with is judged alike: the lower level is solved again at x, to rounding, and what counts is
F(x, y*(x)), the accuracy of y*(x) on samples that nobody saw, and whether the weights find the flipped labels.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pdopt
from benchmarks.bilevel_problems import (
    Split,
    error_one,
    machine_program,
    margins,
    reference_two,
    splits,
    toy_one,
    toy_two,
)  # fmt: skip
from benchmarks.claims import Claim
from benchmarks.harness import Options
from benchmarks.machine import machine
from benchmarks.plots import line_look, picture_axes, save_picture
from benchmarks.report import Report, Table, number
from pdopt.bilevel import hypergradient, polish_bilevel
from pdopt.types import Pair

ABOUT = "LV-HBA on constrained bilevel programs against implicit gradients, BOME and a grid of one C"

SLOW = {"gamma1": 10.0, "gamma2": 10.0}  # the published proximal weights
TOY = {
    "published (old point, p = 0.3)": pdopt.LVHBA(inner=-1.0, penalty=pdopt.Growing(1.0, 0.3), **SLOW),
    "published (old point, p = 0.49)": pdopt.LVHBA(inner=-1.0, penalty=pdopt.Growing(1.0, 0.49), **SLOW),
    "PDHG inside, p = 0.49": pdopt.LVHBA(penalty=pdopt.Growing(1.0, 0.49)),
    "staged and extrapolated": pdopt.LVHBA.staged(),
}
RULE, STAGED = "published (old point, p = 0.49)", "staged and extrapolated"
BUDGETS = (100, 200, 500, 1000, 2000, 5000, 10_000, 15_000)
GRID = tuple(np.linspace(-6, 6, 9))
DATA = ("breast_cancer", "digits", "diabetes")
FLIPS = 0.4
SIZE = 70  # training samples, and as many to validate


def toys(say: Any) -> list[dict[str, Any]]:
    """Errors on toy 1 after each budget and after polishing; distance to SciPy's value on toy 2."""
    records, program = [], toy_one()
    for name, method in TOY.items():
        for budget in BUDGETS:
            solution = pdopt.solve(program, method, max_iterations=budget, tolerance=1e-12)
            before = time.process_time()
            jax.block_until_ready(pdopt.solve(program, method, max_iterations=budget, tolerance=1e-12))
            records.append({
                "kind": "toy 1", "method": name, "iterations": budget, "error": error_one(solution),
                "cpu": time.process_time() - before, "residual": float(solution.residuals.error),
            })  # fmt: skip
        say(f"toy 1, {name}: {records[-1]['error']:.2e} after {records[-1]['iterations']} iterations")
    rough = pdopt.solve(program, TOY[STAGED], max_iterations=1500, tolerance=1e-12)
    polished = polish_bilevel(program, rough)
    paper = TOY[RULE].residual(program, rough, 40.0)
    records.append({
        "kind": "toy 1", "method": "staged, polished", "iterations": 1500 + int(polished.iterations),
        "error": error_one(polished), "cpu": float("nan"), "residual": float(polished.residuals.error),
    })  # fmt: skip
    say(f"toy 1, polished: {records[-1]['error']:.2e} from {error_one(rough):.2e} (R = {float(paper):.2e} at c = 40)")
    second = toy_two()
    best = reference_two(second)
    for name in (RULE, STAGED):
        method = TOY[name] if name == STAGED else TOY[name].replace(gamma1=1.0, gamma2=1.0)
        solution = pdopt.solve(second.program, method, max_iterations=20_000, tolerance=1e-10)
        along = float(second.value(jnp.asarray(solution.x.upper))) - best
        record = {"kind": "toy 2", "method": name, "apart": float(solution.objective) - best, "along": along}
        records.append(record)
        say(f"toy 2, {name}: F - F* = {record['apart']:.2e}, F(x, y*(x)) - F* = {along:.2e}")
    return records


@jax.jit
def learned(template: Any, method: Any, args: Any, iterations: Any) -> Any:
    """x of every seed, `(seeds, N)`, by one `vmap`."""
    return jax.vmap(
        lambda args: pdopt.solve(template.replace(args=args, check=False), method, max_iterations=iterations).x.upper
    )(args)


@jax.jit
def judged(template: Any, x: Any, many: Split) -> tuple[Any, Any, Any]:
    """F(x, y*(x)), the accuracy of y*(x) on the test samples and the residual of y*, of every seed.

    The lower level is solved without its slacks, which are known once w and b are: a smaller system, the same answer.
    """
    first = template.first()

    def one(x: Any, many: Split) -> Any:
        program = template.replace(args=many.args, check=False)
        found = hypergradient(program, x, Pair(first.x.lower, first.y))
        right = jnp.sum(margins(found.lower.x, many.test, many.test_labels) > 0) / jnp.sum(many.test_labels != 0)
        return found.value, right, found.residual

    return jax.vmap(one)(x, many)


def methods(full: bool) -> dict[str, tuple[Any, int, bool]]:
    """Method, iterations, and whether the lower level keeps its slacks and rows."""
    return {
        "LV-HBA": (pdopt.LVHBA(penalty=pdopt.Growing(1.0, 0.3), every=500), 8000 if full else 2000, True),
        "implicit gradient": (pdopt.ImplicitGradient(0.3, every=20), 200 if full else 40, False),
        "BOME": (pdopt.ValuePenalty(0.01, 0.01, 10, every=500), 8000 if full else 2000, False),
    }


def compare(name: str, flips: float, seeds: int, full: bool, say: Any) -> list[dict[str, Any]]:
    """All methods and baselines on one data set."""
    from sklearn.metrics import roc_auc_score

    many = Split(*map(jnp.asarray, splits(name, seeds, SIZE, flips)))
    samples, single = SIZE, Split(*(part[0] for part in many))
    templates = {slacks: machine_program(single, slacks=slacks) for slacks in (True, False)}
    kind = "cleaning" if flips else "weights"

    def record(method: str, x: Any, cpu: float) -> dict[str, Any]:
        value, accuracy, residual = map(np.asarray, judged(templates[False], x, many))
        x = np.asarray(x)
        ranks = [roc_auc_score(f, -row) for f, row in zip(many.flipped, x)] if flips else [float("nan")] * seeds
        row = {
            "kind": kind, "data": name, "method": method, "cpu": cpu, "upper": value.tolist(),
            "accuracy": accuracy.tolist(), "auc": ranks, "lower_residual": float(residual.max()),
        }  # fmt: skip
        figures = f"F {value.mean():.3f}, accuracy {accuracy.mean():.4f}, AUC {np.mean(ranks):.4f}"
        say(f"{kind} {name}, {method}: {figures}")
        return row

    rng = np.random.default_rng(0)
    records = [record("random C", jnp.asarray(rng.uniform(-6, -5, (seeds, samples))), 0.0)]
    before = time.process_time()
    tried = [np.asarray(judged(templates[False], jnp.full((seeds, samples), c), many)[0]) for c in GRID]
    best = np.asarray(GRID)[np.argmin(tried, axis=0)]
    cpu = time.process_time() - before
    records.append(record("grid of one C", jnp.asarray(np.repeat(best[:, None], samples, 1)), cpu))
    for method, (settings, iterations, slacks) in methods(full).items():
        before = time.process_time()
        x = jax.block_until_ready(learned(templates[slacks], settings, many.args, iterations))
        records.append(record(method, x, time.process_time() - before))
    return records


def run(options: Options, say: Any = print) -> Report:
    """The toys, the weights, the cleaning; claims and pictures."""
    seeds = 40 if options.full else 10
    with jax.enable_x64(True):
        records = toys(say)
        for name in DATA:
            records += compare(name, 0.0, seeds, options.full, say)
        records += compare("digits", FLIPS, seeds, options.full, say)
    pictures = [toy_plot(records, options.output / "toy.png"), cleaning_plot(records, options.output / "cleaning.png")]
    notes = [
        f"Weights and cleaning: {SIZE} samples to train, {SIZE} to validate, the rest to test; {seeds} seeds.",
        "F is the validation loss at (x, y*(x)), the lower level solved again at the x that a method ended with.",
        "LV-HBA works on the lower level with its slacks and rows. BOME takes none, and the implicit gradient is the "
        "same without them at a twentieth of the cost: both work on the squared hinge loss.",
        "CPU seconds of the sample weights include compiling, those of the toys do not.",
    ]
    tables = [toy_table(records), machine_table(records)]
    return Report("bilevel", records, claims(records), tables, pictures, machine(), notes)


def _row(records: list[dict[str, Any]], **keys: Any) -> dict[str, Any] | None:
    return next((r for r in records if all(r.get(k) == v for k, v in keys.items())), None)


def _figure(records: list[dict[str, Any]], field: str, **keys: Any) -> float | None:
    row = _row(records, **keys)
    return None if row is None else float(np.mean(row[field]))


def claims(records: list[dict[str, Any]]) -> list[Claim]:
    """The promises of the bilevel comparison, from this run's figures alone."""
    one = {"kind": "toy 1"}
    cleaning = {"kind": "cleaning", "data": "digits"}
    apart = _figure(records, "apart", kind="toy 2", method=STAGED)
    worst = []
    for name in DATA:
        ours, grid = (
            _figure(records, "upper", kind="weights", data=name, method=m) for m in ("LV-HBA", "grid of one C")
        )
        if ours is not None and grid is not None:
            worst.append(ours / grid)
    gains = {}
    for other in ("implicit gradient", "grid of one C"):
        for field in ("auc", "accuracy"):
            a, b = (_figure(records, field, **cleaning, method=m) for m in ("LV-HBA", other))
            gains[other, field] = None if a is None or b is None else a - b
    count = len((_row(records, **cleaning) or {"auc": []})["auc"])
    return [
        Claim(
            "toy 1, relative error under the published rule with scaled rows",
            _figure(records, "error", **one, method=RULE, iterations=10_000), 1e-2, "<=", "1e4 iterations",
        ),
        Claim(
            "toy 1, relative error by stages and extrapolation",
            _figure(records, "error", **one, method=STAGED, iterations=15_000), 1e-5, "<=", "1.5e4 iterations",
        ),
        Claim(
            "toy 1, relative error after polishing",
            _figure(records, "error", **one, method="staged, polished"), 1e-8, "<=", "from 1500 iterations",
        ),
        Claim(
            "toy 2, distance of F to SciPy's", None if apart is None else abs(apart), 1e-3, "<=",
            "least of 12 starts of BFGS along y*(x)",
        ),
        Claim(
            "cleaning, area under the ROC curve", _figure(records, "auc", **cleaning, method="LV-HBA"), 0.9, ">=",
            f"40% flipped, mean of {count} seeds",
        ),
        Claim(
            "cleaning, that area - implicit gradient's", gains["implicit gradient", "auc"], -0.01, ">=",
            "no worse by more than a hundredth",
        ),
        Claim(
            "cleaning, test accuracy - that of the best single C", gains["grid of one C", "accuracy"], 0.0, ">=",
            "C chosen by the validation loss",
        ),
        Claim(
            "weights, F(x, y*(x)) / that of the best single C", max(worst) if worst else None, 1.0, "<=",
            f"worst of {len(worst)} data sets",
        ),
    ]  # fmt: skip


def _spread(values: Any) -> str:
    values = np.asarray(values, float)
    if np.isnan(values).all():
        return "-"
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{values.mean():.4g} ± {error:.2g}"


def toy_table(records: list[dict[str, Any]]) -> Table:
    """Both toys."""
    rows = [
        [r["kind"], r["method"], str(r["iterations"]), number(r["error"]), number(r["residual"]), number(r["cpu"])]
        for r in records
        if (r["kind"] == "toy 1" and r["iterations"] in (1000, 10_000, 15_000)) or r["method"] == "staged, polished"
    ]
    for r in records:
        if r["kind"] == "toy 2":
            rows.append([r["kind"], r["method"], "20000", number(abs(r["apart"])), number(abs(r["along"])), "-"])
    columns = ["problem", "method", "iterations", "error", "residual", "CPU s"]
    title = "Toys: relative error and certificate (toy 2: F - F*, and F(x, y*(x)) - F* in the place of the certificate)"
    return Table(title, columns, rows)


def machine_table(records: list[dict[str, Any]]) -> Table:
    """Means and standard errors over seeds."""
    rows = [
        [f"{r['kind']}, {r['data']}", r["method"], _spread(r["upper"]), _spread(r["accuracy"]), _spread(r["auc"]),
         number(r["cpu"]), number(r["lower_residual"])]
        for r in records
        if r["kind"] in ("weights", "cleaning")
    ]  # fmt: skip
    columns = ["problem", "method", "F(x, y*(x))", "test accuracy", "ROC area of flips", "CPU s", "|N| of y*"]
    return Table("Sample weights and flipped labels: mean and standard error over seeds", columns, rows)


def toy_plot(records: list[dict[str, Any]], path: Any) -> Any:
    """Relative error on toy 1 over iterations."""
    figure, axes = picture_axes("Toy 1 (n = 100): what the penalty leaves", "iterations", "relative error (l2, worst)")
    data = {}
    for place, name in enumerate(TOY):
        curve = [(r["iterations"], r["error"]) for r in records if r["kind"] == "toy 1" and r["method"] == name]
        axes.loglog(*zip(*curve), label=name, marker="o", markersize=3, **line_look(place))
        data[name] = curve
    polished = _row(records, kind="toy 1", method="staged, polished")
    if polished is not None:
        axes.loglog([polished["iterations"]], [polished["error"]], "k*", markersize=11, label="polished at 1500")
        data["polished"] = [(polished["iterations"], polished["error"])]
    axes.legend(fontsize=8)
    return save_picture(figure, path, data)


def cleaning_plot(records: list[dict[str, Any]], path: Any) -> Any:
    """ROC area and test accuracy of every seed, method by method."""
    figure, axes = picture_axes("40% flipped labels, digits 3 against 8", "", "share")
    rows = [r for r in records if r["kind"] == "cleaning"]
    looks = (("auc", "ROC area of flipped labels", 0.15, "#0072B2"), ("accuracy", "test accuracy", -0.15, "#D55E00"))
    for field, label, shift, colour in looks:
        for place, row in enumerate(rows):
            values = np.asarray(row[field], float)
            across = place - shift + np.linspace(-0.08, 0.08, len(values))
            axes.plot(across, values, ".", color=colour, alpha=0.6, label=label if place == 0 else None)
            axes.plot([place - shift - 0.1, place - shift + 0.1], [values.mean()] * 2, color=colour, linewidth=2.5)
    axes.axhline(0.9, color="black", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(rows)), [r["method"] for r in rows])
    axes.legend(fontsize=8)
    return save_picture(figure, path, {r["method"]: {"auc": r["auc"], "accuracy": r["accuracy"]} for r in rows})
