"""`solve_many` against a loop over `solve`: any datum, fewer places than members, starts, narrow steps, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

import pdopt
from pdopt.errors import InvalidOption, InvalidProblem, UnsupportedProblem
from pdopt.operators.sparse import Sparse
from pdopt.types import Status

COUNT, EVERY = 5, 64


def program(sparse=False):
    """4 rows, 6 columns; every row has a side that may hold."""
    rng = np.random.default_rng(5)
    A = rng.standard_normal((4, 6))
    matrix = sp.csr_matrix(A)
    A = Sparse.from_entries(matrix.tocoo().row, matrix.tocoo().col, matrix.data, A.shape, jnp.float64) if sparse else A
    return pdopt.LinearProgram(
        rng.standard_normal(6), A, [-np.inf, -1.0, 0.2, -0.5], [1.0, np.inf, 0.2, 0.5], np.zeros(6), np.full(6, 2.0),
        dtype=jnp.float64,
    )  # fmt: skip


def assert_equal_to_a_loop(found, alone):
    assert found.status.shape == (COUNT,)
    for k, single in enumerate(alone):
        assert int(found.status[k]) == int(single.status)
        assert abs(int(found.iterations[k]) - int(single.iterations)) <= EVERY
        if int(single.status) == Status.OPTIMAL:
            np.testing.assert_allclose(found.objective[k], single.objective, rtol=1e-5, atol=1e-5)
            assert float(found.residuals.error[k]) <= 1e-6


@pytest.fixture(scope="module")
def mixed():
    """Costs, a row's side and the values of A of a sparse program: one member is infeasible, one starts at rest."""
    with jax.enable_x64(True):
        lp = program(sparse=True)
        rng = np.random.default_rng(6)
        near = lambda v: np.asarray(v) * (1 + 0.1 * rng.standard_normal((COUNT, *np.shape(v))))
        upper = np.tile(np.asarray(lp.upper), (COUNT, 1))
        upper[3] = 0.01  # too little for the row that needs 0.2
        upper[3, 0] = 0.0
        changes = {"c": near(lp.c), "upper": upper, "A": near(lp.A.values)}
        changes["A"][3] = 0.1
        one = jax.jit(
            lambda c, u, v: pdopt.solve(
                lp.replace(c=c, upper=u, A=lp.A.replace(values=v), check=False), gradient="none"
            )
        )
        alone = [one(*(jnp.asarray(changes[name][k]) for name in ("c", "upper", "A"))) for k in range(COUNT)]
        return lp, changes, alone, one


def test_members_equal_a_loop_and_places_are_refilled(mixed):
    lp, changes, alone, _ = mixed
    found = pdopt.solve_many(lp, changes, width=2)
    assert_equal_to_a_loop(found, alone)
    assert int(found.status[3]) == Status.PRIMAL_INFEASIBLE
    assert len({int(k) for k in found.iterations}) > 1, "members that all end together show nothing of freezing"


@pytest.mark.slow
def test_a_vmap_over_the_same_data_equals_the_loop(mixed):
    _, changes, alone, one = mixed
    with jax.enable_x64(True):
        found = jax.vmap(one)(*(jnp.asarray(changes[name]) for name in ("c", "upper", "A")))
        assert_equal_to_a_loop(jax.tree.map(np.asarray, found), alone)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["c", "row_lower", "row_upper", "lower", "upper", "A", "offset"])
def test_every_datum_may_vary_alone(name):
    lp = program()
    own = np.asarray(getattr(lp.A, "matrix", lp.A) if name == "A" else getattr(lp, name))
    rng = np.random.default_rng(7)
    with np.errstate(invalid="ignore"):
        values = own + 0.1 * rng.uniform(size=(COUNT, *own.shape)) * (1 if name.endswith("upper") else -1)
    found = pdopt.solve_many(lp, {name: values}, width=3)
    assert_equal_to_a_loop(found, [pdopt.solve(lp.replace(**{name: v})) for v in values])


@pytest.mark.slow
def test_starts_and_narrow_iterations(mixed):
    lp, changes, alone, _ = mixed
    first = pdopt.solve_many(lp, changes)
    again = pdopt.solve_many(lp, changes, starts=first, tolerance=2e-6)
    optimal = first.status == Status.OPTIMAL
    np.testing.assert_array_equal(again.iterations[optimal], 0)
    narrow = pdopt.solve_many(lp, changes, inner=jnp.float32)
    assert narrow.x.dtype == np.float64
    np.testing.assert_array_equal(narrow.status, first.status)
    for k in np.flatnonzero(optimal):
        np.testing.assert_allclose(narrow.objective[k], alone[k].objective, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_a_batch_is_refused_by_name():
    lp = program()
    c = np.ones((3, 6))
    with pytest.raises(InvalidProblem, match="changes is empty"):
        pdopt.solve_many(lp, {})
    with pytest.raises(InvalidProblem, match=r"changes\['c'\] has shape \(3, 5\); expected \(K, \*\(6,\)\)"):
        pdopt.solve_many(lp, {"c": c[:, :5]})
    with pytest.raises(InvalidProblem, match="one number of members"):
        pdopt.solve_many(lp, {"c": c, "row_lower": np.zeros((2, 4))})
    with pytest.raises(ValueError, match="field"):
        pdopt.solve_many(lp, {"cost": c})
    with pytest.raises(InvalidOption, match="width is 0"):
        pdopt.solve_many(lp, {"c": c}, width=0)
    with pytest.raises(UnsupportedProblem, match=r"Lean\(\) keeps only a part"):
        pdopt.solve_many(lp, {"c": c}, pdopt.PDHG.lean())
