"""What identifies a run, and when it is saved; resuming itself is tested with `run`."""

import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.errors import CheckpointError
from pdopt.methods.pdhg import PDHG
from pdopt.problems.linear import LinearProgram
from pdopt.run import run
from pdopt.saving import Saver, open_folder, settings


class Folder:
    """Checkpoints that only note the steps."""

    def __init__(self):
        self.steps = []

    def save(self, step, state):
        self.steps.append(step)
        return True


class Carry:
    def __init__(self, iterations):
        self.iterations = np.int32(iterations)


def test_settings_are_json():
    found = settings(PDHG(every=32))
    assert (found["type"], found["every"], found["acceleration"]["type"]) == ("PDHG", 32, "Halpern")
    assert settings(jnp.arange(2)) == [0, 1]
    assert settings(len) == repr(len)


def test_a_save_every_so_many_seconds_and_no_step_twice():
    folder = Folder()
    saver = Saver(folder, 10.0, clock=lambda: 100.0)
    for step, now in ((1, 105.0), (2, 110.0), (3, 119.0), (4, 125.0), (4, 136.0)):
        saver.look(Carry(step), now)
    assert folder.steps == [2, 4]


def test_no_folder_is_no_context():
    with open_folder(None, None, None, False) as folder:
        assert folder is None


def test_a_refused_folder_is_not_left_locked(tmp_path):
    lp = LinearProgram([1.0], [[1.0]], [1.0], [2.0], [0.0], [3.0], dtype=np.float32)
    run(lp, max_iterations=64, checkpoint=tmp_path)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="already holds a checkpoint"):
            run(lp, checkpoint=tmp_path)
    with open_folder(tmp_path, lp, PDHG(), True) as folder:
        assert folder is not None
