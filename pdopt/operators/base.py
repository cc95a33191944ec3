"""What every method may ask of a linear map `A: R^n -> R^m`; `convert.py` makes one from what users have.

Methods never touch storage: they see `matvec` (`A x`), `rmatvec` (`A' y`) and a few facts. Dense, sparse, implicit
and scaled operators are pytrees, so they pass through `jit`, `vmap` and `grad` like any array.
"""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax

ONE = lax.GatherDimensionNumbers(offset_dims=(), collapsed_slice_dims=(0,), start_index_map=(0,))


@runtime_checkable
class Operator(Protocol):
    """A linear map with its adjoint.

    `row_norms(kind)` and `column_norms(kind)` give the l1, l2 or linf norm of every row or column (for scaling);
    `scale(row, column)` is `diag(row) A diag(column)`; `ordered()` is the same map prepared for many products, in the
    storage's favourite order of rows and columns, with the orders (or None). An operator may also offer
    `astype(dtype)`, which problems call to bring all their data to one precision, and `entries`, all stored values.
    """

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def dtype(self) -> Any: ...

    def matvec(self, x: Any) -> Any: ...

    def rmatvec(self, y: Any) -> Any: ...

    def row_norms(self, kind: str) -> Any: ...

    def column_norms(self, kind: str) -> Any: ...

    def scale(self, row: Any, column: Any) -> Any: ...

    def ordered(self) -> "tuple[Any, Order | None, Order | None]": ...


def take(v: Any, index: Any) -> Any:
    """`v[index]` for places that lie inside, counted from 0.

    Indexing would wrap negative places: one more array as long as the index, in memory and in the compiled program.

    Example:
        >>> print(take(jnp.array([3.0, 4.0]), jnp.array([1, 0, 1])))
        [4. 3. 4.]
    """
    v, index = jnp.asarray(v), jnp.asarray(index)
    if v.ndim != 1:
        return v.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)
    # The same gather, without the work that indexing does for every call while a program is traced.
    return lax.gather(v, lax.expand_dims(index, (index.ndim,)), ONE, (1,), mode="promise_in_bounds")


class Order:
    """A permutation and its inverse, as a pytree: `put(v)` goes to the storage's order, `back(v)` returns."""

    def __init__(self, order: Any, rank: Any) -> None:
        self.order, self.rank = order, rank

    def put(self, v: Any) -> Any:
        """`v` in the storage's order."""
        return take(v, self.order)

    def back(self, v: Any) -> Any:
        """The inverse of `put`."""
        return take(v, self.rank)


def put(order: Order | None, v: Any) -> Any:
    """`v` in the order, as it is for None."""
    return v if order is None else order.put(v)


def back(order: Order | None, v: Any) -> Any:
    """The inverse of `put`."""
    return v if order is None else order.back(v)


jax.tree_util.register_pytree_node(Order, lambda o: ((o.order, o.rank), None), lambda _, leaves: Order(*leaves))


def reduce_norm(kind: str, values: Any, axis: int) -> Any:
    """The l1, l2 or linf norm of a dense array along an axis (0 for an empty axis)."""
    size = jnp.abs(values)
    if kind == "linf":
        return jnp.max(size, axis=axis, initial=0.0)
    if kind == "l1":
        return jnp.sum(size, axis=axis)
    if kind == "l2":
        return jnp.sqrt(jnp.sum(size * size, axis=axis))
    raise ValueError(f"norm kind is {kind!r}; expected 'l1', 'l2' or 'linf'")
