"""What may go wrong around a training run: rows 51 to 59 where a run's own checkpoints are concerned, and 61 to 88.

Rows whose test stands beside what it tests are listed with it in `test_index.py`.
"""

import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.cli.app import execute
from pdopt.errors import CheckpointError, InvalidOption
from pdopt.training import saving
from pdopt.training.assembly import make_run_mesh
from pdopt.training.constraint_kinds import Constraint
from pdopt.training.constraints import Constraints
from pdopt.training.planning import StepPlan, _judge, plan_step
from pdopt.training.preparation import prepare
from pdopt.training.saving import saved_recipe
from pdopt.training.scoring import Scores
from pdopt.training.step import Plan, policy_step
from pdopt.training.trainer import train
from pdopt.types import Status
from tests.training import tiny
from tests.training.killed import digest

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, quick_compiles):
    """A run of six steps that nothing disturbed; its states 4 and 6 are kept."""
    return train(tiny.recipe(tmp_path_factory.mktemp("run") / "whole"), reporters=[])


@pytest.fixture
def copied(whole, tmp_path):
    """A copy of the run, to be harmed."""
    return shutil.copytree(whole.folder, tmp_path / "copy")


def largest(folder):
    """The file of a state that holds the arrays."""
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(folder):
    path = largest(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))


def forget(folder):
    (folder / "state" / "manifest.ocdbt").unlink()


@pytest.mark.parametrize("harm", [flip, forget])
def test_rows_51_and_52_a_run_goes_on_from_the_state_before_a_damaged_one(whole, copied, harm):
    harm(copied / "state" / "6")
    with pytest.warns(RuntimeWarning, match=r"step 6 is damaged \(.+\); trying the step before it"):
        resumed = train(saved_recipe(copied), reporters=[], resume=True)
    assert (resumed.status, resumed.steps) == (Status.OPTIMAL, 6)
    assert digest(resumed.state) == digest(whole.state), "steps 5 and 6 again, with their prompts and draws"


def test_rows_51_and_52_a_run_without_a_whole_state_says_so(copied):
    for name in ("4", "6"):
        flip(copied / "state" / name)
    with (
        pytest.warns(RuntimeWarning, match="is damaged"),
        pytest.raises(CheckpointError, match=r"none of the steps \[4, 6\] is whole"),
    ):
        train(saved_recipe(copied), reporters=[], resume=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("optimiser.weight_decay=0.5", "optimiser.weight_decay is 0.0 in the checkpoint and 0.5"),
        ("constraints.length.limit=3", r"constraints.length is .*'limit': 2.0.* in the checkpoint and .*'limit': 3.0"),
        ("model.width=32", "model.width is 16 in the checkpoint and 32"),
        ("training.seed=1", "training.seed is 0 in the checkpoint and 1"),
    ],
)
def test_row_55_a_changed_recipe_is_refused_with_both_values(copied, change, words):
    with pytest.raises(CheckpointError, match=f"another run: .*{words}"):
        train(saved_recipe(copied, [change]), reporters=[], resume=True)


@pytest.mark.slow
def test_row_55_other_versions_are_said(copied, monkeypatch):
    versions = {**saving.library_versions(), "jax": "0.0.1"}
    monkeypatch.setattr(saving, "library_versions", lambda: versions)
    with pytest.warns(UserWarning, match=rf"saved with other versions \(jax {jax.__version__} then, 0.0.1 now\)"):
        assert train(saved_recipe(copied), reporters=[], resume=True).steps == 6


def test_row_56_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(CheckpointError, match="which is a file; expected a folder"):
        train(tiny.recipe(tmp_path / "run"), reporters=[])
    assert (tmp_path / "run").read_text() == "mine"


