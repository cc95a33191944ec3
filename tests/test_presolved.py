"""`run(presolve=True)`: the same answers as without, judged on the original data, whatever postsolve does to a pair."""

import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt import presolved
from pdopt.errors import InvalidOption
from pdopt.problems.presolve import Presolved
from pdopt.run import timed_run
from pdopt.types import Pair, Status
from tests.problems.test_presolve import exact, random_program

INF = np.inf


@pytest.mark.parametrize("maximise", [False, True])
def test_the_optimum_is_the_originals(maximise):
    lp = random_program(1, maximise)
    report = timed_run(lp, presolve=True, tolerance=1e-8)
    solution = report.solution
    assert solution.reason is Status.OPTIMAL
    assert report.note == ""
    assert report.presolve.rows + report.presolve.columns > 0
    assert report.seconds.presolve > 0
    assert float(solution.objective) == pytest.approx(lp.sense * exact(lp.minimised())[1], abs=1e-6)
    found = lp.optimality(solution.pair)
    assert float(found.residuals.error) == pytest.approx(float(solution.residuals.error), rel=1e-3)
    assert float(solution.residuals.error) <= 1e-8
    np.testing.assert_allclose(found.proof, solution.certificate.z, atol=1e-12)
    plain = pdopt.run(lp, tolerance=1e-8)
    assert float(plain.objective) == pytest.approx(float(solution.objective), abs=1e-6)


def test_a_pair_that_postsolve_spoils_is_mended(monkeypatch):
    lp, honest = random_program(1), Presolved.postsolve
    seen = []

    def spoilt(x, y, times):
        def postsolve(self, pair):
            seen.append(pair)
            back = honest(self, pair)
            return Pair(back.x + x, back.y + y) if len(seen) <= times else back

        seen.clear()
        monkeypatch.setattr(Presolved, "postsolve", postsolve)
        report = timed_run(lp, presolve=True, tolerance=1e-6)
        assert report.solution.reason is Status.OPTIMAL
        assert float(lp.residuals(report.solution.pair).error) <= 1e-6
        return report

    # Multipliers and point are mended, and no step more is taken; where they are not, the reduced solve goes on.
    for x, y in ((0, 1.0), (3e-3, 0), (1e-3, 1e-2)):
        assert spoilt(x, y, 9).note == ""
        assert len(seen) == 1
    monkeypatch.setattr(Presolved, "moved", lambda self, pair, *limits: pair)
    for times in (1, 2):
        assert spoilt(1e-2, 0, times).note == ""
        assert len(seen) == times + 1
    assert "without presolve" in spoilt(1.0, 0, 9).note
    assert len(seen) == 3

    def lost(self, pair):
        raise ArithmeticError("HiGHS's postsolve answered kError")

    monkeypatch.setattr(Presolved, "postsolve", lost)
    without = timed_run(lp, presolve=True, tolerance=1e-6)
    assert without.solution.reason is Status.OPTIMAL
    assert "kError" in without.note


def test_nothing_left_is_no_iteration():
    lp = pdopt.LinearProgram([1.0, 1.0], [[1.0, 0.0]], [2.0], [INF], [0.0, 3.0], [9.0, 9.0], dtype=jnp.float32)
    report = timed_run(lp, presolve=True)
    solution = report.solution
    assert report.presolve.found == "empty"
    assert solution.reason is Status.OPTIMAL
    assert int(solution.iterations) == 0
    np.testing.assert_allclose(solution.x, [2.0, 3.0])
    np.testing.assert_allclose(solution.y, [1.0])
    assert float(solution.objective) == float(solution.dual_objective) == 5.0


def test_infeasible_by_presolve_has_the_status_and_no_certificate():
    lp = pdopt.LinearProgram([1.0, 1.0], [[1.0, 1.0], [1.0, -1.0]], [50.0, 0.0], [60.0, 0.0], [0.0] * 2, [9.0] * 2,
                             dtype=jnp.float32)  # fmt: skip
    report = timed_run(lp, presolve=True)
    assert report.solution.reason is Status.PRIMAL_INFEASIBLE
    assert report.solution.certificate is None
    assert "no ray" in report.note
    assert float(report.solution.residuals.worst) == 50.0
    proved = timed_run(lp)
    assert proved.solution.reason is Status.PRIMAL_INFEASIBLE
    assert float(jnp.abs(proved.solution.certificate.ray.y).max()) == 1


