"""How many iterations to run before the host looks again: the pacing of long solves.

A chunk costs some 0.5 ms of host time whatever its length, so it should take at least `least` seconds (50 ms: about
1 %), and at most `most` (0.5 s), so that Ctrl-C, time limit and progress stay lively. Start at `first` iterations and
double until a chunk is long enough; the count is a traced argument of the chunk, so changing it compiles nothing.
"""

import math
from typing import NamedTuple

from pdopt.errors import InvalidOption, require_range

LARGEST = 2**30  # so that a clock that stands still cannot push the int32 count of a chunk over its end


class Pace(NamedTuple):
    """Pacing rule; a pure value that holds no clock.

    `next(iterations, seconds)` is the length of the next chunk given the last one's length k and time t:

        2 k                 if t < least      (at most 2^30: iteration counts are int32)
        k                   if least <= t <= most
        floor(k most / t)   if t > most       (never less than 1)

    Attributes:
        first: iterations of the first chunk, >= 1.
        least: seconds a chunk should take at least.
        most: seconds a chunk may take at most.

    Example:
        >>> pace = Pace()
        >>> pace.next(pace.first, 0.001), pace.next(4096, 0.1), pace.next(4096, 1.0)
        (128, 4096, 2048)
    """

    first: int = 64
    least: float = 0.05
    most: float = 0.5

    def check(self) -> "Pace":
        """The pace itself, if `first >= 1` and `0 < least <= most / 2` (so that doubling cannot overshoot).

        Raises:
            InvalidOption: naming the field.
        """
        require_range("first", self.first, 1)
        require_range("least", self.least, 0, open_low=True)
        if not 2 * self.least <= self.most:
            raise InvalidOption(f"most is {self.most}; expected at least twice least = {self.least}")
        return self

    def next(self, iterations: int, seconds: float) -> int:
        """Iterations of the next chunk, after one of `iterations` that took `seconds`.

        The time of a chunk that compiled should not be passed in: it says nothing about the next. A chunk that ended
        early is passed with the iterations it did. A clock that stood still or went backwards counts as too short.
        """
        iterations = max(int(iterations), 1)
        if not seconds >= self.least:  # NaN too
            return min(2 * iterations, LARGEST)
        if seconds <= self.most:
            return iterations
        return max(1, math.floor(iterations * self.most / seconds))

    def within(self, iterations: int, rate: float, left: float) -> int:
        """`iterations`, or fewer if at `rate` seconds an iteration they would run past the `left` seconds; at least 1.

        What keeps a time limit honest to within one iteration rather than one chunk.
        """
        if rate <= 0 or not math.isfinite(left):
            return iterations
        return max(1, math.floor(min(iterations, max(left, 0.0) / rate)))
