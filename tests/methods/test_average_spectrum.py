"""The average-spectrum method: its bookkeeping, its options; solves are in the table and with transport."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.errors import InvalidOption
from pdopt.methods.average_spectrum import GROW, REJECT, SHRINK
from pdopt.operators.scaling import Scaling
from pdopt.problems.views import in_metric, saddle


def view_of(n, m, metric):
    C = np.random.default_rng(0).uniform(0, 1, (n, m))
    return in_metric(saddle(pdopt.Transport(C, dtype=np.float64), Scaling()), metric)


@pytest.mark.parametrize("metric", ["scalar", "deflated", "douglas_rachford"])
@pytest.mark.parametrize(("n", "m"), [(5, 5), (4, 7), (1, 3)])
def test_closed_forms_of_the_operator(metric, n, m):
    """G^1/2, the norm and `K K'` against the explicit matrix."""
    with jax.enable_x64(True):
        view = view_of(n, m, metric)
        A = np.vstack([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
        flat = lambda p: np.concatenate([p.f, p.g])
        part = lambda v: type(view.start().y)(jnp.asarray(v[:n]), jnp.asarray(v[n:]))
        root = np.stack([flat(view.lift(part(e))) for e in np.eye(n + m)], axis=1)
        np.testing.assert_allclose(root, root.T, atol=1e-14)
        B = root @ A
        np.testing.assert_allclose(np.linalg.norm(B, 2), float(view.norm()), rtol=1e-12)
        twice = np.stack([flat(view.twice(part(e))) for e in np.eye(n + m)], axis=1)
        np.testing.assert_allclose(twice, B @ B.T, atol=1e-12)
        if metric == "douglas_rachford":
            np.testing.assert_allclose(root @ root, np.linalg.pinv(A @ A.T), atol=1e-12)
        y = np.random.default_rng(1).normal(size=n + m)
        tilt = np.asarray(view.tilt(part(y)))
        np.testing.assert_allclose(tilt.ravel(), -B.T @ y, atol=1e-12)


def test_douglas_rachford_is_the_deflated_map_on_squares():
    method = pdopt.AverageSpectrum()
    with jax.enable_x64(True):
        ends = []
        for metric in ("deflated", "douglas_rachford"):
            view = view_of(6, 6, metric)
            state = method.init(view, view.start())
            for _ in range(25):
                state, visit = method.step(view, state)
            ends.append(view.back(method.pair(view, state, visit)))
        for one, other in zip(jax.tree.leaves(ends[0].x), jax.tree.leaves(ends[1].x)):
            np.testing.assert_allclose(one, other, atol=1e-12)


def test_the_state_makes_its_pair_again_and_its_violation_is_carried_right():
    method = pdopt.AverageSpectrum()
    with jax.enable_x64(True):
        view = view_of(6, 4, "douglas_rachford")
        state = method.init(view, view.start())
        np.testing.assert_array_equal(method.whole(view, state).x, view.start().x)
        for _ in range(15):
            state, visit = method.step(view, state)
        pair, whole = method.pair(view, state, visit), method.whole(view, state)
        for one, other in zip(jax.tree.leaves(pair), jax.tree.leaves(whole)):
            np.testing.assert_allclose(one, other, atol=1e-14)
        true = view.violation(state.pair.x.point)
        for one, other in zip(state.pair.x.image, true):
            np.testing.assert_allclose(one, other, atol=1e-12)


def test_q_follows_the_spectrum_that_is_met():
    method = pdopt.AverageSpectrum()
    with jax.enable_x64(True):
        view = view_of(5, 5, "deflated")
        tuning = method.init(view, view.start()).tuning
        grown = method._tuned(tuning, jnp.float64(REJECT + 1), jnp.bool_(True))
        np.testing.assert_allclose(float(grown.size.q / tuning.size.q), GROW)
        for _ in range(20):
            tuning = method._tuned(tuning, jnp.float64(0.5), jnp.bool_(False))
        np.testing.assert_allclose(float(tuning.size.q), 0.7 * SHRINK)


@pytest.mark.parametrize("wrong", [{"gamma": 2.0}, {"gamma": 0.0}, {"share": 0.0}, {"gain": 2.0}, {"every": 0}])
def test_settings_are_checked(wrong):
    with pytest.raises(InvalidOption):
        pdopt.AverageSpectrum(**wrong)
