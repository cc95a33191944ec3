"""Reading programs from MPS, QPS and LP files, with every silent repair of the reader made an error or a note.

    min or max  x'Qx/2 + c'x + offset    subject to   row_lower <= A x <= row_upper,   lower <= x <= upper

A file without a quadratic objective is a linear program. A `.mat` file goes to `pdopt.problems.mat`.

HiGHS reads the file. Its answer is believed only when its status is kOk, its log holds no warning, our own scan of MPS
text (`pdopt.problems.mps_scan`) found nothing, and both counted the same rows, columns and nonzeros. Crossed bounds
are no error: such a model is infeasible, and the solver says so.
"""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.sparse

from pdopt.errors import InvalidFile, InvalidProblem
from pdopt.problems.linear import LinearProgram
from pdopt.problems.mat import Arrays, read_arrays
from pdopt.problems.mps_scan import Scan, read_text, scan_mps
from pdopt.problems.quadratic import QuadraticProgram

_MPS = (".mps", ".mps.gz", ".qps", ".qps.gz")
_SUFFIXES = (*_MPS, ".lp", ".lp.gz", ".mat")


class Model(NamedTuple):
    """A linear or quadratic program with what only its file knows.

    Attributes:
        problem: a `LinearProgram`, or a `QuadraticProgram` where the file has a quadratic objective; in its own sense.
        name: NAME of an MPS file, else the file's own name.
        row_names, column_names: in the order of the problem's rows and columns; empty where the file has none.
        integers: how many integer columns were relaxed.
        notes: sentences for the user: what was relaxed, left out or read in one of several customary ways.
    """

    problem: Any
    name: str
    row_names: tuple[str, ...]
    column_names: tuple[str, ...]
    integers: int
    notes: tuple[str, ...]


class _Reading(NamedTuple):
    """What HiGHS made of a file: its model (whole, with a Hessian), whether its status was kOk, its log's lines."""

    model: Any
    status: str
    warnings: tuple[str, ...]
    errors: tuple[str, ...]


def read_model(path: str | Path, *, dtype: Any = None, strict: bool = True, relax_integers: bool = True) -> Model:
    """Read an `.mps`, `.qps` or `.lp` file, also with `.gz`, or a `.mat` file, keeping its names.

    Args:
        path: the file.
        dtype: of the problem's data; default float64, whatever JAX's own default is.
        strict: refuse what HiGHS would ignore or guess; otherwise its reading is kept and `notes` say what was found.
        relax_integers: drop integrality and say so; otherwise a file with integer columns is refused.

    Raises:
        InvalidFile: with the file, and the line and field where known.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "two.mps"
        ...     size = file.write_text("ROWS\\n N cost\\n G r\\nCOLUMNS\\n x cost 1 r 2\\nRHS\\n b r 4\\nENDATA\\n")
        ...     model = read_model(file)
        >>> model.column_names, model.problem.shape
        (('x',), (1, 1))
    """
    return _read(Path(path), dtype, strict, relax_integers)[0]


def read_mps(path: str | Path, *, dtype: Any = None, strict: bool = True, relax_integers: bool = True) -> LinearProgram:
    """The linear program of a file, without its names; see `read_model`.

    Raises:
        InvalidFile: also for a quadratic objective, which `read_qps` reads.

    Example:
        >>> read_mps("absent.mps")
        Traceback (most recent call last):
        ...
        pdopt.errors.InvalidFile: absent.mps: no such file
    """
    model, line = _read(Path(path), dtype, strict, relax_integers)
    if not isinstance(model.problem, LinearProgram):
        raise InvalidFile(path, "quadratic objective: read_qps reads it, as a QuadraticProgram", line)
    return model.problem


