"""Linear programs that bound online matching from above: columns, the pricing of a column, a bound from any price.

A column (u, S) lets u be tried by the set S of arrivals; `alpha_u >= 0` prices u, `beta_v >= 0` prices arrival v:

    max  sum_u sum_S c_u(S) x_uS    s.t.  sum_S x_uS <= 1,   sum_u sum_{S ni v} q_u(S, v) x_uS <= 1,   x >= 0
    min  sum_u alpha_u + sum_v beta_v    s.t.  alpha_u + sum_{v in S} q_u(S, v) beta_v >= c_u(S)

    family                     c_u(S)                        q_u(S, v)
    Configuration              w_u min(1, sum_S p_uv)        1
    StochasticConfiguration    w_u (1 - prod_S (1 - p_uv))   prod over v' in S before v of (1 - p_uv')

Given any `beta >= 0`, `alpha_u = max_S c_u(S) - q_u(S)'beta` is feasible, so `sum alpha + sum beta` bounds the program:
`certificate`. The inner maximum is the *pricing* problem; the family solves it.

**Who bounds the best adaptive policy?** Let `t_uv` be the chance that a policy, however clever, tries u by v. When v
comes u is still free with probability `1 - sum_{v' < v} p_uv' t_uv'`, so `t_uv` is at most that, and `sum_u t_uv <= 1`:
every policy is a point of the program with these rows, and that program is `StochasticConfiguration` (a column is a
pure plan of a vertex's own two-state decision process; q is the chance that it still needs v). So

    best adaptive policy <= stochastic configuration <= matching
    configuration <= matching <= (1 + max p) configuration

hold always (the last by rounding a fractional set dependently, at most one item above 1). `Configuration` itself
(Huang, Zhang 2020) bounds the best policy for vanishing p; for large p it need not: with `p = [[.6, .6], [0, .55]]` the
best policy earns 1.17 and the configuration program 1.15. The stochastic benchmark is Goyal and Udwani's (2020), the
idea of a configuration program for it that of arXiv 2309.10289; the finite-p form here is ours.
"""

from typing import NamedTuple, Protocol

import numpy as np

from pdopt.types import record

NODES = 20_000  # of the search for one set; what is left open then stays in the bound, which is loosened, never wrong
ROUND = 1e-12  # relative: two values this close are the same set found twice


class Priced(NamedTuple):
    """The best set found for one offline vertex: `members (T,)` bool, its `value`, and a proven `ceiling >= value`."""

    members: np.ndarray
    value: float
    ceiling: float


class Family(Protocol):
    """What a kind of configuration knows; `p (T,)` is one offline vertex's row, `weight` its w, `members (T,)` bool."""

    def worth(self, p: np.ndarray, weight: float, members: np.ndarray) -> float:
        """`c_u(S)`."""
        ...

    def use(self, p: np.ndarray, members: np.ndarray) -> np.ndarray:
        """`q_u(S, v)`, `(T,)`, 0 outside S."""
        ...

    def price(self, p: np.ndarray, weight: float, beta: np.ndarray) -> Priced:
        """`max_S c_u(S) - q_u(S)'beta`."""
        ...


@record
class Configuration:
    """Sets that earn `w min(1, sum p)` and use each member fully (Huang, Zhang 2020, arXiv 2002.01802).

    Pricing is a knapsack with one cap: sorted by `beta_v / p_uv`, the best set is a prefix when all p of the row are
    equal, and otherwise a prefix with its last item taken in part bounds it. Equal p: the sort alone. Unequal p: depth
    first search below that bound, exact unless it meets its limit of nodes.

    Example:
        >>> Configuration().price(np.array([0.5, 0.5, 0.5]), 1.0, np.array([0.3, 0.1, 0.2])).members.tolist()
        [False, True, True]
    """

    def worth(self, p: np.ndarray, weight: float, members: np.ndarray) -> float:
        """`w min(1, sum_S p)`."""
        return weight * min(1.0, float(p[members].sum()))

    def use(self, p: np.ndarray, members: np.ndarray) -> np.ndarray:
        """1 for every member."""
        return members.astype(np.float64)

    def price(self, p: np.ndarray, weight: float, beta: np.ndarray) -> Priced:
        """The best set; arrivals with `beta_v >= w p_v` earn nothing in any set and are left out."""
        useful = np.flatnonzero((p > 0) & (beta < weight * p))
        order = useful[np.argsort(beta[useful] / p[useful], kind="stable")]
        share, cost = p[order], beta[order]
        if len(order) and share.max() == share.min():
            values = weight * np.minimum(np.cumsum(share), 1) - np.cumsum(cost)
            best = int(np.argmax(values))
            taken, value = np.arange(len(order)) <= best, float(values[best])
            ceiling = value
        else:
            taken, value, ceiling = _search(share, cost, weight)
        members = np.zeros(len(p), bool)
        members[order[taken]] = True
        return Priced(members, value, ceiling)


