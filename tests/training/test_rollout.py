"""Sampled texts: against `generate` of transformers, against the full forward pass, and the rules of stopping."""

import dataclasses
import importlib.util
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.models.checkpoints import load
from pdopt.models.decoding import pack
from pdopt.models.log_probs import token_log_probs
from pdopt.training import rollout
from pdopt.training.rollout import generate
from pdopt.training.sampling import Sampling


def _module(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


families = _module("families", Path(__file__).parents[1] / "models" / "families.py")
small_model = _module("small_model", Path(__file__).parent / "small_model.py")
small, prompts = small_model.small, small_model.left_padded
FAMILIES = ("qwen2 tied", "qwen2 untied", "qwen3", "llama", "llama3", "mistral")
QUICK = ("qwen2 tied",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
def test_greedy_tokens_are_those_of_transformers(name, tmp_path):
    """64 prompts of many lengths, 64 tokens each: all 4096 equal."""
    model = families.torch_model(name)
    model.generation_config.eos_token_id = None
    model.save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 21, 64)
    valid = np.arange(20)[None] >= 20 - lengths[:, None]
    tokens = np.where(valid, rng.integers(3, 512, (64, 20)), 0)
    with torch.no_grad():
        expected = model.generate(
            torch.from_numpy(tokens), attention_mask=torch.from_numpy(valid.astype(np.int64)), max_new_tokens=64,
            do_sample=False, eos_token_id=None, pad_token_id=0,
        ).numpy()[:, 20:]  # fmt: skip
    found = generate(load(tmp_path), tokens, valid, jax.random.key(0), Sampling(max_new=64, temperature=0.0))
    np.testing.assert_array_equal(found.tokens, expected)
    assert not bool(found.finished.any())
    assert int(found.steps) == 64


def test_log_probs_are_those_of_the_training_pass(monkeypatch):
    """Across the stages of the growing cache, here 4, 8, 16 and 19 columns; logits near 20, each rounded."""
    monkeypatch.setattr(rollout, "FIRST_STAGE", 4)
    model = small()
    tokens, valid = prompts()
    sampling = Sampling(max_new=20, temperature=0.8)
    found = generate(model, tokens, valid, jax.random.key(1), sampling)
    text = jnp.concatenate([tokens, found.tokens], axis=1)
    seen = jnp.concatenate([valid, found.mask], axis=1)
    hidden = model.hidden(text, None, seen)[:, tokens.shape[1] - 1 : -1]
    scores = token_log_probs(hidden, model.params["embed"].T, found.tokens, 0.8)
    np.testing.assert_allclose(found.log_probs, scores.log_probs, atol=4e-5)
    np.testing.assert_array_equal(found.log_probs, found.sampler_log_probs)


@pytest.mark.slow
def test_a_window_in_the_cache_is_that_of_the_training_pass():
    """Prompt and text are longer than the window, so the oldest columns are hidden."""
    config = dataclasses.replace(small_model.CONFIG, window=6, local=(True, False))
    model = small(config)
    tokens, valid = prompts()
    found = generate(model, tokens, valid, jax.random.key(1), Sampling(max_new=10))
    text, seen = jnp.concatenate([tokens, found.tokens], axis=1), jnp.concatenate([valid, found.mask], axis=1)
    hidden = model.hidden(text, None, seen)[:, tokens.shape[1] - 1 : -1]
    scores = token_log_probs(hidden, model.params["embed"].T, found.tokens)
    np.testing.assert_allclose(found.log_probs, scores.log_probs, atol=4e-5)


def test_a_group_reads_its_prompt_once_and_gets_the_same_texts():
    model = small()
    tokens, valid = prompts(3)
    key, sampling = jax.random.key(7), Sampling(max_new=12)
    found = generate(model, tokens, valid, key, sampling, group=2)
    apart = generate(pack(model), jnp.repeat(tokens, 2, axis=0), jnp.repeat(valid, 2, axis=0), key, sampling)
    np.testing.assert_array_equal(found.tokens, apart.tokens)
    np.testing.assert_allclose(found.log_probs, apart.log_probs, atol=1e-5)
    assert (np.asarray(found.tokens[0::2]) != np.asarray(found.tokens[1::2])).any()


def test_limits_end_texts_that_are_not_finished():
    model = small()
    tokens, valid = prompts(4)
    key, sampling = jax.random.key(2), Sampling(max_new=12)
    free = generate(model, tokens, valid, key, sampling)
    limits = np.array([1, 5, 3, 7])
    found = generate(model, tokens, valid, key, sampling, limits=limits)
    np.testing.assert_array_equal(found.mask.sum(axis=1), limits)
    np.testing.assert_array_equal(found.tokens, np.where(found.mask, free.tokens, 0))
    assert int(found.steps) == 7
    assert not bool(found.finished.any())


def test_the_same_key_gives_the_same_texts_whatever_the_split_or_padding():
    model = small()
    tokens, valid = prompts(6)
    key, sampling = jax.random.key(4), Sampling(max_new=12)
    whole = generate(model, tokens, valid, key, sampling)
    for part in (slice(0, 2), slice(2, 6)):
        found = generate(model, tokens[part], valid[part], key, sampling, jnp.arange(6)[part])
        np.testing.assert_array_equal(found.tokens, whole.tokens[part])
    wider = lambda leaf: jnp.pad(leaf, ((0, 0), (7, 0)))
    found = generate(model, wider(tokens), wider(valid), key, sampling)
    np.testing.assert_array_equal(found.tokens, whole.tokens)
    assert len({tuple(row) for row in np.asarray(whole.tokens).tolist()}) == 6


@pytest.mark.slow
def test_rows_stop_at_eos_and_at_stop_sequences():
    model = small()
    tokens, valid = prompts(6)
    key = jax.random.key(5)
    free = np.asarray(generate(model, tokens, valid, key, Sampling(max_new=24)).tokens)
    eos, pair = int(free[0, 3]), tuple(int(t) for t in free[1, 4:6])
    found = generate(model, tokens, valid, key, Sampling(max_new=24, eos=(eos,), stop=(pair,)), pad=63)
    for row in range(6):
        text = free[row].tolist()
        ends = [i + 1 for i in range(24) if text[i] == eos or tuple(text[i - 1 : i + 1]) == pair]
        length = min(ends, default=24)
        assert np.asarray(found.mask[row]).tolist() == [i < length for i in range(24)]
        assert np.asarray(found.tokens[row, :length]).tolist() == text[:length]
        assert (np.asarray(found.tokens[row, length:]) == 63).all()
        assert (np.asarray(found.log_probs[row, length:]) == 0).all()
        assert bool(found.finished[row]) == bool(ends)
    assert bool(found.finished[0])
    assert bool(found.finished[1])


def test_a_rollout_ends_when_every_row_has():
    model = small()
    tokens, valid = prompts(1)
    first = int(generate(model, tokens, valid, jax.random.key(0), Sampling(max_new=1, temperature=0.0)).tokens[0, 0])
    found = generate(model, tokens, valid, jax.random.key(0), Sampling(max_new=64, temperature=0.0, eos=(first,)))
    assert int(found.steps) == 1


@pytest.mark.parametrize("rows", [1, 3])
def test_a_token_does_not_copy_the_cache(rows):
    """19 columns, which nothing else has. Compiled on the CPU, where one row alone is the case that is apart."""
    tokens, valid = prompts(rows)
    sample = small(), tokens, valid, jax.random.key(0), Sampling(max_new=11), jnp.arange(rows), jnp.full(rows, 11)
    text = rollout._generate.lower(*sample, 0, 1).compile().as_text()
    inside = re.findall(r"^%\S*region[^\n]*\{\n.*?^\}", text, re.MULTILINE | re.DOTALL)
    loops = [body for body in inside if re.search(r"f32\[[\d,]*8,19\]", body)]
    assert loops
    assert not [
        line for body in loops for line in body.splitlines() if re.search(r"f32\[[\d,]*19[\d,]*\]\S* copy\(", line)
    ]


def test_temperature_does_not_recompile():
    model = small()
    tokens, valid = prompts()
    run = lambda t: generate(model, tokens, valid, jax.random.key(0), Sampling(max_new=5, temperature=t))
    run(1.0)
    before = rollout._generate._cache_size()
    for temperature in (0.5, 0.9, 1.3):
        run(temperature)
    assert rollout._generate._cache_size() == before


def test_bad_shapes_are_refused():
    model = small()
    with pytest.raises(InvalidProblem, match=r"prompts has shape \(3,\); expected \(rows, tokens\)"):
        generate(model, jnp.zeros(3), jnp.ones(3), jax.random.key(0), Sampling())
    with pytest.raises(InvalidProblem, match=r"valid has shape \(1, 2\); expected \(1, 3\)"):
        generate(model, jnp.zeros((1, 3)), jnp.ones((1, 2)), jax.random.key(0), Sampling())
    with pytest.raises(InvalidProblem, match=r"rows has shape \(3,\); expected \(4,\)"):
        generate(model, jnp.ones((2, 3)), jnp.ones((2, 3)), jax.random.key(0), Sampling(), jnp.arange(3), group=2)
    with pytest.raises(InvalidOption, match="group is 0"):
        generate(model, jnp.ones((2, 3)), jnp.ones((2, 3)), jax.random.key(0), Sampling(), group=0)
