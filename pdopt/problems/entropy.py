"""Entropic transport: `R(T) = epsilon KL(T | a b')`, whose plan is a formula of the potentials (Cuturi 2013).

    T = a b' exp((f (+) g - C) / epsilon),   KL(T | ab') = sum T log(T / ab') - T + ab'
    dual:  max_{f,g} <f, a> + <g, b> - epsilon sum (T - ab')

In this relative form the potentials stay of the size of the cost. A bin without mass takes no part: its potential is 0.
The primal iterate inside a solver is what the plan puts on both sides, `Marginals`: the plan itself is never stored.

Unbalanced, `+ rho_a KL(T1 | a) + rho_b KL(T'1 | b)` replaces the constraints (Chizat et al. 2018): at an optimum
`T1 = a exp(-f / rho_a)`, the target that marginals are compared with, and `<f, a>` becomes `rho_a <a, 1 - exp(-f /
rho_a)>`. A balanced side is `1 / rho = 0`, exactly.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pdopt.errors import require_range
from pdopt.problems.checks import concrete
from pdopt.problems.costs import three_sum
from pdopt.problems.couplings import Marginals, Potentials, marginal_error
from pdopt.problems.entropic_dual import entropic_dual, extended, log_mass, soft_mass
from pdopt.problems.entropic_gradients import potentials
from pdopt.problems.regularisers import Regulariser
from pdopt.runtime.precision import precision_scope
from pdopt.types import Optimality, Pair, Residuals, Status, record

# Share of `eps_mach (<|f|, a> + <|g|, b>) / epsilon`, the bound on what rounded potentials add to an error, that
# marginals carried along may not have seen: they know of their own potential's rounding, not of the other side's.
UNSEEN = 0.5


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

    # Sweeps; a first-order linear solve takes many more, cheaper steps.
    max_iterations = 2000

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
        """L1 error of both marginals against their targets, and both objectives.

        Inside a solver x is the marginals, which are taken at their word up to rounding; for a pair with a plan they
        are computed afresh from the potentials. The gap of plan and potentials is `<f, T1 - a> + <g, T'1 - b>`;
        relative to the spread of the potentials it is never larger than the marginal error, which therefore is what a
        tolerance bounds.
        """
        y, a, b = pair.y, problem.a, problem.b
        carried = isinstance(pair.x, Marginals)
        marginals = pair.x if carried else entropic_marginals(problem, y)
        error = marginal_error(marginals, *entropic_targets(problem, y))
        total = jnp.sum(a)
        rho_a, rho_b = problem.unbalanced
        excess = self.epsilon * (jnp.sum(marginals.row) - total * jnp.sum(b))
        bound = soft_mass(y.f, a, rho_a) + soft_mass(y.g, b, rho_b) - excess
        gap = _side_gap(y.f, a, marginals.row, rho_a) + _side_gap(y.g, b, marginals.column, rho_b)
        spread = jnp.max(jnp.abs(y.f)) + jnp.max(jnp.abs(y.g))
        primal, zero = error.row + error.column, jnp.zeros((), a.dtype)
        if carried:
            sizes = jnp.vdot(jnp.abs(y.f), a) + jnp.vdot(jnp.abs(y.g), b)
            primal += UNSEEN * jnp.finfo(a.dtype).eps * sizes / self.epsilon
        relative = jnp.abs(gap) / jnp.where(spread > 0, spread * total, 1)
        residuals = Residuals(primal / total, zero, relative, primal, zero, jnp.abs(gap), jnp.maximum(*error))
        return Optimality(residuals, bound + gap, bound, error)

    def audited(self, problem: Any, pair: Pair, status: Any, tolerance: Any) -> tuple[Optimality, Any]:
        """What the returned potentials truly reach: in float32 less than the iteration believed, where rounding rules.

        Potentials are rounded to about `eps |f|`, which an exponential magnifies to `eps max|f| / epsilon`. Where that
        hides the tolerance, OPTIMAL becomes PRECISION_LIMIT; what is within it after all is OPTIMAL.
        """
        found = self.optimality(problem, Pair((), pair.y))
        met = found.residuals.error <= tolerance
        optimal, hidden, limit = (
            jnp.int32(int(s)) for s in (Status.OPTIMAL, Status.PRECISION_LIMIT, Status.ITERATION_LIMIT)
        )
        status = jnp.where((status == optimal) & ~met, hidden, status)
        return found, jnp.where(((status == hidden) | (status == limit)) & met, optimal, status)

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
        entries = lambda block, f, a: _entries(f, self.g, block, a, self.b, self.epsilon) @ v
        with precision_scope(self):
            return self.cost.rows(entries, self.f, self.a)

    def rmatvec(self, u: Any) -> Any:
        """`T'u`."""
        with precision_scope(self):
            return EntropicPlan(self.cost.transpose(), self.b, self.a, self.g, self.f, self.epsilon).matvec(u)

    def todense(self) -> Any:
        """The plan, `(n, m)`."""
        with precision_scope(self):
            return _entries(self.f, self.g, self.cost.todense(), self.a, self.b, self.epsilon)


def _entries(f: Any, g: Any, C: Any, a: Any, b: Any, epsilon: Any) -> Any:
    """Entries of a plan; the masses stay outside of the exponential, or an empty bin would have no slope in its mass.

    Where the potentials are a plan's, the exponential is at most the inverse of a mass; the bound is for those that
    float32 could not invert.
    """
    exponent = three_sum(f[:, None], g, -C) / epsilon
    room = 0.999 * jnp.log(jnp.asarray(jnp.finfo(exponent.dtype).max, exponent.dtype))
    return a[:, None] * (b * jnp.exp(jnp.minimum(exponent, room)))


def entropic_marginals(problem: Any, y: Potentials) -> Marginals:
    """`(T1, T'1)` of the plan that the potentials define, in the log domain, with compensated exponents.

    Example:
        >>> from pdopt.problems.transport import Transport
        >>> problem = Transport(jnp.zeros((2, 3), jnp.float32), regulariser=Entropy(1.0))
        >>> print(entropic_marginals(problem, Potentials(jnp.zeros(2), jnp.zeros(3))).row)
        [0.5 0.5]
    """
    cost, epsilon, a, b = problem.cost, problem.regulariser.epsilon, problem.a, problem.b
    row = cost.log_rows(y.f, y.g, log_mass(b), epsilon)
    column = cost.log_columns(y.f, y.g, log_mass(a), epsilon)
    # An empty bin's potential is 0, not what would be feasible: its exponential may overflow, its mass is still 0.
    return Marginals(jnp.exp(log_mass(a) + row), jnp.exp(log_mass(b) + column))


def entropic_targets(problem: Any, y: Potentials) -> Marginals:
    """What the marginals should be: `a exp(-f / rho_a)` and `b exp(-g / rho_b)`; a and b where balanced."""
    lost, gained = (1 / rho for rho in problem.unbalanced)
    return Marginals(problem.a * jnp.exp(-y.f * lost), problem.b * jnp.exp(-y.g * gained))


def _side_gap(f: Any, a: Any, marginal: Any, rho: Any) -> Any:
    """What one side leaves open: `<f, T1 - a>`, or `<f, T1> + rho KL(T1 | a)` less the conjugate at f."""
    weight = jnp.where(jnp.isfinite(rho), rho, 1)
    there = (a > 0) & (marginal > 0)
    logs = jnp.where(there, marginal * jnp.log(jnp.where(there, marginal / jnp.where(a > 0, a, 1), 1)), 0)
    divergence = weight * jnp.sum(logs - marginal + a)
    soft = jnp.vdot(f, marginal) + divergence - soft_mass(f, a, rho)
    return jnp.where(jnp.isfinite(rho), soft, jnp.vdot(f, marginal - a))
