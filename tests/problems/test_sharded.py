"""`shard`: a sparse program over a mesh has the answer of one device, in its own sizes, and sends two sums a step."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from jax.sharding import AxisType, Mesh

import pdopt
from pdopt.errors import InvalidOption, InvalidProblem, UnsupportedProblem
from pdopt.operators.sharded import Blocks
from pdopt.run import timed_run
from pdopt.types import Status
from tests.test_run import STEADY, Listener, same_bits
from tests.test_sharding import collectives

INF = np.inf
M, N = 21, 30  # neither 4 nor 2 divides the rows: three free ones are added, and no column


def program(maximise=False):
    """Rows of all kinds; sparse whatever its size, which `LinearProgram` would make dense."""
    rng = np.random.default_rng(0)
    matrix = sp.random(M, N, 0.2, random_state=1, format="coo")
    A = pdopt.Sparse.from_entries(matrix.row, matrix.col, rng.normal(size=matrix.nnz), (M, N), jnp.float64)
    b = np.asarray(A.matvec(jnp.asarray(rng.uniform(size=N))))
    low, high = np.where(np.arange(M) % 3 == 0, -INF, b - 0.1), np.where(np.arange(M) % 3 == 1, INF, b + 0.1)
    return pdopt.LinearProgram(
        rng.normal(size=N), A, low, high, np.zeros(N), np.ones(N), 1.5, maximise, dtype=jnp.float64
    )


def grid(rows, columns, kind=AxisType.Auto):
    if jax.device_count() < rows * columns:
        pytest.skip("eight devices are needed; XLA_FLAGS was set by the caller to fewer")
    devices = np.array(jax.devices()[: rows * columns]).reshape(rows, columns)
    return Mesh(devices, ("row", "col"), axis_types=(kind, kind))


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def loops(text):
    """What every loop inside a loop of a compiled program sends an iteration, where it sends anything."""
    bodies, name, entry = {}, "", ""
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?(%[\w.\-]+) \(.*\{$", line):
            name = head[2]
            entry = name if head[1] else entry
        bodies.setdefault(name, []).append(line)
    inner = {
        body
        for name, lines in bodies.items()
        if name != entry
        for body in re.findall(r" while\(.*body=(%[\w.\-]+)", "\n".join(lines))
    }
    sent = [sorted(collectives("\n".join(bodies[body]))) for body in sorted(inner)]
    return [found for found in sent if found]


ENGINE = pdopt.PDHG.constant()


def test_eight_devices_have_the_answer_of_one_and_send_two_sums_a_step(quick_compiles):
    lp, spread = program(), pdopt.shard(program(), grid(4, 2))
    assert isinstance(spread.program.A, Blocks)
    assert spread.program.shape == (24, 30)
    assert 1 <= spread.balance < 2
    solve = jax.jit(lambda problem, start: pdopt.solve(problem, ENGINE, start=start, tolerance=1e-9, gradient="none"))
    start = pdopt.Pair(jnp.zeros(N), jnp.zeros(M))
    compiled = solve.lower(spread, start).compile()
    # Steps are the one loop inside a loop. A'y is summed over 4 row groups, A x over 2 of columns, and nothing else.
    steps = [("all-reduce", 24 // 4 * 8), ("all-reduce", 30 // 2 * 8)]
    assert loops(compiled.as_text()) == [steps]

    one, eight = solve(lp, start), compiled(spread, start)
    assert one.reason is eight.reason is Status.OPTIMAL
    assert float(one.objective) == pytest.approx(float(eight.objective), rel=1e-6)
    np.testing.assert_allclose(one.x, eight.x, atol=1e-5)
    np.testing.assert_allclose(one.certificate.z, eight.certificate.z, atol=1e-5)
    assert all(part.sharding.is_fully_replicated for part in (eight.x, eight.y))
    # The pair is the user's: his own program judges it, and so does the spread one.
    judge = jax.jit(lambda problem, pair: (problem.residuals(pair).error, problem.objective(pair.x)))
    for problem in (lp, spread):
        np.testing.assert_allclose(judge(problem, eight.pair), (eight.residuals.error, eight.objective), rtol=1e-6)
    again = compiled(spread, eight.pair)
    assert int(again.iterations) == 0
    np.testing.assert_array_equal(again.y, eight.y)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["infeasible", "unbounded"])
def test_rays_come_back_in_the_users_order(kind):
    """Three rows and two columns over eight devices: most of the mesh holds padding."""
    A = pdopt.Sparse.from_entries([0, 1, 2], [0, 1, 1], [1.0, 1.0, -1.0], (3, 2), jnp.float64)
    low = [1.0, 2.0, -1.0] if kind == "infeasible" else [1.0, 0.0, -INF]
    lp = pdopt.LinearProgram([1.0, -1.0], A, low, [INF] * 3, [0.0, 0.0], [INF, INF], dtype=jnp.float64)
    one, eight = pdopt.solve(lp), pdopt.solve(pdopt.shard(lp, grid(4, 2)))
    assert one.reason is eight.reason
    # Rays of a cone are many, and which one is found is up to rounding: each must prove it on the user's own program.
    for found in (one, eight):
        rays = lp.rays(found.certificate.ray)
        assert bool(rays.primal_infeasible if kind == "infeasible" else rays.dual_infeasible)
        assert [np.shape(part) for part in jax.tree.leaves(found.certificate)] == [(2,), (2,), (3,)]


@pytest.mark.slow
def test_the_default_engine_dense_matrices_and_derivatives():
    mesh = grid(2, 4)
    sparse, rng = program(maximise=True), np.random.default_rng(3)
    dense = pdopt.LinearProgram(
        rng.normal(size=7), rng.normal(size=(5, 7)), np.full(5, -1.0), np.ones(5), np.zeros(7), np.ones(7),
        dtype=jnp.float64,
    )  # fmt: skip
    for lp in (sparse, dense):
        spread = pdopt.shard(lp, mesh)
        one, eight = pdopt.solve(lp, tolerance=1e-9), pdopt.solve(spread, tolerance=1e-9)
        assert one.reason is eight.reason is Status.OPTIMAL
        assert float(one.objective) == pytest.approx(float(eight.objective), rel=1e-6)

        def value(c, spread=spread):
            data = spread.program.replace(c=c, check=False)
            return pdopt.solve(spread.replace(program=data), tolerance=1e-9).objective

        slope = jax.grad(value)(spread.program.c)
        np.testing.assert_allclose(np.asarray(slope)[np.asarray(spread.column_place)], eight.x, atol=1e-12)


@pytest.mark.slow
def test_run_compiles_a_chunk_once_and_goes_on_from_a_checkpoint(tmp_path, caplog):
    spread = pdopt.shard(program(), grid(4, 2))
    with jax.log_compiles():
        whole = pdopt.run(spread, ENGINE, tolerance=1e-9)
    assert caplog.text.count("Finished XLA compilation of jit(_advanced)") == 1
    options = {"tolerance": 1e-9, "pace": STEADY, "checkpoint": tmp_path}
    stopped = timed_run(spread, ENGINE, progress=Listener(2), **options).solution
    assert stopped.reason is Status.INTERRUPTED
    resumed = timed_run(spread, ENGINE, resume=True, **options).solution
    assert same_bits(resumed, whole)


def test_places_are_undone_and_a_start_must_fit():
    spread = pdopt.shard(program(), grid(4, 2, AxisType.Explicit))
    assert spread.mesh.axis_types == (AxisType.Auto,) * 2
    assert spread.shape == (M, N)
    pair = pdopt.Pair(np.arange(30.0), np.arange(21.0))
    for got, want in zip(spread.shown(spread.inside(pair)), pair):
        np.testing.assert_array_equal(got, want)
    with pytest.raises(InvalidProblem, match=r"start.y has shape \(24,\)"):
        pdopt.solve(spread, start=pdopt.Pair(np.zeros(30), np.zeros(24)))


def test_what_cannot_be_spread_is_refused():
    lp = program()
    with pytest.raises(UnsupportedProblem, match="shard takes a LinearProgram"):
        pdopt.shard(pdopt.MatrixGame(np.eye(2)))
    implicit = pdopt.Implicit((), lambda _, x: x, lambda _, y: y, (30, 30))
    with pytest.raises(UnsupportedProblem, match="Implicit; shard takes a dense or a sparse matrix"):
        pdopt.shard(pdopt.LinearProgram(np.ones(30), implicit, np.zeros(30), np.ones(30), dtype=jnp.float64))
    with pytest.raises(UnsupportedProblem, match="ShardedProgram; shard takes"):
        pdopt.shard(pdopt.shard(lp, grid(1, 1)))
    with pytest.raises(InvalidProblem, match="is traced"):
        jax.eval_shape(lambda lp: pdopt.shard(lp, grid(1, 1)), lp)
    with pytest.raises(InvalidOption, match="expected two"):
        pdopt.shard(lp, Mesh(np.array(jax.devices()), ("data",)))
