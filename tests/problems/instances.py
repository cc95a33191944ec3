"""The four reference instances of the allocation specification, as NumPy data and as problems."""

import numpy as np

import pdopt

FLUID = {"A": 3.903229, "B": 0.132574, "C": 0.733405, "D": 0.695389}
PRICES = {
    "A": [2.095, 0.649, 4.033, 0.360, 0, 0.275, 0, 4.022, 2.327, 2.145],
    "B": [0.825742],
    "C": [1.578, 1.380, 1.177, 0.982, 0.780],
    "D": [1.523, 1.597, 2.628, 1.184, 2.200, 2.457],
}


def revenue_data():
    rng = np.random.default_rng(0)
    m, types = 10, 50
    columns = (rng.random((types, m)) < 0.3) * 1.0
    columns[columns.sum(1) == 0, 0] = 1
    fares = rng.uniform(1, 10, types)
    probabilities = rng.dirichlet(np.ones(types))
    return fares, columns, probabilities, 0.5 * probabilities @ columns


def assortment_data():
    rng = np.random.default_rng(2)
    return rng.uniform(1, 3, 6), rng.uniform(0.2, 2, (3, 6)), np.array([0.5, 0.3, 0.2])


def make(name, dtype=np.float32):
    if name == "A":
        fares, columns, probabilities, rate = revenue_data()
        stream = pdopt.RevenueManagement(fares, columns, probabilities, given_dtype=dtype)
    elif name == "B":
        stream, rate = pdopt.Auctions(given_dtype=dtype), 0.05
    elif name == "C":
        stream, rate = pdopt.EntropicMatching([1.0, 0.8, 0.6, 0.4, 0.2], 0.5, 0.1, given_dtype=dtype), 0.1
    else:
        stream, rate = pdopt.Assortment(*assortment_data(), limit=3, given_dtype=dtype), 0.06
    return pdopt.Allocation(stream, rate)
