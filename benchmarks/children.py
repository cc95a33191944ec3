"""Child processes of comparisons: how a parent asks one for its figures, and how one that serves talks back."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def measured(module: str, arguments: tuple[str, ...], about: dict[str, Any], limit: float) -> dict[str, Any]:
    """What a child that runs `module` says in its last line, after `about`, or why it says nothing within `limit` s."""
    command = [sys.executable, "-m", module, *arguments]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    root, patience = Path(__file__).resolve().parent.parent, None if math.isinf(limit) else limit
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=patience, cwd=root, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return about | {"outcome": "time limit"}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return about | {"outcome": "crash", "error": last[0][:300]}
    return about | json.loads(done.stdout.strip().splitlines()[-1])


def answering() -> Callable[..., None]:
    """In a child that serves: pins it to one core; `say(**message)` writes a line of JSON to the parent.

    Whatever else the process prints goes to standard error, so that an engine's chatter is not taken for an answer.
    """
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return lambda **message: print(json.dumps(message), file=channel, flush=True)
