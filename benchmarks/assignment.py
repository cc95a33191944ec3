"""Assignment with uniform costs: iterations of each rule to a certified gap of 1e-4, time and memory.

Rules: Chambolle and Pock's constant step in the scalar and deflated metrics, the average-spectrum correction in both
(arXiv 2603.00644), and the library's default (adaptive step, Douglas-Rachford metric). Each with the best first weight
of a fixed grid and with the automatic one. SciPy's Hungarian method gives the optimum; on a CPU it is the faster one.
"""

import time
from typing import Any

import numpy as np

from benchmarks.claims import Claim
from benchmarks.harness import Options
from benchmarks.machine import machine
from benchmarks.plots import convergence_plot, line_look, picture_axes, save_picture
from benchmarks.report import Report, Table, number

ABOUT = "certified assignment: iterations of each PDHG rule, against SciPy's Hungarian method, POT and HiGHS"
GAP, LIMIT = 1e-4, 20_000
GRID = (0.3, 1.0, 3.0)
SCALAR = "scalar"
RULES = (SCALAR, "deflated", "spectrum scalar", "spectrum deflated", "default")


def method(rule: str, factor: float, automatic: bool) -> Any:
    """A rule with its first weight multiplied by a factor, kept or moved automatically."""
    import pdopt
    from pdopt.rules.restart import PrimalWeight, Weight
    from pdopt.rules.stepsize import ConstantStep
    from pdopt.types import record

    global _Scaled
    if "_Scaled" not in globals():

        @record
        class _Scaled(PrimalWeight):
            """A primal weight that begins at `factor` times the view's."""

            factor: Any = 1.0

            def init(self, omega: Any) -> Weight:
                return super().init(self.factor * omega)

    if rule.startswith("spectrum"):
        return pdopt.AverageSpectrum(gain=0.3 * automatic, weight=factor, metric=rule.split()[1])
    gains = {"gain": 0.7 * automatic, "integral": 0.01 * automatic, "balance": 0.2 * automatic}
    weight = _Scaled(factor=factor, **gains)
    if rule == "default":
        return pdopt.PDHG.lean(weight=weight)
    return pdopt.PDHG.lean(weight=weight, stepsize=ConstantStep(0.99**0.5), metric=rule)


def run(options: Options, say: Any = print) -> Report:
    """Run the comparison; quick takes n = 50 and 200 and a memory check, full n up to 5000."""
    sizes = (50, 100, 200, 500) if options.full else (50, 200)
    seeds = range(5 if options.full else 2)
    records = [
        record_
        for n in sizes
        for rule in RULES
        for seed in seeds
        for record_ in _runs(n, rule, options.seed + seed, say)
    ]
    large = [_large(n, options, say) for n in ((1000, 2000, 5000) if options.full else (1000,))]
    pictures = [_iterations_plot(records, sizes, options), _gap_plot(sizes[-1], options)]
    notes = [
        "Hungarian is exact and, on a CPU at these sizes, faster than any rule here: the claims are of iterations,"
        " memory and proof, not of time.",
        "Certified gap: cost of the rounded plan over the c-transform bound; both recomputed in float64 from what was"
        " returned.",
        "The automatic weight is the one a user gets; 'best' is the fewest iterations over the fixed grid.",
    ]
    return Report(
        "assignment", records + large, _claims(records, large, sizes), _tables(records, large, sizes),
        [p for p in pictures if p is not None], machine(), notes,
    )  # fmt: skip


def _runs(n: int, rule: str, seed: int, say: Any) -> list[dict[str, Any]]:
    """The rule with every weight of the grid, and with the automatic one."""
    import pdopt

    C = _costs(n, seed)
    problem, best = pdopt.Transport(C), _optimum(C)
    made = []
    for weight in (*GRID, "automatic"):
        automatic = weight == "automatic"
        chosen = method(rule, 1.0 if automatic else weight, automatic)
        solution = pdopt.solve(problem, chosen, tolerance=GAP, max_iterations=LIMIT, gradient="none")
        made.append({"n": n, "rule": rule, "seed": seed, "weight": weight, **_judge(solution, C, best)})
    say(f"n = {n}, {rule}, seed {seed}: {', '.join(str(r['iterations']) for r in made)}")
    return made


