"""Convex quadratic programs: the Maros-Meszaros files of the data folder, generated ones with a seed elsewhere.

The files are read here once more, and not by `pdopt.read_qps`, which is one of the things compared.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.io import loadmat

from benchmarks.data import Instance, LinearData, make

INFINITE = 0.999e20  # some files have 9.999999999999966e19
QUICK = 5_000  # nonzeros of A (bounds included) and P, as the reference table counts them
FULL = 100_000

# Optima that Maros and Meszaros published (1999, found by BPMPD) where the data folder's table, made with Clarabel, has
# others: on these Clarabel ends short of 1e-8. Elsewhere the two tables agree to 1e-5, but for constants that the files
# leave out.
PUBLISHED = {
    "LISWET1": 3.6122402e01, "LISWET7": 4.9884089e02, "LISWET9": 1.9632513e03, "LISWET11": 4.9523957e01,
    "UBH1": 1.1160008e00, "YAO": 1.9770426e02,
}  # fmt: skip


def quadratic_instances(folder: Path, full: bool, seed: int, source: str = "auto") -> list[Instance]:
    """All files of `folder/qp` below 5 000 (quick) or 100 000 (full) nonzeros; else generated ones."""
    place = folder / "qp"
    if source != "auto" or not place.is_dir():
        sizes = ((5, 8),) if source == "tiny" else ((20, 40), (50, 80), (100, 200), (200, 100))
        return [known_optimum(m, n, seed + k) for k, (m, n) in enumerate(sizes)]
    with (place / "reference.csv").open() as file:
        known = list(csv.DictReader(file))
    chosen = [row for row in known if int(row["nonzeros"]) < (FULL if full else QUICK)]
    return [read_mat(place / f"{row['name']}.mat", row["objective"]) for row in chosen]


def read_mat(path: Path, objective: str = "") -> Instance:
    """`min x'Px/2 + q'x + r`, `l <= Ax <= u`; the last n rows of A are the bounds of the variables."""
    found = loadmat(path)
    P: Any = sp.csr_matrix(found["P"])
    A: Any = sp.csr_matrix(found["A"])
    n = P.shape[0]
    m = A.shape[0] - n
    if (A[m:] != sp.identity(n, format="csr")).nnz:
        raise ValueError(f"{path.name}: the last {n} rows are no identity")
    low, high = found["l"].ravel().astype(np.float64), found["u"].ravel().astype(np.float64)
    low, high = np.where(low <= -INFINITE, -np.inf, low), np.where(high >= INFINITE, np.inf, high)
    if path.stem in PUBLISHED:
        objective = str(PUBLISHED[path.stem] - _dropped(P.diagonal(), found["q"].ravel()))
    data = make(found["q"].ravel(), A[:m], low[:m], high[:m], low[m:], high[m:], float(found["r"].ravel()[0]))
    return Instance(path.stem, "maros-meszaros", with_curvature(data, P), "optimal", float(objective or "nan"))


def _dropped(diagonal: np.ndarray, q: np.ndarray) -> float:
    """`q'P^-1 q / 2`: of `|x - t|^2 / 2`, which LISWET and YAO minimise, the files have no constant."""
    curved = diagonal > 0
    return float(np.sum(q[curved] ** 2 / diagonal[curved]) / 2)


def with_curvature(data: LinearData, Q: Any) -> LinearData:
    """The data with `x'Qx/2` added to the objective."""
    Q = sp.csr_matrix(Q, dtype=np.float64)
    Q.eliminate_zeros()
    Q.sum_duplicates()
    return data._replace(Q=Q)


def known_optimum(m: int, n: int, seed: int) -> Instance:
    """Sparse, of rank n/2, with all kinds of rows and bounds, around a complementary pair: `c = A'y + z - Qx`."""
    rng = np.random.default_rng(seed)
    A = sp.random(m, n, density=min(1.0, 5 / n), rng=rng, data_rvs=rng.standard_normal).tocsr()
    R = sp.random(n // 2, n, density=min(1.0, 3 / n), rng=rng, data_rvs=rng.standard_normal)
    Q = (R.T @ R).tocsr()
    x, kind, bound = rng.standard_normal(n), rng.integers(0, 4, m), rng.integers(0, 3, n)
    row, slack = A @ x, rng.uniform(0.1, 1, m)
    low = np.select([kind == 0, kind == 1, kind == 2], [row, row, row - slack], -np.inf)
    high = np.select([kind == 0, kind == 1, kind == 2], [row, np.inf, row], row + slack)
    y = np.select([kind == 0, kind == 1, kind == 2], [rng.standard_normal(m), slack, -slack], 0.0)
    lower = np.select([bound == 0, bound == 1], [x, x - 1], -np.inf)
    upper = np.select([bound == 0, bound == 1], [x + 1, x + 1], np.inf)
    z = np.where(bound == 0, rng.uniform(0.1, 1, n), 0.0)
    c = A.T @ y + z - Q @ x
    data = with_curvature(make(c, A, low, high, lower, upper), Q)
    return Instance(f"known-{m}x{n}", "generated", data, "optimal", float(x @ (Q @ x) / 2 + c @ x))
