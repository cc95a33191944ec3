"""The child process: one solver, a list of tasks. Protocol on standard output, one JSON object a line.

`python -m benchmarks.worker TASKS.json` reads
`{"solver", "tasks": [{"key", "data", "tolerance", "limit", "cpu", "answer"}]}`, says `{"start": key}` before each task
and `{"done": key, ...}` after it, and writes the arrays to the task's `answer` file. The parent times each task and
ends the process group of a child that overruns; where a task says how many CPU seconds it may take (`cpu`), the system
ends a child that takes more, by SIGXCPU. A child takes many tasks so that importing JAX, and compiling for one shape,
is paid once and not per run.
"""

import json
import math
import os
import resource
import sys
import time
import traceback
from importlib import metadata
from pathlib import Path

import numpy as np


def say(**message: object) -> None:
    """One line of the protocol."""
    print(json.dumps(message), file=_channel, flush=True)


_channel = sys.stdout


def main(path: str) -> int:
    """Run every task of the file; a task that raises is reported and the next one runs."""
    global _channel
    # Solvers print to file descriptor 1; keep a private copy for the protocol and send theirs to standard error.
    _channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    order = json.loads(Path(path).read_text())
    from benchmarks.data import load
    from benchmarks.solvers import SOLVERS

    solver = SOLVERS[order["solver"]]
    if solver.module == "library":
        from pdopt.runtime.cache import set_cpu_flags

        set_cpu_flags()  # linear spec, section 15
    try:
        solve = solver.adapter()
        versions = {name: metadata.version(name) for name in solver.packages if name != "pdopt"}
    except ImportError as error:
        say(missing=str(error))
        return 0
    say(versions=versions, flags=os.environ.get("XLA_FLAGS", ""), device=device(solver.compiles))
    kept: tuple[str, object] = ("", None)
    for task in order["tasks"]:
        if kept[0] != task["data"]:
            kept = (task["data"], load(Path(task["data"])))
        say(start=task["key"])
        if task["cpu"] is not None:
            limit_cpu(task["cpu"])
        try:
            answer = solve(kept[1], task["tolerance"], task["limit"], **solver.settings)
        except Exception as error:
            traceback.print_exc()
            say(done=task["key"], crash=f"{type(error).__name__}: {error}"[:500])
            continue
        arrays = {k: getattr(answer, k) for k in ("x", "y", "z", "ray_x", "ray_y", "history")}
        np.savez(task["answer"], **{k: v for k, v in arrays.items() if v is not None})
        say(done=task["key"], status=answer.status, iterations=answer.iterations, **answer.timing._asdict())
    return 0


def limit_cpu(seconds: float) -> None:
    """Let this process take `seconds` of CPU more (rounded up to whole ones), by any of its threads."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + seconds), hard))


def device(compiles: bool) -> str:
    """What JAX computes on; "cpu" for solvers that do not use JAX."""
    if not compiles:
        return "cpu"
    import jax

    return str(jax.devices()[0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
