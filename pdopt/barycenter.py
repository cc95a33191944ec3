"""`barycenter`: the entropic (or debiased) barycenter of histograms in one call."""

from typing import Any

from pdopt.methods.bregman_projections import BregmanProjections
from pdopt.problems.barycenter import Barycenter
from pdopt.solve import solve
from pdopt.types import Solution


def barycenter(
    cost: Any,
    histograms: Any,
    weights: Any = None,
    *,
    epsilon: Any,
    debiased: bool = False,
    method: Any = None,
    start: Any = None,
    tolerance: Any = None,
    max_iterations: Any = None,
    gradient: str = "implicit",
    history: int = 0,
) -> Solution:
    """`argmin_b sum_k w_k OT(a_k, b)`, less `OT(b, b) / 2` where debiased; see `Barycenter`.

    Args:
        cost: `(n, m)` array or cost operator; separable `Grid` costs go axis by axis.
        histograms: `(k, n)` masses of one total.
        weights: `(k,)`, divided by their sum; None: equal.
        epsilon: weight of the entropy, > 0, in units of cost.
        debiased: remove the blur of the entropy (square, symmetric costs).
        method: `BregmanProjections` with settings; None: its defaults.
        start, tolerance, max_iterations, gradient, history: as for `pdopt.solve`. `tolerance` bounds the weighted L1
            error of the marginals.

    Returns:
        `Solution`: x the barycenter `(m,)`, y the potentials. Objective, x and y are differentiable in the cost, the
        histograms, the weights and epsilon by the implicit function theorem.

    Raises:
        InvalidProblem, InvalidOption: as for `Barycenter` and `solve`.

    Example:
        >>> import jax.numpy as jnp
        >>> line = (jnp.arange(5.0)[:, None] - jnp.arange(5.0)) ** 2
        >>> ends = jnp.array([[1.0, 0, 0, 0, 0], [0, 0, 0, 0, 1.0]])
        >>> print(barycenter(line, ends, epsilon=0.5, debiased=True).x.round(2))
        [0. 0. 1. 0. 0.]
    """
    problem = Barycenter(cost, histograms, weights, epsilon, debiased)
    options = {"tolerance": tolerance, "max_iterations": max_iterations, "gradient": gradient, "history": history}
    return solve(problem, BregmanProjections() if method is None else method, start=start, **options)
