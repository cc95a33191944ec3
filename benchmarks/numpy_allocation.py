"""The NumPy twins of the allocation benchmark: dual mirror descent by a loop over steps, from the formulas.

Both return reward, accepted, refused, stopping time and consumption of every path, as `pdopt.simulate` does.
"""

from typing import Any

import numpy as np


def one_by_one(fares: Any, columns: Any, rate: Any, step: float, start: float) -> tuple[Any, ...]:
    """Path after path, step after step."""
    paths, horizon, m = columns.shape
    budget = np.floor(horizon * rate + 5e-4)
    reward, consumption = np.zeros(paths), np.zeros((paths, m))
    accepted, refused, stopped = np.zeros(paths, int), np.zeros(paths, int), np.full(paths, horizon)
    for p in range(paths):
        prices, left = np.full(m, start), budget.copy()
        for t in range(horizon):
            fare, column = fares[p, t], columns[p, t]
            wanted = fare > prices @ column
            use = column * wanted
            if wanted:
                if np.all(use <= left + 0.5):
                    left -= use
                    reward[p] += fare
                    accepted[p] += 1
                else:
                    refused[p] += 1
                    stopped[p] = min(stopped[p], t)
            prices = prices * np.exp(step * (use - rate) / rate)
        consumption[p] = budget - left
    return reward, accepted, refused, stopped, consumption


def path_vectorised(fares: Any, columns: Any, rate: Any, step: float, start: float) -> tuple[Any, ...]:
    """All paths at once, step after step."""
    paths, horizon, m = columns.shape
    fares, columns = np.ascontiguousarray(fares.T), np.ascontiguousarray(columns.transpose(1, 0, 2))
    budget = np.floor(horizon * rate + 5e-4)
    prices, left = np.full((paths, m), start), np.tile(budget, (paths, 1))
    reward = np.zeros(paths)
    accepted, refused, stopped = np.zeros(paths, int), np.zeros(paths, int), np.full(paths, horizon)
    for t in range(horizon):
        fare, column = fares[t], columns[t]
        wanted = fare > np.einsum("pm,pm->p", prices, column)
        use = column * wanted[:, None]
        fits = (use <= left + 0.5).all(axis=1)
        taken = wanted & fits
        left -= use * fits[:, None]
        reward += fare * taken
        accepted += taken
        refused += ~fits
        stopped = np.where(fits, stopped, np.minimum(stopped, t))
        prices *= np.exp(step * (use - rate) / rate)
    return reward, accepted, refused, stopped, budget - left
