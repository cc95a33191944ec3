"""The run on standard error: on a terminal a table that is redrawn, elsewhere a line every second or so.

A constraint is shown with what the saddle step knows of it: value, limit, violation, multiplier. The words "held" and
"broken" say what the colour says.
"""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from pdopt.errors import require_range
from pdopt.runtime.progress import IterationLog, format_number
from pdopt.training.scalars import OTHER, PREFIX, Samples, Scalars, constraint_line, constraint_names

# What is shown first of the other scalars, if it is there.
SHOWN = (
    "reward",
    "reward_std",
    "evaluation/accuracy",
    "kl_k3",
    "entropy",
    "length",
    "truncated",
    "loss",
    "gradient_norm",
)
TEXT = 200
EVALUATION = "evaluation/"


class LiveTable:
    """A reporter for the person at the terminal.

    Args:
        stream: where to write; None is standard error.
        total: planned steps.
        every: least seconds between two lines where the stream is no terminal.
        clock: seconds, for tests.

    Example:
        >>> table = LiveTable(sys.stdout, clock=lambda: 0.0)
        >>> values = {"reward": 0.5, "constraint/length/value": 30.0, "constraint/length/multiplier": 0.25}
        >>> table.scalars(1, values); table.close()
             iter        reward        length      y length       time (s)
                1           0.5            30          0.25            0.0
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        total: int | None = None,
        every: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        require_range("every", every, 0.0)
        self._stream, self._total, self._every, self._clock = stream, total, every, clock
        self._start = clock()
        self._log: IterationLog | None = None
        self._shown: tuple[str, ...] = ()
        self._live: Any = None
        self._latest: dict[str, Any] = {}

    def scalars(self, step: int, values: Scalars) -> None:
        """Redraw the table, or write a line."""
        self._latest.update(values)
        evaluated = evaluation_line(step, values)
        elapsed = self._clock() - self._start
        out = self._out()
        if out.isatty():
            if self._live is None:
                from rich.console import Console
                from rich.live import Live

                self._live = Live(console=Console(file=out), refresh_per_second=4, transient=False)
                self._live.start()
            if evaluated:
                self._print(evaluated)
            self._live.update(run_view(step, self._latest, total=self._total, elapsed=elapsed))
            return
        if any(not name.startswith(EVALUATION) for name in values):
            self._write_line(step, elapsed)
        if evaluated:
            self._print(evaluated)

    def text(self, step: int, table: Samples) -> None:
        """Write samples, shortened, above the table."""
        lines: list[str] = []
        for number, sample in enumerate(table, 1):
            lines.append(f"step {step}, sample {number}")
            lines += [f"  {name}: {_short(value)}" for name, value in sample.items()]
        self._print("\n".join(lines))

    def close(self) -> None:
        """Leave the last table, or the last line, where it is."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._log is not None:
            self._log.finish()
            self._log = None

    def _write_line(self, step: int, elapsed: float) -> None:
        columns = _columns(self._latest)
        if self._log is None or columns != self._shown:  # a supervised phase has other columns than the one after it
            if self._log is not None:
                self._log.finish()
            self._shown = columns
            self._log = IterationLog(self._out(), columns=columns, every=self._every, clock=self._clock)
            self._log.start(self._total)
        self._log.update(_row(step, self._latest, elapsed))

    def _print(self, text: str) -> None:
        if self._live is not None:
            from rich.text import Text

            self._live.console.print(Text(text))
        elif text:
            print(text, file=self._out(), flush=True)

    def _out(self) -> TextIO:
        return sys.stderr if self._stream is None else self._stream


def run_view(step: int, values: Scalars, *, total: int | None = None, elapsed: float = 0.0) -> Any:
    """What a terminal shows of a run: a `rich` renderable of its scalars, and of its constraints if it has any.

    Example:
        >>> type(run_view(3, {"reward": 0.5})).__name__
        'Group'
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = f"step {step}" + (f" of {total}" if total else "") + f"   {elapsed:.0f} s"
    if total and step:
        head += f"   about {elapsed / step * max(0, total - step):.0f} s left"
    numbers = Table(show_edge=False, pad_edge=False)
    shown = [name for name in SHOWN if name in values]
    for name in shown:
        numbers.add_column(name.replace("/", "\n"), justify="right")
    numbers.add_row(*(format_number(values[name], ".4g") for name in shown))
    parts: list[Any] = [Text(head)]
    if shown:
        parts.append(numbers)
    if names := constraint_names(values):
        table = Table(show_edge=False, pad_edge=False)
        table.add_column("constraint")
        for column in ("value", "limit", "violation", "multiplier", ""):
            table.add_column(column, justify="right")
        for name in names:
            line = constraint_line(values, name)
            broken = line["violation"] > 0
            word = Text("broken" if broken else "held", style="bold red" if broken else "green")
            table.add_row(name, *(format_number(value, ".4g") for value in line.values()), word)
        parts += [Text(""), table]
    return Group(*parts)


def evaluation_line(step: int, values: Scalars) -> str:
    """What an evaluation found, as one line; "" where the scalars tell of none.

    Example:
        >>> evaluation_line(20, {"evaluation/reward": 0.5, "evaluation/reward/low": 0.4, "evaluation/reward/high": 0.6})
        'evaluation at step 20: reward 0.5 [0.4, 0.6]'
        >>> evaluation_line(20, {"evaluation/other/long sums/reward": 0.25})
        'evaluation at step 20: reward (long sums) 0.25'
    """
    found = []
    for name, value in values.items():
        inner = name.removeprefix(EVALUATION)
        if inner == name:
            continue
        if inner.startswith(OTHER):
            whose, _, what = inner.removeprefix(OTHER).rpartition("/")
            if what != "reward" or "/" in whose:
                continue
            shown = f"reward ({whose})"
        elif inner.rpartition("/")[2] not in ("value", inner):
            continue  # the ends of an interval are told with it, limits and violations by the table
        else:
            shown = inner.removeprefix(PREFIX).removesuffix("/value")
        ends = [values.get(f"{name}/{end}") for end in ("low", "high")]
        interval = f" [{', '.join(format_number(end, '.4g') for end in ends)}]" if None not in ends else ""
        found.append(f"{shown} {format_number(value, '.4g')}{interval}")
    return f"evaluation at step {step}: {', '.join(found)}" if found else ""


def _columns(values: Scalars) -> tuple[str, ...]:
    """Columns of the log: the first scalars, then value and multiplier of each constraint."""
    wanted = ("reward", "kl_k3", "entropy", "length") if "reward" in values else ("loss", "entropy")
    first = [name for name in wanted if name in values]
    names = constraint_names(values)
    # A constraint may be called like a scalar; it then takes the scalar's place.
    each = [column for name in names for column in (name, f"y {name}")]
    return ("iter", *(name for name in first if name not in names), *each, "time")


def _row(step: int, values: Scalars, elapsed: float) -> Mapping[str, Any]:
    row: dict[str, Any] = {name: value for name, value in values.items() if not name.startswith(PREFIX)}
    for name in constraint_names(values):
        line = constraint_line(values, name)
        row[name], row[f"y {name}"] = line["value"], line["multiplier"]
    return {**row, "iter": step, "time": elapsed}


def _short(value: Any) -> str:
    text = format_number(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= TEXT else f"{text[:TEXT]}... ({len(text)} characters)"
