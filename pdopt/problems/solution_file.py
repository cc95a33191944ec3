"""Solutions of linear programs as files: readable text, or JSON; every float64 comes back bit by bit.

    pdopt solution 1
    model afiro
    status optimal
    objective -464.7531428571429
    ...
    columns 32               then a line a column:   name  value  reduced_cost
    rows 27                  then a line a row:      name  activity  multiplier

Names may hold blanks: the two numbers are the last two words of a line. `-` stands for what the solution lacks.
A file whose name ends in `.json` holds the same fields, with infinities and NaN as strings.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pdopt.errors import InvalidFile, InvalidProblem, require_shape
from pdopt.problems.mps import Model
from pdopt.runtime.files import write_atomic
from pdopt.runtime.precision import precision_scope
from pdopt.types import Residuals, Solution, Status

_TITLE = "pdopt solution 1"
_NUMBERS = ("objective", "dual_objective", *Residuals._fields)


class SolutionRecord(NamedTuple):
    """A solution on the host, with names: arrays are float64; `reduced_costs` is None when the solution had none.

    `numbers` maps `objective`, `dual_objective` and the fields of `Residuals` (`primal`, `dual`, `gap`, ...) to floats.
    """

    model: str
    status: Status
    iterations: int
    numbers: dict[str, float]
    column_names: tuple[str, ...]
    x: np.ndarray
    reduced_costs: np.ndarray | None
    row_names: tuple[str, ...]
    activity: np.ndarray
    y: np.ndarray


def write_solution(path: str | Path, model: Model, solution: Solution) -> None:
    """Write a solution of `model` to `path` (JSON when it ends in `.json`), whole or not at all.

    Args:
        path: the file; an existing one is replaced.
        model: names, and the matrix for the rows' activities `A x`.
        solution: x `(n,)`, y `(m,)`; the reduced costs are its certificate's `z`, where there is one.

    Raises:
        InvalidProblem: shapes that do not fit the model, or a name that a line cannot hold.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> from pdopt.problems.linear import LinearProgram
        >>> from pdopt.types import Pair
        >>> lp = LinearProgram(np.float32([1]), np.float32([[2]]), np.float32([4]), np.float32([9]))
        >>> pair = Pair(np.float32([2]), np.float32([0.5]))
        >>> found = Solution(pair, Status.OPTIMAL, 2.0, 2.0, Residuals(*[0.0] * 7), 10)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "one.sol"
        ...     write_solution(file, Model(lp, "one", ("r",), ("x",), 0, ()), found)
        ...     print(*file.read_text().splitlines()[-4:], sep="; ")
        ...     read_solution(file).x
        columns 1; x 2.0 -; rows 1; r 4.0 0.5
        array([2.])
    """
    found = describe(model, solution)
    text = _as_json(found) if str(path).lower().endswith(".json") else _as_text(found)
    write_atomic(path, text)


def read_solution(path: str | Path) -> SolutionRecord:
    """Read what `write_solution` wrote; `x` and `y` make a warm start.

    Raises:
        InvalidFile: missing, cut short or not such a file; with the line where known.

    Example:
        >>> read_solution("absent.sol")
        Traceback (most recent call last):
        ...
        pdopt.errors.InvalidFile: absent.sol: no such file
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InvalidFile(path, "no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidFile(path, f"cannot be read ({error})") from error
    return _from_json(path, text) if str(path).lower().endswith(".json") else _from_text(path, text)


def describe(model: Model, solution: Solution) -> SolutionRecord:
    """The record of a solution: arrays on the host in float64, activities computed, names filled in."""
    m, n = model.problem.shape
    require_shape("x", np.shape(solution.x), (n,), f"the model has {n} columns")
    require_shape("y", np.shape(solution.y), (m,), f"the model has {m} rows")
    with precision_scope(model.problem):
        activity = np.asarray(model.problem.A.matvec(solution.x), np.float64)
    z = getattr(solution.certificate, "z", None)
    values = (solution.objective, solution.dual_objective, *solution.residuals)
    return SolutionRecord(
        model.name,
        solution.reason,
        int(solution.iterations),
        {name: float(value) for name, value in zip(_NUMBERS, values)},
        model.column_names or tuple(f"C{j + 1}" for j in range(n)),
        np.asarray(solution.x, np.float64),
        None if z is None else np.asarray(z, np.float64),
        model.row_names or tuple(f"R{i + 1}" for i in range(m)),
        activity,
        np.asarray(solution.y, np.float64),
    )


def _as_text(found: SolutionRecord) -> str:
    for name in found.column_names + found.row_names:
        if name != name.strip() or len(name.splitlines()) != 1:
            raise InvalidProblem(f"the name {name!r} does not fit on a line; write .json instead")
    z = ["-"] * len(found.x) if found.reduced_costs is None else [repr(v) for v in found.reduced_costs.tolist()]
    return "\n".join([
        _TITLE,
        f"model {' '.join(found.model.split())}",
        f"status {found.status}",
        f"iterations {found.iterations}",
        *(f"{name} {value!r}" for name, value in found.numbers.items()),
        f"columns {len(found.x)}",
        *(f"{name} {value!r} {cost}" for name, value, cost in zip(found.column_names, found.x.tolist(), z)),
        f"rows {len(found.y)}",
        *(f"{name} {value!r} {dual!r}"
          for name, value, dual in zip(found.row_names, found.activity.tolist(), found.y.tolist())),
        "",
    ])  # fmt: skip


class _Lines:
    """Lines of a text solution, read in order; each failure names the line."""

    def __init__(self, path: str | Path, text: str) -> None:
        self.path, self.lines, self.number = path, text.split("\n"), 0

    def error(self, message: str) -> InvalidFile:
        return InvalidFile(self.path, message, self.number)

    def next(self) -> str:
        if self.number >= len(self.lines) - 1:  # what follows the last line end is not a line
            raise self.error("the file ends here: it was cut short")
        self.number += 1
        return self.lines[self.number - 1]

    def end(self) -> None:
        if self.lines[self.number :] != [""]:
            raise self.error("expected the end of the file after this line")

    def field(self, name: str) -> str:
        word, _, rest = self.next().partition(" ")
        if word != name:
            raise self.error(f"found {word!r}, expected {name!r}")
        return rest

    def number_of(self, text: str, kind: type = float) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise self.error(f"{text!r} is not a number") from None

    def table(self, name: str) -> tuple[tuple[str, ...], np.ndarray, np.ndarray | None]:
        names, first, second = [], [], []
        for _ in range(self.number_of(self.field(name), int)):
            words = self.next().rsplit(" ", 2)
            if len(words) != 3:
                raise self.error("expected a name and two numbers")
            names.append(words[0])
            first.append(self.number_of(words[1]))
            second.append(None if words[2] == "-" else self.number_of(words[2]))
        lacking = any(value is None for value in second)
        return tuple(names), np.array(first, np.float64), None if lacking else np.array(second, np.float64)


def _from_text(path: str | Path, text: str) -> SolutionRecord:
    lines = _Lines(path, text)
    if lines.next() != _TITLE:
        raise lines.error(f"not a solution file: its first line is not {_TITLE!r}")
    model = lines.field("model")
    status = _status(path, lines.field("status"))
    iterations = lines.number_of(lines.field("iterations"), int)
    numbers = {name: lines.number_of(lines.field(name)) for name in _NUMBERS}
    columns, x, z = lines.table("columns")
    rows, activity, y = lines.table("rows")
    if y is None:
        raise lines.error("a row lacks its multiplier")
    lines.end()
    return SolutionRecord(model, status, iterations, numbers, columns, x, z, rows, activity, y)


def _status(path: str | Path, name: Any) -> Status:
    known = {str(status): status for status in Status}
    if name not in known:
        raise InvalidFile(path, f"unknown status {name!r}; expected one of {', '.join(known)}")
    return known[name]


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _as_json(found: SolutionRecord) -> str:
    fields: dict[str, Any] = {"format": _TITLE, **found._asdict(), "status": str(found.status)}
    fields["numbers"] = {name: _plain(value) for name, value in found.numbers.items()}
    for name, value in fields.items():
        if isinstance(value, np.ndarray):
            fields[name] = [_plain(v) for v in value.tolist()]
    return json.dumps(fields, indent=1, allow_nan=False) + "\n"


def _from_json(path: str | Path, text: str) -> SolutionRecord:
    try:
        fields = json.loads(text)
        if fields.pop("format") != _TITLE:
            raise ValueError("format")
        arrays = {name: None if fields[name] is None else np.array([float(v) for v in fields[name]], np.float64)
                  for name in ("x", "reduced_costs", "activity", "y")}  # fmt: skip
        names = {name: tuple(fields[name]) for name in ("column_names", "row_names")}
        numbers = {name: float(fields["numbers"][name]) for name in _NUMBERS}
        iterations = int(fields["iterations"])
        found = SolutionRecord(**{**fields, **arrays, **names, "numbers": numbers, "iterations": iterations})
    except json.JSONDecodeError as error:
        raise InvalidFile(path, f"not JSON, or cut short ({error.msg})", error.lineno) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidFile(path, f"not a solution file of pdopt ({error!r})") from error
    columns, rows = len(names["column_names"]), len(names["row_names"])
    sizes = {"x": columns, "reduced_costs": columns, "activity": rows, "y": rows}
    for name, values in arrays.items():
        if len(values) != sizes[name] if values is not None else name != "reduced_costs":
            raise InvalidFile(path, f"{name} does not have {sizes[name]} numbers")
    return found._replace(status=_status(path, found.status))
