"""Two families with equality constraints: logistic regression on plane and sphere, and control by Poisson's equation.

Both are those of Hong, Na, Mahoney, Kolar (ICML 2023), section 5; the LIBSVM sets of the first are replaced by two that
scikit-learn carries and a seeded synthetic one. Functions stand at the top of this file and take their data as `args`,
so that problems of one size share a compilation. References come from SciPy: sparse LU of the whole optimality system
for the control problem, dense Newton steps in NumPy for the regression.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.special import expit

import pdopt
from pdopt.types import Pair

AFFINE = 10  # rows of A in the regression, as published
EFFORT = 0.05  # weight of |z|^2 in the control problem, as published
DATA = ("breast_cancer", "digits", "synthetic")


# --- logistic regression ----------------------------------------------------------------------------------------------


class Samples(NamedTuple):
    """Features `(N, n)`, standardised, labels -1 and 1, and the affine constraints `A x = b`."""

    features: np.ndarray
    labels: np.ndarray
    A: np.ndarray
    b: np.ndarray


def loss(x: Any, features: Any, labels: Any, A: Any, b: Any) -> Any:
    """`mean log(1 + exp(-label <feature, x>))`."""
    return jnp.mean(jnp.logaddexp(0, -labels * (features @ x)))


def on_plane_and_sphere(x: Any, features: Any, labels: Any, A: Any, b: Any) -> Any:
    """`(A x - b, |x|^2 - 1)`."""
    return jnp.concatenate([A @ x - b, (x @ x - 1)[None]])


def samples(name: str, seed: int = 0) -> Samples:
    """A data set: "breast_cancer", "digits" (threes against the rest), or "synthetic" (2000 x 500).

    A and b are standard normal; of b, draws are taken until the plane cuts the sphere: `|A^+ b| < 1`.
    """
    rng = np.random.default_rng(seed)
    if name == "synthetic":
        X = rng.standard_normal((2000, 500))
        labels = np.where(X @ rng.standard_normal(500) / 500**0.5 + rng.standard_normal(2000) > 0, 1.0, -1.0)
    else:
        from sklearn import datasets

        raw: Any = getattr(datasets, f"load_{name}")()
        X = raw.data[:, raw.data.std(axis=0) > 0]
        labels = np.where(raw.target == (3 if name == "digits" else 1), 1.0, -1.0)
        X = (X - X.mean(axis=0)) / X.std(axis=0)
    A = rng.standard_normal((AFFINE, X.shape[1]))
    while True:
        b = rng.standard_normal(AFFINE)
        if np.linalg.norm(np.linalg.lstsq(A, b, rcond=None)[0]) < 1:
            return Samples(X, labels, A, b)


def regression(data: Samples) -> pdopt.NonlinearProgram:
    """The program; its start is `1 / sqrt(n)` in every entry, on the sphere."""
    n = data.features.shape[1]
    args = tuple(jnp.asarray(part) for part in data)
    return pdopt.NonlinearProgram(loss, np.full(n, n**-0.5), args, equality=on_plane_and_sphere)


def regression_reference(data: Samples, x: np.ndarray, steps: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) by Newton steps in NumPy from x, with least-squares multipliers: where a solver should have ended."""
    X, labels, A, b = data
    n, m = X.shape[1], AFFINE + 1

    def slopes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        margin = labels * (X @ x)
        share = expit(-margin)
        slope = -X.T @ (labels * share) / len(labels)
        bend = X.T * (share * (1 - share)) @ X / len(labels)
        return slope, bend, np.vstack([A, 2 * x]), np.append(A @ x - b, x @ x - 1)

    slope, _, J, _ = slopes(x)
    y = np.linalg.lstsq(J.T, -slope, rcond=None)[0]
    for _ in range(steps):
        slope, bend, J, c = slopes(x)
        bend = bend + 2 * y[-1] * np.eye(n)
        matrix = np.block([[bend, J.T], [J, np.zeros((m, m))]])
        z = np.linalg.solve(matrix, -np.concatenate([slope + J.T @ y, c]))
        x, y = x + z[:n], y + z[n:]
        if np.linalg.norm(z) < 1e-14 * (1 + np.linalg.norm(x)):
            break
    return x, y


