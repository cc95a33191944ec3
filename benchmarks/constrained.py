"""Nonlinear programs: `minimise` on CUTEst against SLSQP, trust-constr and Ipopt, and 256 starts in one `vmap`.

Every answer is judged by `constrained_judge.py`, not by what a solver says of itself: solved means a violation of at
most 1e-6 and a relative stationarity of at most 1e-4; strict means both at most 1e-8.
"""

import time
from typing import Any

import jax
import numpy as np

import pdopt
from benchmarks import constrained_peers as peers
from benchmarks.claims import Claim
from benchmarks.constrained_judge import judge
from benchmarks.constrained_peers import PEERS, Functions
from benchmarks.constrained_starts import TURNS, starts_records
from benchmarks.harness import Options
from benchmarks.instances import cutest
from benchmarks.machine import machine
from benchmarks.plots import profile_plot
from benchmarks.report import Report, Table, number
from pdopt.runtime.cache import CPU_FLAG
from pdopt.types import Status

ABOUT = "nonlinear programs: CUTEst against SLSQP, trust-constr and Ipopt; 256 starts in one vmap against SLSQP"
OURS = "pdopt"
TOLERANCE = 1e-9  # what pdopt is asked for: its residuals and the judge's measure differ by the units of the gradients
# What a quick run takes of each set: a cross-section, the four misses of the first prototype included.
QUICK = {
    "equality": ("HS6", "HS7", "HS26", "HS39", "HS61", "BT8", "DALLASS", "MSS1"),
    "inequality": ("HS71", "HS64", "HS73", "HS101", "HS106", "HS116"),
}
REQUIRED = {("equality", "solved"): 40, ("equality", "strict"): 39, ("inequality", "solved"): 27}


def run(options: Options, say: Any = print) -> Report:
    """Measure, judge and draw."""
    with jax.enable_x64(True):
        records = starts_records(options.seed, say)
        notes = [
            f"The vmap over starts runs beside SLSQP in a process of its own on one core, with XLA_FLAGS={CPU_FLAG} "
            "as the README advises on CPUs (it is this run that is judged), and in another without.",
            "Every solver is bounded by its iterations, none by a clock. CPU seconds are of one warm run, compilation "
            "apart. One evaluation gives f, constraints and their derivatives to a peer; pdopt counts values of f, "
            "with those of its line searches.",
        ]
        if cutest.available():
            records += cutest_records(options, say)
        else:
            notes.append("CUTEst: skipped, sif2jax is not installed (pip install 'pdopt[cutest]').")
    solved = [r for r in records if r["what"] == "cutest"]
    pictures = []
    for field, label in (("evaluations", "evaluations of f"), ("cpu", "CPU s")):
        for tolerance in (1e-6, 1e-8):
            path = options.output / f"profile-{field}-{tolerance:g}.png"
            pictures.append(profile_plot(_profiled(solved, tolerance), field, tolerance, label, path))
    tables = [counts_table(solved), *problem_tables(solved), misses_table(solved), starts_table(records)]
    return Report("constrained", records, claims(records, options.full), tables, [p for p in pictures if p],
                  machine(), notes)  # fmt: skip


def cutest_records(options: Options, say: Any) -> list[dict[str, Any]]:
    """One record for each problem and solver, until the budget of the run is spent (then "cut")."""
    began, records = time.monotonic(), []
    for kind, chosen in QUICK.items():
        for name in cutest.names(kind) if options.full else chosen:
            over = time.monotonic() - began > options.budget
            found = cut(kind, name) if over else problem_records(kind, name)
            records += found
            say(f"{name}: " + ", ".join(f"{r['solver']} {r['outcome']}" for r in found))
    return records


def cut(kind: str, name: str) -> list[dict[str, Any]]:
    """The records of a problem that the budget did not reach."""
    return [_record(kind, name, solver, "cut", "time budget of the whole run") for solver in (OURS, *PEERS)]


