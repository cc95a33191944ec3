"""`LinearData`: one linear program as plain NumPy and SciPy arrays, the form in which every solver receives it.

    min c'x + offset   subject to   row_lower <= A x <= row_upper,   lower <= x <= upper

With a `Q` the objective has `x'Qx/2` more: a quadratic program travels in the same record. A maximisation is negated
on reading (`sense = -1`); integrality is dropped.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp


class LinearData(NamedTuple):
    """`c (n,)`, `A (m, n)` CSR, bounds (infinite where absent), `offset`; `sense` times the value is the file's own.

    `Q (n, n)` CSR, symmetric, where the objective is quadratic, else None.
    """

    c: np.ndarray
    A: Any  # SciPy CSR
    row_lower: np.ndarray
    row_upper: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    offset: float = 0.0
    sense: float = 1.0
    Q: Any = None

    @property
    def nonzeros(self) -> int:
        """Stored entries of A and Q."""
        return int(self.A.nnz) + (0 if self.Q is None else int(self.Q.nnz))


class Instance(NamedTuple):
    """A named problem; `expected` is "optimal", "primal_infeasible", "dual_infeasible" or "" (unknown)."""

    name: str
    family: str
    data: LinearData
    expected: str = ""
    objective: float | None = None


def save(data: LinearData, path: Path) -> None:
    """Write the data as one `.npz` file."""
    A = data.A
    Q = {} if data.Q is None else {"Q_values": data.Q.data, "Q_indices": data.Q.indices, "Q_indptr": data.Q.indptr}
    np.savez(
        path, c=data.c, values=A.data, indices=A.indices, indptr=A.indptr, shape=np.array(A.shape),
        row_lower=data.row_lower, row_upper=data.row_upper, lower=data.lower, upper=data.upper,
        offset=np.float64(data.offset), sense=np.float64(data.sense), **Q,
    )  # fmt: skip


def load(path: Path) -> LinearData:
    """Read what `save` wrote."""
    with np.load(path) as f:
        A = sp.csr_matrix((f["values"], f["indices"], f["indptr"]), shape=tuple(f["shape"]))
        vectors = (f[name] for name in ("row_lower", "row_upper", "lower", "upper"))
        Q, n = None, A.shape[1]
        if "Q_values" in f.files:
            Q = sp.csr_matrix((f["Q_values"], f["Q_indices"], f["Q_indptr"]), shape=(n, n))
        return LinearData(f["c"], A, *vectors, offset=float(f["offset"]), sense=float(f["sense"]), Q=Q)


def make(c, A, row_lower, row_upper, lower, upper, offset: float = 0.0, sense: float = 1.0) -> LinearData:
    """`LinearData` from array-likes: float64, sorted CSR without duplicates, 1e20 and beyond made infinite."""
    matrix = sp.csr_matrix(A, dtype=np.float64)
    matrix.sum_duplicates()
    bounds = [np.array(v, np.float64) for v in (row_lower, row_upper, lower, upper)]
    for bound in bounds:
        bound[bound >= 1e20] = np.inf
        bound[bound <= -1e20] = -np.inf
    return LinearData(np.array(c, np.float64), matrix, *bounds, offset=float(offset), sense=float(sense))


def read_mps(path: Path) -> LinearData | None:
    """Read an MPS file (gzipped or not) with HiGHS; None for a quadratic program.

    Raises:
        ValueError: HiGHS cannot read the file.
    """
    import highspy

    with _output_to_errors():
        highs = highspy.Highs()
        highs.silent()
        status = highs.readModel(str(path))
    if status == highspy.HighsStatus.kError:
        raise ValueError(f"{path.name} cannot be read as MPS")
    model = highs.getModel()
    if model.hessian_.dim_ > 0:
        return None
    lp = model.lp_
    matrix = lp.a_matrix_
    if matrix.format_ != highspy.MatrixFormat.kColwise:
        raise ValueError(f"{path.name}: HiGHS returned its matrix by rows")
    A = sp.csc_matrix(
        (np.array(matrix.value_), np.array(matrix.index_), np.array(matrix.start_)), shape=(lp.num_row_, lp.num_col_)
    )
    sense = -1.0 if lp.sense_ == highspy.ObjSense.kMaximize else 1.0
    return make(
        sense * np.array(lp.col_cost_), A, lp.row_lower_, lp.row_upper_, lp.col_lower_, lp.col_upper_,
        sense * lp.offset_, sense,
    )  # fmt: skip


@contextlib.contextmanager
def _output_to_errors() -> Iterator[None]:
    """Send descriptor 1 to standard error: HiGHS prints a banner even when silent, and `--json` owns the output."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
