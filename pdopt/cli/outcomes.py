"""How a command ends: exit codes, and the one record from which the JSON object and the summary are made.

Importable without JAX, so that a misspelt option is refused at once. Statuses are the lower-case names of
`pdopt.types.Status`, or "error" where there is no solution (exit codes 1 and 2).
"""

import json
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from types import FrameType
from typing import Any, TypeVar, cast

from pdopt.runtime.progress import format_number, render_table

Command = TypeVar("Command", bound=Callable[..., Any])
INTERNAL, REFUSED = 1, 2
EXIT_CODES = {
    "optimal": 0,
    "iteration_limit": 3,
    "time_limit": 3,
    "precision_limit": 3,
    "penalty_limit": 3,
    "locally_infeasible": 3,
    "primal_infeasible": 4,
    "dual_infeasible": 4,
    "numerical_error": 5,
    "diverged": 5,
    "invalid_problem": REFUSED,
    "interrupted": 130,
}


class Stopped(BaseException):
    """A signal (its number is `signal`) outside of a solve, where there is nothing to save."""

    def __init__(self, number: int) -> None:
        self.signal = number
        super().__init__(f"stopped by {signal.Signals(number).name}")


def stoppable(command: Command) -> Command:
    """The command, with a Ctrl-C as `Stopped`: typer would turn KeyboardInterrupt into a bare exit code."""

    @wraps(command)
    def inner(*arguments: Any, **options: Any) -> Any:
        try:
            return command(*arguments, **options)
        except KeyboardInterrupt:
            raise Stopped(signal.SIGINT) from None

    return cast(Command, inner)


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Make SIGTERM raise `Stopped` for the length of a block (main thread only), as SIGINT raises by itself."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is None:
        yield
        return

    def seen(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    before = signal.signal(signal.SIGTERM, seen)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_code(status: str, number: int | None = None) -> int:
    """The exit code of a status; an interrupt's is 128 + the signal's number.

    Example:
        >>> exit_code("optimal"), exit_code("interrupted", 15), exit_code("primal_infeasible")
        (0, 143, 4)
    """
    return 128 + number if status == "interrupted" and number is not None else EXIT_CODES[status]


@dataclass
class Outcome:
    """What a command has found out so far; stages fill it in, so that a failure still shows what was known.

    Attributes:
        file: the model's file as the user named it; name: the model's own name.
        status: a status, or "error"; code: the exit code that goes with it.
        message: one sentence for people.
        residuals, absolute: relative and absolute, by name (`primal`, `dual`, `gap`).
        seconds: read, presolve (0: there is none yet), compile, solve.
        problem: rows, columns, nonzeros.
        error: type, file and line of what was refused, where known.
        notes: what the reader did to the file; warnings: what was warned of on the way.
    """

    file: str | None = None
    name: str | None = None
    method: str | None = None
    dtype: str | None = None
    tolerance: float | None = None
    status: str = "error"
    code: int = INTERNAL
    message: str = ""
    objective: float | None = None
    dual_objective: float | None = None
    iterations: int | None = None
    worst: float | None = None
    residuals: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(("primal", "dual", "gap")))
    absolute: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(("primal", "dual", "gap")))
    seconds: dict[str, float | None] = field(
        default_factory=lambda: dict.fromkeys(("read", "presolve", "compile", "solve"))
    )
    problem: dict[str, int | None] = field(default_factory=lambda: dict.fromkeys(("rows", "columns", "nonzeros")))
    error: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    def fail(self, code: int, message: str, error: BaseException | None = None, status: str = "error") -> None:
        """Note a failure; numbers that were found before it stay."""
        self.status, self.code, self.message = status, code, " ".join(message.split())
        if error is not None:
            path, line = getattr(error, "path", None), getattr(error, "line", None)
            self.error = {"type": type(error).__name__, "file": None if path is None else str(path), "line": line}

    def as_json(self) -> str:
        """One line of strict JSON: what is not a finite number is null."""
        record = {
            "status": self.status,
            "objective": self.objective,
            "dual_objective": self.dual_objective,
            "iterations": self.iterations,
            "residuals": self.residuals,
            "residuals_absolute": self.absolute,
            "worst": self.worst,
            "seconds": self.seconds,
            "problem": self.problem,
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
            "versions": versions(),
        }
        return json.dumps(finite(record), allow_nan=False)

    def summary(self) -> str:
        """The solution for people: what was solved, how it ended, how good it is."""
        sizes = ", ".join(f"{count} {what}" for what, count in self.problem.items())
        result = [
            ("objective", format_number(self.objective, ".10g")),
            ("dual objective", format_number(self.dual_objective, ".10g")),
            ("worst violation", format_number(self.worst, ".2e")),
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


def finite(value: Any) -> Any:
    """A JSON tree with null for every number that JSON cannot hold.

    Example:
        >>> finite({"gap": math.inf, "rows": [1, math.nan]})
        {'gap': None, 'rows': [1, None]}
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def versions() -> dict[str, str]:
    """Versions of pdopt ("source" if it is not installed) and of what decides its bits; imports none of them."""
    from importlib import metadata

    found = {}
    for name in ("pdopt", "jax", "jaxlib", "highspy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "source"
    return found
