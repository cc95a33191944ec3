"""Texts through few slots are those of one batch, whatever the slots, chunks and lengths."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from pdopt.errors import InvalidOption
from pdopt.training import refill as module
from pdopt.training import rollout
from pdopt.training.refill import refill
from pdopt.training.rollout import generate
from pdopt.training.sampling import Sampling
from pdopt.training.stops import StopText, cut

pytestmark = pytest.mark.usefixtures("quick_compiles")

_spec = importlib.util.spec_from_file_location("small_model", Path(__file__).parent / "small_model.py")
small_model = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small_model)

KEY = jax.random.key(3)
LETTERS = [chr(59 + token) for token in range(64)]
ROWS, PAD = 11, 63
SAMPLING = Sampling(max_new=14, eos=(5, 9), stop=((11,), (20, 21)))


@pytest.fixture(scope="module")
def case():
    """A model, eleven prompts, limits of their texts, and the texts, some of which an eos or a stop ends."""
    model = small_model.small()
    tokens, valid = small_model.left_padded(ROWS, seed=1)
    limits = np.random.default_rng(0).integers(1, 15, ROWS)
    expected = generate(model, tokens, valid, KEY, SAMPLING, pad=PAD, limits=limits)
    assert bool(expected.finished.any())
    assert not bool(expected.finished.all())
    return model, tokens, valid, limits, expected


def through(case, rows=None, **settings):
    model, tokens, valid, limits, _ = case
    return refill(model, tokens, valid, KEY, SAMPLING, rows, PAD, slots=4, chunk=5, limits=limits, **settings)


def same(found, expected):
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_array_equal(found.finished, expected.finished)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)
    np.testing.assert_allclose(found.sampler_log_probs, expected.sampler_log_probs, atol=1e-5)


def test_texts_are_those_without_refill(case):
    """Four slots and chunks of five: prompts wait, the ring turns, and chunks end early and late."""
    same(through(case), case[4])


def test_texts_keep_their_numbers(case):
    model, tokens, valid, limits, _ = case
    rows = np.arange(ROWS) * 3 + 7
    same(through(case, rows), generate(model, tokens, valid, KEY, SAMPLING, rows, PAD, limits=limits))


def test_it_takes_fewer_steps_and_compiles_once(case):
    """Than batches of four would; other texts compile nothing."""
    found = through(case)
    lengths = np.asarray(case[4].mask.sum(axis=1))
    assert int(found.steps) < sum(lengths[start : start + 4].max() for start in range(0, ROWS, 4))
    sizes = module._chunk._cache_size(), module._admit._cache_size(), rollout._pack._cache_size()
    through((case[0], case[1][::-1], case[2][::-1], case[3], None))
    assert sizes == (module._chunk._cache_size(), module._admit._cache_size(), rollout._pack._cache_size())


def test_stop_strings_cut_the_same_texts_in_both_paths(case):
    whole = case[4]
    decode = lambda ids: "".join(LETTERS[i] for i in ids)
    row = int(np.argmax(whole.mask.sum(axis=1)))
    string = decode(np.asarray(whole.tokens)[row, 5:8].tolist())
    stop = StopText((string,), decode)
    expected = cut(whole, stop, PAD)
    assert bool(expected.finished[row])
    assert int(expected.mask[row].sum()) == 8
    same(through(case, stop=stop), expected)


def test_one_token_needs_no_step(case):
    model, tokens, valid, _, expected = case
    found = refill(model, tokens[:1], valid[:1], KEY, Sampling(max_new=1), slots=8)
    np.testing.assert_array_equal(found.tokens, expected.tokens[:1, :1])
    assert int(found.steps) == 0


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
    model, tokens, valid, _, _ = case
    with pytest.raises(InvalidOption, match=message):
        refill(model, tokens, valid, KEY, SAMPLING, **settings)
