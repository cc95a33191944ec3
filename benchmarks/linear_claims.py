"""The promises of the linear comparison, each from the figures of one run alone."""

from typing import Any

from benchmarks.claims import Claim
from benchmarks.harness import Options
from benchmarks.profiles import paired_ratio, shifted_geometric_mean

OURS, PEER = "pdopt", "pdlp"
MPAX = ("mpax-r2hpdhg", "mpax-rapdhg")
# Presolve alike on both sides.
PAIRS = ((OURS, PEER), ("pdopt-presolve", "pdlp-presolve"))
# Nonzeros more than the first and up to the second -> CPU seconds of ours over PDLP's, by shifted geometric means.
SIZES = ((2_000, 10_000, 1.0), (10_000, None, 0.5))
SHIFT = 0.01  # seconds: a solve of less is not told from the clock's and the host's noise


def claims(records: list[dict[str, Any]], options: Options) -> list[Claim]:
    """The promises of the linear comparison, from this run's figures alone."""
    loose = max(options.tolerances)
    found = [_all_solved(records, loose), _certified(records, loose), _never_wrong(records)]
    for tolerance in options.tolerances:
        for ours, theirs in PAIRS:
            if _ran(records, ours, tolerance) and _ran(records, theirs, tolerance):
                found.append(_iterations(records, tolerance, ours, theirs))
                found += _times(records, tolerance, ours, theirs)
                found.append(_more_solved(records, tolerance, ours, theirs))
        found.append(_against_mpax(records, tolerance))
    return [*found, _compile(records), _objectives(records, options)]


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
    """Of all our solvers: `pdopt`, `pdopt-presolve` and the other engines."""
    ran = [r for r in records if r["solver"].split("-")[0] == OURS and r["outcome"] not in ("not installed", "cut")]
    bad = [r["instance"] for r in ran if r["outcome"] in ("wrong", "inaccurate", "crash")]
    promise = "no answer wrong, inaccurate or lost in a crash (count)"
    return Claim(promise, float(len(bad)) if ran else None, 0.0, "<=", " ".join(dict.fromkeys(bad)))


def _ran(records: list[dict[str, Any]], solver: str, tolerance: float) -> dict[str, dict[str, Any]]:
    """Instance -> run of this solver on the feasible instances, where it took place."""
    return {
        r["instance"]: r for r in records
        if r["solver"] == solver and r["tolerance"] == tolerance and r["expected"] == "optimal"
        and r["outcome"] not in ("not installed", "cut")
    }  # fmt: skip


def _iterations(records: list[dict[str, Any]], tolerance: float, ours: str, theirs: str) -> Claim:
    ratio, shared = paired_ratio(records, ours, theirs, "iterations", tolerance)
    promise = f"iterations of {ours} / {theirs} at {tolerance:g}"
    return Claim(promise, ratio if shared else None, 0.7, "<=", f"{shared} solved by both")


def _times(records: list[dict[str, Any]], tolerance: float, ours: str, theirs: str) -> list[Claim]:
    """By size. A run that did not solve counts with the whole limit, on either side."""
    mine, other = _ran(records, ours, tolerance), _ran(records, theirs, tolerance)
    found = []
    for low, high, required in SIZES:
        names = [
            name for name, r in mine.items()
            if name in other and low < r["nonzeros"] <= (high or r["nonzeros"])
            and "solved" in (r["outcome"], other[name]["outcome"])
        ]  # fmt: skip
        spent = lambda r: r["cpu"] if r["outcome"] == "solved" else r["time_limit"]
        means = [shifted_geometric_mean([spent(side[name]) for name in names], SHIFT) for side in (mine, other)]
        size = f"{low} to {high} nonzeros" if high else f"more than {low} nonzeros"
        note = f"{len(names)} instances; shifted geometric means {means[0]:.3g} and {means[1]:.3g} s"
        promise = f"CPU seconds of {ours} / {theirs} at {tolerance:g}, {size}"
        found.append(Claim(promise, means[0] / means[1] if names else None, required, "<=", note))
    return found


def _more_solved(records: list[dict[str, Any]], tolerance: float, ours: str, theirs: str) -> Claim:
    """Within the same limits, on the instances that both were given. Not judged where both solve every one."""
    mine, other = _ran(records, ours, tolerance), _ran(records, theirs, tolerance)
    shared = [name for name in mine if name in other]
    solved = [{name for name in shared if side[name]["outcome"] == "solved"} for side in (mine, other)]
    lost = [f"{name} ({mine[name]['outcome']})" for name in shared if name not in solved[0]]
    note = f"{len(solved[0])} and {len(solved[1])} of {len(shared)}; not: {' '.join(lost) or 'none'}"
    promise = f"instances that {ours} solves beyond {theirs}'s number at {tolerance:g}"
    more = None if solved[0] == solved[1] == set(shared) else float(len(solved[0]) - len(solved[1]))
    return Claim(promise, more, 1.0, ">=", note)


def _compile(records: list[dict[str, Any]]) -> Claim:
    """Compile seconds do not depend on the tolerance: the largest of an instance stands for it."""
    spent: dict[str, dict[str, float]] = {OURS: {}, MPAX[0]: {}}
    for r in records:
        if r["solver"] in spent and "compile" in r:
            table = spent[r["solver"]]
            table[r["instance"]] = max(table.get(r["instance"], 0.0), r["compile"])
    shared = [name for name in spent[OURS] if spent[MPAX[0]].get(name, 0.0) > 0 and spent[OURS][name] > 0]
    ratio = shifted_geometric_mean([spent[OURS][name] / spent[MPAX[0]][name] for name in shared], 0.0)
    return Claim(f"compile seconds / {MPAX[0]}", ratio if shared else None, 1.0, "<=", f"{len(shared)} instances")


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
    return Claim(promise, ratio if shared else None, 8.0, ">=", f"{shared} solved by both")


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
