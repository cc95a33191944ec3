"""Reading models: the meaning of each MPS section, and equality with HiGHS's own data and with what was written."""

import csv
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdopt.errors import InvalidFile
from pdopt.problems.mps import read_model, read_mps, read_qps
from pdopt.problems.mps_scan import scan_mps

DATA = Path(os.environ.get("PDOPT_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")) / "lp"
CORE = sorted(path.name.removesuffix(".mps.gz") for path in (DATA / "core").glob("*.mps.gz"))
needs_data = pytest.mark.skipif(not CORE, reason="the shared data folder is absent")

HEAD = "NAME a model\nROWS\n N cost\n L l\n G g\n E e\n E f\nCOLUMNS\n x cost 1 l 1\n x g 1 e 1\n x f 1\n"


def read(tmp_path, text):
    path = tmp_path / "made.mps"
    path.write_text(text, newline="")
    return read_model(path)


def dense(A):
    """The matrix by its products with unit vectors: no operator's layout is assumed."""
    from pdopt.runtime.precision import precision_scope

    with precision_scope(A):
        return np.stack([np.asarray(A.matvec(unit)) for unit in jnp.eye(A.shape[1], dtype=jnp.float64)], axis=1)


def test_ranges_signs(tmp_path):
    text = HEAD + "RHS\n b l 4 g 1\n b e 3 f 3\nRANGES\n s l 2.5 g -4\n s e 2\n s f -2\nENDATA\n"
    lp = read(tmp_path, text).problem
    np.testing.assert_array_equal(lp.row_lower, [1.5, 1, 3, 1])
    np.testing.assert_array_equal(lp.row_upper, [4, 5, 5, 3])


def test_objective_right_hand_side_is_minus_the_offset(tmp_path):
    assert float(read(tmp_path, HEAD + "RHS\n b cost -7\nENDATA\n").problem.offset) == 7


@pytest.mark.parametrize(
    ("lines", "maximise"),
    [("OBJSENSE\n    MAX\n", True), ("OBJSENSE MAX\n", True), ("OBJSENSE\n MAXIMIZE\n", True),
     ("OBJSENSE\n  MIN\n", False), ("", False)],
)  # fmt: skip
def test_sense(tmp_path, lines, maximise):
    lp = read(tmp_path, HEAD.replace("ROWS\n", lines + "ROWS\n") + "ENDATA\n").problem
    assert lp.maximise is maximise
    assert float(lp.c[0]) == 1  # the user's own sense


@pytest.mark.parametrize(
    ("bounds", "lower", "upper"),
    [
        (" UP d x 3", 0, 3), (" LO d x -3", -3, np.inf), (" FX d x 3", 3, 3), (" FR d x", -np.inf, np.inf),
        (" MI d x", -np.inf, np.inf), (" PL d x", 0, np.inf), (" BV d x", 0, 1), (" LI d x 2", 2, np.inf),
        (" UI d x 4", 0, 4), (" MI d x\n UP d x 4", -np.inf, 4), (" FR x", -np.inf, np.inf), (" UP x 3", 0, 3),
        (" UP d x inf", 0, np.inf), (" LO d x -Infinity", -np.inf, np.inf), (" SC d x 5", 0, 5),
        (" LO d x 2\n SC d x 5", 0, 5),
    ],
)  # fmt: skip
def test_bounds(tmp_path, bounds, lower, upper):
    lp = read(tmp_path, HEAD + f"BOUNDS\n{bounds}\nENDATA\n").problem
    assert (float(lp.lower[0]), float(lp.upper[0])) == (lower, upper)


@pytest.mark.parametrize(
    "change", [("\n", "\r\n"), (" ", "\t"), ("\nCOLUMNS", "\n* a comment of five words\n\nCOLUMNS")]
)
def test_line_ends_tabs_and_comments(tmp_path, change):
    model = read(tmp_path, (HEAD + "ENDATA\n").replace("a model", "amodel").replace(*change))
    assert model.row_names == ("l", "g", "e", "f")
    assert model.name == "amodel"


def test_names_and_dtype(tmp_path):
    model = read(tmp_path, HEAD + "ENDATA\n")
    assert (model.name, model.column_names, model.integers, model.notes) == ("a model", ("x",), 0, ())
    assert model.problem.c.dtype == jnp.float64
    assert read_mps(tmp_path / "made.mps", dtype=jnp.float32).c.dtype == jnp.float32


def test_further_free_rows_are_said(tmp_path):
    model = read(tmp_path, HEAD.replace(" L l\n", " N other\n L l\n") + " y other 2 l 1\nENDATA\n")
    assert model.notes == ("1 N rows after the objective left out",)
    assert model.problem.shape == (4, 2)


def test_fortran_exponents_are_numbers():
    assert scan_mps("a.mps", (HEAD + " y l 1.5D2\nENDATA\n").encode()).nonzeros == 5


FIXED = """NAME          FIXED
ROWS
 N  COST
 L  ROW 1
COLUMNS
    COL 1     COST               1.0   ROW 1              2.0
RHS
    RHS       ROW 1              4.0
BOUNDS
 UP BND       COL 1              3.0
ENDATA
"""


