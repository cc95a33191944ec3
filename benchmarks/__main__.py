"""`python -m benchmarks [NAME ...]`: run comparisons, judge them, and write a report each.

Exit codes: 0; 1 a claim fails and `--strict` was given; 2 bad arguments; 143 terminated.
"""

import argparse
import json
import signal
import sys
from pathlib import Path

from benchmarks import (
    allocation,
    assignment,
    balancing,
    batch,
    bilevel,
    constrained,
    fairness,
    faithful,
    generation,
    gradients,
    infeasible,
    linear,
    matching,
    quadratic,
    sketching,
    structured,
    training,
    transport,
)
from benchmarks.claims import failed
from benchmarks.harness import Options
from benchmarks.instances import FAMILIES
from benchmarks.report import show, write
from benchmarks.solvers import SOLVERS

# name -> module with ABOUT and run(options, say) -> Report; a new comparison joins by one line
COMPARISONS = {
    "linear": linear,
    "quadratic": quadratic,
    "batch": batch,
    "infeasible": infeasible,
    "gradients": gradients,
    "structured": structured,
    "transport": transport,
    "assignment": assignment,
    "allocation": allocation,
    "matching": matching,
    "balancing": balancing,
    "fairness": fairness,
    "constrained": constrained,
    "bilevel": bilevel,
    "sketching": sketching,
    "generation": generation,
    "faithful": faithful,
    "training": training,
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m benchmarks", description="Compare pdopt with its peers.")
    p.add_argument("names", nargs="*", metavar="NAME", help=f"comparisons (default all): {', '.join(COMPARISONS)}")
    size = p.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="small instances, minutes (default)")
    size.add_argument("--full", action="store_true", help="every instance and solver, hours")
    p.add_argument("--peers", default="", help=f"solvers, comma-separated, of: {', '.join(SOLVERS)}")
    p.add_argument("--tolerances", default="", help="comma-separated (quick: 1e-4,1e-8; full: 1e-4,1e-6,1e-8)")
    p.add_argument("--output", type=Path, default=Path("benchmark-results"), metavar="DIR", help="folder of results")
    p.add_argument("--data", type=Path, default=Path("../shared/data"), metavar="DIR", help="folder of instances")
    p.add_argument("--instances", choices=("auto", "generated", "tiny"), default="auto", help="tiny: two, for a trial")
    p.add_argument("--families", default="", help=f"folders of instances, comma-separated, of: {', '.join(FAMILIES)}")
    p.add_argument("--smallest", type=int, default=0, metavar="NONZEROS", help="leave out those of fewer")
    p.add_argument("--largest", type=int, metavar="NONZEROS", help="leave out linear programs of more nonzeros")
    p.add_argument("--time-limit", type=float, metavar="SECONDS", help="one solve (quick 10, full 150)")
    p.add_argument("--budget", type=float, metavar="SECONDS", help="all of one comparison (quick 150, full none)")
    p.add_argument("--seed", type=int, default=0, help="seed of generated instances")
    p.add_argument("--strict", action="store_true", help="exit with 1 when a claim fails")
    p.add_argument("--json", action="store_true", help="one JSON object on standard output, no tables")
    p.add_argument("--list", action="store_true", help="list comparisons and solvers")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for."""
    p = parser()
    a = p.parse_args(arguments)
    if a.list:
        for name, comparison in COMPARISONS.items():
            print(f"{name}: {comparison.ABOUT}")
        print(f"solvers: {', '.join(SOLVERS)}")
        return 0
    peers = tuple(name for name in a.peers.split(",") if name)
    families = tuple(name for name in a.families.split(",") if name)
    asked = (*((n, COMPARISONS) for n in a.names), *((n, SOLVERS) for n in peers), *((n, FAMILIES) for n in families))
    for name, known in asked:
        if name not in known:
            p.error(f"unknown name {name!r}; expected one of: {', '.join(known)}")
    try:
        tolerances = tuple(float(t) for t in a.tolerances.split(",") if t)
    except ValueError:
        p.error(f"--tolerances is {a.tolerances!r}; expected numbers separated by commas")
    positive = (*tolerances, *(v for v in (a.time_limit, a.budget) if v is not None))
    if not all(0 < value < float("inf") for value in positive):
        p.error("tolerances, time limit and budget must be positive and finite")
    failure, objects = False, {}
    for name in a.names or COMPARISONS:
        folder = a.output / name
        folder.mkdir(parents=True, exist_ok=True)
        options = Options(
            folder.resolve(), a.full, peers,
            tolerances or ((1e-4, 1e-6, 1e-8) if a.full else (1e-4, 1e-8)),
            a.time_limit or (150.0 if a.full else 10.0),
            a.budget or (float("inf") if a.full else 150.0),
            a.seed, a.data, a.instances, families, largest=a.largest, smallest=a.smallest,
        )  # fmt: skip
        report = COMPARISONS[name].run(options, lambda line: print(line, file=sys.stderr, flush=True))
        write(report, folder)
        failure |= failed(report.claims)
        if a.json:
            claims = [c._asdict() | {"verdict": c.verdict} for c in report.claims]
            objects[name] = {"machine": report.machine, "claims": claims, "records": report.records}
        else:
            show(report)
            print(f"Report: {folder / 'report.html'}")
    if a.json:
        print(json.dumps(objects))
    return 1 if failure and a.strict else 0


if __name__ == "__main__":
    # A terminated run must unwind, or the child under way would live on in its own process group.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
