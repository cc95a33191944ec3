"""Advantages against plain loops, at the corners (equal groups, NaN, one member), and under every transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.training.advantages import (
    FORMS,
    Scales,
    batch_normalise,
    centre,
    constrained_advantage,
    effective_multipliers,
    group_normalise,
    init_scales,
    leave_one_out,
    step_advantage,
    update_scales,
    zero_variance,
)

P, G, K = 4, 5, 2
advantage_of = jax.jit(constrained_advantage, static_argnames=("form", "ddof", "divide"))
NAN = np.nan


def batch(seed=0, missing=True):
    rng = np.random.default_rng(seed)
    r, c = rng.normal(size=(P, G)), rng.normal(size=(K, P, G))
    if missing:
        r[0, 1], c[0, 1, :], c[1, 2, :3] = NAN, NAN, NAN
        r[3, 2], c[:, 3, 2] = NAN, NAN  # a completion that has nothing
    return r.astype(np.float32), c.astype(np.float32)


def loop_centre(x):
    out = np.zeros_like(x)
    for i in np.ndindex(x.shape[:-1]):
        there = ~np.isnan(x[i])
        if there.any():
            out[i][there] = x[i][there] - x[i][there].mean()
    return out


def loop_std(x, ddof):
    there = x[~np.isnan(x)]
    return np.sqrt(((there - there.mean()) ** 2).sum() / max(len(there) - ddof, 1)) if len(there) else 0.0


def loop_normalise(x, eps, ddof):
    out = loop_centre(x)
    for i in np.ndindex(x.shape[:-1]):
        out[i] /= loop_std(x[i], ddof) + eps
    return out


def by_loops(form, r, c, y, eps=0.01):
    """The four formulas, completion by completion, in float64."""
    r, c = r.astype(float), c.astype(float)
    dr, dc = loop_centre(r), loop_centre(c)
    size = 1 + np.abs(y).sum()
    out = np.zeros_like(r)
    for p, g in np.ndindex(r.shape):
        if form == "lagrangian":
            prices = [y[k] / (loop_std(c[k], 0) + eps) for k in range(len(y))]
            out[p, g] = (dr[p, g] / (loop_std(r, 0) + eps) - sum(a * dc[k, p, g] for k, a in enumerate(prices))) / size
        if form == "centred":
            out[p, g] = (dr[p, g] - sum(y[k] * dc[k, p, g] for k in range(len(y)))) / size
        if form == "joint":
            D = dr[p] - sum(y[k] * dc[k, p] for k in range(len(y)))
            n = (~np.isnan(r[p]) | ~np.isnan(c[:, p]).all(axis=0)).sum()
            out[p, g] = D[g] / (np.sqrt((D**2).sum() / (n - 1)) + eps)
        if form == "separate":
            z = [loop_normalise(c[k], eps, 1)[p, g] for k in range(len(y))]
            out[p, g] = loop_normalise(r, eps, 1)[p, g] - sum(y[k] * z[k] for k in range(len(y)))
    return out


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("form", list(FORMS))
def test_each_form_equals_its_formula(form, missing):
    r, c = batch(missing=missing)
    y = np.array([0.7, 2.0], np.float32)
    found = advantage_of(form, r, c, y)
    np.testing.assert_allclose(found, by_loops(form, r, c, y), rtol=2e-5, atol=2e-6)
    if missing:
        assert found[3, 2] == 0  # no score at all
        assert found[0, 1] != 0  # no reward, but costs


def test_group_and_batch_normalisation_equal_their_loops():
    r, _ = batch()
    for eps, ddof in ((1e-4, 1), (1e-2, 0)):
        np.testing.assert_allclose(group_normalise(r, eps, ddof=ddof), loop_normalise(r, eps, ddof), rtol=1e-5)
    np.testing.assert_allclose(group_normalise(r, scale=False), loop_centre(r), rtol=1e-5, atol=1e-7)
    whole = r[~np.isnan(r)]
    expected = np.where(np.isnan(r), 0, (r - whole.mean()) / (whole.std() + 1e-4))
    np.testing.assert_allclose(batch_normalise(r), expected, rtol=1e-4, atol=1e-6)


def test_group_normalise_is_what_trl_computes():
    torch = pytest.importorskip("torch")
    r, _ = batch(missing=False)
    grouped = torch.tensor(r)
    trl = (grouped - grouped.mean(dim=1, keepdim=True)) / (grouped.std(dim=1, keepdim=True) + 1e-4)
    np.testing.assert_allclose(group_normalise(r), trl.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [0.1, -1 / 3, 1e6 / 7])
def test_groups_of_equal_values_give_exactly_zero(value):
    """Means of 7 equal float32 numbers are rounded; what is left must not be blown up by a tiny deviation."""
    r, c = jnp.full((2, 7), value), jnp.full((1, 2, 7), value)
    for form in FORMS:
        assert not np.any(advantage_of(form, r, c, jnp.array([3.0]), eps=1e-30))
    for found in (group_normalise(r, 1e-30), batch_normalise(r, 1e-30), leave_one_out(r), centre(r)):
        assert not np.any(found)


def test_nothing_there_gives_zero_and_no_nan():
    r, c = jnp.full((2, 3), NAN), jnp.full((1, 2, 3), NAN)
    for form in FORMS:
        assert not np.any(advantage_of(form, r, c, jnp.ones(1)))
    assert not np.any(leave_one_out(jnp.array([[NAN, 2.0, NAN], [NAN, NAN, NAN]])))
    assert not np.any(group_normalise(jnp.ones((3, 1))))  # groups of one


@pytest.mark.parametrize("form", list(FORMS))
def test_no_price_is_plain_grpo_bit_for_bit(form):
    r, c = batch()
    plain = {
        "lagrangian": lambda r: centre(r) / update_scales(init_scales(0), r, jnp.zeros((0, P, G)), 0.0).deviations()[0],
        "centred": centre,
        "joint": lambda r: group_normalise(r, 0.01),
        "separate": lambda r: group_normalise(r, 0.01),
    }[form]
    if form == "joint":  # a completion with a cost and no reward counts in the deviation of the sum
        c = np.where(np.isnan(r), NAN, c)
    for wrap in (lambda f: f, jax.jit):
        np.testing.assert_array_equal(
            wrap(lambda y, form=form: constrained_advantage(form, r, c, y))(jnp.zeros(K)), wrap(plain)(r)
        )
    none = constrained_advantage(form, r, jnp.zeros((0, P, G)), jnp.zeros(0))
    np.testing.assert_array_equal(none, plain(r))


def test_leave_one_out_is_the_mean_of_the_others():
    r, _ = batch()
    for p, g in np.ndindex(r.shape):
        others = np.delete(r[p], g)
        expected = 0 if np.isnan(r[p, g]) else r[p, g] - np.nanmean(others)
        assert float(leave_one_out(r)[p, g]) == pytest.approx(expected, abs=1e-5)


def test_step_advantage_equals_its_loop():
    rng = np.random.default_rng(0)
    r, S, gamma = rng.normal(size=(2, 3, 4)), 4, 0.9
    active = np.arange(S) < np.array([[4, 2, 1], [3, 3, 0]])[..., None]
    returns = np.zeros_like(r)
    for p, g, t in np.ndindex(r.shape):
        returns[p, g, t] = sum(gamma ** (s - t) * r[p, g, s] for s in range(t, S) if active[p, g, s])
    expected = np.zeros_like(r)
    for p, g, t in np.ndindex(r.shape):
        if active[p, g, t]:
            alive = [returns[p, i, t] for i in range(3) if active[p, i, t]]
            expected[p, g, t] = returns[p, g, t] - np.mean(alive)
    np.testing.assert_allclose(step_advantage(r, active, gamma), expected, rtol=1e-5, atol=1e-6)


def test_step_advantage_does_not_reward_length_once_rewards_are_centred():
    """Rewards N(1, 1) whatever is done, stop with probability 0.3: the gradient on "continue" must be 0 within noise.

    llm_algorithms.md section 10 measured z = 103 with the baseline alone, 1.6 with centred rewards.
    """
    rng = np.random.default_rng(0)
    users, members, S, stop = 1250, 16, 11, 0.3
    ends = np.minimum(rng.geometric(stop, (users, members)), S) - 1  # steps with a reward before the one that ends
    step = np.arange(S)
    active, continues = step <= ends[..., None], step < ends[..., None]
    rewards = rng.normal(1, 1, (users, members, S))
    slope = np.where(continues, stop, -(1 - stop)) * (active & (step < S - 1))
    advantage = jax.jit(step_advantage)

    def z(rewards):
        paths = (np.asarray(advantage(np.where(continues, rewards, 0), active)) * slope).sum(-1).mean(-1)
        return paths.mean() / (paths.std() / np.sqrt(users))

    assert z(rewards) > 50
    assert abs(z(rewards - 1)) < 3


def test_scales_are_a_running_mean_of_the_batch_variance():
    r, c = batch()
    scales, expected = init_scales(K), 0.0
    variance = lambda x: np.nanvar(x)
    for seed in range(3):
        r, c = batch(seed)
        scales = update_scales(scales, r, c, 0.8)
        expected = 0.8 * expected + 0.2 * np.array([variance(r), variance(c[0]), variance(c[1])])
    np.testing.assert_allclose(scales.deviations(0.01), np.sqrt(expected / (1 - 0.8**3)) + 0.01, rtol=1e-5)
    unseen = update_scales(scales, r, np.full_like(c, NAN), 0.8)
    np.testing.assert_array_equal(unseen.variance[1:], scales.variance[1:])
    assert unseen.variance[0] != scales.variance[0]
    np.testing.assert_array_equal(init_scales(1).deviations(), [1, 1])
    with_scales = constrained_advantage(
        "lagrangian", r, c, jnp.zeros(K), Scales(jnp.full(3, 4.0), jnp.ones(3)), eps=0.0
    )
    np.testing.assert_allclose(with_scales, centre(r) / 2, rtol=1e-6)


def test_effective_multipliers():
    scales = Scales(jnp.array([0.25, 1.0, 4.0]), jnp.ones(3))
    y = jnp.array([1.0, 2.0])
    for form in ("lagrangian", "separate"):
        np.testing.assert_allclose(effective_multipliers(form, y, scales, 0.0), [0.5, 0.5])
    for form in ("centred", "joint"):
        np.testing.assert_array_equal(effective_multipliers(form, y, scales), y)


def test_zero_variance_counts_groups():
    x = jnp.array([[0.1] * 3, [0.1, 0.1, 0.2], [NAN, 1.0, 1.0], [NAN] * 3], jnp.float32)
    assert float(zero_variance(x)) == pytest.approx(2 / 3)
    assert np.isnan(zero_variance(x[3:]))
    assert zero_variance(jnp.stack([x, x + 1])).shape == (2,)


def test_batch_statistics_are_the_same_on_eight_devices():
    rng = np.random.default_rng(1)
    r, c = rng.normal(size=(8, 3)).astype(np.float32), rng.normal(size=(1, 8, 3)).astype(np.float32)
    c[0, 2] = NAN
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def everything(r, c, axes=()):
        scales = update_scales(init_scales(1), r, c, axes=axes)
        advantage = constrained_advantage("lagrangian", r, c, jnp.ones(1), scales)
        return advantage, batch_normalise(r, axes=axes), scales, zero_variance(c, axes)

    rows, table, whole = PartitionSpec("data"), PartitionSpec(None, "data"), PartitionSpec()
    inside = lambda r, c: everything(r, c, ("data",))
    parts = jax.shard_map(inside, mesh=mesh, in_specs=(rows, table), out_specs=(rows, rows, whole, whole))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, jax.jit(parts)(r, c), jax.jit(everything)(r, c))


@pytest.mark.parametrize("form", list(FORMS))
def test_transformations(form):
    r, c = batch()
    f = jax.jit(lambda y: constrained_advantage(form, r, c, y))
    ys = jnp.array([[0.0, 0.0], [1.0, 2.0]])
    np.testing.assert_allclose(jax.vmap(f)(ys), jnp.stack([f(y) for y in ys]), rtol=1e-5, atol=1e-6)
    r[0], c[:, 0] = 1.0, 1.0  # a group without variance must not bring a NaN into a gradient
    slope = jax.grad(lambda r, y: jnp.sum(constrained_advantage(form, r, c, y) ** 2), (0, 1))(jnp.asarray(r), ys[1])
    assert np.isfinite(slope[1]).all()
    assert np.isfinite(slope[0][~np.isnan(r)]).all()


def test_half_precision_scores_are_widened():
    assert group_normalise(jnp.ones((1, 2), jnp.bfloat16)).dtype == jnp.float32
    with jax.enable_x64(True):
        assert constrained_advantage("joint", jnp.ones((1, 2)), jnp.ones((0, 1, 2)), jnp.ones(0)).dtype == jnp.float64


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: constrained_advantage("joined", jnp.ones((1, 2)), jnp.ones((0, 1, 2)), jnp.ones(0)), InvalidOption,
         "unknown advantage form 'joined'; did you mean 'joint'"),
        (lambda: constrained_advantage("joint", jnp.ones(2), jnp.ones((0, 2)), jnp.ones(0)), InvalidProblem,
         r"rewards has shape \(2,\)"),
        (lambda: constrained_advantage("joint", jnp.ones((1, 2)), jnp.ones((1, 2, 2)), jnp.ones(1)), InvalidProblem,
         r"costs has shape \(1, 2, 2\); expected \(1, 1, 2\)"),
        (lambda: constrained_advantage("joint", jnp.ones((1, 2)), jnp.ones((1, 1, 2)), jnp.ones(2)), InvalidProblem,
         r"y has shape \(2,\); expected \(1,\)"),
        (lambda: update_scales(init_scales(2), jnp.ones((1, 2)), jnp.ones((1, 1, 2))), InvalidProblem,
         r"scales has shape \(3,\)"),
        (lambda: step_advantage(jnp.ones((1, 2, 3)), jnp.ones((1, 2))), InvalidProblem, "active has shape"),
        (lambda: step_advantage(jnp.ones((1, 2, 3)), jnp.ones((1, 2, 3), bool), 1.5), InvalidOption, "gamma is 1.5"),
        (lambda: update_scales(init_scales(0), jnp.ones((1, 2)), jnp.ones((0, 1, 2)), -1.0), InvalidOption, "decay"),
        (lambda: effective_multipliers("none", jnp.ones(1), init_scales(1)), InvalidOption, "unknown advantage form"),
    ],
)  # fmt: skip
def test_errors_name_what_was_seen(make, error, words):
    with pytest.raises(error, match=words):
        make()