def test_fixed_format_with_blanks_in_names(tmp_path):
    model = read(tmp_path, FIXED)
    assert (model.row_names, model.column_names) == (("ROW 1",), ("COL 1",))
    assert (float(model.problem.row_upper[0]), float(model.problem.upper[0])) == (4, 3)
    assert model.notes == ("names hold blanks: read in fixed format, by column position",)


def test_fixed_format_is_scanned_too():
    with pytest.raises(InvalidFile, match=r"line 6: '2\.x' is not a number"):
        scan_mps("a.mps", FIXED.replace("2.0", "2.x").encode(), fixed=True)


numbers = st.floats(-1e6, 1e6).filter(lambda v: v == 0 or abs(v) > 1e-6)


@st.composite
def programs(draw):
    """(c, A, row bounds, bounds, offset) with rows of every kind; every number survives `repr`."""
    m, n = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    A = np.array(draw(st.lists(numbers, min_size=m * n, max_size=m * n))).reshape(m, n)
    c = np.array(draw(st.lists(numbers, min_size=n, max_size=n)))

    def side():
        low, high = sorted((draw(numbers), draw(numbers)))
        return draw(st.sampled_from([(low, low), (low, np.inf), (-np.inf, high), (-np.inf, np.inf), (low, high)]))

    rows = np.array(
        [draw(st.sampled_from([(v, v), (v, np.inf), (-np.inf, v)])) for v in (draw(numbers) for _ in range(m))]
    )
    return c, A, rows, np.array([side() for _ in range(n)]), draw(numbers), draw(st.booleans())


def write(c, A, rows, bounds, offset, maximise):
    kinds = ["E" if lo == hi else "G" if np.isfinite(lo) else "L" for lo, hi in rows]
    lines = ["NAME random", *(["OBJSENSE", "    MAX"] if maximise else []), "ROWS", " N cost"]
    lines += [f" {kind} r{i}" for i, kind in enumerate(kinds)] + ["COLUMNS"]
    for j, cost in enumerate(c.tolist()):
        lines += [f" x{j} cost {cost!r}", *(f" x{j} r{i} {v!r}" for i, v in enumerate(A[:, j].tolist()) if v)]
    lines += ["RHS", f" b cost {-offset!r}"]
    lines += [f" b r{i} {(lo if np.isfinite(lo) else hi)!r}" for i, (lo, hi) in enumerate(rows.tolist())] + ["BOUNDS"]
    for j, (lo, hi) in enumerate(bounds.tolist()):
        lines += [f" LO d x{j} {lo!r}" if np.isfinite(lo) else f" MI d x{j}"]
        lines += [f" UP d x{j} {hi!r}"] if np.isfinite(hi) else []
    return "\n".join([*lines, "ENDATA", ""])


@settings(max_examples=40, deadline=None)
@given(programs())
def test_round_trip(tmp_path_factory, program):
    c, A, rows, bounds, offset, maximise = program
    path = tmp_path_factory.mktemp("round") / "random.mps"
    path.write_text(write(*program))
    lp = read_mps(path)
    np.testing.assert_array_equal(lp.c, c)
    np.testing.assert_array_equal(dense(lp.A), A)
    np.testing.assert_array_equal(np.stack([lp.row_lower, lp.row_upper], axis=1), rows)
    np.testing.assert_array_equal(np.stack([lp.lower, lp.upper], axis=1), bounds)
    assert (float(lp.offset), lp.maximise) == (offset, maximise)


@needs_data
@pytest.mark.parametrize("name", [name for name in CORE if name != "primal1"])
def test_core_set_equals_highs(name):
    import highspy

    path = DATA / "core" / f"{name}.mps.gz"
    highs = highspy._core._Highs()
    highs.setOptionValue("output_flag", False)
    highs.readModel(str(path))
    theirs = highs.getLp()
    model = read_model(path)
    lp = model.problem
    for field, value in (("c", theirs.col_cost_), ("row_lower", theirs.row_lower_), ("row_upper", theirs.row_upper_),
                         ("lower", theirs.col_lower_), ("upper", theirs.col_upper_)):  # fmt: skip
        np.testing.assert_array_equal(getattr(lp, field), value, err_msg=field)
    assert (float(lp.offset), model.row_names) == (theirs.offset_, tuple(theirs.row_names_))
    with (DATA / "core" / "reference.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["name"] == name)
    assert lp.shape == (int(row["rows"]), int(row["columns"]))
    assert len(theirs.a_matrix_.value_) == int(row["nonzeros"])


@needs_data
def test_quadratic_core_file_is_that_of_the_other_format():
    """PRIMAL1 came to us twice, in fixed MPS and as a `.mat`: one program, up to the rounding of its sides."""
    with pytest.raises(InvalidFile, match=r"line 3584.*read_qps"):
        read_mps(DATA / "core" / "primal1.mps.gz")
    one, other = read_qps(DATA / "core" / "primal1.mps.gz"), read_qps(DATA.parent / "qp" / "PRIMAL1.mat")
    for name in ("c", "lower", "upper", "row_lower", "row_upper"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-12, err_msg=name)
    np.testing.assert_array_equal(one.Q.diagonal, other.Q.diagonal)
    np.testing.assert_array_equal(one.A.values, other.A.values)
