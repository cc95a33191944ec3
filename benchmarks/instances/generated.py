"""Structured linear programs made from a seed: assignment, transport, multi-commodity flow, PageRank, known optimum.

Each maker returns an `Instance`; `known_optimum` builds a complementary primal-dual pair first, so its optimal value
is exact up to rounding.
"""

import numpy as np
import scipy.sparse as sp

from benchmarks.data import Instance, make


def assignment(n: int, seed: int) -> Instance:
    """Assign n workers to n jobs at integer cost: `min <C, X>`, rows and columns of X sum to 1, `0 <= X`."""
    rng = np.random.default_rng(seed)
    ones, eye = np.ones((1, n)), sp.identity(n)
    A = sp.vstack([sp.kron(eye, ones), sp.kron(ones, eye)])
    b = np.ones(2 * n)
    data = make(rng.integers(1, 100, n * n), A, b, b, np.zeros(n * n), np.full(n * n, np.inf))
    return Instance(f"assignment-{n}", "generated", data, "optimal")


def transport(m: int, n: int, seed: int) -> Instance:
    """Ship from m sources (at most a) to n sinks (at least b) at distances in the unit square."""
    rng = np.random.default_rng(seed)
    cost = np.linalg.norm(rng.random((m, 1, 2)) - rng.random((1, n, 2)), axis=2).ravel()
    b = rng.uniform(1, 2, n)
    a = rng.uniform(1, 2, m)
    a *= 1.1 * b.sum() / a.sum()
    A = sp.vstack([sp.kron(sp.identity(m), np.ones((1, n))), sp.kron(np.ones((1, m)), sp.identity(n))])
    low, high = np.concatenate([np.full(m, -np.inf), b]), np.concatenate([a, np.full(n, np.inf)])
    data = make(cost, A, low, high, np.zeros(m * n), np.full(m * n, np.inf))
    return Instance(f"transport-{m}x{n}", "generated", data, "optimal")


def multicommodity(nodes: int, commodities: int, seed: int) -> Instance:
    """Flows of several commodities over shared capacities on a ring with chords; unmet demand is bought dearly."""
    rng = np.random.default_rng(seed)
    ring = [(i, (i + 1) % nodes) for i in range(nodes)]
    chords = [tuple(rng.choice(nodes, 2, replace=False)) for _ in range(2 * nodes)]
    arcs = np.array(ring + [(j, i) for i, j in ring] + chords)
    e = len(arcs)
    incidence = sp.coo_matrix((np.tile([1.0, -1.0], e), (arcs.ravel(), np.repeat(np.arange(e), 2))), shape=(nodes, e))
    balance, slack, rhs = [], [], []
    for _ in range(commodities):
        source, sink = rng.choice(nodes, 2, replace=False)
        demand = np.zeros(nodes)
        demand[source], demand[sink] = 1.0, -1.0
        amount = rng.uniform(1, 5)
        balance.append(incidence)
        slack.append(sp.csr_matrix(demand[:, None]))
        rhs.append(amount * demand)
    capacity = sp.hstack([sp.identity(e)] * commodities + [sp.csr_matrix((e, commodities))])
    A = sp.vstack([sp.hstack([sp.block_diag(balance), sp.block_diag(slack)]), capacity])
    demand = np.concatenate(rhs)
    cost = np.concatenate([np.tile(rng.uniform(1, 3, e), commodities), np.full(commodities, 100.0)])
    low, high = np.concatenate([demand, np.full(e, -np.inf)]), np.concatenate([demand, rng.uniform(2, 6, e)])
    size = len(cost)
    data = make(cost, A, low, high, np.zeros(size), np.full(size, np.inf))
    return Instance(f"flow-{nodes}x{commodities}", "generated", data, "optimal")


