"""Recipes as tables of text: read from TOML or YAML, and changed by `section.key=value` from a command line.

Files are data: TOML by the standard library (repeated keys are its own error), YAML by a loader that makes nothing but
plain values and refuses a repeated key, which PyYAML lets win in silence.
"""

import tomllib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pdopt.errors import InvalidFile, InvalidOption, unknown_name

SUFFIXES = (".toml", ".yaml", ".yml")


def read_tables(path: str | Path) -> tuple[dict[str, Any], bool]:
    """The sections of a recipe's file, and whether numbers may be text in it (YAML).

    Raises:
        InvalidFile: no such file, another suffix, wrong syntax, a repeated key.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InvalidFile(path, f"a recipe's name ends in one of {', '.join(SUFFIXES)}")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InvalidFile(path, "no such file; expected a recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidFile(path, f"cannot be read: {error}") from error
    if path.suffix == ".toml":
        try:
            return tomllib.loads(text), False
        except tomllib.TOMLDecodeError as error:
            raise InvalidFile(path, f"not TOML: {error}") from error
    return _from_yaml(path, text), True


def _from_yaml(path: Path, text: str) -> dict[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):
        """Plain values only, each key once."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            seen = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if key in seen:
                    raise InvalidFile(path, f"key {key!r} is repeated", key_node.start_mark.line + 1)
                seen.add(key)
            return super().construct_mapping(node, deep)

    loader = Loader(text)
    try:
        found = loader.get_single_data()
    except yaml.YAMLError as error:
        raise InvalidFile(path, f"not YAML of plain values: {' '.join(str(error).split())}") from error
    finally:
        loader.dispose()
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidFile(path, f"holds a {type(found).__name__}; expected sections")
    return found


def override(tables: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """The tables with `section.key=value` applied in order; a value is read as TOML, else it is text.

    `constraints.NAME.key=value` changes one constraint of a list by its name; `constraints=[...]` replaces the list.

    Raises:
        InvalidOption: no `=`, no section, or a constraint that is not there.

    Example:
        >>> override({"data": {"seed": 0}}, ["data.seed=3", "data.source=sort", "mesh.fsdp=2"])
        {'data': {'seed': 3, 'source': 'sort'}, 'mesh': {'fsdp': 2}}
    """
    made: dict[str, Any] = {name: _copied(value) for name, value in tables.items()}
    for change in changes:
        name, equals, text = change.partition("=")
        path = [part.strip() for part in name.split(".")]
        if not equals or not all(path):
            raise InvalidOption(f"--set is {change!r}; expected section.key=value")
        _put(made, path, _value(text.strip()), change)
    return made


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _put(made: dict[str, Any], path: list[str], value: Any, change: str) -> None:
    place: Any = made
    for depth, part in enumerate(path[:-1]):
        if isinstance(place, list):
            place = _member(place, part, ".".join(path[:depth]))
        else:
            place = place.setdefault(part, {})
        if not isinstance(place, dict | list):
            raise InvalidOption(f"--set is {change!r}, but {'.'.join(path[: depth + 1])} is a value, not a section")
    if isinstance(place, list):
        raise InvalidOption(f"--set is {change!r}; expected {'.'.join(path[:-1])}.NAME.key=value")
    place[path[-1]] = value


def _member(items: list[Any], name: str, where: str) -> Any:
    """The table called `name` in a list of tables; a bare name in the list becomes a table first."""
    for i, item in enumerate(items):
        if item == name:
            items[i] = {"name": name}
        if isinstance(items[i], dict) and items[i].get("name") == name:
            return items[i]
    known = [item if isinstance(item, str) else str(item.get("name")) for item in items if isinstance(item, str | dict)]
    raise unknown_name(where, name, known)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
