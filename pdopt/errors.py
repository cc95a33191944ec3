"""Errors that are raised before compilation: each names the argument, what was seen and what was expected."""

import difflib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class PdoptError(Exception):
    """Base of every error this library raises on purpose."""


class InvalidProblem(PdoptError, ValueError):
    """Problem data that cannot be a problem: wrong shape, NaN, infinity where a number is needed."""


class InvalidOption(PdoptError, ValueError):
    """A setting outside its range, or one that does not exist."""


class UnsupportedProblem(PdoptError, TypeError):
    """A method was asked to solve a problem that offers no view it can consume."""


class InvalidFile(PdoptError, ValueError):
    """A file that cannot be read as what it claims to be; the message names the file and, where known, the line."""

    def __init__(self, path: str | Path, message: str, line: int | None = None) -> None:
        self.path, self.line = Path(path), line
        where = f"{path}, line {line}" if line is not None else f"{path}"
        super().__init__(f"{where}: {message}")


class CheckpointError(PdoptError, RuntimeError):
    """A checkpoint that is damaged, locked, or belongs to another problem or configuration."""


def require_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...], because: str) -> None:
    """Raise `InvalidProblem` unless `shape == expected`.

    Example:
        >>> require_shape("c", (3,), (4,), "A has 4 columns")
        Traceback (most recent call last):
        ...
        pdopt.errors.InvalidProblem: c has shape (3,); expected (4,) because A has 4 columns
    """
    if tuple(shape) != tuple(expected):
        raise InvalidProblem(f"{name} has shape {tuple(shape)}; expected {tuple(expected)} because {because}")


def require_range(name: str, value: Any, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    """Raise `InvalidOption` unless `low <= value <= high` (`low < value` with `open_low`); NaN never passes."""
    number = float(value)
    inside = (low < number if open_low else low <= number) and number <= high
    if not inside:
        left = "(" if open_low else "["
        raise InvalidOption(f"{name} is {value}; expected a number in {left}{low:g}, {high:g}]")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InvalidOption:
    """The error for a name that does not exist, with the nearest one that does."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return InvalidOption(f"unknown {kind} {name!r}{hint} (known: {', '.join(known)})")
