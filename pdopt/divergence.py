"""The Sinkhorn divergence: entropic transport without its bias (Feydy et al. 2019, arXiv 1810.08278).

    S(a, b) = OT(a, b) - (OT(a, a) + OT(b, b)) / 2 + (epsilon / 2) (sum a - sum b)^2

The last term belongs to the unbalanced form (Sejourne et al. 2019, arXiv 1910.12958) and is 0 for equal totals. For a
squared Euclidean cost (any cost c with a positive definite kernel exp(-c / epsilon)) S >= 0, and S = 0 only at a = b.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from pdopt.errors import InvalidProblem
from pdopt.methods.symmetric_sinkhorn import SymmetricSinkhorn
from pdopt.problems.costs import Cost
from pdopt.problems.entropy import Entropy
from pdopt.problems.point_costs import SqEuclidean
from pdopt.problems.transport import Transport
from pdopt.runtime.precision import precision_scope
from pdopt.solve import solve
from pdopt.types import Solution, Status, record


@record
class Divergence:
    """What `sinkhorn_divergence` returns.

    Attributes:
        value: S, differentiable.
        status: OPTIMAL if all three problems are, else the status of the first one that is not.
        iterations: of all three together.
        cross, first, second: the solutions of OT(a, b), OT(a, a) and OT(b, b).

    Example:
        >>> found = sinkhorn_divergence([[0.0, 1.0], [1.0, 0.0]], epsilon=1.0)
        >>> print(found.reason)
        optimal
    """

    value: Any
    status: Any
    iterations: Any
    cross: Solution
    first: Solution
    second: Solution

    @property
    def reason(self) -> Status:
        """The status as an enum; for a single (not batched) divergence, on the host."""
        return Status(int(self.status))


def sinkhorn_divergence(
    cost: Any,
    a: Any = None,
    b: Any = None,
    *,
    epsilon: Any,
    unbalanced: Any = np.inf,
    within: tuple[Any, Any] | None = None,
    method: Any = None,
    tolerance: Any = None,
    max_iterations: Any = None,
    gradient: str = "implicit",
) -> Divergence:
    """`OT(a, b) - (OT(a, a) + OT(b, b)) / 2`, zero at a = b.

    Values are those of the dual functions, whose error is of second order in what is left of the marginals.

    Args:
        cost: between the two supports, `(n, m)` array or cost operator; differentiable, points of `SqEuclidean` too.
        a, b: masses, `(n,)` and `(m,)`; None: uniform. Differentiable, at empty bins from one side.
        epsilon: weight of the entropy, > 0, in units of cost.
        unbalanced: weight rho of `rho KL(marginal | mass)` on both sides; inf: marginals hold.
        within: costs inside the first and inside the second support, symmetric. None: for `SqEuclidean`, the same cost
            of the same points; else both measures live on one support and `cost` itself (square, symmetric) is taken.
        method: for `OT(a, b)`; None: the default. The other two are solved by `SymmetricSinkhorn`.
        tolerance: of each problem; None: 1e-6 in float64, 1e-4 in float32, where it may come out slightly negative.
        max_iterations, gradient: as for `pdopt.solve`.

    Returns:
        `Divergence`; its `value` has first and second derivatives.

    Raises:
        InvalidProblem: as for `Transport`; also a cost that is not square where `within` is needed.

    Example:
        >>> points = jnp.array([[0.0], [1.0], [3.0]])
        >>> found = sinkhorn_divergence(SqEuclidean(points, points + 2), epsilon=0.5)
        >>> print(round(float(found.value), 3))  # t^2 for a translation by t
        4.0
    """
    options = {"max_iterations": max_iterations, "gradient": gradient}
    problem = Transport(cost, a, b, Entropy(epsilon), (unbalanced, unbalanced))
    inside = _within(problem.cost) if within is None else within
    narrow = problem.a.dtype == jnp.float32
    options["tolerance"] = (1e-4 if narrow else 1e-6) if tolerance is None else tolerance
    found = [solve(problem, method, **options)]
    for cost_inside, masses in zip(inside, (problem.a, problem.b)):
        alone = Transport(cost_inside, masses, masses, problem.regulariser, problem.unbalanced)
        found.append(solve(alone, SymmetricSinkhorn(), **options))
    cross, first, second = found
    with precision_scope(problem):
        total, left, right = (_sharp(solution) for solution in found)
        value = total - (left + right) / 2
        more = jnp.sum(problem.a) - jnp.sum(problem.b)
        epsilon = problem.regulariser.epsilon
        value = value + jnp.where(jnp.isinf(problem.unbalanced[0]), 0, epsilon / 2 * more**2)
        status = jnp.where(first.status == Status.OPTIMAL, second.status, first.status)
        status = jnp.where(cross.status == Status.OPTIMAL, status, cross.status)
    iterations = cross.iterations + first.iterations + second.iterations
    return Divergence(value, status, iterations, cross, first, second)


def _sharp(solution: Solution) -> Any:
    """The dual objective, with the derivative of the value."""
    return solution.objective + lax.stop_gradient(solution.dual_objective - solution.objective)


def _within(cost: Cost) -> tuple[Cost, Cost]:
    if isinstance(cost, SqEuclidean):
        return SqEuclidean(cost.x, cost.x), SqEuclidean(cost.y, cost.y)
    n, m = cost.shape
    if n != m:
        raise InvalidProblem(
            f"cost has shape {(n, m)}; expected a square one (both measures on one support), or within=(cost_aa, "
            "cost_bb), the costs inside each support"
        )
    return cost, cost
