"""Prediction and correction: contraction in H on random bilinear problems, and the sign of its bent direction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.rules.correction import Bend, correct
from pdopt.rules.saddle import row, saddle_step
from pdopt.types import Pair


def problem(seed):
    """`min c'x, A x = b, x >= 0` with the optimum (x, y) known: complementary by construction."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(4, 7))
    x, y, z = np.maximum(rng.normal(size=7), 0), rng.normal(size=4), rng.uniform(0, 1, 7)
    z[x > 0] = 0
    return A, A.T @ y + z, A @ x, Pair(x, y)


def predicted(A, c, b, pair, r, s):
    """The saddle step with theta = 0."""
    primal = lambda x, y: jnp.maximum(x - (c - A.T @ y) / r, 0)
    parts = row(primal, lambda x: b - A @ x, lambda y, v, step: y + step * v, theta=0.0)
    return saddle_step(parts, 1 / s, pair)[0]


def bend(A, pair, ahead):
    dx, dy = pair.x - ahead.x, pair.y - ahead.y
    pull = -A.T @ dy  # K'dy, K = -A
    return Bend(dx @ dx, dy @ dy, dx @ pull, pull @ pull), pull


def square(z, w, r, s):
    return float(r * jnp.sum((z.x - w.x) ** 2) + s * jnp.sum((z.y - w.y) ** 2))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("gamma", [0.5, 1.5, 1.9])
def test_contracts_in_its_metric(seed, gamma):
    A, c, b, best = problem(seed)
    rng = np.random.default_rng(seed + 100)
    with jax.enable_x64(True):
        pair = Pair(jnp.asarray(rng.normal(size=7)), jnp.asarray(rng.normal(size=4)))
        q = np.linalg.norm(A, 2) * 0.6  # t <= 1 / 0.36 < 4
        r, s = 2 * q, q / 2
        for _ in range(30):
            ahead = predicted(A, c, b, pair, r, s)
            met, pull = bend(A, pair, ahead)
            phi, psi = float(met.phi(r, s)), float(met.psi(r, s))
            assert phi >= (1 - 0.5 / 0.6) * (r * met.primal + s * met.dual) - 1e-12
            after = correct(pair, ahead, pull, met.shift(r, s, gamma), r)
            promised = gamma * (2 - gamma) * phi**2 / psi
            assert square(after, best, r, s) <= square(pair, best, r, s) - promised + 1e-9
            pair = after


@pytest.mark.slow
def test_the_opposite_sign_does_not_converge():
    A, c, b, _ = problem(1)
    with jax.enable_x64(True):
        q = np.linalg.norm(A, 2) * 0.6
        far = {}
        for sign in (1.0, -1.0):
            pair = Pair(jnp.zeros(7), jnp.zeros(4))
            for _ in range(4000):
                ahead = predicted(A, c, b, pair, q, q)
                met, pull = bend(A, pair, ahead)
                turned = met._replace(cross=sign * met.cross)
                pair = correct(pair, ahead, sign * pull, turned.shift(q, q, 1.5), q)
            far[sign] = float(jnp.linalg.norm(b - A @ jnp.maximum(pair.x, 0)))
    assert far[1.0] <= 1e-6
    assert not far[-1.0] <= 1e-2


def test_a_fixed_point_stays():
    zero = jnp.zeros(())
    assert float(Bend(zero, zero, zero, zero).shift(1.0, 1.0, 1.5)) == 0.0
    assert float(Bend(zero, zero, zero, zero).ratio(1.0, 1.0)) == 0.0
