"""Independent references for online matching, NumPy and HiGHS: the exact optimum, the programs in full, a plain loop.

Nothing here uses pdopt's code, apart from the keys that `match_online` documents, so that both sides see the same luck.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


def optimum(p: np.ndarray, weights: np.ndarray) -> float:
    """The best adaptive policy that knows the graph, by dynamic programming over the sets of free vertices.

    `V_v(F) = max(V_{v+1}(F), max over u in F of p_uv (w_u + V_{v+1}(F - u)) + (1 - p_uv) V_{v+1}(F))`, 2^n T states.
    """
    n, T = p.shape
    sets = np.arange(1 << n)
    value = np.zeros(1 << n)
    for v in range(T - 1, -1, -1):
        best = value.copy()
        for u in range(n):
            free = (sets >> u) & 1 == 1
            without = value[sets & ~(1 << u)]
            tried = p[u, v] * (weights[u] + without) + (1 - p[u, v]) * value
            best = np.where(free, np.maximum(best, tried), best)
        value = best
    return float(value[-1])


class Values(NamedTuple):
    """Optimal values of the programs over all sets."""

    stochastic: float
    configuration: float
    matching: float
    unweighted: float


def programs(p: np.ndarray, weights: np.ndarray) -> Values:
    """The four programs by HiGHS, with a column for each of the `n (2^T - 1)` sets.

    `unweighted` is the tempting mistake: it earns `1 - prod (1 - p)` and yet uses every member fully.
    """
    fails = lambda q: float(np.prod(1 - q))
    full = lambda q: np.ones(len(q))
    needed = lambda q: np.concatenate([[1.0], np.cumprod(1 - q)[:-1]])
    return Values(
        enumerated(p, weights, lambda q: 1 - fails(q), needed),
        enumerated(p, weights, lambda q: min(1.0, float(q.sum())), full),
        matching(p, weights),
        enumerated(p, weights, lambda q: 1 - fails(q), full),
    )


def enumerated(p: np.ndarray, weights: np.ndarray, worth: Callable[[Any], float], use: Callable[[Any], Any]) -> float:
    """A configuration program with all its columns; `worth(q)` and `use(q)` see the probabilities of a set in order."""
    n, T = p.shape
    earns, columns = [], []
    for u in range(n):
        edges = np.flatnonzero(p[u])
        for code in range(1, 1 << len(edges)):
            members = edges[[k for k in range(len(edges)) if code >> k & 1]]
            column = np.zeros(n + T)
            column[u] = 1
            column[n + members] = use(p[u, members])
            earns.append(weights[u] * worth(p[u, members]))
            columns.append(column)
    return _highs(np.array(earns), np.array(columns).T)


def compact(p: np.ndarray, weights: np.ndarray) -> float:
    """The stochastic configuration program without sets: `t_uv + sum_{v' < v} p_uv' t_uv' <= 1`, `sum_u t_uv <= 1`.

    t is the chance that u is tried by v; the first rows say that u must still be free. Equal in value, not in form.
    """
    n, T = p.shape
    rows = []
    for u in range(n):
        for v in range(T):
            row = np.zeros((n, T))
            row[u, :v] = p[u, :v]
            row[u, v] = 1
            rows.append(row.ravel())
    for v in range(T):
        row = np.zeros((n, T))
        row[:, v] = 1
        rows.append(row.ravel())
    return _highs((p * weights[:, None]).ravel(), np.array(rows))


def matching(p: np.ndarray, weights: np.ndarray) -> float:
    """The matching program by HiGHS."""
    n, T = p.shape
    offline = np.kron(np.eye(n), np.ones(T)) * p.ravel()
    online = np.tile(np.eye(T), n)
    return _highs((p * weights[:, None]).ravel(), np.concatenate([offline, online]))


def _highs(worth: np.ndarray, rows: np.ndarray) -> float:
    from scipy.optimize import linprog

    found = linprog(-worth, rows, np.ones(len(rows)), method="highs")
    if found.status != 0:
        raise RuntimeError(f"HiGHS: {found.message}")
    return -float(found.fun)


class Luck(NamedTuple):
    """The numbers of one path: `ranks (n,)`, `choice (T, n)`, `outcome (T,)`, all U(0, 1)."""

    ranks: np.ndarray
    choice: np.ndarray
    outcome: np.ndarray


def luck(key: Any, path: int, n: int, T: int, dtype: Any) -> Luck:
    """The numbers that `match_online` draws for a path, by the key discipline of its docstring."""
    import jax
    import jax.numpy as jnp

    once, choices, nature = jax.random.split(jax.random.fold_in(key, path), 3)
    steps = jnp.arange(T, dtype=jnp.uint32)
    choice = jax.vmap(lambda t: jax.random.uniform(jax.random.fold_in(choices, t), (n,), dtype))(steps)
    outcome = jax.vmap(lambda t: jax.random.uniform(jax.random.fold_in(nature, t), (), dtype))(steps)
    return Luck(*(np.asarray(a) for a in (jax.random.uniform(once, (n,), dtype), choice, outcome)))


def outcomes(key: Any, paths: int, T: int, dtype: Any) -> np.ndarray:
    """`luck(...).outcome` of the first `paths` paths, `(paths, T)`, drawn in one batch."""
    import jax
    import jax.numpy as jnp

    def one(path: Any) -> Any:
        nature = jax.random.split(jax.random.fold_in(key, path), 3)[2]
        step = lambda t: jax.random.uniform(jax.random.fold_in(nature, t), (), dtype)
        return jax.vmap(step)(jnp.arange(T, dtype=jnp.uint32))

    return np.asarray(jax.jit(jax.vmap(one))(jnp.arange(paths, dtype=jnp.uint32)))


SCORES: dict[str, Callable[..., Any]] = {
    "Balance": lambda p, w, load, ranks, choice: p * w * np.exp(-load),
    "Ranking": lambda p, w, load, ranks, choice: p * w * (1 - np.exp(ranks - 1)),
    "Greedy": lambda p, w, load, ranks, choice: p * w,
    "UniformRandom": lambda p, w, load, ranks, choice: choice,
}


def loop(p: np.ndarray, weights: np.ndarray, policy: str, drawn: Luck) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One path by a plain loop: whom each arrival tried (-1: nobody), who succeeded, the loads."""
    n, T = p.shape
    free, load, tried = np.ones(n, bool), np.zeros(n, p.dtype), np.full(T, -1)
    score = SCORES[policy]
    for v in range(T):
        eligible = free & (p[:, v] > 0)
        if not eligible.any():
            continue
        scores = score(p[:, v], weights, load, drawn.ranks, drawn.choice[v])
        u = int(np.argmax(np.where(eligible, scores, -np.inf)))
        tried[v] = u
        load[u] += p[u, v]
        if drawn.outcome[v] < p[u, v]:
            free[u] = False
    return tried, ~free, load


def together(p: np.ndarray, weights: np.ndarray, outcome: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Balance on all paths at once, `outcome (paths, T)`: who succeeded and the loads, `(paths, n)` each."""
    paths, n = len(outcome), len(p)
    free, load = np.ones((paths, n), bool), np.zeros((paths, n), p.dtype)
    every = np.arange(paths)
    for v in range(p.shape[1]):
        eligible = free & (p[:, v] > 0)
        u = np.argmax(np.where(eligible, p[:, v] * weights * np.exp(-load), -np.inf), axis=1)
        some = eligible.any(axis=1)
        load[every, u] += np.where(some, p[u, v], 0)
        free[every, u] &= ~(some & (outcome[:, v] < p[u, v]))
    return ~free, load