def _costs(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((n, n)).astype(np.float32)


def _optimum(C: np.ndarray) -> float:
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(C)
    return float(C[rows, columns].sum(dtype=np.float64)) / len(C)


def _judge(solution: Any, C: np.ndarray, best: float) -> dict[str, Any]:
    """The certificate again in float64: plan, potentials, and the optimum of the Hungarian method."""
    wide, plan = C.astype(np.float64), np.asarray(solution.x.todense(), np.float64)
    n = len(C)
    f = np.asarray(solution.y[0], np.float64)
    g = (wide - f[:, None]).min(0)
    bound, value = (f.sum() + g.sum()) / n, float((wide * plan).sum())
    error = float(np.abs(plan.sum(0) - 1 / n).sum() + np.abs(plan.sum(1) - 1 / n).sum())
    return {
        "iterations": int(solution.iterations), "status": str(solution.reason), "gap": (value - bound) / value,
        "over": value / best - 1, "error": error, "integral": bool(solution.certificate.integral),
    }  # fmt: skip


def _large(n: int, options: Options, say: Any) -> dict[str, Any]:
    """One large problem by the plain steps: arrays of the compiled solve, time without compiling, and peers."""
    import jax
    from scipy.optimize import linear_sum_assignment

    import pdopt
    from pdopt.solve import _solve, checked_options

    C = _costs(n, options.seed)
    problem, chosen = pdopt.Transport(C), pdopt.PDHG.lean()
    given = checked_options(problem, GAP, LIMIT, "none", 0)
    before = time.process_time()
    compiled = _solve.plain.lower(problem, chosen, None, *given, "none", 0).compile()
    compiling = time.process_time() - before
    sizes: Any = compiled.memory_analysis()
    arrays = (
        sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes - sizes.alias_size_in_bytes
    ) / C.nbytes  # fmt: skip
    before, wall = time.process_time(), time.perf_counter()
    solution = jax.block_until_ready(compiled(problem, chosen, None, *given))
    cpu, wall = time.process_time() - before, time.perf_counter() - wall
    before = time.process_time()
    linear_sum_assignment(C)
    peers = {"hungarian": time.process_time() - before}
    if n <= 1000:
        peers |= _peers(C)
    made = {"n": n, "rule": "default", "weight": "large", "arrays": arrays, "compile": compiling, "cpu": cpu,
            "wall": wall, "peers": peers, **_judge(solution, C, _optimum(C))}  # fmt: skip
    say(f"n = {n}: gap {made['gap']:.2g} after {made['iterations']} iterations, {cpu:.2f} s, {arrays:.3f} arrays")
    return made


def _peers(C: np.ndarray) -> dict[str, float]:
    """CPU seconds of exact peers; those not installed are left out."""
    found = {}
    try:
        import ot
    except ImportError:
        return found
    n = len(C)
    a = np.full(n, 1 / n)
    before = time.process_time()
    ot.emd(a, a, C.astype(np.float64), numItermax=10_000_000)
    found["POT emd"] = time.process_time() - before
    return found


def _count(records: list[dict[str, Any]], n: int, rule: str, automatic: bool) -> float:
    """Geometric mean of the iterations over seeds: automatic weight, or the best of the grid; infinite for failures."""
    chosen = [r for r in records if r["n"] == n and r["rule"] == rule and (r["weight"] == "automatic") == automatic]
    best: dict[int, float] = {}
    for r in chosen:
        count = r["iterations"] if r["gap"] <= 1.01 * GAP + 1e-6 else np.inf
        best[r["seed"]] = min(best.get(r["seed"], np.inf), count)
    return float(np.exp(np.mean(np.log(list(best.values()))))) if best else float("nan")


def _claims(records: list[dict[str, Any]], large: list[dict[str, Any]], sizes: tuple[int, ...]) -> list[Claim]:
    claims = []
    for automatic, name in ((False, "best weight of the grid"), (True, "automatic weight")):
        for rule in RULES[1:]:
            ratios = {n: _count(records, n, rule, automatic) / _count(records, n, SCALAR, automatic) for n in sizes}
            note = ", ".join(f"n={n}: {r:.2f}" for n, r in ratios.items())
            promise = f"iterations of '{rule}' over the scalar rule at every n, {name} (largest ratio)"
            claims.append(Claim(promise, max(ratios.values()), 1.0, "<=", note))
    automatic = [r for r in records if r["weight"] == "automatic"]
    claims.append(
        Claim(
            "every automatic run within 1e-4 of the Hungarian optimum",
            max(abs(r["over"]) for r in automatic),
            GAP,
            "<=",
        )
    )
    for r in large:
        claims.append(Claim(f"certified relative gap at n = {r['n']}", r["gap"], 1.01 * GAP, "<="))
        claims.append(Claim(f"arrays of n x m in the compiled solve at n = {r['n']}, blocks of its judge included",
                            r["arrays"], 3.2, "<=", "C, the plan and the plan being made are 3"))  # fmt: skip
    return claims


def _tables(records: list[dict[str, Any]], large: list[dict[str, Any]], sizes: tuple[int, ...]) -> list[Table]:
    columns = ["rule", *(f"n={n} {kind}" for n in sizes for kind in ("best", "auto"))]
    rows = [
        [rule, *(number(_count(records, n, rule, automatic)) for n in sizes for automatic in (False, True))]
        for rule in RULES
    ]
    context = [
        [str(r["n"]), str(r["iterations"]), number(r["gap"]), number(r["arrays"]), number(r["compile"]), number(r["cpu"]),  # noqa: E501
         number(r["wall"]), ", ".join(f"{name} {seconds:.3g}" for name, seconds in r["peers"].items())]
        for r in large
    ]  # fmt: skip
    head = ["n", "iterations", "certified gap", "arrays", "compile CPU s", "solve CPU s", "solve wall s", "peers CPU s"]
    return [
        Table("Iterations to a certified gap of 1e-4 (geometric mean over seeds)", columns, rows),
        Table("The default on one large problem", head, context),
    ]


def _iterations_plot(records: list[dict[str, Any]], sizes: tuple[int, ...], options: Options) -> Any:
    figure, axes = picture_axes("Assignment, uniform costs: certified gap 1e-4", "n", "iterations (automatic weight)")
    data = {rule: [_count(records, n, rule, True) for n in sizes] for rule in RULES}
    for place, (rule, counts) in enumerate(data.items()):
        axes.loglog(sizes, counts, marker="o", label=rule, **line_look(place))
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return save_picture(figure, options.output / "iterations.png", {"n": list(sizes), **data})


def _gap_plot(n: int, options: Options) -> Any:
    """Certified gap against iterations of every rule, automatic weights."""
    import pdopt

    curves = {}
    problem = pdopt.Transport(_costs(n, options.seed))
    for rule in RULES if options.full else ():
        chosen = method(rule, 1.0, True)
        solution = pdopt.solve(problem, chosen, tolerance=1e-6, max_iterations=8000, history=256, gradient="none")
        table = np.asarray(solution.history.rows)[: int(solution.history.used)]
        kept = table[:, 5] > 0
        curves[rule] = {"iterations": table[kept, 0].tolist(), "error": table[kept, 5].tolist()}
    return convergence_plot(curves, f"Certified relative gap, n = {n}", options.output / "gap.png")
