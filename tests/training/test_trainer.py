"""The loop of a run: it repeats bits, it can be stopped and continued, and a broken batch ends it with a status."""

import json
import random
import signal
import sys
import types

import jax
import numpy as np
import pytest

from pdopt.errors import CheckpointError, InvalidOption
from pdopt.runtime.cache import _OPTIONS, enable_compilation_cache
from pdopt.training.saving import RunFolder, saved_recipe
from pdopt.training.scoring import Scores
from pdopt.training.trainer import train
from pdopt.types import Status
from tests.training import tiny
from tests.training.children import begin, ended, killed
from tests.training.killed import digest

pytestmark = pytest.mark.usefixtures("quick_compiles")


class Notes:
    """A reporter that keeps what it is told, and may do something at a step."""

    def __init__(self, at=None, act=None):
        self.lines, self.at, self.act = [], at, act

    def scalars(self, step, values):
        host = ("seconds", "tokens_per", "programs")
        self.lines.append((step, {k: v for k, v in values.items() if not k.startswith(host)}))
        if step == self.at and self.act is not None:
            self.act()

    def text(self, step, table):
        self.samples = table

    def close(self):
        self.closed = True


def told(*notes):
    return {(step, name): value for note in notes for step, values in note.lines for name, value in values.items()}


def bits(state):
    data = jax.tree.map(
        lambda x: jax.random.key_data(x) if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key) else x, state
    )
    return [np.asarray(leaf) for leaf in jax.tree.leaves(data)]


