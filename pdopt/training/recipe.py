"""A recipe: everything a training run is, as frozen records; what a file says, with every default filled in.

    read_recipe("arithmetic", ["training.steps=50"])   a shipped name, or a .toml or .yaml file, and changes to it

One section of the file for each record of `sections.py`, where ranges and choices stand beside the fields. What
concerns several fields at once is checked by `resolve`, which also fills in what depends on others.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pdopt.errors import InvalidOption, unknown_name
from pdopt.training.overrides import SUFFIXES, override, read_tables
from pdopt.training.sections import (
    CheckpointConfig,
    ComparisonConfig,
    ConstraintConfig,
    DataConfig,
    EvaluationConfig,
    LoRAConfig,
    MeshConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimiserConfig,
    SamplingConfig,
    TrainingConfig,
)
from pdopt.training.settings import as_table, as_toml, build, option

PUBLISHED = {"dr_grpo": "centred", "rloo": "leave_one_out", "reinforce++": "batch"}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One run. Sections that a file leaves out have their defaults.

    Example:
        >>> Recipe(training=TrainingConfig(steps=3)).objective.loss
        'dapo'
    """

    model: ModelConfig = ModelConfig()
    lora: LoRAConfig = LoRAConfig()
    data: DataConfig = DataConfig()
    sampling: SamplingConfig = SamplingConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    constraints: tuple[ConstraintConfig, ...] = option(())
    optimiser: OptimiserConfig = OptimiserConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    training: TrainingConfig = TrainingConfig()
    comparison: tuple[ComparisonConfig, ...] = option((), may_differ=True)

    def as_toml(self) -> str:
        """The text of a file that `read_recipe` reads back as this recipe."""
        return as_toml({name: table for name, table in as_table(self).items() if table != []}) + "\n"


def make_recipe(tables: Mapping[str, Any], *, loose: bool = False) -> Recipe:
    """The resolved recipe of sections of plain values.

    Raises:
        InvalidOption: an unknown key (the nearest known one is named), a wrong type, a value outside its range, or
            values that do not go together.

    Example:
        >>> make_recipe({"constraints": [{"name": "length", "limit": 24}]}).constraints[0].limit
        24.0
    """
    return resolve(build(Recipe, tables, loose=loose))


def read_recipe(source: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """The resolved recipe of a shipped name or a file, with `section.key=value` changes.

    Raises:
        InvalidFile: no such file, or its syntax. InvalidOption: see `make_recipe`; a name that is not shipped.

    Example:
        >>> read_recipe("arithmetic", ["training.steps=7"]).training.steps
        7
    """
    tables, loose = recipe_tables(source, changes)
    return make_recipe(tables, loose=loose)


def recipe_tables(source: str | Path, changes: Sequence[str] = ()) -> tuple[dict[str, Any], bool]:
    """The changed sections of a shipped name or a file, nothing filled in; and whether numbers may be text in them."""
    tables, loose = read_tables(find_recipe(source))
    return override(tables, changes), loose


def find_recipe(source: str | Path) -> Path:
    """The file of a shipped name, or the path itself."""
    path = Path(source)
    if path.suffix in SUFFIXES or path.exists() or len(path.parts) > 1:
        return path
    if str(source) not in shipped():
        raise unknown_name("recipe", str(source), shipped())
    return Path(str(resources.files("pdopt.training") / "recipes" / f"{source}.toml"))


def shipped() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("pdopt.training") / "recipes"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with every value that depends on others filled in, once they were found to go together.

    Raises:
        InvalidOption: values that contradict each other; the keys are named.
    """
    training, objective = recipe.training, recipe.objective
    if not recipe.model.path and recipe.model.heads % recipe.model.kv_heads:
        raise InvalidOption(f"model.heads is {recipe.model.heads}; expected a multiple of model.kv_heads")
    if objective.loss == "sft" and recipe.constraints:
        raise InvalidOption("objective.loss is 'sft' and there are constraints; expected none: nothing is sampled")
    form = objective.advantage or PUBLISHED.get(objective.loss, "lagrangian")
    if objective.loss != "sft" and form != "batch" and training.group < 2:
        raise InvalidOption(f"training.group is {training.group}; the {form} advantage compares 2 at least")
    rows = training.prompts * training.group
    if objective.minibatches > training.prompts or training.prompts % objective.minibatches:
        raise InvalidOption(
            f"objective.minibatches is {objective.minibatches}; expected a divisor of training.prompts, "
            f"{training.prompts}"
        )
    micro = training.micro_rows
    if micro is not None and (rows // objective.minibatches) % micro:
        raise InvalidOption(
            f"training.micro_rows is {micro}; expected a divisor of the {rows // objective.minibatches} rows of a "
            f"minibatch (training.prompts {training.prompts} x training.group {training.group} / "
            f"objective.minibatches {objective.minibatches})"
        )
    if [n for n in (recipe.mesh.data, recipe.mesh.fsdp, recipe.mesh.tensor) if n == 0]:
        raise InvalidOption("an axis of mesh is 0; expected -1 or a number of devices")
    if too_many := [k for k in recipe.evaluation.k if k > recipe.evaluation.samples]:
        raise InvalidOption(f"evaluation.k has {too_many[0]}; expected at most evaluation.samples")
    rate = recipe.optimiser.learning_rate or (1e-5 if recipe.lora.rank else 1e-6)
    decay = recipe.optimiser.decay_steps or max(1, training.steps * objective.passes * objective.minibatches)
    return dataclasses.replace(
        recipe,
        objective=dataclasses.replace(objective, advantage=form),
        constraints=tuple(_resolved(constraint, recipe) for constraint in recipe.constraints),
        optimiser=dataclasses.replace(recipe.optimiser, learning_rate=rate, decay_steps=decay),
    )


def _resolved(constraint: ConstraintConfig, recipe: Recipe) -> ConstraintConfig:
    """Kind, cost, step and theta filled in (llm_trainer 3.5: what damps is theta times step, 5 here)."""
    full = f"constraints.{constraint.name}"
    dual = recipe.objective.dual
    first = lambda *values: next(value for value in values if value is not None)
    step = first(constraint.step, dual.step, min(1.0, 200 / max(recipe.training.steps, 1)))
    theta = first(constraint.theta, dual.theta, 5 / step if step else 0.0)
    if (constraint.limit is None) == (not constraint.limits):
        raise InvalidOption(f"{full}.limit is {constraint.limit}; expected a number, or limits for the classes")
    if bool(constraint.limits) != bool(constraint.class_column):
        raise InvalidOption(f"{full}.limits and {full}.class_column go together; expected both or neither")
    cost = constraint.cost or constraint.name
    kind = constraint.kind or (cost if cost in ("length", "kl") else "mean")
    return dataclasses.replace(constraint, cost=cost, kind=kind, step=step, theta=theta)


def flat(recipe: Recipe) -> dict[str, tuple[Any, bool]]:
    """`section.key -> (value, whether a resumed run may have another)`; one constraint is one key."""
    found: dict[str, tuple[Any, bool]] = {}
    for section in dataclasses.fields(recipe):
        part = getattr(recipe, section.name)
        if isinstance(part, tuple):
            may_differ = bool(section.metadata.get("may_differ"))
            found |= {f"{section.name}.{item.name}": (as_table(item), may_differ) for item in part}
            continue
        table = as_table(part)
        for field in dataclasses.fields(part):
            found[f"{section.name}.{field.name}"] = (table.get(field.name), bool(field.metadata.get("may_differ")))
    return found
