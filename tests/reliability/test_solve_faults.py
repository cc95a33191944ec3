"""What may go wrong around a solve, row by row of the reliability table: 25 to 30, 37, 38, and files 42 to 50.

Three outcomes only: an exception that names what was wrong, a status with the best point, a clean stop.
"""

import gzip
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from pdopt.cli.app import execute
from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.methods.pdhg import PDHG
from pdopt.problems.linear import LinearProgram
from pdopt.rules.acceleration import Halpern
from pdopt.run import run
from pdopt.runtime.precision import precision_scope
from pdopt.solve import solve
from pdopt.types import Pair, Status, Visit, record

ROOT = Path(__file__).parents[2]


def program(dtype=np.float64):
    """`max x + y` subject to `x + 2y <= 4`, `0 <= x, y <= 3`: the optimum 3.5 is at (3, 0.5)."""
    low, high = np.array([-np.inf], dtype), np.array([4.0], dtype)
    return LinearProgram(-np.ones(2), [[1.0, 2.0]], low, high, np.zeros(2), np.full(2, 3.0), dtype=dtype)


def unreachable(folder, m=20, n=30):
    """A file whose residuals, all irrational, are never exactly 0."""
    rng = np.random.default_rng(0)
    A, x = rng.normal(size=(m, n)), rng.uniform(size=n)
    lines = ["NAME endless", "ROWS", " N cost", *(f" G r{i}" for i in range(m)), "COLUMNS"]
    for j in range(n):
        lines.append(f" x{j} cost {rng.normal()!r}".replace("np.float64(", "").replace(")", ""))
        lines += [f" x{j} r{i} {float(A[i, j])!r}" for i in range(m)]
    lines += ["RHS", *(f" b r{i} {float(v)!r}" for i, v in enumerate(A @ x))]
    lines += ["BOUNDS", *(f" UP u x{j} 2" for j in range(n)), "ENDATA", ""]
    path = Path(folder) / "endless.mps"
    path.write_text("\n".join(lines))
    return path


# Presolve would answer these before the first step.
ENDLESS = ["--tolerance", "1e-30", "--max-iterations", str(2**30), "--no-presolve"]


# Row 25: options out of their range.
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tolerance", 0.0, r"tolerance is 0.0; expected a number in \(0, inf\]"),
        ("tolerance", -1e-6, "tolerance is -1e-06"),
        ("tolerance", math.nan, "tolerance is nan"),
        ("max_iterations", 0, r"max_iterations is 0; expected a number in \[1"),
        ("max_iterations", -5, "max_iterations is -5"),
        ("time_limit", 0.0, r"time_limit is 0.0; expected a number in \(0, inf\]"),
        ("time_limit", math.nan, "time_limit is nan"),
        ("checkpoint_every", 0.0, "checkpoint_every is 0.0"),
        ("history", -1, "history is -1; expected an integer >= 0"),
        ("progress", 3, "progress has type int; expected a bool or a Progress"),
        ("resume", True, "resume needs checkpoint"),
        ("start", 3, "start has type int; expected a Pair or a Solution"),
    ],
)
def test_row_25_an_option_outside_its_range_is_named(name, value, message):
    with pytest.raises(InvalidOption, match=message):
        run(program(), **{name: value})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PDHG(every=0), "every is 0; expected an integer >= 1"),
        (lambda: PDHG(acceleration=Halpern(math.nan)), "Halpern is nan; expected a number"),
        (lambda: PDHG(acceleration=Halpern(1.5)), "PDHG allows at most 2"),
    ],
    ids=["chunk 0", "step NaN", "too much reflection"],
)
def test_row_25_a_setting_of_a_method_outside_its_range_is_named(make, message):
    with pytest.raises(InvalidOption, match=message):
        make()


# Row 26: names that do not exist.
def test_row_26_a_misspelt_choice_has_its_nearest_name():
    with pytest.raises(InvalidOption, match="unknown acceleration 'halpren'; did you mean 'halpern'"):
        PDHG(acceleration="halpren")


