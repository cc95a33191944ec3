"""Linear solvers for the Newton steps of an equality-constrained program, behind one signature.

    K z = b,    K = [ H + tau I   J' ]      symmetric, indefinite, known by its products with vectors
                    [ J           0  ]

    solve(system, right, key, tolerance) -> Solved(step, residual, products)

    Direct        all n + m products, one LU factorisation; for up to some 3000 unknowns
    MinRes        minimal residuals in a Krylov space (Paige, Saunders 1975), optionally preconditioned
    BlockSketch   randomised projections on k random combinations of the equations (Gower, Richtarik 2015)

All stop when `|K z - b|_2 <= tolerance`, or when their budget of products is spent; what a step leaves is measured, not
estimated. A step is continued by solving for its residual. None is differentiated through.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from pdopt.errors import InvalidOption
from pdopt.methods.exact_merit import l2
from pdopt.methods.inner import require_budget
from pdopt.types import record

REFINEMENTS = 3  # corrections of a direct solve, each by one product


class System(NamedTuple):
    """The system as its solvers see it.

    `product(z)` is `K z` for z of shape `(n + m,)`, `primal` is n, and `conditioned(inverse)` turns a user's
    preconditioner into a map of such vectors.
    """

    product: Callable[[Any], Any]
    primal: int
    conditioned: Callable[[Callable[..., Any]], Callable[[Any], Any]]


class Solved(NamedTuple):
    """z, `|K z - b|_2`, and the products with K that it took."""

    step: Any
    residual: Any
    products: Any


class LinearSolver(Protocol):
    """See the head of this file; only a sketch has a use for `key`."""

    def solve(self, system: System, right: Any, key: Any, tolerance: Any) -> Solved: ...


@record
class Direct:
    """The matrix from `n + m` products, factored, with refinement.

    Its corner is `-sqrt(eps) |K| I`, which keeps it solvable where constraints are dependent; refinement takes what
    that costs away where they are not.

    Example:
        >>> import pdopt
        >>> circle = lambda x: jnp.sum(x**2) - 2
        >>> method = pdopt.ExactAugmentedLagrangian(linear=Direct())
        >>> print(pdopt.minimise(jnp.sum, jnp.array([-2.0, -0.5]), equality=circle, method=method).x.round(3))
        [-1. -1.]
    """

    def solve(self, system: System, right: Any, key: Any, tolerance: Any) -> Solved:
        """See `LinearSolver`."""

        def factored() -> Solved:
            matrix = jax.vmap(system.product)(jnp.eye(right.size, dtype=right.dtype))
            size = jnp.max(jnp.abs(matrix), initial=0)
            corner = jnp.sqrt(jnp.finfo(right.dtype).eps) * jnp.where(size > 0, size, 1)
            corner = jnp.where(jnp.arange(right.size) < system.primal, 0, corner)
            factors = jax.scipy.linalg.lu_factor(matrix - jnp.diag(corner))

            def refined(carry: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
                z, rest, best, count = carry
                tried = z + jax.scipy.linalg.lu_solve(factors, rest)
                left = right - system.product(tried)
                error = l2(left)
                better = error < best
                z, rest, best = (jnp.where(better, a, b) for a, b in ((tried, z), (left, rest), (error, best)))
                return z, rest, best, jnp.where(better, count + 1, REFINEMENTS + 1).astype(jnp.int32)

            # The first correction is cheap and worth half the digits; more only where they are asked for.
            more = lambda carry: ((carry[2] > tolerance) | (carry[3] < 2)) & (carry[3] <= REFINEMENTS)
            first = (jnp.zeros_like(right), right, jnp.full_like(goal, jnp.inf), jnp.int32(0))
            z, rest, _, count = lax.while_loop(more, refined, first)
            return Solved(z, l2(rest), right.size + count)

        goal = l2(right)
        nothing = Solved(jnp.zeros_like(right), goal, jnp.int32(0))
        return lax.cond(goal <= tolerance, lambda: nothing, factored)


@record(static=("products", "preconditioner"))
class MinRes:
    """Minimal residuals in the Krylov space of K (Paige, Saunders 1975): the largest fall of `|K z - b|` a product.

    Iterations grow with the condition number of K. With a preconditioner P, symmetric and positive definite, they grow
    with that of `P^-1 K`: one like `diag(H, J H^-1 J')` leaves three iterations (Murphy, Golub, Wathen 2000).

    Attributes:
        products: with K, of one solve, at most, >= 1; None: 10 (n + m).
        preconditioner: `(residual, *args) -> step`, the product with P^-1: `residual` and `step` are a `Pair(x, y)` in
            the shapes of the solution, `args` those of the program. None for none.

    Example:
        >>> import pdopt
        >>> circle = lambda x: jnp.sum(x**2) - 2
        >>> method = pdopt.ExactAugmentedLagrangian(linear=MinRes())
        >>> print(pdopt.minimise(jnp.sum, jnp.array([-2.0, -0.5]), equality=circle, method=method).x.round(3))
        [-1. -1.]
    """

    products: int | None = None
    preconditioner: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if self.products is not None:
            require_budget("products", self.products)
        if self.preconditioner is not None and not callable(self.preconditioner):
            raise InvalidOption(f"preconditioner is {self.preconditioner!r}; expected a function or None")

    def solve(self, system: System, right: Any, key: Any, tolerance: Any) -> Solved:
        """See `LinearSolver`; names as in Elman, Silvester, Wathen (2014), algorithm 4.1."""
        limit = 10 * right.size if self.products is None else self.products
        inverse = None if self.preconditioner is None else system.conditioned(self.preconditioner)
        apply = (lambda v: v) if inverse is None else inverse
        zero, one = jnp.zeros_like(right), jnp.ones((), right.dtype)

        def length(v: Any, z: Any) -> Any:
            return jnp.sqrt(jnp.maximum(jnp.sum(v * z), 0))

        def body(k: "_Krylov") -> "_Krylov":
            z = k.z / k.gamma
            image = system.product(z)
            delta = jnp.sum(z * image)
            ahead = image - (delta / k.gamma) * k.v - (k.gamma / k.gamma_old) * k.v_old
            z_ahead = apply(ahead)
            gamma = length(ahead, z_ahead)
            a0 = k.c * delta - k.c_old * k.s * k.gamma
            a1 = jnp.sqrt(a0**2 + gamma**2)
            a2, a3 = k.s * delta + k.c_old * k.c * k.gamma, k.s_old * k.gamma
            a1 = jnp.where(a1 > 0, a1, 1)
            w = (z - a3 * k.w_old - a2 * k.w) / a1
            # K w beside w: the residual in the plain norm, whatever the preconditioner is.
            u = (image - a3 * k.u_old - a2 * k.u) / a1
            c, s = a0 / a1, gamma / a1
            step, rest = k.step + c * k.eta * w, k.rest - c * k.eta * u
            return _Krylov(
                step, rest, ahead, k.v, z_ahead, w, k.w, u, k.u, jnp.where(gamma > 0, gamma, 1), k.gamma, c, k.c, s,
                k.s, -s * k.eta, k.count + 1, gamma <= 0,
            )  # fmt: skip

        def running(k: "_Krylov") -> Any:
            error = l2(k.rest)
            return (error > tolerance) & (k.count < limit) & ~k.over & jnp.isfinite(error)

        first_z = apply(right)
        gamma = length(right, first_z)
        empty = gamma <= 0
        first = _Krylov(
            zero, right, right, zero, first_z, zero, zero, zero, zero, jnp.where(empty, 1, gamma), one, one, one,
            0 * one, 0 * one, gamma, jnp.int32(0), empty,
        )  # fmt: skip
        found = lax.while_loop(running, body, first)
        return Solved(found.step, l2(right - system.product(found.step)), found.count + 1)


class _Krylov(NamedTuple):
    step: Any
    rest: Any
    v: Any
    v_old: Any
    z: Any
    w: Any
    w_old: Any
    u: Any
    u_old: Any
    gamma: Any
    gamma_old: Any
    c: Any
    c_old: Any
    s: Any
    s_old: Any
    eta: Any
    count: Any
    over: Any


def gaussian(key: Any, size: int, block: int, dtype: Any) -> Any:
    """`(block, size)` independent normal entries: the Gaussian sketch."""
    return jax.random.normal(key, (block, size), dtype)


def coordinates(key: Any, size: int, block: int, dtype: Any) -> Any:
    """`(block, size)`, rows of the identity drawn without repetition: the Kaczmarz sketch."""
    return jnp.eye(size, dtype=dtype)[jax.random.choice(key, size, (block,), replace=False)]


@record(static=("block", "products", "draw"))
class BlockSketch:
    """Sketch and project: z goes to the nearest point that satisfies k random combinations `S'` of the equations,

        z' = z - W (W'W)^+ S'(K z - b),      W = K S,  S of shape (n + m, k),

    by k + 1 products, no matrix formed. The error contracts in the mean, by `1 - k sigma^2 / |K|_F^2` at least (sigma
    the smallest singular value, k = 1): few blocks where K has few large singular values beside equal small ones, and
    a hopeless number where it is ill-conditioned. With `block >= n + m` one block is a direct solve. `block=1` with
    `gaussian` or `coordinates` are the two sketches of Hong, Na, Mahoney, Kolar (ICML 2023).

    Attributes:
        block: k >= 1; at most n + m are drawn.
        products: with K, of one solve, at most, >= 1; None: 200 (n + m).
        draw: `gaussian` or `coordinates` of `pdopt.methods.newton_systems`, or a function like them.

    Example:
        >>> import pdopt
        >>> circle = lambda x: jnp.sum(x**2) - 2
        >>> method = pdopt.ExactAugmentedLagrangian(linear=BlockSketch(block=2))
        >>> print(pdopt.minimise(jnp.sum, jnp.array([-2.0, -0.5]), equality=circle, method=method).x.round(3))
        [-1. -1.]
    """

    block: int = 32
    products: int | None = None
    draw: Callable[..., Any] = gaussian

    def __post_init__(self) -> None:
        require_budget("block", self.block)
        if self.products is not None:
            require_budget("products", self.products)
        if not callable(self.draw):
            raise InvalidOption(f"draw is {self.draw!r}; expected gaussian, coordinates or a function like them")

    def solve(self, system: System, right: Any, key: Any, tolerance: Any) -> Solved:
        """See `LinearSolver`; the same key draws the same sketches."""
        block = min(self.block, right.size)
        limit = 200 * right.size if self.products is None else self.products
        cut = jnp.finfo(right.dtype).eps * right.size

        def body(carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            z, rest, count = carry
            S = self.draw(jax.random.fold_in(key, count), right.size, block, right.dtype)
            # W = Q R and R = U diag(s) Vt: (W'W)^+ without squaring the condition of W.
            Q, R = jnp.linalg.qr(jax.vmap(system.product)(S).T)
            U, s, Vt = jnp.linalg.svd(R)
            fine = s > cut * s[0]
            weights = jnp.where(fine, Vt @ (S @ rest) / jnp.where(fine, s, 1), 0)
            z = z + Q @ (U @ weights)
            return z, right - system.product(z), count + 1

        def running(carry: tuple[Any, Any, Any]) -> Any:
            error = l2(carry[1])
            return (error > tolerance) & ((carry[2] + 1) * (block + 1) <= limit) & jnp.isfinite(error)

        z, rest, count = lax.while_loop(running, body, (jnp.zeros_like(right), right, jnp.int32(0)))
        return Solved(z, l2(rest), count * (block + 1))
