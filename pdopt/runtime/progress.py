"""The one table renderer and the one progress line of the library.

Every number that a person reads is formatted by `format_number`; every table, of the command line and of the
benchmarks, is made by `render_table`; every run reports through a `Progress`. Progress goes to standard error, so that
standard output can hold one JSON object. Progress is told between jitted chunks, never from inside a loop.
"""

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TextIO

# Columns of an iteration log (names as in `--json`) with their width and format.
COLUMNS: Mapping[str, tuple[int, str]] = {
    "iter": (9, "d"),
    "objective": (15, ".7e"),
    "dual objective": (15, ".7e"),
    "gap": (9, ".2e"),
    "primal residual": (15, ".2e"),
    "dual residual": (13, ".2e"),
    "step": (9, ".2e"),
    "time": (9, ".1f"),
}
_UNITS = {"time": "time (s)"}

Row = Mapping[str, Any]


class Progress(Protocol):
    """Who listens to a run. `update` gets an ordered mapping from column to value; columns may be absent."""

    def start(self, total_hint: int | None = None) -> None:
        """The run begins; `total_hint` is the iteration limit, if there is one."""
        ...

    def update(self, row: Row) -> None:
        """One look at the run."""
        ...

    def finish(self, summary: str = "") -> None:
        """The run ended; `summary` is one sentence for people."""
        ...


class Silent:
    """A progress that says nothing."""

    def start(self, total_hint: int | None = None) -> None:
        """Nothing."""

    def update(self, row: Row) -> None:
        """Nothing."""

    def finish(self, summary: str = "") -> None:
        """Nothing."""


