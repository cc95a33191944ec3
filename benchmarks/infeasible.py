"""Infeasible linear programs: decided or not, and by what proof, with and without presolve, beside OR-tools PDLP.

A solver decides a program when it says that no feasible point exists and a ray proves it on the original data, or, with
presolve, when it says so and the reference agrees (presolve proves by reduction and leaves no ray). `cplex2` is nearly
feasible: a point breaks no row by more than 1.7e-11, and every point breaks one by 1.5e-11 (both in exact arithmetic).
So "optimal" is the answer to fear, and ours without presolve is `solve` with the second look that `run` takes.
"""

from typing import Any

from benchmarks.claims import Claim
from benchmarks.harness import Options, run_all
from benchmarks.instances import linear_instances
from benchmarks.machine import machine
from benchmarks.plots import picture_axes, save_picture
from benchmarks.report import Report, by_instance

ABOUT = "infeasible linear programs with and without presolve, against OR-tools PDLP"
SOLVERS = ("pdopt-confirmed", "pdopt-presolve", "pdlp", "pdlp-presolve")
OURS = SOLVERS[:2]
RIGHT = ("certified", "claimed")
LARGEST = 100_000
NEEDED = 13  # of 17 without presolve
PATIENCE = 8.0  # the limit is one of CPU seconds; a loaded machine may take so many times the wall seconds


def run(options: Options, say: Any = print) -> Report:
    """Every infeasible instance (quick: of `core`); full looks for false rays on the feasible ones of `core` too."""
    families = options.families or (("infeasible", "core") if options.full else ("core",))
    found = linear_instances(
        options.data, options.full, options.seed, options.source, families, options.largest or LARGEST
    )
    bad = ("primal_infeasible", "dual_infeasible")
    instances = [i for i in found if i.expected in bad or (options.full and i.expected == "optimal")]
    records = run_all(instances, options.peers or SOLVERS, options._replace(patience=PATIENCE), say)
    tables = [by_instance(records, tolerance) for tolerance in options.tolerances]
    notes = [
        f"{sum(i.expected in bad for i in instances)} infeasible and {sum(i.expected == 'optimal' for i in instances)} "
        f"feasible instances below {options.largest or LARGEST} nonzeros, {options.time_limit:g} s each.",
        *_counts(records),
    ]
    picture = _picture(records, options)
    return Report("infeasible", records, claims(records), tables, [picture], machine(), notes)


def decided(records: list[dict[str, Any]], solver: str, tolerance: float) -> tuple[int, int, list[str]]:
    """How many infeasible instances a solver decided at a tolerance, of how many it ran, and which it missed."""
    runs = [
        r for r in records
        if r["solver"] == solver and r["tolerance"] == tolerance and r["expected"] not in ("", "optimal")
        and r["outcome"] not in ("not installed", "cut")
    ]  # fmt: skip
    missed = [f"{r['instance']} ({r['outcome']})" for r in runs if r["outcome"] not in RIGHT]
    return len(runs) - len(missed), len(runs), missed


def claims(records: list[dict[str, Any]]) -> list[Claim]:
    """What is promised of infeasible programs, at the loosest tolerance run and never a wrong word at any."""
    loose = max(r["tolerance"] for r in records)
    right, ran, missed = decided(records, OURS[1], loose)
    promise = f"infeasible instances decided with presolve at {loose:g} (share)"
    held = [Claim(promise, right / ran if ran else None, 1.0, ">=", " ".join(missed) or f"{ran} instances")]
    right, ran, missed = decided(records, OURS[0], loose)
    promise = f"infeasible instances decided without presolve at {loose:g} (share)"
    held.append(
        Claim(promise, right / ran if ran else None, NEEDED / 17, ">=", f"{right} of {ran}; " + " ".join(missed))
    )
    for ours, theirs in zip(OURS, SOLVERS[2:]):
        (own, ran, _), (peer, met, _) = decided(records, ours, loose), decided(records, theirs, loose)
        both = min(ran, met) > 0
        held.append(
            Claim(f"decided by {ours} less those by {theirs} at {loose:g}", own - peer if both else None, 0, ">=")
        )
    judged = [r for r in records if r["solver"] in OURS and r["outcome"] not in ("not installed", "cut")]
    wrong = [f"{r['instance']} at {r['tolerance']:g}" for r in judged if r["outcome"] in ("wrong", "inaccurate")]
    held.append(
        Claim("false certificates and false optima (count)", len(wrong) if judged else None, 0, "<=", " ".join(wrong))
    )
    return held


def _counts(records: list[dict[str, Any]]) -> list[str]:
    found = []
    for tolerance in sorted({r["tolerance"] for r in records}, reverse=True):
        for solver in dict.fromkeys(r["solver"] for r in records):
            right, ran, missed = decided(records, solver, tolerance)
            found.append(f"{solver} at {tolerance:g}: {right} of {ran} decided; not: {', '.join(missed) or 'none'}.")
    return found


def _picture(records: list[dict[str, Any]], options: Options) -> Any:
    """Instances decided within a time, one line a solver."""
    loose = max(options.tolerances)
    figure, axes = picture_axes(f"Infeasible programs decided, tolerance {loose:g}", "CPU seconds", "decided")
    data = {}
    from benchmarks.plots import line_look

    for place, solver in enumerate(dict.fromkeys(r["solver"] for r in records)):
        times = sorted(
            max(r["cpu"], 1e-4) for r in records
            if r["solver"] == solver and r["tolerance"] == loose and r["outcome"] in RIGHT
        )  # fmt: skip
        axes.step([1e-4, *times, options.time_limit], [0, *range(1, len(times) + 1), len(times)], where="post",
                  label=solver, **line_look(place))  # fmt: skip
        data[solver] = times
    axes.set_xscale("log")
    axes.legend(fontsize=8)
    return save_picture(figure, options.output / "decided.png", data)