def problem_records(kind: str, name: str) -> list[dict[str, Any]]:
    """The records of one problem: pdopt, then each peer that is installed."""
    try:
        program = cutest.load(name)
    except Exception as error:
        return [_record(kind, name, solver, "crash", repr(error)[:200]) for solver in (OURS, *PEERS)]
    functions = Functions(program)
    found = []
    for solver in (OURS, *PEERS):
        if not peers.available(solver):
            found.append(_record(kind, name, solver, "not installed", "ipyopt"))
            continue
        try:
            answer, compiled = _ours(program) if solver == OURS else (peers.solve(solver, functions), 0.0)
            verdict = judge(answer.x, functions.point(answer.x), program.lower, program.upper)
        except Exception as error:
            found.append(_record(kind, name, solver, "crash", repr(error)[:200]))
            continue
        outcome = "solved" if verdict.passes() else "missed"
        value = functions.point(answer.x).f
        found.append(_record(kind, name, solver, outcome, answer.says) | {
            "strict": verdict.passes(1e-8, 1e-8), "violation": verdict.violation, "objective": value,
            "stationarity": verdict.stationarity, "evaluations": answer.evaluations, "cpu": answer.cpu,
            "compile": compiled, "expected": program.expected,
        })  # fmt: skip
    return found


def _record(kind: str, name: str, solver: str, outcome: str, detail: str) -> dict[str, Any]:
    return {
        "what": "cutest", "set": kind, "instance": name, "solver": solver, "outcome": outcome, "detail": detail,
        "strict": False, "violation": None, "stationarity": None, "objective": None, "evaluations": None, "cpu": None,
        "compile": None, "expected": None,
    }  # fmt: skip


def _ours(program: cutest.Program) -> tuple[peers.Answer, float]:
    """pdopt's answer, and the CPU seconds that the first call cost more than the second."""
    problem = pdopt.NonlinearProgram(
        program.f, program.start, (), program.equality, program.inequality, program.lower, program.upper
    )
    seconds = []
    found: Any = None
    for _ in range(2):
        began = time.process_time()
        found = jax.block_until_ready(pdopt.solve(problem, tolerance=TOLERANCE, gradient="none"))
        seconds.append(time.process_time() - began)
    says = f"{Status(int(found.status))!s}, {int(found.iterations)} moves, {int(found.work.iterations)} inner steps"
    return peers.Answer(np.asarray(found.x), int(found.work.values), seconds[1], says), seconds[0] - seconds[1]


# --- the report ------------------------------------------------------------------------------------------------------


def claims(records: list[dict[str, Any]], full: bool) -> list[Claim]:
    """The promises, from this run's figures alone; counts over a set are judged by a full run, which takes it all."""
    found = []
    for (kind, level), required in REQUIRED.items():
        mine = [r for r in records if r["what"] == "cutest" and r["set"] == kind and r["solver"] == OURS]
        complete = bool(mine) and full and all(r["outcome"] != "cut" for r in mine)
        count = sum(r["strict"] if level == "strict" else r["outcome"] == "solved" for r in mine)
        limits = "(1e-8, 1e-8)" if level == "strict" else "(1e-6, 1e-4)"
        note = f"{count} of {len(mine)} here" + ("" if complete else "; the whole set takes --full")
        found.append(Claim(f"{kind} problems solved to {limits}", float(count) if complete else None, float(required),
                           ">=", note))  # fmt: skip
    starts = next(r for r in records if r["what"] == "starts")
    ratio, note = None, f"the child: {starts['outcome']}"
    if starts["outcome"] == "done":
        whole = starts["pdopt_solved"] >= starts["slsqp_solved"]
        ratio = starts["slsqp"] / starts["pdopt"] if whole else 0.0
        note = f"solved: pdopt {starts['pdopt_solved']}, SLSQP {starts['slsqp_solved']}, of {starts['starts']}"
    found.append(Claim("CPU seconds of 256 SLSQP calls / one vmap over 256 starts of HS71", ratio, 20.0, ">=", note))
    found.append(Claim("a member of the vmap against the same start alone, |x - x'|", starts.get("apart"), 1e-9, "<="))
    return found


