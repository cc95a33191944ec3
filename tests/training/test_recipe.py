"""Recipes: every refusal names the key in full, and what is written reads back the same."""

import dataclasses
import re
import tomllib

import pytest

from pdopt.errors import InvalidFile, InvalidOption
from pdopt.training import advantages, constraint_kinds, constraints, objectives, sections
from pdopt.training.overrides import override, read_tables
from pdopt.training.recipe import Recipe, find_recipe, flat, make_recipe, read_recipe, shipped

TASK = {"data": {"source": "arithmetic"}}


def made(**sections):
    return make_recipe({**TASK, **sections})


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"optimizer": {}}, "unknown section 'optimizer'; did you mean 'optimiser'"),
        ({"optimiser": {"learning_rat": 1.0}}, "did you mean 'optimiser.learning_rate'"),
        ({"constraints": [{"name": "length", "limt": 3.0}]}, "did you mean 'constraints.length.limit'"),
        ({"constraints": [{"name": "length"}]}, "constraints.length.limit is None; expected a number, or limits"),
        ({"constraints": [{"name": "a", "limits": [1.0]}]}, "constraints.a.limits and constraints.a.class_column go"),
        ({"constraints": [{"name": "a", "limit": 1, "kind": "rat"}]}, "unknown constraints.a.kind 'rat'; did you"),
        (
            {"objective": {"dual": {"move": "projct"}}},
            "unknown objective.dual.move 'projct'; did you mean 'proj",
        ),
        ({"constraints": {"name": "length"}}, "constraints is {'name': 'length'}; expected a list"),
        ({"optimiser": {"learning_rate": "fast"}}, "optimiser.learning_rate is 'fast'; expected a number"),
        ({"optimiser": {"learning_rate": "1e-4"}}, "optimiser.learning_rate is '1e-4'; expected a number"),
        ({"optimiser": {"learning_rate": 0.0}}, r"optimiser.learning_rate is 0.0; expected a number in \(0"),
        ({"optimiser": {"learning_rate": float("nan")}}, "optimiser.learning_rate is nan"),
        ({"training": {"steps": 3.5}}, "training.steps is 3.5; expected a whole number"),
        ({"training": {"steps": True}}, "training.steps is True; expected a whole number"),
        ({"training": {"group": 1}}, "training.group is 1; the lagrangian advantage"),
        ({"training": {"micro_rows": 7}}, "training.micro_rows is 7; expected a divisor of the 128 rows"),
        ({"objective": {"minibatches": 3}}, "objective.minibatches is 3; expected a divisor of training.prompts, 16"),
        ({"objective": {"loss": "dappo"}}, "unknown objective.loss 'dappo'; did you mean 'dapo'"),
        ({"model": "Qwen"}, "model is 'Qwen'; expected a table"),
        ({"model": {"tied": 1}}, "model.tied is 1; expected true or false"),
        ({"model": {"heads": 3}}, "model.heads is 3; expected a multiple of model.kv_heads"),
        ({"lora": {"targets": ["q", "w"]}}, r"unknown lora.targets\[1\] 'w'"),
        ({"lora": {"targets": "q"}}, "lora.targets is 'q'; expected a list of a text"),
        ({"mesh": {"fsdp": 0}}, "an axis of mesh is 0"),
        ({"data": {"source": "a", "examples": [{"prompt": "1"}]}}, r"data.examples\[0\].completion is missing"),
        ({"data": {"source": "a", "examples": [["1", "2"]]}}, r"data.examples\[0\] is \['1', '2'\]; expected a table"),
        (
            {"objective": {"loss": "sft"}, "constraints": [{"name": "length", "limit": 1}]},
            "loss is 'sft' and",
        ),
        ({"evaluation": {"k": [16]}}, "evaluation.k has 16; expected at most evaluation.samples"),
        ({"objective": {"rewards": [{"weight": 1.0}]}}, r"objective.rewards\[0\].name is missing; expected a text"),
    ],
)
def test_refusals_name_the_key(sections, words):
    with pytest.raises(InvalidOption, match=words):
        made(**sections)


def test_what_depends_on_others_is_filled_in():
    recipe = made(training={"steps": 800}, constraints=[{"name": "length", "limit": 24}], lora={"rank": 4})
    (length,) = recipe.constraints
    assert (length.step, length.theta, length.kind, length.cost) == (0.25, 20.0, "length", "length")
    assert recipe.optimiser.learning_rate == 1e-5
    assert recipe.optimiser.decay_steps == 800
    assert made().optimiser.learning_rate == 1e-6
    # A longer run of a resolved recipe keeps the schedule and the steps of the first.
    longer = make_recipe(override(tomllib.loads(recipe.as_toml()), ["training.steps=1600"]))
    assert longer.constraints == recipe.constraints
    assert longer.optimiser == recipe.optimiser


