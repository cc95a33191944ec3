"""How a command ends: exit codes, and the base of the records from which the JSON object and the summary are made.

Importable without JAX, so that a misspelt option is refused at once. Statuses are the lower-case names of
`pdopt.types.Status`, or "error" where there is no solution (exit codes 1 and 2).
"""

import json
import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from types import FrameType
from typing import Any, ClassVar, TypeVar, cast

Command = TypeVar("Command", bound=Callable[..., Any])
INTERNAL, REFUSED = 1, 2
# The status of a command that did its work and has no solution to judge: generation, inspection, training.
FINISHED = "finished"
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
    """The exit code of a status; an interrupt's is 128 + the signal's number; "finished" ends what has no solution.

    Example:
        >>> exit_code("optimal"), exit_code("finished"), exit_code("interrupted", 15), exit_code("primal_infeasible")
        (0, 0, 143, 4)
    """
    if status == FINISHED:
        return 0
    return 128 + number if status == "interrupted" and number is not None else EXIT_CODES[status]


@dataclass
class Outcome:
    """What a command has found out so far; stages fill it in, so that a failure still shows what was known.

    Each command has its own: a dataclass on top of this one that adds fields, `record` and `summary`.

    Attributes:
        status: a status, or "error"; code: the exit code that goes with it.
        message: one sentence for people.
        error: type, file and line of what was refused, where known.
        warnings: what was warned of on the way.
        seconds: by stage.
    """

    # Packages whose versions stand in the object.
    packages: ClassVar[tuple[str, ...]] = ("pdopt", "jax", "jaxlib")

    status: str = "error"
    code: int = INTERNAL
    message: str = ""
    seconds: dict[str, float | None] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)

    def fail(self, code: int, message: str, error: BaseException | None = None, status: str = "error") -> None:
        """Note a failure; what was found before it stays."""
        self.status, self.code, self.message = status, code, " ".join(message.split())
        if error is not None:
            path, line = getattr(error, "path", None), getattr(error, "line", None)
            self.error = {"type": type(error).__name__, "file": None if path is None else str(path), "line": line}

    def end(self, status: str, message: str, signal: int | None = None) -> None:
        """Note how the command ended, with the exit code of the status."""
        self.status, self.code, self.message = status, exit_code(status, signal), message

    def stopped(self) -> str:
        """What a signal left behind that ended the command at once."""
        return "nothing was saved"

    def record(self) -> dict[str, Any]:
        """Every field of the JSON object, in its order."""
        return {"status": self.status, "seconds": self.seconds, **self.ending()}

    def ending(self) -> dict[str, Any]:
        """The fields that close the object of every command."""
        return {
            "exit_code": self.code,
            "message": self.message,
            "error": self.error,
            "warnings": self.warnings,
            "versions": versions(self.packages),
        }

    def as_json(self) -> str:
        """One line of strict JSON: what is not a finite number is null."""
        return json.dumps(finite(self.record()), allow_nan=False)

    def summary(self) -> str:
        """The result for people, printed at the end; "" where there is none, or where it was printed on the way."""
        return ""


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


def versions(packages: Iterable[str] = Outcome.packages) -> dict[str, str]:
    """Versions of packages ("source" for what is not installed); imports none of them."""
    from importlib import metadata

    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "source"
    return found
