"""A sparse matrix over a mesh of devices: rows over its first axis, columns over its second, one block a device.

    A x  : every device multiplies its block with its part of x, and the devices of a row of the mesh add up;
    A' y : likewise with the transposed block, and the devices of a column of the mesh add up.

So a product sends one all-reduce, of `m / R` numbers or of `n / C`, and nothing else (R x C devices). All devices run
one program, hence all blocks have one shape: entries are padded to the largest block's, and the layout of the local
product (`layout`, sliced ELL) is planned for a *profile* that covers every block: the k-th longest row over all blocks.

`Blocks` stands to `Sliced Blocks` as `Sparse` to `Sliced`: entries to look at, and a layout for many products. Blocks
are as they come; `pdopt.shard` deals rows and columns out first, so that they hold about as many entries each.

Not done here: overlapping the sums with the products; a block split over several hosts.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.operators.base import Order
from pdopt.operators.layout import Layout, Plan, make_plan, multiply, place
from pdopt.types import record

AXES = ("row", "col")


def make_grid(shape: tuple[int, int], devices: Any = None) -> Mesh:
    """The mesh R x C of all devices over which a product with an `(m, n)` matrix sends least.

    A device sends about `2 (n (R - 1) + m (C - 1)) / (R C)` numbers for a pair of products (ring all-reduces), least
    near R = C for a square matrix. The axes are called `row` and `col` and are `AxisType.Auto`.

    Args:
        shape: `(m, n)`.
        devices: None takes `jax.devices()`, those of all processes.

    Example:
        >>> dict(make_grid((100, 200), jax.devices()[:1]).shape)
        {'row': 1, 'col': 1}
    """
    devices = jax.devices() if devices is None else list(devices)
    rows, columns = grid_sizes(len(devices), shape)
    return jax.make_mesh((rows, columns), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def grid_sizes(devices: int, shape: tuple[int, int]) -> tuple[int, int]:
    """R and C of `make_grid`.

    Example:
        >>> grid_sizes(8, (1000, 1000)), grid_sizes(8, (10, 1000)), grid_sizes(8, (1000, 10))
        ((4, 2), (1, 8), (8, 1))
    """
    m, n = shape
    sizes = [(rows, devices // rows) for rows in range(devices, 0, -1) if devices % rows == 0]
    return min(sizes, key=lambda size: n * (size[0] - 1) + m * (size[1] - 1))


def checked_mesh(mesh: Mesh) -> Mesh:
    """A user's mesh with `Auto` axes: products are written for the whole matrix, and JAX's default is `Explicit`.

    Raises:
        InvalidOption: not a mesh, or one without exactly two axes.
    """
    if not isinstance(mesh, Mesh):
        raise InvalidOption(f"mesh has type {type(mesh).__name__}; expected a jax.sharding.Mesh")
    if len(mesh.axis_names) != 2:
        raise InvalidOption(
            f"mesh has the axes {mesh.axis_names}; expected two, the first for rows and the second for columns "
            "(either may have size 1)"
        )
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * 2)


def spread(array: Any, mesh: Mesh, *spec: Any) -> jax.Array:
    """Host data over a mesh, of which every process brings its own part: all must hold the same whole array."""
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, NamedSharding(mesh, P(*spec)), lambda index: host[index])


def deal(lengths: np.ndarray, parts: int, size: int, seed: int = 0) -> np.ndarray:
    """Places `(len(lengths),)` in an order that cuts into `parts` runs of `size` with about equal sums of lengths.

    Longest first, one to each part in turn, equal lengths in random order: a pattern of the matrix (a band, a
    staircase) would else meet the turns, and leave blocks empty. The same numbers on every process.

    Example:
        >>> places = deal(np.array([5, 1, 1, 5]), 2, 2)
        >>> print(*sorted(places[[0, 3]] // 2), *sorted(places[[1, 2]] // 2))
        0 1 0 1
    """
    shuffled = np.random.default_rng(seed).permutation(lengths.size)
    order = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    turn = np.arange(lengths.size)
    places = np.empty(lengths.size, np.int32)
    places[order] = (turn % parts) * size + turn // parts
    return places


@record(static=("mesh",))
class SlicedBlocks:
    """Both products in the layout of the local blocks; `forward_place` brings a block's rows into their order.

    Attributes:
        forward, adjoint: layouts whose arrays have two leading axes, the block's place in the mesh.
        forward_place: int32 `(R, C, m / R)`; adjoint_place: int32 `(R, C, n / C)`.
    """

    forward: Layout
    adjoint: Layout
    forward_place: Any
    adjoint_place: Any
    mesh: Mesh

    def matvec(self, x: Any) -> Any:
        """`A x`, `(m,)` split as the rows are."""
        rows, columns = self.mesh.axis_names

        def local(layout: Any, places: Any, x: Any) -> Any:
            return lax.psum(multiply(_own(layout), x)[_own(places)], columns)

        return _over(self.mesh, local, (P(rows, columns), P(rows, columns), P(columns)), P(rows))(
            self.forward, self.forward_place, x
        )

    def rmatvec(self, y: Any) -> Any:
        """`A' y`, `(n,)` split as the columns are."""
        rows, columns = self.mesh.axis_names

        def local(layout: Any, places: Any, y: Any) -> Any:
            return lax.psum(multiply(_own(layout), y)[_own(places)], rows)

        return _over(self.mesh, local, (P(rows, columns), P(rows, columns), P(rows)), P(columns))(
            self.adjoint, self.adjoint_place, y
        )


@record(static=("shape", "mesh"))
class Blocks:
    """The operator of a sparse `(m, n)` matrix cut into one block a device; differentiable in `values`.

    Attributes:
        values: `(R, C, z)`, the entries of block (i, j) by rows, then zeros up to z; row, column: int32 `(R, C, z)`,
            places inside the block.
        forward, adjoint: plans of the two local products, arrays with two leading axes.
        forward_place, adjoint_place: see `SlicedBlocks`.

    Example:
        >>> grid = make_grid((2, 2), jax.devices()[:1])
        >>> A = Blocks.from_entries([0, 1, 1], [1, 0, 1], [2.0, 1.0, 3.0], (2, 2), jnp.float32, grid)
        >>> print(*jax.jit(lambda A, v: (A.matvec(v), A.rmatvec(v)))(A, jnp.ones(2)))
        [2. 4.] [1. 5.]
    """

    values: Any
    row: Any
    column: Any
    forward: Plan
    adjoint: Plan
    forward_place: Any
    adjoint_place: Any
    shape: tuple[int, int]
    mesh: Mesh

    @staticmethod
    def from_entries(row: Any, column: Any, values: Any, shape: tuple[int, int], dtype: Any, mesh: Mesh) -> "Blocks":
        """From concrete coordinates without duplicates; in a distributed run every process passes the whole matrix.

        Raises:
            InvalidProblem: a shape that the mesh does not divide (`pdopt.shard` pads).
        """
        mesh = checked_mesh(mesh)
        sizes = mesh.devices.shape
        if shape[0] % sizes[0] or shape[1] % sizes[1]:
            raise InvalidProblem(f"A has shape {shape}, which the mesh {dict(mesh.shape)} does not divide")
        m, n = shape[0] // sizes[0], shape[1] // sizes[1]
        row, column, values = np.asarray(row, np.int64), np.asarray(column, np.int64), np.asarray(values, dtype)
        block = row // m * sizes[1] + column // n
        order = np.lexsort((column, row, block))
        parts = np.split(order, np.cumsum(np.bincount(block, minlength=mesh.size))[:-1])
        most = max(1, *(part.size for part in parts))
        forward, forward_place = _plan([(row[part] % m, column[part] % n) for part in parts], m, most)
        adjoint, adjoint_place = _plan([(column[part] % n, row[part] % m) for part in parts], n, most)

        def stack(numbers: list[np.ndarray]) -> jax.Array:
            whole = np.stack(numbers)
            return spread(whole.reshape(*sizes, *whole.shape[1:]), mesh, *mesh.axis_names)

        def padded(numbers: np.ndarray, fill: Any) -> jax.Array:
            return stack([np.concatenate([numbers[p], np.full(most - p.size, fill, numbers.dtype)]) for p in parts])

        gather = lambda plans: jax.tree.map(lambda *leaves: stack(list(leaves)), *plans)
        # Padding stands at the block's last row, so that rows stay sorted.
        return Blocks(
            padded(values, 0), padded((row % m).astype(np.int32), m - 1), padded((column % n).astype(np.int32), 0),
            gather(forward), gather(adjoint), stack(forward_place), stack(adjoint_place), tuple(shape), mesh,
        )  # fmt: skip

    @property
    def dtype(self) -> Any:
        """Dtype of the entries."""
        return self.values.dtype

    @property
    def entries(self) -> Any:
        """All stored values, padding included, to look at (finite, largest)."""
        return self.values

    def matvec(self, x: Any) -> Any:
        """`A x` from the entries as they stand: quick to compile, for a product now and then."""
        rows, columns = self.mesh.axis_names
        m, _ = self._local_shape

        def local(values: Any, row: Any, column: Any, x: Any) -> Any:
            return lax.psum(jax.ops.segment_sum(values * x[column], row, m, indices_are_sorted=True), columns)

        return self._on_blocks(local, P(rows), (x, P(columns)))

    def rmatvec(self, y: Any) -> Any:
        """`A' y`, likewise."""
        rows, columns = self.mesh.axis_names
        _, n = self._local_shape

        def local(values: Any, row: Any, column: Any, y: Any) -> Any:
            return lax.psum(jax.ops.segment_sum(values * y[row], column, n), rows)

        return self._on_blocks(local, P(columns), (y, P(rows)))

    def row_norms(self, kind: str) -> Any:
        """Norm of every row, 0 for empty ones."""
        rows, columns = self.mesh.axis_names
        m, _ = self._local_shape
        local = lambda values, row, column: _norm(kind, values, row, m, columns)
        return self._on_blocks(local, P(rows))

    def column_norms(self, kind: str) -> Any:
        """Norm of every column, 0 for empty ones."""
        rows, columns = self.mesh.axis_names
        _, n = self._local_shape
        local = lambda values, row, column: _norm(kind, values, column, n, rows)
        return self._on_blocks(local, P(columns))

    def scale(self, row: Any, column: Any) -> "Blocks":
        """`diag(row) A diag(column)`, same pattern; nothing is sent."""
        rows, columns = self.mesh.axis_names

        def local(values: Any, at: Any, beside: Any, row: Any, column: Any) -> Any:
            return (row[at] * values * column[beside])[None, None]

        return self._with(self._on_blocks(local, P(rows, columns), (row, P(rows)), (column, P(columns))))

    def astype(self, dtype: Any) -> "Blocks":
        """The same matrix in another floating dtype."""
        return self if self.dtype == dtype else self._with(self.values.astype(dtype))

    def ordered(self) -> tuple[SlicedBlocks, Order | None, Order | None]:
        """The same map laid out for many products; rows and columns keep their order."""
        split = P(*self.mesh.axis_names)

        def local(plan: Any, values: Any) -> Any:
            return jax.tree.map(lambda leaf: leaf[None, None], place(_own(plan), _own(values)))

        put = _over(self.mesh, local, (split, split), split)
        layouts = put(self.forward, self.values), put(self.adjoint, self.values)
        return SlicedBlocks(*layouts, self.forward_place, self.adjoint_place, self.mesh), None, None

    @property
    def _local_shape(self) -> tuple[int, int]:
        sizes = self.mesh.devices.shape
        return self.shape[0] // sizes[0], self.shape[1] // sizes[1]

    def _on_blocks(self, local: Any, out: P, *given: tuple[Any, P]) -> Any:
        """`local(values, row, column, *given)` on every device, `given` in pairs (array, how it is split)."""
        split = P(*self.mesh.axis_names)
        one = lambda values, row, column, *rest: local(_own(values), _own(row), _own(column), *rest)
        specs = (split, split, split, *(spec for _, spec in given))
        return _over(self.mesh, one, specs, out)(self.values, self.row, self.column, *(array for array, _ in given))

    def _with(self, values: Any) -> "Blocks":
        return Blocks(
            values, self.row, self.column, self.forward, self.adjoint, self.forward_place, self.adjoint_place,
            self.shape, self.mesh,
        )  # fmt: skip


def _over(mesh: Mesh, local: Any, specs: Any, out: Any) -> Any:
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=out)


def _own(tree: Any) -> Any:
    """What this device holds of arrays whose two leading axes are the mesh's."""
    return jax.tree.map(lambda leaf: leaf[0, 0], tree)


def _norm(kind: str, values: Any, owner: Any, size: int, axis: str) -> Any:
    """Norms by owner, of entries that devices along an axis of the mesh share; 0 where there is none."""
    magnitude = jnp.abs(values)
    if kind == "linf":
        # Empty segments come back as -inf.
        return jnp.maximum(lax.pmax(jax.ops.segment_max(magnitude, owner, size), axis), 0)
    if kind == "l1":
        return lax.psum(jax.ops.segment_sum(magnitude, owner, size), axis)
    if kind == "l2":
        return jnp.sqrt(lax.psum(jax.ops.segment_sum(magnitude * magnitude, owner, size), axis))
    raise ValueError(f"norm kind is {kind!r}; expected 'l1', 'l2' or 'linf'")


def _plan(blocks: list[tuple[np.ndarray, np.ndarray]], size: int, padding: int) -> tuple[list[Plan], list[np.ndarray]]:
    """Plans of one shape for all blocks, and where each block's plan emits its rows.

    Args:
        blocks: of every block, the local row and column of its entries (for the adjoint: column and row).
        size: local rows.
        padding: the entry number that means "no entry".
    """
    lengths = np.stack([np.bincount(row, minlength=size) for row, _ in blocks])
    order = np.argsort(lengths, axis=1, kind="stable")
    profile = np.max(np.take_along_axis(lengths, order, axis=1), axis=0)
    start = np.concatenate(([0], np.cumsum(profile)))
    slots = np.arange(start[-1])
    common = make_plan(start, slots, slots, slots.size)
    emitted = np.argsort(common.order)
    plans, places = [], []
    for (row, column), own, length in zip(blocks, order, lengths):
        rank = np.argsort(own)
        # Entry number e is the t-th of its row, and takes the t-th slot of the row's rank.
        by_row = np.argsort(row, kind="stable")
        first = np.cumsum(length) - length
        within = np.arange(row.size) - first[row[by_row]]
        slot = start[rank[row[by_row]]] + within
        index = np.zeros(slots.size, np.int32)  # an empty slot multiplies x[0] by zero
        position = np.full(slots.size + 1, padding, np.int32)
        index[slot], position[slot] = column[by_row], by_row
        plans.append(_filled(common.plan, index, position, padding))
        places.append(emitted[rank].astype(np.int32))
    return plans, places


def _filled(plan: Plan, index: np.ndarray, position: np.ndarray, padding: int) -> Plan:
    """The plan of a profile's slots with a block's own entries in them."""
    long = (_filled(plan.long[0], index, position, padding), plan.long[1]) if plan.long else ()
    places = tuple(position[p] for p in plan.position)
    return Plan(tuple(index[i] for i in plan.index), places, long, plan.empty, padding)
