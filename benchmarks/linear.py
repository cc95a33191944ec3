"""Linear programs: pdopt against MPAX, OR-tools PDLP and HiGHS (simplex, interior point, PDLP) on the same data."""

from typing import Any

from benchmarks.harness import Options, run_all
from benchmarks.instances import linear_instances
from benchmarks.linear_claims import MPAX, OURS, claims
from benchmarks.machine import machine
from benchmarks.plots import convergence_plot, profile_plot
from benchmarks.report import Report, by_instance, summary
from benchmarks.solvers import SOLVERS

ABOUT = "linear programs against MPAX, OR-tools PDLP and HiGHS"
QUADRATIC = ("osqp", "clarabel")  # peers of the quadratic comparison
QUICK = (OURS, "pdlp", "highs-simplex", "highs-ipm", "highs-pdlp", MPAX[0])


def run(options: Options, say: Any = print) -> Report:
    """Run every solver on every instance; judge, count and draw."""
    solvers = options.peers or (tuple(s for s in SOLVERS if s not in QUADRATIC) if options.full else QUICK)
    instances = linear_instances(
        options.data, options.full, options.seed, options.source, options.families, options.largest
    )
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
