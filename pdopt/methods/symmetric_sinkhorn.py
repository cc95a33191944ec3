"""Sinkhorn's method for transport of a measure to itself: one potential, and half a step for both sides at once.

    f_i += (1/2) eps (log a_i - log row_i),    g = f                                     (Feydy et al. 2019, section 3)

The exact step alone would swap f and g for ever; the average of potential and exact step, `f <- (f + step(f)) / 2`,
contracts fast. Unbalanced, the exact step is shrunk by `rho / (rho + eps)` (Sejourne et al. 2019).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from pdopt.errors import InvalidOption, UnsupportedProblem
from pdopt.geometry.moves import Euclidean
from pdopt.geometry.sets import Reals
from pdopt.problems.couplings import Marginals, Potentials
from pdopt.problems.transport_view import EntropicView, entropic
from pdopt.rules.saddle import row, saddle_step
from pdopt.types import Pair, Visit, record


class State(NamedTuple):
    """x: logarithms of the marginals over their masses; y: the potential, twice."""

    pair: Pair


@record(static=("every",))
class SymmetricSinkhorn:
    """The averaged fixed point of `OT(a, a)`; the cost must be symmetric and both masses the same.

    Attributes:
        every: steps between checks, >= 1.

    Raises:
        InvalidOption: `every` outside its range.

    Example:
        >>> import pdopt
        >>> problem = pdopt.Transport([[0.0, 1.0], [1.0, 0.0]], regulariser=pdopt.Entropy(0.5), dtype=jnp.float32)
        >>> solution = pdopt.solve(problem, SymmetricSinkhorn(), tolerance=1e-5)
        >>> print(solution.y.f.round(3), solution.y.g.round(3))
        [0.142 0.142] [0.142 0.142]
    """

    every: int = 5

    def __post_init__(self) -> None:
        if not isinstance(self.every, int) or self.every < 1:
            raise InvalidOption(f"every is {self.every!r}; expected an integer >= 1")

    def admit(self, problem: Any) -> None:
        """Raise `UnsupportedProblem` for a cost between different numbers of bins."""
        n, m = entropic(problem).cost.shape
        if n != m:
            raise UnsupportedProblem(f"cost has shape {(n, m)}; a measure is moved to itself by a square one")

    def view(self, problem: Any) -> EntropicView:
        """The problem as this method sees it."""
        return entropic(problem)

    def init(self, view: EntropicView, start: Pair) -> State:
        """The start with one potential for both sides, the mean of its two."""
        mean = (start.y.f + start.y.g) / 2
        unknown = jnp.full_like(mean, -jnp.inf)
        return State(Pair(Marginals(unknown, unknown), Potentials(mean, mean)))

    def step(self, view: EntropicView, state: State) -> tuple[State, Visit]:
        """Half a step towards the exact potential; between both lies the marginal that is judged."""
        tau = 1 / (1 + view.epsilon * view.lost)
        climb_to = Euclidean(Reals())

        def marginals(x: Marginals, y: Potentials) -> Marginals:
            soft = view.cost.softmin_rows(view.log_b + y.g / view.epsilon, view.epsilon)
            log = jnp.where(view.a > 0, (y.f - soft) / view.epsilon, 0)
            return Marginals(log, log)

        def towards(y: Potentials, v: Any, step: Any) -> Potentials:
            f = climb_to(y.f, tau * v - (1 - tau) * y.f, step)
            return Potentials(f, f)

        half = jnp.full((), 0.5, view.epsilon.dtype)
        pair, _ = saddle_step(row(marginals, lambda x: -view.epsilon * x.row, towards), half, state.pair)
        return State(pair), Visit(Pair(pair.x, state.pair.y), pair)

    def pair(self, view: EntropicView, state: State, visit: Visit) -> Pair:
        """The potential before the last step, whose marginals are known."""
        on_both = view.a * jnp.exp(visit.before.x.row)
        return Pair(Marginals(on_both, on_both), visit.before.y)

    def check(self, view: EntropicView, state: State, visit: Visit) -> State:
        """Nothing to adapt."""
        return state
