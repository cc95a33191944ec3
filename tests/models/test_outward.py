"""Packed weights as `(out, in)`: the same products, in every form that decoding reads them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.models import lora
from pdopt.models.block import FEW_ROWS, Outward, linear, outward
from pdopt.models.config import DecoderConfig
from pdopt.models.decoder import Decoder, initialise
from pdopt.models.decoding import pack

SIZES = {"vocabulary": 20, "width": 8, "depth": 2, "heads": 2, "kv_heads": 1, "head_dim": 4, "hidden": 12}


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1])
def test_a_product_is_the_same_either_way_with_its_bias_and_adapter(rows):
    weight, bias, low = normal(0, 2, 4, 6), normal(1, 6), lora.Low(normal(2, 2, 4, 3), normal(3, 3, 6))
    x = normal(4, rows, 1, 2, 4)
    parts = [{"o": kept, "o_bias": bias, "o_low": low} for kept in (weight, outward(weight, 2))]
    plain, turned = (jax.jit(linear, static_argnums=(1, 3))(part, "o", x, 2) for part in parts)
    wide = np.asarray(x, np.float64).reshape(rows, 1, 8)
    change = np.asarray(low.a, np.float64).reshape(8, 3) @ np.asarray(low.b, np.float64)
    wanted = wide @ (np.asarray(weight, np.float64).reshape(8, 6) + change) + np.asarray(bias)
    np.testing.assert_allclose(turned, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(turned, plain, rtol=1e-5, atol=1e-5)


def test_products_of_half_precision_may_come_out_in_float32():
    matrix, x = Outward(normal(0, 5, 4)), normal(1, 3, 4).astype(jnp.bfloat16)
    assert matrix.after(x).dtype == jnp.bfloat16
    assert matrix.after(x, jnp.float32).dtype == jnp.float32


@pytest.mark.parametrize("rows", [FEW_ROWS, FEW_ROWS + 1])
def test_the_compiled_product_neither_turns_nor_copies_the_weights(rows):
    """No transposition or copy as large as the matrix; the few rows' product keeps its weights on the left."""
    matrix, x = Outward(normal(0, 64, 48)), normal(1, rows, 48)
    text = jax.jit(lambda matrix, x: matrix.after(x)).lower(matrix, x).compile().as_text()
    copies = [line for line in text.splitlines() if "transpose(" in line or " copy(" in line]
    assert not any("[64,48]" in line or "[48,64]" in line for line in copies), copies
    if jax.default_backend() == "cpu":
        assert (f"f32[64,{rows}]" in text) == (rows <= FEW_ROWS)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.slow
def test_packed_weights_are_those_of_the_model_turned(tied):
    config = DecoderConfig(**SIZES, tied=tied)
    model = Decoder(initialise(config, jax.random.key(0)), config)
    packed = jax.jit(pack)(model)
    layers = model.params["layers"]
    for number, layer in enumerate(packed.layers):
        o, gate, up = layers["attention"]["o"][number], layers["mlp"]["gate"][number], layers["mlp"]["up"][number]
        np.testing.assert_array_equal(layer["attention"]["o"].matrix, o.reshape(8, 8).T)
        np.testing.assert_array_equal(layer["mlp"]["gate_up"].matrix, jnp.concatenate([gate, up], axis=1).T)
        np.testing.assert_array_equal(layer["mlp"]["down"].matrix, layers["mlp"]["down"][number].T)
    if tied:
        assert packed.head is None  # no second copy: logits read the embedding
    else:
        np.testing.assert_array_equal(packed.head.matrix, model.params["head"].T)
    hidden = normal(5, 3, 8)
    np.testing.assert_allclose(packed.logits(hidden), model.logits(hidden), rtol=1e-5, atol=1e-5)