@pytest.mark.parametrize("c", [(-1.0, 0.0, 0.0), (1.0, 0.0, 0.0)])
def test_unbounded_and_open_problems_are_proved_on_the_original(c):
    lp = pdopt.LinearProgram(list(c), [[1.0, -1.0, 0.0], [1.0, 1.0, 1.0]], [0.0, 2.0], [INF, INF],
                             [0.0] * 3, dtype=jnp.float32)  # fmt: skip
    with_, without = timed_run(lp, presolve=True).solution, timed_run(lp).solution
    assert with_.reason is without.reason
    if with_.reason is Status.DUAL_INFEASIBLE:
        assert bool(lp.rays(with_.certificate.ray).dual_infeasible)


def test_limits_are_of_the_whole_run():
    lp = random_program(1)
    report = timed_run(lp, presolve=True, tolerance=1e-12, max_iterations=64)
    assert report.solution.reason in (Status.ITERATION_LIMIT, Status.OPTIMAL)
    assert int(report.solution.iterations) <= 64
    late = timed_run(lp, presolve=True, tolerance=1e-12, time_limit=1e-3)
    assert late.solution.reason in (Status.TIME_LIMIT, Status.OPTIMAL)
    assert np.isfinite(late.solution.x).all()


def test_interrupted_and_resumed(tmp_path):
    lp = random_program(1)
    whole = timed_run(lp, presolve=True, tolerance=1e-9)
    first = timed_run(lp, presolve=True, tolerance=1e-9, max_iterations=64, checkpoint=tmp_path / "run")
    if first.solution.reason is Status.OPTIMAL:
        pytest.skip("solved within the first block")
    again = timed_run(lp, presolve=True, tolerance=1e-9, checkpoint=tmp_path / "run", resume=True)
    assert again.solution.reason is Status.OPTIMAL
    np.testing.assert_allclose(again.solution.x, whole.solution.x, atol=1e-7)
    assert int(again.solution.iterations) >= 64
    assert any((tmp_path / "run").glob("reduced*"))


def test_a_start_goes_through(tmp_path):
    lp = random_program(1)
    whole = timed_run(lp, presolve=True, tolerance=1e-8).solution
    again = timed_run(lp, presolve=True, tolerance=1e-7, start=whole).solution
    assert again.reason is Status.OPTIMAL
    assert int(again.iterations) <= int(whole.iterations) // 2


def test_bad_options_are_refused():
    with pytest.raises(InvalidOption, match="resume needs checkpoint"):
        timed_run(random_program(1), presolve=True, resume=True)


def pairs_short_of_the_whole():
    """Each pair of three needs 1.2, all three may have 1.7: infeasible, which HiGHS's presolve does not see.

    It takes away a fourth column, which has a row of its own.
    """
    A = [[1.0, 1, 0, 0], [0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 2]]
    return pdopt.LinearProgram([1.0, 2.0, -1.0, 1.0], A, [1.2, 1.2, 1.2, -INF, 1.0], [INF, INF, INF, 1.7, INF],
                               [0.0] * 4, [1.0] * 4, dtype=jnp.float32)  # fmt: skip


def test_a_ray_that_is_lost_is_looked_for_without_the_objective(monkeypatch):
    lp, honest, asked = pairs_short_of_the_whole(), presolved._carried, []

    def solved(losses):
        def carried(problem, made, report, status):
            asked.append(made)
            return None if len(asked) <= losses else honest(problem, made, report, status)

        asked.clear()
        monkeypatch.setattr(presolved, "_carried", carried)
        return timed_run(lp, presolve=True, tolerance=1e-5)

    found = solved(1).solution  # this one is small enough for a ray by another way
    assert found.reason is Status.PRIMAL_INFEASIBLE
    assert bool(lp.rays(found.certificate.ray).primal_infeasible)
    assert len(asked) == 1
    monkeypatch.setattr(presolved, "refutation", lambda problem, solution: None)
    for losses in (0, 1):
        found = solved(losses).solution
        assert found.reason is Status.PRIMAL_INFEASIBLE
        assert bool(lp.rays(found.certificate.ray).primal_infeasible)
        assert len(asked) == losses + 1
    assert np.asarray(asked[0].original.c).any()
    assert not np.asarray(asked[1].original.c).any()
    claimed = solved(2)
    assert claimed.solution.reason is Status.PRIMAL_INFEASIBLE
    assert claimed.solution.certificate is None
    assert "no ray of the original" in claimed.note
