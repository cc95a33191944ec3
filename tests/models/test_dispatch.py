"""Dispatch layouts against the plain sum over all experts, with and without a capacity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.models.dispatch import Weights, by_blocks, by_places, by_ragged, collect, give_places, scatter

TOKENS, EXPERTS, TOP, WIDTH, HIDDEN = 24, 4, 2, 6, 10


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def case(seed=0, skew=True):
    rng = np.random.default_rng(seed)
    weights = Weights(
        *(jnp.asarray(rng.normal(size=s)) for s in [(EXPERTS, WIDTH, HIDDEN)] * 2 + [(EXPERTS, HIDDEN, WIDTH)])
    )
    x, gate = jnp.asarray(rng.normal(size=(TOKENS, WIDTH))), jnp.asarray(rng.uniform(size=(TOKENS, TOP)))
    order = np.argsort(rng.normal(size=(TOKENS, EXPERTS)) + (np.array([9, 2, 0, -9]) if skew else 0), axis=1)[:, ::-1]
    return weights, x, jnp.asarray(order[:, :TOP].copy(), jnp.int32), gate


def plain(weights, x, experts, gate):
    """Every expert on every token, then a sum: no dispatch at all."""
    hidden = jax.nn.silu(jnp.einsum("td,edf->tef", x, weights.gate)) * jnp.einsum("td,edf->tef", x, weights.up)
    every = jnp.einsum("tef,efd->ted", hidden, weights.down)
    return jnp.einsum("tk,tkd->td", gate, jnp.take_along_axis(every, experts[..., None], axis=1))


@pytest.mark.parametrize("layout", [by_blocks, by_ragged])
@pytest.mark.parametrize("skew", [True, False])
def test_layouts_without_capacity_equal_the_plain_sum(layout, skew):
    weights, x, experts, gate = case(skew=skew)
    np.testing.assert_allclose(layout(weights, x, experts, gate), plain(weights, x, experts, gate), atol=1e-12)
    total = lambda f: jax.grad(lambda w, x, g: jnp.sum(jnp.sin(f(w, x, experts, g))), argnums=(0, 1, 2))(
        weights, x, gate
    )
    for a, b in zip(jax.tree.leaves(total(layout)), jax.tree.leaves(total(plain))):
        np.testing.assert_allclose(a, b, atol=1e-11)


def test_places_drop_later_choices_and_keep_the_rest():
    weights, x, experts, gate = case()
    table, place = give_places(experts, EXPERTS, 8)
    out = collect(by_places(weights, x, table), place, gate)
    # By hand: first choices in token order, then second ones.
    free, kept = [8] * EXPERTS, np.zeros((TOKENS, TOP), bool)
    for k in range(TOP):
        for t in range(TOKENS):
            e = int(experts[t, k])
            kept[t, k] = free[e] > 0
            free[e] -= 1
    assert 0 < kept.sum() < kept.size
    np.testing.assert_array_equal(np.asarray(place) < EXPERTS * 8, kept)
    np.testing.assert_allclose(out, plain(weights, x, experts, gate * kept), atol=1e-12)
    assert (np.asarray(table) < TOKENS).sum() == kept.sum()


def test_scatter_adds_up_what_experts_chose():
    weights, x, experts, gate = case()
    table, place = give_places(experts, EXPERTS, TOKENS)
    by_expert = jnp.zeros(EXPERTS * TOKENS).at[place].set(gate).reshape(EXPERTS, TOKENS)
    results = by_places(weights, x, table)
    np.testing.assert_allclose(scatter(results, table, by_expert, TOKENS), collect(results, place, gate), atol=1e-12)


def test_no_array_of_tokens_by_experts_by_capacity():
    weights, x, experts, gate = case()
    largest = 0
    for layout in (by_blocks, by_ragged):
        jaxpr = jax.make_jaxpr(layout)(weights, x, experts, gate)
        sizes = [np.prod(v.aval.shape) for eqn in jaxpr.eqns for v in eqn.outvars if hasattr(v.aval, "shape")]
        largest = max(largest, max(sizes))
    assert largest < TOKENS * EXPERTS * TOKENS  # capacity T, as a layout without capacity would need
