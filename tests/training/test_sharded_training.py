"""Training over a mesh: eight devices make the step of one, every moment lies where its parameter lies."""

import jax
import numpy as np
import pytest

from pdopt.training.preparation import prepare, start
from pdopt.training.trainer import train
from tests.training import tiny

# Four rows a device on two axes; heads are divided over the third.
MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def recipe(folder, **sections):
    optimiser = {"learning_rate": 1e-3, "decay_steps": 4}
    return tiny.recipe(folder, model={"kv_heads": 2}, optimiser=optimiser, **sections)


@pytest.mark.slow
def test_eight_devices_train_as_one(tmp_path):
    one = train(recipe(tmp_path / "one"), reporters=[])
    many = train(recipe(tmp_path / "many", mesh=MESH), reporters=[])
    for name in ("loss", "reward", "constraint/length/value", "constraint/length/multiplier"):
        assert many.metrics[name] == pytest.approx(one.metrics[name], abs=1e-5)
    for a, b in zip(jax.tree.leaves(many.state.trainable), jax.tree.leaves(one.state.trainable), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_a_state_is_split_as_its_parameters_and_multipliers_are_copies(tmp_path):
    prepared = prepare(recipe(tmp_path / "run", mesh=MESH))
    _, state = start(prepared)
    adam = state.optimiser[1]
    for part in (adam.mu, adam.nu):
        for moment, leaf in zip(jax.tree.leaves(part), jax.tree.leaves(state.trainable), strict=True):
            assert moment.sharding == leaf.sharding
    split = [leaf for leaf in jax.tree.leaves(adam.mu) if not leaf.sharding.is_fully_replicated]
    assert len(split) == 8, "all but the three norms"
    assert state.constraints.y.sharding.is_fully_replicated


@pytest.mark.slow
def test_a_run_goes_on_on_another_mesh(tmp_path):
    whole = train(recipe(tmp_path / "whole"), reporters=[])
    from pdopt.training.saving import saved_recipe

    train(recipe(tmp_path / "cut", training={"steps": 2}), reporters=[])
    changes = ["training.steps=4", "mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"]
    # The dual step depends on the planned steps unless it is given; here both are 1.
    found = train(saved_recipe(tmp_path / "cut", changes), reporters=[], resume=True)
    assert found.metrics["loss"] == pytest.approx(whole.metrics["loss"], abs=1e-5)
    for a, b in zip(jax.tree.leaves(found.state.trainable), jax.tree.leaves(whole.state.trainable), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_train_as_one(tmp_path, monkeypatch):
    """Each reads its own rows, samples and scores them; the first alone writes reports and the recipe."""
    from tests.distributed.group import run_group

    monkeypatch.setenv("PDOPT_TEST_FOLDER", str(tmp_path))
    one = train(tiny.shared_recipe(tmp_path / "one"), reporters=[])
    for lines in run_group("train", 2, devices=1, deadline=300):
        numbers = dict(line.split(" ", 1) for line in lines)
        assert (numbers["devices"], numbers["steps"]) == ("2", "3")
        loss, multiplier = map(float, numbers["metrics"].split())
        assert loss == pytest.approx(one.metrics["loss"], abs=1e-5)
        assert multiplier == pytest.approx(one.metrics["constraint/length/multiplier"], abs=1e-5)
    with np.load(tmp_path / "many.npz") as found:
        for a, b in zip(found.values(), jax.tree.leaves(one.state.trainable), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    reported = (tmp_path / "many" / "metrics.jsonl").read_text().splitlines()
    assert len(reported) == 4, "three steps and the evaluation, each once"
