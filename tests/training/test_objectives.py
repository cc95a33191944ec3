"""Each loss against a plain loop, finite differences and TRL's formulas; micro-batches that add up; what is refused."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.training.objectives import LOSSES, engine_weights, policy_loss, require_loss, totals

B, T, MAX_NEW = 8, 6, 7
# Wider clips than the defaults, so that a batch of log-ratios of size 0.3 meets every branch.
CLIPS = {kind: {"low": 0.1, "high": 0.15} for kind, loss in LOSSES.items() if loss.low is not None}
CLIPS["cispo"] = {"high": 0.2}
VARIANTS = {kind: (kind, CLIPS.get(kind, {})) for kind in LOSSES}
VARIANTS["dual clip"] = ("dapo", {"low": 0.1, "high": 0.15, "dual": 1.2})
VARIANTS["sapo of sequences"] = ("sapo", {"level": "sequence"})
VARIANTS["mdpo, small step"] = ("mdpo", {"mirror": 0.25})


def batch(dtype=np.float32):
    rng = np.random.default_rng(0)
    lp = -rng.exponential(1.0, (B, T))
    old = lp + rng.normal(0, 0.3, (B, T))
    mask = np.arange(T) < np.array([6, 1, 3, 5, 6, 2, 4, 0])[:, None]  # a row of one token, and one of none
    return lp.astype(dtype), old.astype(dtype), rng.normal(size=B).astype(dtype), mask


def by_loop(kind, lp, old, A, mask, low=None, high=None, dual=None, level=None, tau=(1.0, 1.05), mirror=1.0):
    """The table of `objectives.py`, token by token, in Python floats."""
    level = level or LOSSES[kind].level
    rows, everything = [], 0.0
    for b in range(len(lp)):
        where = np.flatnonzero(mask[b])
        mean = sum(lp[b, t] - old[b, t] for t in where) / len(where) if len(where) else 0.0
        terms = []
        for t in where:
            rho = math.exp(mean) if level != "token" else math.exp(lp[b, t] - old[b, t])
            if kind in ("reinforce", "rloo"):
                l = -A[b] * lp[b, t]
            elif kind == "cispo":
                l = -min(rho, 1 + high) * A[b] * lp[b, t]
            elif kind == "sapo":
                s = tau[0] if A[b] > 0 else tau[1]
                l = -(4 / s) / (1 + math.exp(-s * (rho - 1))) * A[b]
            elif kind == "mdpo":
                l = -rho * A[b] + (rho * math.log(rho) - rho + 1) / mirror
            else:
                l = -min(rho * A[b], min(max(rho, 1 - low), 1 + high) * A[b])
                l = min(l, -dual * A[b]) if dual and A[b] < 0 else l
            terms.append(l)
        everything += sum(terms)
        rows.append((sum(terms), len(terms)))
    means = sum(total / max(count, 1) for total, count in rows) / len(rows)
    return {
        "grpo": means, "gspo": means, "gspo_token": means, "sapo": means,
        "dr_grpo": everything / (len(lp) * MAX_NEW), "rloo": everything / len(lp),
    }.get(kind, everything / mask.sum())  # fmt: skip


def gradients(names, lp, old, A, mask, denominators):
    """Of each variant `((loss, diagnostics), gradient)`, all in one program."""
    made = {}
    for name in names:
        kind, settings = VARIANTS[name]
        value = partial(policy_loss, kind, **settings)
        made[name] = jax.value_and_grad(value, has_aux=True)(lp, old, A, mask, denominators)
    return made


every = jax.jit(partial(gradients, tuple(VARIANTS)))
loss_of = jax.jit(policy_loss, static_argnames=("kind", "level"))


@pytest.mark.parametrize("name", list(VARIANTS))
def test_each_loss_equals_its_loop(name):
    kind, settings = VARIANTS[name]
    lp, old, A, mask = batch()
    (loss, seen), slope = every(lp, old, A, mask, totals(mask, MAX_NEW))[name]
    expected = by_loop(kind, *(np.asarray(x, float) for x in (lp, old, A)), mask, **settings)
    assert float(loss) == pytest.approx(expected, rel=2e-5)
    assert set(seen) == {"ratio", "clip_low", "clip_high", "clip_dual", "kl_old"}
    assert not np.any(np.asarray(slope)[~mask])
    assert np.any(np.asarray(slope)[mask])


@pytest.mark.parametrize("name", list(VARIANTS))
def test_gradients_of_micro_batches_add_up(name):
    """Four parts, with the denominators of the whole, in another order: loss, gradient and diagnostics."""
    lp, old, A, mask = batch()
    whole = totals(mask, MAX_NEW)
    (loss, seen), slope = every(lp, old, A, mask, whole)[name]
    order = np.random.default_rng(1).permutation(B)
    parts = [
        every(*(np.resize(x[rows], x.shape) for x in (lp, old, A)), _only(mask[rows], len(rows)), whole)[name]
        for rows in np.split(order, 4)
    ]
    together = np.zeros_like(lp)
    for rows, part in zip(np.split(order, 4), parts):
        together[rows] = np.asarray(part[1])[: len(rows)]
    np.testing.assert_allclose(together, slope, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(sum(float(part[0][0]) for part in parts), loss, rtol=1e-5, atol=1e-7)
    for key, value in seen.items():
        np.testing.assert_allclose(sum(float(part[0][1][key]) for part in parts), value, rtol=1e-5, atol=1e-7)


def _only(mask, count):
    """The rows of a part in a batch of the compiled size: the rows after are padding, whose mask is False."""
    padded = np.zeros((B, T), bool)
    padded[:count] = mask
    return padded


def test_gradients_equal_finite_differences_in_float64():
    """Central differences of the loop; the constants of a loss (sg) are held where they are."""
    lp, old, A, mask = batch(np.float64)
    with jax.enable_x64(True):
        found = every(lp, old, A, mask, totals(mask, MAX_NEW))
        for name, (kind, settings) in VARIANTS.items():
            if kind == "cispo":  # its factor is a constant: linear in lp, so the gradient is the term over lp
                rho = np.minimum(np.exp(lp - old), 1 + settings["high"])
                expected = np.where(mask, -rho * A[:, None], 0) / mask.sum()
            elif kind == "gspo_token":  # the value of gspo, the token's own gradient: s A / len where the clip is off
                s = np.exp(np.where(mask, lp - old, 0).sum(1) / np.maximum(mask.sum(1), 1))
                off = np.where(A > 0, s < 1.15, s > 0.9)
                expected = np.where(mask, (-s * A * off / np.maximum(mask.sum(1), 1))[:, None], 0) / B
            else:
                expected = np.zeros_like(lp)
                for i in zip(*np.nonzero(mask)):
                    move = np.zeros_like(lp)
                    move[i] = 1e-6
                    rise = by_loop(kind, lp + move, old, A, mask, **settings)
                    expected[i] = (rise - by_loop(kind, lp - move, old, A, mask, **settings)) / 2e-6
            np.testing.assert_allclose(found[name][1], expected, rtol=1e-6, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("kind", ["grpo", "bnpo", "dapo", "dr_grpo", "cispo", "sapo", "gspo", "dual clip"])
def test_values_and_gradients_are_those_of_trl(kind):
    """TRL's lines, in torch: its `epsilon_high` of cispo is our `1 + high`, its `delta` our `dual`."""
    torch = pytest.importorskip("torch")
    lp, old, A, mask = batch()
    settings = VARIANTS[kind][1]
    x = torch.tensor(lp, requires_grad=True)
    old_, A_, m = torch.tensor(old), torch.tensor(A)[:, None], torch.tensor(mask).float()
    log_ratio = x - old_
    if kind == "gspo":
        log_ratio = ((log_ratio * m).sum(-1) / m.sum(-1).clamp(min=1.0)).unsqueeze(-1)
    coef_1 = torch.exp(log_ratio)
    if kind == "cispo":
        per_token = -torch.clamp(coef_1, max=1 + settings["high"]).detach() * A_ * x
    elif kind == "sapo":
        tau = torch.where(A_ > 0, 1.0, 1.05)
        per_token = -(torch.sigmoid(tau * (coef_1 - 1)) * 4 / tau) * A_
    else:
        coef_2 = torch.clamp(coef_1, 1 - settings["low"], 1 + settings["high"])
        if "dual" in settings:
            coef_1 = torch.clamp(coef_1, max=settings["dual"])
        per_token = -torch.min(coef_1 * A_, coef_2 * A_)
    if kind in ("grpo", "sapo", "gspo"):
        loss = ((per_token * m).sum(-1) / m.sum(-1).clamp(min=1.0)).mean()
    elif kind == "dr_grpo":
        loss = (per_token * m).sum() / (B * MAX_NEW)
    else:
        loss = (per_token * m).sum() / m.sum()
    loss.backward()
    (found, _), slope = every(lp, old, A, mask, totals(mask, MAX_NEW))[kind]
    assert float(found) == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_allclose(slope, x.grad.numpy(), rtol=1e-4, atol=1e-7)


