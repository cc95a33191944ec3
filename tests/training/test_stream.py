"""A text in chunks is the text in one piece, and the host can stop between chunks."""

import jax
import numpy as np
import pytest

from pdopt.errors import InvalidOption
from pdopt.models.config import DecoderConfig
from pdopt.models.decoder import Decoder, put
from pdopt.training.rollout import generate
from pdopt.training.sampling import Sampling
from pdopt.training.stream import _more, stream

pytestmark = pytest.mark.usefixtures("quick_compiles")

CONFIG = DecoderConfig(vocabulary=32, width=16, depth=1, heads=2, kv_heads=1, head_dim=8, hidden=32)


@pytest.fixture(scope="module")
def model():
    rng, params = np.random.default_rng(0), {}
    for path, shape in CONFIG.shapes.items():
        put(params, path, rng.normal(0, 0.2, shape).astype(np.float32))
    return Decoder(params, CONFIG)


@pytest.fixture(scope="module")
def prompts():
    return np.array([[4, 9, 2, 7, 3], [0, 0, 6, 1, 8], [0, 0, 0, 0, 5]]), np.arange(5) >= np.array([[0], [2], [4]])


def test_chunks_are_the_rollout_and_compile_once(model, prompts):
    """Half of the tokens end a text, so that every row ends long before the limit, each in its own chunk."""
    key, rows = jax.random.key(2), np.array([7, 8, 9])
    sampling = Sampling(max_new=40, temperature=0.9, eos=tuple(range(0, 32, 4)))
    whole = generate(model, *prompts, key, sampling, rows, pad=1)
    before = _more._cache_size()
    parts = list(stream(model, *prompts, key, sampling, rows, pad=1, every=2))
    assert _more._cache_size() == before + 1
    for name in ("tokens", "mask", "finished", "steps"):
        np.testing.assert_array_equal(getattr(parts[-1], name), getattr(whole, name))
    assert whole.finished.all()
    assert len(parts) == -(-int(whole.steps) // 2)
    assert len(parts) > 2
    for name in ("log_probs", "sampler_log_probs"):
        np.testing.assert_allclose(getattr(parts[-1], name), getattr(whole, name), atol=1e-5)
    for part in parts:
        steps = int(part.steps)
        np.testing.assert_array_equal(part.tokens[:, :steps], whole.tokens[:, :steps])
        assert not part.mask[:, steps:].any()


def test_a_chunk_has_a_token(model, prompts):
    with pytest.raises(InvalidOption, match="every is 0"):
        next(stream(model, *prompts, jax.random.key(0), Sampling(max_new=4), every=0))
