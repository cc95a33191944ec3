"""Functions that XLA compiles on their own."""

import jax
import jax.numpy as jnp
import numpy as np

from pdopt.runtime.apart import LEAST, ONE_KERNEL, SPLIT, Batch, apart, fits, traced_for
from pdopt.runtime.batching import minor

FLAGS = f"--xla_backend_extra_options=xla_cpu_{ONE_KERNEL}=1"


@apart
def twice(x: jax.Array) -> jax.Array:
    return 2 * x


def test_a_call_survives_in_the_compiled_program_and_in_that_of_a_batch(monkeypatch) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    program = lambda x: twice(x + 1) - 1
    for function, shape, held in (
        (program, (LEAST // 4,), True), (jax.vmap(minor(program)), (2, LEAST // 4), True), (program, (3,), False),
    ):  # fmt: skip
        x = jnp.ones(shape, jnp.float32)
        compiled = jax.jit(function).lower(x).compile()
        assert (" call(" in compiled.as_text()) is held
        np.testing.assert_array_equal(compiled(x), 3 * np.ones(x.shape))


def test_what_is_small_alone_is_apart_in_a_batch_that_is_not(monkeypatch) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    x = jnp.ones((8, LEAST // 16), jnp.float32)
    held = lambda function, x: "inlineable" in jax.jit(function).lower(x).as_text()
    assert not held(twice, x[0])
    assert held(jax.vmap(minor(twice)), x) is (jax.default_backend() == "cpu")
    monkeypatch.setenv("XLA_FLAGS", FLAGS)
    with traced_for(Batch(8, unsplit=True)):
        assert fits([np.zeros(SPLIT // 8)])


def test_a_call_has_derivatives_and_an_ordinary_vmap() -> None:
    assert float(jax.grad(lambda x: jnp.sum(twice(x) ** 2))(jnp.ones(3))[0]) == 8.0
    np.testing.assert_array_equal(jax.vmap(twice)(jnp.ones((2, 3))), 2 * np.ones((2, 3)))


def test_what_xla_would_split_stays_where_it_is_under_the_flag(monkeypatch) -> None:
    large, small = np.zeros(SPLIT // 8), np.zeros(SPLIT // 80)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert fits([large])
    monkeypatch.setenv("XLA_FLAGS", FLAGS)
    assert fits([small])
    assert not fits([large])


def test_a_batched_loop_with_a_call_stays_a_loop_under_the_flag(monkeypatch) -> None:
    """By a scatter in its body: made one kernel, it would hold kernels that XLA splits, and would not compile."""
    x = jnp.ones((4, LEAST // 4), jnp.float32)
    calls = lambda x: jax.lax.fori_loop(0, jnp.int32(3), lambda _, x: twice(x), x)
    bare = lambda x: jax.lax.fori_loop(0, jnp.int32(3), lambda _, x: 2 * x, x)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    pinned = lambda function: "scatter" in jax.jit(jax.vmap(minor(function))).lower(x).as_text()
    assert not pinned(calls)
    monkeypatch.setenv("XLA_FLAGS", FLAGS)
    assert pinned(lambda x: calls(x))
    assert not pinned(bare)
    np.testing.assert_array_equal(jax.vmap(minor(lambda x: calls(x)))(x), 8 * x)


def test_results_count_among_what_a_kernel_moves(monkeypatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", FLAGS)
    wide = apart(lambda x: jnp.concatenate([x] * 7))
    x = np.zeros(SPLIT // 32, np.float32)  # an eighth of the bytes: with its results all of them
    assert fits([x])
    assert "inlineable" not in str(jax.jit(wide).lower(x).as_text())
    assert "inlineable" in str(jax.jit(wide).lower(x[1:]).as_text())
