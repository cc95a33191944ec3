"""`pdopt solve FILE`: read a linear program, solve it, say how it ended.

Everything that needs JAX is imported inside the command, after the arguments were found to be good.
"""

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from pdopt.cli.outcomes import INTERNAL, Outcome, exit_code
from pdopt.errors import InvalidOption, unknown_name
from pdopt.runtime.progress import Progress

METHODS = ("pdhg", "pdhg-constant", "pdhg-averaged")
DTYPES = ("float64", "float32")
HISTORY_ROWS = 1000  # kept checks of --history and --plot; older ones are thinned out

File = Annotated[Path, typer.Argument(metavar="FILE", help="Model: .mps or .lp, also with .gz.", show_default=False)]
Method = Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")]
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
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No iteration log on standard error.")]


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
    quiet: Quiet = False,
) -> Outcome:
    """Solve the linear program in FILE."""
    outcome: Outcome = ctx.obj.outcome
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
    outcome.seconds.update(read=time.monotonic() - before, presolve=0.0)
    _describe(outcome, model)

    report = timed_run(
        model.problem,
        _method(method),
        tolerance=tolerance,
        max_iterations=max_iterations,
        time_limit=time_limit,
        progress=False if quiet else iteration_log() if json else Unsaid(iteration_log()),
        checkpoint=checkpoint,
        resume=resume,
        history=HISTORY_ROWS if history or plot else 0,
    )
    default = 1e-6 if dtype == "float64" else 1e-4
    outcome.tolerance = default if tolerance is None else tolerance
    outcome.seconds.update(compile=report.seconds.compile, solve=report.seconds.solve)
    _judge(outcome, model, report)
    if checkpoint is not None and not report.solution.reason.converged:
        outcome.message += f" To go on: --checkpoint {checkpoint} --resume."
    try:
        _write(outcome, model, report.solution, solution, history, plot)
    except OSError as error:  # the numbers are in hand: they are shown, with what went wrong
        outcome.fail(INTERNAL, f"{error.filename or 'a file'} cannot be written: {error.strerror or error}", error)
    return outcome


def _write(
    outcome: Outcome, model: Any, found: Any, solution: Path | None, history: Path | None, plot: Path | None
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


def _method(name: str) -> Any:
    from pdopt.methods.pdhg import PDHG

    return {"pdhg": PDHG, "pdhg-constant": PDHG.constant, "pdhg-averaged": PDHG.averaged}[name]()


def _describe(outcome: Outcome, model: Any) -> None:
    """Name, sizes and notes of the model."""
    import numpy as np

    rows, columns = model.problem.shape
    nonzeros = int(np.count_nonzero(np.asarray(model.problem.A.entries)))
    outcome.name, outcome.notes = model.name, list(model.notes)
    outcome.problem.update(rows=rows, columns=columns, nonzeros=nonzeros)


def _judge(outcome: Outcome, model: Any, report: Any) -> None:
    """Status, numbers and the sentence that goes with them."""
    solution = report.solution
    status, r = solution.reason, solution.residuals
    outcome.status = str(status)
    outcome.code = exit_code(outcome.status, report.signal)
    outcome.message = _crossed(model) or status.sentence
    outcome.objective, outcome.dual_objective = float(solution.objective), float(solution.dual_objective)
    outcome.iterations, outcome.worst = int(solution.iterations), float(r.worst)
    outcome.residuals = {name: float(getattr(r, name)) for name in outcome.residuals}
    outcome.absolute = {name: float(getattr(r, f"{name}_absolute")) for name in outcome.absolute}


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