def test_row_26_a_misspelt_keyword_is_named():
    with pytest.raises(TypeError, match="unexpected keyword argument 'tolerence'"):
        run(program(), tolerence=1e-3)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["solve", "a.mps", "--tolerence", "1"], "--tolerance"),
        (["slove", "a.mps"], "'solve'"),
        (["solve", "a.mps", "--method", "pdgh"], "did you mean 'pdhg'?"),
        (["solve", "a.mps", "--dtype", "float63"], "did you mean 'float64'?"),
    ],
)
def test_row_26_on_the_command_line(capsys, arguments, words):
    assert execute(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("pdopt: ")
    assert words in line


# Row 27: a tolerance below what the type can reach.
@pytest.mark.parametrize("driver", [run, solve])
def test_row_27_a_tolerance_below_the_floor_warns_and_is_never_falsely_met(driver):
    lp = LinearProgram([1.0, 0.3], [[0.1, 0.7]], [0.77], [np.inf], [0.0, 0.0], [3.0, 3.0], dtype=np.float32)
    with pytest.warns(UserWarning, match="tolerance 1e-10 is below what float32 can reach, about 1.2e-06"):
        solution = driver(lp, tolerance=1e-10, max_iterations=2000)
    error = float(lp.residuals(solution.pair).error)
    assert solution.reason in (Status.ITERATION_LIMIT, Status.PRECISION_LIMIT, Status.OPTIMAL)
    assert solution.reason is not Status.OPTIMAL or error <= 1e-10


# Row 28: starts.
def test_row_28_a_start_outside_its_sets_is_moved_into_them():
    outside = Pair(np.array([100.0, -100.0]), np.array([5.0]))  # y >= 0 is the side that this row lacks
    solution = run(program(), start=outside, tolerance=1e-9)
    assert solution.reason is Status.OPTIMAL
    np.testing.assert_allclose(np.asarray(solution.x), [3.0, 0.5], atol=1e-6)
    first = run(program(), start=outside, tolerance=1e9)  # met by anything: this is the moved start itself
    np.testing.assert_allclose(np.asarray(first.x), [3.0, 0.0])
    np.testing.assert_allclose(np.asarray(first.y), [0.0])


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (Pair(np.array([math.nan, 0.0]), np.zeros(1)), "start.x has NaN"),
        (Pair(np.zeros(2), np.array([math.nan])), "start.y has NaN"),
        (Pair(np.zeros(3), np.zeros(1)), r"start.x has shape \(3,\); expected \(2,\)"),
    ],
)
def test_row_28_a_start_that_is_no_pair_is_refused(start, message):
    with pytest.raises(InvalidProblem, match=message):
        run(program(), start=start)


# Row 29: nothing to do.
def test_row_29_an_optimal_start_takes_no_step():
    solution = run(program(), start=Pair(np.array([3.0, 0.5]), np.array([-0.5])), tolerance=1e-9)
    assert (solution.reason, int(solution.iterations)) == (Status.OPTIMAL, 0)
    assert float(solution.objective) == -3.5


# Row 30: a step that moves nothing.
@record(static=("inner", "every"))
class Still:
    """A method that stays where it is."""

    inner: Any = PDHG()
    every: int = 16

    view = property(lambda self: self.inner.view)
    init = property(lambda self: self.inner.init)
    pair = property(lambda self: self.inner.pair)

    def step(self, view, state):
        _, visit = self.inner.step(view, state)
        return state, Visit(visit.before, visit.before)

    def check(self, view, state, visit):
        return state


def test_row_30_a_step_that_moves_nothing_ends_and_is_not_optimal():
    solution = run(program(), Still(), max_iterations=100)
    assert solution.reason is Status.NUMERICAL_ERROR
    assert int(solution.iterations) <= 100


def test_row_30_a_step_that_moves_nothing_is_optimal_where_the_start_is():
    best = Pair(np.array([3.0, 0.5]), np.array([-0.5]))
    assert run(program(), Still(), start=best, tolerance=1e-9).reason is Status.OPTIMAL


