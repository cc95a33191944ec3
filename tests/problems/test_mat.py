"""Readers of quadratic programs: `.mat` files and the quadratic sections of MPS text, good ones and bad ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.io import savemat

import pdopt
from pdopt.errors import InvalidFile, InvalidOption
from pdopt.operators.diagonal import Diagonal
from pdopt.problems.mat import read_arrays
from pdopt.problems.mps import read_model

INFINITE = np.inf


def fields(**changes: Any) -> dict[str, Any]:
    """min x1^2 + x1 x2 + 3/2 x2^2 + x1 + 7 with x1 + x2 >= 1, x1 >= 0 and x2 in [-1, 2]."""
    return {
        "P": sp.csc_matrix([[2.0, 1.0], [1.0, 3.0]]), "q": np.array([[1.0], [0.0]]), "r": 7.0,
        "A": sp.csc_matrix([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]), "l": np.array([[1.0], [0.0], [-1.0]]),
        "u": np.array([[1e20], [1e21], [2.0]]), **changes,
    }  # fmt: skip


def test_bounds_are_split_off(tmp_path: Path) -> None:
    path = tmp_path / "two.mat"
    savemat(path, fields())
    model = read_model(path)
    qp = model.problem
    assert (qp.shape, model.name, model.notes, model.row_names) == ((1, 2), "two", (), ())
    np.testing.assert_array_equal(qp.Q.matrix, [[2, 1], [1, 3]])
    np.testing.assert_array_equal(qp.A.matrix, [[1, 1]])
    np.testing.assert_array_equal(np.r_[qp.row_lower, qp.row_upper], [1, INFINITE])
    np.testing.assert_array_equal(qp.lower, [0, -1])
    np.testing.assert_array_equal(qp.upper, [INFINITE, 2])
    assert float(qp.offset) == 7.0
    assert float(qp.objective(np.array([1.0, 2.0]))) == 1 + 2 + 6 + 1 + 7
    assert qp.c.dtype == np.float64


def test_an_infinity_that_was_rounded_is_one(tmp_path: Path) -> None:
    path = tmp_path / "rounded.mat"
    savemat(path, fields(u=np.array([[9.999999999999966e19], [1e20], [2.0]])))
    assert np.isinf(read_arrays(path).row_upper[0])


def test_without_identity_all_rows_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.mat"
    savemat(path, fields(A=sp.csc_matrix([[1.0, 1.0], [1.0, 0.0], [0.0, 2.0]])))
    found = read_arrays(path)
    assert found.A.shape == (3, 2)
    assert np.isinf(np.r_[found.lower, found.upper]).all()
    assert "no identity" in found.notes[0]


BAD = {
    "missing field": (lambda f: f.pop("q"), "no field 'q'"),
    "P not square": (lambda f: f.update(P=np.ones((2, 3))), "P has shape (2, 3)"),
    "A of another width": (lambda f: f.update(A=np.ones((3, 4))), "A has shape (3, 4); expected (3, 2)"),
    "q too short": (lambda f: f.update(q=[1.0]), "q has 1 entries; expected 2"),
    "u too long": (lambda f: f.update(u=np.ones(9)), "u has 9 entries; expected 3"),
    "NaN": (lambda f: f.update(q=[np.nan, 0.0]), "q has NaN"),
    "text": (lambda f: f.update(q="cost"), "expected real numbers"),
    "complex": (lambda f: f.update(q=np.array([1j, 0])), "expected real numbers"),
    "infinite Q": (lambda f: f.update(P=np.array([[INFINITE, 0], [0, 1]])), "Q has"),
    "not symmetric": (lambda f: f.update(P=np.array([[2.0, 1.0], [0.0, 3.0]])), "not symmetric"),
    "not convex": (lambda f: f.update(P=np.array([[2.0, 3.0], [3.0, 2.0]])), "not convex"),
    "infinite lower bound": (lambda f: f.update(l=np.array([1e20, 0, 0])), "row_lower"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_mat_is_refused(tmp_path: Path, kind: str) -> None:
    change, message = BAD[kind]
    data = fields()
    change(data)
    path = tmp_path / "bad.mat"
    savemat(path, data)
    with pytest.raises(InvalidFile) as caught:
        pdopt.read_qps(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"some text, and no MATLAB file", b"\0" * 200])
def test_no_mat_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.mat"
    path.write_bytes(content)
    with pytest.raises(InvalidFile, match=r"not a MATLAB file|no field"):
        pdopt.read_qps(path)


def test_damaged_mat(tmp_path: Path) -> None:
    path = tmp_path / "bad.mat"
    savemat(path, fields())
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InvalidFile):
        pdopt.read_qps(path)


GOOD = """NAME two
ROWS
 N cost
 G r