def counts_table(records: list[dict[str, Any]]) -> Table:
    """Solver by set: solved, strict, best objective, median evaluations and CPU seconds over what it solved."""
    rows = []
    for kind in QUICK:
        chosen = [r for r in records if r["set"] == kind and r["outcome"] not in ("cut", "not installed")]
        best: dict[str, float] = {}
        for r in chosen:
            if r["outcome"] == "solved":
                best[r["instance"]] = min(best.get(r["instance"], np.inf), r["objective"])
        for solver in (OURS, *PEERS):
            mine = [r for r in chosen if r["solver"] == solver]
            done = [r for r in mine if r["outcome"] == "solved"]
            near = [r for r in done if r["objective"] - best[r["instance"]] <= 1e-6 * max(1, abs(best[r["instance"]]))]
            rows.append([
                kind, solver, str(len(done)), str(sum(r["strict"] for r in mine)), str(len(near)), str(len(mine)),
                *(number(float(np.median([r[key] for r in done])) if done else None) for key in ("evaluations", "cpu")),
            ])  # fmt: skip
    columns = ["set", "solver", "solved", "strict", "best value", "of", "f evaluations", "CPU s"]
    return Table("CUTEst, judged independently (medians over what a solver solved)", columns, rows)


def problem_tables(records: list[dict[str, Any]]) -> list[Table]:
    """Problem by solver: evaluations of f and CPU milliseconds where solved, the outcome elsewhere."""
    tables = []
    for kind in QUICK:
        cells = {(r["instance"], r["solver"]): r for r in records if r["set"] == kind}
        rows = []
        for name in dict.fromkeys(name for name, _ in cells):
            row = [name, number(cells[name, OURS]["objective"])]
            for solver in (OURS, *PEERS):
                r = cells[name, solver]
                done = r["outcome"] == "solved"
                row.append(f"{r['evaluations']} / {1000 * r['cpu']:.3g} ms" if done else r["outcome"])
            rows.append(row)
        tables.append(Table(f"{kind}: f evaluations / CPU time", ["problem", "f (pdopt)", OURS, *PEERS], rows))
    return tables


def misses_table(records: list[dict[str, Any]]) -> Table:
    """What was not solved, and what the solver said."""
    rows = [
        [r["instance"], r["solver"], number(r["violation"]), number(r["stationarity"]), r["detail"][:80]]
        for r in records
        if r["outcome"] in ("missed", "crash")
    ]
    return Table("Misses", ["problem", "solver", "violation", "stationarity", "the solver says"], rows)


def starts_table(records: list[dict[str, Any]]) -> Table:
    """The two ways through 256 starts, with XLA's flag and without."""
    rows = []
    for r in (r for r in records if r["what"] == "starts" and r["outcome"] == "done"):
        rows.append([f"pdopt, one vmap, {r['flags']}", number(r["pdopt"]), str(r["pdopt_solved"])])
        rows.append([f"SLSQP, one by one, {r['flags']}", number(r["slsqp"]), str(r["slsqp_solved"])])
    title = f"256 starts of HS71, float64, one core, compilation apart; least of {TURNS} turns"
    return Table(title, ["", "CPU s", "solved"], rows)


def _profiled(records: list[dict[str, Any]], tolerance: float) -> list[dict[str, Any]]:
    """Records as a profile takes them: solved at a tolerance (1e-8: the strict count), without runs that were cut."""
    judged = [r for r in records if r["outcome"] != "cut"]
    outcome = lambda r: "solved" if (r["strict"] if tolerance == 1e-8 else r["outcome"] == "solved") else "missed"
    return [
        r | {"tolerance": tolerance, "outcome": r["outcome"] if r["outcome"] == "not installed" else outcome(r)}
        for r in judged
    ]