class IterationLog:
    """Aligned lines on standard error, and on a terminal a live last line.

    A line is kept at most every `every` seconds (rows that come faster are dropped, the last one never); on a terminal
    the present row is shown below the kept lines, redrawn at most four times a second.

    Args:
        stream: where to write; None: standard error.
        columns: names of the columns; the known ones are `COLUMNS`, others get 12 characters.
        every: least seconds between two kept lines, >= 0.
        clock: seconds, for tests.

    Example:
        >>> log = IterationLog(sys.stdout, columns=("iter", "gap"), clock=lambda: 0.0)
        >>> log.start(); log.update({"iter": 64, "gap": 0.5}); log.finish("Optimal.")
             iter        gap
               64   5.00e-01
        Optimal.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        columns: Sequence[str] = tuple(COLUMNS),
        every: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._columns = tuple(columns)
        self._every = every
        self._clock = clock
        self._total: int | None = None
        self._kept_at = self._drawn_at = -math.inf
        self._waiting: Row | None = None  # the newest row that was not kept
        self._live: Any = None

    def start(self, total_hint: int | None = None) -> None:
        """Print the header."""
        self._total = total_hint
        self._kept_at = self._drawn_at = -math.inf
        self._waiting = None
        out = self._out()
        if out.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(file=out, highlight=False), auto_refresh=False, transient=True)
            self._live.start()
        self._print("  ".join(_UNITS.get(name, name).rjust(self._width(name)) for name in self._columns))

    def update(self, row: Row) -> None:
        """Keep the row as a line, show it, or drop it, by the time that has passed."""
        now = self._clock()
        if now - self._kept_at >= self._every:
            self._kept_at, self._waiting = now, None
            self._print(self._line(row))
        else:
            self._waiting = row
        if self._live is not None and now - self._drawn_at >= 0.25:
            self._drawn_at = now
            self._live.update(self._text(self._line(row) + self._share(row)), refresh=True)

    def finish(self, summary: str = "") -> None:
        """Print the last row, if it was not kept, and the summary."""
        if self._waiting is not None:
            self._print(self._line(self._waiting))
            self._waiting = None
        if self._live is not None:
            self._live.stop()
            self._live = None
        if summary:
            self._print(summary)

    def _out(self) -> TextIO:
        return sys.stderr if self._stream is None else self._stream

    def _print(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(self._text(text))
        else:
            print(text, file=self._out(), flush=True)

    def _text(self, text: str) -> Any:
        from rich.text import Text

        return Text(text, no_wrap=True, overflow="crop")

    def _line(self, row: Row) -> str:
        cells = (format_number(row.get(name), COLUMNS.get(name, (0, ""))[1]) for name in self._columns)
        return "  ".join(cell.rjust(self._width(name)) for name, cell in zip(self._columns, cells))

    def _width(self, name: str) -> int:
        return max(COLUMNS.get(name, (12, ""))[0], len(_UNITS.get(name, name)))

    def _share(self, row: Row) -> str:
        done = row.get("iter")
        return f"  {100 * done / self._total:3.0f} % of the limit" if self._total and done is not None else ""


def format_number(value: Any, spec: str = "") -> str:
    """The text of one value in a table or log.

    None is "-", True and False "yes" and "no", text stays text, an integer has all its digits. A float has six
    significant digits, in scientific notation outside [1e-4, 1e6), unless `spec` (of `format`) says otherwise; NaN and
    infinities are "nan", "inf", "-inf" in every format. Scalars of NumPy and JAX count as numbers.

    Example:
        >>> [format_number(v) for v in (3, 0.5, 1.25e-7, None, True, math.inf)]
        ['3', '0.5', '1.25e-07', '-', 'yes', 'inf']
        >>> format_number(1234.5, ".2e")
        '1.23e+03'
    """
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    value = _python(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value == 0:
        value = abs(value)  # -0.0 is 0
    if isinstance(value, int):
        return format(value, spec) if spec.endswith(("d", "e", "f", "g")) else str(value)
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if spec.endswith("d"):
        spec = ".0f"
    if spec:
        return format(value, spec)
    return f"{value:.6g}"


def render_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any] | Mapping[str, Any]],
    formats: Mapping[str, str] | None = None,
) -> str:
    """A table as text: title, header, rule, rows; columns of numbers end at the same place, text starts there.

    Args:
        title: first line; "" leaves it out.
        columns: names; units belong in them.
        rows: values in the order of the columns, or mappings by name (an absent one is "-").
        formats: a `format` specification for some columns; others are formatted alike within the column: if all
            floats lie in [1e-3, 1e6) with the same number of decimals, else in scientific notation.

    Raises:
        ValueError: a row of another length.

    Example:
        >>> print(render_table("Solved", ["name", "time (s)"], [("afiro", 0.5), ("adlittle", 12.25)]))
        Solved
        name      time (s)
        --------  --------
        afiro        0.500
        adlittle    12.250
    """
    formats = formats or {}
    table = []
    for row in rows:
        values = [row.get(name) for name in columns] if isinstance(row, Mapping) else list(row)
        if len(values) != len(columns):
            raise ValueError(f"a row has {len(values)} values; the table has {len(columns)} columns: {values}")
        table.append([_python(value) for value in values])
    lines = [title] if title else []
    printed = []
    for name, values in zip(columns, zip(*table) if table else [()] * len(columns)):
        spec = formats.get(name, _column_format(values))
        cells = [format_number(value, spec if isinstance(value, float) or name in formats else "") for value in values]
        width = max(map(len, [name, *cells]))
        right = any(isinstance(value, int | float) for value in values) and not any(isinstance(v, str) for v in values)
        printed.append([_pad(cell, width, right) for cell in [name, "-" * width, *cells]])
    lines += ["  ".join(cells).rstrip() for cells in zip(*printed)]
    return "\n".join(lines)


def _python(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _pad(cell: str, width: int, right: bool) -> str:
    return cell.rjust(width) if right else cell.ljust(width)


def _column_format(values: Sequence[Any]) -> str:
    """One format for the floats of a column: four significant digits of the smallest, if one scale fits them all."""
    sizes = [abs(v) for v in values if isinstance(v, float) and math.isfinite(v) and v != 0]
    if not sizes:
        return ".3f"
    smallest, largest = min(sizes), max(sizes)
    if smallest < 1e-3 or largest >= 1e6:
        return ".3e"
    return f".{min(5, max(2, 2 - math.floor(math.log10(smallest))))}f"
