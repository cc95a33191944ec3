"""Every solver in (x64 off, float32), (x64 on, float32), (x64 off, float64 data): one floating type from end to end.

Warnings are errors in this suite, so a truncation that JAX announces fails here too.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.operators.implicit import Implicit
from pdopt.operators.sparse import Sparse
from pdopt.types import Pair, Status

CASES = {"off, float32": (False, np.float32), "on, float32": (True, np.float32), "off, float64": (False, np.float64)}
METHODS = {"default": pdopt.PDHG(), "constant": pdopt.PDHG.constant(), "averaged": pdopt.PDHG.averaged()}


def first_differences(data, x):
    return x[1:] - x[:-1]


def adjoint_differences(data, y):
    return jnp.pad(y, (1, 0)) - jnp.pad(y, (0, 1))


def program(dtype, storage="dense"):
    rng = np.random.default_rng(0)
    A = np.diff(np.eye(5), axis=0) if storage == "implicit" else rng.normal(size=(4, 5))
    b = A @ rng.uniform(size=5)
    data = {
        "c": rng.normal(size=5),
        "row_lower": b - 0.2,
        "row_upper": b + 0.2,
        "lower": np.zeros(5),
        "upper": np.ones(5),
    }
    if storage == "sparse":
        row, column = np.nonzero(A)
        A = Sparse.from_entries(row, column, A[row, column], A.shape, dtype)
    if storage == "implicit":
        A = Implicit((), first_differences, adjoint_differences, A.shape)
    return pdopt.LinearProgram(A=A, **data, offset=0.5, dtype=dtype)


def scope(x64):
    return jax.enable_x64(True) if x64 else contextlib.nullcontext()


def floating(tree):
    return {jax.tree_util.keystr(path): leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
            if jnp.issubdtype(leaf.dtype, jnp.floating)}  # fmt: skip


def assert_one_type(tree, dtype):
    found = floating(tree)
    assert found
    assert {name: kind for name, kind in found.items() if kind != dtype} == {}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("method", "storage"),
    [
        ("default", "dense"),
        ("constant", "dense"),
        ("averaged", "dense"),
        ("default", "sparse"),
        ("default", "implicit"),
    ],
)
def test_every_float_of_a_solution_has_the_problems_type(case, method, storage):
    x64, dtype = CASES[case]
    with scope(x64):
        lp = program(dtype, storage)
        assert_one_type(lp, dtype)
        found = pdopt.solve(lp, METHODS[method], history=4)
        assert found.reason is Status.OPTIMAL
        assert_one_type(found, dtype)
        assert {found.status.dtype, found.iterations.dtype} == {np.dtype(np.int32)}
        assert_one_type((lp.optimality(found.pair), lp.residuals(found.pair), lp.objective(found.x)), dtype)


@pytest.mark.parametrize("case", CASES)
def test_starts_and_options_do_not_widen_or_narrow(case):
    x64, dtype = CASES[case]
    with scope(x64):
        lp = program(dtype)
        start = Pair(np.zeros(5), np.zeros(4))
        found = pdopt.solve(lp, start=start, tolerance=np.float64(1e-4), max_iterations=np.int64(1000), history=4)
        assert_one_type(found, dtype)
        assert_one_type(pdopt.solve(lp, start=found, history=4), dtype)


@pytest.mark.parametrize("case", CASES)
def test_gradients_have_the_problems_type(case):
    x64, dtype = CASES[case]
    # JAX transposes outside of `solve`, where a float64 product would be cut (with a warning): such a gradient is taken
    # inside the scope, as the docstring of `solve` says.
    with scope(x64 or dtype == np.float64):
        slope = jax.grad(lambda lp: pdopt.solve(lp).objective)(program(dtype))
        assert_one_type(slope, dtype)


@pytest.mark.parametrize("case", CASES)
def test_batches_have_the_problems_type(case):
    x64, dtype = CASES[case]
    with scope(x64):
        lp = program(dtype)
        costs = np.stack([np.asarray(lp.c), -np.asarray(lp.c)])
        with scope(dtype == np.float64):  # a stack of float64 numbers is the user's to make
            costs = jnp.asarray(costs, dtype)
        assert_one_type(jax.vmap(lambda c: pdopt.solve(lp.replace(c=c), history=4))(costs), dtype)


def test_float64_reaches_what_float32_cannot():
    tight = pdopt.solve(program(np.float64), tolerance=1e-10)
    assert tight.reason is Status.OPTIMAL
    assert float(tight.residuals.error) <= 1e-10
    loose = pdopt.solve(program(np.float32))
    assert float(loose.objective) == pytest.approx(float(tight.objective), abs=1e-3)
