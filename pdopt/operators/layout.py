"""Sliced ELL with split rows: the layout in which XLA multiplies a sparse matrix near the speed of memory.

Rows are sorted by length into a few *slices* of one width each, stored column-major as `(width, rows)`, and a product
is a chain `v[0] * x[i[0]] + v[1] * x[i[1]] + ...` over a whole slice, which XLA turns into one vectorised loop of
gathers (no scatter, no segment sum). Rows of more than 16 entries are cut into nearly equal pieces of at most 16, and
a second layout of the same kind, with all values one, adds the pieces of a row (a third adds the pieces of pieces).
The widths are chosen from the length histogram by dynamic programming: padded entries plus a fixed price a slice.

A `Plan` says where things are (made once on the host); a `Layout` is a plan with its values in place.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from pdopt.operators.base import take
from pdopt.runtime.apart import apart
from pdopt.types import record

WIDEST = 16  # longest unrolled chain: wider ones cost compile time and stop paying
SLICE_PRICE = 150  # a slice's fixed cost (one more XLA loop) in padded entries, measured on a CPU,
SLICE_SHARE = 0.01  # and in entries of the matrix: a slice that saves less than 1 % is not worth its compile time
OPERANDS = (
    8  # parts of a product that XLA's CPU compiler makes in the kernel that puts them together; of more, each alone
)


@record(static=("empty", "padding"))
class Plan:
    """Where the entries of a matrix go: `rows` come out as [empty rows, slices in order, long rows].

    Attributes:
        index: for each slice the input positions, int32 `(width, rows)`.
        position: for each slice the entry numbers to place there, int32 `(width, rows)`; `padding` marks none.
        long: `(pieces, fold)`, a plan and a layout of ones, for rows cut into pieces, or ().
        empty: number of rows without entries.
        padding: the number of entries (one past the last position).
    """

    index: tuple[Any, ...]
    position: tuple[Any, ...]
    long: tuple[Any, ...] = ()
    empty: int = 0
    padding: int = 0


@record(static=("empty",))
class Layout:
    """A plan with its values: `value` is a tuple of `(width, rows)` arrays, or () where all values are one."""

    index: tuple[Any, ...]
    value: tuple[Any, ...]
    long: tuple[Any, ...] = ()
    empty: int = 0


class Planned(NamedTuple):
    """A plan and the row ids in the order in which the plan emits them."""

    plan: Plan
    order: np.ndarray


def choose_widths(lengths: np.ndarray, price: float = SLICE_PRICE, most: int = OPERANDS) -> list[int]:
    """At most `most` slice widths (ascending, the last covers the longest): least padded entries + `price` a slice.

    Dynamic programming over the distinct lengths.
    """
    distinct, counts = np.unique(lengths, return_counts=True)
    if distinct.size == 0:
        return []
    cumulative = np.concatenate(([0], np.cumsum(counts)))
    size, most = distinct.size, min(most, distinct.size)
    best = np.full((most + 1, size + 1), np.inf)
    cut = np.zeros((most + 1, size + 1), np.int64)
    best[:, 0] = 0.0
    for used in range(1, most + 1):
        for stop in range(1, size + 1):
            starts = np.arange(stop)
            cost = best[used - 1, :stop] + distinct[stop - 1] * (cumulative[stop] - cumulative[starts]) + price
            cut[used, stop] = np.argmin(cost)
            best[used, stop] = cost[cut[used, stop]]
    used, stop, widths = int(np.argmin(best[:, size])), size, []
    while stop > 0:
        widths.append(int(distinct[stop - 1]))
        stop, used = int(cut[used, stop]), used - 1
    return widths[::-1]


def make_plan(
    start: np.ndarray, index: np.ndarray, position: np.ndarray, padding: int, most: int = OPERANDS
) -> Planned:
    """Plan for rows given in compressed form.

    Args:
        start: `(m + 1,)` row starts into `index` and `position`.
        index: input position of each entry.
        position: entry number of each entry (which value to place).
        padding: the entry number that means "no entry".
        most: parts that the product may be put together from, those of its long rows included (about: at least two).
    """
    length = np.diff(start)
    short = np.flatnonzero((length > 0) & (length <= WIDEST))
    empty = np.flatnonzero(length == 0)
    long = np.flatnonzero(length > WIDEST)
    price = SLICE_PRICE + SLICE_SHARE * int(start[-1])
    tail: tuple[Any, ...] = ()
    last: list[np.ndarray] = []
    if long.size:
        pieces = -(-length[long] // WIDEST)
        owner = np.repeat(np.arange(long.size), pieces)
        within = np.arange(owner.size) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        base, extra = np.divmod(length[long], pieces)
        size = base[owner] + (within < extra[owner])
        first = start[long][owner] + within * base[owner] + np.minimum(within, extra[owner])
        piece_slices, piece_order = [], []
        for which, width in _slices(np.arange(owner.size), size, price, OPERANDS):
            piece_slices.append(_fill(first[which], size[which], width, index, position, padding))
            piece_order.append(which)
        emitted = np.concatenate(piece_order)
        by_owner = np.argsort(owner[emitted], kind="stable")
        fold_start = np.concatenate(([0], np.cumsum(pieces)))
        fold = make_plan(fold_start, by_owner, by_owner, owner.size, max(most // 4, 1))
        tail = (_plan(piece_slices, (), 0, padding), _ones(fold.plan))
        last = [long[fold.order]]
    slices, order = [], [empty]
    room = most - (empty.size > 0) - (_parts(tail[1]) if tail else 0)
    for rows, width in _slices(short, length, price, max(room, 1)):
        slices.append(_fill(start[rows], length[rows], width, index, position, padding))
        order.append(rows)
    return Planned(_plan(slices, tail, int(empty.size), padding), np.concatenate(order + last).astype(np.int64))


def _parts(layout: Layout) -> int:
    """The parts that a product is put together from."""
    return len(layout.index) + (layout.empty > 0) + (_parts(layout.long[1]) if layout.long else 0)


def _plan(slices: list[tuple[Any, Any]], long: tuple[Any, ...], empty: int, padding: int) -> Plan:
    return Plan(tuple(i for i, _ in slices), tuple(p for _, p in slices), long, empty, padding)


def _slices(rows: np.ndarray, length: np.ndarray, price: float, most: int) -> list[tuple[np.ndarray, int]]:
    """Rows grouped into slices: (row ids sorted by length, width)."""
    widths = choose_widths(length[rows], price, most)
    rows = rows[np.argsort(length[rows], kind="stable")]
    bounds = np.searchsorted(length[rows], widths, side="right")
    return [(part, width) for part, width in zip(np.split(rows, bounds[:-1]), widths) if part.size]


def _fill(
    first: np.ndarray, length: np.ndarray, width: int, index: np.ndarray, position: np.ndarray, padding: int
) -> tuple[np.ndarray, np.ndarray]:
    """Column-major index and position arrays of one slice; padding repeats the row's last index, a cached load."""
    step = np.arange(width)[:, None]
    place = first[None, :] + np.minimum(step, length[None, :] - 1)
    return index[place].astype(np.int32), np.where(step < length[None, :], position[place], padding).astype(np.int32)


