"""Bilevel programs with known answers, and hyper-parameter problems on data that scikit-learn carries.

Toy 1 and 2, the support vector machine with one weight a sample and the cleaning of flipped labels are those of Yao,
Yu, Zeng, Zhang (arXiv 2401.16164); the data sets are ours, as theirs are not in any package.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import pdopt
from pdopt.geometry.sets import Box

# --- toy 1: x = -0.3, y1 = 0.7, y2 = -0.4 in every coordinate ------------------------------------------------------

EXACT = (-0.3, 0.7, -0.4)


def toy_one(n: int = 100) -> pdopt.BilevelProgram:
    """`F = |x - y2|^2/2 + |y1 - e|^2/2`, `f = |y1|^2/2 - x'y1 + e'y2`, one coupling row `e'x + e'y1 + e'y2 = 0`."""
    ones = np.ones(n)
    return pdopt.BilevelProgram(_upper_one, _lower_one, (ones, (ones, ones)), equality=_row_one, dtype=jnp.float64)


def _upper_one(x: Any, y: Any) -> Any:
    return jnp.sum((x - y[1]) ** 2) / 2 + jnp.sum((y[0] - 1) ** 2) / 2


def _lower_one(x: Any, y: Any) -> Any:
    return jnp.sum(y[0] ** 2) / 2 - x @ y[0] + jnp.sum(y[1])


def _row_one(x: Any, y: Any) -> Any:
    return jnp.sum(x) + jnp.sum(y[0]) + jnp.sum(y[1])


def error_one(solution: Any) -> float:
    """The largest of the three relative l2 errors."""
    x, (y1, y2) = solution.x
    return max(
        float(np.linalg.norm(np.asarray(u) - e) / (abs(e) * np.sqrt(u.size))) for u, e in zip((x, y1, y2), EXACT)
    )


# --- toy 2: 90 random equalities that couple the levels, B x = 0 above ---------------------------------------------


class Second(NamedTuple):
    """The program (x = N t, N a basis of B's null space), the map t -> y*(x), and F along it."""

    program: pdopt.BilevelProgram
    answer: np.ndarray
    value: Any


def toy_two(seed: int = 0) -> Second:
    """`F = sin(c'x + d'y) + log(|x + y|^2 + 1)`, `f = |x - y|^2/2`, `A y + H x = 0` with A, H 90 x 100 uniform."""
    from scipy.linalg import null_space

    rng = np.random.default_rng(seed)
    A, B, H = rng.random((90, 100)), rng.random((45, 100)), rng.random((90, 100))
    c, d = rng.random(100), rng.random(100)
    N = null_space(B)
    start = (np.full(N.shape[1], 0.1), np.zeros(100))
    args = (A, H, N, c, d)
    program = pdopt.BilevelProgram(_upper_two, _lower_two, start, equality=_rows_two, args=args, dtype=jnp.float64)
    pinv = np.linalg.pinv(A)
    answer = (np.eye(100) - pinv @ A - pinv @ H) @ N
    return Second(program, answer, lambda t: _upper_two(t, jnp.asarray(answer) @ t, *program.args))


def _upper_two(t: Any, y: Any, A: Any, H: Any, N: Any, c: Any, d: Any) -> Any:
    x = N @ t
    return jnp.sin(c @ x + d @ y) + jnp.log(jnp.sum((x + y) ** 2) + 1)


def _lower_two(t: Any, y: Any, A: Any, H: Any, N: Any, c: Any, d: Any) -> Any:
    return jnp.sum((N @ t - y) ** 2) / 2


def _rows_two(t: Any, y: Any, A: Any, H: Any, N: Any, c: Any, d: Any) -> Any:
    return A @ y + H @ (N @ t)


def reference_two(second: Second, starts: int = 12) -> float:
    """The least value that SciPy's BFGS finds on `t -> F(t, y*(t))` from random starts."""
    from scipy.optimize import minimize

    slope = jax.jit(jax.value_and_grad(second.value))
    function = lambda t: tuple(np.asarray(part, np.float64) for part in slope(t))
    rng = np.random.default_rng(0)
    points = [scale * rng.standard_normal(second.answer.shape[1]) for scale in np.geomspace(0.01, 2, starts)]
    found = [minimize(function, point, jac=True, method="BFGS", options={"gtol": 1e-9}) for point in points]
    return float(min(result.fun for result in found))


# --- one weight a sample ---------------------------------------------------------------------------------------------


@lru_cache
def dataset(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels -1, 1: `breast_cancer`, `digits` (3 against 8) or `diabetes` (above the median or not)."""
    from sklearn import datasets

    found: Any

    if name == "digits":
        found = datasets.load_digits()
        kept = np.isin(found.target, (3, 8))
        return found.data[kept], np.where(found.target[kept] == 3, 1.0, -1.0)
    found = getattr(datasets, f"load_{name}")()
    middle = np.median(found.target) if name == "diabetes" else 0.5
    return found.data, np.where(found.target > middle, 1.0, -1.0)


class Split(NamedTuple):
    """Training, validation and test samples `(N, n)` with labels, and which training labels were flipped."""

    train: Any
    labels: Any
    validation: Any
    validation_labels: Any
    test: Any
    test_labels: Any
    flipped: Any

    @property
    def args(self) -> tuple[Any, ...]:
        """What the programs are given."""
        return self[:4]


FEATURES, TESTS = 64, 409  # what the largest of the three brings; the others are padded, so that one program serves all


def split(name: str, seed: int, size: int, flips: float = 0.0) -> Split:
    """`size` samples each to train and validate, the rest to test; features standardised by the training samples.

    Features are padded with zeros, test samples with labels 0.
    """
    X, labels = dataset(name)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    X, labels = X[order], labels[order]
    spread = X[:size].std(0)
    X = (X - X[:size].mean(0)) / np.where(spread > 0, spread, 1) / np.sqrt(X.shape[1])
    X = np.pad(X, ((0, 0), (0, FEATURES - X.shape[1])))
    flipped = rng.random(size) < flips
    train = np.where(flipped, -labels[:size], labels[:size])
    test, tested = X[2 * size :][:TESTS], labels[2 * size :][:TESTS]
    missing = TESTS - len(tested)
    tail = (np.pad(test, ((0, missing), (0, 0))), np.pad(tested, (0, missing)), flipped)
    return Split(X[:size], train, X[size : 2 * size], labels[size : 2 * size], *tail)


def splits(name: str, seeds: int, size: int, flips: float = 0.0) -> Split:
    """Splits of seeds 0, 1, ... stacked on a first axis."""
    return Split(*map(np.stack, zip(*(split(name, seed, size, flips) for seed in range(seeds)))))


def margins(y: Any, samples: Any, labels: Any) -> Any:
    """`label (w'z + b)` of every sample."""
    return labels * (samples @ y["w"] + y["b"])


def machine_program(one: Split, *, slacks: bool = True) -> pdopt.BilevelProgram:
    """Log-weights of the samples above, their support vector machine below.

    `f = |w|^2/2 + sum exp(x_i) xi_i^2 / 2` with rows `1 - xi_i - label_i (w'z_i + b) <= 0` (`slacks`), or the same with
    `xi_i = max(0, 1 - label_i (w'z_i + b))` put in; F is the logistic loss of the validation samples, summed.
    """
    samples, features = one.train.shape
    y = {"b": np.zeros(()), "w": np.zeros(features)} | ({"xi": np.ones(samples)} if slacks else {})
    lower, rows = (_with_slacks, _slack_rows) if slacks else (_without_slacks, None)
    return pdopt.BilevelProgram(
        _validation_loss, lower, (np.zeros(samples), y), inequality=rows, X=Box(-6.0, 6.0), args=one.args,
        dtype=jnp.float64,
    )  # fmt: skip


def _validation_loss(x: Any, y: Any, train: Any, labels: Any, validation: Any, validation_labels: Any) -> Any:
    return jnp.sum(jax.nn.softplus(-margins(y, validation, validation_labels)))


def _slack_rows(x: Any, y: Any, train: Any, labels: Any, *_: Any) -> Any:
    return 1 - y["xi"] - margins(y, train, labels)


def _with_slacks(x: Any, y: Any, *_: Any) -> Any:
    return jnp.sum(y["w"] ** 2) / 2 + jnp.sum(jnp.exp(x) * y["xi"] ** 2) / 2


def _without_slacks(x: Any, y: Any, train: Any, labels: Any, *_: Any) -> Any:
    missing = jnp.maximum(1 - margins(y, train, labels), 0)
    return jnp.sum(y["w"] ** 2) / 2 + jnp.sum(jnp.exp(x) * missing**2) / 2
