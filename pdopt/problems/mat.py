"""Quadratic programs in MATLAB files of the OSQP benchmarks: fields P, q, r, A, l, u.

    min  x'Px/2 + q'x + r    subject to   l <= A x <= u,         P (n, n) symmetric, A (m + n, n)

A number of size 1e20 is infinite, also one that misses it by rounding (some files have 9.999999999999966e19). The
bounds of the variables stand as rows of an identity, the last n of A: they are split off. A file without that block has
rows only, and free variables; a note says so.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from pdopt.errors import InvalidFile

INFINITE = 1e20 * (1 - 1e-6)
FIELDS = ("P", "q", "A", "l", "u")  # and r, 0 where absent


class Arrays(NamedTuple):
    """The data of a program on the host: `Q` None for a linear one, bounds infinite where absent."""

    Q: Any
    c: np.ndarray
    A: Any
    row_lower: np.ndarray
    row_upper: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    offset: float = 0.0
    notes: tuple[str, ...] = ()


def read_arrays(path: str | Path) -> Arrays:
    """The data of a `.mat` file.

    Raises:
        InvalidFile: missing, not such a file, a field that is absent, not numbers, or of a size that does not fit.

    Example:
        >>> read_arrays("absent.mat")
        Traceback (most recent call last):
        ...
        pdopt.errors.InvalidFile: absent.mat: no such file
    """
    path = Path(path)
    found = _load(path)
    for name in FIELDS:
        if name not in found:
            raise InvalidFile(path, f"no field {name!r}; expected {', '.join(FIELDS)} and r")
    P, A = (_matrix(path, name, found[name]) for name in ("P", "A"))
    n = P.shape[0]
    for name, matrix in (("P", P), ("A", A)):
        expected = (n, n) if name == "P" else (A.shape[0], n)
        if matrix.shape != expected:
            raise InvalidFile(path, f"{name} has shape {matrix.shape}; expected {expected} because P has {n} rows")
    rows = A.shape[0]
    q, l, u = (
        _vector(path, name, found[name], size, because)
        for name, size, because in (
            ("q", n, f"P has {n} rows"), ("l", rows, f"A has {rows} rows"), ("u", rows, f"A has {rows} rows")
        )
    )  # fmt: skip
    offset = _vector(path, "r", found.get("r", 0.0), 1, "it is a number")[0]
    l, u = np.where(l <= -INFINITE, -np.inf, l), np.where(u >= INFINITE, np.inf, u)
    m = rows - n
    if m < 0 or (A[m:] != sp.eye_array(n, format="csr")).nnz:
        notes = ("the last rows of A are no identity: all are rows, and the variables are free",)
        free = np.full(n, np.inf)
        return Arrays(P, q, A, l, u, -free, free, float(offset), notes)
    return Arrays(P, q, A[:m], l[:m], u[:m], l[m:], u[m:], float(offset))


def _load(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        with path.open("rb") as file:
            return loadmat(file, variable_names=(*FIELDS, "r"))
    except FileNotFoundError:
        raise InvalidFile(path, "no such file") from None
    except NotImplementedError:
        raise InvalidFile(path, "a MATLAB 7.3 file (HDF5), which is not read; save it with -v7") from None
    except OSError as error:
        raise InvalidFile(path, f"cannot be read ({error.strerror or error})") from error
    except Exception as error:  # SciPy raises whatever its parser meets first
        raise InvalidFile(path, f"not a MATLAB file, or a damaged one ({type(error).__name__}: {error})") from error


def _numbers(path: Path, name: str, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise InvalidFile(path, f"{name} holds {array.dtype}; expected real numbers")
    array = array.astype(np.float64)
    if np.isnan(array).any():
        raise InvalidFile(path, f"{name} has NaN")
    return array


def _matrix(path: Path, name: str, value: Any) -> Any:
    if sp.issparse(value):
        matrix = sp.csr_array(value)
        matrix.data = _numbers(path, name, matrix.data)
    else:
        matrix = sp.csr_array(np.atleast_2d(_numbers(path, name, value)))
    matrix.eliminate_zeros()
    return matrix


def _vector(path: Path, name: str, value: Any, size: int, because: str) -> np.ndarray:
    array = _numbers(path, name, value.toarray() if sp.issparse(value) else value)
    if array.size != size:
        raise InvalidFile(path, f"{name} has {array.size} entries; expected {size} because {because}")
    return array.ravel()