def test_cispo_cuts_the_ratio_at_one_plus_high():
    lp, mask = np.full((1, 1), -1.0, np.float32), np.ones((1, 1), bool)
    loss, seen = loss_of("cispo", lp, lp - 9.0, jnp.ones(1), mask, totals(mask, 1), high=0.5)
    assert float(loss) == 1.5
    assert float(seen["clip_high"]) == 1.0
    assert float(loss_of("cispo", lp, lp - 9.0, jnp.ones(1), mask, totals(mask, 1))[0]) == 5.0


def test_what_lies_outside_the_mask_is_never_read():
    lp, old, A, mask = batch()
    denominators = totals(mask, MAX_NEW)
    clean = every(lp, old, A, mask, denominators)
    for value in (np.nan, -np.inf, 1e30):
        lp_, old_ = (np.where(mask, x, np.float32(value)) for x in (lp, old))
        jax.tree.map(np.testing.assert_array_equal, every(lp_, old_, A, mask, denominators), clean)


def test_without_old_the_ratio_is_one_and_carries_the_gradient():
    lp, _, A, mask = batch()
    whole = totals(mask, MAX_NEW)
    alone = jax.jit(lambda lp: gradients(LOSSES, lp, None, A, mask, whole))(lp)
    close = partial(
        np.testing.assert_allclose, rtol=1e-6, atol=1e-8
    )  # two programs: rounded alike but for the last bit
    jax.tree.map(close, alone, {kind: every(lp, lp, A, mask, whole)[kind] for kind in LOSSES})
    # On-policy every token loss has the gradient of REINFORCE: -A / N.
    expected = np.where(mask, -A[:, None], 0) / mask.sum()
    for kind in ("dapo", "cispo", "mdpo", "reinforce", "reinforce++", "bnpo"):
        np.testing.assert_allclose(alone[kind][1], expected, rtol=1e-6, err_msg=kind)


