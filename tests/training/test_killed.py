"""SIGKILL at any moment: no handler runs, and the run goes on from a whole checkpoint with the same bits."""

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs, shared by all children: only the first compiles."""
    return tmp_path_factory.mktemp("programs")


def begin(folder, cache, steps, pause):
    arguments = [folder, cache, steps, pause]
    command = [sys.executable, "-u", "-m", "tests.training.killed", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ended(child):
    """Steps that were reported, and the digest, of a child that must end well."""
    out, err = child.communicate(timeout=300)
    assert child.returncode == 0, err[-3000:]
    lines = [line.split() for line in out.splitlines()]
    return [int(value) for what, value in lines if what == "step"], next(v for what, v in lines if what == "bits")


def killed(child, after, wait):
    """The steps that a child had reported when it was killed, `wait` seconds after `after` of them."""
    steps, errors = [], []
    drain = threading.Thread(target=lambda: errors.extend(child.stderr))
    drain.start()
    for line in child.stdout:
        what, value = line.split()
        if what == "step":
            steps.append(int(value))
        if len(steps) > after:
            time.sleep(wait)
            child.kill()
            break
    code = child.wait(timeout=300)
    drain.join()
    child.stdout.close(), child.stderr.close()
    assert code in (0, -signal.SIGKILL), "".join(errors)[-3000:]
    return steps


@pytest.mark.parametrize(("kills", "steps"), [(2, 4), pytest.param(20, 60, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_goes_on_with_the_same_bits(tmp_path, cache, kills, steps):
    """Moments are drawn: within a step, while a checkpoint is being written, between its parts."""
    reported, bits = ended(begin(tmp_path / "whole", cache, steps, 0))
    assert reported == list(range(1, steps + 3))
    draw, seen = random.Random(kills), 0
    for _ in range(kills):
        found = killed(begin(tmp_path / "run", cache, steps, 0.1), draw.randint(0, 2), draw.uniform(0, 0.2))
        # It went on from a whole checkpoint: of the last steps at most those are made again that were still in flight.
        if found:
            assert found[0] <= seen + 1, "no step is left out"
            assert found == list(range(found[0], found[-1] + 1))
            assert found[0] >= seen - 2, "all but the newest checkpoints had survived"
            seen = found[-1]
    reported, found = ended(begin(tmp_path / "run", cache, steps, 0))
    assert found == bits
    assert reported == [] or reported[-1] == steps + 2