COLUMNS
 x cost 1 r 1
 y r 1
RHS
 b r 1 cost -7
BOUNDS
 LO d y -1
 UP d y 2
{section}
ENDATA
"""
TRIANGLE = "QUADOBJ\n x x 2\n x y 1\n y y 3"
WHOLE = "QMATRIX\n x x 2 y 1\n y x 1 y 3"


@pytest.mark.parametrize("suffix", [".qps", ".mps"])
@pytest.mark.parametrize("section", [TRIANGLE, TRIANGLE.replace("x y 1", "y x 1"), WHOLE])
def test_quadratic_sections_are_one_matrix(tmp_path: Path, section: str, suffix: str) -> None:
    path = tmp_path / f"two{suffix}"
    path.write_text(GOOD.format(section=section))
    savemat(tmp_path / "two.mat", fields())
    qp, same = pdopt.read_qps(path), pdopt.read_qps(tmp_path / "two.mat")
    for name in ("c", "row_lower", "row_upper", "lower", "upper", "offset"):
        np.testing.assert_array_equal(getattr(qp, name), getattr(same, name), err_msg=name)
    np.testing.assert_array_equal(qp.Q.matrix, same.Q.matrix)
    with pytest.raises(InvalidFile, match="line 13: quadratic objective: read_qps"):
        pdopt.read_mps(path)


def test_a_linear_file_is_a_flat_program(tmp_path: Path) -> None:
    path = tmp_path / "flat.mps"
    path.write_text(GOOD.format(section="").replace("\n\n", "\n"))
    qp = pdopt.read_qps(path)
    assert isinstance(qp.Q, Diagonal)
    assert not np.any(qp.Q.diagonal)
    assert isinstance(read_model(path).problem, pdopt.LinearProgram)


def test_a_diagonal_is_known_and_a_maximisation_kept(tmp_path: Path) -> None:
    path = tmp_path / "down.qps"
    text = GOOD.format(section="QUADOBJ\n x x -2\n y y -3").replace("ROWS", "OBJSENSE\n    MAX\nROWS", 1)
    path.write_text(text)
    qp = pdopt.read_qps(path)
    assert qp.maximise
    np.testing.assert_array_equal(qp.Q.diagonal, [-2, -3])


def test_lp_format(tmp_path: Path) -> None:
    path = tmp_path / "curved.lp"
    path.write_text("Minimize\n obj: x + [ x^2 + 2 x * y + 3 y^2 ] / 2\nSubject To\n c1: x + y <= 4\nEnd\n")
    np.testing.assert_array_equal(pdopt.read_qps(path).Q.matrix, [[1, 1], [1, 3]])


BAD_SECTIONS = {
    "unknown column": ("QUADOBJ\n x z 1", 14, "unknown column 'z' in QUADOBJ"),
    "not a number": ("QUADOBJ\n x x 2f", 14, "'2f' is not a number"),
    "four fields": ("QUADOBJ\n x x 2 y", 14, "4 fields in QUADOBJ"),
    "given twice": ("QUADOBJ\n x x 2\n x x 3", 15, "already given at line 14"),
    "both triangles": ("QUADOBJ\n x y 1\n y x 1", 15, "already given at line 14"),
    "one triangle of a whole": ("QMATRIX\n x x 2\n x y 1\n y y 3", 15, "not symmetric"),
    "unequal halves": ("QMATRIX\n x y 1\n y x 2", 14, "not symmetric"),
    "two sections": ("QUADOBJ\n x x 1\nQMATRIX\n y y 1", 15, "second quadratic objective"),
    "section of CPLEX": ("QSECTION\n x x 1", 13, "QSECTION"),
    "quadratic constraint": ("QCMATRIX r\n x x 1", 13, "quadratic constraints are not read"),
    "not convex": ("QUADOBJ\n x x -1", None, "not convex"),
    "cut short": ("QUADOBJ\n x x 1", None, "cut short"),
}


@pytest.mark.parametrize("kind", BAD_SECTIONS)
def test_bad_sections_are_refused(tmp_path: Path, kind: str) -> None:
    section, line, message = BAD_SECTIONS[kind]
    text = GOOD.format(section=section)
    if kind == "cut short":
        text, line = text.replace("ENDATA\n", ""), 14
    path = tmp_path / "bad.qps"
    path.write_text(text)
    with pytest.raises(InvalidFile) as caught:
        pdopt.read_qps(path)
    assert message in str(caught.value)
    assert caught.value.line == line


def test_low_precision_is_still_refused(tmp_path: Path) -> None:
    savemat(tmp_path / "two.mat", fields())
    with pytest.raises((InvalidFile, InvalidOption), match="float16"):
        pdopt.read_qps(tmp_path / "two.mat", dtype=np.float16)
