"""Every operator against SciPy: both products, norms, scaling, order, and what JAX may do with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import sparse as jsparse

from pdopt.errors import InvalidProblem
from pdopt.operators.base import Operator
from pdopt.operators.convert import as_operator, to_scipy
from pdopt.operators.dense import Dense
from pdopt.operators.diagonal import Diagonal
from pdopt.operators.implicit import Implicit, Scaled, check_adjoint
from pdopt.operators.sparse import Sparse

KINDS = {"l1": 1, "l2": 2, "linf": np.inf}


def random_matrix(lengths, n, seed=0):
    """A sparse matrix whose row i has lengths[i] entries at random places."""
    rng = np.random.default_rng(seed)
    column = [rng.choice(n, size=k, replace=False) for k in lengths]
    row = np.repeat(np.arange(len(lengths)), lengths)
    column = np.concatenate(column) if column else np.zeros(0, int)
    return sp.csr_matrix((rng.normal(size=row.size), (row, column)), shape=(len(lengths), n))


def power_law(m, n, seed=1):
    return np.minimum(np.random.default_rng(seed).zipf(1.5, size=m), n)


MATRICES = {
    "plain": random_matrix([3] * 7, 9),
    "empty rows": random_matrix([0, 4, 0, 2, 0], 6),
    "empty columns": sp.hstack([sp.csr_matrix((4, 3)), random_matrix([2, 1, 3, 2], 5), sp.csr_matrix((4, 2))]).tocsr(),
    "all empty": sp.csr_matrix((3, 4)),
    "no rows": sp.csr_matrix((0, 5)),
    "no columns": sp.csr_matrix((5, 0)),
    "one long row": random_matrix([5000, 1, 2], 6000),
    "long column": random_matrix([5000, 1, 2], 6000).T.tocsr(),
    "power law": random_matrix(power_law(120, 400), 400),
    "one entry": sp.csr_matrix(np.array([[2.0]])),
    "wide": random_matrix([17, 16, 33, 257], 300),
}
EACH = pytest.mark.parametrize("name", MATRICES)


def sparse(matrix, dtype=jnp.float64):
    coo = sp.coo_matrix(matrix)
    return Sparse.from_entries(coo.row, coo.col, coo.data, coo.shape, dtype)


def vectors(shape, seed=2):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape[1]), rng.normal(size=shape[0])


def bound(matrix, size, dtype):
    """Rounding of a sum of products: (terms + 2) units times the sum of magnitudes, entry by entry."""
    terms = np.diff(abs(matrix).tocsr().indptr).max(initial=0)
    return (terms + 2) * np.finfo(dtype).eps * (abs(matrix) @ abs(size)) + np.finfo(dtype).tiny


def assert_products(operator, matrix, dtype):
    x, y = vectors(matrix.shape)
    x, y = x.astype(dtype).astype(float), y.astype(dtype).astype(float)
    forward = np.asarray(operator.matvec(jnp.asarray(x, dtype)))
    backward = np.asarray(operator.rmatvec(jnp.asarray(y, dtype)))
    assert forward.dtype == backward.dtype == dtype
    assert np.all(abs(forward - matrix @ x) <= bound(matrix, x, dtype))
    assert np.all(abs(backward - matrix.T @ y) <= bound(matrix.T, y, dtype))


@EACH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_equal_scipy(name, dtype):
    matrix = MATRICES[name].astype(dtype).astype(float)
    with jax.enable_x64(True):
        assert_products(sparse(matrix, dtype), matrix, dtype)
        if matrix.shape[0] * matrix.shape[1] <= 50_000:
            assert_products(Dense.make(matrix.toarray(), dtype), matrix, dtype)


@EACH
def test_ordered_products_equal_scipy_after_the_round_trip(name):
    matrix = MATRICES[name]
    x, y = vectors(matrix.shape)
    with jax.enable_x64(True):
        fast, rows, columns = sparse(matrix).ordered()
        np.testing.assert_array_equal(columns.back(columns.put(jnp.asarray(x))), x)
        np.testing.assert_array_equal(rows.put(rows.back(jnp.asarray(y))), y)
        both = jax.jit(lambda x, y: (rows.back(fast.matvec(columns.put(x))), columns.back(fast.rmatvec(rows.put(y)))))
        forward, backward = (np.asarray(v) for v in both(jnp.asarray(x), jnp.asarray(y)))
    assert np.all(abs(forward - matrix @ x) <= bound(matrix, x, np.float64))
    assert np.all(abs(backward - matrix.T @ y) <= bound(matrix.T, y, np.float64))


@EACH
def test_adjoint(name):
    matrix = MATRICES[name]
    x, y = vectors(matrix.shape)
    with jax.enable_x64(True):
        operator = sparse(matrix)
        error = float(check_adjoint(operator, jnp.asarray(x), jnp.asarray(y)))
    assert abs(error) <= 1e-14 * (1 + abs(y) @ (abs(matrix) @ abs(x)))


@pytest.mark.parametrize("name", [name for name, A in MATRICES.items() if A.shape[0] * A.shape[1] <= 50_000])
@pytest.mark.parametrize("kind", KINDS)
def test_norms_and_scaling_equal_numpy(name, kind):
    matrix = MATRICES[name]
    m, n = matrix.shape
    dense = matrix.toarray()
    rng = np.random.default_rng(5)
    row, column = rng.uniform(0.5, 2, m), rng.uniform(0.5, 2, n)
    with jax.enable_x64(True):
        for operator in (sparse(matrix), Dense.make(dense, jnp.float64)):
            for made, twin in (
                (operator, dense),
                (operator.scale(jnp.asarray(row), jnp.asarray(column)), row[:, None] * dense * column),
            ):
                by_row = np.linalg.norm(twin, KINDS[kind], axis=1) if n else np.zeros(m)
                by_column = np.linalg.norm(twin, KINDS[kind], axis=0) if m else np.zeros(n)
                np.testing.assert_allclose(made.row_norms(kind), by_row, rtol=1e-13)
                np.testing.assert_allclose(made.column_norms(kind), by_column, rtol=1e-13)


@pytest.mark.parametrize(
    "operator", [Dense(jnp.ones((2, 2))), sparse(np.ones((2, 2)), jnp.float32)], ids=["dense", "sparse"]
)
def test_an_unknown_norm_is_refused(operator):
    for norms in (operator.row_norms, operator.column_norms):
        with pytest.raises(ValueError, match="norm kind is 'l3'; expected 'l1', 'l2' or 'linf'"):
            norms("l3")


def test_jit_and_vmap_change_nothing():
    matrix = MATRICES["power law"]
    rng = np.random.default_rng(3)
    X = rng.normal(size=(3, matrix.shape[1]))
    with jax.enable_x64(True):
        for operator in (sparse(matrix), Dense.make(matrix.toarray(), jnp.float64)):
            fast, _rows, columns = operator.ordered()
            put = (lambda v: v) if columns is None else columns.put
            for map_, point in ((operator, X[0]), (fast, put(jnp.asarray(X[0])))):
                eager = map_.matvec(jnp.asarray(point))
                np.testing.assert_allclose(
                    jax.jit(lambda A, v: A.matvec(v))(map_, point), eager, rtol=1e-13, atol=1e-13
                )
            batched = jax.vmap(operator.matvec)(jnp.asarray(X))
            np.testing.assert_allclose(batched, X @ matrix.T.toarray(), rtol=1e-12, atol=1e-12)


def test_vmap_over_values_equals_a_loop():
    matrix = MATRICES["wide"]
    rng = np.random.default_rng(4)
    x, y = vectors(matrix.shape)
    with jax.enable_x64(True):
        operator = sparse(matrix)
        values = jnp.asarray(rng.normal(size=(3, matrix.nnz)))

        def both(v):
            changed = operator.replace(values=v)
            fast, rows, columns = changed.ordered()
            return changed.matvec(x), columns.back(fast.rmatvec(rows.put(y)))

        x, y = jnp.asarray(x), jnp.asarray(y)
        batched = jax.vmap(both)(values)
        for k in range(3):
            for together, alone in zip(batched, both(values[k])):
                np.testing.assert_allclose(together[k], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", ["entries", "ordered", "dense"])
def test_gradients_equal_finite_differences(way):
    matrix = random_matrix([0, 3, 20, 1], 25)
    x, y = vectors(matrix.shape)
    step = 1e-6
    with jax.enable_x64(True):
        base = Dense.make(matrix.toarray(), jnp.float64) if way == "dense" else sparse(matrix)

        def value(values, x, y):
            A = base.replace(matrix=values) if way == "dense" else base.replace(values=values)
            if way != "ordered":
                return jnp.sum(jnp.sin(A.matvec(x))) + jnp.sum(jnp.cos(A.rmatvec(y)))
            A, rows, columns = A.ordered()
            return jnp.sum(jnp.sin(A.matvec(columns.put(x)))) + jnp.sum(jnp.cos(A.rmatvec(rows.put(y))))

        at = (base.entries, jnp.asarray(x), jnp.asarray(y))
        grads = jax.jit(jax.grad(value, argnums=(0, 1, 2)))(*at)
        value = jax.jit(value)
        rng = np.random.default_rng(6)
        for k, grad in enumerate(grads):
            d = jnp.asarray(rng.normal(size=grad.shape))
            moved = [[*at[:k], at[k] + sign * step * d, *at[k + 1 :]] for sign in (1, -1)]
            slope = (value(*moved[0]) - value(*moved[1])) / (2 * step)
            # Central differences err by step^2 |f'''| + eps |f| / step: below 1e-8 here.
            assert abs(float(slope - jnp.vdot(grad, d))) < 1e-7 * (1 + abs(float(slope)))


def test_duplicates_are_summed_zeros_dropped_and_order_does_not_matter():
    row, column = [2, 0, 2, 1, 0, 2], [1, 0, 1, 2, 1, 0]
    values = [1.0, 5.0, 2.0, 0.0, -1.0, 4.0]
    with jax.enable_x64(True):
        A = Sparse.from_entries(row, column, values, (3, 3), jnp.float64)
        assert A.values.size == 4
        dense = [[5.0, -1.0, 0.0], [0.0, 0.0, 0.0], [4.0, 3.0, 0.0]]
        np.testing.assert_array_equal(A.toarray(), dense)
        assert_products(A, sp.csr_matrix(dense), np.float64)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_any_order_of_any_entries_is_the_same_matrix(seed):
    rng = np.random.default_rng(seed)
    m, n, count = rng.integers(1, 12), rng.integers(1, 12), rng.integers(0, 40)
    row, column = rng.integers(0, m, count), rng.integers(0, n, count)
    values = rng.integers(-2, 3, count).astype(float)
    dense = np.zeros((m, n))
    np.add.at(dense, (row, column), values)
    with jax.enable_x64(True):
        A = Sparse.from_entries(row, column, values, (m, n), jnp.float64)
        made = np.zeros((m, n))
        made[A.row, A.column] = A.values
        np.testing.assert_array_equal(made, dense)
        assert A.values.size == np.count_nonzero(dense)
        index = np.asarray(A.row) * n + np.asarray(A.column)
        assert np.all(np.diff(index) > 0)


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        ([0, 3], [0, 0], "row index 3 at entry 1; expected 0 to 2"),
        ([0, -1], [0, 0], "row index -1 at entry 1"),
        ([0, 1], [2, 0], "column index 2 at entry 0; expected 0 to 1"),
        ([0, 1], [0, -5], "column index -5 at entry 1"),
    ],
)
def test_an_index_outside_the_shape_is_refused(row, column, message):
    with pytest.raises(InvalidProblem, match=message):
        Sparse.from_entries(row, column, [1.0, 1.0], (3, 2), jnp.float32)


def test_traced_values_need_sorted_entries():
    make = lambda row: jax.jit(lambda v: Sparse.from_entries(row, [0, 1], v, (2, 2), jnp.float32).matvec(jnp.ones(2)))
    np.testing.assert_array_equal(make([0, 1])(jnp.array([2.0, 3.0])), [2.0, 3.0])
    with pytest.raises(InvalidProblem, match="sorted"):
        make([1, 0])(jnp.array([2.0, 3.0]))


class TestConversion:
    def test_small_sparse_matrices_become_dense_and_large_ones_stay_sparse(self):
        small, large = sp.eye(10, format="csr"), sp.eye(100, format="csr")
        assert isinstance(as_operator(small, jnp.float32), Dense)
        assert isinstance(as_operator(large, jnp.float32), Sparse)
        for made in (as_operator(small, jnp.float32), as_operator(large, jnp.float32)):
            assert isinstance(made, Operator)
            np.testing.assert_array_equal(made.matvec(jnp.ones(made.shape[1])), 1.0)

    @pytest.mark.parametrize("size", [10, 100])
    def test_bcoo_with_padding(self, size):
        dense = np.diag(np.arange(1.0, size + 1)).astype(np.float32)
        matrix = jsparse.BCOO.fromdense(jnp.asarray(dense), nse=size + 3)
        made = as_operator(matrix, jnp.float32)
        np.testing.assert_array_equal(made.matvec(jnp.ones(size)), dense.sum(1))

    def test_bcoo_outside_its_shape_is_refused(self):
        matrix = jsparse.BCOO((jnp.ones(2), jnp.array([[0, 0], [0, 7]])), shape=(2, 2))
        with pytest.raises(InvalidProblem, match="column index 7"):
            as_operator(matrix, jnp.float32)

    @pytest.mark.parametrize("size", [10, 100])
    def test_bcoo_with_traced_values_is_differentiable(self, size):
        index = jnp.stack([jnp.arange(size)] * 2, axis=1)

        def total(data):
            matrix = jsparse.BCOO((data, index), shape=(size, size))
            return jnp.sum(as_operator(matrix, jnp.float32).matvec(jnp.arange(size, dtype=jnp.float32)))

        np.testing.assert_array_equal(jax.grad(total)(jnp.ones(size)), np.arange(size))

    def test_batched_or_traced_patterns_are_refused(self):
        batched = jsparse.BCOO.fromdense(jnp.ones((2, 3)), n_batch=1)
        with pytest.raises(InvalidProblem, match="batch or dense"):
            as_operator(batched, jnp.float32)
        with pytest.raises(InvalidProblem, match="must be concrete"):
            jax.jit(lambda m: as_operator(m, jnp.float32).matvec(jnp.ones(3)))(jsparse.BCOO.fromdense(jnp.ones((2, 3))))

    def test_other_dimensions_are_refused(self):
        with pytest.raises(InvalidProblem, match="expected two dimensions"):
            as_operator(jnp.ones(3), jnp.float32)

    @pytest.mark.parametrize("make", [lambda: Dense(jnp.eye(2)), lambda: sparse(np.eye(2), jnp.float32)])
    def test_an_operator_takes_the_dtype(self, make):
        with jax.enable_x64(True):
            assert as_operator(make(), jnp.float64).dtype == np.float64
            assert as_operator(make(), jnp.float64).matvec(jnp.ones(2)).dtype == np.float64


def shift(data, x):
    return data * (x[1:] - x[:-1])


def shift_adjoint(data, y):
    return jnp.pad(data * y, (1, 0)) - jnp.pad(data * y, (0, 1))


def shift_norms(data, kind, row, column):
    """Row i of the scaled map has the two entries +-data row_i column_(i+1), column_i."""
    left, right = abs(data) * row * column[:-1], abs(data) * row * column[1:]
    both = jnp.stack([left, right])
    by_row = {"l1": both.sum(0), "l2": jnp.sqrt((both**2).sum(0)), "linf": both.max(0)}[kind]
    entries = jnp.stack([jnp.pad(left, (0, 1)), jnp.pad(right, (1, 0))])
    by_column = {"l1": entries.sum(0), "l2": jnp.sqrt((entries**2).sum(0)), "linf": entries.max(0)}[kind]
    return by_row, by_column


class TestImplicit:
    def make(self, norms=shift_norms):
        data = jnp.asarray(np.random.default_rng(7).uniform(1, 2, 4))
        return Implicit(data, shift, shift_adjoint, (4, 5), norms), np.asarray(data)[:, None] * np.diff(
            np.eye(5), axis=0
        )

    def test_products_norms_and_scaling_equal_the_matrix(self):
        with jax.enable_x64(True):
            operator, dense = self.make()
            rng = np.random.default_rng(8)
            row, column = rng.uniform(0.5, 2, 4), rng.uniform(0.5, 2, 5)
            once = operator.scale(jnp.asarray(row), jnp.asarray(column))
            twice = once.scale(jnp.asarray(row), jnp.asarray(column))
            assert isinstance(once, Scaled)
            assert isinstance(twice, Scaled)
            for made, power in ((operator, 0), (once, 1), (twice, 2)):
                twin = row[:, None] ** power * dense * column**power
                assert_products(made, sp.csr_matrix(twin), np.float64)
                assert made.shape == twin.shape
                assert made.dtype == np.float64
                assert made.ordered()[0] is made
                for kind, order in KINDS.items():
                    np.testing.assert_allclose(made.row_norms(kind), np.linalg.norm(twin, order, axis=1), rtol=1e-13)
                    np.testing.assert_allclose(made.column_norms(kind), np.linalg.norm(twin, order, axis=0), rtol=1e-13)

    def test_unknown_norms_count_as_one(self):
        operator, _ = self.make(norms=None)
        for made in (operator, operator.scale(jnp.full(4, 3.0), jnp.full(5, 2.0))):
            np.testing.assert_array_equal(made.row_norms("l2"), np.ones(4))
            np.testing.assert_array_equal(made.column_norms("linf"), np.ones(5))

    def test_the_dtype_is_that_of_the_data_or_the_one_given(self):
        operator, _ = self.make()
        with jax.enable_x64(True):
            assert operator.dtype == np.float32
            assert operator.astype(jnp.float64).dtype == np.float64
            bare = Implicit((), shift, shift_adjoint, (4, 5))
            assert bare.dtype == np.float64
            assert bare.astype(jnp.float32).dtype == np.float32
            mixed = Implicit((2.0, np.int32(3)), shift, shift_adjoint, (4, 5)).astype(jnp.float32)
            assert [leaf.dtype for leaf in jax.tree.leaves(mixed)] == [np.float32, np.int32]
            assert operator.scale(jnp.ones(4), jnp.ones(5)).astype(jnp.float32).row.dtype == np.float32

    def test_the_adjoint_check_sees_a_wrong_sign_and_a_wrong_shape(self):
        operator, _ = self.make()
        x, y = (jnp.asarray(v, jnp.float32) for v in vectors((4, 5)))
        assert abs(float(check_adjoint(operator, x, y))) < 1e-5
        wrong = Implicit(operator.data, shift, lambda d, y: -shift_adjoint(d, y), (4, 5))
        assert abs(float(check_adjoint(wrong, x, y))) > 1e-2
        short = Implicit(operator.data, shift, lambda d, y: y, (4, 5))
        with pytest.raises(InvalidProblem, match=r"A'y has \(4,\), expected \(5,\)"):
            check_adjoint(short, x, y)


@EACH
def test_scipy_gets_the_entries_back(name):
    for made in (as_operator(MATRICES[name], np.float32), as_operator(MATRICES[name].toarray(), np.float32)):
        found = to_scipy(made)
        np.testing.assert_allclose(found.toarray(), MATRICES[name].toarray(), rtol=1e-6)
    diagonal = Diagonal.make([2.0, 0.0, 3.0], jnp.float32)
    np.testing.assert_array_equal(to_scipy(diagonal).toarray(), np.diag([2.0, 0.0, 3.0]))
    assert to_scipy(Implicit((), lambda _, x: x, lambda _, y: y, (4, 4))) is None
