"""Convex quadratic programs: pdopt against MPAX, OSQP and Clarabel on the Maros-Meszaros set.

A limit of 20 seconds is one of CPU seconds of the solve, compiling apart. Small residuals do not make an objective
right (on LISWET all of them are below 1e-4 where it is a fifth off), so an instance counts as solved here where the
judge passes the pair and its objective is within 10 tolerances of the reference: the data folder's, which Clarabel
found, or the published one where Clarabel failed.
"""

from typing import Any

from benchmarks.claims import Claim
from benchmarks.harness import Options, run_all
from benchmarks.instances.quadratic import quadratic_instances
from benchmarks.machine import machine
from benchmarks.misses import misses
from benchmarks.plots import profile_plot
from benchmarks.report import Report, by_instance, summary

ABOUT = "convex quadratic programs against MPAX, OSQP and Clarabel"
OURS = "pdopt"
MPAX = "mpax-rapdhg"
PEERS = (OURS, "osqp", "clarabel", MPAX)
FIRST_ORDER = (OURS, MPAX)
LIMIT, PATIENCE = 20.0, 8.0  # CPU seconds a solve; wall seconds may be so many times that on a busy machine
TIGHTEST = 1e-6  # the sets know of no tighter one
SHARES = {1e-4: 0.95, 1e-6: 0.85}  # of the instances that must be solved
FAR = 10.0  # times the tolerance that an objective may be off


def run(options: Options, say: Any = print) -> Report:
    """Run every solver on every instance; judge, count and draw."""
    tolerances = tuple(sorted({max(t, TIGHTEST) for t in options.tolerances}, reverse=True))
    options = options._replace(time_limit=min(options.time_limit, LIMIT), patience=PATIENCE, tolerances=tolerances)
    instances = quadratic_instances(options.data, options.full, options.seed, options.source)
    records = run_all(instances, options.peers or PEERS, options, say)
    tables, pictures = [], []
    for tolerance in tolerances:
        tables += [
            summary(records, tolerance, options.time_limit, OURS), by_instance(records, tolerance),
            misses(records, tolerance, OURS),
        ]  # fmt: skip
        for field, label in (("cpu", "CPU seconds"), ("iterations", "iterations")):
            compared = [r for r in records if field == "cpu" or r["solver"] in FIRST_ORDER]
            path = options.output / f"profile-{field}-{tolerance:g}.png"
            pictures.append(profile_plot(compared, field, tolerance, label, path))
    notes = [
        f"{len(instances)} instances, {options.time_limit:g} CPU seconds a solve, compiling apart.",
        "Every answer is judged on the original data by benchmarks/verify.py, in PDLP's three numbers; OSQP and MPAX "
        "stop by tests of their own, so an answer they call optimal may be 'inaccurate' here.",
    ]
    return Report(
        "quadratic", records, claims(records, tolerances), tables, [p for p in pictures if p], machine(), notes
    )


def claims(records: list[dict[str, Any]], tolerances: tuple[float, ...]) -> list[Claim]:
    """The promises of the quadratic comparison, from this run's figures alone."""
    found = []
    for tolerance in tolerances:
        found += [_share(records, tolerance), _objectives(records, tolerance), _beside(records, tolerance)]
    bad = [r["instance"] for t in tolerances for r in _ours(records, t) if r["outcome"] in ("wrong", "crash")]
    promise = "no answer wrong or lost in a crash (count)"
    return [*found, Claim(promise, float(len(bad)) if records else None, 0.0, "<=", " ".join(dict.fromkeys(bad)))]


def _ours(records: list[dict[str, Any]], tolerance: float) -> list[dict[str, Any]]:
    return [r for r in records if r["solver"] == OURS and r["tolerance"] == tolerance]


def _share(records: list[dict[str, Any]], tolerance: float) -> Claim:
    runs = [r for r in _ours(records, tolerance) if r["outcome"] not in ("not installed", "cut")]
    missing = [r["instance"] for r in runs if r["outcome"] != "solved" or _far(r)]
    share = 1 - len(missing) / len(runs) if runs else None
    promise = f"instances solved at {tolerance:g}, objective within {FAR:g} tolerances (share)"
    required = SHARES.get(tolerance, 0.0)
    return Claim(promise, share, required, ">=", f"{len(runs)} instances; not: {' '.join(missing) or 'none'}")


def _far(record: dict[str, Any]) -> bool:
    """Whether the objective is off; no reference, nothing to be off from."""
    return record.get("objective_error", 0.0) > FAR * record["tolerance"]


def _objectives(records: list[dict[str, Any]], tolerance: float) -> Claim:
    """What we call optimal and is not. The peers' own, by the same count, are in the note."""
    called = [r for r in records if r["tolerance"] == tolerance and r.get("status") == "optimal"]
    far: dict[str, list[str]] = {}
    for r in called:
        if r["outcome"] == "solved" and _far(r):
            far.setdefault(r["solver"], []).append(f"{r['instance']} ({r['objective_error'] / tolerance:.3g})")
    ours, count = far.pop(OURS, []), sum(r["solver"] == OURS for r in called)
    theirs = "; ".join(f"{solver}: {len(names)}" for solver, names in far.items())
    promise = f"called optimal at {tolerance:g} with an objective more than {FAR:g} tolerances off (count)"
    note = " ".join(ours) or f"{count} instances"
    return Claim(promise, float(len(ours)) if count else None, 0.0, "<=", f"{note}; {theirs}" if theirs else note)


def _beside(records: list[dict[str, Any]], tolerance: float) -> Claim:
    """More instances than MPAX, over those both took."""
    solved = {
        solver: {
            r["instance"] for r in records if _is(r, solver, tolerance) and r["outcome"] == "solved" and not _far(r)
        }
        for solver in FIRST_ORDER
    }
    tried = [r for r in records if _is(r, MPAX, tolerance) and r["outcome"] not in ("not installed", "cut")]
    both = {r["instance"] for r in tried} & {r["instance"] for r in _ours(records, tolerance)}
    ours, theirs = len(solved[OURS] & both), len(solved[MPAX] & both)
    promise = f"instances solved at {tolerance:g}, less those that MPAX solved (count)"
    return Claim(promise, float(ours - theirs) if both else None, 0.0, ">=", f"{ours} and {theirs} of {len(both)}")


def _is(record: dict[str, Any], solver: str, tolerance: float) -> bool:
    return record["solver"] == solver and record["tolerance"] == tolerance
