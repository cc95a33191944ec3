"""How an entropic barycenter moves with its data, by the implicit function theorem on one sweep of projections.

    z = G(z; data),  z = (f, h):    (I - dG/dz) dz = dG/d(data),    by GMRES on products with dG/dz; nothing is unrolled

Shifting `f_k` by `c_k` with `sum_k w_k c_k = 0` changes no plan; G takes such shifts out, so the system is regular. The
rule is a `custom_jvp` whose tangent is a `lax.custom_linear_solve`: forward, backward, batched, of any order. The
derivative in the weights, in the masses (at empty bins from one side), in the cost and in epsilon all follow.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# GMRES: the relative residual asked for is eps_mach^(3/4); a derivative that misses eps_mach^(3/8) is NaN rather than
# wrong. That happens to debiased barycenters at a large epsilon, whose blur hides nearly everything of h.
KRYLOV, RESTARTS = 30, 40
# A bin whose debiasing is off by more than this, in logarithms, is on its way to 0.
VANISHING = 1e-2


class BarycenterPotentials(NamedTuple):
    """Multipliers: `f (k, n)` and `g (k, m)` of the k plans' marginals, `h (m,)` of the debiasing (0 without it)."""

    f: Any
    g: Any
    h: Any


@jax.custom_jvp
def barycenter_potentials(y: BarycenterPotentials, problem: Any) -> BarycenterPotentials:
    """y itself, potentials that solve the problem, with their derivative in its data.

    Example:
        >>> import pdopt
        >>> C = jnp.array([[0.0, 1.0], [1.0, 0.0]])
        >>> def first(w):
        ...     problem = pdopt.Barycenter(C, jnp.eye(2), jnp.stack([w, 1 - w]), epsilon=1.0)
        ...     y = jax.lax.stop_gradient(pdopt.solve(problem).y)
        ...     return problem.histogram(barycenter_potentials(y, problem))[0]
        >>> print(jax.jacfwd(first)(0.5).round(3))
        0.5
    """
    return BarycenterPotentials(*y)


@barycenter_potentials.defjvp
def _jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[BarycenterPotentials, BarycenterPotentials]:
    y, problem = primals
    found = barycenter_potentials(y, problem)
    point, level = (found.f, found.h), _means(problem, found.f)
    right = jax.jvp(lambda data: _sweep(data, point, level), (problem,), (tangents[1],))[1]

    size, seen = _scale(problem, point)
    # The linear solve wants every part of its right-hand side to be linear in the tangents, and h need not be.
    whole = 0 * (jnp.sum(right[0]) + jnp.sum(right[1]))
    right = (right[0] + whole, jnp.where(seen, right[1], 0) + whole)

    def system(u: Any) -> Any:
        z = (u[0], size * u[1])
        left = jax.tree.map(jnp.subtract, z, jax.jvp(lambda p: _sweep(problem, p, level), (point,), (z,))[1])
        return left[0], jnp.where(seen, left[1], u[1])

    f, u = lax.custom_linear_solve(system, right, _gmres, _gmres)
    moved = (f, size * u)
    g = jax.jvp(_columns, (problem, *point), (tangents[1], *moved))[1]
    return found, BarycenterPotentials(moved[0], g, moved[1])


def _columns(problem: Any, f: Any, h: Any) -> Any:
    """g with which every plan has the column sums b."""
    s = problem.column_potentials(f)
    return s + problem.epsilon * problem.log_histogram(s, h)


def _scale(problem: Any, point: Any) -> tuple[Any, Any]:
    """How h is measured, `dh = size u`: where b is small h hardly matters. Bins on their way to 0 are held.

    A debiased barycenter may have bins of mass 0: there h falls for ever and its equation is never met.
    """
    f, h = point
    if not problem.debiased:
        return jnp.ones_like(h), jnp.ones(h.shape, bool)
    log_b = problem.log_histogram(problem.column_potentials(f), h)
    b = jnp.exp(log_b)
    seen = (b > jnp.finfo(b.dtype).eps * jnp.max(b)) & (jnp.abs(log_b - problem.log_self(h)) <= VANISHING)
    return jnp.where(seen, jnp.max(b) / jnp.where(seen, b, 1), 0), seen


def _means(problem: Any, f: Any) -> Any:
    return jnp.sum(problem.histograms * f, axis=1) / jnp.sum(problem.histograms, axis=1)


def _sweep(problem: Any, z: Any, level: Any) -> Any:
    """One sweep, after which every `f_k` is shifted towards its level, as far as no plan sees it."""
    f, h = z
    g = _columns(problem, f, h)
    if problem.debiased:
        log_b = problem.log_histogram(problem.column_potentials(f), h)
        h = h + problem.epsilon / 2 * (log_b - problem.log_self(h))
    else:
        h = jnp.zeros_like(h)
    f = problem.row_potentials(g)
    above = _means(problem, f) - level
    return f - (above - problem.shares @ above)[:, None], h


def _gmres(product: Any, right: Any) -> Any:
    mach = float(jnp.finfo(right[0].dtype).eps)
    # "batched": least squares for a whole cycle, which survives a Krylov space that ends early.
    options = {"tol": mach**0.75, "restart": KRYLOV, "maxiter": RESTARTS, "solve_method": "batched"}
    found = jax.scipy.sparse.linalg.gmres(product, right, **options)[0]
    norm = lambda z: jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(z)))
    error = norm(jax.tree.map(jnp.subtract, product(found), right))
    return jax.tree.map(lambda leaf: jnp.where(error <= mach**0.375 * norm(right), leaf, jnp.nan), found)
