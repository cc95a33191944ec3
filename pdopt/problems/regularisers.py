"""What a regulariser must say for `Transport` to be judged: `min_T <C, T> + R(T)`, `T 1 = a`, `T'1 = b`, `T >= 0`.

A regulariser decides what the primal iterate is while a solver runs (`x`: marginals, a plan, ...), how good a pair is,
and what the user gets to see. It is handed the problem, so that it holds only its own settings.
"""

import abc
from typing import Any

from pdopt.types import Optimality, Pair


class Regulariser(abc.ABC):
    """The verbs that `Transport` passes on; `problem` is the transport problem, `pair.y` its `Potentials`.

    `max_iterations` is the default limit for problems with this regulariser, None for that of `solve`. A regulariser
    whose iterate carries its residuals offers `audited(problem, pair, status, tolerance) -> (Optimality, status)`: the
    last word on the pair that is returned.
    """

    max_iterations: int | None = None

    @abc.abstractmethod
    def shapes(self, problem: Any) -> Any:
        """Shapes and dtypes of the primal iterate x inside a solver, a pytree of `ShapeDtypeStruct`."""

    @abc.abstractmethod
    def inside(self, problem: Any, y: Any) -> Any:
        """The primal iterate that belongs to potentials y: what a start given by its potentials becomes."""

    def adopt(self, problem: Any, x: Any, y: Any) -> Any:
        """The primal iterate of a start `(x, y)`: from y alone, unless a regulariser can use x."""
        return self.inside(problem, y)

    @abc.abstractmethod
    def plan(self, problem: Any, pair: Pair) -> Any:
        """The plan of a pair as an operator with `matvec`, `rmatvec` and `todense`."""

    @abc.abstractmethod
    def optimality(self, problem: Any, pair: Pair) -> Optimality:
        """Residuals and both objectives of a pair."""

    @abc.abstractmethod
    def lagrangian(self, problem: Any, pair: Pair) -> Any:
        """`<C, T> + R(T) + <f, a - T1> + <g, b - T'1>` with T, f, g held: its derivative is that of the value."""
