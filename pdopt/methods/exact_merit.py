"""The exact merit of an equality-constrained program, and its optimality system by products.

    r = (grad_x L, c),   K = [ H  J' ; J  0 ],   M = L + eta1 |c|^2 / 2 + eta2 |grad_x L|^2 / 2,
    grad M = r + K (eta2 grad_x L, eta1 c)

One linearisation gives r, K and, by them, the slope of M: no matrix is formed. Sizes of H and J come from a few power
iterations a step, each going on from the last.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from pdopt.problems.nonlinear_view import NonlinearView
from pdopt.types import Pair, record

SHIFT = 0.1  # xi_B: what the largest shift has on top of |H| (authors' code)


class Sizes(NamedTuple):
    """`|H|`, `|J|` and `sigma_min(J)` by power iteration, and the vectors `(3, n + m)` that the next begins from."""

    hessian: Any
    jacobian: Any
    least: Any
    vectors: Any


class Weights(NamedTuple):
    """eta1, eta2, delta of the merit and of the rule, and tau."""

    feasible: Any
    stationary: Any
    delta: Any
    shift: Any


@record
class Merit:
    """`M(x, y) = L + eta1 |c|^2 / 2 + eta2 |grad_x L|^2 / 2` at z = (x, y), in the form that a line search consumes.

    Attributes:
        view: the scaled program; feasible: eta1; stationary: eta2.
        keep: 1, or 0 for `eta1 |c|^2 / 2` alone.
    """

    view: NonlinearView
    feasible: Any
    stationary: Any
    keep: Any = 1.0

    lower, upper = -jnp.inf, jnp.inf

    def value(self, z: Any) -> Any:
        """M at z, `(n + m,)`."""
        n = self.view.lower.size
        x, y = z[:n], z[n:]
        (f, c), pull = jax.vjp(self.view.measured, x)
        (slope,) = pull((jnp.ones_like(f), y))
        whole = f + jnp.sum(y * c) + self.stationary / 2 * jnp.sum(slope**2)
        return self.keep * whole + self.feasible / 2 * jnp.sum(c**2)


class Linearised(NamedTuple):
    """The optimality system linearised at a pair: r, and K by its products."""

    view: NonlinearView
    residual: Any
    product: Callable[[Any], Any]
    primal: int

    @staticmethod
    def at(view: NonlinearView, pair: Pair) -> "Linearised":
        """The system of a view at a pair of its units."""
        n = pair.x.size

        def conditions(z: Any) -> Any:
            (f, c), pull = jax.vjp(view.measured, z[:n])
            (slope,) = pull((jnp.ones_like(f), z[n:]))
            return jnp.concatenate([slope, c])

        residual, product = jax.linearize(conditions, jnp.concatenate(pair))
        return Linearised(view, residual, product, n)

    def split(self, z: Any) -> tuple[Any, Any]:
        """The parts of x and y."""
        return z[: self.primal], z[self.primal :]

    def shift(self, tau: Any) -> Any:
        """`(n + m,)`: tau on the entries of x."""
        return jnp.where(jnp.arange(self.residual.size) < self.primal, tau, 0)

    def weighted(self, w: Weights, keep: Any = 1.0) -> Any:
        """`(keep eta2 grad_x L, eta1 c)`."""
        above = jnp.arange(self.residual.size) < self.primal
        return self.residual * jnp.where(above, keep * w.stationary, w.feasible)

    def merit_slope(self, w: Weights, keep: Any = 1.0) -> Any:
        """`grad M = r + K (eta2 grad_x L, eta1 c)`: H and not the Hessian of f, by one product. `keep`: see `Merit`."""
        return keep * self.residual + self.product(self.weighted(w, keep))

    def conditioned(self, inverse: Any) -> Any:
        """A preconditioner of the user's units and shapes as a map of flat scaled vectors.

        With `z = T z_s`, `K_s` is `T' K T` up to a factor, so the inverse of its preconditioner is `T^-1 P^-1 T'^-1`.
        """
        view, units = self.view, self.view.units
        x_like, y_like = ravel_pytree(view.program.start)[1], ravel_pytree(view.like)[1]
        d, s = units.variables, units.rows / units.objective

        def apply(v: Any) -> Any:
            x, y = self.split(v)
            given = x_like(x / d), y_like(y / s)  # residuals of the two rows, in the shapes of x and y
            step = inverse(Pair(*given), *view.program.args)
            return jnp.concatenate([ravel_pytree(step.x)[0] / d, ravel_pytree(step.y)[0] / s]).astype(v.dtype)

        return apply

    def sizes(self, last: Sizes, count: Any) -> Sizes:
        """`|H|`, `|J|`, `sigma_min(J)` after `count` more power iterations on H, JJ' and `1.1 |J|^2 - JJ'`.

        The first two come from below and the last one from above: estimates.
        """
        n = self.primal
        twice = jax.vmap(self.product)

        def body(_: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            v, found = carry
            once = twice(v)
            squared = twice(jnp.where(jnp.arange(v.shape[1]) < n, once[1:], 0))[:, n:]
            reach = 1.1 * found[1]
            gap = reach * v[2, n:] - squared[1]
            rows = [(once[0, :n], 0), (squared[0], n), (gap, n)]
            after = jnp.stack([jnp.zeros_like(v[0]).at[at : at + row.size].set(row) for row, at in rows])
            size = jnp.sqrt(jnp.sum(after**2, axis=1))
            fine = (size > 0) & jnp.isfinite(size)
            return jnp.where(fine[:, None], after / jnp.where(fine, size, 1)[:, None], v), jnp.where(fine, size, 0)

        found = jnp.stack([last.hessian, last.jacobian**2, 1.1 * last.jacobian**2 - last.least**2])
        vectors, found = lax.fori_loop(0, count, body, (last.vectors, found))
        least = jnp.sqrt(jnp.maximum(1.1 * found[1] - found[2], 0))
        return Sizes(found[0], jnp.sqrt(found[1]), least, vectors)


def inverse_size(sizes: Sizes, shift: Any) -> Any:
    """`20 max(|B|^2, 1) / (min(sigma^2, 1) min(xi_B, 1))`: a bound of `|K^-1|`, up to constants."""
    floor = jnp.finfo(shift.dtype).eps
    return 20 * jnp.maximum((sizes.hessian + shift) ** 2, 1) / (jnp.clip(sizes.least**2, floor, 1) * SHIFT)


def l2(v: Any) -> Any:
    """`|v|_2`."""
    return jnp.sqrt(jnp.sum(v * v))
