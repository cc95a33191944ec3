"""Blocks over a mesh: products, norms and scaling against the dense matrix; dealing, padding and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.operators.sharded import Blocks, deal, grid_sizes, make_grid

M, N = 24, 40


def grid(rows, columns, kind=AxisType.Auto):
    if jax.device_count() < rows * columns:
        pytest.skip("eight devices are needed; XLA_FLAGS was set by the caller to fewer")
    devices = np.array(jax.devices()[: rows * columns]).reshape(rows, columns)
    return Mesh(devices, ("over", "across"), axis_types=(kind, kind))


def matrix():
    """Empty rows and columns, one full row and one full column (pieces that are folded), and random entries."""
    rng = np.random.default_rng(0)
    A = rng.normal(size=(M, N)) * (rng.random((M, N)) < 0.1)
    A[3], A[:, 5] = rng.normal(size=N), rng.normal(size=M)
    A[7], A[:, 11] = 0, 0
    return A.astype(np.float32)


def blocks(A, mesh):
    row, column = np.nonzero(A)
    return Blocks.from_entries(row, column, A[row, column], A.shape, A.dtype, mesh)


def test_products_norms_and_scaling_are_those_of_the_matrix():
    A, rng = matrix(), np.random.default_rng(1)
    x, y = rng.normal(size=N).astype(np.float32), rng.normal(size=M).astype(np.float32)
    made = blocks(A, grid(4, 2))
    assert made.values.shape[:2] == (4, 2)
    kinds = {"l1": 1, "l2": 2, "linf": np.inf}

    @jax.jit
    def products(made, x, y):
        sliced, row_order, column_order = made.ordered()
        assert row_order is column_order is None
        scaled = made.scale(y, x)
        norms = [(made.row_norms(kind), made.column_norms(kind)) for kind in kinds]
        return [(op.matvec(x), op.rmatvec(y)) for op in (made, sliced)], (scaled.matvec(x), scaled.rmatvec(y)), norms

    plain, (across, over), norms = products(made, x, y)
    for forward, adjoint in plain:
        np.testing.assert_allclose(forward, A @ x, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(adjoint, A.T @ y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(across, y * (A @ (x * x)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(over, x * (A.T @ (y * y)), rtol=1e-4, atol=1e-5)
    for found, order in zip(norms, kinds.values()):
        for norm, axis in zip(found, (1, 0)):
            np.testing.assert_allclose(norm, np.linalg.norm(A, order, axis=axis), rtol=1e-5)


def test_a_product_is_differentiable_and_batches():
    A, mesh = matrix(), grid(2, 2)
    made = blocks(A, mesh)
    x, y = jnp.arange(N, dtype=jnp.float32), jnp.ones(M, jnp.float32)
    slope = jax.jit(jax.grad(lambda made: y @ made.matvec(x), allow_int=True))(made).values
    # The derivative by the entry (i, j) is y_i x_j: summed over what is stored, a product with the pattern.
    stored = np.asarray(made.values) != 0
    assert float(jnp.sum(jnp.where(stored, slope, 0))) == pytest.approx(float(np.sum((A != 0) @ x)), rel=1e-5)
    several = jax.jit(jax.vmap(made.matvec))(jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(several, np.stack([A @ x, 2 * (A @ x)]), rtol=1e-4, atol=1e-3)


def test_dealing_balances_what_a_pattern_would_not():
    # An arrow: the first rows and columns are full. Cut as it stands, one block has most of the entries.
    size, heavy = 64, 8
    A = np.eye(size)
    A[:heavy], A[:, :heavy] = 1, 1
    places = [deal((A != 0).sum(axis=1 - side), parts, size // parts) for side, parts in ((0, 4), (1, 2))]
    dealt = np.zeros_like(A)
    dealt[np.ix_(*places)] = A
    fullest = lambda A: A.reshape(4, size // 4, 2, size // 2).sum(axis=(1, 3)).max()
    assert fullest(A) > 2 * A.sum() / 8
    assert fullest(dealt) < 1.25 * A.sum() / 8
    for place in places:
        assert sorted(place) == list(range(size))


def test_places_leave_room_where_sizes_do_not_divide():
    places = deal(np.array([9, 1, 1, 1, 1]), 4, 2)
    assert len(set(places)) == 5
    assert max(places) < 8
    assert np.bincount(places // 2, minlength=4).max() == 2


def test_grids_and_what_is_refused():
    assert grid_sizes(1, (5, 5)) == (1, 1)
    assert grid_sizes(6, (90, 100)) == (2, 3)
    assert make_grid((4, 4), jax.devices()[:1]).axis_types == (AxisType.Auto,) * 2
    A, explicit = matrix(), grid(4, 2, AxisType.Explicit)
    sums = jax.jit(lambda made: made.matvec(jnp.ones(N, jnp.float32)))(blocks(A, explicit))
    np.testing.assert_allclose(sums, A.sum(axis=1), rtol=1e-4, atol=1e-5)
    with pytest.raises(InvalidProblem, match=r"shape \(23, 40\), which the mesh .* does not divide"):
        blocks(A[:23], explicit)
    with pytest.raises(InvalidOption, match="mesh has type int"):
        blocks(A, 8)
    with pytest.raises(InvalidOption, match="two, the first for rows"):
        blocks(A, Mesh(np.array(jax.devices()), ("data",)))
    with pytest.raises(ValueError, match="expected 'l1'"):
        blocks(A, explicit).row_norms("l7")
