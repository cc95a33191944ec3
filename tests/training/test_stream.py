"""A text in chunks is the text in one piece, and the host can stop between chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.errors import InvalidOption
from pdopt.models.config import DecoderConfig
from pdopt.models.decoder import Decoder, initialise
from pdopt.training.rollout import generate
from pdopt.training.sampling import Sampling
from pdopt.training.stream import _more, stream

CONFIG = DecoderConfig(vocabulary=32, width=16, depth=1, heads=2, kv_heads=1, head_dim=8, hidden=32)


@pytest.fixture(scope="module")
def model():
    return Decoder(jax.tree.map(lambda leaf: 8 * leaf, initialise(CONFIG, jax.random.key(0))), CONFIG)


@pytest.fixture(scope="module")
def prompts():
    tokens = jax.random.randint(jax.random.key(1), (3, 5), 1, 32)
    return tokens, jnp.arange(5)[None] >= jnp.array([[0], [2], [4]])


def test_chunks_are_the_rollout_and_compile_once(model, prompts):
    key, rows = jax.random.key(2), jnp.array([7, 8, 9])
    sampling = Sampling(max_new=21, temperature=0.9, eos=(3, 5), top_k=12)
    whole = generate(model, *prompts, key, sampling, rows, pad=1)
    before = _more._cache_size()
    parts = list(stream(model, *prompts, key, sampling, rows, pad=1, every=4))
    assert _more._cache_size() == before + 1
    for name in ("tokens", "mask", "finished"):
        np.testing.assert_array_equal(getattr(parts[-1], name), getattr(whole, name))
    for name in ("log_probs", "sampler_log_probs"):
        np.testing.assert_allclose(getattr(parts[-1], name), getattr(whole, name), atol=1e-5)
    for part in parts:
        steps = int(part.steps)
        np.testing.assert_array_equal(part.tokens[:, :steps], whole.tokens[:, :steps])
        assert not part.mask[:, steps:].any()


def test_it_ends_with_the_last_row(model, prompts):
    """A prompt whose first token is an end takes one chunk, whatever the limit."""
    tokens, valid = (leaf[:1] for leaf in prompts)
    (first,) = np.asarray(
        generate(model, tokens, valid, jax.random.key(0), Sampling(max_new=1, temperature=0.0)).tokens
    )
    sampling = Sampling(max_new=64, temperature=0.0, eos=(int(first[0]),))
    (part,) = stream(model, tokens, valid, jax.random.key(0), sampling, every=8)
    assert (int(part.steps), bool(part.finished[0])) == (1, True)


def test_a_chunk_has_a_token(model, prompts):
    with pytest.raises(InvalidOption, match="every is 0"):
        next(stream(model, *prompts, jax.random.key(0), Sampling(max_new=4), every=0))
