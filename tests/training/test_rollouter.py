"""Our own rollouter with and without refill, and the weights of tokens that another engine drew."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.errors import InvalidOption
from pdopt.training.gradients import Part
from pdopt.training.prompts import batches
from pdopt.training.rollouter import Local, Rollouter, corrected
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
    other = plain.update(small_model.small(SHALLOW.config, seed=1))
    assert (np.asarray(other.generate(batch, key, sampling).tokens) != np.asarray(expected.tokens)).any()
    np.testing.assert_array_equal(plain.generate(batch, key, sampling).tokens, expected.tokens)


def test_what_an_engine_drew_is_weighed_by_what_the_policy_says():
    """Slow twin: log-softmax of the whole texts, and the ratio cut at the cap."""
    prompts, tokens = np.array([[0, 5, 6], [0, 0, 8]]), np.array([[3, 4, 0], [9, 10, 11]])
    present = np.array([[1, 1, 0], [1, 1, 1]], bool)
    theirs = jnp.where(present, jnp.array([[-9.0, -0.1, 7.0], [-3.0, -4.0, -5.0]]), jnp.nan)
    part = Part(*map(jnp.asarray, (prompts, prompts > 0, tokens, present, present)))
    found = corrected(SHALLOW, part, theirs, 1.0, 2.0, None)
    every, valid = np.concatenate([prompts, tokens], axis=1), np.concatenate([prompts > 0, present], axis=1)
    logs = np.asarray(jax.nn.log_softmax(SHALLOW(jnp.asarray(every), None, jnp.asarray(valid))[:, 2:-1]))
    ours = np.take_along_axis(logs, tokens[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(np.asarray(found.log_probs)[present], ours[present], atol=1e-5)
    weights = np.where(present, np.minimum(np.exp(ours - theirs), 2.0), 0)
    np.testing.assert_allclose(found.weights, weights, rtol=1e-4)
    assert float(found.metrics["engine_weight"]) == pytest.approx(weights[present].mean(), rel=1e-4)
    assert float(found.metrics["engine_gap"]) == pytest.approx(np.abs(ours - theirs)[present].mean(), rel=1e-4)


def test_bad_settings_are_refused():
    with pytest.raises(InvalidOption, match="slots is -1"):
        Local(SHALLOW, slots=-1)
    with pytest.raises(InvalidOption, match="chunk is 0"):
        Local(SHALLOW, chunk=0)
