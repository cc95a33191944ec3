"""Buckets hold what they should, and a rollout over them compiles once a bucket."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.training import rollout
from pdopt.training.prompts import batches, bucket_of
from pdopt.training.rollouter import Local
from pdopt.training.sampling import Sampling

_spec = importlib.util.spec_from_file_location("small_model", Path(__file__).parent / "small_model.py")
small_model = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small_model)

SHALLOW = small_model.small(dataclasses.replace(small_model.CONFIG, depth=1))


def test_every_prompt_is_in_one_batch_whole_and_left_padded():
    rng = np.random.default_rng(0)
    ids = [rng.integers(1, 60, size).tolist() for size in rng.integers(1, 70, 23)]
    seen, numbers = [], []
    for batch in batches(ids, 4, pad=61, group=2, first=100):
        assert batch.tokens.shape == (4, max(bucket_of(len(ids[i])) for i in batch.index if i >= 0))
        for row, index in enumerate(batch.index):
            real = batch.tokens[row][batch.valid[row]].tolist()
            assert batch.valid[row, -1]
            assert (batch.tokens[row][~batch.valid[row]] == 61).all()
            if index >= 0:
                assert real == ids[index]
                assert batch.valid[row, len(batch.valid[row]) - len(real) :].all()
                assert batch.rows[2 * row : 2 * row + 2].tolist() == [2 * (100 + index), 2 * (100 + index) + 1]
                numbers += batch.rows[2 * row : 2 * row + 2].tolist()
        seen += [i for i in batch.index if i >= 0]
    assert sorted(seen) == list(range(23))
    assert len(set(numbers)) == 46


def test_twenty_batches_compile_once_a_bucket():
    rng = np.random.default_rng(1)
    ids = [rng.integers(3, 60, size).tolist() for size in [*rng.integers(1, 17, 36), *rng.integers(17, 33, 44)]]
    rollouter, sampling = Local(SHALLOW), Sampling(max_new=3)
    before, count = rollout._generate._cache_size(), 0
    for batch in batches(ids, 4):
        rollouter.generate(batch, jax.random.key(0), sampling)
        count += 1
    assert count == 20
    assert rollout._generate._cache_size() - before == 2


def test_bad_prompts_and_buckets_are_refused():
    with pytest.raises(InvalidProblem, match="prompt 1 has no tokens"):
        batches([[1], []], 2)
    with pytest.raises(InvalidProblem, match="a prompt has 9 tokens; the largest bucket holds 8"):
        list(batches([[1] * 9], 2, buckets=(4, 8)))
    with pytest.raises(InvalidOption, match="size is 0"):
        batches([[1]], 0)
    with pytest.raises(InvalidOption, match=r"buckets is \(\)"):
        batches([[1]], 1, buckets=())