def test_row_59_a_second_run_in_the_folder_is_refused_while_the_first_lives(tmp_path):
    """From within the scorer of the first, so that it does live."""
    recipe, refused = tiny.recipe(tmp_path / "run", training={"steps": 1}), []

    def scorer(sampled):
        if not refused:
            with pytest.raises(CheckpointError, match=f"in use by process {os.getpid()}") as found:
                train(recipe, reporters=[], resume=True)
            refused.append(found)
        return Scores(np.zeros(len(sampled.rows), np.float32), {})

    assert train(recipe, reporters=[], scorer=scorer).status == Status.OPTIMAL
    assert refused


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_row_61_a_signal_ends_the_command_with_its_code_and_the_run_goes_on(whole, tmp_path, capsys, number, code):
    """A reward function sends the signal once: in the first policy step, the third of all."""
    (tmp_path / "sent.py").write_text(
        "import pathlib, signal\n"
        "def reward(*, completions, answer, **columns):\n"
        "    mark = pathlib.Path(__file__).with_name('mark')\n"
        "    if not mark.exists():\n"
        "        mark.touch()\n"
        f"        signal.raise_signal({int(number)})\n"
        "    return [float(c.strip() == a) for c, a in zip(completions, answer)]\n"
    )
    rewards = {"rewards": [{"name": f"{tmp_path / 'sent.py'}:reward"}]}
    (tmp_path / "recipe.toml").write_text(tiny.recipe(tmp_path / "run", objective=rewards).as_toml())
    assert execute(["train", str(tmp_path / "recipe.toml"), "--quiet"]) == code
    out, err = capsys.readouterr()
    assert f"Stopped by a signal after step 3, saved. To go on: pdopt train --resume {tmp_path / 'run'}" in out + err
    assert sorted(path.name for path in (tmp_path / "run" / "state").glob("[0-9]*")) == ["2", "3"]
    resumed = train(saved_recipe(tmp_path / "run"), reporters=[], resume=True)
    assert digest(resumed.state) == digest(whole.state), "the same reward by another name: prompts and draws went on"


@pytest.mark.slow
def test_row_63_after_bad_steps_the_last_good_state_is_saved_and_goes_on(tmp_path):
    """The third step of all is good, the three after it are not (the second is seen one step late); no save was due."""
    given = iter([0.0, np.inf, np.inf, np.inf])

    def scorer(sampled):
        return Scores(np.full(len(sampled.rows), next(given, 0.0), np.float32), {})

    late = {"every": 100}
    recipe = tiny.recipe(tmp_path / "run", checkpoint=late, training={"steps": 6, "max_bad_steps": 2})
    ended = train(recipe, reporters=[], scorer=scorer)
    assert (ended.status, ended.steps, int(ended.state.skipped)) == (Status.NUMERICAL_ERROR, 6, 3)
    assert [path.name for path in (tmp_path / "run" / "state").glob("[0-9]*")] == ["6"]
    good = train(tiny.recipe(tmp_path / "good", checkpoint=late, training={"steps": 1}), reporters=[], scorer=scorer)
    kept = lambda state: jax.tree.leaves((state.trainable, state.optimiser, state.constraints))
    for mine, other in zip(kept(ended.state), kept(good.state), strict=True):
        np.testing.assert_array_equal(mine, other)
    resumed = train(saved_recipe(tmp_path / "run"), reporters=[], scorer=scorer, resume=True)
    assert (resumed.status, resumed.steps, int(resumed.state.bad)) == (Status.OPTIMAL, 8, 0)


# --- one step ---------------------------------------------------------------------------------------------------------

LENGTH = Constraints((Constraint("length", "length", 2.0),))


def masked(seen):
    plan = Plan(LENGTH, tiny.OPTIMISER, tiny.GROUP, tiny.MAX_NEW, loss="dapo", mask_truncated=True)
    return policy_step(plan, tiny.fixed(), tiny.state(LENGTH), seen)


