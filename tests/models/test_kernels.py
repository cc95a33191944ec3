"""Fused attention against dense attention; programs of backends that are absent are at least lowered for them."""

import dataclasses
import logging
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.errors import InvalidOption
from pdopt.models import kernels
from pdopt.models.attention import attend, attend_causal, causal_mask, default_kernel, in_window
from pdopt.models.config import DecoderConfig
from pdopt.models.decoder import Decoder, Execution, initialise
from pdopt.models.sharding import make_mesh

CONFIG = DecoderConfig(
    vocabulary=40, width=16, depth=2, heads=4, kv_heads=2, head_dim=8, hidden=24, qk_norm=True, family="qwen3"
)
RNG = np.random.default_rng(0)
LENGTH = 20
TOKENS = RNG.integers(3, 40, (2, LENGTH))
VALID = np.arange(LENGTH) >= np.array([[7], [0]])
SHAPES = jax.eval_shape(lambda: initialise(CONFIG, jax.random.key(0)))
PARAMS = jax.tree.map(lambda leaf: jnp.asarray(0.4 * RNG.standard_normal(leaf.shape), jnp.float32), SHAPES)


def heads(kv_heads=2, rows=2):
    return [
        jnp.asarray(RNG.standard_normal((rows, LENGTH, count, 8)), jnp.float32) for count in (4, kv_heads, kv_heads)
    ]


def seen(x):
    return jnp.where(VALID[..., None, None], x, 0)


SETTINGS = [pytest.param({}, marks=pytest.mark.slow), {"cap": 1.5, "scalar": 3, "window": 6}]


@pytest.mark.parametrize("settings", SETTINGS)
def test_splash_is_dense_attention(settings):
    """In the interpreter: values at real tokens and gradients, with left pads and shared key heads."""
    window, rest = settings.get("window"), {k: v for k, v in settings.items() if k != "window"}
    mask = causal_mask(jnp.zeros((2, LENGTH)), jnp.asarray(VALID))
    mask = mask if window is None else in_window(mask, window)
    weigh = jnp.asarray(RNG.standard_normal((2, LENGTH, 4, 8)), jnp.float32)

    def both(attention):
        def run(*qkv):
            out = seen(attention(*qkv))
            return jnp.sum(weigh * out), out

        return jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True))

    qkv = heads()
    (_, out), slopes = both(lambda q, k, v: kernels.splash(q, k, v, VALID, **settings))(*qkv)
    (_, expected), wanted = both(lambda q, k, v: attend(q, k, v, mask, **rest))(*qkv)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for slope, want in zip(slopes, wanted):
        np.testing.assert_allclose(slope, want, atol=2e-5)
    plain = attend(*qkv, causal_mask(jnp.zeros((2, LENGTH)), jnp.asarray(VALID)))
    assert not settings or float(jnp.abs(seen(plain) - out).max()) > 1e-2


