"""MINRES (Paige, Saunders 1975): `min |A x - b|` over the Krylov space of b, for a symmetric A given by its product."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax


def minres(product: Callable[[Any], Any], right: Any, *, tolerance: float | None = None, factor: int = 5) -> Any:
    """The solution of `A x = right` (of least length in the Krylov space where A is singular).

    Args:
        product: `v -> A v`, A symmetric, definite or not.
        right: `(n,)`.
        tolerance: on `|A x - b| / |b|`; None: 10 units of rounding.
        factor: at most `factor n` products.

    Example:
        >>> A = jnp.array([[2.0, 1.0], [1.0, -1.0]])
        >>> print(minres(lambda v: A @ v, jnp.array([3.0, 0.0])).round(4))
        [1. 1.]
    """
    kind = jnp.finfo(right.dtype)
    tolerance = 10 * float(kind.eps) if tolerance is None else tolerance
    beta = jnp.linalg.norm(right)
    zero, one = jnp.zeros_like(right), jnp.ones((), right.dtype)
    nought = jnp.zeros((), right.dtype)

    def going(carry: Any) -> Any:
        return (jnp.abs(carry["phi"]) > tolerance * beta) & (carry["count"] < factor * right.size + 10)

    def step(carry: Any) -> Any:
        v = carry["v"]
        image = product(v) - carry["beta"] * carry["before"]
        alpha = v @ image
        image = image - alpha * v
        onward = jnp.linalg.norm(image)
        # The two last rotations act on the new column of the tridiagonal matrix, a third one ends it.
        epsilon, bar = carry["s_old"] * carry["beta"], carry["c_old"] * carry["beta"]
        delta = carry["c"] * bar + carry["s"] * alpha
        gamma = carry["c"] * alpha - carry["s"] * bar
        size = jnp.maximum(jnp.hypot(gamma, onward), kind.tiny)
        c, s = gamma / size, onward / size
        way = (v - delta * carry["way"] - epsilon * carry["way_before"]) / size
        x = carry["x"] + c * carry["phi"] * way
        return {
            "x": x, "before": v, "v": image / jnp.maximum(onward, kind.tiny), "beta": onward, "way": way,
            "way_before": carry["way"], "c_old": carry["c"], "s_old": carry["s"], "c": c, "s": s,
            "phi": -s * carry["phi"], "count": carry["count"] + 1,
        }  # fmt: skip

    start = {
        "x": zero, "before": zero, "v": right / jnp.maximum(beta, kind.tiny), "beta": nought, "way": zero,
        "way_before": zero, "c_old": one, "s_old": nought, "c": one, "s": nought, "phi": beta, "count": jnp.int32(0),
    }  # fmt: skip
    return lax.while_loop(going, step, start)["x"]
