"""Rows as arrays: few shapes, right sides, and scores from functions."""

import numpy as np
import pytest

from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.training.data import Position, next_batch
from pdopt.training.feed import completion_columns, open_sources, open_stream, own_rows, prompt_arrays, taught_arrays
from pdopt.training.scoring import Sampled, TextScorer
from pdopt.training.sections import DataConfig
from pdopt.training.tokenizers import byte_tokenizer
from tests.training import tiny


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer(["0123456789+="], vocabulary=18, alphabet="seen")


def batch_of(recipe, tokenizer, size=4):
    sources = open_sources(recipe.data)
    return next_batch(open_stream(recipe.data, sources.train, tokenizer, size), Position())[0]


def test_prompts_are_repeated_side_by_side_and_numbered(tokenizer, tmp_path):
    batch = batch_of(tiny.recipe(tmp_path), tokenizer)
    asked = prompt_arrays(batch, 3, 0, None)
    assert asked.prompts.shape == (12, 8)
    np.testing.assert_array_equal(asked.prompts, np.repeat(asked.once, 3, axis=0))
    np.testing.assert_array_equal(asked.valid, np.repeat(asked.once_valid, 3, axis=0))
    np.testing.assert_array_equal(asked.numbers, np.arange(12))
    assert [row["prompt"] for row in asked.rows[:3]] == [batch.rows[0]["prompt"]] * 3
    assert tokenizer.decode(np.asarray(asked.prompts[3])[np.asarray(asked.valid[3])]) == batch.rows[1]["prompt"]
    assert bool(asked.valid[:, -1].all()), "prompts end in the last column"
    np.testing.assert_array_equal(own_rows(asked.numbers), np.arange(12))


def test_completions_to_learn_end_with_the_end_token(tokenizer, tmp_path):
    recipe = tiny.recipe(tmp_path)
    batch = batch_of(recipe, tokenizer)
    part = taught_arrays(batch, recipe, tokenizer, 1, 0, None)
    for row, tokens, mask in zip(batch.rows, np.asarray(part.tokens), np.asarray(part.mask)):
        assert tokenizer.decode(tokens[mask][:-1]) == row["answer"]
        assert tokens[mask][-1] == 1
    with pytest.raises(InvalidProblem, match=r"sampling\.max_new allows 1"):
        taught_arrays(batch, tiny.recipe(tmp_path, sampling={"max_new": 1}), tokenizer, 1, 0, None)
    with pytest.raises(InvalidProblem, match="has None as 'text'"):
        taught_arrays(batch, tiny.recipe(tmp_path, data={"completion": "text"}), tokenizer, 1, 0, None)


def test_few_widths_are_compiled_for():
    assert {completion_columns(n, 100) for n in range(101)} == {25, 50, 100}


def test_data_are_parted_or_refused(tmp_path):
    train, test, _ = open_sources(DataConfig(source="arithmetic"))
    assert (train.identity["split"], test.identity["split"]) == ("train", "test")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"prompt": "{i}", "answer": "{i}"}}\n' for i in range(10)))
    train, test, _ = open_sources(DataConfig(source=str(path), held_out=3))
    assert (train.size, test.size) == (7, 3)
    assert open_sources(DataConfig(source=str(path), held_out=0)).evaluation is None
    with pytest.raises(InvalidOption, match=r'data\.source is ""; expected a task'):
        open_sources(DataConfig())


def scored(recipe, tokenizer, texts, functions=None):
    ids = [[*tokenizer(text)["input_ids"], 1] for text in texts]
    width = max(map(len, ids))
    tokens = np.array([row + [0] * (width - len(row)) for row in ids])
    mask = np.array([[i < len(row) for i in range(width)] for row in ids])
    rows = [{"prompt": "1+2=", "answer": "3"} for _ in texts]
    return TextScorer(recipe, tokenizer, functions)(Sampled(rows, None, None, tokens, mask, 7))


def test_rewards_are_weighted_and_costs_keep_their_names(tokenizer, tmp_path):
    recipe = tiny.recipe(
        tmp_path,
        objective={"rewards": ["exact_match", {"name": "mine", "weight": 0.5}]},
        constraints=[
            {"name": "length", "limit": 2.0},
            {"name": "right", "cost": "exact_match", "kind": "at_least", "limit": 0.5},
            {"name": "digits", "cost": "format_regex", "options": {"pattern": "\\d+"}, "kind": "at_least", "limit": 1},
        ],
    )  # fmt: skip

    def mine(completions, step, **columns):
        return [None if text == "=" else float(step) for text in completions]

    found = scored(recipe, tokenizer, ["3", "4", "="], {"mine": mine})
    np.testing.assert_allclose(found.rewards, [1 + 3.5, 3.5, 0.0])
    assert set(found.values) == {"right", "digits"}, "length is measured by the step"
    np.testing.assert_allclose(found.values["right"], [1, 0, 0])
    np.testing.assert_allclose(found.values["digits"], [1, 1, 0])
    assert list(found.texts) == ["3", "4", "="]


def test_a_row_without_any_reward_has_none(tokenizer, tmp_path):
    recipe = tiny.recipe(tmp_path, objective={"rewards": ["mine"]}, constraints=[])
    found = scored(recipe, tokenizer, ["3", "4"], {"mine": lambda completions, **_: [None, 1.0]})
    np.testing.assert_array_equal(found.rewards, [np.nan, 1.0])
    with pytest.raises(InvalidOption, match="unknown score function 'mine'"):
        TextScorer(recipe, tokenizer)
