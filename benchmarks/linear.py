"""Linear programs: pdopt against MPAX, OR-tools PDLP and HiGHS (simplex, interior point, PDLP) on the same data."""

import json
from typing import Any

from benchmarks.harness import Options, run_all
from benchmarks.instances import linear_instances
from benchmarks.linear_claims import MPAX, OURS, claims
from benchmarks.linear_iteration import iteration_claims, iteration_records
from benchmarks.machine import machine
from benchmarks.misses import misses
from benchmarks.plots import convergence_plot, profile_plot
from benchmarks.report import Report, by_instance, summary
from benchmarks.solvers import SOLVERS

ABOUT = "linear programs against MPAX, OR-tools PDLP and HiGHS"
QUADRATIC = ("osqp", "clarabel")  # peers of the quadratic comparison
PATIENCE = 4.0  # wall seconds that a CPU second may take on a busy machine
QUICK = (OURS, "pdlp", "highs-simplex", "highs-ipm", "highs-pdlp", MPAX[0])


def run(options: Options, say: Any = print) -> Report:
    """Run every solver on every instance; judge, count and draw."""
    options = options._replace(patience=PATIENCE)
    solvers = options.peers or (tuple(s for s in SOLVERS if s not in QUADRATIC) if options.full else QUICK)
    o = options
    instances = linear_instances(o.data, o.full, o.seed, o.source, o.families, o.largest, o.smallest)
    records = run_all(instances, tuple(solvers), options, say)
    tables, pictures = [], []
    for tolerance in options.tolerances:
        tables += [summary(records, tolerance, options.time_limit, OURS), by_instance(records, tolerance)]
        tables += [misses(records, tolerance, solver) for solver in (OURS, f"{OURS}-presolve") if solver in solvers]
        for field, label in (("cpu", "CPU seconds"), ("iterations", "iterations")):
            path = options.output / f"profile-{field}-{tolerance:g}.png"
            # A simplex step and a saddle step are not one unit: iterations compare first-order methods only.
            compared = [r for r in records if field == "cpu" or r["solver"] not in ("highs-simplex", "highs-ipm")]
            pictures.append(profile_plot(compared, field, tolerance, label, path))
    pictures.append(_convergence(records, options))
    cut = sum(r["outcome"] == "cut" for r in records)
    late = sum(r["outcome"] == "time limit" for r in records)
    iterations = iteration_records(options.data, options.output, instances) if OURS in solvers else []
    (options.output / "iterations.json").write_text(json.dumps(iterations, indent=1))
    notes = [
        f"{len(records)} runs on {len(instances)} instances; {late} ended at the limit of {options.time_limit:g} s, "
        f"{cut} never finished because the budget of {options.budget:g} s for the whole run was spent.",
        "Every answer is judged on the original data by benchmarks/verify.py; 'solved' and 'certified' are its words.",
        "The limit of an iteration: 24 bytes a nonzero and about 160 a row and column, or in the cache two gathers a "
        "nonzero, 0.25 to 0.5 ns each; see benchmarks/linear_iteration.py, measured in iterations.json.",
    ]
    promises = [*claims(records, options), *iteration_claims(iterations)]
    return Report("linear", records, promises, tables, [p for p in pictures if p is not None], machine(), notes)


def _convergence(records: list[dict[str, Any]], options: Options) -> Any:
    """pdopt's own history at the tightest tolerance, where it recorded one."""
    tightest = min(options.tolerances)
    curves = {
        f"{r['instance']} ({r['solver']})": r["history"]
        for r in records
        if r["tolerance"] == tightest and "history" in r
    }
    return convergence_plot(dict(list(curves.items())[:7]), "Convergence", options.output / "convergence.png")
