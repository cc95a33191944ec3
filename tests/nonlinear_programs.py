"""Problems of Hock and Schittkowski (1981) by hand, `g <= 0`, with known solutions; and one family of failures."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np


class Known(NamedTuple):
    """Functions, start, bounds, and the value of the best known solution."""

    f: Any
    start: Any
    value: float
    equality: Any = None
    inequality: Any = None
    lower: Any = None
    upper: Any = None

    @property
    def constraints(self) -> dict[str, Any]:
        """What `minimise` takes beside f and start."""
        return {name: getattr(self, name) for name in ("equality", "inequality", "lower", "upper")}


def _hs43(x: Any) -> Any:
    a, b, c, d = x
    return a**2 + b**2 + 2 * c**2 + d**2 - 5 * a - 5 * b - 21 * c + 7 * d


def _hs43_rows(x: Any) -> Any:
    a, b, c, d = x
    return jnp.stack([
        a**2 + b**2 + c**2 + d**2 + a - b + c - d - 8,
        a**2 + 2 * b**2 + c**2 + 2 * d**2 - a - d - 10,
        2 * a**2 + b**2 + c**2 + 2 * a - b - d - 5,
    ])  # fmt: skip


def _hs106_rows(x: Any) -> Any:
    return jnp.stack([
        0.0025 * (x[3] + x[5]) - 1,
        0.0025 * (x[4] + x[6] - x[3]) - 1,
        0.01 * (x[7] - x[4]) - 1,
        100 * x[0] + 833.33252 * x[3] - 83333.333 - x[0] * x[5],
        1250 * (x[4] - x[3]) + x[1] * x[3] - x[1] * x[6],
        1250000 + x[2] * x[4] - 2500 * x[4] - x[2] * x[7],
    ])  # fmt: skip


KNOWN = {
    "HS6": Known(lambda x: (1 - x[0]) ** 2, [-1.2, 1.0], 0.0, equality=lambda x: 10 * (x[1] - x[0] ** 2)),
    "HS7": Known(
        lambda x: jnp.log(1 + x[0] ** 2) - x[1], [2.0, 2.0], -np.sqrt(3),
        equality=lambda x: (1 + x[0] ** 2) ** 2 + x[1] ** 2 - 4,
    ),
    "HS26": Known(
        lambda x: (x[0] - x[1]) ** 2 + (x[1] - x[2]) ** 4, [-2.6, 2.0, 2.0], 0.0,
        equality=lambda x: (1 + x[1] ** 2) * x[0] + x[2] ** 4 - 3,
    ),
    "HS39": Known(
        lambda x: -x[0], [2.0, 2.0, 2.0, 2.0], -1.0,
        equality=lambda x: jnp.stack([x[1] - x[0] ** 3 - x[2] ** 2, x[0] ** 2 - x[1] - x[3] ** 2]),
    ),
    "HS43": Known(_hs43, [0.0, 0.0, 0.0, 0.0], -44.0, inequality=_hs43_rows),
    "HS64": Known(
        lambda x: 5 * x[0] + 50000 / x[0] + 20 * x[1] + 72000 / x[1] + 10 * x[2] + 144000 / x[2], [1.0, 1.0, 1.0],
        6299.84242821, inequality=lambda x: 4 / x[0] + 32 / x[1] + 120 / x[2] - 1, lower=1e-5,
    ),
    "HS71": Known(
        lambda x: x[0] * x[3] * (x[0] + x[1] + x[2]) + x[2], [1.0, 5.0, 5.0, 1.0], 17.0140173,
        equality=lambda x: jnp.sum(x**2) - 40, inequality=lambda x: 25 - jnp.prod(x), lower=1.0, upper=5.0,
    ),
    "HS106": Known(
        lambda x: x[0] + x[1] + x[2], [5000.0, 5000.0, 5000.0, 200.0, 350.0, 150.0, 225.0, 425.0], 7049.24802,
        inequality=_hs106_rows, lower=np.array([100.0, 1000.0, 1000.0, 10.0, 10.0, 10.0, 10.0, 10.0]),
        upper=np.array([1e4, 1e4, 1e4, 1e3, 1e3, 1e3, 1e3, 1e3]),
    ),
}  # fmt: skip


class Family(NamedTuple):
    """Numbers that make one compiled program regular, contradictory, dependent, unbounded or broken."""

    sums: Any = (2.0, 2.0)  # x0 + x1 = each of them: dependent where equal, contradictory where not
    curve: Any = 1.0  # 0: linear, hence unbounded along x0 = -x1
    slope: Any = 1.0
    wall: Any = np.inf  # f is NaN where x0 > wall


def family(x: Any, data: Family) -> Any:
    """`curve |x|^2 / 2 + slope x0`, NaN beyond the wall."""
    value = data.curve * jnp.sum(x**2) / 2 + data.slope * x[0]
    return jnp.where(x[0] > data.wall, jnp.nan, value)


def family_sums(x: Any, data: Family) -> Any:
    """`x0 + x1 - sums`, twice the same row."""
    return jnp.sum(x) - data.sums


def of(**changes: Any) -> Family:
    """The family's data as float64 arrays; call with 64-bit mode on."""
    return Family(*(jnp.asarray(value, jnp.float64) for value in Family(**changes)))
