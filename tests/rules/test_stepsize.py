"""The limit of a step by direct computation, what is accepted, and how eta moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdopt.errors import InvalidOption
from pdopt.rules.stepsize import AdaptiveStep, ConstantStep, Movement, Size

A = np.array([[2.0, 1.0], [0.0, 3.0]])


def metric(eta, omega):
    """PDHG's metric on (dx, dy), with `v = -A x`: it must be positive where a step is admissible."""
    return np.block([[omega * np.eye(2) / eta, A.T], [A, np.eye(2) / (eta * omega)]])


def movement(dx, dy):
    return Movement(jnp.asarray(dx @ dx), jnp.asarray(dy @ dy), jnp.asarray(dy @ (-A @ dx)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10.0))
def test_error_and_limit_equal_the_metric_computed_directly(seed, omega):
    dx, dy = np.random.default_rng(seed).normal(size=(2, 2))
    with jax.enable_x64(True):
        moved = movement(dx, dy)
        limit = float(moved.limit(omega))
        eta = 0.9 / np.linalg.norm(A, 2)
        d = np.concatenate([dx, dy])
        assert float(moved.error(eta, omega)) == pytest.approx(np.sqrt(d @ metric(eta, omega) @ d), rel=1e-10)
    moved_by = omega * dx @ dx + dy @ dy / omega
    assert limit == pytest.approx(moved_by / (2 * abs(dy @ A @ dx)), rel=1e-10)
    # At eta = limit the quadratic form, with the cross term at its worst sign, is exactly zero.
    assert moved_by / limit - 2 * abs(dy @ A @ dx) == pytest.approx(0, abs=1e-9 * moved_by / limit)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100.0))
def test_a_step_of_at_most_one_over_the_norm_is_always_accepted(seed, omega):
    rng = np.random.default_rng(seed)
    dx, dy = rng.normal(size=(2, 2)) * 10.0 ** rng.uniform(-3, 3, (2, 1))
    with jax.enable_x64(True):
        for share in (1.0 - 1e-12, 0.5):
            size = Size.begin(jnp.float64(share / np.linalg.norm(A, 2)))
            assert bool(AdaptiveStep().update(size, movement(dx, dy), omega).accepted)
    top = np.linalg.svd(A)
    # The bound is met: along the leading singular vectors, balanced by omega, a longer step is refused.
    with jax.enable_x64(True):
        size = Size.begin(jnp.float64(1.001 / np.linalg.norm(A, 2)))
        worst = movement(top.Vh[0] / np.sqrt(omega), top.U[:, 0] * np.sqrt(omega))
        assert not bool(AdaptiveStep().update(size, worst, omega).accepted)


def test_eta_moves_by_the_rule_of_pdlp():
    rule = AdaptiveStep(factor=0.9, shrink=0.3, grow=0.6, switch=0.0)
    with jax.enable_x64(True):
        size = Size.begin(jnp.float64(0.2))._replace(tried=jnp.int32(5))
        moved = Movement(jnp.float64(1.0), jnp.float64(4.0), jnp.float64(-3.0))
        limit = (2.0 * 1.0 + 4.0 / 2.0) / 6.0
        after = rule.update(size, moved, 2.0)
        expected = min((1 - 7**-0.3) * 0.9 * limit, (1 + 7**-0.6) * 0.2)
        assert float(after.eta) == pytest.approx(expected, rel=1e-12)
        assert int(after.tried) == 6
        assert bool(after.accepted)
        refused = rule.update(size._replace(eta=jnp.float64(2.0)), moved, 2.0)
        assert not bool(refused.accepted)
        assert float(refused.eta) < limit


def crossing(limit):
    """A movement whose limit at omega = 1 is the given one."""
    return Movement(jnp.float32(1.0), jnp.float32(1.0), jnp.float32(1.0 / limit))


def test_eta_stays_at_its_base_until_the_mean_limit_passes_the_switch():
    rule, size, changed = AdaptiveStep(switch=3.0), Size.begin(jnp.float32(1.0)), None
    for k in range(200):
        size = rule.update(size, crossing(6.0), 1.0)
        if changed is None and float(size.eta) != 1.0:
            changed = k + 1
    # The mean of log(limit / base) over about 64 steps climbs towards log 6 and passes log 3 after 61 of them:
    # 1 - (1 - 1/64)^k >= log 3 / log 6.
    assert changed == int(np.ceil(np.log(1 - np.log(3) / np.log(6)) / np.log(1 - 1 / 64)))
    assert 1.0 < float(size.eta) <= 0.9 * 6.0
    assert float(size.base) == 1.0
    for _ in range(200):
        size = rule.update(size, crossing(1.5), 1.0)
    assert float(size.eta) == 1.0  # little to gain: back to the base


def test_a_base_beyond_the_limit_shrinks():
    size = AdaptiveStep().update(Size.begin(jnp.float32(1.0)), crossing(0.5), 1.0)
    assert not bool(size.accepted)
    assert float(size.base) == float(size.eta) == pytest.approx(0.45)


def test_a_step_in_which_one_side_moved_alone_changes_nothing():
    for switch in (0.0, 3.0):
        size = Size.begin(jnp.float32(1.0))._replace(eta=jnp.float32(1.3 if switch == 0 else 1.0))
        for moved in (
            Movement(jnp.float32(1.0), jnp.float32(0.0), jnp.float32(0.0)),
            Movement(*[jnp.float32(0.0)] * 3),
        ):
            after = AdaptiveStep(switch=switch).update(size, moved, 1.0)
            assert bool(after.accepted)
            assert (float(after.eta), float(after.slack)) == (float(size.eta), 0.0)


def test_a_nan_is_accepted_so_that_the_check_sees_it():
    """A refused NaN would be tried again until the iteration limit; an accepted one becomes NUMERICAL_ERROR."""
    size = Size.begin(jnp.float32(1.0))
    assert bool(AdaptiveStep().update(size, Movement(*[jnp.float32(np.nan)] * 3), 1.0).accepted)


@pytest.mark.parametrize("rule", [ConstantStep(), AdaptiveStep()])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_first_size(rule, dtype):
    with jax.enable_x64(True):
        assert float(rule.init(jnp.asarray(4.0, dtype)).eta) == pytest.approx(0.25 * rule.share, rel=1e-6)
        zero = rule.init(jnp.asarray(0.0, dtype))
        assert float(zero.eta) == 1.0
        assert zero.eta.dtype == dtype
        steps = zero._replace(eta=jnp.asarray(0.5, dtype)).steps(jnp.asarray(4.0, dtype))
        assert (float(steps.primal), float(steps.dual)) == (0.125, 2.0)


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (ConstantStep(0.0), "share"), (ConstantStep(1.1), "share"), (AdaptiveStep(factor=0.0), "factor"),
        (AdaptiveStep(factor=2.0), "factor"), (AdaptiveStep(shrink=0.0), "shrink"), (AdaptiveStep(grow=-1.0), "grow"),
        (AdaptiveStep(factor=np.nan), "factor"),
        (AdaptiveStep(switch=-1.0), "switch"), (AdaptiveStep(share=1.5), "share"),
    ],
)  # fmt: skip
def test_settings_outside_their_range_are_refused(rule, name):
    with pytest.raises(InvalidOption, match=f"{name} is"):
        rule.validate()
