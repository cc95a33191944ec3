"""`run` against `solve`, against itself cut into pieces, and against everything that may stop it."""

import io
import itertools
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt.run as run_function  # the function: the package keeps its name
from pdopt.errors import CheckpointError, InvalidOption, InvalidProblem, UnsupportedProblem
from pdopt.methods.pdhg import PDHG
from pdopt.problems.linear import LinearProgram
from pdopt.rules.acceleration import Halpern
from pdopt.run import _CHUNK, run, timed_run
from pdopt.runtime.chunks import Pace
from pdopt.runtime.precision import precision_scope
from pdopt.runtime.progress import IterationLog
from pdopt.solve import solve
from pdopt.types import Pair, Status, record

# One block a chunk, whatever the clock says.
STEADY = Pace(first=64, least=1e-12, most=1e12)
TIGHT = 1e-12


def program(seed=0, dtype=np.float64, m=6, n=9):
    """A feasible, bounded random program: bounds on x, one-sided and equality rows around a known point."""
    rng = np.random.default_rng(seed)
    A, c, x = rng.normal(size=(m, n)), rng.normal(size=n), rng.uniform(size=n)
    low = A @ x
    high = np.where(np.arange(m) % 2, low, np.inf)
    return LinearProgram(c, A, low, high, np.zeros(n), np.full(n, 2.0), dtype=dtype)


