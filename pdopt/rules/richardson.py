"""Richardson extrapolation: a limit from points whose error is a power series in 1/c, at c, ratio c, ratio^2 c, ...

    T_0 = u(c_n),      T_{j} = (ratio^j T_{j-1} - T_{j-1}(one point before)) / (ratio^j - 1)

`T_j` removes the first j terms (Richardson 1911; Romberg's table). Valid where the path is smooth in 1/c, so not across
a change of the active set: what the levels change must shrink from point to point and from level to level, and a level
that changes more than what came before it is not taken.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Extrapolated(NamedTuple):
    """The limit, the largest entry by which the last level taken moved it, and how many levels were taken."""

    point: Any
    estimate: Any
    order: Any


def richardson(points: Sequence[Any], ratio: Any) -> Extrapolated:
    """Extrapolate a sequence of two or more pytrees, oldest first; NaN stands for points that do not exist yet.

    Three points are the least that can show a path to be smooth: from two the newest is returned as it is, and its
    estimate is what the first level would have changed.

    Example:
        >>> u = lambda c: jnp.array([1 + 3 / c - 2 / c**2])
        >>> found = richardson((u(5.0), u(10.0), u(20.0)), 2.0)
        >>> print(found.point.round(4), found.order)
        [1.] 2
    """
    table, best = list(points), points[-1]
    before = _apart(points[-2], points[-3]) / (ratio - 1) if len(points) > 2 else jnp.nan
    estimate = _apart(points[-1], points[-2]) / (ratio - 1)
    going, order = jnp.bool_(True), jnp.int32(0)
    for level in range(1, len(points)):
        gain = ratio**level
        better = lambda old, new: (gain * new - old) / (gain - 1)  # noqa: B023
        table = [jax.tree.map(better, a, b) for a, b in pairwise(table)]
        change = _apart(table[-1], best)
        going = going & (change < before)  # false for NaN
        best = jax.tree.map(lambda new, old: jnp.where(going, new, old), table[-1], best)  # noqa: B023
        estimate = jnp.where(going, change, estimate)
        order, before = order + going.astype(jnp.int32), change
    return Extrapolated(best, estimate, order)


def _apart(a: Any, b: Any) -> Any:
    """`|a - b|_inf` over all leaves."""
    return jnp.max(jnp.stack([jnp.max(jnp.abs(p - q)) for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b))]))
