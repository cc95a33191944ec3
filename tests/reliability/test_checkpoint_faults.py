"""Checkpoints under faults of the machine, each in a child process: SIGKILL, full disk, two runs (rows 57 to 59)."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.errors import CheckpointError
from pdopt.runtime.checkpoints import Checkpoints
from pdopt.runtime.lock import LOCK_NAME, FolderLock

pytestmark = pytest.mark.multiprocess
ROOT = Path(__file__).parents[2]
DEADLINE = 90  # seconds before a child is given up

# Eight arrays of 2 MB with contents that depend on the step, saved as fast as possible; a line for each confirmed step.
WRITER = """
    import sys, jax, jax.numpy as jnp
    from pdopt.runtime.checkpoints import Checkpoints
    key = lambda i, k: jax.random.fold_in(jax.random.key(i), k)
    make = jax.jit(lambda k: [jax.random.normal(key(i, k), (500_000,)) for i in range(8)])
    with Checkpoints(sys.argv[1], identity={"run": 1}) as checkpoints:
        for k in range(1, 10_000):
            state = make(k)
            checkpoints.save(k, state)
            print("started", k, flush=True)
            checkpoints.wait()
            print("confirmed", k, flush=True)
"""


def child(code: str, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-u", "-W", "error", "-c", textwrap.dedent(code), *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def read_until(process: subprocess.Popen, line: str) -> None:
    """Block until the child prints the line; a child that ends first fails the test with what it said."""
    for got in process.stdout:
        if got.strip() == line:
            return
    pytest.fail(f"the child ended before it said {line!r}:\n{process.communicate(timeout=DEADLINE)[1][-2000:]}")


@pytest.mark.parametrize("last", [2, 4])
def test_sigkill_during_a_save_leaves_the_steps_before_it_whole(tmp_path, last):
    """Row 58: killed right after a save was started; nothing confirmed is lost, and the lock is taken over."""
    process = child(WRITER, str(tmp_path))
    read_until(process, f"started {last}")
    os.kill(process.pid, signal.SIGKILL)
    out, _ = process.communicate(timeout=DEADLINE)
    confirmed = max([last - 1, *(int(line.split()[1]) for line in out.splitlines() if line.startswith("confirmed"))])
    with pytest.warns(RuntimeWarning, match=f"took over the lock of process {process.pid} on "):
        checkpoints = Checkpoints(tmp_path, identity={"run": 1})
    with checkpoints:
        found = checkpoints.restore([jax.ShapeDtypeStruct((500_000,), jnp.float32)] * 8)
        assert found.step == checkpoints.latest() >= confirmed
        for i, x in enumerate(found.state):
            expected = jax.random.normal(jax.random.fold_in(jax.random.key(i), found.step), (500_000,))
            np.testing.assert_array_equal(x, expected)
        assert checkpoints.save(found.step + 1, found.state)  # over whatever the killed save left there
        checkpoints.wait()
        assert checkpoints.latest() == found.step + 1


FULL_DISK = """
    import resource, signal, sys, warnings, jax, jax.numpy as jnp
    from pdopt.errors import CheckpointError
    from pdopt.runtime.checkpoints import Checkpoints
    warnings.simplefilter("always")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    state = lambda k: {"x": jax.random.normal(jax.random.key(k), (1_000_000,))}
    checkpoints = Checkpoints(sys.argv[1], identity={"run": 1}, failure=sys.argv[2])
    checkpoints.save(1, state(1)); checkpoints.wait()
    limit(100_000)                                   # four megabytes do not fit any more
    checkpoints.save(2, state(2))
    try:
        checkpoints.wait()
    except CheckpointError as error:
        print("WAIT", error, flush=True)
    checkpoints.save(3, state(3))                    # fails in the background ...
    try:
        checkpoints.save(4, state(4))                # ... and the next save says so
    except CheckpointError as error:
        print("SAVE", error, flush=True)
    print("LATEST", checkpoints.latest(), flush=True)
    limit(resource.RLIM_INFINITY)
    try:
        checkpoints.wait()
    except CheckpointError as error:
        print("SECOND WAIT", error, flush=True)
    checkpoints.save(5, state(5)); checkpoints.wait()
    print("AFTER", checkpoints.latest(), flush=True)
    checkpoints.close()
