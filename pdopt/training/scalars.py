"""What reporters are told: numbers by flat names, and samples; how a constraint's numbers are named.

A scalar of a constraint is `constraint/<name>/<field>`, one of an evaluation has `evaluation/` before its name.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Scalars = Mapping[str, Any]
Samples = Sequence[Mapping[str, Any]]

# What is shown of a constraint, in this order; other fields of the same prefix are only recorded.
FIELDS = ("value", "limit", "violation", "multiplier")
PREFIX = "constraint/"
# Numbers of prompts of another kind (`evaluation.others`) are `evaluation/other/<name>/<what is told of them>`.
OTHER = "other/"


def plain(values: Scalars) -> dict[str, float | int | bool]:
    """Scalars as Python numbers, whatever array they were.

    Raises:
        TypeError: a value that is not one number.

    Example:
        >>> import numpy as np
        >>> plain({"reward": np.float32(0.5), "tokens": 3})
        {'reward': 0.5, 'tokens': 3}
    """
    made = {}
    for name, value in values.items():
        if hasattr(value, "item"):
            value = value.item()
        if not isinstance(value, bool | int | float):
            raise TypeError(f"scalar {name!r} is {value!r}; expected one number")
        made[name] = value
    return made


def constraint_names(values: Scalars) -> list[str]:
    """Names of the constraints that scalars tell of, in order of appearance; a name may hold "/" itself.

    Example:
        >>> constraint_names({"reward": 1, "constraint/length/value": 20, "constraint/length/limit": 24})
        ['length']
    """
    inner = [name.removeprefix(PREFIX) for name in values if name.startswith(PREFIX)]
    return list(dict.fromkeys(name.rpartition("/")[0] for name in inner if "/" in name))


def constraint_line(values: Scalars, name: str) -> dict[str, float]:
    """The shown fields of one constraint, NaN where one is not told."""
    return {field: values.get(f"{PREFIX}{name}/{field}", math.nan) for field in FIELDS}
