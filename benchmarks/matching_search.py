"""A search over small graphs for the one on which a policy does worst against the best adaptive policy.

A graph: n offline vertices, n groups of `group` identical arrivals in order, `p = 1/group`, and an n x n table of edges
between them. One step measures all tables that differ in one edge, on the same random numbers and in one batch (`vmap`
over graphs and paths), and takes the worst; it ends where no change helps or the steps are spent. A minimum over noisy
measurements looks too low, so the end point is measured again with numbers of its own.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import pdopt
from benchmarks.matching_reference import optimum


class Worst(NamedTuple):
    """The worst table found, its ratio measured afresh with standard error, the exact optimum, tables looked at."""

    edges: np.ndarray
    ratio: float
    error: float
    optimum: float
    seen: int


def search(policy: Any, n: int, group: int, *, paths: int, steps: int, seed: int, confirm: int) -> Worst:
    """Descend from two tables (triangular; left-heavy) and a random one; the worst end point, measured again."""
    rng = np.random.default_rng(seed)
    heavy = np.eye(n, dtype=bool)
    heavy[n // 2 :] = True
    starts = [np.tril(np.ones((n, n), bool)), heavy, rng.random((n, n)) < 0.6]
    known: dict[bytes, float] = {}
    ends = [_descend(policy, edges, group, paths, steps, jax.random.key(seed), known) for edges in starts]
    edges = min(ends, key=lambda table: known[table.tobytes()])
    p = _probabilities(edges, group)
    run = pdopt.match_online(
        pdopt.StochasticMatching(p, dtype=jnp.float32), policy, jax.random.key(seed + 1), paths=confirm
    )
    rewards, best = np.asarray(run.reward, np.float64), optimum(p, np.ones(n))
    return Worst(edges, rewards.mean() / best, rewards.std() / np.sqrt(confirm) / best, best, len(known))


def _descend(
    policy: Any, edges: np.ndarray, group: int, paths: int, steps: int, key: Any, known: dict[bytes, float]
) -> np.ndarray:
    """Steepest descent on the measured ratio, one edge at a time; `known` keeps every ratio measured."""
    n = len(edges)
    flips = np.zeros((n * n, n, n), bool)
    flips[np.arange(n * n), *np.divmod(np.arange(n * n), n)] = True
    for _ in range(steps):
        tables = np.concatenate([edges[None], edges ^ flips])
        ratios = _measure(policy, tables, group, paths, key)
        known.update({table.tobytes(): float(ratio) for table, ratio in zip(tables, ratios)})
        worst = int(np.argmin(ratios))
        if worst == 0:
            break
        edges = tables[worst]
    return edges


def _measure(policy: Any, tables: np.ndarray, group: int, paths: int, key: Any) -> np.ndarray:
    """Mean reward over the exact optimum for each table; 1 for a table without edges."""
    p = np.array([_probabilities(table, group) for table in tables])
    rewards = np.asarray(_rewards(policy, jnp.asarray(p, jnp.float32), key, paths), np.float64)
    best = np.array([optimum(one, np.ones(len(one))) for one in p])
    return np.where(best > 0, rewards / np.where(best > 0, best, 1), 1.0)


def _rewards(policy: Any, p: Any, key: Any, paths: int) -> Any:
    """Mean rewards, `(graphs,)`, all graphs in one batch on the same keys."""
    return jax.vmap(
        lambda one: jnp.mean(
            pdopt.match_online(pdopt.StochasticMatching(one, check=False), policy, key, paths=paths).reward
        )
    )(p)


def _probabilities(edges: np.ndarray, group: int) -> np.ndarray:
    return np.repeat(edges, group, axis=1) / group
