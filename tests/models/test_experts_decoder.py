"""Experts inside the decoder: a dense reference, prices that balance, pads, gradients, decoding, files."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.errors import InvalidOption
from pdopt.models import lora, routed
from pdopt.models.checkpoints import export, load
from pdopt.models.config import DecoderConfig, Mixture
from pdopt.models.decoder import Decoder, Execution, initialise
from pdopt.models.experts import add_tallies
from pdopt.problems.balancing import max_violation

pytestmark = pytest.mark.usefixtures("quick_compiles")

# Test modules are imported by path; what several share stands beside them.
_spec = importlib.util.spec_from_file_location("through_cache", Path(__file__).with_name("through_cache.py"))
through_cache = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(through_cache)


CONFIG = DecoderConfig(
    vocabulary=32, width=16, depth=2, heads=2, kv_heads=1, head_dim=8, hidden=24, qk_norm=True, family="qwen3_moe",
    experts=Mixture(count=4, top=2, hidden=12),
)  # fmt: skip
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(3, 32, (4, 24))
VALID = np.arange(24) >= np.array([[9], [0], [3], [0]])
SHAPES = jax.eval_shape(lambda: initialise(CONFIG, jax.random.key(0)))


def drawn(path, leaf):
    """Random weights, norms around one; large enough that experts differ and their loads lean."""
    return jnp.asarray(0.3 * RNG.standard_normal(leaf.shape) + ("norm" in path[-1].key), jnp.float32)


PARAMS = jax.tree_util.tree_map_with_path(drawn, SHAPES)


@jax.jit
def forward(model, tokens=TOKENS, valid=VALID):
    return model.hidden_and_tallies(tokens, valid=valid)


@pytest.fixture(scope="module")
def model():
    return Decoder(PARAMS, CONFIG)


@pytest.fixture(scope="module")
def plain(model):
    return forward(model)


def dense(part, bias, n):
    """From the definition, in NumPy: every expert for every token, weighted by the chosen scores."""
    logits = n @ part["router"]
    scores = np.exp(logits - logits.max(-1, keepdims=True))
    scores /= scores.sum(-1, keepdims=True)
    chosen = np.argsort(-(scores + bias), axis=-1, kind="stable")[..., :2]
    mask = np.zeros_like(scores)
    np.put_along_axis(mask, chosen, 1.0, axis=-1)
    gate = scores * mask / (scores * mask).sum(-1, keepdims=True)
    hidden = np.einsum("btw,ewf->btef", n, part["gate"])
    hidden = hidden / (1 + np.exp(-hidden)) * np.einsum("btw,ewf->btef", n, part["up"])
    return np.einsum("bte,btef,efw->btw", gate, hidden, part["down"]), mask


@pytest.mark.parametrize("bias", [None, np.array([-0.2, 0.3, 0.0, -0.1], np.float32)])
def test_one_layer_is_the_dense_one_hot_sum(bias):
    part = jax.tree.map(lambda leaf: np.asarray(leaf[0]), PARAMS["layers"]["experts"])
    n = RNG.standard_normal((4, 24, 16)).astype(np.float32)
    out, tally = jax.jit(routed.mix, static_argnums=0)(CONFIG.experts, part, bias, n, VALID)
    expected, mask = dense(part, 0 if bias is None else bias, n)
    np.testing.assert_allclose(out, expected, atol=2e-5)
    np.testing.assert_array_equal(tally.loads, mask[VALID].sum(0))


def test_prices_balance_skewed_inputs(model, plain):
    """All rows hold the same few tokens: loads lean on a few experts until the prices move them."""
    tokens = np.array([3, 4, 5, 7])[RNG.integers(0, 4, (8, 24))]
    everywhere = np.ones(tokens.shape, bool)
    step = jax.jit(lambda model, tally: routed.rebalance(model, tally))
    _, tally = forward(model.replace(balance=routed.start(CONFIG)), tokens, everywhere)
    assert float(max(max_violation(loads) for loads in tally.loads)) > 0.3
    balanced = model.replace(balance=routed.start(CONFIG))
    for _ in range(40):
        balanced = step(balanced, forward(balanced, tokens, everywhere)[1])
    loads = np.asarray(forward(balanced, tokens, everywhere)[1].loads)
    assert (loads.max(1) / loads.mean(1)).max() < 1.1
    jax.tree.map(np.testing.assert_array_equal, balanced.params, model.params)
    assert list(np.asarray(balanced.balance.count)) == [40, 40]


def test_tallies_count_valid_tokens_alone_and_add_up(model, plain):
    hidden, tally = plain
    assert tally.loads.shape == (2, 4)
    np.testing.assert_array_equal(tally.loads.sum(1), 2 * VALID.sum())
    np.testing.assert_array_equal(tally.near.sum(1), VALID.sum())
    # Other pads: not one count and no valid token's state changes.
    other, again = forward(model, np.where(VALID, TOKENS, 9))
    jax.tree.map(np.testing.assert_array_equal, again, tally)
    np.testing.assert_allclose(np.asarray(other)[VALID], np.asarray(hidden)[VALID], atol=1e-5)
    parts = [forward(model, TOKENS[i : i + 2], VALID[i : i + 2])[1] for i in (0, 2)]
    jax.tree.map(np.testing.assert_array_equal, add_tallies(*parts), tally)


@pytest.mark.slow
def test_unrolled_and_recomputed_give_the_same(model, plain):
    for execution in (Execution(unroll=True), Execution(remat="full")):
        hidden, tally = forward(model.replace(execution=execution))
        jax.tree.map(np.testing.assert_array_equal, tally, plain[1])
        np.testing.assert_allclose(np.asarray(hidden)[VALID], np.asarray(plain[0])[VALID], atol=1e-5)


@pytest.mark.slow
def test_gradients_reach_weights_and_router_but_no_price(model):
    priced = routed.rebalance(model, forward(model)[1])
    prices = priced.balance

    def loss(params, y):
        return jnp.mean(
            priced.replace(params=params, balance=prices._replace(y=y)).hidden(TOKENS, valid=VALID)[VALID] ** 2
        )

    slope, price = jax.jit(jax.grad(loss, argnums=(0, 1)))(PARAMS, prices.y)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(slope["layers"]["experts"]))
    np.testing.assert_array_equal(price, np.zeros((2, 4)))
    assert "balance" not in {key for path, _ in jax.tree_util.tree_leaves_with_path(slope) for key in map(str, path)}


def test_decoding_through_a_cache_with_prices_is_the_full_pass(model):
    priced = model.replace(balance=routed.start(CONFIG)._replace(y=jnp.array([[0.2, -0.2, 0.1, -0.1]] * 2)))
    assert np.abs(np.asarray(forward(priced)[0]) - np.asarray(forward(model)[0]))[VALID].max() > 1e-3
    through_cache.assert_decoding_is_the_full_pass(priced, TOKENS, VALID, 21)


def test_files_hold_experts_but_no_prices(model, tmp_path):
    export(model, tmp_path / "m")
    again = load(tmp_path / "m")
    assert again.config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, again.params, PARAMS)
    priced = model.replace(balance=routed.start(CONFIG))
    export(priced, tmp_path / "zero")
    with pytest.raises(InvalidOption, match=r"model has router prices, for which qwen3_moe has no name"):
        export(routed.rebalance(priced, forward(model)[1]), tmp_path / "n")
    nameless = dataclasses.replace(CONFIG, family="llama")
    with pytest.raises(InvalidOption, match="model_type is 'llama' with experts"):
        export(Decoder(PARAMS, nameless), tmp_path / "o")


def test_wrong_settings_are_refused():
    for settings, message in (
        ({"count": 0, "top": 1, "hidden": 2}, "count is 0"), ({"count": 2, "top": 3, "hidden": 2}, "top is 3"),
    ):  # fmt: skip
        with pytest.raises(InvalidOption, match=message):
            Mixture(**settings)
    dense_model = dataclasses.replace(CONFIG, experts=None)
    with pytest.raises(InvalidOption, match="config has no experts"):
        routed.start(dense_model)
    with pytest.raises(InvalidOption, match="the model has no experts"):
        Decoder({}, dense_model).hidden_and_tallies(TOKENS)
    with pytest.raises(InvalidOption, match="target 'gate' is no dense module"):
        lora.init(CONFIG, jax.random.key(0), 2)
    assert lora.init(CONFIG, jax.random.key(0), 2, ("q", "o")).targets == ("q", "o")
    with pytest.raises(InvalidOption, match="experts with mlp_bias"):
        dataclasses.replace(CONFIG, mlp_bias=True)
