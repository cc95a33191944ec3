"""Runs in processes of their own (`killed.py`): begun, watched, and ended by SIGKILL."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def begin(folder, cache, steps, pause):
    arguments = [folder, cache, steps, pause]
    command = [sys.executable, "-u", "-m", "tests.training.killed", *map(str, arguments)]
    env = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # as `quick_compiles` has it
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


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
