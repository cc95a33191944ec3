"""Derivatives of solutions at the active set against differences of what NumPy solves; MINRES; proximal programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from benchmarks.random_programs import FIELDS, directions, moved, stack
from pdopt.errors import InvalidOption, UnsupportedProblem
from pdopt.operators.minres import minres
from pdopt.problems.active_set import attach
from pdopt.problems.proximal import proximal_program
from pdopt.types import Pair

COUNT = 12
STEP = 1e-5


def solved(data, at):
    """Solution and multipliers of moved data by NumPy, with the sides that hold at the unmoved solution `at`."""
    Q, c, A = data["Q"], data["c"], data["A"]
    x0, y0 = at["x"], at["y"]
    z0 = at["Q"] @ x0 + at["c"] - at["A"].T @ y0
    held = np.abs(z0) > 1e-6
    bound = np.where(z0 > 0, data["lower"], data["upper"])
    rows = np.flatnonzero(np.abs(y0) > 1e-6)
    side = np.where(y0 > 0, data["row_lower"], data["row_upper"])[rows]
    n, k = len(c), len(rows)
    system, right = np.zeros((n + k, n + k)), np.zeros(n + k)
    system[:n, :n], system[:n, n:], system[n:, :n] = Q, -A[rows].T, A[rows]
    right[:n], right[n:] = -c, side
    for j in np.flatnonzero(held):
        system[j], right[j] = 0, bound[j]
        system[j, j] = 1
    found = np.linalg.solve(system, right)
    y = np.zeros_like(y0)
    y[rows] = found[n:]
    return np.concatenate([found[:n], y])


@pytest.fixture(scope="module")
def programs():
    return stack(COUNT, seed=3)


@pytest.mark.parametrize("size", [0, 1000], ids=["minres", "factorised"])
def test_all_fields_of_programs_with_every_kind_of_row_and_bound(programs, monkeypatch, size):
    monkeypatch.setattr("pdopt.problems.active_set.DENSE", size)
    with jax.enable_x64(True):
        arrays = lambda d: {name: jnp.asarray(d[name]) for name in FIELDS}

        def both(x, y, data):
            found = attach(Pair(x, y), pdopt.QuadraticProgram(**data, check=False))
            return jnp.concatenate([found.x, found.y])

        x, y = jnp.asarray(programs["x"]), jnp.asarray(programs["y"])
        reverse = jax.jit(jax.vmap(jax.jacrev(both, argnums=2)))(x, y, arrays(programs))
        ahead = jax.jit(jax.vmap(lambda x, y, d, t: jax.jvp(lambda d: both(x, y, d), (d,), (t,))[1]))
        for field, change in directions(programs).items():
            got = sum(
                np.einsum("bkj,bj->bk", np.asarray(reverse[n]).reshape(COUNT, 13, -1), d.reshape(COUNT, -1))
                for n, d in change.items()
            )
            tangent = arrays({n: change.get(n, np.zeros_like(programs[n])) for n in FIELDS})
            np.testing.assert_allclose(ahead(x, y, arrays(programs), tangent), got, atol=1e-7, rtol=1e-7)
            there, back = (moved(programs, change, s * STEP) for s in (1, -1))
            for k in range(COUNT):
                one = lambda d, k=k: {n: v[k] for n, v in d.items()}
                at = one(programs)
                expected = (solved(one(there), at) - solved(one(back), at)) / (2 * STEP)
                # The difference errs by step^2 times a third derivative, and by rounding over the step.
                np.testing.assert_allclose(got[k], expected, atol=3e-6 * (1 + np.abs(expected).max()), err_msg=field)


@pytest.mark.parametrize("definite", [True, False])
def test_minres_solves_symmetric_systems_and_takes_the_shortest_solution_of_singular_ones(definite):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        basis = np.linalg.qr(rng.standard_normal((12, 12)))[0]
        values = np.arange(1.0, 13) if definite else np.concatenate([np.zeros(3), np.linspace(-4, 5, 9)])
        A = basis @ np.diag(values) @ basis.T
        right = A @ rng.standard_normal(12)
        found = minres(lambda v: A @ v, jnp.asarray(right))
        np.testing.assert_allclose(found, np.linalg.pinv(A) @ right, atol=1e-10)
        np.testing.assert_array_equal(minres(lambda v: A @ v, jnp.zeros(12)), 0.0)


def test_the_proximal_program_is_the_linear_one_plus_its_term_in_both_senses():
    rows = ([[1.0, 1.0]], [1.0], [1.0], [0.0, 0.0])
    x, reference = np.array([0.25, 0.75], np.float32), np.array([1.0, 0.0], np.float32)
    for maximise, sign in ((False, 1), (True, -1)):
        lp = pdopt.LinearProgram([1.0, 2.0], *rows, maximise=maximise, dtype=jnp.float32)
        qp = proximal_program(lp, 3.0, reference)
        term = 1.5 * np.sum((x - reference) ** 2)
        assert float(qp.objective(x)) == pytest.approx(float(lp.objective(x)) + sign * term, rel=1e-6)


def test_what_cannot_be_differentiated_is_refused_by_name():
    lp = pdopt.LinearProgram([1.0], [[1.0]], [1.0], [2.0], dtype=jnp.float32)
    with pytest.raises(InvalidOption, match="weight"):
        proximal_program(lp, 0.0)
    with pytest.raises(InvalidOption, match="expected a LinearProgram"):
        proximal_program(proximal_program(lp, 1.0), 1.0)
    with pytest.raises(InvalidOption, match=r"max_iterations is None; expected an int: gradient='unrolled'"):
        pdopt.solve(lp, gradient="unrolled")
    with pytest.raises(UnsupportedProblem, match="cannot be unrolled"):
        pdopt.solve(lp, pdopt.PDHG.lean(), gradient="unrolled", max_iterations=10)
    with pytest.raises(InvalidOption, match="'implicit', 'unrolled', 'none'"):
        pdopt.solve(lp, gradient="exact")


@pytest.mark.slow
def test_unrolled_equals_implicit_in_what_it_returns_and_its_derivative_tends_to_it():
    data = {name: jnp.asarray(v[0], jnp.float32) for name, v in stack(1, seed=3).items() if name in FIELDS}
    with jax.enable_x64(True):
        data = {name: v.astype(jnp.float64) for name, v in data.items()}
        qp = pdopt.QuadraticProgram(**data)

        def run(c, gradient):
            return pdopt.solve(qp.replace(c=c), tolerance=1e-11, max_iterations=3000, gradient=gradient)

        one, other = run(qp.c, "implicit"), run(qp.c, "unrolled")
        assert int(one.status) == int(other.status) == pdopt.Status.OPTIMAL
        assert int(one.iterations) == int(other.iterations)
        np.testing.assert_allclose(one.x, other.x, atol=1e-12)
        reverse = [jax.jacrev(lambda c, g=g: run(c, g).x)(qp.c) for g in ("implicit", "unrolled")]
        np.testing.assert_allclose(*reverse, atol=1e-6)
        ahead = jax.jacfwd(lambda c: run(c, "unrolled").x)(qp.c)
        np.testing.assert_allclose(ahead, reverse[1], atol=1e-9)


@pytest.mark.slow
def test_second_derivatives_of_the_value_are_those_of_the_solution():
    data = {name: v[0] for name, v in stack(1, seed=3).items() if name in FIELDS}
    with jax.enable_x64(True):
        qp = pdopt.QuadraticProgram(**data)
        solve = lambda c, u: pdopt.solve(qp.replace(c=c, upper=u, check=False), tolerance=1e-11, max_iterations=100_000)
        value, x = lambda c, u: solve(c, u).objective, lambda c, u: solve(c, u).x
        upper = jnp.asarray(qp.upper)
        np.testing.assert_allclose(jax.hessian(value)(qp.c, upper), jax.jacobian(x)(qp.c, upper), atol=1e-7)
        mixed = jax.jacfwd(jax.grad(value, argnums=1))(qp.c, upper)
        np.testing.assert_allclose(mixed, jax.jacrev(x, argnums=1)(qp.c, upper).T, atol=1e-7)
