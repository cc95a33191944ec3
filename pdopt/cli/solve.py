"""`pdopt solve FILE`: read a linear or quadratic program, solve it, say how it ended.

Everything that needs JAX is imported inside the command, after the arguments were found to be good.
"""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from pdopt.cli.outcomes import INTERNAL, Outcome, exit_code, versions
from pdopt.errors import InvalidOption, unknown_name
from pdopt.runtime.progress import Progress, format_number, render_table

METHODS = ("auto", "pdhg", "pdhg-constant", "pdhg-averaged")
DTYPES = ("float64", "float32")
SIZES = ("rows", "columns", "nonzeros", "quadratic")
HISTORY_ROWS = 1000  # kept checks of --history and --plot; older ones are thinned out

File = Annotated[
    Path, typer.Argument(metavar="FILE", help="Model: .mps, .qps or .lp, also with .gz; or .mat.", show_default=False)
]
Method = Annotated[
    str, typer.Option(help=f"One of {', '.join(METHODS)}. auto: multipliers for a QP of a narrow band, else pdhg.")
]
Tolerance = Annotated[
    float | None, typer.Option(help="Largest relative residual and gap, > 0. [default: 1e-6; float32: 1e-4]")
]
TimeLimit = Annotated[float | None, typer.Option(help="Seconds for compiling and solving, > 0.")]
MaxIterations = Annotated[int | None, typer.Option(help="Steps, >= 1. [default: 1000000]")]
Dtype = Annotated[str, typer.Option(help="float64, or float32, which reaches about 1e-4.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, whatever the outcome.")]
SolutionFile = Annotated[
    Path | None, typer.Option("--solution", help="Write x, y and reduced costs here; .json or text.")
]
Checkpoint = Annotated[Path | None, typer.Option(help="Folder for the state, saved every minute and at the end.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest state in --checkpoint.")]
History = Annotated[Path | None, typer.Option(help="Write the residuals of the checks here, as CSV.")]
Plot = Annotated[Path | None, typer.Option(help="Draw them here (.png, .pdf, .svg), with the CSV beside it.")]
Presolve = Annotated[
    bool, typer.Option("--presolve/--no-presolve", help="Make the problem smaller by HiGHS first; judged as it was.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No iteration log on standard error.")]


