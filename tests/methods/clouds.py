"""Small transport problems for the tests of the methods that solve them."""

import numpy as np

import pdopt


def clouds(n, m, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 1, (n, 2)), rng.uniform(0, 1, (m, 2)) ** 1.5


def distances(x, y):
    return ((x[:, None] - y[None]) ** 2).sum(-1)


def masses(n, seed):
    a = np.random.default_rng(seed).uniform(0.2, 1, n)
    return a / a.sum()


def true_error(problem, y):
    """L1 error of both marginals, in float64 from the returned potentials."""
    C, a, b = (np.asarray(v, np.float64) for v in (problem.cost.todense(), problem.a, problem.b))
    f, g = (np.asarray(v, np.float64) for v in y)
    T = a[:, None] * b * np.exp((f[:, None] + g - C) / float(problem.regulariser.epsilon))
    return np.abs(T.sum(1) - a).sum() + np.abs(T.sum(0) - b).sum()


def hard(dtype=np.float32, n=60, epsilon=0.002):
    """Small epsilon for the cost: annealed, and over-relaxation pays."""
    x, y = clouds(n, n)
    return pdopt.Transport(distances(x, y), masses(n, 1), masses(n, 2), pdopt.Entropy(epsilon), dtype=dtype)
