"""`minor` against `jax.vmap`: each rule, each mixture of batched and shared operands, loops whose members end apart."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.problems.natural_map import solve_jacobian
from pdopt.runtime.batching import COSTLY, Last, all_last, along_last, minor, within

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


def branches(x, A):
    which = jnp.argmax(x)  # each member's own
    several = jax.lax.switch(which, [lambda x: (2 * x, A[0]), lambda x: (x - 1, A @ x), lambda x: (-x, x)], x)
    return several, jax.lax.cond(jnp.sum(A[0]) > 0, lambda v: v @ A, lambda v: v, x)


def places(x, A):
    place = jnp.argmax(x)
    row, written = jax.lax.dynamic_slice_in_dim(A, place, 1), jax.lax.dynamic_update_slice_in_dim(A, x[None], place, 0)
    count = jnp.int32(A.shape[0] - 1)  # all members'
    return row, written, jax.lax.dynamic_slice_in_dim(A, count, 1), jax.lax.dynamic_slice_in_dim(A, place, 2, 1)


def loops(x, A):
    halved = jax.lax.while_loop(lambda s: jnp.sum(s[0] ** 2) > 0.1, lambda s: (s[0] / 2, s[1] + 1), (x, jnp.int32(0)))
    powers = jax.lax.fori_loop(0, 3, lambda k, v: A @ v + k, x)
    counted = jax.lax.fori_loop(0, jnp.argmax(x) + 1, lambda k, v: v + x[k], 0.0)
    summed = jax.lax.scan(lambda s, v: (s + v, s * v), jnp.zeros(()), x)
    return halved, powers, counted, summed, jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, x), jax.jit(jnp.tanh)(x)


@pytest.mark.parametrize("function", [matrices, shapes, indices, choices, branches, places, loops])
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


@pytest.mark.parametrize("size", [4, 5, 7])
def test_groups_of_members_equal_the_whole_batch(size):
    rng = np.random.default_rng(0)
    x, A = jnp.asarray(rng.standard_normal((size, 3)), jnp.float32), 0.3 * jnp.asarray(rng.standard_normal((3, 3)))
    got, expected = (jax.jit(jax.vmap(f, (0, None)))(x, A) for f in (minor(loops, 2), loops))
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=2e-6)
    nested = jax.vmap(jax.vmap(minor(jnp.sum, 2)))(jnp.arange(2 * size * 3.0).reshape(2, size, 3))
    np.testing.assert_array_equal(nested, jnp.arange(2 * size * 3.0).reshape(2, size, 3).sum(-1))


def test_groups_are_a_matter_of_cpus_alone(monkeypatch):
    text = lambda: str(jax.make_jaxpr(jax.vmap(minor(jnp.tanh, 2)))(jnp.ones((6, 3))))
    assert ("scan" in text()) == (jax.default_backend() == "cpu")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "scan" not in text()


def test_a_member_that_has_ended_is_frozen_bit_by_bit():
    def sink(x):
        return jax.lax.while_loop(lambda s: s[0] > 1, lambda s: (s[0] * 0.7, s[1] + 1), (x, jnp.int32(0)))

    x = jnp.array([1.0, 3.0, 1e6, 0.5], jnp.float32)
    value, count = jax.jit(jax.vmap(minor(sink)))(x)
    for k in range(4):
        alone = jax.jit(sink)(x[k])
        assert int(count[k]) == int(alone[1])
        assert float(value[k]) == float(alone[0])


def test_inner_loops_do_not_go_on_for_frozen_members():
    """A member that has ended would take 50 inner steps each time if it were asked: nobody waits for them."""
    seen = []

    def nested(x):
        def inner(total):
            jax.debug.callback(lambda: seen.append(1))
            return total + 1

        def outer(carry):
            count, total = carry
            steps = jnp.where(count < x, 1, 50)
            return count + 1, jax.lax.while_loop(lambda t: t < total + steps, inner, total)

        return jax.lax.while_loop(lambda c: c[0] < x, outer, (jnp.int32(0), jnp.int32(0)))[1]

    found = jax.jit(jax.vmap(minor(nested)))(jnp.array([1, 4], jnp.int32))
    jax.effects_barrier()
    np.testing.assert_array_equal(found, [1, 4])
    assert len(seen) <= 2 * 4


@pytest.mark.parametrize("rows", [3, 40])  # written out, and too large to be
def test_products_of_batches(rows):
    rng = np.random.default_rng(rows)
    A, B = (jnp.asarray(rng.standard_normal((2, rows, rows)), jnp.float32) for _ in range(2))

    def products(A, B):
        return (
            A @ B,
            A @ B[0],
            A[0] @ B,
            jnp.tensordot(A, B, ((0, 1), (1, 0))),
            jax.lax.dot_general(A, B, (((0,), (1,)), ((), ()))),
        )

    for ours, theirs in zip(jax.vmap(minor(products))(A, B), jax.vmap(products)(A, B)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_what_is_not_batched_is_computed_once():
    def shared(A, x):
        return jnp.linalg.norm(A @ A) * x

    text = str(jax.make_jaxpr(jax.vmap(minor(shared), (None, 0)))(jnp.eye(3), jnp.ones((4, 3))))
    assert "f32[3,3] = dot_general" in text
    assert "f32[4,3,3]" not in text


def test_what_has_the_batch_last_is_marked_on_the_way_in_and_out():
    x = jnp.arange(6.0, dtype=jnp.float32).reshape(3, 2)  # two members
    shared, own = within(lambda a, x: (2 * a, a * jnp.sum(x)), 2, (jnp.float32(3), Last(x)))
    assert float(shared) == 6
    np.testing.assert_array_equal(own.value, 3 * x.sum(0))
    whole = all_last((shared, own), 2)
    np.testing.assert_array_equal(whole[0].value, [6, 6])
    assert whole[1] is own


def test_a_branch_shared_by_all_members_alone_is_computed():
    program = lambda flag, x: jax.lax.cond(flag, jnp.sin, jnp.cos, x)
    text = str(jax.make_jaxpr(jax.vmap(minor(program), (None, 0)))(True, jnp.ones(3)))
    assert "cond" in text
    assert "select_n" not in text


def test_a_long_branch_is_skipped_where_no_member_takes_it():
    """And taken by some, it gives each its own; a division that only the other branch guards against is not made."""

    def long(x):
        for _ in range(COSTLY):
            x = 1 / x
        return 2 / x

    program = lambda x: jax.lax.cond(x > 0, long, lambda x: x, x)
    for x in ([-1.0, 0.0, 0.0], [1.0, -2.0, 4.0]):
        x = jnp.array(x)
        found = jax.jit(jax.vmap(minor(program)))(x)
        np.testing.assert_array_equal(found, jnp.stack([program(v) for v in x]))
    text = str(jax.make_jaxpr(jax.vmap(minor(program)))(x))
    assert text.count("cond[") == 1
    short = lambda x: jax.lax.cond(x > 0, jnp.sin, jnp.cos, x)
    assert "cond[" not in str(jax.make_jaxpr(jax.vmap(minor(short)))(x))


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
