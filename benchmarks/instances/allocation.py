"""The four reference instances of online allocation, from NumPy's `default_rng`; the tests check their fluid values."""

from typing import Any

import numpy as np

import pdopt

# How the best in hindsight is certified: linear programs where the actions can be listed and requests repeat.
CERTIFICATE = {"A": "hindsight", "B": "dual", "C": "dual", "D": "hindsight"}


def reference(name: str, dtype: Any) -> pdopt.Allocation:
    """A: network revenue management (10 resources, 50 types, half of the mean demand). B: second-price auctions with a
    budget of 0.05 a step. C: proportional matching with an entropy, 5 advertisers. D: assortments of at most 3 of 6
    products for 3 segments."""
    if name == "A":
        rng = np.random.default_rng(0)
        columns = (rng.random((50, 10)) < 0.3) * 1.0
        columns[columns.sum(1) == 0, 0] = 1
        fares, probabilities = rng.uniform(1, 10, 50), rng.dirichlet(np.ones(50))
        stream = pdopt.RevenueManagement(fares, columns, probabilities, given_dtype=dtype)
        return pdopt.Allocation(stream, (0.5 * probabilities @ columns).astype(dtype))
    if name == "B":
        return pdopt.Allocation(pdopt.Auctions(given_dtype=dtype), 0.05)
    if name == "C":
        return pdopt.Allocation(pdopt.EntropicMatching([1.0, 0.8, 0.6, 0.4, 0.2], 0.5, 0.1, given_dtype=dtype), 0.1)
    rng = np.random.default_rng(2)
    prices, weights = rng.uniform(1, 3, 6), rng.uniform(0.2, 2, (3, 6))
    return pdopt.Allocation(pdopt.Assortment(prices, weights, [0.5, 0.3, 0.2], limit=3, given_dtype=dtype), 0.06)