def read_qps(
    path: str | Path, *, dtype: Any = None, strict: bool = True, relax_integers: bool = True
) -> QuadraticProgram:
    """The quadratic program of a `.qps`, `.mps`, `.lp` or `.mat` file; Q = 0 where its objective is linear.

    Arguments and errors as for `read_model`; a Q of the wrong sign is refused (`QuadraticProgram`).

    Example:
        >>> text = "ROWS\\n N cost\\n G r\\nCOLUMNS\\n x cost 1 r 2\\nRHS\\n b r 4\\nQUADOBJ\\n x x 3\\nENDATA\\n"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "one.qps"
        ...     size = file.write_text(text)
        ...     qp = read_qps(file)
        >>> print(qp.Q.entries, qp.c)
        [3.] [1.]
    """
    problem = _read(Path(path), dtype, strict, relax_integers)[0].problem
    if isinstance(problem, QuadraticProgram):
        return problem
    rows = (problem.A, problem.row_lower, problem.row_upper, problem.lower, problem.upper)
    Q = np.zeros(problem.shape[1], problem.c.dtype)
    return QuadraticProgram(Q, problem.c, *rows, problem.offset, problem.maximise, dtype=problem.c.dtype)


def _read(path: Path, dtype: Any, strict: bool, relax_integers: bool) -> tuple[Model, int | None]:
    """The model, and the line of its quadratic section where it is known."""
    lower = path.name.lower()
    if not lower.endswith(_SUFFIXES):
        raise InvalidFile(path, f"unknown kind of file; expected a name that ends in {', '.join(_SUFFIXES)}")
    if lower.endswith(".mat"):
        arrays = read_arrays(path)
        return Model(_problem(path, arrays, dtype), path.name.split(".")[0], (), (), 0, arrays.notes), None
    text = read_text(path)
    reading = _read_highs(path, text)
    notes: list[str] = []
    scan = None
    if lower.endswith(_MPS):
        scan = _scan(path, text, reading, strict, notes)
    _judge(path, reading, strict, notes)
    if scan is not None:
        _compare(path, scan, reading.model, strict, notes)
    model = _build(path, reading.model, scan, dtype, relax_integers, notes)
    return model, None if scan is None else scan.quadratic_line


def _read_highs(path: Path, text: bytes) -> _Reading:
    import highspy

    # The wrapper class `highspy.Highs` prints HiGHS's banner when it is made, before any option can silence it.
    highs = highspy._core._Highs()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        highs.setOptionValue("log_to_console", False)
        highs.setOptionValue("log_file", str(log))
        known = path
        if ".qps" in path.name.lower():  # a suffix that HiGHS does not know
            known = Path(folder) / "model.mps"
            known.write_bytes(text)
        status = highs.readModel(str(known))
        highs.setOptionValue("log_file", "")  # closes the file
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    found = {kind: tuple(line.split(":", 1)[1].strip() for line in lines if line.startswith(kind))
             for kind in ("WARNING", "ERROR")}  # fmt: skip
    return _Reading(highs.getModel(), status.name, found["WARNING"], found["ERROR"])


def _fixed(reading: _Reading) -> bool:
    """Whether HiGHS fell back to fixed format because names hold blanks, and got through."""
    return reading.status == "kOk" and any(map(_about_fixed, reading.warnings))


def _about_fixed(warning: str) -> bool:
    return "fixed format" in warning


def _scan(path: Path, text: bytes, reading: _Reading, strict: bool, notes: list[str]) -> Scan | None:
    try:
        scan = scan_mps(path, text, fixed=_fixed(reading))
    except InvalidFile as error:
        if strict or reading.status == "kError":
            raise
        notes.append(f"{error} (HiGHS's reading kept)")
        return None
    notes.extend(scan.notes)
    return scan


def _judge(path: Path, reading: _Reading, strict: bool, notes: list[str]) -> None:
    """Errors of HiGHS always refuse a file, warnings and any status but kOk unless `strict` is off."""
    if reading.status == "kError":
        raise InvalidFile(path, "; ".join(reading.errors) or "HiGHS cannot read it")
    warnings = reading.warnings
    if _fixed(reading):
        notes.append("names hold blanks: read in fixed format, by column position")
        warnings = tuple(line for line in warnings if not _about_fixed(line))
    if strict and (warnings or reading.status != "kOk"):
        raise InvalidFile(path, "; ".join(warnings) or f"HiGHS answered {reading.status}")
    notes.extend(warnings)