@dataclass
class SolveOutcome(Outcome):
    """What is known of a solve.

    Attributes:
        file: the model's file as the user named it; name: the model's own name.
        residuals, absolute: relative and absolute, by name (`primal`, `dual`, `gap`).
        seconds: read, presolve, compile, solve.
        problem: rows, columns, nonzeros, and quadratic, those of a Q.
        presolve: what it found, the rows and columns it removed, None without it.
        notes: what the reader did to the file; files: what was written.
    """

    packages: ClassVar[tuple[str, ...]] = (*Outcome.packages, "highspy")

    file: str | None = None
    name: str | None = None
    method: str | None = None
    dtype: str | None = None
    tolerance: float | None = None
    objective: float | None = None
    dual_objective: float | None = None
    iterations: int | None = None
    worst: float | None = None
    residuals: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(("primal", "dual", "gap")))
    absolute: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(("primal", "dual", "gap")))
    seconds: dict[str, float | None] = field(
        default_factory=lambda: dict.fromkeys(("read", "presolve", "compile", "solve"))
    )
    problem: dict[str, int | None] = field(default_factory=lambda: dict.fromkeys(SIZES))
    presolve: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Every field of the JSON object, in its order."""
        return {
            "status": self.status,
            "objective": self.objective,
            "dual_objective": self.dual_objective,
            "iterations": self.iterations,
            "residuals": self.residuals,
            "residuals_absolute": self.absolute,
            "worst": self.worst,
            "seconds": self.seconds,
            "problem": self.problem,
            "presolve": self.presolve,
            "exit_code": self.code,
            "message": self.message,
            "error": self.error,
            "file": self.file,
            "name": self.name,
            "method": self.method,
            "dtype": self.dtype,
            "tolerance": self.tolerance,
            "notes": self.notes,
            "warnings": self.warnings,
            "files": self.files,
            "versions": versions(self.packages),
        }

    def summary(self) -> str:
        """The solution for people: what was solved, how it ended, how good it is; "" before there is one."""
        if self.iterations is None:
            return ""
        words = {"quadratic": "nonzeros of Q"}
        sizes = ", ".join(f"{n} {words.get(what, what)}" for what, n in self.problem.items() if n is not None)
        result = [
            ("objective", format_number(self.objective, ".10g")),
            ("dual objective", format_number(self.dual_objective, ".10g")),
            ("worst violation", format_number(self.worst, ".2e")),
            *(
                (f"{what} removed", format_number(self.presolve[what]))
                for what in ("rows", "columns")
                if self.presolve and self.presolve[what]
            ),
            ("iterations", format_number(self.iterations)),
            *((f"{name} (s)", format_number(value, ".3f")) for name, value in self.seconds.items() if value),
        ]
        width = max(len(value) for _, value in result)
        rows = [(name, value.rjust(width)) for name, value in result]
        checks = [(f"{name} residual" if name != "gap" else name, self.residuals[name], self.absolute[name])
                  for name in self.residuals]  # fmt: skip
        formats = {"relative": ".2e", "absolute": ".2e"}
        return "\n".join([
            f"{self.name}: {sizes} ({self.method}, {self.dtype})",
            *(f"note: {note}" for note in self.notes),
            "",
            self.message,
            "",
            render_table("", ("result", "value"), rows),
            "",
            render_table("", (f"tolerance {self.tolerance:g}", "relative", "absolute"), checks, formats),
            *(["", *(f"{what} written to {path}" for what, path in self.files.items())] if self.files else []),
        ])  # fmt: skip


def solve(
    ctx: typer.Context,
    file: File,
    method: Method = METHODS[0],
    tolerance: Tolerance = None,
    time_limit: TimeLimit = None,
    max_iterations: MaxIterations = None,
    dtype: Dtype = DTYPES[0],
    json: Json = False,
    solution: SolutionFile = None,
    checkpoint: Checkpoint = None,
    resume: Resume = False,
    history: History = None,
    plot: Plot = None,
    presolve: Presolve = True,
    quiet: Quiet = False,
) -> SolveOutcome:
    """Solve the linear or quadratic program in FILE."""
    outcome: SolveOutcome = ctx.obj.outcome
    outcome.file, outcome.method, outcome.dtype = str(file), method, dtype
    _check_choice("--method", method, METHODS)
    _check_choice("--dtype", dtype, DTYPES)
    if resume and checkpoint is None:
        raise InvalidOption("--resume needs --checkpoint, the folder to resume from")
    for option, path in (("--solution", solution), ("--history", history), ("--plot", plot)):
        _check_writable(option, path)
    if plot is not None and plot.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise InvalidOption(f"--plot is {plot}; expected a name that ends in .png, .pdf or .svg")

    ctx.obj.startup()
    from pdopt.problems.mps import read_model
    from pdopt.run import iteration_log, timed_run

    before = time.monotonic()
    model = read_model(file, dtype=dtype)
    outcome.seconds.update(read=time.monotonic() - before)
    _describe(outcome, model)
    linear = outcome.problem["quadratic"] is None
    if presolve and not linear:
        outcome.notes.append("solved without presolve, which takes linear programs only")

    report = timed_run(
        model.problem,
        _method(outcome, method, model.problem),
        tolerance=tolerance,
        max_iterations=max_iterations,
        time_limit=time_limit,
        progress=False if quiet else iteration_log() if json else Unsaid(iteration_log()),
        checkpoint=checkpoint,
        resume=resume,
        history=HISTORY_ROWS if history or plot else 0,
        presolve=presolve and linear,
    )
    default = 1e-6 if dtype == "float64" else 1e-4
    outcome.tolerance = default if tolerance is None else tolerance
    outcome.seconds.update(report.seconds._asdict())
    if report.presolve is not None:
        outcome.presolve = report.presolve._asdict()
    _judge(outcome, model, report)
    if checkpoint is not None and not report.solution.reason.converged:
        outcome.message += f" To go on: --checkpoint {checkpoint} --resume."
    try:
        _write(outcome, model, report.solution, solution, history, plot)
    except OSError as error:  # the numbers are in hand: they are shown, with what went wrong
        outcome.fail(INTERNAL, f"{error.filename or 'a file'} cannot be written: {error.strerror or error}", error)
    return outcome


def _write(
    outcome: SolveOutcome, model: Any, found: Any, solution: Path | None, history: Path | None, plot: Path | None
) -> None:
    """The files that were asked for."""
    if solution is not None:
        from pdopt.problems.solution_file import write_solution

        write_solution(solution, model, found)
        outcome.files["solution"] = str(solution)
    if history is None and plot is None:
        return
    from pdopt.cli.history import draw, write_rows

    if history is not None:
        write_rows(history, found.history)
        outcome.files["history"] = str(history)
    if plot is not None:
        draw(plot, found.history, outcome.tolerance or 0.0, f"{model.name}, {outcome.method}")
        outcome.files["plot"] = str(plot)
        data = plot.with_suffix(".csv")
        write_rows(data, found.history)
        outcome.files["data of the plot"] = str(data)


class Unsaid:
    """A progress without its last sentence, for where the summary says it."""

    def __init__(self, listener: Progress) -> None:
        self.start, self.update, self._finish = listener.start, listener.update, listener.finish

    def finish(self, summary: str = "") -> None:
        """Finish without the sentence."""
        self._finish("")


def _check_choice(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise unknown_name(option, value, known)


def _check_writable(option: str, path: Path | None) -> None:
    """Refuse before a long solve what could not be written after it."""
    if path is None:
        return
    if path.is_dir():
        raise InvalidOption(f"{option} is {path}, which is a folder; expected a file")
    if not path.parent.is_dir():
        raise InvalidOption(f"{option} is {path}, but there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise InvalidOption(f"{option} is {path}, but the folder {path.parent} is not writable")


def _method(outcome: SolveOutcome, name: str, problem: Any) -> Any:
    """The method of the option, whose name the outcome tells from here on."""
    from pdopt.methods.pdhg import PDHG
    from pdopt.solve import default_method

    linear = outcome.problem["quadratic"] is None
    if name == "auto":
        method = default_method(problem)
        outcome.method = "pdhg" if isinstance(method, PDHG) else "multipliers"
        return method
    named = {"pdhg": PDHG if linear else PDHG.quadratic, "pdhg-constant": PDHG.constant, "pdhg-averaged": PDHG.averaged}
    return named[name]()


def _describe(outcome: SolveOutcome, model: Any) -> None:
    """Name, sizes and notes of the model."""
    import numpy as np

    rows, columns = model.problem.shape
    outcome.name, outcome.notes = model.name, list(model.notes)
    outcome.problem.update(rows=rows, columns=columns)
    for what, name in (("nonzeros", "A"), ("quadratic", "Q")):
        if hasattr(model.problem, name):
            outcome.problem[what] = int(np.count_nonzero(np.asarray(getattr(model.problem, name).entries)))


def _judge(outcome: SolveOutcome, model: Any, report: Any) -> None:
    """Status, numbers and the sentence that goes with them."""
    solution = report.solution
    status, r = solution.reason, solution.residuals
    outcome.status = str(status)
    outcome.code = exit_code(outcome.status, report.signal)
    outcome.message = _crossed(model) or _presolved(status, report.note)
    outcome.objective, outcome.dual_objective = float(solution.objective), float(solution.dual_objective)
    outcome.iterations, outcome.worst = int(solution.iterations), float(r.worst)
    outcome.residuals = {name: float(getattr(r, name)) for name in outcome.residuals}
    outcome.absolute = {name: float(getattr(r, f"{name}_absolute")) for name in outcome.absolute}


def _presolved(status: Any, note: str) -> str:
    """The sentence of the status; the presolve's own where it decided, and its note where it was left."""
    if note.startswith("Infeasible"):
        return note
    return f"{status.sentence} {note}".rstrip()


def _crossed(model: Any) -> str:
    """The first row or column whose lower bound lies above its upper one, "" where there is none."""
    import numpy as np

    lp = model.problem
    for kind, names, low, high in (
        ("row", model.row_names, lp.row_lower, lp.row_upper),
        ("column", model.column_names, lp.lower, lp.upper),
    ):
        low, high = np.asarray(low), np.asarray(high)
        crossed = np.flatnonzero(low > high)
        if crossed.size:
            i = int(crossed[0])
            name = names[i] if names else str(i)
            return f"Infeasible: {kind} {name!r} has lower bound {low[i]:g} above its upper bound {high[i]:g}."
    return ""
