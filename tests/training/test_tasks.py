"""Generated tasks: the same rows from the same numbers, solvable, parted into splits, and checked by our rewards."""

import json
from fractions import Fraction

import numpy as np
import pytest

from pdopt.errors import InvalidOption
from pdopt.training.draws import Draws, random_order
from pdopt.training.expressions import evaluate
from pdopt.training.reward_functions import countdown as countdown_reward
from pdopt.training.reward_functions import exact_match, math_answer
from pdopt.training.tables import columns_of
from pdopt.training.tasks import TASKS, arithmetic, countdown, held_out, parity, sort, task

ROWS = 60
GOLDEN = {
    "arithmetic": ["20-60=", "70-53=", "69-68="],
    "parity": ["1 0 0 0 1 1", "0 1 1 0 0 1"],
    "order": [7, 0, 2, 4, 3, 5, 6, 1],
}


@pytest.mark.parametrize("name", sorted(TASKS))
def test_rows_depend_on_seed_and_number_alone(name):
    first, again, other = task(name, {"seed": 1}), task(name, {"seed": 1}), task(name, {"seed": 2})
    forwards = [first[i] for i in range(ROWS)]
    backwards = [again[i] for i in reversed(range(ROWS))][::-1]
    assert forwards == backwards
    assert forwards != [other[i] for i in range(ROWS)]
    assert len({row["prompt"] for row in forwards}) > ROWS / 2
    assert all(isinstance(row[key], str) for row in forwards for key in ("prompt", "answer"))
    assert first.identity == again.identity != other.identity
    assert json.loads(json.dumps(first.identity)) == first.identity
    with pytest.raises(IndexError):
        first[-1]


def test_rows_are_the_same_in_every_version():
    # Values of the first release: a change of NumPy or of ours that moves them would spoil every resumed run.
    assert [arithmetic(operations="+-")[i]["prompt"] for i in (0, 1, 10**12)] == GOLDEN["arithmetic"]
    assert [parity(length=6, seed=5)[i]["prompt"][10:-1] for i in range(2)] == GOLDEN["parity"]
    assert random_order(8, 3, 1).tolist() == GOLDEN["order"]


@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_reference_answers_are_right(name):
    made = task(name, {"split": "train"})
    rows = [made[i] for i in range(ROWS)]
    reward = countdown_reward() if name == "countdown" else exact_match()
    assert reward(completions=[row["answer"] for row in rows], **columns_of(rows)) == [1.0] * ROWS


def test_arithmetic_agrees_with_exact_evaluation():
    made = arithmetic(digits=(1, 3), operations="+-*/", template="What is {expression}?")
    rows = [made[i] for i in range(200)]
    texts = [row["prompt"].removeprefix("What is ").removesuffix("?") for row in rows]
    assert [evaluate(text).value for text in texts] == [Fraction(row["answer"]) for row in rows]
    assert {sign for text in texts for sign in "+-*/" if sign in text} == set("+-*/")
    assert [row["difficulty"] for row in rows] == [
        max(len(str(int(n))) for n in evaluate(text).numbers) for text in texts
    ]
    assert math_answer()(completions=[f"It is {row['answer']}." for row in rows], **columns_of(rows)) == [1.0] * 200
    longer = arithmetic(digits=1, operations="+*", terms=4)[3]["prompt"]
    assert len(evaluate(longer.rstrip("=")).numbers) == 4


def test_operands_have_the_digits_asked_for():
    made = arithmetic(digits=3)
    operands = [int(n) for i in range(100) for n in evaluate(made[i]["prompt"].rstrip("=")).numbers]
    assert 100 <= min(operands) <= max(operands) <= 999
    assert max(operands) - min(operands) > 700


def test_countdown_keeps_to_its_ranges():
    made = countdown(numbers=(2, 5), high=12, target=(5, 30))
    rows = [made[i] for i in range(ROWS)]
    assert {len(row["numbers"]) for row in rows} == {2, 3, 4, 5}
    assert all(5 <= row["target"] <= 30 and 1 <= min(row["numbers"]) <= max(row["numbers"]) <= 12 for row in rows)
    assert all(str(row["target"]) in row["prompt"] for row in rows)


def test_splits_share_no_prompt_and_cover_all_of_them():
    space = {f"{a}+{b}=" for a in range(10) for b in range(10)}
    train, test = (arithmetic(digits=1, split=split) for split in ("train", "test"))
    prompts = {split: {made[i]["prompt"] for i in range(1500)} for split, made in (("train", train), ("test", test))}
    assert prompts["train"].isdisjoint(prompts["test"])
    assert prompts["train"] | prompts["test"] == space
    assert prompts["test"] == {prompt for prompt in space if held_out(prompt)}
    assert 3 <= len(prompts["test"]) <= 25


def test_a_task_without_a_row_says_so():
    with pytest.raises(InvalidOption, match="has no row 0 in split None"):
        countdown(numbers=2, high=2, target=(50, 60), operations="+")[0]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("arithmetic", {"digits": 0}, r"digits is 0; expected an integer in \[1, 50\]"),
        ("arithmetic", {"digits": (3, 2)}, "least <= most"),
        ("arithmetic", {"operations": "+^"}, "operations is"),
        ("arithmetic", {"operations": "+/", "terms": 3}, "terms is 3 with divisions"),
        ("arithmetic", {"template": "no field"}, r"lacks \{expression\}"),
        ("arithmetic", {"template": "{expression} {x}"}, "cannot be filled"),
        ("arithmetic", {"seed": -1}, "seed is -1"),
        ("arithmetic", {"split": "valid"}, "split is 'valid'"),
        ("sort", {"lenght": 3}, "task sort refuses the settings"),
        ("sorting", {}, "unknown task 'sorting'; did you mean 'sort'"),
        ("sort", {"length": True}, "length is True"),
    ],
)
def test_wrong_settings_are_refused(name, settings, message):
    with pytest.raises(InvalidOption, match=message):
        task(name, settings)


def test_draws_are_uniform_and_orders_are_permutations():
    draws = Draws(0, 0)
    counts = np.bincount([draws.below(7) for _ in range(7000)], minlength=7)
    assert ((counts - 1000) ** 2 / 1000).sum() < 22.5  # chi-square, 6 degrees of freedom, one in a thousand
    assert sorted(random_order(100, 0, 0)) == list(range(100))
    assert len({tuple(random_order(20, seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert {draws.digits(1) for _ in range(200)} == set(range(10))
    assert sort(length=1)[0]["answer"] in sort(length=1)[0]["prompt"]
