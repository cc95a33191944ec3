"""Divergences against the definition `h(x) - h(z) - <h'(z), x - z>`, their identities, conjugates and edge cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from scipy.optimize import minimize_scalar

from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.geometry import Bregman, FermiDirac, ItakuraSaito, KullbackLeibler, SquaredEuclidean

DIVERGENCES = {
    "euclidean": SquaredEuclidean(),
    "kl": KullbackLeibler(),
    "itakura-saito": ItakuraSaito(),
    "fermi-dirac": FermiDirac(-0.5, 4.0),
}
NAMES = list(DIVERGENCES)
points = st.lists(st.floats(0.01, 3.9), min_size=3, max_size=3)
few = settings(max_examples=12, deadline=None)


@pytest.mark.parametrize("name", NAMES)
@given(x=points, w=points, z=points)
@few
def test_definition_positivity_and_three_points(name, x, w, z):
    d = DIVERGENCES[name]
    with jax.enable_x64(True):
        x, w, z = (jnp.asarray(v) for v in (x, w, z))
        slow = d.potential(x) - d.potential(z) - jnp.vdot(jax.grad(d.potential)(z), x - z)
        # Slopes reach 1e2 (Itakura-Saito at 0.01), so products reach 1e3: rounding of 1e-12.
        assert float(d(x, z)) == pytest.approx(float(slow), rel=1e-9, abs=1e-11)
        assert float(d(x, z)) >= 0
        assert float(d(x, x)) == 0
        three = d(x, w) + d(w, z) + sum(jnp.vdot(d.gradient(w) - d.gradient(z), x - w)[None])
        assert float(d(x, z)) == pytest.approx(float(three), rel=1e-9, abs=1e-11)
        general = Bregman(d.potential)
        assert float(general(x, z)) == pytest.approx(float(d(x, z)), rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_mirror_maps_are_gradients_and_invert_each_other(name):
    d = DIVERGENCES[name]
    with jax.enable_x64(True):
        x = jnp.asarray([0.05, 0.9, 3.2])
        y = d.gradient(x)
        # The Fermi-Dirac potential has slope log(x - l) - log(u - x): the constants of the two parts cancel.
        np.testing.assert_allclose(y, jax.grad(d.potential)(x), rtol=1e-12)
        np.testing.assert_allclose(d.inverse(y), x, rtol=1e-12)
        np.testing.assert_allclose(jax.grad(d.conjugate)(y), x, rtol=1e-12)
        # Fenchel's equality, and duality D_h(x, z) = D_h*(h'(z), h'(x)).
        assert float(d.potential(x) + d.conjugate(y)) == pytest.approx(float(jnp.vdot(x, y)), rel=1e-12)
        z = jnp.asarray([1.0, 0.4, 2.0])
        dual = Bregman(d.conjugate)(d.gradient(z), y)
        assert float(d(x, z)) == pytest.approx(float(dual), rel=1e-11)
        # Away from 0, where third derivatives of Itakura-Saito reach 1e5 and finite differences fail.
        check_grads(d, (x + 0.4, z), order=2, modes=("rev",), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "bounds"), [("kl", (0, 60)), ("itakura-saito", (1e-9, 60)), ("fermi-dirac", (-0.5, 4.0))]
)
def test_conjugate_is_the_supremum(name, bounds):
    d = DIVERGENCES[name]
    with jax.enable_x64(True):
        for y in (-2.0, -0.7):
            found = minimize_scalar(lambda x, y=y: float(d.potential(x)) - x * y, bounds=bounds, method="bounded")
            assert float(d.conjugate(y)) == pytest.approx(-found.fun, rel=1e-8)


def test_edges_of_the_domain():
    kl, burg, fermi = KullbackLeibler(), ItakuraSaito(), FermiDirac(0.0, 1.0)
    assert float(kl(jnp.zeros(2), jnp.ones(2))) == 2.0
    assert float(kl(jnp.zeros(2), jnp.zeros(2))) == 0.0
    assert float(kl(jnp.ones(1), jnp.zeros(1))) == np.inf
    assert float(kl(-jnp.ones(1), jnp.ones(1))) == np.inf
    assert float(burg(jnp.zeros(1), jnp.ones(1))) == np.inf
    assert float(burg.conjugate(jnp.zeros(1))) == np.inf
    assert float(fermi(jnp.array([0.0]), jnp.array([0.5]))) == pytest.approx(np.log(2), rel=1e-6)
    assert float(fermi(jnp.array([2.0]), jnp.array([0.5]))) == np.inf
    assert float(fermi.potential(jnp.array([-1.0]))) == np.inf
    assert float(kl.potential(jnp.zeros(1))) == 0.0
    assert bool(jnp.isnan(kl(jnp.array([jnp.nan]), jnp.ones(1))))
    assert bool(jnp.isfinite(jax.grad(kl)(jnp.array([0.0, 1.0]), jnp.array([1.0, 1.0]))[1]))


def test_accurate_where_points_nearly_agree():
    """In float32 the definition loses everything below 1e-7; log1p keeps the leading digits."""
    z = jnp.array([1.0], jnp.float32)
    x = jnp.array([1.0 + 2.0**-10], jnp.float32)
    r = 1.0 + 2.0**-10
    exact = r * np.log(r) - r + 1
    # The first-order terms of size 1e-3 still cancel: eps 6e-8 * 1e-3 against 5e-7.
    assert float(KullbackLeibler()(x, z)) == pytest.approx(exact, rel=5e-4)
    assert float(KullbackLeibler()(jnp.array([1e30]), jnp.array([1e-30]))) == pytest.approx(
        1e30 * (np.log(1e30) * 2 - 1), rel=1e-5
    )


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_float32_trees_and_transforms(name, x64):
    d = DIVERGENCES[name]
    with jax.enable_x64(x64):
        x, z = jnp.asarray([[0.5, 1.0], [2.0, 3.0]], jnp.float32), jnp.asarray([[1.0, 1.5], [2.5, 0.3]], jnp.float32)
        value = d(x, z)
        assert value.dtype == d.potential(x).dtype == d.conjugate(-x).dtype == jnp.float32
        assert d.gradient(x).dtype == d.inverse(-x).dtype == jnp.float32
        assert float(jax.jit(lambda d, *a: d(*a))(d, x, z)) == pytest.approx(float(value), rel=1e-5)
        assert float(jax.vmap(d)(x, z).sum()) == pytest.approx(float(value), rel=1e-5)
        assert float(d({"a": x[0], "b": x[1]}, {"a": z[0], "b": z[1]})) == pytest.approx(float(value), rel=1e-5)
        # Numpy data in float64 follow the first argument.
        assert d(x, np.asarray(z, np.float64)).dtype == jnp.float32


def test_general_divergence_of_trees():
    general = Bregman(lambda p: jnp.sum(p["a"] ** 2) + jnp.sum(jnp.exp(p["b"])))
    x, z = {"a": jnp.ones(2), "b": jnp.zeros(1)}, {"a": jnp.zeros(2), "b": jnp.ones(1)}
    assert float(general(x, z)) == pytest.approx(2 + (1 - np.e + np.e), rel=1e-6)
    assert float(general(x, x)) == 0.0


def test_bounds_are_checked():
    with pytest.raises(InvalidProblem, match="lower is 2"):
        FermiDirac(2.0, 1.0)
    with pytest.raises(InvalidOption, match="upper - lower is inf"):
        FermiDirac(0.0, np.inf)
    with pytest.raises(InvalidOption, match="> 0"):
        FermiDirac(1.0, 1.0)
