"""What a point is: a pytree of floating-point arrays, with the few operations that sets, moves and proximal maps share.

Parameters (bounds, radii, steps) follow the dtype of the point they meet, never the other way round, so that a
float32 point stays float32 whether or not 64-bit types are enabled. The l2 norm is computed on entries divided by
the largest one: `m sqrt(sum (x/m)^2)` neither overflows at 1e30 in float32 nor has a NaN gradient at 0.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pdopt.errors import InvalidProblem


def floating(x: Any) -> jax.Array:
    """`x` as an array of its own floating dtype; integers and booleans become the default float.

    Example:
        >>> floating(3).dtype == jnp.result_type(float)
        True
    """
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))


def like(value: Any, x: jax.Array) -> jax.Array:
    """A parameter in the dtype of the point it meets.

    Example:
        >>> like(2.0, jnp.zeros(3, jnp.float32)).dtype
        dtype('float32')
    """
    return jnp.asarray(value).astype(x.dtype)


def per_row(value: Any, x: jax.Array) -> jax.Array:
    """A parameter of a set that acts on the last axis: a scalar, or one number for each of the leading axes.

    Raises:
        InvalidProblem: if `x` is a scalar array, which has no last axis.

    Example:
        >>> per_row(jnp.ones(2), jnp.zeros((2, 3))).shape
        (2, 1)
    """
    if x.ndim == 0:
        raise InvalidProblem("the point has shape (); expected at least one axis because the set acts on the last one")
    value = like(value, x)
    return value[..., None] if value.ndim else value


def finite(x: jax.Array) -> jax.Array:
    """`x` with infinities replaced by the largest finite numbers (the limit of a projection at infinity); NaN stays.

    Example:
        >>> bool(jnp.isfinite(finite(jnp.array([-jnp.inf, jnp.inf]))).all())
        True
    """
    largest = jnp.finfo(x.dtype).max
    return jnp.clip(x, -largest, largest)


def spread(prefix: Any, tree: Any) -> Any:
    """A scalar, or a tree that is a prefix of `tree`, repeated so that each leaf of `tree` has its own.

    Example:
        >>> spread((1.0, 2.0), ({"a": 0, "b": 0}, 0))
        ({'a': 1.0, 'b': 1.0}, 2.0)
    """
    return jax.tree.map(lambda value, below: jax.tree.map(lambda _: value, below), prefix, tree)


def direction(x: jax.Array, axis: int | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`(w, n, m)` with `x = m w`, `m = max |x|` (1 where that is 0) and `n = |w|_2`, so `|x|_2 = m n`.

    `m` is a constant for differentiation: `m n` does not depend on it. `n` is 0, with gradient 0, only at `x = 0`.

    Example:
        >>> w, n, m = direction(jnp.array([0.0, 2.0**100], jnp.float32))
        >>> print(w, n, m == 2.0**100)
        [0. 1.] 1.0 True
    """
    m = jnp.max(jnp.abs(x), axis=axis, keepdims=axis is not None, initial=0.0)
    m = jax.lax.stop_gradient(jnp.where((m > 0) & jnp.isfinite(m), m, jnp.ones_like(m)))
    w = x / m
    square = jnp.sum(w * w, axis=axis, keepdims=axis is not None)
    positive = square > 0
    n = jnp.where(positive, jnp.sqrt(jnp.where(positive, square, jnp.ones_like(square))), jnp.zeros_like(square))
    return w, n, m


def l2_norm(tree: Any) -> jax.Array:
    """`sqrt(sum x^2)` over all leaves, without overflow; its gradient at 0 is 0.

    Example:
        >>> float(l2_norm((jnp.array([3.0]), jnp.array([[4.0]]))))
        5.0
    """
    leaves = [floating(leaf) for leaf in jax.tree.leaves(tree)]
    sizes = jnp.stack([n * m for _, n, m in map(direction, leaves)]) if leaves else jnp.zeros(1, jnp.result_type(float))
    _, n, m = direction(sizes)
    return n * m


def inner(a: Any, b: Any) -> jax.Array:
    """`<a, b>`, summed over entries and leaves.

    Example:
        >>> float(inner((jnp.ones(2), jnp.ones(1)), (jnp.ones(2), 3 * jnp.ones(1))))
        5.0
    """
    return total(jax.tree.map(lambda p, q: jnp.sum(p * q), a, b))


def total(tree: Any) -> jax.Array:
    """The sum of the leaves of a tree of scalars; 0 for the empty tree.

    Example:
        >>> float(total({"a": jnp.float32(1), "b": jnp.float32(2)}))
        3.0
    """
    return jax.tree.reduce(jnp.add, tree) if jax.tree.leaves(tree) else jnp.zeros((), jnp.result_type(float))