@pytest.mark.parametrize("kv_heads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_splash_on_a_mesh_is_splash(kv_heads):
    """Rows over two axes, heads over the third; one key head serves the queries of both devices."""
    if jax.device_count() < 8:
        pytest.skip("eight devices are needed; XLA_FLAGS was set by the caller to fewer")
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    qkv, valid = heads(kv_heads, rows=4), np.concatenate([VALID, VALID])
    one = jax.jit(partial(kernels.splash, window=9))(*qkv, valid)
    many = jax.jit(partial(kernels.splash, window=9, mesh=mesh))(*qkv, valid)
    np.testing.assert_allclose(many, one, atol=1e-6)
    assert len(many.sharding.device_set) == 8


def test_attention_by_lengths_is_dense_attention():
    qkv, lengths = heads(), jnp.array([13, LENGTH])
    valid = jnp.arange(LENGTH) < lengths[:, None]
    out = attend_causal(*qkv, lengths, "xla", scalar=3)
    expected = attend(*qkv, causal_mask(jnp.zeros((2, LENGTH)), valid), scalar=3)
    np.testing.assert_allclose(np.asarray(out)[valid], np.asarray(expected)[valid], atol=1e-6)
    assert np.isfinite(out).all()


@jax.jit
def forward(model, valid=VALID):
    return model(TOKENS, valid=valid)


def test_a_model_puts_real_tokens_first_for_cudnn_and_back(monkeypatch):
    """The kernel itself needs a GPU; here its arguments go to the dense form of the same call. Gaps inside rows too."""
    monkeypatch.setattr(kernels, "attend_causal", lambda q, k, v, n, kernel, scalar: attend_causal(q, k, v, n, "xla"))
    gaps = VALID & (np.arange(LENGTH) % 5 != 2)
    for valid in (VALID, gaps):
        found = forward(Decoder(PARAMS, CONFIG, Execution(kernel="cudnn")), valid)
        expected = forward(Decoder(PARAMS, CONFIG), valid)
        np.testing.assert_allclose(np.asarray(found)[valid], np.asarray(expected)[valid], atol=1e-5)


@pytest.mark.slow
def test_a_model_by_splash_is_the_dense_one():
    """Local layers and others, so that the scan chooses between two kernels."""
    mixed = dataclasses.replace(CONFIG, window=6, local=(True, False), attention_cap=2.0)
    found = forward(Decoder(PARAMS, mixed, Execution(kernel="splash")))
    expected = np.asarray(forward(Decoder(PARAMS, mixed)))
    np.testing.assert_allclose(np.asarray(found)[VALID], expected[VALID], atol=1e-5)
    assert np.abs(expected - forward(Decoder(PARAMS, CONFIG)))[VALID].max() > 1e-2


def lowered(platform, **execution):
    """The program of one gradient of a model, for a platform that need not be here."""
    config = dataclasses.replace(CONFIG, head_dim=64)
    params = jax.eval_shape(lambda: initialise(config, jax.random.key(0), jnp.bfloat16))

    def loss(params):
        return jnp.mean(Decoder(params, config, Execution(**execution))(TOKENS, valid=VALID))

    return jax.jit(jax.grad(loss)).trace(params).lower(lowering_platforms=(platform,)).as_text()


def test_the_program_for_a_tpu_has_the_kernel_and_its_two_gradients():
    text = lowered("tpu", kernel="splash", remat="offload")
    assert text.count("@tpu_custom_call") >= 3
    assert "pinned_host" in text


def test_the_program_for_a_gpu_has_the_kernel_and_no_mask(monkeypatch):
    """JAX asks the installed cuDNN for its version while tracing; a machine without one is told that of 2025."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    text = lowered("cuda", kernel="cudnn")
    assert "pinned_host" not in text
    assert "fmhaSoftmax" in text
    assert "fmhaSoftmaxBackward" in text


def test_the_kernel_is_chosen_once_and_said(caplog):
    default_kernel.cache_clear()
    with caplog.at_level(logging.INFO, "pdopt.models.attention"):
        for _ in range(2):
            assert default_kernel(np.dtype("float16"), 64, "gpu") == "cudnn"
    assert [record.message for record in caplog.records] == ["attention: cudnn on gpu in float16 with heads of 64"]
    assert default_kernel(np.dtype("float16"), 60, "gpu") == "xla"
    assert default_kernel(np.dtype("float32"), 64, "tpu") == "splash"
    assert kernels.choose(CONFIG, None, jnp.float32) == "xla"
    with pytest.raises(InvalidOption, match="kernel is 'flash'; expected one of xla, columns, cudnn, splash"):
        kernels.choose(CONFIG, "flash", jnp.float32)


def test_a_remat_that_does_not_exist_is_refused():
    with pytest.raises(InvalidOption, match="remat is 'half'; expected one of none, full, dots, offload"):
        Decoder(PARAMS, CONFIG, Execution(remat="half"))(TOKENS)
