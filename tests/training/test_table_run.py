"""A run on a table of one's own: classes of prompts with a limit each, whole epochs, and the best state kept."""

import json

import jax
import numpy as np
import pytest

from pdopt.errors import CheckpointError
from pdopt.training.runs import open_run
from pdopt.training.saving import saved_recipe
from pdopt.training.scoring import Scores
from pdopt.training.trainer import train
from tests.training import tiny

pytestmark = pytest.mark.usefixtures("quick_compiles")

ROWS, HELD_OUT = 12, 4  # two batches of four are an epoch


def recipe(folder, table, steps, **sections):
    constraints = [{"name": "length", "limits": [1.0, 20.0], "class_column": "class"}]
    training = {"steps": steps, "supervised_steps": 0}
    data = {"source": str(table), "settings": {}, "held_out": HELD_OUT}
    evaluation = {"every": 2, "samples": tiny.GROUP, "k": [1]}
    sections = {"checkpoint": {"every": 2, "best": "evaluation/reward"}, "evaluation": evaluation, **sections}
    objective = {"dual": {"idle": 1.0}}  # nearly all completions of this policy are equally long
    return tiny.recipe(folder, data=data, training=training, constraints=constraints, objective=objective, **sections)


class Seen:
    """A scorer that notes the rows of every training batch; the reward is the number of tokens."""

    def __init__(self):
        self.rows = []

    def __call__(self, sampled):
        self.rows.append([row["number"] for row in sampled.rows[:: tiny.GROUP]])
        return Scores(np.asarray(sampled.mask).sum(axis=1).astype(np.float32), {})


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "rows.jsonl"
    rows = [{"prompt": f"{i % 10}+{i // 10}=", "answer": "1", "class": i % 2, "number": i} for i in range(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_a_run_saved_at_an_epochs_end_goes_on_with_the_next(table, tmp_path):
    whole_seen, first, second = Seen(), Seen(), Seen()
    whole = train(recipe(tmp_path / "whole", table, 4), reporters=[], scorer=whole_seen)
    train(recipe(tmp_path / "cut", table, 2), reporters=[], scorer=first)
    later = train(saved_recipe(tmp_path / "cut", ["training.steps=4"]), reporters=[], scorer=second, resume=True)
    for a, b in zip(jax.tree.leaves(later.state.trainable), jax.tree.leaves(whole.state.trainable), strict=True):
        np.testing.assert_array_equal(a, b)

    # An evaluation of the four rows apart follows on steps 2 and 4.
    one, two, apart, three, four, again = whole_seen.rows
    assert sorted(one + two) == sorted(three + four), "an epoch has every row"
    assert len({*one, *two}) == ROWS - HELD_OUT, "once"
    assert one + two != three + four, "in another order"
    assert sorted(apart) == sorted(again) == sorted(set(range(ROWS)) - {*one, *two})
    assert first.rows + second.rows == whole_seen.rows

    # Every class has a multiplier of its own, which its own limit moves.
    y = np.asarray(whole.state.constraints.y)
    assert y.shape == (2,)
    assert y[0] > 0
    assert y[1] == 0
    assert whole.metrics["constraint/length[0]/multiplier"] == pytest.approx(y[0])

    best = open_run(tmp_path / "whole", best=True, scorer=whole_seen)
    assert best.step in (2, 4)
    if best.step == 4:
        for a, b in zip(jax.tree.leaves(best.state.trainable), jax.tree.leaves(whole.state.trainable), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_best_metric_that_does_not_exist_is_named(table, tmp_path):
    with pytest.raises(CheckpointError, match=r"checkpoint\.best is 'evaluation/rewards'; the evaluation has"):
        train(
            recipe(tmp_path / "run", table, 2, checkpoint={"every": 2, "best": "evaluation/rewards"}),
            reporters=[], scorer=Seen(),
        )  # fmt: skip
