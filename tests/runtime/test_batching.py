"""`minor` against `jax.vmap`: each rule, each mixture of batched and shared operands, loops whose members end apart."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.problems.natural_map import solve_jacobian
from pdopt.runtime.batching import along_last, minor

INDEX = np.array([2, 0, 1, 1])


def matrices(x, A):
    flat = A @ x + x @ A
    return flat, x @ x, jnp.outer(x, x), (A @ A)[0], jnp.tensordot(A, A)


def shapes(x, A):
    wide = jnp.concatenate([x, jnp.ones(2), x[::2]])
    return wide, A.T, A.reshape(9), A[1:, :2], jnp.pad(x, (1, 2)), A[None], jnp.stack([x, x + 1])


def indices(x, A):
    sums = jax.ops.segment_sum(x[INDEX] * 2, np.array([0, 0, 2, 1]), 3)
    return x[INDEX], A[INDEX], sums, A.at[1].set(x), x.at[INDEX].add(1.0), x[jnp.argmin(x)]


def choices(x, A):
    best = jnp.max(A, axis=0)
    return jnp.where(x > 0, x, best), jnp.clip(x, -0.5, x.max()), jnp.any(x > 1), jnp.sort(x), jnp.cumsum(x)


def loops(x, A):
    halved = jax.lax.while_loop(lambda s: jnp.sum(s[0] ** 2) > 0.1, lambda s: (s[0] / 2, s[1] + 1), (x, jnp.int32(0)))
    powers = jax.lax.fori_loop(0, 3, lambda k, v: A @ v + k, x)
    counted = jax.lax.fori_loop(0, jnp.argmax(x) + 1, lambda k, v: v + x[k], 0.0)
    summed = jax.lax.scan(lambda s, v: (s + v, s * v), jnp.zeros(()), x)
    return halved, powers, counted, summed, jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, x), jax.jit(jnp.tanh)(x)


@pytest.mark.parametrize("function", [matrices, shapes, indices, choices, loops])
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_equals_vmap(function, axes):
    rng = np.random.default_rng(0)
    x, A = rng.standard_normal((5, 3)).astype(np.float32), 0.3 * rng.standard_normal((5, 3, 3)).astype(np.float32)
    given = tuple(jnp.asarray(v if axis == 0 else v[0]) for v, axis in zip((x, A), axes))
    got, expected = (jax.jit(jax.vmap(f, axes))(*given) for f in (minor(function), function))
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=2e-6)


def test_a_member_that_has_ended_is_frozen_bit_by_bit():
    def sink(x):
        return jax.lax.while_loop(lambda s: s[0] > 1, lambda s: (s[0] * 0.7, s[1] + 1), (x, jnp.int32(0)))

    x = jnp.array([1.0, 3.0, 1e6, 0.5], jnp.float32)
    value, count = jax.jit(jax.vmap(minor(sink)))(x)
    for k in range(4):
        alone = jax.jit(sink)(x[k])
        assert int(count[k]) == int(alone[1])
        assert float(value[k]) == float(alone[0])


def test_what_is_not_batched_is_computed_once():
    def shared(A, x):
        return jnp.linalg.norm(A @ A) * x

    text = str(jax.make_jaxpr(jax.vmap(minor(shared), (None, 0)))(jnp.eye(3), jnp.ones((4, 3))))
    assert "f32[3,3] = dot_general" in text
    assert "f32[4,3,3]" not in text


def test_inside_another_vmap_and_with_nothing_batched():
    x = jnp.arange(12.0, dtype=jnp.float32).reshape(2, 3, 2)
    np.testing.assert_allclose(jax.vmap(jax.vmap(minor(jnp.sum)))(x), x.sum(-1))
    np.testing.assert_allclose(along_last(lambda a: 2 * a, 3, (False,), (jnp.float32(1),)), [2.0, 2.0, 2.0])


def test_a_function_with_a_rule_of_its_own_for_batches_keeps_it():
    """Two batched calls of LAPACK can wait for each other for ever on two threads: the factors are made one by one."""
    batch = jax.vmap(minor(lambda v: solve_jacobian(lambda v: v**2, v, v)))
    text = jax.jit(batch).lower(jnp.ones((10, 7))).as_text()
    shapes = set(re.findall(r"getrf.*?-> ?\(?tensor<([0-9x]+)xf", text))
    assert shapes == {"7x7"}