# Row 37: the time limit, by the real clock.
def test_row_37_the_time_limit_holds(tmp_path, capsys):
    path = unreachable(tmp_path)
    assert execute(["solve", str(path), *ENDLESS, "--time-limit", "0.2", "--json", "--quiet"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == "time_limit"
    assert found["iterations"] >= 64
    # Time counts from the call on, so compiling may have used it up: one chunk after that, at most 0.5 s and its start.
    assert found["seconds"]["solve"] < 5
    assert all(value is not None for value in found["residuals"].values())


# Row 38: signals to a real process; what was saved is gone on with.
@pytest.mark.multiprocess
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_row_38_a_signal_saves_and_says_so(tmp_path, capsys, number, code):
    folder = tmp_path / "state"
    arguments = ["solve", str(unreachable(tmp_path)), *ENDLESS, "--json", "--checkpoint", str(folder)]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", "pdopt", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path,
    ) as child:  # fmt: skip
        assert child.stderr is not None
        assert child.stdout is not None
        lines = []
        for line in child.stderr:  # the first numbers of the log say that the solve is under way
            lines.append(line)
            if line.split()[:1] and line.split()[0].isdigit():
                break
        child.send_signal(number)
        out, rest = child.stdout.read(), child.stderr.read()
        assert child.wait(60) == code, [*lines, rest]
    found = json.loads(out)
    assert (found["status"], found["exit_code"]) == ("interrupted", code)
    assert "--resume" in found["message"]
    assert (folder / str(found["iterations"])).is_dir()
    assert "Traceback" not in "".join(lines) + rest

    limit = found["iterations"] + 64
    again = ["solve", str(tmp_path / "endless.mps"), "--tolerance", "1e-30", "--max-iterations", str(limit), "--json",
             "--no-presolve"]  # fmt: skip
    assert execute([*again, "--quiet", "--checkpoint", str(folder), "--resume"]) == 3
    assert json.loads(capsys.readouterr().out)["iterations"] == limit


# Rows 42 to 50: files. What each reader's error says is tested with the reader; here: one line, exit code 2.
HEAD = "NAME two\nROWS\n N cost\n L r\nCOLUMNS\n x cost -1 r 1\n"
GOOD = HEAD + "RHS\n b r 4\nBOUNDS\n UP u x 3\nENDATA\n"
FILES = {
    "42 missing": (None, "no such file", None),
    "42 empty": (b"", "the file is empty", None),
    "42 binary": (b"\x00\x01\x02", "binary data", 1),
    "42 cut": (GOOD.removesuffix("ENDATA\n").encode(), "without ENDATA", None),
    "43 unknown row": (GOOD.replace("r 1\n", "r9 1\n").encode(), "unknown row 'r9'", 6),
    "44 text": (GOOD.replace("r 1\n", "r abc\n").encode(), "'abc' is not a number", 6),
    "45 nan": (GOOD.replace("r 1\n", "r nan\n").encode(), "NaN", 6),
    "46 unknown right side": (GOOD.replace("b r 4", "b r9 4").encode(), "unknown row 'r9' in RHS", 8),
    "46 unknown bound": (GOOD.replace("u x 3", "u x9 3").encode(), "unknown column 'x9' in BOUNDS", 10),
    "47 third pair": (GOOD.replace("r 1\n", "r 1 r 2\n").encode(), "fields in COLUMNS", 6),
    "48 huge": (GOOD.replace("r 1\n", "r 1e16\n").encode(), "too large", 6),
    "48 overflow": (GOOD.replace("r 1\n", "r 1e400\n").encode(), "1e400", 6),
    "49 damaged gzip": (gzip.compress(GOOD.encode())[:-12], "damaged gzip", None),
}


@pytest.mark.parametrize("case", FILES)
def test_rows_42_to_49_a_bad_file_is_one_line_and_exit_code_2(tmp_path, capsys, case):
    data, words, line = FILES[case]
    path = tmp_path / ("bad.mps.gz" if "gzip" in case else "bad.mps")
    if data is not None:
        path.write_bytes(data)
    assert execute(["solve", str(path), "--json"]) == 2
    shown = capsys.readouterr()
    (said,) = shown.err.splitlines()
    assert said.startswith(f"pdopt: {path}")
    assert words in said
    found = json.loads(shown.out)
    assert (found["status"], found["exit_code"], found["message"]) == ("error", 2, said.removeprefix("pdopt: "))
    assert found["error"]["file"] == str(path)
    if line is not None:
        assert found["error"]["line"] == line
    assert found["problem"] == {"rows": None, "columns": None, "nonzeros": None, "quadratic": None}


def solved(capsys, tmp_path, text):
    path = tmp_path / "made.mps"
    path.write_text(text)
    code = execute(["solve", str(path), "--json", "--quiet"])
    return code, json.loads(capsys.readouterr().out)


def test_row_4_crossed_bounds_are_infeasible_and_named(tmp_path, capsys):
    code, found = solved(capsys, tmp_path, GOOD.replace(" UP u x 3", " LO u x 3\n UP u x 1"))
    assert (code, found["status"], found["iterations"]) == (4, "primal_infeasible", 0)
    assert found["message"] == "Infeasible: column 'x' has lower bound 3 above its upper bound 1."


def test_row_47_the_objectives_right_side_is_the_offset(tmp_path, capsys):
    code, found = solved(capsys, tmp_path, GOOD.replace("b r 4", "b r 4 cost -7"))
    assert code == 0
    assert found["objective"] == pytest.approx(7 - 3, abs=1e-5)


def test_row_47_a_negative_upper_bound_alone_is_noted(tmp_path, capsys):
    code, found = solved(capsys, tmp_path, GOOD.replace("u x 3", "u x -3"))
    assert code == 4
    assert found["status"] == "primal_infeasible"
    assert any("negative" in note for note in found["notes"])


def test_row_50_integer_columns_are_relaxed_and_it_is_said(tmp_path, capsys):
    integers = GOOD.replace(" x cost", " M 'MARKER' 'INTORG'\n x cost").replace("RHS\n", " M 'MARKER' 'INTEND'\nRHS\n")
    code, found = solved(capsys, tmp_path, integers)
    assert code == 0
    assert "1 integer columns relaxed" in found["notes"]


def test_residuals_in_a_report_are_those_of_the_problem():
    lp = program()
    solution = run(lp)
    with precision_scope(lp):
        again = lp.residuals(solution.pair)
    for said, seen in zip(jax.tree.leaves(solution.residuals), jax.tree.leaves(again)):
        assert float(said) == pytest.approx(float(seen), rel=1e-9, abs=1e-15)
