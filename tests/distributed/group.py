"""Start a group of processes on loopback, watch them all, and end the whole group when one fails or time is up."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

TAG = "@@ "  # workers print results on lines that start so; gloo prints its own lines beside them
ROOT = Path(__file__).parents[2]
CLEARED = ("proxy", "PROXY", "JAX_COORDINATOR", "SLURM_", "OMPI_")


class GroupError(AssertionError):
    """A process of the group failed, or the group ran past its deadline; the message has the last lines of each."""


def run_group(worker: str, count: int, *, devices: int, deadline: float = 90.0) -> list[list[str]]:
    """Run `tests.distributed.workers.<worker>` in `count` processes; the tagged lines of each, without the tag.

    Raises:
        GroupError: a non-zero exit code or the deadline; all other processes are ended first.
    """
    for attempt in range(3):
        try:
            return _run(worker, count, devices, deadline)
        except GroupError as error:
            # The port was free when asked for; somebody else may have taken it since.
            if "address already in use" not in str(error).lower() or attempt == 2:
                raise
    raise AssertionError("unreachable")


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _run(worker: str, count: int, devices: int, deadline: float) -> list[list[str]]:
    env = {name: value for name, value in os.environ.items() if not any(word in name for word in CLEARED)}
    env |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
        "PDOPT_TEST_PORT": str(free_port()),
        "PDOPT_TEST_COUNT": str(count),
    }
    command = [sys.executable, "-u", "-m", f"tests.distributed.workers.{worker}"]
    children, outputs, readers = [], [[] for _ in range(count)], []
    for index in range(count):
        child = subprocess.Popen(
            command, env=env | {"PDOPT_TEST_INDEX": str(index)}, cwd=ROOT, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        # One thread drains each pipe: a full one would block the child.
        reader = threading.Thread(target=lambda pipe, lines: lines.extend(pipe), args=(child.stdout, outputs[index]))
        reader.start()
        children.append(child)
        readers.append(reader)
    failed = _watch(children, time.monotonic() + deadline)
    for child in children:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)  # start_new_session made the child the leader of its own group
        child.wait()
    for reader in readers:
        reader.join()
    for child in children:
        child.stdout.close()
    if failed:
        tails = "\n".join(f"--- process {k}\n{''.join(lines[-40:])}" for k, lines in enumerate(outputs))
        raise GroupError(f"{worker}: {failed}\n{tails}")
    return [[line[len(TAG) :].rstrip("\n") for line in lines if line.startswith(TAG)] for lines in outputs]


def _watch(children: list[subprocess.Popen], until: float) -> str:
    """Wait for all; the reason to stop early, or ""."""
    while True:
        codes = [child.poll() for child in children]
        bad = [k for k, code in enumerate(codes) if code not in (None, 0)]
        if bad:
            return f"process {bad[0]} ended with code {codes[bad[0]]}"
        if all(code == 0 for code in codes):
            return ""
        if time.monotonic() > until:
            return "ran past its deadline"
        time.sleep(0.05)
