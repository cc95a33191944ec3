"""The projection on a polyhedron as a problem: `min |u - target|^2 / 2` subject to `A u + b <= 0` (`= 0` where marked).

A quadratic program with Q = I, whose dual function needs two products with A:

    u(mu) = P_S(target - A'mu),     excess = A u(mu) + b,     mu' = P(mu + excess / |A|^2)        (dual ascent)

S is a set that u is also kept in. Where S is everything, `G = AA'` decides the dual by itself: `excess = A target + b
- G mu`, and the rows that hold can be guessed, `mu + excess > 0`, and solved for at once (Hintermueller, Ito, Kunisch
2003: the primal-dual active set method, which is semismooth Newton and ends after finitely many guesses when it ends).
Inside a loop whose target hardly moves the guess is the last one and right at once: one Cholesky factorisation, where
dual ascent pays the condition number of G in steps.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve

from pdopt.geometry.moves import climb
from pdopt.geometry.sets import ConvexSet, Reals
from pdopt.types import Pair, record

WHOLE = Reals()
GUESSES = 10  # of the active set in a call; a right one is seen by the next


@record(static=("exact", "planes"))
class Polyhedron:
    """`{ u in set : A u + b <= 0, = 0 where equality }`.

    Attributes:
        A: `(m, n)`; b: `(m,)`; equality: `(m,)` bool.
        gram: `AA'`, `(m, m)`; norm: `|A|^2`, its largest eigenvalue.
        factor: lower Cholesky factor of the gram, where all rows are equalities; else ().
        set: a set for the flat u.
        exact: the set is everything, so the gram decides the dual (static).
        planes: moreover all rows are equalities: one solve is the projection (static).

    Example:
        >>> plane = Polyhedron.make(jnp.array([[1.0, 1.0]]), jnp.array([-1.0]), jnp.array([True]), planes=True)
        >>> print(plane.settle(jnp.zeros(2), jnp.zeros(1)).x)
        [0.5 0.5]
    """

    A: Any
    b: Any
    equality: Any
    gram: Any
    norm: Any
    factor: Any
    set: ConvexSet
    exact: bool
    planes: bool

    @staticmethod
    def make(A: Any, b: Any, equality: Any, *, set: ConvexSet = WHOLE, planes: bool = False) -> "Polyhedron":
        """With its gram; `planes`: all rows are equalities."""
        gram = A @ A.T
        exact = isinstance(set, Reals)
        planes = planes and exact
        norm = jnp.linalg.norm(gram, 2) if A.shape[0] else jnp.ones((), A.dtype)
        factor = cho_factor(shifted(gram), lower=True)[0] if planes else ()
        return Polyhedron(A, b, equality, gram, norm, factor, set, exact, planes)

    def closest(self, target: Any, mu: Any) -> Any:
        """`u(mu) = P_S(target - A'mu)`, the argmin of the Lagrangian."""
        return self.set.project(target - mu @ self.A)

    def excess(self, u: Any) -> Any:
        """`A u + b`, positive where broken."""
        return self.A @ u + self.b

    def move(self, mu: Any, v: Any, step: Any) -> Any:
        """`mu + step v`, kept `>= 0` for inequalities."""
        return self._held(climb(mu, v, step))

    def _held(self, mu: Any) -> Any:
        return jnp.where(self.equality, mu, jnp.maximum(mu, 0))

    def error(self, pair: Pair) -> Any:
        """`|mu - P(mu + excess)|_inf` over `1 + |u|_inf`: 0 exactly at the projection with its multipliers."""
        moved = self._held(pair.y + self.excess(pair.x))
        return jnp.max(jnp.abs(pair.y - moved), initial=0) / (1 + jnp.max(jnp.abs(pair.x), initial=0))

    def settle(self, target: Any, mu: Any) -> Pair:
        """The projection by guessing the active set from mu, until a guess repeats; its multipliers. Check by `error`.

        Where u is kept in a set of its own there is nothing to solve for, and `u(mu)` is returned.
        """
        if not self.exact:
            return Pair(self.closest(target, mu), mu)
        far = self.excess(target)
        if self.planes:
            held = cho_solve((self.factor, True), far)
            held = held + cho_solve((self.factor, True), far - self.gram @ held)
            return Pair(target - held @ self.A, held)

        def active_at(mu: Any) -> Any:
            return self.equality | (mu + far - self.gram @ mu > 0)

        def wrong(carry: tuple[Any, Any, Any, Any]) -> Any:
            _, active, last, count = carry
            return jnp.any(active != last) & (count < GUESSES)

        def guess(carry: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
            _, active, _, count = carry
            both = active[:, None] & active[None, :]
            matrix = shifted(jnp.where(both, self.gram, jnp.eye(len(active), dtype=mu.dtype)))
            factor, right = cho_factor(matrix, lower=True), jnp.where(active, far, 0)
            found = cho_solve(factor, right)
            found = found + cho_solve(factor, right - jnp.where(both, self.gram, 0) @ found)
            found = jnp.where(active, found, 0)
            return found, active_at(found), active, count + 1

        first = active_at(mu)
        held = lax.while_loop(wrong, guess, (mu, first, ~first, jnp.int32(0)))[0]
        return Pair(target - held @ self.A, held)


def shifted(gram: Any) -> Any:
    """A gram that dependent rows leave positive definite; refinement takes the shift out again.

    Example:
        >>> bool(jnp.isfinite(jnp.linalg.cholesky(shifted(jnp.ones((2, 2))))).all())
        True
    """
    shift = 100 * jnp.finfo(gram.dtype).eps * (1 + jnp.max(jnp.abs(jnp.diagonal(gram)), initial=0))
    return gram + shift * jnp.eye(gram.shape[0], dtype=gram.dtype)


def uses(function: Any, position: int, *arguments: Any) -> bool:
    """Whether a function's value can depend on one of its arguments, as its trace shows it.

    Example:
        >>> uses(lambda x, y: 2 * y, 0, 1.0, 1.0), uses(lambda x, y: x * y, 0, 1.0, 1.0)
        (False, True)
    """
    closed = jax.make_jaxpr(function)(*arguments)
    counts = [len(jax.tree.leaves(argument)) for argument in arguments]
    begin = sum(counts[:position])
    asked = {id(v) for v in closed.jaxpr.invars[begin : begin + counts[position]]}
    read = [v for equation in closed.jaxpr.eqns for v in equation.invars] + list(closed.jaxpr.outvars)
    return any(id(v) in asked for v in read)
