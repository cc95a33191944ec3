"""Two processes train together and one is stopped or dies: rows 61 and 62."""

import jax
import numpy as np
import pytest

from pdopt.training.scoring import Scores
from pdopt.training.trainer import train
from tests.distributed.group import GroupError, run_group
from tests.training import tiny

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The parameters after the same three steps in one process without a fault."""
    recipe = tiny.shared_recipe(tmp_path_factory.mktemp("alone") / "run")
    scorer = lambda sampled: Scores(np.asarray(sampled.mask).sum(axis=1).astype(np.float32), {})
    return jax.tree.leaves(train(recipe, reporters=[], scorer=scorer).state.trainable)


def assert_the_same(path, leaves):
    with np.load(path) as found:
        for mine, other in zip(found.values(), leaves, strict=True):
            np.testing.assert_allclose(mine, other, atol=1e-5)


def test_row_61_a_signal_to_one_process_stops_both_at_the_same_step(alone, tmp_path, monkeypatch):
    monkeypatch.setenv("PDOPT_TEST_FOLDER", str(tmp_path))
    monkeypatch.setenv("PDOPT_TEST_FAULT", "signal")
    first, second = run_group("preempt", 2, devices=1, deadline=600)
    assert first == second
    assert first[0] in ("steps 2 interrupted", "steps 3 optimal"), "jax agrees on a step that all can reach"
    # jax remembers a preemption as long as a process lives: a run goes on in new ones, as a scheduler starts them.
    monkeypatch.setenv("PDOPT_TEST_FAULT", "")
    assert run_group("preempt", 2, devices=1, deadline=600) == [["steps 3 optimal"]] * 2
    assert_the_same(tmp_path / "many.npz", alone)


def test_row_62_a_killed_process_ends_the_group_and_the_run_goes_on(alone, tmp_path, monkeypatch):
    monkeypatch.setenv("PDOPT_TEST_FOLDER", str(tmp_path))
    monkeypatch.setenv("PDOPT_TEST_FAULT", "kill")
    with pytest.raises(GroupError, match="process 1 ended with code -9"):
        run_group("preempt", 2, devices=1, deadline=600)
    assert (tmp_path / "many" / "state" / "1").is_dir(), "what was saved before"
    monkeypatch.setenv("PDOPT_TEST_FAULT", "")
    first, _ = run_group("preempt", 2, devices=1, deadline=600)
    assert first == ["steps 3 optimal"]
    assert_the_same(tmp_path / "many.npz", alone)
