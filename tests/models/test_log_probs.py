"""Chunked log-probabilities against the whole logits: values, gradients, and the memory that chunks save."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.models.log_probs import TokenScores, token_log_probs


def whole(hidden, head, targets, temperature=1.0):
    """The definition, all logits at once."""
    logits = (hidden @ head / temperature).astype(jnp.float32)
    logs = jax.nn.log_softmax(logits, axis=-1)
    picked = jnp.take_along_axis(logs, targets[..., None], axis=-1)[..., 0]
    return TokenScores(picked, -jnp.sum(jnp.exp(logs) * logs, axis=-1))


def data(tokens=30, width=16, vocabulary=64):
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (2, tokens // 2, width))
    head = jax.random.normal(keys[1], (width, vocabulary))
    return hidden, head, jax.random.randint(keys[2], hidden.shape[:2], 0, vocabulary)


@pytest.mark.parametrize("chunk", [1, 7, 15, 30, 1000])
def test_values_and_gradients_are_those_of_the_whole(chunk):
    """Chunks that do and do not divide the 30 tokens."""
    hidden, head, targets = data()

    def loss(score, hidden, head):
        found = score(hidden, head, targets, 0.7)
        return jnp.sum(found.log_probs) + 0.3 * jnp.sum(found.entropy**2)

    ours = lambda *a: token_log_probs(*a, chunk=chunk)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours(hidden, head, targets, 0.7),
        whole(hidden, head, targets, 0.7),
    )  # fmt: skip
    found = jax.jit(jax.grad(lambda h, u: loss(ours, h, u), argnums=(0, 1)))(hidden, head)
    expected = jax.grad(lambda h, u: loss(whole, h, u), argnums=(0, 1))(hidden, head)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), found, expected)


def test_the_gradient_holds_at_most_a_quarter_of_the_whole_logits():
    """Vocabulary 151 936, 2 048 tokens, width 256: temporary memory of value and gradient, as compiled."""
    shapes = (
        jax.ShapeDtypeStruct((2048, 256), jnp.float32), jax.ShapeDtypeStruct((256, 151_936), jnp.float32),
        jax.ShapeDtypeStruct((2048,), jnp.int32),
    )  # fmt: skip

    def temporary(score):
        loss = lambda h, u, t: jnp.mean(score(h, u, t).log_probs)
        compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    ours = temporary(token_log_probs)
    assert ours <= 0.25 * temporary(whole)


def test_bad_shapes_are_refused():
    hidden, head, targets = data()
    with pytest.raises(InvalidProblem, match=r"targets has shape \(2, 14\); expected \(2, 15\)"):
        token_log_probs(hidden, head, targets[:, 1:])
    with pytest.raises(InvalidProblem, match="hidden's last axis"):
        token_log_probs(hidden, head[1:], targets)
    with pytest.raises(InvalidOption, match="chunk is 0"):
        token_log_probs(hidden, head, targets, chunk=0)
