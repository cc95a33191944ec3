"""Rows 4, 42 to 50 and 60 of the reliability table: what a damaged or ambiguous model file must lead to."""

import gzip
import math
import os

import numpy as np
import pytest

from pdopt.errors import InvalidFile
from pdopt.problems.mps import read_model, read_mps
from pdopt.runtime.files import write_atomic

GOOD = """NAME good
ROWS
 N cost
 L r1
 G r2
COLUMNS
 x cost 1 r1 1
 x r2 2
 y r1 3 r2 4
RHS
 b r1 5 r2 6
BOUNDS
 UP d x 9
ENDATA
"""


def changed(old, new):
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


BAD_TEXT = {
    "empty": ("", None, "empty"),
    "binary": ("\0\1\2binary", 1, "binary"),
    "cut in COLUMNS": (GOOD[: GOOD.index(" y r1")], 8, "cut short"),
    "cut before ENDATA": (GOOD[: GOOD.index("ENDATA")], 13, "cut short"),
    "unknown row in COLUMNS": (changed(" x r2 2", " x R9 2"), 8, "unknown row 'R9'"),
    "text for a coefficient": (changed(" x r2 2", " x r2 abc"), 8, "'abc' is not a number"),
    "nan coefficient": (changed(" x r2 2", " x r2 nan"), 8, "NaN"),
    "underscore in a number": (changed(" x r2 2", " x r2 1_0"), 8, "'1_0' is not a number"),
    "infinite coefficient": (changed(" x r2 2", " x r2 inf"), 8, "not a finite number"),
    "1e400": (changed(" x r2 2", " x r2 1e400"), 8, "not a finite number"),
    "1e16": (changed(" x r2 2", " x r2 1e16"), 8, "too large"),
    "third pair": (changed(" y r1 3 r2 4", " y cost 1 r1 3 r2 4"), 9, "7 fields in COLUMNS"),
    "RHS for an unknown row": (changed(" b r1 5 r2 6", " b r1 5 r7 6"), 11, "unknown row 'r7' in RHS"),
    "nan right-hand side": (changed(" b r1 5 r2 6", " b r1 nan r2 6"), 11, "NaN"),
    "bound for an unknown column": (changed(" UP d x 9", " UP d w 9"), 13, "unknown column 'w'"),
    "unknown bound kind": (changed(" UP d x 9", " XX d x 9"), 13, "bound kind 'XX'"),
    "bound without a value": (changed(" UP d x 9", " UP x"), 13, "2 fields in BOUNDS"),
    "duplicate entry": (changed(" x r2 2", " x r1 2"), 8, "already given at line 7"),
    "column left and taken up": (changed("RHS\n", " x r2 1\nRHS\n"), 10, "began at line 7"),
    "duplicate row": (changed(" G r2", " G r1"), 5, "already defined at line 4"),
    "duplicate right-hand side": (changed(" b r1 5 r2 6", " b r1 5 r1 6"), 11, "already given at line 11"),
    "duplicate bound": (changed(" UP d x 9", " UP d x 9\n UP d x 8"), 14, "already given at line 13"),
    "second RHS set": (changed(" b r1 5 r2 6", " b r1 5\n b2 r2 6"), 12, "a second set 'b2'"),
    "second bounds set": (changed(" UP d x 9", " UP d x 9\n UP e y 9"), 14, "a second set 'e'"),
    "range of the objective": (changed("BOUNDS\n", "RANGES\n g cost 3\nBOUNDS\n"), 13, "an N row has no range"),
    "text after ENDATA": (GOOD + " x r2 2\n", 15, "after ENDATA"),
    "unknown section": (changed("NAME good", "MAXIMIZE"), 1, "unknown section 'MAXIMIZE'"),
    "unknown sense": (changed("ROWS\n", "OBJSENSE\n    UP\nROWS\n"), 3, "objective sense 'UP'"),
    "second section": (changed("RHS\n", "COLUMNS\n z r1 1\nRHS\n"), 10, "a second section COLUMNS"),
    "no section COLUMNS": ("ROWS\n N c\nENDATA\n", 3, "without a section COLUMNS"),
    "open marker": (changed("COLUMNS\n", "COLUMNS\n M 'MARKER' 'INTEND'\n"), 7, "MARKER"),
    "quadratic objective": (changed("ENDATA", "QUADOBJ\n x x 1\nENDATA"), 14, "read_qps reads it"),
    "no objective row": (changed(" N cost\n", "").replace(" x cost 1 r1 1", " x r1 1"), None, "No objective row"),
    "entry below HiGHS's threshold": (changed(" x r2 2", " x r2 1e-12"), None, "ignored"),
    "infinite lower bound": (changed(" UP d x 9", " LO d x inf"), None, ""),
}


@pytest.mark.parametrize("name", BAD_TEXT)
def test_bad_mps_is_refused_with_its_line(tmp_path, name):
    text, line, message = BAD_TEXT[name]
    path = tmp_path / "bad.mps"
    path.write_text(text)
    with pytest.raises(InvalidFile) as caught:
        read_mps(path)
    assert caught.value.line == line
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(InvalidFile, match="no such file"):
        read_mps(tmp_path / "absent.mps")