def assert_same_bits(one, other):
    for a, b in zip(bits(one), bits(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def programs(quick_compiles, tmp_path_factory):
    """A folder of compiled programs, so that child processes compile nothing again."""
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    names = ("jax_compilation_cache_dir", *_OPTIONS)
    before = {name: getattr(jax.config, name) for name in names}
    reset_cache()
    yield enable_compilation_cache(tmp_path_factory.mktemp("programs"))
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, programs):
    """A run that nothing interrupts."""
    notes = Notes()
    return train(tiny.recipe(tmp_path_factory.mktemp("run") / "whole"), reporters=[notes]), notes


def test_a_run_takes_its_steps_and_reports_them(whole):
    trained, notes = whole
    assert (trained.status, trained.steps, int(trained.state.step)) == (Status.OPTIMAL, 6, 6)
    steps = [step for step, _ in notes.lines]
    assert steps == [1, 2, 3, 4, 5, 6, 6], "each step once, in order, and the evaluation"
    assert "supervised/loss" in notes.lines[0][1]
    assert notes.lines[2][1]["constraint/length/limit"] == 2.0
    assert float(trained.state.constraints.y[0]) > 0, "completions of 4 tokens under a limit of 2"
    assert notes.lines[-1][1]["evaluation/length"] == pytest.approx(4, abs=1)
    assert notes.closed
    assert {"prompt", "completion", "reward"} == set(notes.samples[0])
    assert saved_recipe(trained.folder).training.steps == 4
    # The gap between sampling and training is rounding alone: one model serves both.
    assert notes.lines[3][1]["gap"] < 1e-5


@pytest.mark.parametrize("at", [1, 3])
def test_a_stopped_run_goes_on_with_the_same_bits(whole, tmp_path, at):
    """SIGTERM in a supervised step, and in a policy step; the step before a save and after one."""
    first, second = Notes(at, lambda: signal.raise_signal(signal.SIGTERM)), Notes()
    recipe = tiny.recipe(tmp_path / "run")
    stopped = train(recipe, reporters=[first])
    assert (stopped.status, stopped.signal) == (Status.INTERRUPTED, signal.SIGTERM)
    assert at < stopped.steps < 6
    resumed = train(saved_recipe(tmp_path / "run"), reporters=[second], resume=True)
    assert resumed.status == Status.OPTIMAL
    assert_same_bits(resumed.state, whole[0].state)
    assert told(first, second) == told(whole[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_while_the_first_is_saving(whole, tmp_path, monkeypatch, number):
    """A second Ctrl-C ends at once, and what is half written counts for nothing; a repeated SIGTERM changes nothing."""
    save, stop = RunFolder.save, Notes(3, lambda: signal.raise_signal(number))

    def interrupted(folder, step, state, extra):
        started = save(folder, step, state, extra)
        if step > 3:
            signal.raise_signal(number)
        return started

    monkeypatch.setattr(RunFolder, "save", interrupted)
    if number == signal.SIGINT:
        with pytest.raises(KeyboardInterrupt):
            train(tiny.recipe(tmp_path / "run"), reporters=[stop])
    else:
        assert train(tiny.recipe(tmp_path / "run"), reporters=[stop]).status == Status.INTERRUPTED
    monkeypatch.undo()
    resumed = train(saved_recipe(tmp_path / "run"), reporters=[], resume=True)
    assert_same_bits(resumed.state, whole[0].state)


def test_a_run_is_told_to_tensorboard_and_to_wandb(whole, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    recipe = tiny.recipe(tmp_path / "run", training={"reporters": ["tensorboard", "wandb"]})
    trained = train(recipe)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("reward")] == [3, 4, 5, 6]
    last = events.Scalars("constraint/length/multiplier")[-1].value
    assert last == pytest.approx(float(trained.state.constraints.y[0]))
    assert "evaluation/reward" in events.Tags()["scalars"]
    assert [row["step"] for row in fake.rows if "reward" in row] == [3, 4, 5, 6]
    assert fake.config["constraints"][0]["name"] == "length"
    assert fake.finished


class FakeWandb(types.ModuleType):
    """What a reporter asks of wandb, kept."""

    def __init__(self):
        super().__init__("wandb")
        self.rows, self.config, self.finished, self.id = [], {}, False, "abc"

    def init(self, *, config, **more):
        self.config = config
        return self

    def define_metric(self, *names, **more):
        """Nothing to keep."""

    def log(self, row):
        self.rows.append(row)

    def finish(self):
        self.finished = True

    def Table(self, *, columns, data):
        return (columns, data)


def test_a_signal_in_the_middle_of_scoring_ends_the_step_first(tmp_path):
    """The scorer stands for anything between sampling and the update."""

    def scorer(sampled):
        signal.raise_signal(signal.SIGINT)
        return Scores(np.zeros(16, np.float32), {})

    stopped = train(tiny.recipe(tmp_path / "run"), reporters=[], scorer=scorer)
    assert (stopped.status, stopped.signal, stopped.steps) == (Status.INTERRUPTED, signal.SIGINT, 3)
    assert int(stopped.state.step) == 3


def test_steps_that_are_not_finite_end_the_run(tmp_path):
    recipe = tiny.recipe(tmp_path / "run", training={"max_bad_steps": 2})
    trained = train(recipe, reporters=[], scorer=lambda sampled: Scores(np.full(16, np.inf, np.float32), {}))
    assert trained.status == Status.NUMERICAL_ERROR
    assert int(trained.state.skipped) == 3, "two in a row, seen one step late"
    assert float(trained.state.constraints.y[0]) == 0, "multipliers rest"
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trained.state.trainable))


def test_a_folder_with_a_run_is_not_overwritten_and_no_other_run_goes_on_in_it(whole):
    folder = whole[0].folder
    with pytest.raises(InvalidOption, match="holds a run; resume it"):
        train(saved_recipe(folder))
    with pytest.raises(CheckpointError, match=r"another run: objective\.entropy is 0.0 in the checkpoint"):
        train(saved_recipe(folder, ["objective.entropy=0.5"]), resume=True, reporters=[])
    with pytest.raises(CheckpointError, match="another run: data is"):
        train(saved_recipe(folder, ["data.settings={digits=2}"]), resume=True, reporters=[])


def test_metrics_are_whole_lines_and_a_longer_run_adds_to_them(whole, tmp_path):
    """`steps` may differ: six more lines, none twice."""
    recipe = tiny.recipe(tmp_path / "run", training={"steps": 1})
    train(recipe)
    longer = train(saved_recipe(tmp_path / "run", ["training.steps=2"]), resume=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "evaluation/reward" not in line] == [1, 2, 3, 4]
    assert longer.steps == 4


@pytest.mark.parametrize(("kills", "steps"), [(2, 4), pytest.param(20, 60, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_goes_on_with_the_same_bits(whole, programs, tmp_path, kills, steps):
    """SIGKILL at drawn moments: within a step, while a checkpoint is being written; no handler runs."""
    if steps == 4:
        bits = digest(whole[0].state)
    else:
        reported, bits = ended(begin(tmp_path / "whole", programs, steps, 0))
        assert reported == list(range(1, steps + 3))
    draw, seen = random.Random(kills), 0
    for _ in range(kills):
        found = killed(begin(tmp_path / "run", programs, steps, 0.1), draw.randint(0, 2), draw.uniform(0, 0.2))
        if found:
            assert found == list(range(found[0], found[-1] + 1))
            assert found[0] <= seen + 1, "no step is left out"
            assert found[0] >= seen - 2, "it went on from one of the newest checkpoints, which is whole"
            seen = found[-1]
    assert seen > 0
    reported, found = ended(begin(tmp_path / "run", programs, steps, 0))
    assert found == bits
    assert reported == [] or reported[-1] == steps + 2
