"""256 random starts of HS71 in one `vmap`, against SLSQP on compiled functions, one by one.

Each measurement is a process of its own, on one core: `python -m benchmarks.constrained_starts SEED WAY`, where WAY
says whether XLA compiles small loops as one function ("flag": `set_cpu_flags`, as the README advises on CPUs and
the command line does) or as it does by default ("default").
"""

import json
import os
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize as scipy_minimize

import pdopt
from benchmarks.children import measured
from benchmarks.constrained_judge import judge
from benchmarks.constrained_peers import Functions
from benchmarks.instances import cutest
from pdopt.runtime.cache import set_cpu_flags

STARTS, TURNS = 256, 5
WAYS = ("flag", "default")
LIMIT = 600.0


def hs71(x: Any) -> Any:
    """The objective of problem 71 of Hock and Schittkowski (1981)."""
    return x[0] * x[3] * (x[0] + x[1] + x[2]) + x[2]


def hs71_equality(x: Any) -> Any:
    """`|x|^2 = 40`."""
    return jnp.sum(x**2) - 40


def hs71_inequality(x: Any) -> Any:
    """`25 <= x1 x2 x3 x4`."""
    return 25 - jnp.prod(x)


def starts_records(seed: int, say: Any) -> list[dict[str, Any]]:
    """One record a way; the first is the one that is judged."""
    records = []
    for way in WAYS:
        about = {"what": "starts", "starts": STARTS, "flags": way}
        r = measured("benchmarks.constrained_starts", (str(seed), way), about, LIMIT)
        records.append(r)
        figures = f"vmap {r['pdopt']:.3g} CPU s, SLSQP {r['slsqp']:.3g}; {r['apart']:.1e} apart" if "pdopt" in r else r
        say(f"{STARTS} starts, XLA_FLAGS {way}: {figures}")
    return records


def child(seed: int) -> dict[str, Any]:
    """The figures: CPU seconds of either side, how many starts each solved, and how far a member is from a loop's."""
    points = np.random.default_rng(seed).uniform(1, 5, (STARTS, 4))
    low, high = np.full(4, 1.0), np.full(4, 5.0)
    rows = {"equality": hs71_equality, "inequality": hs71_inequality, "lower": 1.0, "upper": 5.0}
    alone = lambda start: pdopt.minimise(hs71, start, **rows, tolerance=1e-8, gradient="none")
    together = jax.jit(jax.vmap(alone))
    batch = jnp.asarray(points)
    began = time.process_time()
    found = jax.block_until_ready(together(batch))
    first = time.process_time() - began
    program = cutest.Program("HS71", hs71, points[0], low, high, lambda x: hs71_equality(x)[None],
                             lambda x: hs71_inequality(x)[None], 17.0140173)  # fmt: skip
    functions = Functions(program)
    functions.warm(False)
    at = functions.point

    def slsqp(point: Any) -> Any:
        return scipy_minimize(
            lambda x: at(x).f, point, jac=lambda x: at(x).slope, method="SLSQP", bounds=list(zip(low, high)),
            constraints=[{"type": "eq", "fun": lambda x: at(x).h, "jac": lambda x: at(x).h_slopes},
                         {"type": "ineq", "fun": lambda x: -at(x).g, "jac": lambda x: -at(x).g_slopes}],
            options={"maxiter": 1000, "ftol": 1e-10},
        ).x  # fmt: skip

    theirs = [slsqp(point) for point in points]
    seconds: dict[str, list[float]] = {"pdopt": [], "slsqp": []}
    for _ in range(TURNS):  # in turn, so that what else the machine does falls on both
        began = time.process_time()
        jax.block_until_ready(together(batch))
        middle = time.process_time()
        for point in points:
            slsqp(point)
        seconds["pdopt"].append(middle - began)
        seconds["slsqp"].append(time.process_time() - middle)
    passes = lambda x: judge(np.asarray(x), at(np.asarray(x)), low, high).passes()
    single = jax.jit(alone)
    apart = max(float(np.max(np.abs(np.asarray(single(batch[k]).x) - np.asarray(found.x[k])))) for k in range(STARTS))
    return {
        "outcome": "done", "apart": apart, "compile": first - min(seconds["pdopt"]),
        **{name: min(list_) for name, list_ in seconds.items()},
        "pdopt_solved": sum(map(passes, found.x)), "slsqp_solved": sum(map(passes, theirs)),
    }  # fmt: skip


if __name__ == "__main__":
    if sys.argv[2] == "flag":
        set_cpu_flags()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with jax.enable_x64(True):
        print(json.dumps(child(int(sys.argv[1]))))