def test_the_choices_are_those_of_the_modules_that_read_them():
    """The recipe names them itself, so that reading one needs no JAX."""
    assert set(sections.FORMS) == {*advantages.FORMS, "leave_one_out", "batch"}
    assert set(sections.KINDS) == set(constraint_kinds.KINDS)
    assert set(sections.MOVES) == set(constraints.MOVES)
    assert set(sections.LOSSES) == {*objectives.LOSSES, "sft"}


def test_names_stand_for_tables_and_numbers_for_floats():
    recipe = made(objective={"rewards": ["exact_match", {"name": "format", "weight": 2}]})
    assert [(part.name, part.weight) for part in recipe.objective.rewards] == [("exact_match", 1.0), ("format", 2.0)]


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_read_back_as_written(name):
    recipe = read_recipe(name)
    assert make_recipe(tomllib.loads(recipe.as_toml())) == recipe


def test_strange_texts_are_written_as_they_are():
    recipe = made(
        sampling={"stop": ['a"b\\c\n\t\x01é', ""]}, data={"source": "a", "settings": {"odd key": [1, {"b": 2.5}]}}
    )
    assert make_recipe(tomllib.loads(recipe.as_toml())) == recipe


def test_overrides_reach_sections_and_named_constraints():
    tables = {"constraints": [{"name": "length", "limit": 3.0}, "format"], "data": {"seed": 1}}
    found = override(
        tables, ["constraints.length.limit=5", "constraints.format.limit=0.9", "data.source = sort", "a.b.c=x=y"]
    )
    assert found["constraints"] == [{"name": "length", "limit": 5}, {"name": "format", "limit": 0.9}]
    assert found["data"] == {"seed": 1, "source": "sort"}
    assert found["a"] == {"b": {"c": "x=y"}}
    assert tables["constraints"][0]["limit"] == 3.0, "the tables given are not changed"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("training.steps", "expected section.key=value"),
        ("training..x=1", "expected section.key=value"),
        ("data.seed.x=1", "data.seed is a value, not a section"),
        ("constraints.lenght.limit=1", "unknown constraints 'lenght'; did you mean 'length'"),
        ("constraints.length=1", "expected constraints.NAME.key=value"),
        ("steps=3", "steps is 3; expected a table|unknown section 'steps'"),
    ],
)
def test_overrides_that_mean_nothing(change, words):
    with pytest.raises(InvalidOption, match=words):
        make_recipe(
            override(
                {**TASK, "data": {"seed": 1, "source": "a"}, "constraints": [{"name": "length", "limit": 1.0}]},
                [change],
            )
        )


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.toml", "[data]\nseed = 1\nseed = 2", "not TOML"),
        ("a.toml", "[data", "not TOML"),
        ("a.yaml", "data: {seed: 1, seed: 2}", "line 1: key 'seed' is repeated"),
        ("a.yaml", "data: !!python/object/apply:os.getcwd []", "not YAML of plain values"),
        ("a.yaml", "- 1", "holds a list; expected sections"),
        ("a.json", "{}", "a recipe's name ends in one of .toml, .yaml, .yml"),
        ("a.toml", None, "no such file"),
    ],
)
def test_files_that_are_no_recipes(tmp_path, name, text, words):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InvalidFile, match=words):
        read_tables(tmp_path / name)


def test_yaml_reads_as_toml_does(tmp_path):
    """PyYAML reads 1e-4 as text; where a number is expected it is one."""
    (tmp_path / "a.yaml").write_text(
        "data: {source: arithmetic}\noptimiser: {learning_rate: 1e-4}\nmodel: {width: 16}\n"
    )
    recipe = read_recipe(tmp_path / "a.yaml")
    assert (recipe.optimiser.learning_rate, recipe.model.width) == (1e-4, 16)
    assert recipe == made(optimiser={"learning_rate": 1e-4}, model={"width": 16})
    (tmp_path / "b.yaml").write_text("data: {source: arithmetic}\nmodel: {tied: 'yes'}\n")
    with pytest.raises(InvalidOption, match=r"model\.tied is 'yes'"):
        read_recipe(tmp_path / "b.yaml")


def test_unknown_recipe_names_offer_the_nearest():
    with pytest.raises(InvalidOption, match="unknown recipe 'arithmetics'; did you mean 'arithmetic'"):
        find_recipe("arithmetics")


def test_every_field_is_one_flat_key():
    table = flat(made(constraints=[{"name": "length", "limit": 1}]))
    assert table["training.steps"] == (200, True)
    assert table["optimiser.beta1"] == (0.9, False)
    assert table["constraints.length"][0]["limit"] == 1.0
    parts = [getattr(Recipe(), field.name) for field in dataclasses.fields(Recipe)]
    assert len(table) == sum(len(dataclasses.fields(part)) for part in parts if not isinstance(part, tuple)) + 1
    assert all(re.fullmatch(r"\w+\.\w+", key) for key in table)
