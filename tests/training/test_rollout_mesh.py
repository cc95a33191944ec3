"""Sampling on eight devices: the same texts as on one, and no weight is sent while tokens are drawn."""

import re

import jax
import numpy as np
import pytest

from pdopt.models.config import DecoderConfig
from pdopt.models.decoder import Decoder, Execution, put
from pdopt.models.sharding import batch_sharding, make_mesh, tree_shardings
from pdopt.training import rollout
from pdopt.training.sampling import Sampling
from tests.test_sharding import collectives

CONFIG = DecoderConfig(vocabulary=64, width=32, depth=2, heads=4, kv_heads=2, head_dim=8, hidden=48, qkv_bias=True)
ROWS, PROMPT, NEW = 8, 6, 10


def model():
    rng = np.random.default_rng(0)
    params = {}
    for path, shape in CONFIG.shapes.items():
        draw = rng.normal(size=shape).astype(np.float32)
        put(params, path, 1 + 0.1 * draw if path.endswith("norm") else 0.2 * draw)
    return Decoder(params, CONFIG)


def prompts():
    rng = np.random.default_rng(1)
    valid = np.arange(PROMPT)[None] >= rng.integers(0, PROMPT, (ROWS, 1))
    return np.where(valid, rng.integers(1, 64, (ROWS, PROMPT)), 0).astype(np.int32), valid


def compiled(model, tokens, valid, rows):
    """Temperature -> texts, and the program; its CPU code is not optimised, for it runs twice."""
    sample = lambda t: (
        model,
        tokens,
        valid,
        jax.random.key(2),
        Sampling(NEW, t, eos=(5,)),
        rows,
        np.full(ROWS, NEW, np.int32),
    )
    made = rollout._generate.lower(*sample(1.0), 0, 1).compile({"xla_backend_optimization_level": 0})
    return {t: made(*sample(t)) for t in (0.0, 1.3)}, made.as_text()


@pytest.fixture(scope="module")
def alone():
    return compiled(model(), *prompts(), np.arange(ROWS, dtype=np.int32))[0]


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 2, "fsdp": 2, "tensor": 2},
        pytest.param({"fsdp": 8}, marks=pytest.mark.slow),
        pytest.param({"fsdp": 2, "tensor": 4}, marks=pytest.mark.slow, id="key heads whole"),
    ],
)
def test_the_same_texts_as_on_one_device(sizes, alone):
    if jax.device_count() < 8:
        pytest.skip("eight devices are needed; XLA_FLAGS was set by the caller to fewer")
    mesh = make_mesh(**sizes)
    spread = jax.device_put(model(), tree_shardings(mesh, CONFIG, model())).replace(execution=Execution(mesh=mesh))
    found, text = compiled(spread, *jax.device_put((*prompts(), np.arange(ROWS, dtype=np.int32)), batch_sharding(mesh)))
    for temperature, expected in alone.items():
        tokens = found[temperature].tokens
        np.testing.assert_array_equal(tokens, expected.tokens)
        np.testing.assert_allclose(found[temperature].log_probs, expected.log_probs, atol=1e-5)
        assert tokens.sharding.is_equivalent_to(batch_sharding(mesh), 2)
        assert len(set(np.asarray(tokens).ravel())) > 8
    inside = [line for line in text.splitlines() if re.search(r'op_name="[^"]*while/body', line)]
    sizes_sent = [size for _, size in collectives("\n".join(inside))]
    # A token's activations, and what a draw compares; the smallest weight has 32 * 2 * 8 * 4 bytes.
    assert sizes_sent
    assert max(sizes_sent) < 4 * 32 * ROWS < 32 * 2 * 8 * 4
