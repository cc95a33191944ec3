"""Mending: a spoilt pair passes again, no pair gets worse, and a running solve ends where its pair could be mended."""

import jax
import numpy as np
import pytest

from pdopt import mending
from pdopt.mending import Mender, error_of, judged, mended
from pdopt.problems.presolve import UNCHANGED, Presolved, presolve
from pdopt.run import timed_run
from pdopt.types import Pair, Status
from tests.problems.test_presolve import exact, random_program


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def spoilt_pair(made, noise):
    x, y = exact(made.problem)[0]
    rng = np.random.default_rng(0)
    return Pair(x + noise * rng.normal(size=x.size), y + noise * rng.normal(size=y.size))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_pair_spoilt_on_both_sides_passes_again(seed):
    lp = random_program(seed, maximise=True)
    made = presolve(lp)
    spoilt = spoilt_pair(made, 3e-4)
    before, after = error_of(judged(lp, made.postsolve(spoilt))), mended(lp, made, spoilt, 1e-5, 9000)
    assert before > 5e-5
    assert error_of(after) <= 1e-5


def test_the_point_is_not_led_by_a_bound_that_postsolve_spoilt(monkeypatch):
    lp = random_program(2)
    made = presolve(lp)
    spoilt, postsolve = spoilt_pair(made, 3e-4), made.postsolve
    monkeypatch.setattr(made, "postsolve", lambda pair: Pair(postsolve(pair).x, 3 * postsolve(pair).y))
    assert error_of(judged(lp, made.postsolve(spoilt))) > 0.1
    marks, moved = [], made.moved
    monkeypatch.setattr(made, "moved", lambda pair, mark, *rest: marks.append(mark) or moved(pair, mark, *rest))
    after = mended(lp, made, spoilt, 1e-5, 9000)
    assert error_of(after) <= 1e-5
    optimum = exact(lp)[1]
    np.testing.assert_allclose(marks, optimum, rtol=1e-3)
    assert float(after.objective) == pytest.approx(optimum, rel=1e-3)


def test_nothing_is_done_without_need_or_work_to_spend():
    lp = random_program(1, maximise=True)
    made = presolve(lp)
    inner = exact(made.problem)[0]
    good, bad = made.postsolve(inner), Pair(inner[0] + 1e-2, inner[1])
    np.testing.assert_array_equal(mended(lp, made, Pair(*inner), 1e-6, 9000).x, good.x)
    np.testing.assert_array_equal(mended(lp, made, bad, 1e-6, 0).x, made.postsolve(bad).x)
    assert error_of(mended(lp, made, bad, 1e-15, 30)) <= error_of(judged(lp, made.postsolve(bad)))


def test_tries_come_at_fixed_iterations_and_near_the_tolerance():
    lp = random_program(1, maximise=True)
    made = presolve(lp)
    inner = Pair(*exact(made.problem)[0])
    mender = Mender(lp, made, 1e-6)
    assert mender.next == mending.FIRST
    mender.after(mending.FIRST - 1)
    assert mender.next == mending.FIRST
    assert not mender(inner, 1e-4, mending.FIRST)  # too far off to be worth a try
    assert mender.next == int(mending.GROWTH * mending.FIRST)
    assert mender.found is None
    assert mender(inner, 2e-6, mender.next)
    assert error_of(mender.found) <= 1e-6


def test_a_solve_ends_where_its_pair_could_be_mended(monkeypatch):
    lp = random_program(1, maximise=True)
    nothing = Presolved(UNCHANGED, lp.minimised(), lp, None)
    monkeypatch.setattr("pdopt.presolved.presolve", lambda problem: nothing)
    plain = timed_run(lp, presolve=True, tolerance=1e-10).solution
    for name, value in (("FIRST", 32), ("NEAR", 1e9), ("NEARBY", 1e9), ("TRY", 0.1)):
        monkeypatch.setattr(mending, name, value)
    solution = timed_run(lp, presolve=True, tolerance=1e-10).solution
    assert solution.reason is Status.OPTIMAL
    assert 0 < int(solution.iterations) < int(plain.iterations)
    assert float(lp.residuals(solution.pair).error) <= 1e-10
    assert float(solution.objective) == pytest.approx(float(plain.objective), rel=1e-8)