@pytest.mark.slow
def test_row_70_truncated_completions_can_be_left_out():
    """What a truncated row holds, and what is gained by it beyond the mean, then reaches no gradient."""
    seen = tiny.experience()
    cut = ~np.asarray(seen.finished)
    assert 0 < cut.sum() < len(cut)
    made, report = masked(seen)
    assert float(report["truncated"]) == pytest.approx(cut.mean())
    assert float(report["length"]) == pytest.approx(np.asarray(seen.mask).sum(1).mean()), "lengths count them"
    other = jnp.where(cut[:, None], (seen.tokens + 3) % 16, seen.tokens)
    again, _ = masked(seen._replace(tokens=other, log_probs=jnp.where(cut[:, None], -1.0, seen.log_probs)))
    for mine, theirs in zip(jax.tree.leaves(made.trainable), jax.tree.leaves(again.trainable), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert float(report["gradient_norm"]) > 1e-3


def test_row_69_a_batch_without_a_token_that_counts_moves_nothing_but_multipliers():
    made, report = masked(tiny.experience()._replace(finished=jnp.zeros(8, bool)))
    assert (float(report["loss"]), float(report["gradient_norm"]), float(report["skipped"])) == (0, 0, 0)
    for mine, other in zip(jax.tree.leaves(made.trainable), jax.tree.leaves(tiny.model().params), strict=True):
        np.testing.assert_array_equal(mine, other)
    assert float(made.constraints.y[0]) > 0


def test_row_69_rows_of_length_zero_are_left_out_of_the_means():
    seen = tiny.experience()
    mask = seen.mask & (jnp.arange(8) != 2)[:, None]
    made, report = masked(seen._replace(mask=mask))
    assert float(report["length_max"]) == 4
    assert np.isfinite([float(value) for value in report.values()]).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(made.trainable))


# --- before the first step --------------------------------------------------------------------------------------------


def test_row_73_rows_that_the_devices_do_not_divide(tmp_path):
    recipe = tiny.recipe(tmp_path, mesh={"data": 4, "fsdp": 2})
    with pytest.raises(
        InvalidOption, match=r"prompts is 4 and a micro-batch has 16 rows; .* multiples of the 8 .* data 4 x fsdp 2"
    ):
        make_run_mesh(recipe)


@pytest.mark.slow
def test_row_84_a_step_that_does_not_fit_is_refused_before_it_runs(tmp_path):
    prepared = prepare(tiny.recipe(tmp_path / "run"))
    with pytest.raises(InvalidOption, match=r"needs .* GB on a device .* smaller training.micro_rows"):
        plan_step(prepared, available=1000)
    plan = StepPlan(16, 8, 4, kept=60, made=35, available=100, sends={}, parameters=10, trainable=10)
    with pytest.warns(UserWarning, match=r"95% of what there is"):
        _judge(plan)
    _judge(plan._replace(available=200))
    with pytest.raises(InvalidOption, match=r"lora\.rank > 0 needs less"):
        _judge(plan._replace(available=94))


# --- multipliers ------------------------------------------------------------------------------------------------------


def test_row_88_contradictory_constraints_reach_their_caps_and_are_told():
    """A bandit over lengths 0 to 30, held below 10 and above 20 at once: both prices stop at 5, nothing overflows."""
    held_by = Constraints(
        (Constraint("short", "mean", 10.0, y_max=5.0), Constraint("long", "at_least", 20.0, y_max=5.0))
    )
    lengths = jnp.arange(31.0)

    def one(carry, key):
        logits, held = carry
        drawn = jax.random.categorical(key, logits, shape=(8, 8))
        costs = held_by.costs({"short": lengths[drawn], "long": lengths[drawn]}, (8, 8))
        held = held_by.update(held, held_by.violations(costs))
        y = held_by.shown(held)
        advantage = -jnp.sum(y[:, None, None] * (costs - costs.mean((1, 2), keepdims=True)), axis=0)
        score = jax.nn.one_hot(drawn, 31) - jax.nn.softmax(logits)
        logits += 0.01 * jnp.mean(advantage[..., None] * score, (0, 1))
        return (logits, held), (held.y, costs)

    start = (jnp.zeros(31), held_by.init())
    (logits, held), (y, costs) = jax.lax.scan(one, start, jax.random.split(jax.random.key(0), 200))
    report = held_by.report(held, costs[-1])
    assert all(bool(line.capped) for line in report.values()), "unsatisfiable together"
    assert all(float(line.violation) > 0 for line in report.values())
    assert np.isfinite(logits).all()
    assert float(y.max()) == 5.0


def test_row_87_a_violation_that_is_not_a_number_leaves_the_multiplier():
    held_by = Constraints((Constraint("cost", "mean", 0.5, y_max=3.0),))
    held = held_by.update(held_by.init(), jnp.array([0.2]))
    again = held_by.update(held, jnp.array([jnp.nan]))
    assert float(again.y[0]) == float(held.y[0]) > 0
    assert float(held_by.update(held, jnp.array([jnp.inf])).y[0]) in (3.0, float(held.y[0]))
