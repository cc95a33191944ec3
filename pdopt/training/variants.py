"""The runs of a comparison: one recipe, and the same with what its entries under `comparison` change.

    [[comparison]]                      [[comparison]]                     [[comparison]]
    name = "plain GRPO"                 name = "fixed weight 0.5"          name = "joint"
    weight = 0                          weight = 0.5                       changes = ["objective.advantage=joint"]

A weight is a multiplier that starts there and never moves, so that a weight of 0 still measures every constraint. An
entry that changes nothing names the recipe itself; without one it is called `ITSELF`. Needs no JAX: what is wrong with
an entry is said before anything is started.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pdopt.errors import InvalidOption
from pdopt.training.overrides import override
from pdopt.training.recipe import Recipe, make_recipe, recipe_tables
from pdopt.training.sections import ComparisonConfig

ITSELF = "the recipe"


class Variant(NamedTuple):
    """One row of a comparison: its name, and the resolved recipe of its runs."""

    name: str
    recipe: Recipe

    @property
    def slug(self) -> str:
        """The name as a folder has it.

        Example:
            >>> Variant("fixed weight 0.5, joint", Recipe()).slug
            'fixed-weight-0.5-joint'
        """
        return re.sub(r"[^A-Za-z0-9.]+", "-", self.name).strip("-.") or "run"


def read_variants(source: str | Path, changes: Sequence[str] = ()) -> list[Variant]:
    """The recipe and its comparisons, the recipe itself first.

    Args:
        source: a shipped name, or a file.
        changes: `section.key=value`, of all of them.

    Raises:
        InvalidFile: no such file, or its syntax.
        InvalidOption: see `make_recipe`, the entry of the comparison is named; two entries of one name, or of names
            that make one folder; nothing to compare.

    Example:
        >>> [variant.name for variant in read_variants("scenes")][:2]
        ['multipliers', 'plain GRPO']
    """
    tables, loose = recipe_tables(source, changes)
    whole = make_recipe(tables, loose=loose)
    alone = {name: section for name, section in tables.items() if name != "comparison"}
    itself = [entry.name for entry in whole.comparison if not _changes(entry, whole)]
    if len(itself) > 1:
        raise InvalidOption(f"comparison has {itself}, which change nothing; expected one name of the recipe at most")
    found = [Variant(itself[0] if itself else ITSELF, make_recipe(alone, loose=loose))]
    for entry in whole.comparison:
        if entry.name not in itself:
            found.append(Variant(entry.name, _changed(alone, entry, whole, loose)))
    if len(found) == 1:
        raise InvalidOption(f"{source} names no comparison; expected [[comparison]] with name, and weight or changes")
    slugs = [variant.slug for variant in found]
    if twice := [variant.name for variant in found if slugs.count(variant.slug) > 1]:
        raise InvalidOption(f"comparison has the names {twice}, which are the same folder; expected different ones")
    return found


def _changed(tables: Mapping[str, Any], entry: ComparisonConfig, whole: Recipe, loose: bool) -> Recipe:
    try:
        return make_recipe(override(tables, _changes(entry, whole)), loose=loose)
    except InvalidOption as error:
        raise InvalidOption(f"comparison.{entry.name}: {error}") from error


def _changes(entry: ComparisonConfig, whole: Recipe) -> list[str]:
    """What an entry asks for, as one would write it after --set."""
    held = [] if entry.weight is None else [c.name for c in whole.constraints]
    fixed = ("step=0.0", "theta=0.0", f"start={entry.weight!r}")
    return [*(f"constraints.{name}.{setting}" for name in held for setting in fixed), *entry.changes]
