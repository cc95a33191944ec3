"""Gemma's parts and sliding windows: each from its definition, and decoding with them against the full pass."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.errors import InvalidOption
from pdopt.models.attention import attend, in_window
from pdopt.models.block import norm
from pdopt.models.checkpoints import export, load
from pdopt.models.config import DecoderConfig, Rope, read_config
from pdopt.models.decoder import Decoder, Execution, initialise

# Test modules are imported by path; what several share stands beside them.
_spec = importlib.util.spec_from_file_location("through_cache", Path(__file__).with_name("through_cache.py"))
through_cache = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(through_cache)


GEMMA2 = DecoderConfig(
    vocabulary=40, width=16, depth=2, heads=4, kv_heads=2, head_dim=6, hidden=24, activation="gelu_tanh",
    norm_offset=True, post_norms=True, embed_scaled=True, query_scalar=8, attention_cap=3.0, logit_cap=2.0, window=4,
    local=(True, False), family="gemma2",
)  # fmt: skip
GEMMA3 = dataclasses.replace(
    GEMMA2, attention_cap=None, logit_cap=None, qk_norm=True, rope=Rope(1e6, "linear", 8.0), local_rope=Rope(1e4),
    family="gemma3_text",
)  # fmt: skip
MISTRAL = DecoderConfig(
    vocabulary=40, width=16, depth=2, heads=4, kv_heads=2, head_dim=6, hidden=24, window=4, local=(True, True),
    family="mistral",
)  # fmt: skip
CONFIGS = {"gemma2": GEMMA2, "gemma3": GEMMA3, "mistral": MISTRAL}
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(3, 40, (2, 12))
VALID = np.arange(12) >= np.array([[5], [0]])


def model(config, **execution):
    shapes = jax.eval_shape(lambda: initialise(config, jax.random.key(0)))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32), shapes)
    return Decoder(params, config, Execution(**execution))


@jax.jit
def forward(model):
    return model(TOKENS, valid=VALID)


@pytest.mark.parametrize("name", CONFIGS)
def test_decoding_and_unrolling_are_the_full_pass(name):
    full = through_cache.assert_decoding_is_the_full_pass(model(CONFIGS[name]), TOKENS, VALID, 9)[VALID]
    assert np.abs(full).max() > 0.5
    np.testing.assert_allclose(np.asarray(forward(model(CONFIGS[name], unroll=True)))[VALID], full, atol=1e-5)


def test_capped_attention_in_numpy():
    q, k, v = (RNG.standard_normal((2, 5, heads, 6)).astype(np.float32) for heads in (4, 2, 2))
    mask = np.tril(np.ones((5, 5), bool))[None].repeat(2, 0)
    found = attend(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), jnp.asarray(mask), scalar=8, cap=1.5)
    for head in range(4):
        scores = np.einsum("bte,bse->bts", q[:, :, head], k[:, :, head // 2]) / 8**0.5
        weights = np.exp(1.5 * np.tanh(scores / 1.5)) * mask
        expected = np.einsum("bts,bse->bte", weights / weights.sum(-1, keepdims=True), v[:, :, head // 2])
        np.testing.assert_allclose(found[:, :, head], expected, atol=1e-5)
    # A large cap is none; a row that sees nothing is finite.
    far = attend(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), jnp.asarray(mask), cap=1e4)
    np.testing.assert_allclose(
        far, attend(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), jnp.asarray(mask)), atol=1e-5
    )
    assert np.isfinite(
        attend(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), jnp.zeros((2, 5, 5), bool), cap=1.0)
    ).all()


def test_scores_of_tokens_see_capped_logits_at_a_temperature():
    ours = model(GEMMA2)

    @jax.jit
    def both(ours):
        hidden, targets = ours.hidden(TOKENS, valid=VALID), jnp.asarray(TOKENS[:, ::-1])
        every = jax.nn.log_softmax(ours.logits(hidden) / 0.7)
        picked = jnp.take_along_axis(every, targets[..., None], axis=-1)[..., 0]
        return ours.scores(hidden, targets, 0.7, chunk=5), picked, -jnp.sum(jnp.exp(every) * every, axis=-1)

    scores, log_probs, entropy = both(ours)
    np.testing.assert_allclose(scores.log_probs, log_probs, atol=1e-5)
    np.testing.assert_allclose(scores.entropy, entropy, atol=1e-5)


def test_a_window_holds_its_own_column_and_those_before():
    order = np.arange(6)
    expected = (order[:, None] >= order) & (order > order[:, None] - 3)
    causal = jnp.tril(jnp.ones((1, 6, 6), bool))
    np.testing.assert_array_equal(in_window(causal, 3)[0], expected)
    np.testing.assert_array_equal(in_window(causal[:, 4:5], 3, 4)[0], expected[4:5])


def test_norms_store_their_distance_from_one():
    x, w = RNG.standard_normal((3, 4)).astype(np.float32), RNG.standard_normal(4).astype(np.float32)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * (1 + w)
    np.testing.assert_allclose(norm(jnp.asarray(x), jnp.asarray(w), 1e-6, True), expected, rtol=1e-5)
    fresh = initialise(GEMMA3, jax.random.key(0))["layers"]
    assert not np.any(fresh["attention"]["q_norm"]) and not np.any(fresh["mlp_post_norm"])  # noqa: PT018


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_keeps_every_switch(name, tmp_path):
    ours = model(CONFIGS[name])
    export(ours, tmp_path / "m")
    again = load(tmp_path / "m")
    assert again.config == ours.config
    jax.tree.map(np.testing.assert_array_equal, again.params, ours.params)


SMALL = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 64,
    "num_key_value_heads": 2, "head_dim": 8, "hidden_activation": "gelu_pytorch_tanh",
}  # fmt: skip


def test_old_gemma_files_say_their_layers_by_a_pattern():
    third = read_config({**SMALL, "model_type": "gemma3_text", "sliding_window_pattern": 3, "rope_theta": 1e6,
                         "rope_local_base_freq": 1e4, "sliding_window": 16,
                         "rope_scaling": {"rope_type": "linear", "factor": 8.0}})  # fmt: skip
    assert third.local == (True, True, False) * 2
    assert (third.rope, third.local_rope, third.window) == (Rope(1e6, "linear", 8.0), Rope(1e4), 16)
    assert (third.attention_cap, third.logit_cap, third.tied) == (None, None, True)
    second = read_config({**SMALL, "model_type": "gemma2"})
    assert second.local == (True, False) * 3
    assert (second.attention_cap, second.logit_cap, second.window, second.local_rope) == (50.0, 30.0, 4096, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma3"}, "model_type is 'gemma3'"),
        ({"hidden_activation": "gelu"}, "hidden_act is 'gelu'; implemented for gemma2 is gelu_pytorch_tanh"),
        ({"layer_types": ["chunked_attention"] * 6}, "layer_types has chunked_attention"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is true"),
        ({"layer_types": ["sliding_attention"] * 5}, "expected a bool for each of 6 layers"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_type linear lacks factor"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(changes, message):
    with pytest.raises(InvalidOption, match=message):
        read_config({**SMALL, "model_type": "gemma2", **changes})


def test_windows_of_qwen_and_mistral_act_only_where_they_say():
    base = {**SMALL, "max_position_embeddings": 64, "hidden_act": "silu", "sliding_window": 16}
    assert read_config({**base, "model_type": "mistral"}).local == (True,) * 6
    assert read_config({**base, "model_type": "mistral", "sliding_window": 64}).local == ()
    assert read_config({**base, "model_type": "qwen2"}).window is None
    used = {**base, "model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 4}
    assert read_config(used).local == (False,) * 4 + (True,) * 2
