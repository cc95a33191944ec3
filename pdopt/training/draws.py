"""Reproducible randomness on the host: what a key gives is the same on every machine and in every version of NumPy.

Everything is made from the raw bits of Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), a
counter-based generator that NumPy promises to keep; the sequences of its `Generator` methods may change by version, and
a run that is resumed after an upgrade would then see other data.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np


class Draws:
    """Uniform integers from a counter-based generator, the same in every version of NumPy.

    Example:
        >>> draws = Draws(0, 7)
        >>> all(2 <= draws.between(2, 5) <= 5 for _ in range(20)), Draws(0, 7).below(100) == Draws(0, 7).below(100)
        (True, True)
    """

    def __init__(self, *key: int) -> None:
        self._bits = _philox(key)

    def below(self, n: int) -> int:
        """Uniform in 0, ..., n - 1, by the upper bits of a product (bias below n / 2^64)."""
        return int(self._bits.random_raw()) * n >> 64

    def between(self, low: int, high: int) -> int:
        """Uniform in low, ..., high, both included."""
        return low + self.below(high - low + 1)

    def choice(self, options: Sequence[Any]) -> Any:
        """One of the options."""
        return options[self.below(len(options))]

    def digits(self, count: int) -> int:
        """A number of exactly `count` digits; 0 counts as one digit."""
        return self.between(10 ** (count - 1) if count > 1 else 0, 10**count - 1)


@lru_cache(maxsize=4)  # an epoch's order is asked for at every batch
def random_order(n: int, *key: int | str) -> np.ndarray:
    """A permutation of 0, ..., n - 1, read-only: the places of n random words in ascending order.

    Example:
        >>> sorted(random_order(5, 0, 1).tolist()), random_order(50, 0, 1).tolist() == random_order(50, 0, 2).tolist()
        ([0, 1, 2, 3, 4], False)
    """
    order = np.argsort(_philox(("order", *key)).random_raw(n), kind="stable")
    order.flags.writeable = False
    return order


def _philox(key: Sequence[int | str]) -> np.random.Philox:
    """The generator of a key: two words as they are, anything else through a hash."""
    if len(key) == 2 and all(isinstance(part, int) and 0 <= part < 2**64 for part in key):
        return np.random.Philox(key=np.array(key, np.uint64))
    return np.random.Philox(key=np.frombuffer(hashlib.sha256(repr(tuple(key)).encode()).digest()[:16], "<u8"))
