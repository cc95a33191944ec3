"""The judge must accept right answers and be able to fail: every kind of wrong answer is provoked."""

import numpy as np
import pytest

from benchmarks.data import LinearData, load, make, read_mps, save
from benchmarks.instances.generated import generated, infeasible, known_optimum, unbounded
from benchmarks.solvers.highs import solve
from benchmarks.verify import check_point, proves_infeasible, proves_unbounded

FEASIBLE = [i for i in generated(3) if i.expected == "optimal"]


@pytest.mark.parametrize("instance", FEASIBLE, ids=lambda i: i.name)
def test_simplex_answers_pass_and_perturbed_ones_fail(instance):
    answer = solve(instance.data, 1e-8, 10.0)
    x, y, z = answer.x, answer.y, answer.z
    assert check_point(instance.data, x, y, z).passes(1e-8)
    assert check_point(instance.data, x, y).passes(1e-8)
    # An error of 1e-3 in every x breaks a row by far more than 1e-8 (1 + |b|).
    assert not check_point(instance.data, x + 1e-3, y, z).passes(1e-8)
    if np.abs(y).max() > 1e-6:
        assert not check_point(instance.data, x, -y, z).passes(1e-4)
        assert not check_point(instance.data, x, -y, -z).passes(1e-4)


@pytest.mark.parametrize(("m", "n"), [(20, 40), (60, 100)])
def test_known_optimum_is_that_of_highs(m, n):
    instance = known_optimum(m, n, seed=1)
    answer = solve(instance.data, 1e-8, 10.0)
    found = check_point(instance.data, answer.x, answer.y, answer.z)
    # HiGHS's own feasibility tolerances are 1e-8 here; the objective follows within the sum of |y| and |z| times that.
    assert found.objective == pytest.approx(instance.objective, rel=1e-6)
    assert found.dual_objective == pytest.approx(instance.objective, rel=1e-6)


def one_variable(lower: float, upper: float) -> LinearData:
    """min x subject to x >= 1 as a row."""
    return make([1.0], [[1.0]], [1.0], [np.inf], [lower], [upper])


def test_numbers_by_hand():
    data = one_variable(0.0, np.inf)
    exact = check_point(data, np.array([1.0]), np.array([1.0]))
    assert (exact.primal, exact.dual, exact.gap, exact.worst) == (0.0, 0.0, 0.0, 0.0)
    off = check_point(data, np.array([0.5]), np.array([1.0]))
    assert off.primal == 0.25  # 0.5 / (1 + |b|), b = 1
    assert off.gap == 0.2  # |0.5 - 1| / (1 + 0.5 + 1)
    assert off.worst == 0.5
    wrong_sign = check_point(data, np.array([1.0]), np.array([-1.0]))
    # y is clipped to 0: D = 0 with z = 1 at the lower bound 0, or dual residual 1/2 with z = 0; either fails.
    assert wrong_sign.error >= 0.5 - 1e-12


def test_free_variable_admits_no_reduced_cost():
    data = one_variable(-np.inf, np.inf)
    found = check_point(data, np.array([1.0]), np.array([0.5]), np.array([0.5]))
    assert found.dual == 0.25  # |1 - 0.5| / (1 + |c|): z = 0.5 needs a finite lower bound


def test_returned_z_is_used_after_its_signs_are_checked():
    # min x, x >= 0, no row that binds: y = 0, z = 1. A returned z of the wrong sign must not lower the dual residual.
    data = make([1.0], np.zeros((1, 1)), [-np.inf], [np.inf], [0.0], [np.inf])
    good = check_point(data, np.array([0.0]), np.zeros(1), np.array([1.0]))
    assert good.error == 0.0
    assert check_point(data, np.array([5.0]), np.zeros(1), np.array([-1.0])).error >= 0.5


