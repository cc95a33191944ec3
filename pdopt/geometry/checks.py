"""Checks of parameters on the host, before anything is compiled; traced values pass, as they cannot be looked at."""

from typing import Any

import jax
import jax.core
import numpy as np

from pdopt.errors import InvalidOption, InvalidProblem


def concrete(*values: Any) -> bool:
    """Whether all values are numbers that can be looked at now.

    Example:
        >>> concrete(1.0, np.ones(2))
        True
        >>> bool(jax.jit(lambda x: x * concrete(x))(1.0))
        False
    """
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def require_no_nan(**values: Any) -> None:
    """Raise `InvalidProblem` where a value contains NaN.

    Example:
        >>> require_no_nan(lower=np.array([0.0, np.nan]))
        Traceback (most recent call last):
        ...
        pdopt.errors.InvalidProblem: lower has 1 NaN at index 1; expected numbers
    """
    for name, value in values.items():
        if concrete(value):
            bad = np.flatnonzero(np.isnan(np.asarray(value, dtype=float)))
            if bad.size:
                raise InvalidProblem(f"{name} has {bad.size} NaN at index {bad[0]}; expected numbers")


def require_order(lower_name: str, lower: Any, upper_name: str, upper: Any) -> None:
    """Raise `InvalidProblem` unless `lower <= upper`, neither bound is NaN and neither excludes every number.

    Example:
        >>> require_order("lower", 3.0, "upper", 1.0)
        Traceback (most recent call last):
        ...
        pdopt.errors.InvalidProblem: lower is 3.0 and upper is 1.0 at index 0; expected lower <= upper
    """
    require_no_nan(**{lower_name: lower, upper_name: upper})
    if not concrete(lower, upper):
        return
    try:
        low, high = np.broadcast_arrays(np.asarray(lower, dtype=float), np.asarray(upper, dtype=float))
    except ValueError as error:
        shapes = f"{lower_name} has shape {np.shape(lower)}; {upper_name} has shape {np.shape(upper)}"
        raise InvalidProblem(f"{shapes}; expected shapes that broadcast") from error
    bad = np.flatnonzero((low > high) | (low == np.inf) | (high == -np.inf))
    if bad.size:
        low_bad, high_bad = low.ravel()[bad[0]], high.ravel()[bad[0]]
        what = f"{lower_name} <= {upper_name}" if low_bad > high_bad else "a number between the two"
        raise InvalidProblem(
            f"{lower_name} is {low_bad} and {upper_name} is {high_bad} at index {bad[0]}; expected {what}"
        )


def require_sign(name: str, value: Any, *, positive: bool = False) -> None:
    """Raise `InvalidOption` unless every entry is finite and >= 0 (> 0 with `positive`).

    Example:
        >>> require_sign("radius", -1.0)
        Traceback (most recent call last):
        ...
        pdopt.errors.InvalidOption: radius is -1.0; expected finite numbers >= 0
    """
    if concrete(value):
        numbers = np.asarray(value, dtype=float)
        inside = (numbers > 0 if positive else numbers >= 0) & np.isfinite(numbers)
        if not inside.all():
            shown = numbers.ravel()[np.flatnonzero(~inside)[0]]
            raise InvalidOption(f"{name} is {shown}; expected finite numbers {'> 0' if positive else '>= 0'}")