def test_diagnostics_by_hand():
    ratio = np.array([[0.5, 1.0, 1.5, 3.0]] * 2, np.float32)
    mask = np.ones((2, 4), bool)
    old = np.zeros((2, 4), np.float32)
    _, seen = loss_of("dapo", np.log(ratio), old, np.array([1.0, -1.0]), mask, totals(mask, 4), dual=2.0)
    assert float(seen["ratio"]) == pytest.approx(1.5)
    assert float(seen["clip_high"]) == pytest.approx(2 / 8)  # 1.5 and 3 where A > 0
    assert float(seen["clip_low"]) == pytest.approx(1 / 8)  # 0.5 where A < 0
    assert float(seen["clip_dual"]) == pytest.approx(1 / 8)  # 3 where A < 0
    assert float(seen["kl_old"]) == pytest.approx((ratio - 1 - np.log(ratio)).mean(), rel=1e-5)


def test_advantages_of_steps_and_weights():
    lp, old, A, mask = batch()
    f = partial(loss_of, "dapo", lp, old, mask=mask, totals=totals(mask, MAX_NEW))
    rows, twice = f(advantages=A)[0], f(advantages=A, weights=np.full((B, T), 2.0, np.float32))[0]
    np.testing.assert_allclose(f(advantages=np.repeat(A[:, None], T, 1))[0], rows, rtol=1e-6)
    assert float(twice) == pytest.approx(2 * float(rows))
    slope = jax.grad(lambda A, w: f(advantages=A, weights=w)[0], (0, 1))(A, np.ones((B, T), np.float32))
    assert not any(np.any(leaf) for leaf in slope)  # constants


def test_engine_weights_by_hand():
    old = np.log(np.array([[0.5, 0.8, 0.1], [0.5, 0.5, np.nan]]))
    sampler = np.log(np.array([[0.25, 0.1, 0.2], [0.5, 1.0, np.nan]]))
    mask = np.array([[True, True, True], [True, True, False]])
    np.testing.assert_allclose(engine_weights(old, sampler, mask, 3.0), [[2, 3, 0.5], [1, 0.5, 0]], rtol=1e-6)
    cut = engine_weights(old, sampler, mask, 3.0, masked=True)
    np.testing.assert_allclose(cut, [[2, 0, 0.5], [1, 0.5, 0]], rtol=1e-6)
    whole = engine_weights(old, sampler, mask, 9.0, level="sequence")
    np.testing.assert_allclose(whole, [[8, 8, 8], [0.5, 0.5, 0]], rtol=1e-6)