# --- control of Poisson's equation ------------------------------------------------------------------------------------


def laplacian(w: Any, spacing: Any) -> Any:
    """The 5-point Laplacian of `(N, N)` values, 0 outside."""
    padded = jnp.pad(w, 1)
    around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    return (around - 4 * w) / spacing**2


def tracking(x: Any, target: Any, spacing: Any) -> Any:
    """`|w - w_d|^2 / 2 + 0.05 |z|^2`."""
    return jnp.sum((x["state"] - target) ** 2) / 2 + EFFORT * jnp.sum(x["control"] ** 2)


def poisson(x: Any, target: Any, spacing: Any) -> Any:
    """`Laplace(w) + z`, 0 where the state answers to the control."""
    return laplacian(x["state"], spacing) + x["control"]


def control(size: int) -> pdopt.NonlinearProgram:
    """The control problem on a `size x size` grid of the square [-1, 1]^2: `n = 2 size^2` variables, `size^2` rows."""
    place = 0.1 / np.sqrt(15) * (np.arange(1, size + 1) - (size + 1) / 2)
    target = np.sin(4 + place)[:, None] + np.cos(3 + place)[None, :]
    start = {"state": np.zeros((size, size)), "control": np.zeros((size, size))}
    args = (jnp.asarray(target), jnp.asarray(2 / (size + 1)))
    return pdopt.NonlinearProgram(tracking, start, args, equality=poisson)


def sines(v: Any) -> Any:
    """The orthonormal sine transform (DST-I) along both axes, its own inverse; it diagonalises the Laplacian."""
    for axis in (0, 1):
        v = jnp.moveaxis(v, axis, -1)
        n = v.shape[-1]
        edge = jnp.zeros((*v.shape[:-1], 1), v.dtype)
        odd = jnp.concatenate([edge, v, edge, -v[..., ::-1]], axis=-1)
        v = jnp.moveaxis(-jnp.fft.rfft(odd).imag[..., 1 : n + 1] * (2 * (n + 1)) ** -0.5, -1, axis)
    return v


def by_sines(residual: Pair, target: Any, spacing: Any) -> Pair:
    """The inverse of `diag(I, I / 10, L^2 + 10 I)`, by sine transforms: a preconditioner for `MinRes`.

    The last block is the Schur complement `J H^-1 J'`, so that three iterations are enough (Murphy, Golub, Wathen
    2000); on another domain one would put a multigrid cycle there.
    """
    size = residual.y.equality.shape[0]
    modes = (2 * jnp.cos(jnp.pi * jnp.arange(1, size + 1) / (size + 1)) - 2) / spacing**2
    schur = (modes[:, None] + modes[None, :]) ** 2 + 1 / (2 * EFFORT)
    y = sines(sines(residual.y.equality) / schur)
    x = {"state": residual.x["state"], "control": residual.x["control"] / (2 * EFFORT)}
    return Pair(x, residual.y._replace(equality=y))


def control_reference(size: int, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(w, z, y), each `(size, size)`, by SciPy's sparse LU of the whole optimality system."""
    import scipy.sparse as sp
    from scipy.sparse.linalg import splu

    diagonals: Any = sp.diags_array  # its annotations know a single offset only
    line = diagonals([1.0, -2.0, 1.0], offsets=[-1, 0, 1], shape=(size, size)) * ((size + 1) / 2) ** 2
    eye, one = sp.identity(size**2), sp.identity(size)
    L = sp.kron(line, one) + sp.kron(one, line)
    matrix = sp.block_array([[eye, None, L], [None, 2 * EFFORT * eye, eye], [L, eye, None]], format="csc")
    right = np.concatenate([np.asarray(target).ravel(), np.zeros(2 * size**2)])
    w, z, y = splu(matrix).solve(right).reshape(3, size, size)
    return w, z, y
