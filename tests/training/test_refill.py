"""Texts through few slots are those of one batch, whatever the slots, chunks and lengths."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.errors import InvalidOption
from pdopt.training import refill as module
from pdopt.training.refill import refill
from pdopt.training.rollout import generate
from pdopt.training.sampling import Sampling
from pdopt.training.stops import StopText, cut

_spec = importlib.util.spec_from_file_location("small_model", Path(__file__).parent / "small_model.py")
small_model = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small_model)

KEY = jax.random.key(3)
LETTERS = [chr(59 + token) for token in range(64)]
ROWS = 11


@pytest.fixture(scope="module")
def case():
    """A model, eleven prompts, and their texts of at most 14 tokens, some of which an eos or a pair ends."""
    model = small_model.small()
    tokens, valid = small_model.left_padded(ROWS, seed=1)
    free = np.asarray(generate(model, tokens, valid, KEY, Sampling(max_new=14)).tokens)
    sampling = Sampling(max_new=14, eos=(int(free[0, 2]),), stop=(tuple(int(t) for t in free[1, 4:6]),))
    limits = np.random.default_rng(0).integers(1, 15, ROWS)
    return model, tokens, valid, sampling, limits


def same(found, expected):
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_array_equal(found.finished, expected.finished)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)
    np.testing.assert_allclose(found.sampler_log_probs, expected.sampler_log_probs, atol=1e-5)


def test_texts_are_those_without_refill(case):
    """Four slots and chunks of five: prompts wait, the ring turns, and chunks end early and late."""
    model, tokens, valid, sampling, limits = case
    expected = generate(model, tokens, valid, KEY, sampling, pad=63, limits=limits)
    found = refill(model, tokens, valid, KEY, sampling, pad=63, slots=4, chunk=5, limits=limits)
    same(found, expected)
    assert bool(expected.finished.any())
    assert not bool(expected.finished.all())


def test_texts_keep_their_numbers(case):
    model, tokens, valid, sampling, _ = case
    rows = np.arange(ROWS) * 3 + 7
    expected = generate(model, tokens, valid, KEY, sampling, rows)
    found = refill(model, tokens, valid, KEY, sampling, rows, slots=4, chunk=5)
    same(found, expected)


def test_it_takes_fewer_steps_and_compiles_once(case):
    """Lengths spread over 1 to 14 through four slots; a second call compiles nothing."""
    model, tokens, valid, _, limits = case
    free = Sampling(max_new=14)
    found = refill(model, tokens, valid, KEY, free, slots=4, chunk=5, limits=limits)
    sizes = module._chunk._cache_size(), module._admit._cache_size(), module._pack._cache_size()
    refill(model, tokens[::-1], valid[::-1], KEY, free, slots=4, chunk=5, limits=limits)
    assert sizes == (module._chunk._cache_size(), module._admit._cache_size(), module._pack._cache_size())
    batches = [limits[start : start + 4].max() for start in range(0, ROWS, 4)]
    assert int(found.steps) < sum(batches)
    np.testing.assert_array_equal(found.mask.sum(axis=1), limits)


def test_stop_strings_cut_the_same_texts_in_both_paths(case):
    model, tokens, valid, _, _ = case
    sampling = Sampling(max_new=14)
    whole = generate(model, tokens, valid, KEY, sampling)
    decode = lambda ids: "".join(LETTERS[i] for i in ids)
    string = decode(np.asarray(whole.tokens)[2, 5:8].tolist())
    stop = StopText((string,), decode)
    expected = cut(whole, stop)
    assert bool(expected.finished[2])
    assert int(expected.mask[2].sum()) == 8
    same(refill(model, tokens, valid, KEY, sampling, slots=4, chunk=5, stop=stop), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"slots": 0}, "slots is 0"),
        ({"chunk": 0}, "chunk is 0"),
        ({"share": 0.0}, "share is 0"),
        ({"share": 2.0}, "share"),
    ],
)
def test_bad_settings_are_refused(case, settings, message):
    model, tokens, valid, sampling, _ = case
    with pytest.raises(InvalidOption, match=message):
        refill(model, tokens, valid, KEY, sampling, **settings)


def test_one_prompt_and_one_token(case):
    model, tokens, valid, _, _ = case
    found = refill(model, tokens[:1], valid[:1], KEY, Sampling(max_new=1), slots=8)
    expected = generate(model, tokens[:1], valid[:1], KEY, Sampling(max_new=1))
    same(found, expected)
    assert int(found.steps) == 0
    assert jnp.shape(found.tokens) == (1, 1)
