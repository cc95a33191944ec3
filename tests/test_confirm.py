"""A second look at what residuals call optimal: programs that miss feasibility by 1e-9 are proved infeasible."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.runtime.progress import Silent
from pdopt.types import Status

CPLEX2 = Path(os.environ.get("PDOPT_DATA", Path(__file__).parents[1] / ".." / "shared" / "data")) / "lp" / "infeasible"
CPLEX2 /= "cplex2.mps.gz"


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def nearly(gap, maximise=False):
    """Two rows that contradict each other by `gap`, in a box."""
    sign = -1.0 if maximise else 1.0
    return pdopt.LinearProgram(
        [sign, 2 * sign, sign], [[1.0, 2.0, 0.5], [1.0, 2.0, 0.5]], [1 + gap, -np.inf], [np.inf, 1.0], np.zeros(3),
        np.ones(3), maximise=maximise, dtype=jnp.float64,
    )  # fmt: skip


@pytest.mark.parametrize("maximise", [False, True])
def test_a_run_proves_what_residuals_do_not_see(maximise):
    lp = nearly(1e-9, maximise)
    seen = pdopt.solve(lp, tolerance=1e-6)
    assert seen.reason is Status.OPTIMAL
    found = pdopt.run(lp, tolerance=1e-6)
    assert found.reason is Status.PRIMAL_INFEASIBLE
    np.testing.assert_array_equal(found.x, seen.x)
    y = lp.flip(found.certificate.ray).y
    assert float(y[0] * (1 + 1e-9) + y[1]) > 0
    assert bool(lp.minimised().rays(pdopt.Pair(jnp.zeros(3), y)).primal_infeasible)
    assert pdopt.confirmed(lp, seen).reason is Status.PRIMAL_INFEASIBLE


def test_what_can_be_met_stays_as_it_is():
    lp = nearly(-1e-9)
    solution = pdopt.solve(lp, tolerance=1e-6)
    assert pdopt.confirmed(lp, solution) is solution
    bad = dataclasses.replace(solution, status=np.asarray(int(Status.INTERRUPTED), np.int32))
    assert pdopt.confirmed(nearly(1e-3), bad) is bad
    qp = pdopt.QuadraticProgram(np.ones(1), [0.0], [[1.0], [1.0]], [1 + 1e-9, -np.inf], [np.inf, 1.0],
                                dtype=jnp.float64)  # fmt: skip
    solved = pdopt.solve(qp, tolerance=1e-6)
    assert pdopt.confirmed(qp, solved) is solved


def test_the_log_ends_with_what_was_found():
    class Words(Silent):
        def finish(self, summary=""):
            said.append(summary)

    said = []
    found = pdopt.run(nearly(1e-9), tolerance=1e-6, progress=Words())
    assert said == [found.reason.sentence] == [Status.PRIMAL_INFEASIBLE.sentence]


def test_a_limit_is_looked_at_too():
    found = pdopt.run(nearly(1e-3), tolerance=1e-6, max_iterations=1)
    assert found.reason is Status.PRIMAL_INFEASIBLE
    assert pdopt.run(nearly(-1e-3), tolerance=1e-6, max_iterations=1).reason is Status.ITERATION_LIMIT


@pytest.mark.skipif(not CPLEX2.exists(), reason="the shared data folder is absent")
@pytest.mark.parametrize("presolve", [True, False])
def test_cplex2_is_proved_infeasible(presolve):
    """A point breaks no row of it by more than 1.7e-11; OR-tools PDLP calls it optimal."""
    lp = pdopt.read_mps(CPLEX2, dtype=jnp.float64)
    found = pdopt.run(lp, tolerance=1e-4, presolve=presolve)
    assert found.reason is Status.PRIMAL_INFEASIBLE
    assert bool(lp.rays(found.certificate.ray).primal_infeasible)
