"""`pdopt solve`: what it prints and writes, against the library's own answer and the reference of real models."""

import csv
import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.io import savemat

import pdopt
from pdopt.cli.app import execute
from pdopt.cli.history import draw, table, write_rows
from pdopt.cli.solve import _crossed
from pdopt.problems.mps import Model
from pdopt.rules.loop import HISTORY
from pdopt.rules.loop import History as Table

DATA = Path(os.environ.get("PDOPT_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")) / "lp" / "core"
needs_data = pytest.mark.skipif(not (DATA / "afiro.mps.gz").exists(), reason="the shared data folder is absent")
TWO = (
    "NAME two\nROWS\n N cost\n L r\nCOLUMNS\n x cost -1 r 1\n y cost -1 r 2\nRHS\n b r 4\nBOUNDS\n"
    " UP u x 3\n UP u y 3\nENDATA\n"
)


@pytest.fixture
def two(tmp_path):
    path = tmp_path / "two.mps"
    path.write_text(TWO)
    return path


def test_the_summary(two, capsys):
    assert execute(["solve", str(two), "--quiet", "--no-presolve"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    lines = shown.out.splitlines()
    assert lines[0] == "two: 1 rows, 2 columns, 2 nonzeros (pdhg, float64)"
    assert lines[2].startswith("Optimal: ")
    words = {line.split("  ")[0]: line.split()[-1] for line in lines if line}
    assert float(words["objective"]) == pytest.approx(-3.5, abs=1e-5)
    assert float(words["dual objective"]) == pytest.approx(-3.5, abs=1e-5)
    for name in ("worst violation", "iterations", "read (s)", "compile (s)", "solve (s)", "primal residual", "gap"):
        assert float(words[name]) >= 0


def test_a_quadratic_program(tmp_path, capsys):
    """min x^2 + y^2 - x - y on the rows of `two`; from either format, with a note that presolve was left out."""
    (tmp_path / "curved.qps").write_text(TWO.replace("ENDATA", "QUADOBJ\n x x 2\n y y 2\nENDATA"))
    identity = np.eye(2)
    savemat(tmp_path / "curved.mat", {
        "P": 2 * identity, "q": [-1.0, -1.0], "A": np.vstack([[1.0, 2.0], identity]), "l": [-1e20, 0, 0],
        "u": [4.0, 3, 3], "r": 0.0,
    })  # fmt: skip
    for name in ("curved.qps", "curved.mat"):
        assert execute(["solve", str(tmp_path / name), "--quiet", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["objective"] == pytest.approx(-0.5, abs=1e-5)
        assert found["problem"] == {"rows": 1, "columns": 2, "nonzeros": 2, "quadratic": 2}
        assert "without presolve" in found["notes"][-1]
    (tmp_path / "bad.mat").write_text("no MATLAB file")
    assert execute(["solve", str(tmp_path / "bad.mat"), "--quiet"]) == 2
    assert "bad.mat: not a MATLAB file" in capsys.readouterr().err


def test_what_presolve_removed_is_said(two, tmp_path, capsys):
    assert execute(["solve", str(two), "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    words = {line.split("  ")[0]: line.split()[-1] for line in lines if line}
    assert (words["rows removed"], words["columns removed"], words["iterations"]) == ("1", "2", "0")
    assert float(words["objective"]) == -3.5
    (tmp_path / "none.mps").write_text(TWO.replace("UP u x 3", "LO u x 9"))
    assert execute(["solve", str(tmp_path / "none.mps"), "--quiet"]) == 4
    assert "HiGHS's presolve found" in capsys.readouterr().out


def test_the_object_is_the_librarys_answer(two, capsys):
    lp = pdopt.read_mps(two)
    for options, method, tolerance in (
        ([], pdopt.PDHG(), 1e-6),
        (["--method", "pdhg-constant", "--tolerance", "1e-9"], pdopt.PDHG.constant(), 1e-9),
        (["--method", "pdhg-averaged"], pdopt.PDHG.averaged(), 1e-6),
    ):
        assert execute(["solve", str(two), "--json", "--quiet", *options]) == 0
        found = json.loads(capsys.readouterr().out)
        solution = pdopt.run(lp, method, tolerance=tolerance, presolve=True)
        assert found["objective"] == float(solution.objective)
        assert found["dual_objective"] == float(solution.dual_objective)
        assert found["iterations"] == int(solution.iterations)
        assert list(found["residuals"].values()) == [float(v) for v in solution.residuals[:3]]
        assert found["worst"] == float(solution.residuals.worst)


def test_float32_has_its_own_tolerance(two, capsys):
    assert execute(["solve", str(two), "--json", "--quiet", "--dtype", "float32"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["dtype"], found["tolerance"], found["warnings"]) == ("float32", 1e-4, [])
    assert found["objective"] == pytest.approx(-3.5, abs=1e-3)


def test_a_warning_is_a_line_and_in_the_object(two, capsys):
    assert execute(["solve", str(two), "--json", "--quiet", "--tolerance", "1e-17", "--max-iterations", "64"]) in (0, 3)
    shown = capsys.readouterr()
    (warning,) = json.loads(shown.out)["warnings"]
    assert "below what float64 can reach" in warning
    assert shown.err.splitlines() == [f"pdopt: warning: {warning}"]


def test_the_solution_file_reads_back(two, tmp_path, capsys):
    for name in ("out.sol", "out.json"):
        assert execute(["solve", str(two), "--solution", str(tmp_path / name), "--quiet"]) == 0
        assert f"solution written to {tmp_path / name}" in capsys.readouterr().out
        found = pdopt.read_solution(tmp_path / name)
        assert (found.column_names, found.row_names) == (("x", "y"), ("r",))
        np.testing.assert_allclose(found.x, [3, 0.5], atol=1e-5)
        np.testing.assert_allclose(found.y, [-0.5], atol=1e-5)


def test_history_and_plot(two, tmp_path, capsys):
    rows, picture = tmp_path / "rows.csv", tmp_path / "picture.png"
    options = ["--tolerance", "1e-12", "--history", str(rows), "--plot", str(picture), "--json", "--quiet"]
    assert execute(["solve", str(two), *options, "--no-presolve"]) == 0
    found = json.loads(capsys.readouterr().out)
    with rows.open() as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == list(HISTORY)
    assert int(read[-1]["iterations"]) == found["iterations"]
    assert float(read[-1]["objective"]) == found["objective"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "picture.csv").read_text() == rows.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["picture.csv", "picture.png", "rows.csv", "two.mps"]

    assert execute(["solve", str(two), *options]) == 0  # presolve leaves nothing to iterate on
    assert json.loads(capsys.readouterr().out)["presolve"] == {"found": "empty", "rows": 1, "columns": 2}
    assert len(rows.read_text().splitlines()) == 1


def test_an_empty_history_and_odd_numbers_are_drawn(tmp_path):
    rows = jnp.array([[64, 1, 1, 0, jnp.inf, 1e-3], [128, 1, 1, jnp.nan, 1e-9, 0]], jnp.float32)
    for used in (0, 2):
        history = Table(rows, jnp.int32(used), jnp.int32(1), jnp.int32(used))
        draw(tmp_path / "odd.svg", history, 1e-4, "odd")
        write_rows(tmp_path / "odd.csv", history)
        assert len((tmp_path / "odd.csv").read_text().splitlines()) == 1 + used == 1 + len(table(history))
        assert "<svg" in (tmp_path / "odd.svg").read_text()


def test_the_first_crossed_row_is_named():
    lp = pdopt.LinearProgram(
        np.zeros(1, np.float32), np.ones((2, 1), np.float32), np.float32([0, 3]), np.float32([1, 2])
    )
    named = Model(lp, "m", ("a", "b"), ("x",), 0, ())
    assert _crossed(named) == "Infeasible: row 'b' has lower bound 3 above its upper bound 2."
    assert "row '1'" in _crossed(named._replace(row_names=()))


@needs_data
def test_afiro(capsys, tmp_path):
    assert execute(["solve", str(DATA / "afiro.mps.gz"), "--json", "--quiet", "--tolerance", "1e-8"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problem"] == {"rows": 27, "columns": 32, "nonzeros": 83, "quadratic": None}
    assert found["objective"] == pytest.approx(-464.7531428571, rel=1e-6)
    assert max(found["residuals"].values()) <= 1e-8


@needs_data
def test_galenet_is_infeasible(capsys):
    assert execute(["solve", str(DATA / "galenet.mps.gz"), "--json", "--quiet"]) == 4
    assert json.loads(capsys.readouterr().out)["status"] == "primal_infeasible"


@needs_data
def test_a_cut_copy_of_afiro_is_refused(capsys, tmp_path):
    path = tmp_path / "afiro.mps.gz"
    path.write_bytes((DATA / "afiro.mps.gz").read_bytes()[:-40])
    assert execute(["solve", str(path), "--json"]) == 2
    assert str(path) in json.loads(capsys.readouterr().out)["message"]


@pytest.mark.slow
def test_a_long_chain_is_solved_by_multipliers(tmp_path, capsys):
    n = 200
    rows = np.vstack([np.diff(np.eye(n), 2, axis=0), np.eye(n)])
    target = np.random.default_rng(0).standard_normal(n)
    low, high = np.full(2 * n - 2, -1e20), np.r_[np.zeros(n - 2), np.full(n, 1e20)]
    savemat(tmp_path / "chain.mat", {"P": sp.eye(n, format="csc"), "q": -target, "A": sp.csc_matrix(rows), "l": low,
                                     "u": high, "r": 0.0})  # fmt: skip
    found = {}
    for method in ("auto", "pdhg"):
        options = ["--quiet", "--json", "--method", method, "--tolerance", "1e-6"]
        assert execute(["solve", str(tmp_path / "chain.mat"), *options]) == 0
        found[method] = json.loads(capsys.readouterr().out)
    assert [found[name]["method"] for name in found] == ["multipliers", "pdhg"]
    assert found["auto"]["objective"] == pytest.approx(found["pdhg"]["objective"], rel=1e-4)