@record
class StochasticConfiguration:
    """Sets tried in order until one try succeeds: earn `w (1 - prod (1 - p))`, use v only while u is still free.

    Pricing is a decision process with two states, solved backwards exactly: with V the best value from v on while free,
    `V_v = max(V_{v+1}, w p_v - beta_v + (1 - p_v) V_{v+1})`.

    Example:
        >>> found = StochasticConfiguration().price(np.array([0.5, 0.5]), 1.0, np.array([0.0, 0.2]))
        >>> found.members.tolist(), round(found.value, 3)
        ([True, True], 0.65)
    """

    def worth(self, p: np.ndarray, weight: float, members: np.ndarray) -> float:
        """`w (1 - prod_S (1 - p))`."""
        return weight * float(1 - np.prod(1 - p[members]))

    def use(self, p: np.ndarray, members: np.ndarray) -> np.ndarray:
        """The chance that all earlier members failed."""
        failed = np.cumprod(np.where(members, 1 - p, 1.0))
        return np.where(members, np.concatenate([[1.0], failed[:-1]]), 0.0)

    def price(self, p: np.ndarray, weight: float, beta: np.ndarray) -> Priced:
        """The best plan, by one pass backwards."""
        members, after = np.zeros(len(p), bool), 0.0
        for v in range(len(p) - 1, -1, -1):
            tried = weight * p[v] - beta[v] + (1 - p[v]) * after
            members[v] = p[v] > 0 and tried > after
            after = tried if members[v] else after
        return Priced(members, float(after), float(after))


def certificate(p: np.ndarray, weights: np.ndarray, beta: np.ndarray, family: Family) -> tuple[float, list[Priced]]:
    """`sum alpha + sum beta` with the least feasible alpha, an upper bound for every `beta >= 0`, and the priced sets.

    Example:
        >>> p = np.array([[0.5, 0.5], [0.0, 0.5]])
        >>> certificate(p, np.ones(2), np.array([0.0, 0.5]), Configuration())[0]
        1.0
    """
    priced = [family.price(row, float(weight), beta) for row, weight in zip(p, weights)]
    return float(sum(max(found.ceiling, 0.0) for found in priced) + beta.sum()), priced


def matching_certificate(p: np.ndarray, weights: np.ndarray, alpha: np.ndarray) -> tuple[float, np.ndarray]:
    """The bound of the matching program from any `alpha >= 0`: `sum alpha + sum beta` with the least feasible beta.

    Rows `sum_v p_uv x_uv <= 1` (alpha) and `sum_u x_uv <= 1` (beta): `beta_v = max_u [p_uv (w_u - alpha_u)]_+`.

    Example:
        >>> float(matching_certificate(np.array([[0.5, 0.5]]), np.ones(1), np.zeros(1))[0])
        1.0
    """
    beta = np.maximum(p * (weights - alpha)[:, None], 0).max(axis=0)
    return float(alpha.sum() + beta.sum()), beta


def _search(share: np.ndarray, cost: np.ndarray, weight: float) -> tuple[np.ndarray, float, float]:
    """`max w min(1, sum share) - sum cost` over subsets, items sorted by `cost / share`; subset, value, ceiling."""
    size = len(share)
    filled, paid = np.concatenate([[0.0], np.cumsum(share)]), np.concatenate([[0.0], np.cumsum(cost)])

    def ceiling(start: int, mass: float, spent: float) -> float:
        """What items `start..` can add at most: fill up to mass 1 in order, the last item in part."""
        room = 1.0 - mass
        if room <= 0:
            return weight - spent
        last = int(np.searchsorted(filled, filled[start] + room, side="right")) - 1
        if last >= size:
            return weight * (mass + filled[size] - filled[start]) - (spent + paid[size] - paid[start])
        part = room - (filled[last] - filled[start])
        return weight - (spent + paid[last] - paid[start] + part * cost[last] / share[last])

    best = 0.0
    chosen: tuple[int, ...] = ()
    nodes, left = 0, 0.0
    stack: list[tuple[int, float, float, tuple[int, ...]]] = [(0, 0.0, 0.0, ())]
    while stack:
        start, mass, spent, taken = stack.pop()
        value = weight * min(1.0, mass) - spent
        if value > best:
            best, chosen = value, taken
        if start == size or mass >= 1:
            continue
        most = ceiling(start, mass, spent)
        if most <= best + ROUND * weight:
            continue
        if nodes >= NODES:
            left = max(left, most)
            continue
        nodes += 1
        stack.append((start + 1, mass, spent, taken))
        stack.append((start + 1, mass + share[start], spent + cost[start], (*taken, start)))
    subset = np.zeros(size, bool)
    subset[list(chosen)] = True
    # A branch cut at `best + ROUND w` may hide that much.
    return subset, float(best), float(max(left, best + (ROUND * weight if size else 0.0)))
