"""Operations with the batch along the last axis, one rule each; `batching.py` evaluates a function by them.

A rule takes the equation, the size of the batch, its operands and which of them have the batch, and returns the result
with it; None where the operation's own rule for `vmap` serves.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

PRODUCT = 2**14  # multiplications of a member up to which a batch of products is written as a sum
FEW = 8  # rows among which each member's own is chosen one by one


def spread(value: Any, batched: Any, size: int) -> Any:
    """The value with a last axis of the batch."""
    if batched:
        return value
    shape = np.shape(value)
    return lax.broadcast_in_dim(value, (*shape, size), tuple(range(len(shape))))


def widen(value: Any, batched: Any, shape: tuple[int, ...], size: int) -> Any:
    """An operand of an elementwise operation, of shape `shape` or scalar, as `(*shape, size)`."""
    rank = np.ndim(value) - int(batched)
    if rank == len(shape):
        return spread(value, batched, size)
    return lax.broadcast_in_dim(value, (*shape, size), (len(shape),) if batched else ())


def _broadcast(equation: Any, size: int, values: list[Any], marks: list[bool]) -> Any:
    shape, dims = equation.params["shape"], equation.params["broadcast_dimensions"]
    return lax.broadcast_in_dim(values[0], (*shape, size), (*dims, len(shape))) if len(values) == 1 else None


def _reshape(equation: Any, size: int, values: list[Any], marks: list[bool]) -> Any:
    if equation.params.get("dimensions") is not None or len(values) > 1:
        return None
    return lax.reshape(values[0], (*equation.outvars[0].aval.shape, size))


def _reduce(equation: Any, size: int, values: list[Any], marks: list[bool]) -> Any:
    """A reduction of several arrays at once; they begin with numbers that all members share."""
    half = len(values) // 2
    if any(marks[half:]):
        return None
    arrays = [spread(v, b, size) for v, b in zip(values[:half], marks[:half])]
    return equation.primitive.bind(*arrays, *values[half:], **equation.params)


def _transpose(equation: Any, size: int, values: list[Any], marks: list[bool]) -> Any:
    order = equation.params["permutation"]
    return lax.transpose(values[0], (*order, len(order)))


def _concatenate(equation: Any, size: int, values: list[Any], marks: list[bool]) -> Any:
    return lax.concatenate([spread(v, b, size) for v, b in zip(values, marks)], equation.params["dimension"])


def _slice(equation: Any, size: int, values: list[Any], marks: list[bool]) -> Any:
    p = equation.params
    strides = None if p["strides"] is None else (*p["strides"], 1)
    return lax.slice(values[0], (*p["start_indices"], 0), (*p["limit_indices"], size), strides)


def _pad(equation: Any, size: int, values: list[Any], marks: list[bool]) -> Any:
    if marks[1]:
        return None
    return lax.pad(values[0], values[1], (*equation.params["padding_config"], (0, 0, 0)))


def _gather(equation: Any, size: int, values: list[Any], marks: list[bool]) -> Any:
    p = equation.params
    if marks[1]:
        return None
    dims, rank = p["dimension_numbers"], len(equation.outvars[0].aval.shape)
    dims = dims._replace(offset_dims=(*dims.offset_dims, rank))
    return equation.primitive.bind(
        *values, **{**p, "dimension_numbers": dims, "slice_sizes": (*p["slice_sizes"], size)}
    )


def _scatter(equation: Any, size: int, values: list[Any], marks: list[bool]) -> Any:
    operand, index, update = values
    if marks[1]:
        return None
    p, rank = equation.params, np.ndim(update) - int(marks[2])
    dims = p["dimension_numbers"]
    dims = dims._replace(update_window_dims=(*dims.update_window_dims, rank))
    both = (spread(operand, marks[0], size), index, spread(update, marks[2], size))
    return equation.primitive.bind(*both, **{**p, "dimension_numbers": dims})


def _dot(equation: Any, size: int, values: list[Any], marks: list[bool]) -> Any:
    """Inner products member by member; a matrix times a batch of vectors is one product of matrices."""
    p = equation.params
    (left, right), alone = p["dimension_numbers"][0], p["dimension_numbers"][1] == ((), ())
    ranks = [np.ndim(v) - int(b) for v, b in zip(values, marks)]
    kinds = {jnp.result_type(v) for v in values}
    if not alone or len(kinds) > 1 or p["preferred_element_type"] not in (None, *kinds):
        return None
    if ranks == [1, 1] and left == right == (0,):
        a, b = (spread(v, m, size) for v, m in zip(values, marks))
        return jnp.sum(a * b, axis=0)
    if all(marks):
        return _products(values, left, right, p["preferred_element_type"])
    if marks[0]:
        if ranks[0] > 1 and ranks[1] > len(right) and ranks[0] > len(left):
            return None
        values, left, right = values[::-1], right, left
    return lax.dot_general(values[0], values[1], ((left, right), ((), ())), p["precision"], p["preferred_element_type"])


def _products(values: list[Any], left: Sequence[int], right: Sequence[int], kind: Any) -> Any:
    """Small matrices times small matrices, all of them batched: one fused sum, where a product takes each by itself."""
    a, b = values
    rest = [d for d in range(a.ndim - 1) if d not in left], [d for d in range(b.ndim - 1) if d not in right]
    a = a.transpose(*left, *rest[0], a.ndim - 1)
    b = b.transpose(*right, *rest[1], b.ndim - 1)
    inner, outer, own = a.shape[: len(left)], a.shape[len(left) : -1], b.shape[len(right) : -1]
    if math.prod((*inner, *outer, *own)) > PRODUCT or not inner:
        return None
    a = a.reshape(*inner, *outer, *(1 for _ in own), a.shape[-1])
    b = b.reshape(*inner, *(1 for _ in outer), *own, b.shape[-1])
    return jnp.sum(a * b, axis=tuple(range(len(inner)))).astype(kind or a.dtype)


def _dynamic_slice(equation: Any, size: int, values: list[Any], marks: list[bool]) -> Any:
    """A row at a place of each member's own: a choice among few rows, where a gather would transpose them all."""
    operand, *starts = values
    shape, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    if not any(marks[1:]):
        return lax.dynamic_slice(operand, (*starts, jnp.zeros_like(starts[0])), (*out, size))
    if not marks[0] or any(marks[2:]) or not shape or shape[0] > FEW or out != (1, *shape[1:]):
        return None
    place, row = jnp.clip(starts[0], 0, shape[0] - 1), operand[:1]
    for k in range(1, shape[0]):
        row = lax.select(widen(place == k, True, out, size), operand[k : k + 1], row)
    return row


