"""Conic programs for tests, feasible and bounded by construction, and Clarabel's word on them."""

import clarabel
import numpy as np
import scipy.sparse as sp

INF = np.inf


def conic(seed, m=9, n=8, rows=((3, 4, 5), (8, 6)), columns=((7, 1, 2),), dense=True):
    """A feasible and bounded program: A x0 lies inside, and c is A'y0 + z0 with y0, z0 inside the dual cones."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(m, n))
    if not dense:
        A *= rng.uniform(size=A.shape) < 0.05
        A[np.arange(m), rng.integers(0, n, m)] = 1.0
    x0, y0, z0 = rng.normal(size=n), np.zeros(m), np.zeros(n)
    lower, upper = np.full(n, -INF), np.full(n, INF)
    lower[0], upper[3] = x0[0] - 1, x0[3] + 1

    def inside(size):
        v = rng.normal(size=size)
        v[0] = np.linalg.norm(v[1:]) + rng.uniform(0.1, 1)
        return v

    for cone in columns:
        x0[list(cone)], z0[list(cone)] = inside(len(cone)), inside(len(cone))
    low, high = A @ x0 - rng.uniform(0, 1, m), A @ x0 + rng.uniform(0, 1, m)
    low[0] = high[0] = (A @ x0)[0]
    low[1], high[2] = -INF, INF
    y0[:3] = rng.normal(), -rng.uniform(), rng.uniform()
    for cone in rows:
        k = list(cone)
        low[k], high[k], y0[k] = (A @ x0)[k] - inside(len(k)), INF, inside(len(k))
    c = A.T @ y0 + z0
    A = A if dense else sp.csr_matrix(A)
    return {"c": c, "A": A, "row_lower": low, "row_upper": high, "lower": lower, "upper": upper, "offset": 0.5,
            "cone_rows": [list(k) for k in rows], "cone_columns": [list(k) for k in columns]}  # fmt: skip


def by_clarabel(d):
    """Value, x and norm of the multipliers: two-sided rows and bounds as half spaces, cones as they are."""
    A, n = sp.csr_matrix(d["A"]), len(d["c"])
    held = [i for cone in d["cone_rows"] for i in cone]
    rest = np.setdiff1d(np.arange(A.shape[0]), held)
    eye = sp.identity(n, format="csr")
    up, down = rest[np.isfinite(d["row_upper"][rest])], rest[np.isfinite(d["row_lower"][rest])]
    hi, lo = np.flatnonzero(np.isfinite(d["upper"])), np.flatnonzero(np.isfinite(d["lower"]))
    blocks = [A[up], -A[down], eye[hi], -eye[lo]]
    sides = [d["row_upper"][up], -d["row_lower"][down], d["upper"][hi], -d["lower"][lo]]
    cones = [clarabel.NonnegativeConeT(sum(len(s) for s in sides))]
    for k in d["cone_rows"]:
        blocks, sides = [*blocks, -A[k]], [*sides, -d["row_lower"][k]]
        cones.append(clarabel.SecondOrderConeT(len(k)))
    for k in d["cone_columns"]:
        blocks, sides = [*blocks, -eye[k]], [*sides, np.zeros(len(k))]
        cones.append(clarabel.SecondOrderConeT(len(k)))
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.tol_gap_rel, settings.tol_gap_abs, settings.tol_feas = False, 1e-10, 1e-10, 1e-10
    solver = clarabel.DefaultSolver(
        sp.csc_matrix((n, n)), d["c"], sp.vstack(blocks, format="csc"), np.concatenate(sides), cones, settings
    )
    found = solver.solve()
    assert str(found.status) == "Solved"
    return found.obj_val + d["offset"], np.array(found.x), float(np.linalg.norm(found.z))
