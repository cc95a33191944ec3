"""Frozen dataclasses from what a TOML or YAML file holds, and back; every refusal names the key in full.

    {"optimiser": {"learning_rate": 1}}  ->  Recipe(optimiser=OptimiserConfig(learning_rate=1.0))

A field says what it accepts: its annotation the type, `option(...)` its range or choices. Nothing is guessed: a text is
not a number (in YAML, where 1e-4 is read as text, it may be), a number is not a switch, an unknown key is an error that
offers the nearest known one.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pdopt.errors import InvalidOption, require_range, unknown_name

Made = TypeVar("Made")


def option(
    default: Any = dataclasses.MISSING, low: float | None = None, high: float = math.inf, *, open_low: bool = False,
    choices: Sequence[str] = (), may_differ: bool = False,
) -> Any:  # fmt: skip
    """A dataclass field with what it accepts.

    Args:
        default: value where the file says nothing; none: the key must be given.
        low, high: the range of a number (of each number, for a list); `open_low` leaves `low` itself out.
        choices: the texts that are accepted.
        may_differ: whether a resumed run may have another value than the run that saved.

    Example:
        >>> option(0.5, 0.0, 1.0).metadata["high"]
        1.0
    """
    metadata = {"low": low, "high": high, "open_low": open_low, "choices": tuple(choices), "may_differ": may_differ}
    return dataclasses.field(default=default, metadata=metadata)


def build(cls: Callable[..., Made], values: Any, where: str = "", *, loose: bool = False) -> Made:
    """The dataclass `cls` from a mapping.

    Args:
        values: key -> value; nested mappings for nested dataclasses, lists of mappings for tuples of them.
        where: name of the section, for messages.
        loose: accept text for a number (YAML).

    Raises:
        InvalidOption: not a mapping, an unknown or missing key, a wrong type, a value outside its range.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Size:
        ...     width: int = option(8, 1)
        >>> build(Size, {"width": 4}, "model")
        Size(width=4)
        >>> build(Size, {"widht": 4}, "model")
        Traceback (most recent call last):
        ...
        pdopt.errors.InvalidOption: unknown key 'model.widht'; did you mean 'model.width'? (known: model.width)
    """
    if not isinstance(values, Mapping):
        raise InvalidOption(f"{where or 'the recipe'} is {values!r}; expected a table of keys and values")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls))}
    for key in values:
        if key not in fields:
            known = [_joined(where, name) for name in fields]
            raise unknown_name("key" if where else "section", _joined(where, str(key)), known)
    made = {}
    for name, field in fields.items():
        full = _joined(where, name)
        if name in values:
            made[name] = _accept(values[name], hints[name], field, full, loose)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InvalidOption(f"{full} is missing; expected {_said(hints[name])}")
    return cls(**made)


def _joined(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _accept(value: Any, kind: Any, field: Any, full: str, loose: bool) -> Any:
    """The value as the field's type, or the error that names the key."""
    if dataclasses.is_dataclass(kind):
        return build(typing.cast(Any, kind), value, full, loose=loose)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        kinds = [part for part in inner if part is not type(None)]
        return None if value is None else _accept(value, kinds[0], field, full, loose)
    if origin is tuple:
        return _accept_list(value, inner[0], field, full, loose)
    if kind is dict or origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong(full, value, kind)
        return dict(value)
    made = _scalar(value, kind, loose)
    if made is None:
        raise _wrong(full, value, kind)
    _check(made, field.metadata, full)
    return made


def _accept_list(value: Any, kind: Any, field: Any, full: str, loose: bool) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InvalidOption(f"{full} is {value!r}; expected a list of {_said(kind)}")
    if not dataclasses.is_dataclass(kind):
        return tuple(_accept(item, kind, field, f"{full}[{i}]", loose) for i, item in enumerate(value))
    made = []
    for i, item in enumerate(value):
        # A bare name stands for a table with that name.
        table = {"name": item} if isinstance(item, str) else item
        named = isinstance(table, Mapping) and isinstance(table.get("name"), str)
        place = _joined(full, table["name"]) if named else f"{full}[{i}]"
        made.append(build(typing.cast(Any, kind), table, place, loose=loose))
    return tuple(made)


def _scalar(value: Any, kind: Any, loose: bool) -> Any:
    """The value as a bool, int, float or str; None where it is none of them."""
    if loose and isinstance(value, str) and kind in (int, float):
        try:
            value = kind(value)
        except ValueError:
            return None
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return value if type(value) is kind else None


def _check(value: Any, metadata: Mapping[str, Any], full: str) -> None:
    if metadata.get("choices") and value not in metadata["choices"]:
        raise unknown_name(full, str(value), metadata["choices"])
    if metadata.get("low") is not None and not isinstance(value, str):
        require_range(full, value, metadata["low"], metadata["high"], open_low=metadata["open_low"])


def _said(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", dict: "a table"}
    return names.get(typing.get_origin(kind) or kind, "a table")


def _wrong(full: str, value: Any, kind: Any) -> InvalidOption:
    return InvalidOption(f"{full} is {value!r}; expected {_said(kind)}")


def as_table(config: Any) -> dict[str, Any]:
    """The mapping that `build` reads back; what is None is left out, tuples become lists.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Size:
        ...     width: int = 8
        ...     names: tuple[str, ...] = ("a",)
        ...     limit: float | None = None
        >>> as_table(Size())
        {'width': 8, 'names': ['a']}
    """
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is not None:
            found[field.name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return as_table(value)
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def as_toml(tables: Mapping[str, Any]) -> str:
    """TOML text of sections: each a table of values, or a list of tables.

    Example:
        >>> print(as_toml({"model": {"width": 8}, "constraints": [{"name": "length", "limit": 24.0}]}))
        [model]
        width = 8
        <BLANKLINE>
        [[constraints]]
        name = "length"
        limit = 24.0
    """
    blocks = []
    for name, section in tables.items():
        listed = isinstance(section, list)
        for table in section if listed else [section]:
            head = f"[[{name}]]" if listed else f"[{name}]"
            blocks.append("\n".join([head, *(f"{_key(key)} = {_literal(value)}" for key, value in table.items())]))
    return "\n\n".join(blocks)


def _key(name: str) -> str:
    return name if name and all(c.isascii() and (c.isalnum() or c in "_-") for c in name) else _quoted(name)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_literal(item) for item in value) + "]"
    return str(value)


def _quoted(text: str) -> str:
    short = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return '"' + "".join(short.get(c, c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}") for c in text) + '"'