def test_crossing_dual_objective_counts_as_gap():
    data = one_variable(0.0, np.inf)
    assert check_point(data, np.array([3.0]), np.array([1.0])).gap == pytest.approx(2 / 5)


def test_not_a_number_fails():
    data = one_variable(0.0, np.inf)
    assert not check_point(data, np.array([np.nan]), np.array([1.0])).passes(1.0)


def test_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"x has shape \(2,\)"):
        check_point(one_variable(0.0, 1.0), np.zeros(2), np.zeros(1))


def test_rays_of_generated_instances():
    data = infeasible(20, 0).data
    ray = np.zeros(data.A.shape[0])
    ray[-2:] = 1.0, -1.0  # a'x >= 2 and a'x <= 1: q = 2 - 1
    assert proves_infeasible(data, ray)
    assert not proves_infeasible(data, -ray)
    assert not proves_infeasible(data, np.ones_like(ray))
    assert not proves_infeasible(data, None)
    assert not proves_infeasible(data, np.zeros_like(ray))
    data = unbounded(20, 0).data
    assert proves_unbounded(data, np.ones(20))
    assert not proves_unbounded(data, -np.ones(20))
    assert not proves_unbounded(data, None)


@pytest.mark.parametrize("instance", FEASIBLE, ids=lambda i: i.name)
def test_no_ray_proves_a_feasible_problem_infeasible(instance):
    rng = np.random.default_rng(0)
    m, n = instance.data.A.shape
    answer = solve(instance.data, 1e-8, 10.0)
    rays = [answer.y, -answer.y, *rng.standard_normal((50, m))]
    assert not any(proves_infeasible(instance.data, ray) for ray in rays)
    assert not any(proves_unbounded(instance.data, dx) for dx in [answer.x, -answer.x, *rng.standard_normal((50, n))])


def test_data_survive_their_file(tmp_path):
    data = known_optimum(6, 10, 0).data._replace(offset=3.0, sense=-1.0)
    save(data, tmp_path / "lp.npz")
    read = load(tmp_path / "lp.npz")
    assert (read.offset, read.sense, read.A.shape) == (3.0, -1.0, data.A.shape)
    assert abs(read.A - data.A).sum() == 0
    for name in ("c", "row_lower", "row_upper", "lower", "upper"):
        np.testing.assert_array_equal(getattr(read, name), getattr(data, name))


def test_reading_drops_integrality_and_negates_maximisation(tmp_path):
    text = """NAME test
OBJSENSE
    MAX
ROWS
 N cost
 L row
COLUMNS
    MARKER 'MARKER' 'INTORG'
    x cost 2 row 1
    MARKER 'MARKER' 'INTEND'
RHS
    rhs row 1.5
BOUNDS
 UP bnd x 10
ENDATA
"""
    path = tmp_path / "test.mps"
    path.write_text(text)
    data = read_mps(path)
    assert data is not None
    assert (data.c.tolist(), data.sense, data.row_upper.tolist(), data.upper.tolist()) == ([-2.0], -1.0, [1.5], [10.0])
    answer = solve(data, 1e-8, 10.0)
    found = check_point(data, answer.x, answer.y, answer.z)
    assert found.objective == pytest.approx(-3.0)
    assert found.passes(1e-8)
    assert answer.y[0] == pytest.approx(-2.0)  # the minimum of -2x falls by 2 when the row is loosened by 1


def test_unreadable_file_is_named(tmp_path):
    path = tmp_path / "broken.mps"
    path.write_text("not a model")
    with pytest.raises(ValueError, match=r"broken.mps cannot be read"):
        read_mps(path)


def test_nothing_on_standard_output(tmp_path, capfd):
    path = tmp_path / "tiny.mps"
    path.write_text("NAME t\nROWS\n N cost\n G row\nCOLUMNS\n x cost 1 row 1\nRHS\n rhs row 1\nENDATA\n")
    assert read_mps(path) is not None
    assert capfd.readouterr().out == ""
