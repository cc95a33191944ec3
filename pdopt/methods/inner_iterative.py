"""Minimisers over a box that form no matrix: truncated Newton by conjugate gradients, and limited-memory BFGS.

Both project in two metrics and search like `ProjectedNewton` (`methods/inner.py`). With penalties the problem is badly
conditioned, so gradients alone reach about 1e-4 to 1e-6 where Newton steps reach 1e-8; neither polishes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pdopt.methods.inner import Found, Work, require_budget, residual, search
from pdopt.methods.kinked import outward, settle
from pdopt.types import record


@record(static=("budget", "products"))
class ProjectedNewtonCG:
    """Newton steps by conjugate gradients on Hessian products, stopped early and at negative curvature (Steihaug 1983).

    A step is found to `min(0.1, sqrt(error))` of the gradient (Nocedal, Wright 2006, algorithm 7.1).

    Attributes:
        budget: iterations of one minimisation, >= 1.
        products: Hessian products of one step at most, >= 1.

    Example:
        >>> import pdopt
        >>> method = pdopt.AugmentedLagrangian(inner=ProjectedNewtonCG())
        >>> found = pdopt.minimise(lambda x: jnp.sum((x - 2) ** 4), jnp.zeros(2), upper=1.0, method=method)
        >>> print(found.x)
        [1. 1.]
    """

    budget: int = 200
    products: int = 200

    polishes = False

    def __post_init__(self) -> None:
        require_budget("budget", self.budget)
        require_budget("products", self.products)

    def minimise(self, model: Any, x: Any, tolerance: Any, plain: Any) -> Found:
        """See `pdopt.methods.inner.Minimiser`; `plain` is not used."""

        def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            x, _, _, work = carry
            (value, g), product = jax.linearize(jax.value_and_grad(model.value), x)
            error = residual(model, x, g)
            held = outward(model, x, g, error)
            goal = jnp.minimum(0.1, jnp.sqrt(error))
            step, products, flat = _conjugate(lambda d: product(d)[1], g, ~held, goal, self.products)
            good = error <= tolerance
            trial = search(model, x, value, g, settle(model, x, g, step, held), flat, good, jnp.asarray(False))
            over = good | ~trial.done | ~jnp.isfinite(error)
            cost = Work(1 + trial.tries, 1, products, ~good)
            return trial.x, error, over, jax.tree.map(lambda a, b: a + b, work, cost)

        return _run(body, x, (), self.budget)


@record(static=("budget", "memory"))
class ProjectedLBFGS:
    """Limited-memory BFGS (Liu, Nocedal 1989) on the free variables; gradients only.

    Attributes:
        budget: iterations of one minimisation, >= 1.
        memory: pairs kept, >= 1.

    Example:
        >>> import pdopt
        >>> method = pdopt.AugmentedLagrangian(inner=ProjectedLBFGS())
        >>> found = pdopt.minimise(lambda x: jnp.sum((x - 2) ** 2), jnp.zeros(2), upper=1.0, method=method)
        >>> print(found.x)
        [1. 1.]
    """

    budget: int = 1000
    memory: int = 10

    polishes = False

    def __post_init__(self) -> None:
        require_budget("budget", self.budget)
        require_budget("memory", self.memory)

    def minimise(self, model: Any, x: Any, tolerance: Any, plain: Any) -> Found:
        """See `pdopt.methods.inner.Minimiser`; `plain` is not used."""
        slope = jax.value_and_grad(model.value)

        def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            x, _, _, work, pairs = carry
            value, g = slope(x)
            pairs = pairs.joined(x, g)
            error = residual(model, x, g)
            held = outward(model, x, g, error)
            free = jnp.where(held, 0, g)
            step = -pairs.times(free, ~held)
            # Without pairs: a step whose largest entry is 1 at most.
            known = jnp.any(pairs.count > 0) & (jnp.sum(step * free) < 0) & jnp.all(jnp.isfinite(step))
            step = jnp.where(known, step, -free / jnp.maximum(1, jnp.max(jnp.abs(free), initial=0)))
            good = error <= tolerance
            trial = search(model, x, value, g, settle(model, x, g, step, held), ~known, good, jnp.asarray(False))
            # A direction that failed is tried once more without pairs.
            over = good | (~trial.done & ~known) | ~jnp.isfinite(error)
            pairs = pairs.forgotten(~trial.done)
            cost = Work(1 + trial.tries, 1, 0, ~good)
            return trial.x, error, over, jax.tree.map(lambda a, b: a + b, work, cost), pairs

        return _run(body, x, (Pairs.none(x, self.memory),), self.budget)


class Pairs(NamedTuple):
    """The last changes of x (`s`) and of the gradient (`t`), newest last, `(memory, n)`; and where they were taken."""

    s: Any
    t: Any
    x: Any
    g: Any
    count: Any

    @staticmethod
    def none(x: Any, memory: int) -> "Pairs":
        """No pair yet."""
        empty = jnp.zeros((memory, x.size), x.dtype)
        return Pairs(empty, empty, x, jnp.zeros_like(x), jnp.int32(-1))

    def joined(self, x: Any, g: Any) -> "Pairs":
        """With the change since the last point, if there was one and it shows curvature."""
        s, t = x - self.x, g - self.g
        curved = jnp.sum(s * t) > jnp.finfo(x.dtype).eps * jnp.sum(t * t)
        keep = (self.count >= 0) & curved
        put = lambda rows, new: jnp.where(keep, jnp.roll(rows, -1, 0).at[-1].set(new), rows)
        count = jnp.where(self.count < 0, 0, self.count + keep.astype(jnp.int32))
        return Pairs(put(self.s, s), put(self.t, t), x, g, count)

    def forgotten(self, now: Any) -> "Pairs":
        """Without its pairs where `now`."""
        clean = lambda rows: jnp.where(now, 0, rows)
        return self._replace(s=clean(self.s), t=clean(self.t), count=jnp.where(now, 0, self.count))

    def times(self, g: Any, free: Any) -> Any:
        """`H g` on the free variables by the two loops of Nocedal (1980); `H = g` without pairs."""
        s, t = jnp.where(free, self.s, 0), jnp.where(free, self.t, 0)
        curve = jnp.sum(s * t, axis=1)
        fine = curve > jnp.finfo(g.dtype).eps * jnp.sum(t * t, axis=1)
        weight = jnp.where(fine, 1 / jnp.where(fine, curve, 1), 0)

        def down(q: Any, pair: Any) -> tuple[Any, Any]:
            s, t, w = pair
            a = w * jnp.sum(s * q)
            return q - a * t, a

        q, a = lax.scan(down, g, (s, t, weight), reverse=True)
        newest = jnp.where(fine, jnp.arange(fine.size), -1).argmax()
        size = jnp.sum(t[newest] ** 2)
        q = q * jnp.where(fine[newest], curve[newest] / jnp.where(size > 0, size, 1), 1)

        def up(q: Any, pair: Any) -> tuple[Any, Any]:
            s, t, w, a = pair
            return q + (a - w * jnp.sum(t * q)) * s, None

        return lax.scan(up, q, (s, t, weight, a))[0]


def _run(body: Any, x: Any, extra: tuple[Any, ...], budget: int) -> Found:
    """The loop of both: carry `(x, error, over, work, *extra)`."""
    first = (x, jnp.full((), jnp.inf, x.dtype), jnp.asarray(False), Work.none(), *extra)
    found = lax.while_loop(lambda c: ~c[2] & (c[3].iterations < budget), body, first)
    return Found(found[0], found[1], found[3])


def _conjugate(product: Any, g: Any, free: Any, goal: Any, limit: int) -> tuple[Any, Any, Any]:
    """`H d = -g` on the free variables, to `goal |g|`; d, the products spent, whether the curvature ended it."""
    right = jnp.where(free, -g, 0)
    size = jnp.sqrt(jnp.sum(right**2))

    def body(c: tuple[Any, ...]) -> tuple[Any, ...]:
        d, r, p, count, _, _ = c
        q = jnp.where(free, product(p), 0)
        bend, square = jnp.sum(p * q), jnp.sum(r * r)
        flat = bend <= jnp.finfo(g.dtype).eps * jnp.sum(p * p)
        step = square / jnp.where(flat, 1, bend)
        # At the first product a direction without curvature is followed as it is: the line search stretches it.
        after = jnp.where(flat, jnp.where(count == 0, p, d), d + step * p)
        rest = jnp.where(flat, r, r - step * q)
        turned = rest + jnp.sum(rest * rest) / jnp.where(square > 0, square, 1) * p
        done = flat | (jnp.sqrt(jnp.sum(rest**2)) <= goal * size)
        return after, rest, turned, count + 1, done, flat

    start = (jnp.zeros_like(g), right, right, jnp.int32(0), size <= 0, jnp.asarray(False))
    d, _, _, count, _, flat = lax.while_loop(lambda c: ~c[4] & (c[3] < limit), body, start)
    return d, count, flat