def test_unknown_suffix(tmp_path):
    with pytest.raises(InvalidFile, match=r"ends in \.mps"):
        read_mps(tmp_path / "model.txt")


@pytest.mark.parametrize("kind", ["truncated", "checksum"])
def test_damaged_gzip(tmp_path, kind):
    data = gzip.compress(GOOD.encode(), mtime=0)
    path = tmp_path / "bad.mps.gz"
    path.write_bytes(data[:-20] if kind == "truncated" else data[:-8] + bytes([data[-8] ^ 1]) + data[-7:])
    with pytest.raises(InvalidFile, match="damaged gzip"):
        read_mps(path)


@pytest.mark.parametrize("packed", [True, False])
def test_gz_may_be_zipped_or_plain(tmp_path, packed):
    path = tmp_path / "good.mps.gz"
    path.write_bytes(gzip.compress(GOOD.encode()) if packed else GOOD.encode())
    assert read_model(path).column_names == ("x", "y")


def test_integers_are_relaxed_and_said(tmp_path):
    path = tmp_path / "int.mps"
    text = changed(" x cost", " M1 'MARKER' 'INTORG'\n x cost").replace(" y r1", " M2 'MARKER' 'INTEND'\n y r1")
    path.write_text(text)
    model = read_model(path)
    assert model.integers == 1
    assert model.notes == ("1 integer columns relaxed",)
    with pytest.raises(InvalidFile, match="1 integer"):
        read_model(path, relax_integers=False)


def test_integers_without_bounds_are_binary_and_said(tmp_path):
    path = tmp_path / "int.mps"
    path.write_text(changed(" y r1", " M1 'MARKER' 'INTORG'\n y r1").replace("RHS\n", " M2 'MARKER' 'INTEND'\nRHS\n"))
    model = read_model(path)
    np.testing.assert_array_equal(model.problem.upper, [9, 1])
    assert any("upper bound 1" in note for note in model.notes)


def test_crossed_bounds_read_fine(tmp_path):
    path = tmp_path / "crossed.mps"
    path.write_text(changed(" UP d x 9", " LO d x 3\n UP d x 1"))
    lp = read_mps(path)
    assert (float(lp.lower[0]), float(lp.upper[0])) == (3, 1)
    assert bool(lp.crossed())


def test_negative_upper_bound_keeps_lower_zero_and_is_said(tmp_path):
    path = tmp_path / "negative.mps"
    path.write_text(changed(" UP d x 9", " UP d x -2"))
    model = read_model(path)
    assert (float(model.problem.lower[0]), float(model.problem.upper[0])) == (0, -2)
    assert model.notes == ("negative upper bound without lower bound on x: lower stays 0",)


def test_not_strict_keeps_the_reading_and_says_so(tmp_path):
    path = tmp_path / "quadratic objective.mps"  # the words of a refusal in a name refuse nothing
    path.write_text(BAD_TEXT["duplicate entry"][0])
    model = read_model(path, strict=False)
    assert "line 8" in model.notes[0]
    assert any("duplicate" in note for note in model.notes)


@pytest.mark.parametrize("name", ["cut before ENDATA", "1e16"])
def test_not_strict_still_refuses(tmp_path, name):
    path = tmp_path / "bad.mps"
    path.write_text(BAD_TEXT[name][0])
    with pytest.raises(InvalidFile):
        read_model(path, strict=False)


BAD_LP = {
    "garbage": "garbage here",
    "text for a coefficient": "Minimize\n obj: x + 3 abc 4\nSubject To\n c1: x <= 4\nEnd\n",
    "cut": "Minimize\n obj: x\nSubject To\n c1: x + y <= 4\n",
    "quadratic": "Minimize\n obj: x + [ x^2 ] / 2\nSubject To\n c1: x + y <= 4\nEnd\n",
}


@pytest.mark.parametrize("name", BAD_LP)
def test_bad_lp_is_refused(tmp_path, name):
    path = tmp_path / "bad.lp"
    path.write_text(BAD_LP[name])
    with pytest.raises(InvalidFile):
        read_mps(path)


@pytest.mark.parametrize("suffix", [".lp", ".lp.gz"])
def test_good_lp(tmp_path, suffix):
    path = tmp_path / f"good{suffix}"
    text = "Maximize\n obj: x + 2 y + 3\nSubject To\n c1: x + y <= 4\nBounds\n x <= 3\n y free\nEnd\n"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    model = read_model(path)
    lp = model.problem
    assert (lp.maximise, float(lp.offset), model.name, model.row_names) == (True, 3.0, "good", ("c1",))
    np.testing.assert_array_equal(lp.c, [1, 2])
    np.testing.assert_array_equal(lp.lower, [0, -math.inf])


def test_reading_prints_nothing(tmp_path, capfd):
    path = tmp_path / "good.mps"
    path.write_text(GOOD)
    read_mps(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch, function):
    path = tmp_path / "out.json"
    write_atomic(path, "old")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"]