def _dynamic_update_slice(equation: Any, size: int, values: list[Any], marks: list[bool]) -> Any:
    """A row written at a place of each member's own, likewise: no scatter, and what follows fuses with it."""
    operand, row, *starts = values
    shape, rows = equation.invars[0].aval.shape, equation.invars[1].aval.shape
    operand, row = spread(operand, marks[0], size), spread(row, marks[1], size)
    if not any(marks[2:]):
        return lax.dynamic_update_slice(operand, row, (*starts, jnp.zeros_like(starts[0])))
    if any(marks[3:]) or not shape or shape[0] > FEW or rows != (1, *shape[1:]):
        return None
    place = jnp.clip(starts[0], 0, shape[0] - 1)
    here = lax.broadcasted_iota(place.dtype, (shape[0], size), 0) == place
    here = lax.broadcast_in_dim(here, operand.shape, (0, operand.ndim - 1))
    return lax.select(here, jnp.broadcast_to(row, operand.shape), operand)


RULES = {
    "broadcast_in_dim": _broadcast, "reshape": _reshape, "squeeze": _reshape, "expand_dims": _reshape,
    "transpose": _transpose, "concatenate": _concatenate, "slice": _slice, "pad": _pad, "gather": _gather,
    "scatter": _scatter, "scatter-add": _scatter, "scatter_add": _scatter, "dot_general": _dot,
    "dynamic_slice": _dynamic_slice, "dynamic_update_slice": _dynamic_update_slice, "reduce": _reduce,
}  # fmt: skip