"""


@pytest.mark.parametrize("policy", ["warn", "raise"])
def test_full_disk_keeps_the_previous_step_and_the_next_save_works(tmp_path, policy):
    """Row 57, with a limit on the size of a file in place of a full disk."""
    process = child(FULL_DISK, str(tmp_path), policy)
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, err[-3000:]
    said = dict(
        line.split(" ", 1) for line in out.splitlines() if line.split(" ")[0] in ("WAIT", "SAVE", "LATEST", "AFTER")
    )
    assert "step 2 was not saved" in said["WAIT"]
    assert said["WAIT"].endswith("the newest whole step is 1")
    assert ("step 3 was not saved" in said.get("SAVE", "")) == (policy == "raise")
    assert ("step 3 was not saved" in err) == (policy == "warn")
    assert said["LATEST"] == "1"
    assert said["AFTER"] == "5"
    with Checkpoints(tmp_path, identity={"run": 1}) as checkpoints:
        found = checkpoints.restore({"x": jax.ShapeDtypeStruct((1_000_000,), jnp.float32)})
    assert found.step == 5
    np.testing.assert_array_equal(found.state["x"], jax.random.normal(jax.random.key(5), (1_000_000,)))


HOLDER = """
    import sys
    from pdopt.runtime.checkpoints import Checkpoints
    with Checkpoints(sys.argv[1], identity={"run": 1}):
        print("holding", flush=True)
        sys.stdin.read()
"""


def test_a_second_run_on_the_folder_is_refused_while_the_first_lives(tmp_path):
    """Row 59, and in the same process too."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", textwrap.dedent(HOLDER), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    read_until(process, "holding")
    with pytest.raises(CheckpointError, match=f"is in use by process {process.pid} on {socket.gethostname()}"):
        Checkpoints(tmp_path, identity={"run": 2})
    _, err = process.communicate("", timeout=DEADLINE)
    assert process.returncode == 0, err[-2000:]
    with Checkpoints(tmp_path, identity={"run": 2}):  # noqa: SIM117  given back: no warning
        with pytest.raises(CheckpointError, match=f"is in use by process {os.getpid()}"):
            Checkpoints(tmp_path, identity={"run": 2})
    assert (tmp_path / LOCK_NAME).read_text() == ""


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_stale_lock_of_a_dead_process_is_taken_over_and_said(tmp_path):
    pid = dead_pid()
    (tmp_path / LOCK_NAME).write_text(json.dumps({"pid": pid, "host": socket.gethostname(), "since": "2020-01-01"}))
    with pytest.warns(RuntimeWarning, match=rf"took over the lock of process {pid} on .* \(since 2020-01-01\)"):
        lock = FolderLock(tmp_path)
    assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
    lock.release()
    lock.release()  # the second time does nothing
    assert (tmp_path / LOCK_NAME).read_text() == ""


@pytest.mark.parametrize("text", [json.dumps({"pid": 1, "host": "elsewhere"}), "not json", "[]"])
def test_a_lock_from_another_host_or_unreadable_is_left_to_a_person(tmp_path, text):
    (tmp_path / LOCK_NAME).write_text(text)
    with pytest.raises(CheckpointError, match=r"if that run has ended, delete .*\.pdopt-lock"):
        FolderLock(tmp_path)
    assert (tmp_path / LOCK_NAME).read_text() == text


@pytest.mark.parametrize("alive", [True, False])
def test_where_the_file_system_has_no_locks_the_pid_decides(tmp_path, monkeypatch, alive):
    def none(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", none)
    pid = os.getpid() if alive else dead_pid()
    (tmp_path / LOCK_NAME).write_text(json.dumps({"pid": pid, "host": socket.gethostname()}))
    if alive:
        with pytest.raises(CheckpointError, match=f"is in use by process {pid}"):
            FolderLock(tmp_path)
    else:
        with pytest.warns(RuntimeWarning, match="took over"):
            FolderLock(tmp_path).release()
