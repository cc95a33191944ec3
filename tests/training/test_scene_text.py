"""Scenes as text: the same task as the compiled one, and scores of texts that a policy may write."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.errors import InvalidOption
from pdopt.training import scene_text, scenes
from pdopt.training.draws import Draws
from pdopt.training.tasks import held_out, task

PROMPT = "AHRYkb1>"  # ball A, book H, cup R, lamp Y; the book from the ball; hinted 1, right is 0


def tokens(texts):
    return jnp.asarray([[scene_text.CHARACTERS.index(c) for c in text] for text in texts])


def rows(count, **settings):
    made = task("scenes", settings)
    return [made[i] for i in range(count)]


def test_rows_are_the_task_of_the_compiled_one():
    found = rows(1500, hint=0.9, noise=0.5, leak=0.15)
    prompts, traces = tokens([r["prompt"] for r in found]), tokens([r["trace"] for r in found])
    right = scenes.FIRST_ANSWER + scenes.quadrant(*scenes.asked_cells(prompts))
    assert [str(int(word) - scenes.FIRST_ANSWER) for word in right] == [r["answer"] for r in found]
    assert (prompts[:, 4] != prompts[:, 5]).all()
    assert (prompts[:, 7] == scenes.THINK).all()
    # Five standard deviations of a mean of 1500; scores of the teacher as in the compiled task.
    assert float((prompts[:, 6] == right).mean()) == pytest.approx(0.9, abs=0.04)
    taught = scenes.score(prompts, traces)
    assert float(taught.grounding.mean()) == pytest.approx(0.52, abs=0.05)
    compiled = scenes.score(prompts, scenes.draw_traces(jax.random.key(0), prompts, 0.5, 0.15))
    assert float(taught.consistency.mean()) == pytest.approx(float(compiled.consistency.mean()), abs=0.05)


def test_extreme_teachers():
    perfect = rows(50, noise=0.0, leak=0.0)
    assert (
        scene_text.accuracy(prompts=[r["prompt"] for r in perfect], completions=[r["trace"] for r in perfect])
        == [1.0] * 50
    )
    copying = rows(50, leak=1.0, hint=0.0)
    assert all(r["trace"][3] == r["hinted"] == r["prompt"][6] != r["answer"] for r in copying)


def test_scores_of_texts_are_those_of_tokens():
    texts = ["HA00", "HA01", "AY33", "HB10", "HY11", "bA00", "HA>>"]
    arguments = {"prompts": [PROMPT] * len(texts), "completions": texts, "completion_ids": None, "answer": None}
    expected = scenes.score(tokens([PROMPT]), tokens(texts))
    for name in ("accuracy", "consistency", "grounding"):
        np.testing.assert_array_equal(getattr(scene_text, name)(**arguments), getattr(expected, name))
    assert scene_text.accuracy(**arguments) == [1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("text", ["", "HA0", "HA000", "????", "left", "HA0\n"])
def test_other_texts_earn_no_answer(text):
    arguments = {"prompts": [PROMPT], "completions": [text]}
    assert scene_text.accuracy(**arguments) == [0.0]
    assert scene_text.consistency(**arguments) == [0.0]


def test_a_split_parts_the_prompts_and_a_seed_changes_them():
    train, test = task("scenes", {"split": "train"}), task("scenes", {"split": "test"})
    assert not any(held_out(train[i]["prompt"]) for i in range(20))
    assert all(held_out(test[i]["prompt"]) for i in range(20))
    assert task("scenes", {"seed": 1})[0] != task("scenes", {"seed": 2})[0]
    assert task("scenes")[7] == task("scenes")[7]


def test_errors():
    with pytest.raises(InvalidOption, match=r"leak is 1\.5"):
        task("scenes", {"leak": 1.5})
    with pytest.raises(ValueError, match="'2\\+2=' is no scene"):
        scene_text.accuracy(prompts=["2+2="], completions=["4"])
    row = scene_text.row_maker(0.9, 0.5, 0.15)(Draws(0, 3))
    assert set(row) == {"prompt", "trace", "answer", "hinted"}