def _compare(path: Path, scan: Scan, model: Any, strict: bool, notes: list[str]) -> None:
    lp, quadratic = model.lp_, int(np.count_nonzero(model.hessian_.value_))
    read = {"rows": lp.num_row_, "columns": lp.num_col_, "nonzeros": len(lp.a_matrix_.value_),
            "maximise": lp.sense_.name == "kMaximize", "quadratic": quadratic}  # fmt: skip
    for what, count in read.items():
        if getattr(scan, what) != count:
            message = f"HiGHS read {what} = {count}, the file has {getattr(scan, what)}"
            if strict:
                raise InvalidFile(path, message)
            notes.append(message)


def _build(path: Path, model: Any, scan: Scan | None, dtype: Any, relax_integers: bool, notes: list[str]) -> Model:
    lp = model.lp_
    kinds = [kind.name for kind in lp.integrality_]
    integers = sum(kind in ("kInteger", "kSemiInteger") for kind in kinds)
    semi = np.array([kind.startswith("kSemi") for kind in kinds], bool)
    lower, upper = np.array(lp.col_lower_, np.float64), np.array(lp.col_upper_, np.float64)
    if (integers or semi.any()) and not relax_integers:
        raise InvalidFile(path, f"{integers} integer and {int(semi.sum())} semi-continuous columns; pdopt solves their "
                          "relaxation only if told to (relax_integers)")  # fmt: skip
    if integers:
        notes.append(f"{integers} integer columns relaxed")
    if semi.any():  # x = 0 or lower <= x <= upper: the smallest interval around both
        lower[semi], upper[semi] = np.minimum(lower[semi], 0), np.maximum(upper[semi], 0)
        notes.append(f"{int(semi.sum())} semi-continuous columns relaxed to intervals that hold 0")
    A, shape = lp.a_matrix_, (lp.num_row_, lp.num_col_)
    Q = _hessian(model.hessian_)
    try:
        rows, columns = tuple(lp.row_names_), tuple(lp.col_names_)
    except UnicodeDecodeError as error:
        raise InvalidFile(path, f"names are not UTF-8 text ({error})") from error
    arrays = Arrays(
        Q, np.array(lp.col_cost_, np.float64), _columns(A, shape), np.array(lp.row_lower_, np.float64),
        np.array(lp.row_upper_, np.float64), lower, upper, lp.offset_,
    )  # fmt: skip
    problem = _problem(path, arrays, dtype, lp.sense_.name == "kMaximize")
    name = scan.name if scan is not None and scan.name else path.name.split(".")[0]
    return Model(problem, name, rows, columns, integers, tuple(notes))


def _columns(matrix: Any, shape: tuple[int, int]) -> Any:
    """HiGHS's matrix, stored by columns, as SciPy's."""
    parts = (np.array(matrix.value_, np.float64), np.array(matrix.index_), np.array(matrix.start_))
    return scipy.sparse.csc_matrix(parts, shape=shape)


def _hessian(hessian: Any) -> Any:
    """Q from HiGHS's lower triangle; None where it is absent or zero."""
    if not np.count_nonzero(hessian.value_):
        return None
    n = hessian.dim_
    triangle = _columns(hessian, (n, n))
    return (triangle + triangle.T - scipy.sparse.diags(triangle.diagonal())).tocsc()


def _problem(path: Path, arrays: Arrays, dtype: Any, maximise: bool = False) -> Any:
    """The linear or quadratic program of the arrays."""
    Q, *linear = arrays[:-1]
    options = {"maximise": maximise, "dtype": jnp.float64 if dtype is None else dtype}
    try:
        return LinearProgram(*linear, **options) if Q is None else QuadraticProgram(Q, *linear, **options)
    except InvalidProblem as error:
        raise InvalidFile(path, str(error)) from error
