"""A block of PDHG against its steps one by one: the same state, the same last visit, and none for no step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

import pdopt
from pdopt.types import Status

METHODS = {"default": pdopt.PDHG(), "constant": pdopt.PDHG.constant(), "averaged": pdopt.PDHG.averaged()}


@pytest.fixture(scope="module")
def lp():
    rng = np.random.default_rng(3)
    A = sp.random(12, 20, 0.4, random_state=rng, format="csr")
    x = rng.uniform(0.0, 1.0, 20)
    row = A @ x
    upper = np.where(np.arange(12) % 2, row, np.inf)
    with jax.enable_x64(True):
        return pdopt.LinearProgram(rng.normal(size=20), A, row, upper, np.zeros(20), np.full(20, 2.0))


@pytest.mark.parametrize("name", METHODS)
def test_a_block_is_its_steps(lp, name):
    method = METHODS[name]
    with jax.enable_x64(True):
        view = method.view(lp)
        state = first = method.init(view, view.start())
        block, step = jax.jit(method.block), jax.jit(method.step)
        visit = None
        for count in range(6):
            found, seen = block(view, first, count)
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state)):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
            expected = (first.track.point, first.track.point) if visit is None else visit
            for a, b in zip(jax.tree.leaves(tuple(seen)), jax.tree.leaves(tuple(expected))):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
            state, visit = step(view, state)


def test_the_start_is_judged_before_any_step(lp):
    with jax.enable_x64(True):
        solved = pdopt.solve(lp, tolerance=1e-8)
        assert solved.reason is Status.OPTIMAL
        again = pdopt.solve(lp, tolerance=1e-6, start=solved, history=4)
        assert (again.reason, int(again.iterations), int(again.history.used)) == (Status.OPTIMAL, 0, 0)
        np.testing.assert_allclose(again.objective, solved.objective, rtol=1e-12)
        assert np.isfinite(jnp.stack(list(again.residuals))).all()
        lost = pdopt.solve(lp.replace(lower=lp.lower + 3.0, check=False), tolerance=1e-6)
        assert (lost.reason, int(lost.iterations)) == (Status.PRIMAL_INFEASIBLE, 0)
        assert np.isfinite(float(lost.residuals.error))


def test_ahead_takes_halperns_steps_and_is_judged_one_step_further(lp):
    ahead, halpern = pdopt.PDHG(acceleration="ahead"), pdopt.PDHG(mixing=None)
    assert ahead.mixer is None
    with jax.enable_x64(True):
        view = halpern.view(lp)
        start = view.start()
        first, other = ahead.init(view, start), halpern.init(view, start)
        found, seen = jax.jit(ahead.block)(view, first, 5)
        state, _ = jax.jit(halpern.block)(view, other, 5)
        _, visit = jax.jit(halpern.step)(view, state)
        pairs = ((found.track, state.track), (tuple(seen), tuple(visit)))
        for a, b in zip(*(jax.tree.leaves([pair[k] for pair in pairs]) for k in (0, 1))):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
        made, judged = ahead.whole(view, found), ahead.pair(view, found, seen)
        for a, b in zip(jax.tree.leaves(tuple(made)), jax.tree.leaves(tuple(judged))):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