def test_devices_and_sweeps():
    """Eight devices hold a row each, with denominators over all of them; a sweep over clips is a vmap."""
    lp, old, A, mask = batch()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def part(lp, old, A, mask):
        whole = totals(mask, MAX_NEW, ("data",))
        value = jax.value_and_grad(lambda lp: policy_loss("grpo", lp, old, A, mask, whole)[0])
        loss, slope = value(lp)
        return jax.lax.psum(loss, "data"), slope

    rows = PartitionSpec("data")
    split = jax.shard_map(part, mesh=mesh, in_specs=rows, out_specs=(PartitionSpec(), rows), check_vma=False)
    whole = jax.value_and_grad(lambda lp: policy_loss("grpo", lp, old, A, mask, totals(mask, MAX_NEW))[0])
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, jax.jit(split)(lp, old, A, mask), jax.jit(whole)(lp))
    one = lambda high: policy_loss("dapo", lp, old, A, mask, totals(mask, MAX_NEW), high=high)[0]
    highs = np.array([0.1, 0.3], np.float32)
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(highs), [jax.jit(one)(high) for high in highs], rtol=1e-6)


def test_half_precision_is_widened_and_nothing_counts_twice():
    lp, old, A, mask = batch()
    narrow = lp.astype(jnp.bfloat16)
    half = jax.eval_shape(lambda lp: policy_loss("grpo", lp, old, A, mask, totals(mask, MAX_NEW)), narrow)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    empty = np.zeros_like(mask)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(every(lp, old, A, empty, totals(empty, MAX_NEW))))
    assert [float(x) for x in totals(mask, MAX_NEW)] == [27, 8, 7, 56]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "sappo"}, "unknown loss 'sappo'; did you mean 'sapo'"),
        ({"kind": "dapo", "level": "sequence"}, "level is 'sequence' and dapo sums over tokens"),
        ({"kind": "dr_grpo", "level": "sequence_token"}, "dr_grpo sums over budget"),
        ({"kind": "rloo", "level": "sequence"}, "rloo has no ratio"),
        ({"kind": "grpo", "level": "row"}, "unknown level 'row'"),
        ({"kind": "sapo", "low": 0.2}, "low is 0.2; expected None because sapo"),
        ({"kind": "cispo", "dual": 3.0}, "dual is 3.0; expected None because cispo"),
        ({"kind": "dapo", "dual": 1.0}, "dual is 1.0"),
        ({"kind": "dapo", "low": 1.5}, "low is 1.5"),
        ({"kind": "dapo", "high": -0.1}, "high is -0.1"),
    ],
)
def test_settings_a_loss_does_not_have_are_refused(settings, words):
    with pytest.raises(InvalidOption, match=words):
        require_loss(**settings)
    lp, old, A, mask = batch()
    with pytest.raises(InvalidOption, match=words):
        policy_loss(
            settings["kind"], lp, old, A, mask, totals(mask, 1), **{k: v for k, v in settings.items() if k != "kind"}
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mask": np.ones((B, 1), bool)}, "mask has shape"),
        ({"old_log_probs": np.zeros((B, 1))}, "old_log_probs has shape"),
        ({"advantages": np.zeros(B + 1)}, "advantages has shape"),
        ({"advantages": np.zeros((B, T - 1))}, "advantages has shape"),
        ({"weights": np.zeros(B)}, "weights has shape"),
    ],
)
def test_shapes_that_do_not_match_are_refused(change, words):
    lp, old, A, mask = batch()
    given = {"log_probs": lp, "old_log_probs": old, "advantages": A, "mask": mask, "totals": totals(mask, MAX_NEW)}
    with pytest.raises(InvalidProblem, match=words):
        policy_loss("grpo", **(given | change))


def test_other_settings_are_refused():
    with pytest.raises(InvalidOption, match="max_new is 0"):
        totals(np.ones((1, 1), bool), 0)
    with pytest.raises(InvalidOption, match="unknown level 'row'"):
        engine_weights(np.zeros((1, 1)), np.zeros((1, 1)), np.ones((1, 1), bool), level="row")
    with pytest.raises(InvalidOption, match="cap is 0"):
        engine_weights(np.zeros((1, 1)), np.zeros((1, 1)), np.ones((1, 1), bool), cap=0.0)
