"""All routers in one table: shapes, balance, capacity, and what each promises; gates from the raw scores alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.methods.balanced_assignment import balanced_assignment
from pdopt.models.routers import ROUTERS, balance_loss, by_tokens, capacity, choose, gates, sinkhorn_prices

TOKENS, EXPERTS, TOP, PLACES = 64, 8, 2, 20


def batch(seed=0, tilt=1.0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(TOKENS, EXPERTS)) + tilt * np.linspace(-1, 1, EXPERTS)
    return jnp.asarray(logits, dtype), jax.nn.sigmoid(jnp.asarray(logits, dtype))


def routed(router, places=PLACES, dtype=np.float32, **settings):
    logits, scores = batch(dtype=dtype)
    return scores, choose(router, logits, scores, jnp.zeros(EXPERTS), top=TOP, places=places, **settings)


@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_selects_within_its_bounds(router):
    scores, routing = routed(router)
    gate = gates(scores, routing)
    loads = np.asarray(routing.tally.loads)
    assert loads.dtype == np.int32
    assert np.isfinite(gate).all()
    if routing.tokens is None:
        experts = np.asarray(routing.experts)
        assert experts.shape == gate.shape == (TOKENS, TOP)
        assert all(len(set(row)) == TOP for row in experts)
        assert loads.sum() == TOKENS * TOP
        np.testing.assert_array_equal(loads, np.bincount(experts.ravel(), minlength=EXPERTS))
        np.testing.assert_allclose(np.sum(gate, axis=1), 1, atol=1e-6)
    else:
        tokens = np.asarray(routing.tokens)
        assert tokens.shape == gate.shape == (EXPERTS, PLACES)
        assert loads.max() <= PLACES
        for row in tokens:
            taken = row[row < TOKENS]
            assert len(set(taken)) == len(taken)
        total = np.zeros(TOKENS + 1)
        np.add.at(total, tokens, np.asarray(gate))
        served = np.isin(np.arange(TOKENS), tokens)
        np.testing.assert_allclose(total[:TOKENS], served, atol=1e-6)


@pytest.mark.parametrize("router", ROUTERS)
def test_selection_is_not_differentiated_and_gates_are(router):
    logits, _ = batch()

    def weight(logits, bias):
        scores = jax.nn.sigmoid(logits)
        gate = gates(scores, choose(router, logits, scores, bias, top=TOP, places=PLACES))
        return jnp.sum(gate * jnp.arange(1.0, gate.size + 1).reshape(gate.shape))

    by_logits, by_bias = jax.grad(weight, argnums=(0, 1))(logits, jnp.zeros(EXPERTS))
    assert np.isfinite(by_logits).all()
    assert np.abs(by_logits).max() > 0
    np.testing.assert_array_equal(by_bias, np.zeros(EXPERTS))


@pytest.mark.parametrize("router", ROUTERS)
def test_jit_equals_no_jit_and_bfloat16_scores_are_routed(router):
    logits, scores = batch()
    call = lambda logits, scores: choose(router, logits, scores, jnp.zeros(EXPERTS), top=TOP, places=PLACES)
    plain, jitted = call(logits, scores), jax.jit(call)(logits, scores)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(jitted)):
        np.testing.assert_array_equal(a, b)
    low = call(logits.astype(jnp.bfloat16), scores.astype(jnp.bfloat16))
    assert int(low.tally.loads.sum()) >= TOKENS  # every place or token counted once


def test_ties_go_to_the_smaller_index():
    scores = jnp.ones((4, 3))
    routing = choose("bias", scores, scores, jnp.zeros(3), top=2, places=4)
    np.testing.assert_array_equal(routing.experts, np.tile([0, 1], (4, 1)))
    chosen = choose("expert_choice", scores, scores, jnp.zeros(3), top=1, places=2)
    np.testing.assert_array_equal(chosen.tokens, np.tile([0, 1], (3, 1)))


def test_the_bias_selects_and_the_gate_does_not_see_it():
    scores = jnp.array([[0.9, 0.5, 0.4]])
    routing = by_tokens(scores, jnp.array([-1.0, 0.0, 0.0]), 1)
    assert routing.experts.tolist() == [[1]]
    np.testing.assert_allclose(gates(scores, routing, normalise=False), [[0.5]])


def test_base_is_exact_and_balances_exactly():
    scores, routing = routed("base")
    assert set(np.asarray(routing.tally.loads)) == {TOKENS * TOP // EXPERTS}
    kept = jnp.sum(jnp.take_along_axis(scores, routing.experts, axis=1))
    assert float(kept) == pytest.approx(float(balanced_assignment(scores, TOP).score), abs=1e-5)


def test_sinkhorn_spreads_the_soft_loads():
    logits, _ = batch(tilt=2.0)
    spread = lambda n: jnp.mean(jax.nn.softmax(logits - sinkhorn_prices(logits, n), axis=1), axis=0)
    error = [float(jnp.abs(EXPERTS * spread(n) - 1).max()) for n in (1, 4, 32)]
    assert error[0] > error[1] > error[2]
    assert error[2] < 1e-3
    hard = np.asarray(routed("sinkhorn")[1].tally.loads)
    assert hard.max() < np.asarray(routed("aux_loss")[1].tally.loads).max()


def test_sinkhorn_prices_equal_a_loop_over_the_kernel():
    logits, _ = batch()
    kernel, column = np.exp(np.asarray(logits, float)), np.ones(EXPERTS)
    for _ in range(8):
        column = column / (EXPERTS * np.mean(kernel * column / (kernel @ column)[:, None], axis=0))
    expected = -np.log(column)
    np.testing.assert_allclose(sinkhorn_prices(logits, 8), expected - expected.mean(), atol=1e-5)


def test_prices_on_tokens_serve_more_tokens_than_expert_choice():
    fair = TOKENS * TOP // EXPERTS
    unserved = lambda router: TOKENS - len(set(np.asarray(routed(router, fair)[1].tokens).ravel()) - {TOKENS})
    assert unserved("ksparse_ot") < unserved("expert_choice")


def test_ksparse_shares_are_a_projection_on_the_simplex():
    from pdopt.geometry.balls import Simplex
    from pdopt.models.routers import _shares

    values = -jnp.sort(-jax.random.normal(jax.random.key(0), (5, 12)), axis=1)
    np.testing.assert_allclose(_shares(values, 3.0), 3 * Simplex().project(values / 3), atol=1e-6)


def test_balance_loss_is_one_when_even_and_grows_with_imbalance():
    scores = jnp.full((8, 4), 0.25)
    assert float(balance_loss(scores, jnp.full(4, 4))) == pytest.approx(1.0)
    tilted = jnp.array([[0.7, 0.1, 0.1, 0.1]] * 8)
    assert float(balance_loss(tilted, jnp.array([8, 0, 0, 0]))) == pytest.approx(2.8)
    pull = jax.grad(balance_loss)(tilted, jnp.array([8, 0, 0, 0]))
    assert (np.asarray(pull)[:, 0] > 0).all()  # descending lowers the score of the overloaded expert


def test_capacity_rounds_up_within_its_bounds():
    assert capacity(64, 8, 2, 1.25) == 20
    assert capacity(3, 8, 1, 1.0) == 1
    assert capacity(4, 2, 2, 9.0) == 4
