"""The promises of the linear comparison, on made records whose figures are known."""

from pathlib import Path

import pytest

from benchmarks.harness import Options
from benchmarks.linear_claims import claims


def record(solver, instance, outcome="solved", **changes):
    return {
        "solver": solver, "instance": instance, "tolerance": 1e-6, "expected": "optimal", "outcome": outcome,
        "nonzeros": 5_000, "time_limit": 20.0, "cpu": 1.0, "iterations": 100, "compile": 0.0, "objective_error": 0.0,
    } | changes  # fmt: skip


def judged(*records):
    found = claims(list(records), Options(Path(), tolerances=(1e-6,)))
    return {claim.promise: claim for claim in found}


def test_iterations_are_compared_where_both_solved():
    found = judged(
        record("pdopt", "a", iterations=50), record("pdlp", "a", iterations=100),
        record("pdopt", "b", iterations=200), record("pdlp", "b", iterations=100),
        record("pdopt", "c", iterations=1), record("pdlp", "c", "limit", iterations=10**6),
    )  # fmt: skip
    claim = found["iterations of pdopt / pdlp at 1e-06"]
    assert (claim.measured, claim.verdict, claim.note) == (pytest.approx(1.0), "fails", "2 solved by both")


def test_times_by_size_count_a_miss_with_the_limit():
    found = judged(
        record("pdopt", "a", cpu=2.0), record("pdlp", "a", "limit", cpu=3.0),
        record("pdopt", "b", cpu=0.5, nonzeros=50_000), record("pdlp", "b", cpu=2.0, nonzeros=50_000),
        record("pdopt", "small", cpu=9.0, nonzeros=500), record("pdlp", "small", cpu=1.0, nonzeros=500),
        record("pdopt", "lost", "limit", cpu=20.0), record("pdlp", "lost", "limit", cpu=20.0),
    )  # fmt: skip
    middle = found["CPU seconds of pdopt / pdlp at 1e-06, 2000 to 10000 nonzeros"]
    large = found["CPU seconds of pdopt / pdlp at 1e-06, more than 10000 nonzeros"]
    assert (middle.measured, large.measured) == (pytest.approx(2.0 / 20.0), pytest.approx(0.5 / 2.0))
    assert middle.note.startswith("1 instances")  # what neither solved says nothing


@pytest.mark.parametrize(
    ("ours", "theirs", "measured"),
    [
        (("solved", "solved"), ("solved", "limit"), 1.0),
        (("solved", "limit"), ("solved", "limit"), 0.0),
        (("limit", "wrong"), ("solved", "limit"), -1.0),
        (("solved", "solved"), ("solved", "solved"), None),  # more is not possible
        (("solved", "cut"), ("solved", "limit"), None),  # as judged on the one that both were given
    ],
)
def test_more_solved(ours, theirs, measured):
    found = judged(
        *(record("pdopt", name, outcome) for name, outcome in zip("ab", ours)),
        *(record("pdlp", name, outcome) for name, outcome in zip("ab", theirs)),
    )
    claim = found["instances that pdopt solves beyond pdlp's number at 1e-06"]
    assert claim.measured == measured
    assert claim.holds == (None if measured is None else measured >= 1)


def test_pairs_are_alike_in_presolve():
    found = judged(record("pdopt-presolve", "a", iterations=50), record("pdlp", "a"))
    assert not any(" / pdlp" in promise for promise in found)


def test_mpax_is_judged_by_its_better_engine():
    found = judged(
        record("pdopt", "a", compile=1.0), record("mpax-r2hpdhg", "a", cpu=30.0, compile=4.0),
        record("mpax-rapdhg", "a", cpu=10.0), record("pdopt", "b"), record("mpax-rapdhg", "b", "limit"),
    )  # fmt: skip
    assert found["CPU seconds of MPAX (better engine) / pdopt at 1e-06"].measured == pytest.approx(10.0)
    assert found["compile seconds / mpax-r2hpdhg"].measured == pytest.approx(0.25)


@pytest.mark.parametrize("outcome", ["wrong", "inaccurate", "crash"])
@pytest.mark.parametrize("solver", ["pdopt", "pdopt-presolve"])
def test_a_wrong_answer_of_ours_fails(solver, outcome):
    promise = "no answer wrong, inaccurate or lost in a crash (count)"
    assert judged(record(solver, "a", outcome), record("pdlp", "b", "wrong"))[promise].measured == 1.0
    assert judged(record(solver, "a"), record("pdlp", "b", "wrong"))[promise].verdict == "holds"
    assert judged(record("pdlp", "b", "wrong"))[promise].verdict == "not judged"


def test_a_cut_keeps_a_share_from_being_judged():
    promise = "every feasible instance solved at 1e-06 (share)"
    assert judged(record("pdopt", "a"), record("pdopt", "b", "cut"))[promise].verdict == "not judged"
    assert judged(record("pdopt", "a"), record("pdopt", "b", "limit"))[promise].measured == 0.5
    assert judged(record("pdopt", "a"), record("pdopt", "b"))[promise].verdict == "holds"


def test_objectives_name_the_worst():
    found = judged(record("pdopt", "a", objective_error=1e-7), record("pdopt", "b", objective_error=2e-5))
    claim = found["largest |objective - reference| / (1 + |reference|) of solved"]
    assert (claim.measured, claim.verdict) == (2e-5, "fails")
    assert claim.note.endswith("worst b")
