"""The memory comparison's claims and child records; its figures are measured by the benchmark itself."""

import pytest

from benchmarks.transport_memory import LIMIT_MB, claims, measure, peak_mb, table


def record(solver="pdopt", n=20_000, growth=50.0, outcome="solved"):
    return {"solver": solver, "n": n, "sweeps": 3, "growth_mb": growth, "baseline_mb": 400.0, "cpu": 1.0,
            "compile_cpu": 1.0, "outcome": outcome}  # fmt: skip


@pytest.mark.parametrize(("growth", "holds"), [(LIMIT_MB, True), (LIMIT_MB + 1, False)])
def test_the_claim_is_judged_at_the_largest_size_that_finished(growth, holds):
    records = [record(n=10_000, growth=1.0), record(growth=growth), record("ott-online", growth=4000.0)]
    (claim,) = claims(records)
    assert claim.holds is holds
    assert claim.measured == growth
    assert "20000" in claim.promise
    assert "OTT online at n = 20000: 4000 MB" in claim.note


def test_a_smaller_size_says_so_and_no_run_is_no_verdict():
    (claim,) = claims([record(n=10_000), record(outcome="time limit")])
    assert "10000" in claim.promise
    assert "--full" in claim.note
    assert claims([record(outcome="crash")])[0].holds is None


def test_a_child_that_fails_is_a_row():
    found = measure("no such solver", 10, 60.0)
    assert found["outcome"] == "crash"
    assert "KeyError" in found["error"] or found["error"]
    assert table([found]).rows[0][-1] == "crash"
    assert peak_mb() > 1
