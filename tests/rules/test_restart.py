"""Restarts by each of their criteria, and the primal weight against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.errors import InvalidOption
from pdopt.rules.restart import Epoch, FixedPointRestart, PrimalWeight, Weight

RULE = FixedPointRestart(sufficient=0.2, necessary=0.5, artificial=0.36)


def epoch(first=1.0, last=0.4, steps=64, total=1000, restarts=1):
    return Epoch(jnp.float32(first), jnp.float32(last), jnp.int32(steps), jnp.int32(total), jnp.int32(restarts))


@pytest.mark.parametrize(
    ("error", "changes", "restart"),
    [
        (0.2, {}, True),  # enough
        (0.21, {"last": 0.3}, False),  # some, and still falling
        (0.21, {"last": 0.2}, True),  # some, and rising
        (0.5, {"last": 0.4}, True),
        (0.51, {"last": 0.4}, False),  # rising, but not below the necessary share
        (0.9, {"steps": 359}, False),
        (0.9, {"steps": 360}, True),  # long
        (0.9, {"restarts": 0}, True),  # the first check of a run
        (0.3, {"last": np.inf}, False),  # the first check of an epoch cannot be rising
        (np.nan, {}, False),
    ],
)
def test_each_criterion(error, changes, restart):
    assert bool(RULE.decide(epoch(**changes), jnp.float32(error))) is restart


def test_the_epoch_after_a_check():
    before = epoch()
    kept = RULE.update(before, False, jnp.float32(0.7))
    assert [float(v) for v in kept] == pytest.approx([1.0, 0.7, 64, 1000, 1])
    begun = RULE.update(before, True, jnp.float32(0.7))
    assert [float(v) for v in begun] == [np.inf, np.inf, 0, 1000, 2]
    assert [v.dtype for v in begun] == [v.dtype for v in before]
    assert bool(RULE.decide(Epoch.begin(jnp.float32), jnp.float32(1.0)))


@pytest.mark.parametrize("name", ["sufficient", "necessary", "artificial"])
@pytest.mark.parametrize("value", [0.0, -0.1, 1.5, np.nan])
def test_shares_outside_their_range_are_refused(name, value):
    with pytest.raises(InvalidOption, match=f"{name} is"):
        FixedPointRestart(**{name: value}).validate()


def by_hand(omega, integral, dx, dy, ratio, rule):
    error = np.log(dy) - np.log(dx) - np.log(omega)
    integral = rule.leak * integral + error
    push = rule.gain * error + rule.integral * integral + rule.balance * np.clip(ratio, -4, 4)
    return omega * np.exp(push), integral


SETTINGS = [(0.7, 0.01, 0.2), (0.99, 0.01, 0.0), (0.5, 0.0, 0.5), (1.0, 0.0, 0.0)]


@pytest.mark.parametrize(("gain", "integral", "balance"), SETTINGS)
def test_the_weight_equals_its_formula_over_epochs(gain, integral, balance):
    rule = PrimalWeight(gain=gain, integral=integral, balance=balance)
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        weight, omega, total = rule.init(jnp.float64(2.0)), 2.0, 0.0
        for (dx, dy), ratio in zip(rng.uniform(0.1, 10, (6, 2)), rng.uniform(-8, 8, 6)):
            weight = rule.update(weight, jnp.float64(dx), jnp.float64(dy), jnp.float64(ratio))
            omega, total = by_hand(omega, total, dx, dy, ratio, rule)
            np.testing.assert_allclose([weight.omega, weight.integral], [omega, total], rtol=1e-12)
    if gain == 1.0:  # without the integral the whole way is gone at once
        assert float(weight.omega) == pytest.approx(dy / dx)


def after(rule, dx, dy, ratio=0.0):
    return float(rule.update(rule.init(jnp.float32(1.0)), jnp.float32(dx), jnp.float32(dy), jnp.float32(ratio)).omega)


def test_a_larger_dual_move_raises_the_weight():
    assert after(PrimalWeight(), 1.0, 5.0) > 1 > after(PrimalWeight(), 5.0, 1.0)


def test_a_larger_primal_residual_raises_the_weight_as_far_as_its_clip():
    assert after(PrimalWeight(), 1.0, 1.0, 2.0) > 1 > after(PrimalWeight(), 1.0, 1.0, -2.0)
    assert after(PrimalWeight(), 1.0, 1.0, 5.0) == after(PrimalWeight(), 1.0, 1.0, 50.0)
    assert after(PrimalWeight(balance=0.0), 1.0, 1.0, 50.0) == 1


@pytest.mark.parametrize(("dx", "dy"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (1e17, 1.0), (np.nan, 1.0), (1.0, np.inf)])
def test_the_weight_stays_where_one_side_did_not_move_or_blew_up(dx, dy):
    before = Weight(jnp.float32(3.0), jnp.float32(0.5))
    kept = PrimalWeight().update(before, jnp.float32(dx), jnp.float32(dy), jnp.float32(1.0))
    assert (float(kept.omega), float(kept.integral)) == (3.0, 0.5)


def test_the_weight_stays_within_its_bound():
    rule = PrimalWeight(gain=1.0, bound=100.0)
    assert after(rule, 1e-10, 1e10) == 100.0
    assert after(rule, 1e10, 1e-10) == pytest.approx(0.01)


@pytest.mark.parametrize(("name", "value"), [("gain", 1.5), ("balance", -0.1), ("leak", np.nan), ("bound", 0.5)])
def test_weights_outside_their_range_are_refused(name, value):
    with pytest.raises(InvalidOption, match=f"{name} is"):
        PrimalWeight(**{name: value}).validate()
