"""Claims: what pdopt promises, what this run measured, and whether one follows from the other."""

import math
import operator
from typing import NamedTuple

RELATIONS = {"<=": operator.le, ">=": operator.ge}


class Claim(NamedTuple):
    """A promise with its figure; `measured=None` (a peer missing, nothing to compare) is never "holds"."""

    promise: str
    measured: float | None
    required: float
    relation: str
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether `measured relation required`; None where it cannot be judged."""
        if self.measured is None or math.isnan(self.measured):
            return None
        return bool(RELATIONS[self.relation](self.measured, self.required))

    @property
    def verdict(self) -> str:
        """One of: holds, fails, not judged."""
        return {True: "holds", False: "fails", None: "not judged"}[self.holds]


def failed(claims: list[Claim]) -> bool:
    """Whether some claim was judged and fails."""
    return any(claim.holds is False for claim in claims)
