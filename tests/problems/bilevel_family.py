"""Small bilevel programs with a slow twin: the lower level is a quadratic program whose active sets are all tried."""

from itertools import chain, combinations

import jax.numpy as jnp
import numpy as np

import pdopt


def upper(x, y, data):
    return data["curve"] * jnp.sum((x - data["t"]) ** 2) / 2 + jnp.sum((y - data["s"]) ** 2) / 2


def lower(x, y, data):
    return y @ data["Q"] @ y / 2 - (data["B"] @ x) @ y


def equality(x, y, data):
    return data["a"] @ y - 1 - x[0]


def inequality(x, y, data):
    return data["D"] @ y + data["E"] @ x - data["e"]


def draw(seed, n=2, m=3, rows=2):
    rng = np.random.default_rng(seed)
    M = rng.standard_normal((m, m))
    return {
        "curve": np.array(1.0), "t": rng.standard_normal(n), "s": rng.standard_normal(m), "Q": M @ M.T / m + np.eye(m),
        "B": rng.standard_normal((m, n)), "a": rng.standard_normal(m), "D": rng.standard_normal((rows, m)),
        "E": rng.standard_normal((rows, n)) / 2, "e": rng.uniform(-0.5, 1.0, rows),
    }  # fmt: skip


def program(data, dtype=jnp.float64):
    n, m = data["B"].shape[1], data["B"].shape[0]
    start = (np.zeros(n), np.zeros(m))
    return pdopt.BilevelProgram(
        upper, lower, start, equality=equality, inequality=inequality, args=(data,), dtype=dtype, check=False
    )


def answer(data, x):
    """y*, lam, mu by trying every active set; float64 NumPy."""
    Q, a, D, m = data["Q"], data["a"], data["D"], len(data["Q"])
    right = data["e"] - data["E"] @ x
    rows = range(len(D))
    for chosen in chain.from_iterable(combinations(rows, k) for k in range(len(D) + 1)):
        A = np.vstack([a[None], D[list(chosen)]])
        K = np.block([[Q, A.T], [A, np.zeros((len(A), len(A)))]])
        try:
            found = np.linalg.solve(K, np.concatenate([data["B"] @ x, [1 + x[0]], right[list(chosen)]]))
        except np.linalg.LinAlgError:
            continue
        y, mu = found[:m], np.zeros(len(D))
        mu[list(chosen)] = found[m + 1 :]
        if (mu >= -1e-12).all() and (D @ y <= right + 1e-10).all():
            return y, found[m], mu
    return None


def value(data, x):
    """F(x, y*(x))."""
    y = answer(data, x)[0]
    return data["curve"] * np.sum((x - data["t"]) ** 2) / 2 + np.sum((y - data["s"]) ** 2) / 2


def slope(function, x, step=1e-5):
    """Central differences."""
    ways = step * np.eye(len(x))
    return np.array([(function(x + w) - function(x - w)) / (2 * step) for w in ways])
