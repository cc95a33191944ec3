"""The quadratic comparison: the judge knows the curvature, data keep it, peers' signs are ours, claims count."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks import quadratic
from benchmarks.__main__ import main
from benchmarks.data import load, make, save
from benchmarks.instances.quadratic import known_optimum, quadratic_instances, read_mat, with_curvature
from benchmarks.solvers import clarabel_peer, osqp_peer
from benchmarks.verify import check_point, proves_unbounded

DATA = Path(os.environ.get("PDOPT_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")) / "qp"
needs_data = pytest.mark.skipif(not (DATA / "YAO.mat").exists(), reason="the shared data folder is absent")


def parabola():
    """min x^2 subject to x >= 1 as a row: x = 1, y = 2."""
    return with_curvature(make([0.0], [[1.0]], [1.0], [np.inf], [-np.inf], [np.inf]), [[2.0]])


def test_numbers_by_hand():
    exact = check_point(parabola(), np.array([1.0]), np.array([2.0]))
    assert (exact.primal, exact.dual, exact.gap, exact.objective) == (0.0, 0.0, 0.0, 1.0)
    off = check_point(parabola(), np.array([2.0]), np.array([2.0]))
    assert off.dual == 2.0  # |2x - y| / (1 + |c|), the variable being free
    assert off.gap == pytest.approx(abs(4 - (2 - 4)) / (1 + 4 + 2))  # P = 4; D = y - x'Qx/2


@pytest.mark.parametrize(("m", "n"), [(5, 8), (20, 40), (200, 100)])
def test_peers_find_the_known_optimum(m, n):
    instance = known_optimum(m, n, 3)
    for solve in (clarabel_peer.solve, osqp_peer.solve):
        answer = solve(instance.data, 1e-8, 10.0)
        check = check_point(instance.data, answer.x, answer.y, answer.z)
        assert check.passes(1e-6), (solve.__module__, check)
        assert check.objective == pytest.approx(instance.objective, rel=1e-5)
        assert not check_point(instance.data, answer.x, -answer.y).passes(1e-4)
        assert not check_point(instance.data, answer.x + 1e-2, answer.y).passes(1e-4)


def test_data_keep_the_curvature(tmp_path):
    data = known_optimum(5, 8, 0).data
    save(data, tmp_path / "one.npz")
    again = load(tmp_path / "one.npz")
    np.testing.assert_array_equal(again.Q.toarray(), data.Q.toarray())
    assert again.nonzeros == data.A.nnz + data.Q.nnz


def test_a_ray_must_be_flat():
    free = make([-1.0], np.zeros((0, 1)), [], [], [-np.inf], [np.inf])
    assert proves_unbounded(free, np.array([1.0]))
    assert not proves_unbounded(with_curvature(free, [[1.0]]), np.array([1.0]))


def test_generated_where_the_data_are_absent(tmp_path):
    assert [i.name for i in quadratic_instances(tmp_path, False, 0)] == [
        "known-20x40", "known-50x80", "known-100x200", "known-200x100"
    ]  # fmt: skip


def record(instance, outcome, solver="pdopt", tolerance=1e-4, **more):
    return {"instance": instance, "outcome": outcome, "solver": solver, "tolerance": tolerance, "nonzeros": 1, **more}


def test_claims_count_what_was_run():
    records = [
        record("a", "solved", objective_error=5e-4, status="optimal"),
        record("b", "solved", objective_error=5e-3, status="optimal"),
        record("c", "solved", objective_error=5e-3, status="precision_limit"),
        record("d", "cut"),
        record("e", "solved", objective_error=float("nan"), status="optimal"),
        record("a", "solved", "mpax-rapdhg", objective_error=1.0, status="optimal"),
        record("b", "inaccurate", "mpax-rapdhg"),
    ]
    share, far, beside, bad = quadratic.claims(records, (1e-4,))
    assert share.measured == pytest.approx(2 / 4)
    assert share.verdict == "fails"
    assert "not: b c" in share.note
    assert (far.measured, far.note) == (1.0, "b (50); mpax-rapdhg: 1")
    assert (beside.measured, bad.measured) == (1.0, 0.0)


@needs_data
def test_published_optima_where_clarabel_failed():
    """`|x - t|^2 / 2` of the published optimum is what the file's objective lacks a constant to."""
    instance = read_mat(DATA / "YAO.mat", "-182.1")
    t = -instance.data.c
    assert instance.objective + t @ t / 2 == pytest.approx(197.70426)
    assert read_mat(DATA / "HS21.mat", "-99.96").objective == -99.96


@pytest.mark.multiprocess
def test_the_command(tmp_path):
    arguments = ["quadratic", "--instances", "tiny", "--peers", "clarabel", "--output", str(tmp_path)]
    assert main(arguments) == 0
    records = [json.loads(line) for line in (tmp_path / "quadratic" / "records.jsonl").read_text().splitlines()]
    assert [(r["tolerance"], r["outcome"]) for r in records] == [(1e-4, "solved"), (1e-6, "solved")]
    assert records[0]["objective_error"] < 1e-6
