"""The type of a problem is decided once, and float64 survives where JAX's 64-bit mode is off (warnings are errors)."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.runtime.precision import as_array, default_float, precision_scope, resolve_dtype
from pdopt.types import record

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)


@record
class Data:
    A: jax.Array
    c: jax.Array


def x64(on: bool):
    return jax.enable_x64(True) if on else contextlib.nullcontext()


def wide(values) -> jax.Array:
    with jax.enable_x64(True):
        return jnp.asarray(values, jnp.float64)


@pytest.mark.parametrize(("on", "kind"), [(False, F32), (True, F32), (False, F64), (True, F64)])
def test_an_entry_point_keeps_the_type_in_every_mode(on, kind):
    """The matrix of the scale specification: (off, f32), (on, f32), (off, f64), (on, f64)."""
    rng = np.random.default_rng(0)
    A, c = rng.normal(size=(5, 7)), rng.normal(size=7)

    @jax.jit
    def loop(data):
        def body(state):
            k, x = state
            return k + 1, jnp.maximum(x - 0.1 * (data.A.T @ (data.A @ x) - data.c), 0.0)

        start = (jnp.int32(0), jnp.zeros(data.c.shape, data.c.dtype))
        return jax.lax.while_loop(lambda s: s[0] < 50, body, start)[1]

    with x64(on):
        data = Data(as_array("A", A, kind), as_array("c", c, kind))
        with precision_scope(data):
            got = loop(data)
    assert {leaf.dtype for leaf in jax.tree.leaves((data, got))} == {kind}
    x = np.zeros(7, kind)
    for _ in range(50):
        x = np.maximum(x - kind.type(0.1) * (A.astype(kind).T @ (A.astype(kind) @ x) - c.astype(kind)), 0)
    # 50 steps of a map with condition below 100 on numbers of size 1: rounding stays within some hundred units.
    np.testing.assert_allclose(np.asarray(got), x, rtol=0, atol=500 * np.finfo(kind).eps)


def test_scope_opens_only_where_needed():
    assert isinstance(precision_scope({"x": jnp.ones(2)}), contextlib.nullcontext)
    assert isinstance(precision_scope([None, 1.0, "a", np.float64(0.1), np.arange(2)]), contextlib.nullcontext)
    for tree in (wide([1.0]), np.ones(2), jax.ShapeDtypeStruct((1,), np.float64), np.ones(2, complex)):
        with precision_scope([tree]):
            assert default_float() == F64
        assert default_float() == F32
    with jax.enable_x64(True):
        assert isinstance(precision_scope(wide([1.0])), contextlib.nullcontext)


def test_scope_works_inside_a_trace_that_began_with_x64_off():
    def value(x):
        with precision_scope(x):
            return jnp.sum(jnp.maximum(x, 0.0) ** 2)

    x = wide([1 / 3, -1.0, 2.0])
    assert jax.jit(value)(x).dtype == F64
    assert jax.vmap(value)(x[None]).dtype == F64
    np.testing.assert_allclose(float(value(x)), 1 / 9 + 4, rtol=4e-16)


@pytest.mark.parametrize(
    ("off", "on", "values"),
    [
        (F32, F64, [[1, 2]]),  # row 12: integers and bools
        (F32, F64, [np.arange(3), np.array([True])]),
        (F32, F64, [jnp.arange(3), 2, None]),
        (F32, F64, [[0.5, 1.5], 2.0]),  # lists and Python numbers are weak
        (F32, F32, [np.ones(2, np.float32), [0.5], 1.0, np.float64(2), np.arange(2)]),
        (F32, F32, [jnp.ones(2, jnp.float32), jnp.asarray(2.0)]),  # a weakly typed JAX scalar
        (F64, F64, [wide([1.0]), np.ones(2, np.float32)]),  # row 15: the widest
        (F64, F64, [wide([1.0]), np.ones(2)]),  # nothing is lost, so no warning
        (F64, F64, [jax.ShapeDtypeStruct((2,), np.float64)]),
        (F64, F64, [Data(wide([[1.0]]), wide([1.0]))]),
        (F32, F32, [scipy.sparse.csr_array(np.eye(2, dtype=np.float32))]),
    ],
)
def test_the_type_follows_the_data(off, on, values):
    named = [(f"v{i}", value) for i, value in enumerate(values)]
    assert resolve_dtype(named) == off
    with jax.enable_x64(True):
        assert resolve_dtype(named) == on
    for asked in (jnp.float32, "float64"):
        assert resolve_dtype(named, dtype=asked) == np.dtype(asked)


def test_numpy_float64_is_converted_with_one_warning_that_names_the_cure():
    """Row 14."""
    values = [("c", np.ones(3)), ("A", scipy.sparse.csr_array(np.eye(3))), ("b", np.ones(3, np.float32))]
    with pytest.warns(UserWarning, match=r"^c, A: NumPy float64 .* pass dtype=jnp\.float64 to keep") as caught:
        assert resolve_dtype(values, stacklevel=2) == F32
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with jax.enable_x64(True):
        assert resolve_dtype(values) == F64
    assert resolve_dtype(values, dtype=jnp.float64) == F64
    assert resolve_dtype(values, dtype=jnp.float32) == F32


def test_low_precision_is_refused_unless_allowed():
    """Row 13."""
    half, brain = np.ones(2, np.float16), jnp.ones(2, jnp.bfloat16)
    for value, name in ((half, "float16"), (brain, "bfloat16"), (jnp.ones(2, jnp.float8_e4m3fn), "float8_e4m3fn")):
        with pytest.raises(InvalidProblem, match=f"c is {name}; expected float32 or float64"):
            resolve_dtype([("c", value)])
        assert resolve_dtype([("c", value)], dtype=jnp.float32) == F32
        assert resolve_dtype([("c", value), ("k", 2)], allow_low_precision=True) == np.dtype(value.dtype)
    assert resolve_dtype([("c", half), ("b", brain)], allow_low_precision=True) == F32
    with pytest.raises(InvalidOption, match="dtype is bfloat16; low precision needs"):
        resolve_dtype([], dtype=jnp.bfloat16)
    assert resolve_dtype([], dtype=jnp.bfloat16, allow_low_precision=True) == jnp.bfloat16


@pytest.mark.parametrize("asked", [int, bool, complex, "nonsense", np.longdouble])
def test_a_type_that_is_not_a_float_is_refused(asked):
    with pytest.raises(InvalidOption, match="dtype is"):
        resolve_dtype([], dtype=asked)


@pytest.mark.parametrize("value", ["abc", ["a"], np.ones(2, complex), np.array([None]), np.array(["a"]), object(), 1j])
def test_what_is_not_real_numbers_is_refused(value):
    with pytest.raises(InvalidProblem, match=r"^c "):
        resolve_dtype([("c", value)])
    with pytest.raises(InvalidProblem, match=r"^c "):
        as_array("c", value, jnp.float32)


@pytest.mark.parametrize("kind", [F32, F64])
@pytest.mark.parametrize("on", [False, True])
@pytest.mark.parametrize(
    "value",
    [
        3,
        2.5,
        True,
        [1, 2],
        [[0.5, 1], [2, 3]],
        [],
        np.arange(3),
        np.ones((2, 2)),
        np.float64(1.5),
        np.ones(2, np.float16),
    ],
)
def test_host_values_become_arrays_of_exactly_the_type(value, kind, on):
    with x64(on):
        got = as_array("c", value, kind)
    assert isinstance(got, jax.Array)
    assert got.dtype == kind
    assert not got.aval.weak_type
    np.testing.assert_array_equal(np.asarray(got), np.asarray(value, kind))


def test_arrays_of_the_type_are_left_alone_and_weak_ones_made_strong():
    x, w = jnp.ones(3, jnp.float32), wide([1.0])
    assert as_array("c", x, F32) is x
    assert as_array("c", w, F64) is w
    assert not as_array("c", jnp.asarray(2.0), F32).aval.weak_type
    np.testing.assert_array_equal(np.asarray(as_array("c", wide(1 / 3), F32)), np.float32(1 / 3))
    assert as_array("c", x, F64).dtype == F64


def test_later_changes_of_a_numpy_array_do_not_reach_the_problem():
    host = np.zeros(1024, np.float32)
    got = as_array("c", host, F32)
    host[:] = 1.0
    np.testing.assert_array_equal(np.asarray(got), 0.0)


@pytest.mark.parametrize("kind", [F32, F64])
def test_tracers_under_jit_vmap_and_grad(kind):
    x = as_array("x", [0.1, 0.2, 0.3], kind)

    def cube(v):
        a = as_array("c", v, kind)
        assert a.dtype == kind
        with precision_scope(a):
            return jnp.sum(a**3)

    with precision_scope(x):
        expected = 3 * np.asarray(x) ** 2
        for got in (jax.grad(cube)(x), jax.jit(jax.grad(cube))(x), jax.vmap(jax.grad(cube))(x[None])[0]):
            assert got.dtype == kind
            np.testing.assert_allclose(np.asarray(got), expected, rtol=4 * np.finfo(kind).eps)
    # Outside of a scope a float64 tracer must pass without being cut.
    assert jax.eval_shape(lambda v: as_array("c", v, kind), jax.ShapeDtypeStruct((3,), kind)).dtype == kind
    assert jax.jit(lambda v: as_array("c", v, kind))(x).dtype == kind
    assert jax.jit(lambda v: as_array("c", v, F64))(jnp.float32(1)).dtype == F64
    assert jax.jit(lambda v: resolve_dtype([("c", v)]) == kind)(x)


def test_lists_of_tracers_and_arrays():
    got = jax.jit(lambda a, b: as_array("c", [a, 2.0, b], F64))(wide(1 / 3), 1)
    assert got.dtype == F64
    np.testing.assert_array_equal(np.asarray(got), [1 / 3, 2.0, 1.0])
    assert as_array("c", [[jnp.float32(1), 2], [3, 4]], F32).shape == (2, 2)
    with pytest.raises(InvalidProblem, match="c is not a rectangular array"):
        as_array("c", [jnp.float32(1), [2, 3]], F32)


def test_ragged_lists_and_numbers_too_large_are_refused():
    with pytest.raises(InvalidProblem, match="c is not a rectangular array"):
        as_array("c", [[1, 2], [3]], F32)
    with pytest.raises(
        InvalidProblem, match=r"c has the value -1e\+300, which float32 cannot hold; pass dtype=jnp.float64"
    ):
        as_array("c", np.array([1.0, -1e300]), F32)
    np.testing.assert_array_equal(np.asarray(as_array("c", np.array([np.inf, np.nan]), F32)), [np.inf, np.nan])
    with pytest.raises(InvalidProblem, match="expected a dense array of numbers"):
        as_array("A", scipy.sparse.csr_array(np.eye(2)), F32)
