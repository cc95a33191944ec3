"""Looking at concrete data before anything is compiled: each finding names the field, the place and the count."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from pdopt.errors import InvalidProblem


def concrete(value: Any) -> np.ndarray | None:
    """The value on the host, or None when it is traced (or lives on devices of another process)."""
    if isinstance(value, Tracer) or (isinstance(value, jax.Array) and not value.is_fully_addressable):
        return None
    return np.asarray(value)


def _refuse(name: str, bad: np.ndarray, what: str, place: Callable[[int], Any] | None = None) -> None:
    if bad.any():
        first = int(np.argmax(bad))
        index = tuple(int(k) for k in np.unravel_index(first, bad.shape))
        where = place(first) if place is not None else index[0] if len(index) == 1 else index
        count = int(bad.sum())
        raise InvalidProblem(f"{name} has {count} {what} at index {where}" + (" (the first)" if count > 1 else ""))


def check_finite(name: str, value: Any, place: Callable[[int], Any] | None = None) -> None:
    """Raise unless every entry is a finite number; `place` turns an entry's number into what the user knows it by.

    Example:
        >>> check_finite("c", np.array([0.0, 1.0, float("nan")]))
        Traceback (most recent call last):
        ...
        pdopt.errors.InvalidProblem: c has 1 NaN at index 2
    """
    seen = concrete(value)
    if seen is not None:
        _refuse(name, np.isnan(seen), "NaN", place)
        _refuse(name, np.isinf(seen), "infinity", place)


def check_bounds(low_name: str, low: Any, high_name: str, high: Any) -> None:
    """Raise when a bound is NaN or infinite on the wrong side; crossed bounds are left to the solver's status."""
    for name, value, wrong in ((low_name, low, np.inf), (high_name, high, -np.inf)):
        seen = concrete(value)
        if seen is not None:
            _refuse(name, np.isnan(seen), "NaN")
            _refuse(name, seen == wrong, f"{wrong:+g}".replace("inf", "infinity"))
