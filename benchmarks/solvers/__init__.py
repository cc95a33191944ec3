"""Adapters: each turns `LinearData` into a peer's own form, solves once, and returns an `Answer` in our signs.

An adapter is a function `(data, tolerance, limit) -> Answer`; `SOLVERS` names them. Compilation is timed apart.
A new solver joins by one line. Modules of peers are imported inside the child process only.
"""

import importlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Timing(NamedTuple):
    """Seconds of compilation (wall) and of one solve (CPU of the whole process, wall)."""

    compile: float
    cpu: float
    wall: float


class Answer(NamedTuple):
    """`status`: optimal, primal_infeasible, dual_infeasible or the solver's own word; signs as `benchmarks.verify`."""

    status: str
    x: np.ndarray | None
    y: np.ndarray | None
    timing: Timing
    iterations: int
    z: np.ndarray | None = None
    ray_x: np.ndarray | None = None
    ray_y: np.ndarray | None = None
    history: np.ndarray | None = None


class Solver(NamedTuple):
    """Where an adapter lives, its arguments, the packages whose versions are recorded, whether it compiles by JAX."""

    module: str
    settings: dict[str, Any]
    packages: tuple[str, ...]
    compiles: bool = False

    def adapter(self) -> Callable[..., Answer]:
        """The adapter function, importing the peer."""
        return importlib.import_module(f"benchmarks.solvers.{self.module}").solve


SOLVERS = {
    "pdopt": Solver("library", {"engine": "default"}, ("pdopt", "jax"), True),
    "pdopt-presolve": Solver("library", {"engine": "default", "presolve": True}, ("pdopt", "jax", "highspy"), True),
    "pdopt-confirmed": Solver("library", {"engine": "default", "confirm": True}, ("pdopt", "jax"), True),
    "pdopt-constant": Solver("library", {"engine": "constant"}, ("pdopt", "jax"), True),
    "pdopt-averaged": Solver("library", {"engine": "averaged"}, ("pdopt", "jax"), True),
    "pdlp": Solver("ortools_pdlp", {"presolve": False}, ("ortools",)),
    "pdlp-presolve": Solver("ortools_pdlp", {"presolve": True}, ("ortools",)),
    "highs-simplex": Solver("highs", {"method": "simplex"}, ("highspy",)),
    "highs-ipm": Solver("highs", {"method": "ipm"}, ("highspy",)),
    "highs-pdlp": Solver("highs", {"method": "pdlp"}, ("highspy",)),
    "osqp": Solver("osqp_peer", {}, ("osqp",)),
    "clarabel": Solver("clarabel_peer", {}, ("clarabel",)),
    "mpax-r2hpdhg": Solver("mpax_peer", {"engine": "r2HPDHG"}, ("mpax", "jax"), True),
    "mpax-rapdhg": Solver("mpax_peer", {"engine": "raPDHG"}, ("mpax", "jax"), True),
}


def timed(run: Callable[[], Any], repeats: int = 3, enough: float = 0.3) -> tuple[Any, float, float]:
    """Result, CPU and wall seconds of `run`: the median by CPU of up to `repeats` runs, one only when it is slow."""
    times = []
    result = None
    while len(times) < repeats:
        cpu, wall = time.process_time(), time.perf_counter()
        result = run()
        times.append((time.process_time() - cpu, time.perf_counter() - wall))
        if times[0][1] > enough:
            break
    return result, *sorted(times)[(len(times) - 1) // 2]
