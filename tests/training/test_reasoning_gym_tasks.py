"""The adapter to reasoning-gym: rows by number, checkers that do not execute, errors where the package is absent."""

import json
import sys

import pytest

from pdopt.errors import InvalidOption
from pdopt.training.data import Position, PromptStream, next_batch
from pdopt.training.reasoning_gym_tasks import gym_score, reasoning_gym_task
from pdopt.training.rewards import score_table
from pdopt.training.tables import columns_of, open_source


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(InvalidOption, match="pip install reasoning-gym"):
        open_source("reasoning_gym:leg_counting")
    with pytest.raises(InvalidOption, match="its rows are parted by their seed"):
        open_source("reasoning_gym:leg_counting", split="test")


@pytest.fixture
def legs():
    pytest.importorskip("reasoning_gym", reason="the optional package reasoning-gym is not installed")
    return open_source("reasoning_gym:leg_counting", settings={"seed": 3, "size": 50, "max_animals": 4})


def test_rows_by_number(legs):
    again = reasoning_gym_task("leg_counting", seed=3, size=50, max_animals=4)
    other = reasoning_gym_task("leg_counting", seed=4, size=50, max_animals=4)
    assert [legs[i] for i in range(9)] == [again[i] for i in range(9)]
    assert {legs[i]["prompt"] for i in range(50)}.isdisjoint(other[i]["prompt"] for i in range(50))
    assert legs.identity == json.loads(json.dumps(again.identity)) != other.identity
    batch, position = next_batch(PromptStream(legs, lambda text: [1], batch=8), Position())
    assert len(batch.rows) == 8
    assert position == Position(0, 8)
    for number in (-1, 50):
        with pytest.raises(IndexError):
            legs[number]


def test_its_checker_is_a_score_function(legs):
    rows = [legs[i] for i in range(3)]
    texts = [f"<answer>{rows[0]['answer']}</answer>", rf"\boxed{{{rows[1]['answer']}}}", "many"]
    scores = score_table([gym_score(legs)], ["?"] * 3, texts, [[1]] * 3, columns_of(rows))
    assert scores.names == ("leg_counting",)
    assert scores.values[:, 0].tolist() == [1.0, 1.0, 0.0]


def test_checkers_that_may_execute_the_policys_text_are_refused(legs):
    for name in ("countdown", "puzzle24", "n_queens", "spiral_matrix"):
        with pytest.raises(InvalidOption, match=f"checker of {name} may execute what the policy wrote"):
            gym_score(reasoning_gym_task(name))


def test_wrong_settings(legs):
    with pytest.raises(InvalidOption, match="unknown reasoning-gym task 'leg_countin'; did you mean 'leg_counting'"):
        reasoning_gym_task("leg_countin")
    with pytest.raises(InvalidOption, match=r"leg_counting refuses the settings \{'bogus': 1\}"):
        reasoning_gym_task("leg_counting", bogus=1)
    with pytest.raises(InvalidOption, match="size is 0"):
        reasoning_gym_task("leg_counting", size=0)
