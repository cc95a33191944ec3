"""Means, profiles and claims on numbers small enough to do by hand."""

import math

import numpy as np
import pytest

from benchmarks.claims import Claim, failed
from benchmarks.harness import Options, verdict
from benchmarks.instances.generated import infeasible, known_optimum
from benchmarks.linear import claims
from benchmarks.profiles import paired_ratio, performance_profile, shifted_geometric_mean


def test_shifted_geometric_mean():
    assert shifted_geometric_mean([2.0, 8.0], 0.0) == pytest.approx(4.0)
    assert shifted_geometric_mean([0.0, 3.0], 1.0) == pytest.approx(1.0)  # sqrt(1 * 4) - 1
    assert math.isnan(shifted_geometric_mean([], 1.0))


def test_performance_profile_by_hand():
    costs = {"a": {"p": 1.0, "q": 4.0, "r": np.inf, "s": np.inf}, "b": {"p": 2.0, "q": 1.0, "r": 5.0, "s": np.inf}}
    profile = performance_profile(costs)
    np.testing.assert_allclose(profile["a"][0], [1.0, 4.0])
    np.testing.assert_allclose(profile["a"][1], [0.25, 0.5])
    np.testing.assert_allclose(profile["b"][0], [1.0, 1.0, 2.0])
    np.testing.assert_allclose(profile["b"][1], [0.25, 0.5, 0.75])  # nobody solved s: no curve reaches 1


def run_of(solver, instance, outcome="solved", tolerance=1e-4, expected="optimal", **numbers):
    numbers = {"iterations": 100, "cpu": 1.0, "compile": 0.0, **numbers}
    names = {"solver": solver, "instance": instance, "outcome": outcome, "tolerance": tolerance, "expected": expected}
    return names | numbers


def test_paired_ratio_takes_what_both_solved():
    records = [
        run_of("pdopt", "p", iterations=50), run_of("pdlp", "p", iterations=100),
        run_of("pdopt", "q", iterations=200), run_of("pdlp", "q", iterations=100),
        run_of("pdopt", "r", iterations=1), run_of("pdlp", "r", "time limit"),
    ]  # fmt: skip
    assert paired_ratio(records, "pdopt", "pdlp", "iterations", 1e-4) == (pytest.approx(1.0), 2)
    assert paired_ratio(records, "pdopt", "pdlp", "iterations", 1e-8)[1] == 0


@pytest.mark.parametrize(
    ("measured", "relation", "expected"),
    [(0.5, "<=", "holds"), (1.5, "<=", "fails"), (1.5, ">=", "holds"),
     (None, ">=", "not judged"), (math.nan, "<=", "not judged")],
)  # fmt: skip
def test_verdicts(measured, relation, expected):
    assert Claim("promise", measured, 1.0, relation).verdict == expected


def test_failed_ignores_what_was_not_judged():
    assert not failed([Claim("a", None, 1.0, "<="), Claim("b", 1.0, 1.0, "<=")])
    assert failed([Claim("a", 2.0, 1.0, "<=")])


def by_promise(records, tmp_path):
    options = Options(tmp_path, tolerances=(1e-4,))
    return {claim.promise: claim for claim in claims(records, options)}


def test_absent_peers_and_absent_pdopt_are_not_judged(tmp_path):
    only_peer = by_promise([run_of("pdlp", "p"), run_of("pdopt", "p", "not installed")], tmp_path)
    assert {claim.verdict for claim in only_peer.values()} == {"not judged"}
    alone = by_promise([run_of("pdopt", "p"), run_of("mpax-rapdhg", "p", "not installed")], tmp_path)
    assert alone["every feasible instance solved at 0.0001 (share)"].verdict == "holds"
    assert alone["CPU seconds of MPAX (better engine) / pdopt at 0.0001"].verdict == "not judged"


def test_cut_runs_never_count_as_solved(tmp_path):
    promise = "every feasible instance solved at 0.0001 (share)"
    assert by_promise([run_of("pdopt", "p"), run_of("pdopt", "q", "cut")], tmp_path)[promise].verdict == "not judged"
    late = by_promise([run_of("pdopt", "p"), run_of("pdopt", "q", "time limit")], tmp_path)[promise]
    assert late.verdict == "fails"
    assert late.measured == 0.5


def test_mpax_is_judged_by_its_better_engine(tmp_path):
    records = [run_of("pdopt", "p"), run_of("mpax-r2hpdhg", "p", cpu=5.0), run_of("mpax-rapdhg", "p", cpu=9.0)]
    claim = by_promise(records, tmp_path)["CPU seconds of MPAX (better engine) / pdopt at 0.0001"]
    assert claim.measured == pytest.approx(5.0)
    assert claim.verdict == "fails"


def test_outcomes():
    good = known_optimum(6, 10, 0)
    nothing = {"x": np.zeros(10), "y": np.zeros(6)}
    assert verdict(good, "optimal", nothing, 1e-4)["outcome"] == "inaccurate"
    assert verdict(good, "primal_infeasible", nothing, 1e-4)["outcome"] == "wrong"
    assert verdict(good, "iteration_limit", nothing, 1e-4)["outcome"] == "limit"
    bad = infeasible(10, 0)
    ray = np.zeros(bad.data.A.shape[0])
    ray[-2:] = 1.0, -1.0
    assert verdict(bad, "primal_infeasible", {"ray_y": ray}, 1e-4)["outcome"] == "certified"
    assert verdict(bad, "primal_infeasible", {"ray_y": -ray}, 1e-4)["outcome"] == "claimed"
    assert verdict(bad, "dual_infeasible", {"ray_x": np.ones(10)}, 1e-4)["outcome"] == "wrong"
    # Without a feasible point either, which no dual ray speaks of: proved is right, whatever else holds.
    data = bad.data._replace(c=-np.ones(10), upper=np.full(10, np.inf), A=bad.data.A * 0)
    both = bad._replace(data=data)
    assert verdict(both, "dual_infeasible", {"ray_x": np.ones(10)}, 1e-4)["outcome"] == "certified"
