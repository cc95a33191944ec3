"""Entropic transport: `R(T) = epsilon KL(T | a b')`, whose plan is a formula of the potentials (Cuturi 2013).

    T = a b' exp((f (+) g - C) / epsilon),   KL(T | ab') = sum T log(T / ab') - T + ab'
    dual:  max_{f,g} <f, a> + <g, b> - epsilon sum (T - ab')

In this relative form the potentials stay of the size of the cost. A bin without mass takes no part: its potential is 0.
The primal iterate inside a solver is what the plan puts on both sides, `Marginals`: the plan itself is never stored.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pdopt.errors import require_range
from pdopt.problems.checks import concrete
from pdopt.problems.couplings import Marginals, Potentials, marginal_error
from pdopt.problems.entropic_dual import entropic_dual, extended, log_mass
from pdopt.problems.entropic_gradients import potentials
from pdopt.problems.regularisers import Regulariser
from pdopt.types import Optimality, Pair, Residuals, record


@record
class Entropy(Regulariser):
    """`epsilon KL(T | a b')`.

    Attributes:
        epsilon: > 0, in units of cost.

    Raises:
        InvalidOption: epsilon is not > 0.

    Example:
        >>> Entropy(0.1).epsilon
        0.1
    """

    epsilon: Any

    def __post_init__(self) -> None:
        if concrete(self.epsilon) is not None:
            require_range("epsilon", self.epsilon, 0.0, open_low=True)

    def shapes(self, problem: Any) -> Marginals:
        """The marginals of the plan."""
        n, m = problem.shape
        return Marginals(*(jax.ShapeDtypeStruct((size,), problem.cost.dtype) for size in (n, m)))

    def inside(self, problem: Any, y: Potentials) -> Marginals:
        """The marginals of the plan that y defines."""
        return entropic_marginals(problem, y)

    def plan(self, problem: Any, pair: Pair) -> "EntropicPlan":
        """The plan of the potentials; at an empty bin that of `extended`, so that a derivative in its mass is right."""
        y = extended(problem, pair.y)
        return EntropicPlan(problem.cost, problem.a, problem.b, y.f, y.g, self.epsilon)

    def optimality(self, problem: Any, pair: Pair) -> Optimality:
        """L1 error of both marginals of the plan that the potentials define, judged afresh.

        The gap of plan and potentials is `<f, T1 - a> + <g, T'1 - b>`; relative to the spread of the potentials it is
        never larger than the marginal error, which therefore is what a tolerance bounds.
        """
        y, a, b = pair.y, problem.a, problem.b
        marginals = entropic_marginals(problem, y)
        error = marginal_error(marginals, a, b)
        total = jnp.sum(a)
        mass = jnp.sum(marginals.row)
        bound = jnp.vdot(y.f, a) + jnp.vdot(y.g, b) - self.epsilon * (mass - total * jnp.sum(b))
        signed = jnp.vdot(y.f, marginals.row - a) + jnp.vdot(y.g, marginals.column - b)
        spread = jnp.max(jnp.abs(y.f)) + jnp.max(jnp.abs(y.g))
        primal, zero = error.row + error.column, jnp.zeros((), a.dtype)
        gap = jnp.abs(signed)
        relative = gap / jnp.where(spread > 0, spread * total, 1)
        residuals = Residuals(primal / total, zero, relative, primal, zero, gap, jnp.maximum(*error))
        return Optimality(residuals, bound + signed, bound, error)

    def lagrangian(self, problem: Any, pair: Pair) -> Any:
        """The dual function at the potentials, whose derivative is that of the value; see `entropic_dual.py`."""
        return entropic_dual(extended(problem, pair.y), problem)

    def differentiated(self, problem: Any, pair: Pair) -> Pair:
        """The pair with the derivative of its potentials: the implicit function theorem, `entropic_gradients.py`."""
        return Pair(pair.x, potentials(pair.y, problem))


@record
class EntropicPlan:
    """`T = a b' exp((f (+) g - C) / epsilon)` as an operator; only `todense` stores it."""

    cost: Any
    a: Any
    b: Any
    f: Any
    g: Any
    epsilon: Any

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, m)`."""
        return self.cost.shape

    @property
    def dtype(self) -> Any:
        """Dtype of the entries."""
        return self.cost.dtype

    def matvec(self, v: Any) -> Any:
        """`T v`, block by block."""
        entries = lambda block, f, a: a * (jnp.exp((f[:, None] + self.g - block) / self.epsilon) @ (self.b * v))
        return self.cost.rows(entries, self.f, self.a)

    def rmatvec(self, u: Any) -> Any:
        """`T'u`."""
        return EntropicPlan(self.cost.transpose(), self.b, self.a, self.g, self.f, self.epsilon).matvec(u)

    def todense(self) -> Any:
        """The plan, `(n, m)`."""
        exponent = (self.f[:, None] + self.g - self.cost.todense()) / self.epsilon
        return self.a[:, None] * self.b * jnp.exp(exponent)


def entropic_marginals(problem: Any, y: Potentials) -> Marginals:
    """`(T1, T'1)` of the plan that the potentials define, in the log domain.

    Example:
        >>> from pdopt.problems.transport import Transport
        >>> problem = Transport(jnp.zeros((2, 3), jnp.float32), regulariser=Entropy(1.0))
        >>> print(entropic_marginals(problem, Potentials(jnp.zeros(2), jnp.zeros(3))).row)
        [0.5 0.5]
    """
    cost, epsilon, a, b = problem.cost, problem.regulariser.epsilon, problem.a, problem.b
    soft_f = cost.softmin_rows(log_mass(b) + y.g / epsilon, epsilon)
    soft_g = cost.transpose().softmin_rows(log_mass(a) + y.f / epsilon, epsilon)
    return Marginals(a * jnp.exp((y.f - soft_f) / epsilon), b * jnp.exp((y.g - soft_g) / epsilon))