def pagerank(n: int, seed: int, damping: float = 0.85) -> Instance:
    """PageRank as a feasibility LP (Nesterov 2014): `x >= damping S x + (1 - damping)/n`, `sum x = 1`, `x >= 0`."""
    rng = np.random.default_rng(seed)
    heads = np.repeat(np.arange(n), 3)
    tails = (rng.random(3 * n) ** 2 * n).astype(int)
    S = sp.csc_matrix((np.ones(3 * n), (tails, heads)), shape=(n, n))
    S = S @ sp.diags(1 / np.asarray(S.sum(axis=0)).ravel())
    A = sp.vstack([sp.identity(n) - damping * S, np.ones((1, n))])
    low = np.append(np.full(n, (1 - damping) / n), 1.0)
    high = np.append(np.full(n, np.inf), 1.0)
    data = make(np.zeros(n), A, low, high, np.zeros(n), np.full(n, np.inf))
    return Instance(f"pagerank-{n}", "generated", data, "optimal", 0.0)


def known_optimum(m: int, n: int, seed: int, per_row: int = 6) -> Instance:
    """Random sparse LP built around a complementary pair: half the rows and n - m/2 variables are active."""
    rng = np.random.default_rng(seed)
    rows, columns = np.repeat(np.arange(m), per_row), rng.integers(0, n, m * per_row)
    A = sp.csr_matrix((rng.standard_normal(m * per_row), (rows, columns)), shape=(m, n))
    x, z = rng.uniform(0.5, 2, n), np.zeros(n)
    at_bound = rng.permutation(n)[: n - m // 2]
    x[at_bound], z[at_bound] = 0.0, rng.uniform(0.5, 2, len(at_bound))
    y = np.where(np.arange(m) % 2 == 0, rng.uniform(0.5, 2, m), 0.0)
    row = A @ x
    low = np.where(y > 0, row, row - rng.uniform(0.5, 1, m))
    high = np.where(np.arange(m) % 4 == 0, row, np.inf)
    c = A.T @ y + z
    data = make(c, A, low, high, np.zeros(n), np.full(n, np.inf))
    return Instance(f"known-{m}x{n}", "generated", data, "optimal", float(c @ x))


def infeasible(n: int, seed: int) -> Instance:
    """`known_optimum` with two rows added that contradict each other: `a'x >= 2` and `a'x <= 1`."""
    base = known_optimum(n // 2, n, seed).data
    a = sp.csr_matrix(np.random.default_rng(seed + 1).uniform(0.5, 1, (1, n)))
    A = sp.vstack([base.A, a, a])
    low, high = np.append(base.row_lower, [2.0, -np.inf]), np.append(base.row_upper, [np.inf, 1.0])
    return Instance(
        f"infeasible-{n}", "generated", make(base.c, A, low, high, base.lower, base.upper), "primal_infeasible"
    )


def unbounded(n: int, seed: int) -> Instance:
    """Rows `A x >= b` with A >= 0 and cost `c < 0`: x = (t, ..., t) is feasible for large t and its cost falls."""
    rng = np.random.default_rng(seed)
    A = sp.csr_matrix(rng.random((n // 2, n)) * (rng.random((n // 2, n)) < 0.2)) + sp.csr_matrix(
        np.ones((n // 2, 1))
    ) @ sp.csr_matrix((np.ones(1), ([0], [0])), shape=(1, n))
    high = np.full(n // 2, np.inf)
    data = make(-rng.uniform(0.5, 1, n), A, np.ones(n // 2), high, np.zeros(n), np.full(n, np.inf))
    return Instance(f"unbounded-{n}", "generated", data, "dual_infeasible")


def generated(seed: int, scale: int = 1) -> list[Instance]:
    """The generated set; `scale=0` is two tiny instances for smoke runs, larger scales grow every size."""
    if scale == 0:
        return [known_optimum(6, 10, seed), transport(3, 4, seed)]
    s = scale
    return [
        assignment(15 * s, seed), transport(12 * s, 20 * s, seed), multicommodity(12 * s, 4 * s, seed),
        pagerank(300 * s, seed), known_optimum(120 * s, 200 * s, seed),
        infeasible(60 * s, seed), unbounded(60 * s, seed),
    ]  # fmt: skip
