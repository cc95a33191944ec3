"""Gradients of the estimators against the exact ones on a policy over five tokens; what is active and what is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.training.advantages import centre
from pdopt.training.objectives import policy_loss, totals
from pdopt.training.regularisers import (
    entropy_band,
    entropy_bonus,
    k1,
    k2,
    k3,
    kl_cost,
    kl_loss,
    kl_report,
    overlong,
)

# Probabilities in twentieths: a batch that holds each token as often as it is likely has the exact mean as its mean.
COUNTS = np.array([8, 5, 4, 2, 1])
THETA = jnp.log(jnp.asarray(COUNTS / 20, jnp.float32))
REFERENCE = jnp.log(jnp.array([0.1, 0.3, 0.2, 0.25, 0.15], jnp.float32))
TOKENS = np.repeat(np.arange(5), COUNTS)[:, None]
MASK = np.ones((20, 1), bool)
WHOLE = totals(MASK, 1)
log_pi = lambda theta: jax.nn.log_softmax(theta)[TOKENS]


def divergence(p, q):
    return jnp.sum(jnp.exp(p) * (p - q))


def forward(theta):
    """KL(pi, reference)."""
    return divergence(jax.nn.log_softmax(theta), REFERENCE)


exact_slope = jax.jit(jax.grad(forward))


def test_the_mean_gradient_of_k2_is_that_of_the_divergence_and_of_k3_that_of_the_other():
    loss = lambda theta, kind: kl_loss(log_pi(theta), REFERENCE[TOKENS], MASK, WHOLE, kind)
    slope = jax.jit(jax.grad(loss), static_argnums=1)
    exact = exact_slope(THETA)
    other = jax.jit(jax.grad(lambda theta: divergence(REFERENCE, jax.nn.log_softmax(theta))))(THETA)
    np.testing.assert_allclose(slope(THETA, "k2"), exact, atol=1e-6)
    np.testing.assert_allclose(slope(THETA, "k3"), other, atol=1e-6)
    np.testing.assert_allclose(slope(THETA, "k1"), 0, atol=1e-6)
    assert np.abs(exact - other).max() > 0.05
    # Values: k1 and k3 are exact on average, k2 is not.
    report = jax.jit(lambda theta: kl_report(log_pi(theta), REFERENCE[TOKENS], MASK, WHOLE))(THETA)
    for value in (report["kl_k1"], report["kl_k3"]):
        assert float(value) == pytest.approx(float(forward(THETA)), rel=1e-5)


def test_k1_in_the_reward_has_the_gradient_of_the_divergence():

    @jax.jit
    def slopes(theta):
        cost = kl_cost(log_pi(theta), REFERENCE[TOKENS], MASK)
        loss = lambda theta, A: policy_loss("reinforce", log_pi(theta), None, A, MASK, WHOLE)[0]
        return [jax.grad(loss)(theta, A) for A in (-cost, centre(-cost))]

    for found in slopes(THETA):
        np.testing.assert_allclose(found, exact_slope(THETA), atol=1e-6)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_on_older_texts_every_weighted_estimator_has_the_gradient_of_the_divergence(kind):
    theta = THETA + jnp.array([0.3, -0.2, 0.1, 0.0, -0.4])  # the policy has moved on since TOKENS were drawn
    loss = lambda theta: kl_loss(log_pi(theta), REFERENCE[TOKENS], MASK, WHOLE, kind, log_pi(THETA))
    value, slope = jax.jit(jax.value_and_grad(loss))(theta)
    np.testing.assert_allclose(slope, exact_slope(theta), atol=2e-6)
    if kind != "k2":
        assert float(value) == pytest.approx(float(forward(theta)), rel=1e-5)


def test_estimators_by_hand_and_without_overflow():
    d = jnp.array([-1.0, 0.0, 2.0])
    np.testing.assert_allclose(k1(d), d)
    np.testing.assert_allclose(k2(d), [0.5, 0, 2])
    np.testing.assert_allclose(k3(d), [np.e - 2, 0, np.exp(-2) + 1], rtol=1e-6)
    value, slope = jax.value_and_grad(lambda d: jnp.sum(k3(d)))(jnp.array([-1e4]))
    assert np.isfinite(value)
    assert np.isfinite(slope).all()


def test_costs_of_rows():
    lp, ref = np.array([[-1.0, -2.0], [-1.0, np.nan]]), np.array([[-2.0, -2.5], [-3.0, 0.0]])
    mask = np.array([[True, True], [True, False]])
    np.testing.assert_allclose(kl_cost(lp, ref, mask), [1.5, 2.0])
    np.testing.assert_allclose(kl_cost(lp, ref, mask, level="mean"), [0.75, 2.0])
    np.testing.assert_allclose(kl_cost(lp, ref, mask, kind="k2"), [0.625, 2.0])
    assert not np.any(jax.grad(lambda lp: jnp.sum(kl_cost(lp, ref, mask)))(jnp.asarray(lp)))


def entropy(theta):
    p = jax.nn.log_softmax(theta)
    return jnp.broadcast_to(-jnp.sum(jnp.exp(p) * p), MASK.shape)


REGULARISERS = {
    "kl": (lambda theta: kl_loss(log_pi(theta), REFERENCE[TOKENS], MASK, WHOLE), THETA, REFERENCE),
    "bonus": (lambda theta: entropy_bonus(entropy(theta), MASK, WHOLE), THETA, jnp.zeros(5)),
    "band, above": (lambda theta: entropy_band(entropy(theta), MASK, WHOLE, 0.2, 1.0), THETA, 3 * THETA),
    "band, below": (lambda theta: entropy_band(entropy(theta), MASK, WHOLE, 1.0, 1.5), 3 * THETA, THETA),
}


@pytest.mark.parametrize("name", list(REGULARISERS))
def test_each_regulariser_moves_the_policy_where_it_is_active_and_only_there(name):
    """A penalty made from constants has a value and no gradient: the defect of two released codes."""
    loss, active, idle = REGULARISERS[name]
    slope = jax.jit(jax.grad(loss))
    assert np.abs(slope(active)).max() > 1e-2
    np.testing.assert_allclose(slope(idle), 0, atol=1e-6)
    # Descent does what the name says.
    assert loss(active - 0.1 * slope(active)) < loss(active)


def test_parts_add_up_and_what_is_masked_is_not_read():
    rng = np.random.default_rng(0)
    h, mask = rng.uniform(0, 3, (4, 5)).astype(np.float32), rng.random((4, 5)) < 0.6
    whole = totals(mask, 5)
    for f in (
        lambda h, mask: entropy_bonus(h, mask, whole),
        lambda h, mask: entropy_band(h, mask, whole, 1.0, 2.0),
        lambda h, mask: kl_loss(h, jnp.zeros_like(h), mask, whole),
    ):
        f = jax.jit(f)
        halves = [np.where(np.arange(4)[:, None] // 2 == i, mask, False) for i in (0, 1)]
        parts = sum(float(f(h, half)) for half in halves)
        assert parts == pytest.approx(float(f(h, mask)), rel=1e-5)
        assert float(f(np.where(mask, h, np.float32(np.nan)), mask)) == float(f(h, mask))


def test_settings_and_shapes_that_are_wrong_are_refused():
    x, mask = np.zeros((1, 2)), np.ones((1, 2), bool)
    with pytest.raises(InvalidOption, match="unknown estimator 'k4'"):
        kl_loss(x, x, mask, WHOLE, "k4")
    with pytest.raises(InvalidOption, match="unknown estimator 'k4'"):
        kl_cost(x, x, mask, "k4")
    with pytest.raises(InvalidOption, match="unknown level 'max'"):
        kl_cost(x, x, mask, level="max")
    with pytest.raises(InvalidOption, match=r"low is 2\.0 and high is 1\.0"):
        entropy_band(x, mask, WHOLE, 2.0, 1.0)
    with pytest.raises(InvalidOption, match="buffer is 11"):
        overlong(np.ones(1), 10, 11)
    with pytest.raises(InvalidProblem, match="mask has shape"):
        entropy_bonus(x, mask[:, :1], WHOLE)
    with pytest.raises(InvalidProblem, match="the other log-probabilities has shape"):
        kl_loss(x, x[:, :1], mask, WHOLE)
