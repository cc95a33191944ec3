"""Entropic transport as Sinkhorn's method sees it: y = (f, g) moves, x is what their plan puts on both sides.

Potentials are kept in the user's units. Bins without mass take no part: their potentials are 0. Marginals that nobody
has computed yet are written as zeros (nothing has been carried): their error, the whole mass, is never within a
tolerance.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from pdopt.errors import UnsupportedProblem
from pdopt.problems.costs import Cost
from pdopt.problems.couplings import Marginals, Potentials, marginal_error
from pdopt.problems.entropy import Entropy, log_mass
from pdopt.problems.transport import Transport
from pdopt.types import Pair, record


@record
class EntropicView:
    """What half sweeps read.

    Attributes:
        cost: cost operator, `(n, m)`.
        a, b: masses; log_a, log_b: their logarithms, -inf where there is none.
        epsilon: weight of the entropy.
        lost: `1 / rho_a`, 0 for a balanced side; gained: `1 / rho_b`.
    """

    cost: Cost
    a: Any
    b: Any
    log_a: Any
    log_b: Any
    epsilon: Any
    lost: Any
    gained: Any

    def start(self) -> Pair:
        """Zero potentials, of which nothing is known."""
        return Pair(self.unknown(), Potentials(jnp.zeros_like(self.a), jnp.zeros_like(self.b)))

    def unknown(self) -> Marginals:
        """Marginals that nobody has computed."""
        return Marginals(jnp.zeros_like(self.a), jnp.zeros_like(self.b))

    def into(self, pair: Pair) -> Pair:
        """The pair with the potentials of empty bins at 0."""
        y = pair.y
        return Pair(pair.x, Potentials(jnp.where(self.a > 0, y.f, 0), jnp.where(self.b > 0, y.g, 0)))

    def back(self, pair: Pair) -> Pair:
        """The pair itself: the view has the user's units."""
        return pair

    def log_targets(self, y: Potentials) -> Marginals:
        """Logarithms of what the marginals should be: `log a - f / rho_a`, `log b - g / rho_b`."""
        return Marginals(self.log_a - y.f * self.lost, self.log_b - y.g * self.gained)

    def error(self, pair: Pair) -> Any:
        """L1 error of both marginals over the mass of a."""
        error = marginal_error(pair.x, *(jnp.exp(log) for log in self.log_targets(pair.y)))
        return (error.row + error.column) / jnp.sum(self.a)


def entropic(problem: Any) -> EntropicView:
    """The view of a `Transport` with `Entropy`.

    Raises:
        UnsupportedProblem: any other problem.

    Example:
        >>> problem = Transport(jnp.zeros((2, 3), jnp.float32), regulariser=Entropy(1.0))
        >>> print(entropic(problem).log_a)
        [-0.6931472 -0.6931472]
    """
    if not isinstance(problem, Transport) or not isinstance(problem.regulariser, Entropy):
        raise UnsupportedProblem(
            f"{type(problem).__name__} offers no entropic view; expected a Transport with regulariser=Entropy(epsilon)"
        )
    lost, gained = (1 / rho for rho in problem.unbalanced)
    epsilon = jnp.asarray(problem.regulariser.epsilon, problem.cost.dtype)
    return EntropicView(
        problem.cost, problem.a, problem.b, log_mass(problem.a), log_mass(problem.b), epsilon, lost, gained
    )


def entries(cost: Cost) -> int:
    """How many entries the cost has."""
    return int(np.prod(cost.shape))
