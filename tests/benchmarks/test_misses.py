"""Misses are listed with the numbers that they were short of."""

import numpy as np

from benchmarks.misses import misses, reason


def record(instance, outcome, solver="pdopt", tolerance=1e-4, **more):
    return {"instance": instance, "outcome": outcome, "solver": solver, "tolerance": tolerance, "nonzeros": 1, **more}


def history(errors):
    return {"iterations": [100 * (k + 1) for k in range(len(errors))], "error": list(errors)}


def test_misses_are_listed_with_who_solved_them():
    records = [
        record("a", "solved"),
        record("b", "limit", primal=2e-3, dual=1e-5, gap=1e-3, iterations=400, history=history([1, 1e-1, 1e-2, 2e-3])),
        record("c", "claimed"),
        record("d", "time limit", detail="22 s"),
        record("b", "solved", "pdlp"),
        record("d", "limit", "pdlp"),
        record("b", "limit", tolerance=1e-6),
    ]
    b, d = misses(records, 1e-4, "pdopt").rows
    assert b[:4] == ["b", "1", "limit", "400"]
    assert (b[7].split(";")[0], b[8]) == ("primal residual", "pdlp")
    assert (d[7], d[8]) == ("22 s", "")


def test_a_run_at_rest_is_told_from_a_slow_one():
    short = {"primal": 1e-6, "dual": 1e-3, "gap": 1e-7}
    slow = reason(record("a", "limit", history=history(1 / np.arange(1, 9)), **short))
    assert slow.startswith("dual residual; 2 times smaller by a doubling")
    rests = reason(record("a", "limit", history=history([1e-1, 1e-3, 2e-3, 1.5e-3, 1e-2, 3e-3, 5e-3]), **short))
    assert rests == "dual residual; no better after iteration 200 of 700"
    assert reason(record("a", "inaccurate", status="optimal", **short)) == "dual residual; said to be optimal"
    assert reason(record("a", "limit", **short)).endswith("no history")
