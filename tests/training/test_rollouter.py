"""Our own rollouter with and without refill, and the weights of tokens that another engine drew."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.errors import InvalidOption
from pdopt.training.prompts import batches
from pdopt.training.rollouter import Local, Rollouter, truncated_ratio
from pdopt.training.sampling import Sampling

pytestmark = pytest.mark.usefixtures("quick_compiles")

_spec = importlib.util.spec_from_file_location("small_model", Path(__file__).parent / "small_model.py")
small_model = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small_model)

SHALLOW = small_model.small(dataclasses.replace(small_model.CONFIG, depth=1))


def test_slots_change_the_work_and_not_the_texts_and_updates_change_the_weights():
    batch = next(batches([[5, 6, 7], [8], [9, 10]], 3, group=2))
    key, sampling = jax.random.key(0), Sampling(max_new=6)
    plain = Local(SHALLOW)
    assert isinstance(plain, Rollouter)
    expected = plain.generate(batch, key, sampling)
    found = plain.replace(slots=2, chunk=4).generate(batch, key, sampling)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    other = plain.update(small_model.small(SHALLOW.config, seed=1).params)
    assert (np.asarray(other.generate(batch, key, sampling).tokens) != np.asarray(expected.tokens)).any()
    np.testing.assert_array_equal(plain.generate(batch, key, sampling).tokens, expected.tokens)


def test_ratios_are_cut_without_overflow_and_carry_no_gradient():
    ours, theirs = jnp.array([-1.0, -0.5, -2.0, 0.0]), jnp.array([-1.5, -0.5, -1.0, -400.0])
    np.testing.assert_allclose(truncated_ratio(ours, theirs, 1.5), [1.5, 1.0, np.exp(-1.0), 1.5], rtol=1e-6)
    gradient = jax.grad(lambda x: truncated_ratio(x, theirs).sum())(ours)
    np.testing.assert_array_equal(gradient, 0)
    with pytest.raises(InvalidOption, match="cap is 0"):
        truncated_ratio(ours, theirs, 0.0)


def test_bad_settings_are_refused():
    with pytest.raises(InvalidOption, match="slots is -1"):
        Local(SHALLOW, slots=-1)
    with pytest.raises(InvalidOption, match="chunk is 0"):
        Local(SHALLOW, chunk=0)
