"""The dual function of entropic transport, from which every derivative of this problem follows.

    D(f, g; C, a, b, epsilon, rho) = t(f, a, rho_a) + t(g, b, rho_b) - epsilon (sum a_i b_j K_ij - sum a sum b)
    K_ij = exp((f_i + g_j - C_ij) / epsilon),   t(f, a, inf) = <f, a>,   t(f, a, rho) = -rho <a, exp(-f / rho) - 1>

The potentials maximise D: the value has the slope of D in the data with the potentials held, and the slope of the
potentials is that of the equation `dD / d(f, g) = 0` (`entropic_gradients.py`). D is computed in blocks of rows whose
entries are made again on the way back, so derivatives of every order need no `(n, m)` array (Feydy et al. 2019,
arXiv 1810.08278; unbalanced: Sejourne et al. 2019, arXiv 1910.12958).
"""

from functools import singledispatch
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pdopt.problems.costs import Cost
from pdopt.problems.couplings import Potentials
from pdopt.problems.grid_cost import Grid


def log_mass(a: Any) -> Any:
    """`log a`, -inf where there is no mass, with a derivative that is 0 there.

    Example:
        >>> print(log_mass(jnp.array([1.0, 0.0])))
        [  0. -inf]
    """
    return jnp.where(a > 0, jnp.log(jnp.where(a > 0, a, 1)), -jnp.inf)


@singledispatch
def scaled_sums(cost: Cost, f: Any, g: Any, b: Any, epsilon: Any) -> Any:
    """`sum_j b_j exp((f_i + g_j - C_ij) / epsilon)`, `(n,)`; differentiable in all of it, b = 0 included.

    Not in the log domain: for potentials near an optimum `a_i b_j K_ij` is a plan, and no entry of K overflows.

    Example:
        >>> from pdopt.problems.costs import DenseCost
        >>> print(scaled_sums(DenseCost(jnp.zeros((1, 2))), jnp.zeros(1), jnp.zeros(2), jnp.ones(2), 1.0))
        [2.]
    """
    entries = lambda block, f: jnp.matmul(
        jnp.exp((f[:, None] + g - block) / epsilon), b, precision=lax.Precision.HIGHEST
    )
    return cost.rows(entries, f)


@scaled_sums.register
def _(cost: Grid, f: Any, g: Any, b: Any, epsilon: Any) -> Any:
    # In the log domain, axis by axis. An empty bin counts as one with a mass far below rounding: nothing changes but
    # the derivative, which then is the one-sided one.
    least = jnp.finfo(b.dtype).eps ** 2 * jnp.max(b)
    masses = b + lax.stop_gradient(jnp.where(b > 0, 0, least))
    return jnp.exp((f - cost.softmin_rows(jnp.log(masses) + g / epsilon, epsilon)) / epsilon)


def entropic_dual(y: Potentials, problem: Any) -> Any:
    """D at the potentials y, which must be finite and, at bins without mass, those of `extended`.

    Example:
        >>> import pdopt
        >>> problem = pdopt.Transport(jnp.ones((2, 2), jnp.float32), regulariser=pdopt.Entropy(1.0))
        >>> print(entropic_dual(Potentials(jnp.ones(2), jnp.zeros(2)), problem))
        1.0
    """
    epsilon, a, b = problem.regulariser.epsilon, problem.a, problem.b
    sums = scaled_sums(problem.cost, y.f, y.g, b, epsilon)
    # (sums - total of b) first: at an optimum of balanced masses it is 0, and nothing cancels afterwards.
    excess = jnp.vdot(a, sums - jnp.sum(b))
    rho_a, rho_b = problem.unbalanced
    return soft_mass(y.f, a, rho_a) + soft_mass(y.g, b, rho_b) - epsilon * excess


def soft_mass(f: Any, a: Any, rho: Any) -> Any:
    """`rho <a, 1 - exp(-f / rho)>`, what a side's potentials are worth; `<f, a>` for rho = inf.

    No branch that is not taken may be infinite: its derivative would be NaN.

    Example:
        >>> print(soft_mass(jnp.ones(2), jnp.ones(2), jnp.inf))
        2.0
    """
    soft = jnp.isfinite(rho)
    weight = jnp.where(soft, rho, 1)
    return jnp.where(soft, -weight * jnp.vdot(a, jnp.expm1(-jnp.where(soft, f, 0) / weight)), jnp.vdot(f, a))


def curvature(f: Any, a: Any, rho: Any, epsilon: Any) -> Any:
    """`-epsilon d2 t / df2 = epsilon a exp(-f / rho) / rho`, 0 for rho = inf.

    Example:
        >>> print(curvature(jnp.zeros(2), jnp.ones(2), 2.0, 1.0))
        [0.5 0.5]
    """
    soft = jnp.isfinite(rho)
    weight = jnp.where(soft, rho, 1)
    return jnp.where(soft, epsilon * a * jnp.exp(-jnp.where(soft, f, 0) / weight) / weight, 0)


def extended(problem: Any, y: Potentials) -> Potentials:
    """y with the potential that an empty bin would have once it got mass, in place of 0.

    `f_i = -epsilon log sum_j b_j exp((g_j - C_ij) / epsilon)`, times `rho / (rho + epsilon)` where unbalanced: the
    one-sided derivative of the value in `a_i` at `a_i = 0`.

    Example:
        >>> import pdopt
        >>> problem = pdopt.Transport(jnp.array([[1.0], [5.0]]), jnp.array([1.0, 0.0]), regulariser=pdopt.Entropy(1.0))
        >>> print(extended(problem, Potentials(jnp.array([1.0, 0.0]), jnp.zeros(1))).f)
        [1. 5.]
    """
    cost, epsilon, a, b = problem.cost, problem.regulariser.epsilon, problem.a, problem.b
    rho_a, rho_b = problem.unbalanced

    def extend(y: Potentials) -> Potentials:
        f = _shrink(rho_a, epsilon) * cost.softmin_rows(log_mass(b) + y.g / epsilon, epsilon)
        g = _shrink(rho_b, epsilon) * cost.transpose().softmin_rows(log_mass(a) + y.f / epsilon, epsilon)
        return Potentials(jnp.where(a > 0, y.f, f), jnp.where(b > 0, y.g, g))

    empty = jnp.any(a <= 0) | jnp.any(b <= 0)
    return lax.cond(empty, extend, lambda y: y, Potentials(*y))


def _shrink(rho: Any, epsilon: Any) -> Any:
    soft = jnp.isfinite(rho)
    weight = jnp.where(soft, rho, 1)
    return jnp.where(soft, weight / (weight + epsilon), 1)


def support(problem: Any) -> Potentials:
    """1 where there is mass, 0 elsewhere, on both sides.

    Example:
        >>> import pdopt
        >>> problem = pdopt.Transport(jnp.zeros((2, 1)), jnp.array([1.0, 0.0]), regulariser=pdopt.Entropy(1.0))
        >>> print(support(problem).f)
        [1. 0.]
    """
    return jax.tree.map(lambda mass: (mass > 0).astype(mass.dtype), Potentials(problem.a, problem.b))
