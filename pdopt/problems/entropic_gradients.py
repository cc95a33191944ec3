"""How the potentials of entropic transport move with the data, by the implicit function theorem; nothing is unrolled.

    H (df, dg) = epsilon d(dD/d(f, g)) along the change of the data,   H = [[diag(r), P], [P', diag(c)]]
    r = P 1 + epsilon a exp(-f / rho_a) / rho_a,   c likewise (second terms 0 where balanced)

D is the dual function of `entropic_dual.py`, P the plan. One side is eliminated: with `S = diag(c) - P' diag(1/r) P`,
`S dg = h_g - P'(h_f / r)`, and `df = (h_f - P dg) / r`, by conjugate gradients on `c^-1/2 S c^-1/2`, whose spectrum
lies in [0, 1]. Balanced, S is singular along the constants: potentials are unique up to `(f + t, g - t)`, and the
derivative returned is the least one, orthogonal to that shift on the bins with mass. A change of the data that
makes the totals of a and b differ has no potentials; what is returned then is the least-squares derivative.

The rule is a `custom_jvp` whose tangent is a `lax.custom_linear_solve`: forward, backward, batched, and of any order.
Derivatives are those at the potentials returned: they are as accurate as the solve. A float64 problem's belong inside
`jax.enable_x64(True)`; elsewhere JAX cuts what is pulled back to float32, and says so.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pdopt.problems.couplings import Potentials
from pdopt.problems.entropic_dual import curvature, entropic_dual, extended, support
from pdopt.problems.entropic_products import plan_products

# The relative residual asked of the conjugate gradients is eps_mach^(3/4), near what rounding allows; a derivative
# whose residual is above eps_mach^(3/8) is NaN rather than wrong.
CG_ITERATIONS = 2000


@jax.custom_jvp
def potentials(y: Potentials, problem: Any) -> Potentials:
    """y itself, potentials that solve the problem, with their derivative in the cost, a, b, epsilon and rho.

    Bins without mass keep the potential 0; `extended` gives them one, from there by plain differentiation.

    Example:
        >>> import pdopt
        >>> def f_at(c):
        ...     problem = pdopt.Transport(c * jnp.array([[1.0], [3.0]]), regulariser=pdopt.Entropy(1.0))
        ...     return potentials(Potentials(jnp.array([1.0, 3.0]), jnp.zeros(1)), problem).f
        >>> slope = jax.jacfwd(f_at)(1.0)  # f = (1, 3) c up to a shift of f against g
        >>> print(round(float(slope[1] - slope[0]), 3))
        2.0
    """
    return Potentials(*y)


@potentials.defjvp
def _potentials_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Potentials, Potentials]:
    y, problem = primals
    found = potentials(y, problem)
    mass = support(problem)
    point = extended(problem, found)
    slope = lambda y, data: jax.grad(entropic_dual)(y, data)
    moved = jax.jvp(lambda data: slope(point, data), (problem,), (tangents[1],))[1]
    epsilon = problem.regulariser.epsilon
    # The linear solve wants every part of its right-hand side to be linear in the tangents; rho_a, say, moves f alone.
    whole = 0 * (jnp.sum(moved.f) + jnp.sum(moved.g))
    right = jax.tree.map(lambda m, h: m * epsilon * (h + whole), mass, moved)

    def hessian(z: Potentials) -> Potentials:
        inside = jax.tree.map(jnp.multiply, mass, z)
        bent = jax.jvp(lambda y: slope(y, problem), (point,), (inside,))[1]
        # The identity on empty bins, whose right-hand side is 0.
        return jax.tree.map(lambda m, z, h: jnp.where(m > 0, -epsilon * h, z), mass, z, bent)

    solver = _Schur(problem, point, mass)
    return found, lax.custom_linear_solve(hessian, right, lambda _, h: solver(h), symmetric=True)


class _Schur:
    """`H^+ h`: what depends on the potentials alone is computed once."""

    def __init__(self, problem: Any, point: Potentials, mass: Potentials) -> None:
        problem, point = lax.stop_gradient((problem, point))
        epsilon, a, b = problem.regulariser.epsilon, problem.a, problem.b
        rho_a, rho_b = problem.unbalanced
        self.mass = mass
        self.plan = plan_products(problem.cost, a, b, point, epsilon)
        r = self.plan.forward(jnp.ones_like(b)) + curvature(point.f, a, rho_a, epsilon)
        c = self.plan.back(jnp.ones_like(a)) + curvature(point.g, b, rho_b, epsilon)
        self.r, self.root = jnp.where(mass.f > 0, r, 1), jnp.sqrt(jnp.where(mass.g > 0, c, 1))
        self.singular = jnp.isinf(rho_a) & jnp.isinf(rho_b)
        constant = mass.g * self.root
        self.constant = constant / jnp.linalg.norm(constant)

    def __call__(self, h: Potentials) -> Potentials:
        mach = jnp.finfo(self.r.dtype).eps
        h = self._unshifted(h)
        right = self._project((h.g - self.plan.back(h.f / self.r)) / self.root)
        product = lambda s: self._project(s - self.plan.schur(s / self.root, self.r) / self.root)
        s = jax.scipy.sparse.linalg.cg(product, right, tol=float(mach) ** 0.75, maxiter=CG_ITERATIONS)[0]
        s = self._project(s)
        error, size = jnp.linalg.norm(product(s) - right), jnp.linalg.norm(right)
        g = jnp.where(error <= float(mach) ** 0.375 * size, s, jnp.nan) / self.root
        return self._unshifted(Potentials((h.f - self.plan.forward(g)) / self.r, g))

    def _project(self, s: Any) -> Any:
        """s without its part along the null vector, where there is one."""
        return s - jnp.where(self.singular, jnp.vdot(self.constant, s), 0) * self.constant

    def _unshifted(self, z: Potentials) -> Potentials:
        """z without its part along `(1, -1)` on the bins with mass, where potentials may be shifted."""
        difference = jnp.vdot(self.mass.f, z.f) - jnp.vdot(self.mass.g, z.g)
        size = jnp.sum(self.mass.f) + jnp.sum(self.mass.g)
        shift = jnp.where(self.singular, difference / size, 0)
        return Potentials(z.f - shift * self.mass.f, z.g + shift * self.mass.g)