def same_bits(a, b):
    """Whether two trees have equal structure and equal bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, two in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert np.asarray(one).dtype == np.asarray(two).dtype
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()
    return True


class Listener:
    """A progress that remembers its rows and sends a signal at one of them."""

    def __init__(self, at=None, number=signal.SIGINT, times=1):
        self.rows, self.at, self.number, self.times, self.said = [], at, number, times, []

    def start(self, total_hint=None):
        self.said.append(total_hint)

    def update(self, row):
        self.rows.append(dict(row))
        if len(self.rows) == self.at:
            for _ in range(self.times):
                signal.raise_signal(self.number)

    def finish(self, summary=""):
        self.said.append(summary)


def ticking(step):
    """A clock that moves `step` seconds at each look."""
    return (k * step for k in itertools.count()).__next__


@pytest.fixture(scope="module")
def lp():
    return program()


@pytest.fixture(scope="module")
def whole(lp):
    """The uninterrupted run."""
    solution = run(lp, tolerance=TIGHT)
    assert solution.reason is Status.OPTIMAL
    assert solution.iterations > 5 * 64  # or the tests below would cut nothing
    return solution


def test_the_name_is_the_function_also_after_its_module_was_imported():
    import pdopt

    assert run_function is run is pdopt.run
    assert pdopt.solve is solve


@pytest.mark.parametrize(
    ("method", "dtype", "tolerance"),
    [(PDHG(), np.float64, TIGHT), (PDHG.averaged(), np.float32, 1e-5)],
    ids=["halpern-f64", "averaged-f32"],
)
def test_equals_solve_bit_for_bit(method, dtype, tolerance):
    problem = program(1, dtype)
    traced = solve(problem, method, tolerance=tolerance, gradient="none", history=8)
    assert traced.reason is Status.OPTIMAL
    assert same_bits(traced, run(problem, method, tolerance=tolerance, history=8))


def test_chunk_lengths_change_no_bit_and_compile_nothing(lp, whole):
    before = _CHUNK.plain._cache_size()
    for pace in (STEADY, Pace(first=1, least=1e-12, most=1e12), Pace(first=100, least=0.1, most=0.2)):
        report = timed_run(lp, tolerance=TIGHT, pace=pace, clock=ticking(0.01))
        assert same_bits(report.solution, whole)
        assert report.signal is None
    assert _CHUNK.plain._cache_size() == before


def test_new_data_tolerance_limit_and_settings_compile_nothing(lp, whole):
    before = _CHUNK.plain._cache_size()
    run(program(2), PDHG(acceleration=Halpern(0.5)), tolerance=1e-3, max_iterations=500)
    assert _CHUNK.plain._cache_size() == before


def test_the_status_is_on_the_host_and_the_start_is_not_donated(lp, whole):
    start = Pair(jnp.array(whole.x), jnp.array(whole.y))
    again = run(lp, start=start, tolerance=TIGHT)
    assert isinstance(again.status, np.ndarray)
    assert (again.reason, int(again.iterations)) == (Status.OPTIMAL, 0)
    assert np.asarray(start.x).tobytes() == np.asarray(whole.x).tobytes()  # still there
    np.testing.assert_array_equal(np.asarray(lp.c), np.asarray(program().c))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_the_best_pair(lp, number):
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    report = timed_run(lp, tolerance=TIGHT, progress=Listener(2, number), pace=STEADY)
    solution = report.solution
    assert (solution.reason, int(solution.iterations), report.signal) == (Status.INTERRUPTED, 128, number)
    with precision_scope(lp):
        assert float(lp.residuals(solution.pair).error) == pytest.approx(float(solution.residuals.error), rel=1e-9)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_second_ctrl_c_raises(lp):
    listener = Listener(2, times=2)
    with pytest.raises(KeyboardInterrupt):
        timed_run(lp, tolerance=TIGHT, progress=listener, pace=STEADY)
    assert listener.said == [1_000_000, ""]  # finished, with nothing to say
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("times", [1, 3])
def test_interrupted_and_resumed_is_uninterrupted(lp, whole, tmp_path, times):
    for k in range(times):
        part = timed_run(
            lp, tolerance=TIGHT, progress=Listener(1 + k), pace=STEADY, checkpoint=tmp_path, resume=k > 0
        ).solution
        assert part.reason is Status.INTERRUPTED
    assert same_bits(run(lp, tolerance=TIGHT, checkpoint=tmp_path, resume=True), whole)
    assert same_bits(run(lp, tolerance=TIGHT, checkpoint=tmp_path, resume=True), whole)  # nothing left to do


def test_resumed_from_a_save_on_the_way(lp, whole, tmp_path):
    """As after SIGKILL: the newest save is older than the end."""
    listener = Listener(4, times=2)
    with pytest.raises(KeyboardInterrupt):
        timed_run(
            lp, tolerance=TIGHT, progress=listener, pace=STEADY, clock=ticking(1.0), checkpoint=tmp_path,
            checkpoint_every=5.0,
        )  # fmt: skip
    steps = sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
    assert steps
    assert steps[-1] < 4 * 64
    assert same_bits(run(lp, tolerance=TIGHT, checkpoint=tmp_path, resume=True), whole)


def test_resuming_with_another_limit_and_tolerance_goes_on(lp, whole, tmp_path):
    first = run(lp, tolerance=TIGHT, max_iterations=128, checkpoint=tmp_path)
    assert (first.reason, int(first.iterations)) == (Status.ITERATION_LIMIT, 128)
    same = run(lp, tolerance=TIGHT, max_iterations=64, checkpoint=tmp_path, resume=True)
    assert (same.reason, int(same.iterations)) == (Status.ITERATION_LIMIT, 128)
    loose = run(lp, tolerance=1e9, checkpoint=tmp_path, resume=True)
    assert (loose.reason, int(loose.iterations)) == (Status.OPTIMAL, 128)
    last = run(lp, tolerance=TIGHT, checkpoint=tmp_path, resume=True)
    assert last.reason is Status.OPTIMAL
    assert float(last.objective) == pytest.approx(float(whole.objective), abs=1e-9)


def test_a_folder_belongs_to_one_run(lp, tmp_path):
    run(lp, max_iterations=64, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match=r"already holds a checkpoint \(step 64\): resume from it"):
        run(lp, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match="belongs to another run: problem is"):
        run(program(3), checkpoint=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="belongs to another run: method is"):
        run(lp, PDHG(acceleration=Halpern(0.5)), checkpoint=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="history"):
        run(lp, history=4, checkpoint=tmp_path, resume=True)


def test_resuming_from_nothing_says_so_and_begins(lp, whole, tmp_path):
    with pytest.warns(RuntimeWarning, match="holds no checkpoint: the run begins at the start"):
        assert same_bits(run(lp, tolerance=TIGHT, checkpoint=tmp_path, resume=True), whole)


def test_a_save_that_fails_at_the_end_does_not_cost_the_solution(lp, whole, tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.warns(RuntimeWarning, match="was not saved"):
        assert same_bits(run(lp, tolerance=TIGHT, checkpoint=tmp_path), whole)


def test_time_limit_gives_the_best_pair_after_at_least_one_chunk(lp):
    # Each look at this clock costs a second, so the limit has passed after the first chunk.
    report = timed_run(lp, tolerance=TIGHT, time_limit=1e-9, pace=STEADY, clock=ticking(1.0))
    assert (report.solution.reason, int(report.solution.iterations)) == (Status.TIME_LIMIT, 64)
    with precision_scope(lp):
        found = lp.residuals(report.solution.pair)
    assert float(found.error) == pytest.approx(float(report.solution.residuals.error), rel=1e-9)
    assert report.seconds.compile == 1.0


@record(static=("inner", "at"))
class Spoiled:
    """A method whose steps are `bad(step)` from iteration `at` on."""

    inner: Any
    at: int
    every: int = 8

    view = property(lambda self: self.inner.view)
    init = property(lambda self: self.inner.init)
    pair = property(lambda self: self.inner.pair)

    def step(self, view, state):
        after, visit = self.inner.step(view, state)
        broken = jax.tree.map(lambda v: jnp.where(after.epoch.total > self.at, jnp.nan, v), visit.after)
        return after, visit._replace(after=broken)

    def check(self, view, state, visit):
        return state


def test_nan_is_a_status_with_the_last_finite_pair(lp):
    solution = run(lp, Spoiled(PDHG(), 20, every=8), tolerance=TIGHT)
    assert (solution.reason, int(solution.iterations)) == (Status.NUMERICAL_ERROR, 24)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(solution.pair))
    assert np.isfinite(float(solution.objective))


def test_progress_rows_are_in_the_users_sense(lp):
    listener = Listener()
    solution = run(lp.replace(maximise=True, c=-lp.c), tolerance=TIGHT, progress=listener)
    last = listener.rows[-1]
    assert last["iter"] == int(solution.iterations)
    assert last["objective"] == float(solution.objective)
    assert last["dual objective"] == float(solution.dual_objective)
    assert (last["primal residual"], last["dual residual"], last["gap"]) == tuple(map(float, solution.residuals[:3]))
    assert listener.said == [1_000_000, Status.OPTIMAL.sentence]


def test_the_iteration_log_goes_to_standard_error(lp, capsys):
    run(lp, max_iterations=64, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[0].split()[:2] == ["iter", "objective"]
    stream = io.StringIO()
    run(lp, max_iterations=64, progress=IterationLog(stream))
    assert Status.ITERATION_LIMIT.sentence in stream.getvalue()


def test_batches_and_traced_problems_are_sent_to_solve(lp):
    with precision_scope(lp):
        batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), lp)
    with pytest.raises(InvalidProblem, match=r"one problem, use jax.vmap\(pdopt.solve\)"):
        run(batch)
    with pytest.raises(InvalidProblem, match=r"cannot be traced: use pdopt\.solve"):
        jax.jit(run)(lp)
    with pytest.raises(UnsupportedProblem):
        run(object())


@pytest.mark.parametrize("pace", [Pace(first=0), Pace(least=1.0, most=1.0)])
def test_a_pace_is_checked(lp, pace):
    with pytest.raises(InvalidOption):
        timed_run(lp, pace=pace)
