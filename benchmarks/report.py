"""One run's report: JSON lines, tables for the terminal, and one self-contained HTML page."""

import base64
import html
import json
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.claims import Claim
from benchmarks.profiles import FINISHED, shifted_geometric_mean

CPU_SHIFT = 0.01  # seconds; small, since the quick set solves in milliseconds
ITERATION_SHIFT = 10.0


class Table(NamedTuple):
    """A title, column names, and rows of text."""

    title: str
    columns: list[str]
    rows: list[list[str]]


class Report(NamedTuple):
    """What a comparison returns."""

    name: str
    records: list[dict[str, Any]]
    claims: list[Claim]
    tables: list[Table]
    pictures: list[Path]
    machine: dict[str, str]
    notes: list[str]


def number(value: float | None) -> str:
    """Four figures, or a dash for what is missing."""
    return "-" if value is None or value != value else f"{value:.4g}"


def summary(records: list[dict[str, Any]], tolerance: float, time_limit: float, baseline: str) -> Table:
    """Solver by solver: counts, shifted geometric means with unsolved runs at the time limit, ratio to the baseline.

    Means of CPU seconds are over all instances that every listed solver attempted; an unfinished one counts as the
    time limit. Iterations and compile seconds are over finished ones, which differ between solvers: read them beside
    the paired ratios of the claims.
    """
    chosen = [r for r in records if r["tolerance"] == tolerance and r["outcome"] != "not installed"]
    solvers = list(dict.fromkeys(r["solver"] for r in records if r["tolerance"] == tolerance))
    skipped = {r["instance"] for r in chosen if r["outcome"] == "cut"}
    cpu: dict[str, float] = {}
    for solver in solvers:
        runs = [r for r in chosen if r["solver"] == solver and r["instance"] not in skipped]
        seconds = [r["cpu"] if r["outcome"] in FINISHED else time_limit for r in runs]
        cpu[solver] = shifted_geometric_mean(seconds, CPU_SHIFT)
    rows = []
    for solver in solvers:
        runs = [r for r in records if r["solver"] == solver and r["tolerance"] == tolerance]
        done = [r for r in runs if r["outcome"] in FINISHED]
        others = sorted({r["outcome"] for r in runs} - set(FINISHED))
        counts = ", ".join(f"{sum(r['outcome'] == o for r in runs)} {o}" for o in others)
        iterations = shifted_geometric_mean([r["iterations"] for r in done], ITERATION_SHIFT)
        compiled = [r["compile"] for r in done if r["compile"] > 0]
        ratio = cpu[solver] / cpu[baseline] if baseline in cpu else float("nan")
        rows.append([
            solver, *(f"{sum(r['outcome'] == outcome for r in runs)}" for outcome in FINISHED), f"{len(runs)}",
            number(cpu[solver]), number(ratio), number(iterations),
            number(sum(compiled) / len(compiled) if compiled else 0.0), counts or "none",
        ])  # fmt: skip
    common = len({r["instance"] for r in chosen} - skipped)
    title = (
        f"Tolerance {tolerance:g}: shifted geometric means (CPU shift {CPU_SHIFT:g} s over {common} instances that no "
        f"solver was cut on, unfinished = {time_limit:g} s; iterations shift {ITERATION_SHIFT:g}, finished only)"
    )
    columns = ["solver", "solved", "certified", "of", "CPU s", f"CPU / {baseline}", "iterations", "compile s", "others"]
    return Table(title, columns, rows)


def by_instance(records: list[dict[str, Any]], tolerance: float) -> Table:
    """Instance by solver: CPU seconds where finished, the outcome elsewhere."""
    chosen = [r for r in records if r["tolerance"] == tolerance]
    solvers = list(dict.fromkeys(r["solver"] for r in chosen))
    cells = {(r["instance"], r["solver"]): r for r in chosen}
    rows = []
    for name in dict.fromkeys(r["instance"] for r in chosen):
        row = [name, str(next(r["nonzeros"] for r in chosen if r["instance"] == name))]
        for solver in solvers:
            record = cells[name, solver]
            done = record["outcome"] in FINISHED
            row.append(f"{record['cpu']:.3g} s, {record['iterations']}" if done else record["outcome"])
        rows.append(row)
    return Table(f"Tolerance {tolerance:g}: CPU seconds, iterations", ["instance", "nonzeros", *solvers], rows)


def claim_table(claims: list[Claim]) -> Table:
    """The promises and what became of them."""
    rows = [
        [c.promise, number(c.measured), f"{c.relation} {number(c.required)}", c.verdict, c.note] for c in claims
    ]  # fmt: skip
    return Table("Claims", ["promise", "measured", "required", "verdict", "note"], rows)


def write(report: Report, folder: Path) -> None:
    """`records.jsonl`, `claims.json` and `report.html` in the folder."""
    with (folder / "records.jsonl").open("w") as file:
        for record in report.records:
            file.write(json.dumps(record | {"machine": report.machine}) + "\n")
    claims = [claim._asdict() | {"verdict": claim.verdict} for claim in report.claims]
    (folder / "claims.json").write_text(json.dumps(claims, indent=1))
    (folder / "report.html").write_text(page(report))


def page(report: Report) -> str:
    """The report as one HTML page that needs nothing beside it."""
    parts = [f"<h1>pdopt benchmark: {html.escape(report.name)}</h1>"]
    parts += [f"<p>{html.escape(note)}</p>" for note in report.notes]
    parts.append(_html(claim_table(report.claims)))
    parts += [_html(table) for table in report.tables]
    for picture in report.pictures:
        data = base64.b64encode(picture.read_bytes()).decode()
        parts.append(f'<figure><img alt="{html.escape(picture.stem)}" src="data:image/png;base64,{data}"></figure>')
    parts.append(_html(Table("Machine and versions", ["", ""], [[k, v] for k, v in report.machine.items()])))
    style = (
        "body{font:15px system-ui,sans-serif;margin:2em auto;max-width:72em;padding:0 1em}"
        "table{border-collapse:collapse;margin:1em 0;font-variant-numeric:tabular-nums;display:block;overflow-x:auto}"
        "td,th{padding:.25em .7em;border-bottom:1px solid #ccc;text-align:right}"
        "td:first-child,th:first-child{text-align:left}caption{text-align:left;font-weight:600;padding:.4em 0}"
        "img{max-width:100%}"
    )
    body = "\n".join(parts)
    title = html.escape(report.name)
    head = f'<meta charset="utf-8"><title>{title}</title><style>{style}</style>'
    return f'<!doctype html><html lang="en">{head}{body}</html>\n'


def _html(table: Table) -> str:
    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    rows = "".join(line(row, "td") for row in table.rows)
    return f"<table><caption>{html.escape(table.title)}</caption>{line(table.columns, 'th')}{rows}</table>"


def show(report: Report) -> None:
    """Print the tables, the claims last."""
    from rich.console import Console
    from rich.table import Table as Grid

    console = Console()
    if not console.is_terminal:
        console = Console(width=150)  # a file or a pipe has no width of its own
    for table in [*report.tables, claim_table(report.claims)]:
        grid = Grid(title=table.title, title_justify="left")
        for place, column in enumerate(table.columns):
            grid.add_column(column, justify="left" if place == 0 else "right", overflow="fold")
        for row in table.rows:
            grid.add_row(*row)
        console.print(grid)
    for note in report.notes:
        console.print(note)
