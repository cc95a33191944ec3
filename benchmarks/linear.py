"""Linear programs: pdopt against MPAX, OR-tools PDLP and HiGHS (simplex, interior point, PDLP) on the same data."""

from typing import Any

from benchmarks.claims import Claim
from benchmarks.harness import Options, run_all
from benchmarks.instances import linear_instances
from benchmarks.machine import machine
from benchmarks.plots import convergence_plot, profile_plot
from benchmarks.profiles import paired_ratio
from benchmarks.report import Report, by_instance, summary
from benchmarks.solvers import SOLVERS

ABOUT = "linear programs against MPAX, OR-tools PDLP and HiGHS"
OURS = "pdopt"
MPAX = ("mpax-r2hpdhg", "mpax-rapdhg")
QUADRATIC = ("osqp", "clarabel")  # peers of the quadratic comparison
QUICK = (OURS, "pdlp", "highs-simplex", "highs-ipm", "highs-pdlp", MPAX[0])


def run(options: Options, say: Any = print) -> Report:
    """Run every solver on every instance; judge, count and draw."""
    solvers = options.peers or (tuple(s for s in SOLVERS if s not in QUADRATIC) if options.full else QUICK)
    instances = linear_instances(options.data, options.full, options.seed, options.source, options.families)
    records = run_all(instances, tuple(solvers), options, say)
    tables, pictures = [], []
    for tolerance in options.tolerances:
        tables += [summary(records, tolerance, options.time_limit, OURS), by_instance(records, tolerance)]
        for field, label in (("cpu", "CPU seconds"), ("iterations", "iterations")):
            path = options.output / f"profile-{field}-{tolerance:g}.png"
            # A simplex step and a saddle step are not one unit: iterations compare first-order methods only.
            compared = [r for r in records if field == "cpu" or r["solver"] not in ("highs-simplex", "highs-ipm")]
            pictures.append(profile_plot(compared, field, tolerance, label, path))
    pictures.append(_convergence(records, options))
    cut = sum(r["outcome"] == "cut" for r in records)
    late = sum(r["outcome"] == "time limit" for r in records)
    notes = [
        f"{len(records)} runs on {len(instances)} instances; {late} ended at the limit of {options.time_limit:g} s, "
        f"{cut} never finished because the budget of {options.budget:g} s for the whole run was spent.",
        "Every answer is judged on the original data by benchmarks/verify.py; 'solved' and 'certified' are its words.",
    ]
    return Report(
        "linear", records, claims(records, options), tables, [p for p in pictures if p is not None], machine(), notes
    )


def _convergence(records: list[dict[str, Any]], options: Options) -> Any:
    """pdopt's own history at the tightest tolerance, where it recorded one."""
    tightest = min(options.tolerances)
    curves = {
        f"{r['instance']} ({r['solver']})": r["history"]
        for r in records
        if r["tolerance"] == tightest and "history" in r
    }
    return convergence_plot(dict(list(curves.items())[:7]), "Convergence", options.output / "convergence.png")


def claims(records: list[dict[str, Any]], options: Options) -> list[Claim]:
    """The promises of the linear comparison, from this run's figures alone."""
    loose = max(options.tolerances)
    found = [_all_solved(records, loose), _certified(records, loose), _never_wrong(records)]
    for tolerance in options.tolerances:
        found += [_iterations(records, tolerance), _against_mpax(records, tolerance)]
    return [*found, _objectives(records, options)]


def _attempted(records: list[dict[str, Any]], tolerance: float, expected: str) -> list[dict[str, Any]]:
    """Our runs on problems of one kind that took place."""
    return [
        r for r in records
        if r["solver"] == OURS and r["tolerance"] == tolerance and r["expected"] == expected
        and r["outcome"] != "not installed"
    ]  # fmt: skip


def _share(runs: list[dict[str, Any]], outcome: str, promise: str) -> Claim:
    """All runs must have the outcome. A run that was cut fails no promise, but it keeps this one from holding."""
    bad = [r["instance"] for r in runs if r["outcome"] not in (outcome, "cut")]
    cut = [r["instance"] for r in runs if r["outcome"] == "cut"]
    if not runs or (cut and not bad):
        return Claim(promise, None, 1.0, ">=", "cut: " + " ".join(cut) if cut else "no such run")
    share = sum(r["outcome"] == outcome for r in runs) / len(runs)
    return Claim(promise, share, 1.0, ">=", "not: " + " ".join(bad) if bad else f"{len(runs)} instances")


def _all_solved(records: list[dict[str, Any]], tolerance: float) -> Claim:
    promise = f"every feasible instance solved at {tolerance:g} (share)"
    return _share(_attempted(records, tolerance, "optimal"), "solved", promise)


def _certified(records: list[dict[str, Any]], tolerance: float) -> Claim:
    runs = [r for kind in ("primal_infeasible", "dual_infeasible") for r in _attempted(records, tolerance, kind)]
    return _share(runs, "certified", "every infeasible or unbounded instance certified (share)")


def _never_wrong(records: list[dict[str, Any]]) -> Claim:
    ran = [r for r in records if r["solver"] == OURS and r["outcome"] not in ("not installed", "cut")]
    bad = [r["instance"] for r in ran if r["outcome"] in ("wrong", "inaccurate", "crash")]
    promise = "no answer wrong, inaccurate or lost in a crash (count)"
    return Claim(promise, float(len(bad)) if ran else None, 0.0, "<=", " ".join(dict.fromkeys(bad)))


def _iterations(records: list[dict[str, Any]], tolerance: float) -> Claim:
    ratio, shared = paired_ratio(records, OURS, "pdlp", "iterations", tolerance)
    promise = f"iterations / OR-tools PDLP at {tolerance:g}"
    return Claim(promise, ratio if shared else None, 0.8, "<=", f"{shared} solved by both")


def _against_mpax(records: list[dict[str, Any]], tolerance: float) -> Claim:
    """Against the better of MPAX's engines on each instance."""
    best: dict[str, dict[str, Any]] = {}
    for r in records:
        if r["solver"] in MPAX and r["tolerance"] == tolerance and r["outcome"] == "solved":
            kept = best.get(r["instance"])
            if kept is None or r["cpu"] < kept["cpu"]:
                best[r["instance"]] = r | {"solver": "mpax"}
    ratio, shared = paired_ratio([*records, *best.values()], "mpax", OURS, "cpu", tolerance)
    promise = f"CPU seconds of MPAX (better engine) / pdopt at {tolerance:g}"
    return Claim(promise, ratio if shared else None, 6.0, ">=", f"{shared} solved by both")


def _objectives(records: list[dict[str, Any]], options: Options) -> Claim:
    """The loosest tolerance of 1e-6 or less that was run stands for it: a solve to 1e-8 also is one to 1e-6."""
    tight = [t for t in options.tolerances if t <= 1e-6]
    promise = "largest |objective - reference| / (1 + |reference|) of solved"
    if not tight:
        return Claim(promise, None, 1e-5, "<=", "no tolerance of 1e-6 or less was run")
    errors = [
        (r["objective_error"], r["instance"])
        for r in _attempted(records, max(tight), "optimal")
        if r["outcome"] == "solved" and "objective_error" in r
    ]
    note = f"at {max(tight):g}; " + (f"{len(errors)} instances, worst {max(errors)[1]}" if errors else "none solved")
    return Claim(promise, max(errors)[0] if errors else None, 1e-5, "<=", note)