def place(plan: Plan, values: Any) -> Layout:
    """Put values (one an entry) into a plan: the layout that products use."""
    padded = jnp.concatenate([values, jnp.zeros(1, values.dtype)])
    long: tuple[Any, ...] = ()
    if plan.long:
        pieces, fold = plan.long
        long = (place(pieces, values), fold)
    return Layout(plan.index, tuple(take(padded, p) for p in plan.position), long, plan.empty)


def _ones(plan: Plan) -> Layout:
    """The layout of a plan whose values are all one; padding points one past the input, at a zero appended there."""
    index = tuple(np.where(p == plan.padding, plan.padding, i) for i, p in zip(plan.index, plan.position))
    long = (_ones(plan.long[0]), plan.long[1]) if plan.long else ()
    return Layout(index, (), long, plan.empty)


@apart
def multiply(layout: Layout, x: Any) -> Any:
    """The product of the layout's matrix with `x`, rows in the layout's order."""
    return _rows(layout, x)


def _rows(layout: Layout, x: Any) -> Any:
    dtype = x.dtype
    parts = [jnp.zeros(layout.empty, dtype)] if layout.empty else []
    if layout.value:
        parts += [_chain(index, value, x) for index, value in zip(layout.index, layout.value)]
    elif layout.index:
        padded = jnp.concatenate([x, jnp.zeros(1, dtype)])
        parts += [_sum(index, padded) for index in layout.index]
    if layout.long:
        pieces, fold = layout.long
        parts.append(_rows(fold, _rows(pieces, x)))
    if not parts:
        return jnp.zeros(0, dtype)
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def _chain(index: Any, value: Any, x: Any) -> Any:
    # A sum of two products may be fused with either of them rounded: with a zero that is not known to be one, only one
    # way is left, and a product rounds alike in whatever it is compiled into.
    first = lax.index_in_dim(value, 0, keepdims=False)
    total = 0 * first + first * take(x, lax.index_in_dim(index, 0, keepdims=False))
    for k in range(1, index.shape[0]):
        total = total + lax.index_in_dim(value, k, keepdims=False) * take(x, lax.index_in_dim(index, k, keepdims=False))
    return total


def _sum(index: Any, x: Any) -> Any:
    total = take(x, index[0])
    for k in range(1, index.shape[0]):
        total = total + take(x, lax.index_in_dim(index, k, keepdims=False))
    return total
