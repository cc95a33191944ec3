"""Iterated Bregman projections for entropic barycenters: saddle steps in the log domain (Benamou et al. 2015).

    g_kj += eps (log b_j - log column_kj),   log b = (h - sum_k w_k s_k) / eps,
    h_j  += (eps / 2) (log b_j - log self_j)                      debiased only (Janati et al. 2020, algorithm 1)
    f_ki += eps (log a_ki - log row_ki)

All k histograms move at once.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from pdopt.errors import InvalidOption, UnsupportedProblem
from pdopt.geometry.moves import Euclidean
from pdopt.geometry.sets import Reals
from pdopt.problems.barycenter import Barycenter
from pdopt.rules.saddle import row, saddle_step
from pdopt.types import Pair, Visit, record


class Logs(NamedTuple):
    """Logarithms of what the plans put on both sides: rows over their masses, columns and self over b."""

    row: Any
    column: Any
    apart: Any


class State(NamedTuple):
    """The pair: x the logarithms, y the potentials."""

    pair: Pair


@record(static=("every",))
class BregmanProjections:
    """Columns, then rows, of all plans.

    Attributes:
        every: sweeps between checks, >= 1; a check costs about one sweep.

    Raises:
        InvalidOption: `every` outside its range.

    Example:
        >>> import pdopt
        >>> line = (jnp.arange(3.0)[:, None] - jnp.arange(3.0)) ** 2
        >>> problem = Barycenter(line, jnp.eye(3)[::2], epsilon=0.5)
        >>> print(round(float(pdopt.solve(problem, BregmanProjections()).x[1]), 2))
        0.79
    """

    every: int = 10

    def __post_init__(self) -> None:
        if not isinstance(self.every, int) or self.every < 1:
            raise InvalidOption(f"every is {self.every!r}; expected an integer >= 1")

    def view(self, problem: Any) -> Barycenter:
        """The problem itself, which speaks in potentials already.

        Raises:
            UnsupportedProblem: anything but a `Barycenter`.
        """
        if not isinstance(problem, Barycenter):
            raise UnsupportedProblem(f"problem has type {type(problem).__name__}; expected a Barycenter")
        return problem

    def init(self, view: Barycenter, start: Pair) -> State:
        """The start's potentials."""
        y = start.y
        return State(Pair(Logs(jnp.zeros_like(y.f), jnp.zeros_like(y.g), jnp.zeros_like(y.h)), y))

    def step(self, view: Barycenter, state: State) -> tuple[State, Visit]:
        """One sweep: a saddle step for the columns (and the debiasing), one for the rows."""
        epsilon, up = view.epsilon, Euclidean(Reals())

        def columns(x: Logs, y: Any) -> Logs:
            s = view.column_potentials(y.f)
            log_b = view.log_histogram(s, y.h)
            apart = view.log_self(y.h) - log_b if view.debiased else x.apart
            return x._replace(column=(y.g - s) / epsilon - log_b, apart=apart)

        def raise_columns(y: Any, v: Logs, step: Any) -> Any:
            return y._replace(g=up(y.g, v.column, step), h=up(y.h, v.apart, step / 2))

        def rows(x: Logs, y: Any) -> Logs:
            return x._replace(row=(y.f - view.row_potentials(y.g)) / epsilon)

        def raise_rows(y: Any, v: Logs, step: Any) -> Any:
            return y._replace(f=up(y.f, v.row, step))

        pair, _ = saddle_step(row(columns, _short, raise_columns), epsilon, state.pair)
        pair, _ = saddle_step(row(rows, _short, raise_rows), epsilon, pair)
        return State(pair), Visit(state.pair, pair)

    def pair(self, view: Barycenter, state: State, visit: Visit) -> Pair:
        """The barycenter of the potentials."""
        return view.into(state.pair)

    def check(self, view: Barycenter, state: State, visit: Visit) -> State:
        """Nothing to adapt."""
        return state


def _short(x: Logs) -> Logs:
    """What is missing of each marginal, in logarithms."""
    return Logs(-x.row, -x.column, -x.apart)
