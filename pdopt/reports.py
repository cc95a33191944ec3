"""What a run driven from the host knows besides its solution."""

from typing import NamedTuple

from pdopt.types import Solution


class Seconds(NamedTuple):
    """Wall seconds of a run: tracing and compiling, everything after (scaling, iterations, saving), presolve."""

    compile: float
    solve: float
    presolve: float = 0.0


class Removed(NamedTuple):
    """What presolve found (see `pdopt.problems.presolve`), and the rows and columns that it removed."""

    found: str
    rows: int
    columns: int


class Report(NamedTuple):
    """A solution with what only the host knows.

    Attributes:
        solution: as `run` returns it.
        seconds: where the time went.
        signal: the one that stopped the run, None where none did.
        presolve: what presolve did, None where it was not asked for.
        note: a sentence on how the presolved run ended, where that needs one.
    """

    solution: Solution
    seconds: Seconds
    signal: int | None
    presolve: Removed | None = None
    note: str = ""
