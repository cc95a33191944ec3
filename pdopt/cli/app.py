"""The `pdopt` command: parsing, and the one place where everything that can go wrong becomes a line and an exit code.

Exit codes: 0 solved or finished; 1 internal error; 2 bad arguments or input; 3 stopped at a limit; 4 infeasible or
unbounded; 5 numerical error; 130 and 143 stopped by SIGINT and SIGTERM, after saving. With `--json`, standard output
holds one JSON object whatever the outcome; everything else is said on standard error.
"""

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NoReturn, cast

import typer
from typer.main import get_command

from pdopt.cli.compare import CompareOutcome, compare
from pdopt.cli.evaluate import EvaluateOutcome, evaluate
from pdopt.cli.export import ExportOutcome, export
from pdopt.cli.generate import GenerateOutcome, generate
from pdopt.cli.models import InspectOutcome, models
from pdopt.cli.outcomes import INTERNAL, REFUSED, Outcome, Stopped, exit_code, sigterm_raises, stoppable, versions
from pdopt.cli.solve import SolveOutcome, solve
from pdopt.cli.train import TrainOutcome, train
from pdopt.errors import PdoptError
from pdopt.runtime.cache import enable_compilation_cache, set_cpu_flags

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(stoppable(solve))
app.command()(stoppable(generate))
app.command()(stoppable(train))
app.command()(stoppable(compare))
app.command()(stoppable(evaluate))
app.command()(stoppable(export))
app.add_typer(models, name="models")

# Command -> what it fills in; chosen before its arguments are read, so that a refusal has the command's own object.
OUTCOMES: dict[str, type[Outcome]] = {
    "solve": SolveOutcome,
    "generate": GenerateOutcome,
    "models": InspectOutcome,
    "train": TrainOutcome,
    "compare": CompareOutcome,
    "evaluate": EvaluateOutcome,
    "export": ExportOutcome,
}

# The base of everything that parsing refuses: its module moved between releases of typer, its place here did not.
_UsageError = cast(type[Exception], typer.BadParameter.__mro__[2])


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"pdopt {versions()['pdopt']}")
        raise typer.Exit()


@app.callback()
def _root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Constrained optimisation by primal-dual methods, and language models trained under constraints.

    Exit codes: 0 solved or finished, 1 internal error, 2 bad arguments or input, 3 limit reached, 4 infeasible or
    unbounded, 5 numerical error, 130 interrupted, 143 terminated. PDOPT_TRACEBACK=1 shows the traceback of an error.
    """
    ctx.obj.outcome = OUTCOMES.get(ctx.invoked_subcommand or "", Outcome)()


@dataclass
class Session:
    """What a command shares with the caller: what was found, and what to do before JAX is first used."""

    outcome: Outcome = field(default_factory=Outcome)
    startup: Callable[[], Any] = lambda: None


def main() -> NoReturn:
    """Entry point of the installed script: owns the process, so it may set flags and use the compilation cache."""
    set_cpu_flags()
    sys.exit(execute(sys.argv[1:], enable_compilation_cache))


def execute(arguments: Sequence[str], startup: Callable[[], Any] = lambda: None) -> int:
    """Run one command line and return its exit code; never raises, never exits.

    Args:
        arguments: as in `sys.argv[1:]`.
        startup: called once before JAX is first used, by commands that use it.

    Example:
        >>> execute(["--version"])
        pdopt ...
        0
    """
    as_json = "--json" in arguments
    session = Session(startup=startup)
    try:
        with sigterm_raises(), warnings.catch_warnings():
            _say_warnings(session)
            done = get_command(app).main(list(arguments), prog_name="pdopt", obj=session, standalone_mode=False)
        if not done:  # --help and --version have said all there is
            return 0
        if done is not session.outcome:
            session.outcome.fail(int(done), f"stopped with exit code {done}")
    except _UsageError as error:
        session.outcome.fail(REFUSED, error.format_message(), error)  # pyright: ignore[reportAttributeAccessIssue]
    except PdoptError as error:
        session.outcome.fail(REFUSED, str(error), error)
        _show_traceback()
    except (Stopped, KeyboardInterrupt) as error:
        number = error.signal if isinstance(error, Stopped) else 2
        said = f"{error}; {session.outcome.stopped()}"
        session.outcome.fail(exit_code("interrupted", number), said, error, "interrupted")
    except Exception as error:  # the last line of defence: said in one line, with the way to the whole story
        shown = _show_traceback()
        hint = "" if shown else " (PDOPT_TRACEBACK=1 shows the traceback)"
        session.outcome.fail(INTERNAL, f"internal error, {type(error).__name__}: {error}{hint}", error)
    outcome = session.outcome
    if outcome.status == "error" or outcome.error is not None:
        print(f"pdopt: {outcome.message}", file=sys.stderr, flush=True)
    if as_json:
        _print(outcome.as_json())
    elif shown := outcome.summary():
        _print(shown)
    return outcome.code


def _print(text: str) -> None:
    """Write to standard output; a reader that has gone away (`| head`) is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes the stream once more as it ends, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_traceback() -> bool:
    shown = os.environ.get("PDOPT_TRACEBACK", "") not in ("", "0")
    if shown:
        traceback.print_exc()
    return shown


def _say_warnings(session: Session) -> None:
    """Warnings as one line each, and in the outcome; notices to programmers are not for the user of a command."""

    def say(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
        text = " ".join(str(message).split())
        if text not in session.outcome.warnings:
            session.outcome.warnings.append(text)
            print(f"pdopt: warning: {text}", file=sys.stderr, flush=True)

    warnings.resetwarnings()
    warnings.simplefilter("always")
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)
    warnings.showwarning = say
