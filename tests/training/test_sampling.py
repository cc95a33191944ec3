"""Each filter against its definition, and what is drawn against the probabilities it should have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from pdopt.errors import InvalidOption
from pdopt.training.sampling import Sampling, draw, truncate

P = np.array([0.4, 0.3, 0.2, 0.06, 0.04])
KEPT = [
    (Sampling(), {0, 1, 2, 3, 4}),
    (Sampling(top_k=2), {0, 1}),
    (Sampling(top_k=9), {0, 1, 2, 3, 4}),
    (Sampling(min_p=0.5), {0, 1, 2}),
    (Sampling(top_p=0.5), {0, 1}),
    (Sampling(top_p=0.39), {0}),
    (Sampling(top_p=0.95, exact=True), {0, 1, 2, 3}),
    (Sampling(top_k=3, min_p=0.6, top_p=0.5), {0}),  # 0.4 / 0.7 of what is left reaches the half alone
]


@pytest.mark.parametrize(("sampling", "kept"), KEPT)
def test_filters_keep_what_they_should(sampling, kept):
    order = np.random.default_rng(0).permutation(5)
    left = truncate(jnp.log(jnp.asarray(P[order], jnp.float32))[None], sampling)[0]
    assert {int(order[i]) for i in np.flatnonzero(np.isfinite(np.asarray(left)))} == kept


@pytest.mark.parametrize(("sampling", "kept"), KEPT)
def test_draws_have_the_frequencies_of_what_is_left(sampling, kept):
    """20 000 rows; chi-square at the 0.1 % level."""
    n = 20_000
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(P, jnp.float32)), (n, 5))
    found = jax.jit(draw)(logits, sampling, jax.random.key(3), jnp.arange(n), 0)
    counts = np.bincount(np.asarray(found.token), minlength=5)
    inside = sorted(kept)
    assert counts.sum() == counts[inside].sum() == n
    share = P[inside] / P[inside].sum()
    if len(inside) > 1:
        assert chisquare(counts[inside], n * share).pvalue > 1e-3
    np.testing.assert_allclose(found.log_prob, np.log(P)[np.asarray(found.token)], atol=1e-5)
    expected = np.log(P / P[inside].sum())[np.asarray(found.token)]
    np.testing.assert_allclose(found.sampler_log_prob, expected, atol=1e-5)


def test_temperature_divides_the_logits_and_zero_is_greedy():
    logits = jnp.log(jnp.asarray(P, jnp.float32))[None]
    found = draw(logits, Sampling(temperature=0.5), jax.random.key(0), jnp.arange(1), 0)
    cold = P**2 / (P**2).sum()
    np.testing.assert_allclose(found.log_prob[0], np.log(cold)[int(found.token[0])], atol=1e-5)
    for seed in range(20):
        assert int(draw(logits, Sampling(temperature=0.0), jax.random.key(seed), jnp.arange(1), 0).token[0]) == 0


def test_draws_over_many_blocks_have_the_frequencies_of_the_softmax():
    """700 tokens are 32 blocks of 22 with padding; 40 000 rows, the likeliest 40 tokens and the rest together."""
    n, size = 40_000, 700
    logits = 3 * jax.random.normal(jax.random.key(0), (size,))
    found = jax.jit(draw)(jnp.broadcast_to(logits, (n, size)), Sampling(), jax.random.key(1), jnp.arange(n), 0)
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    counts, order = np.bincount(np.asarray(found.token), minlength=size), np.argsort(-p)
    assert len(counts) == size
    together = lambda values: np.append(values[order[:40]], values[order[40:]].sum())
    assert chisquare(together(counts), n * together(p / p.sum())).pvalue > 1e-3
    np.testing.assert_allclose(found.log_prob, np.log(p)[np.asarray(found.token)], atol=1e-5)


def test_greedy_takes_the_first_of_the_likeliest():
    logits = jnp.zeros((3, 700)).at[jnp.arange(3), jnp.array([699, 3, 350])].set(5.0).at[1, 600].set(5.0)
    found = draw(logits, Sampling(temperature=0.0), jax.random.key(0), jnp.arange(3), 0)
    np.testing.assert_array_equal(found.token, [699, 3, 350])


def test_a_rows_draw_depends_on_its_number_and_step_alone():
    logits = jax.random.normal(jax.random.key(1), (6, 50))
    key = jax.random.key(2)
    whole = draw(logits, Sampling(), key, jnp.arange(6), 4)
    part = draw(logits[3:5], Sampling(), key, jnp.array([3, 4]), jnp.array([4, 4]))
    np.testing.assert_array_equal(whole.token[3:5], part.token)
    moved = draw(logits, Sampling(), key, jnp.arange(6), 5)
    assert (np.asarray(moved.token) != np.asarray(whole.token)).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new": 0}, "max_new is 0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"stop": ((),)}, "stop has an empty sequence"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InvalidOption, match=message):
        Sampling(**settings)
