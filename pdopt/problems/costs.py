"""Cost operators of transport: what moving one unit from i to j costs, `C (n, m)`, without having to store C.

    DenseCost(C)        the matrix itself (here; what a plain array becomes)
    SqEuclidean(x, y)   C_ij = |x_i - y_j|^2, points in d dimensions, made block by block (`point_costs.py`)
    Grid(axes)          C_ij = sum_k axes[k][i_k, j_k] on a product grid (`grid_cost.py`)
    LowRank(U, V)       C = U V' (`point_costs.py`)

Everything a solver wants is a reduction over rows or columns of a function of C. `Cost.rows` gives the first: it hands
blocks of rows to a function and stacks what comes back, so that no cost but a dense one is ever held whole; the
transpose of a cost is a cost, which gives the other.
"""

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.problems.checks import check_finite
from pdopt.runtime.precision import as_array
from pdopt.types import record

# Entries of one block of rows: 4 MiB in float32, which stays in a CPU's cache; and of a whole matrix made at once.
BLOCK_ENTRIES = 2**20
WHOLE_ENTRIES = 2**22
# Largest exponent of a plan's entry while it is far from feasible; exp of it and sums of that are finite in float32.
HIGHEST = 60.0


class Cost(abc.ABC):
    """What every cost offers. `n, m = cost.shape`; all verbs are traceable and never build `(n, m)` unless dense.

    Two facts: `stored`, the matrix is held whole; `separable`, reductions go axis by axis and beat the matrix.
    """

    stored = False
    separable = False

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]:
        """`(n, m)`."""

    @property
    @abc.abstractmethod
    def dtype(self) -> Any:
        """Floating dtype of the entries."""

    @abc.abstractmethod
    def block(self, start: Any, size: int) -> Any:
        """Rows `start ... start + size - 1` of C, `(size, m)`; `start` may be traced, `size` is static."""

    @abc.abstractmethod
    def transpose(self) -> "Cost":
        """The cost of going back, `C'`."""

    @abc.abstractmethod
    def astype(self, dtype: Any) -> "Cost":
        """The same cost in another floating dtype."""

    @abc.abstractmethod
    def check(self) -> None:
        """Raise `InvalidProblem` for NaN or infinite data."""

    def padded(self, n: int, m: int) -> "Cost":
        """The cost with further sources and targets, up to `(n, m)`, whose entries are finite and do not matter.

        Raises:
            InvalidOption: a cost whose sizes are tied together.
        """
        raise InvalidOption(f"pad: a {type(self).__name__} cost cannot grow by single bins; solve it at its own size")

    @property
    def block_rows(self) -> int:
        """Rows handed out at once; all of them where the matrix is small."""
        n, m = self.shape
        return n if n * m <= WHOLE_ENTRIES else max(1, min(n, BLOCK_ENTRIES // m))

    def todense(self) -> Any:
        """C, `(n, m)`."""
        return self.block(0, self.shape[0])

    def rows(self, reduce: Callable[..., Any], *along: Any) -> Any:
        """`reduce(C_block, *along_block)` of every block of rows, stacked.

        Args:
            reduce: gets `(size, m)` entries and the matching `(size, ...)` parts of `along`; returns a pytree of
                arrays with leading axis `size`.
            along: arrays with leading axis n.
        """
        n, size = self.shape[0], self.block_rows
        if size == n:
            return reduce(self.todense(), *along)

        # Made again on the way back: a derivative then stores no block, of whatever order it is.
        @jax.checkpoint
        def one(number: Any) -> Any:
            # The last block is moved up to fit; its first rows are then made twice, with the same values.
            start = jnp.minimum(number * size, n - size)
            parts = [lax.dynamic_slice_in_dim(v, start, size) for v in along]
            return reduce(self.block(start, size), *parts)

        blocks = lax.map(one, jnp.arange(-(-n // size)))
        last = n - n % size if n % size else n - size

        def join(leaf: Any) -> Any:
            whole = leaf[:-1].reshape((-1, *leaf.shape[2:]))
            return jnp.concatenate([whole, leaf[-1][last - (n - size) :]])

        return jax.tree.map(join, blocks)

    def sums(self, reduce: Callable[..., Any], *along: Any) -> Any:
        """The sum over blocks of rows of `reduce(C_block, *along_block, present)`.

        Args:
            reduce: as in `rows`, with a last argument `present (size,)`, 1 or 0: rows with 0 were counted already.
                Returns a pytree of arrays of fixed shape.
            along: arrays with leading axis n.
        """
        n, size = self.shape[0], self.block_rows
        if size == n:
            return reduce(self.todense(), *along, jnp.ones(n, self.dtype))

        @jax.checkpoint
        def one(total: Any, number: Any) -> Any:
            start = jnp.minimum(number * size, n - size)
            parts = [lax.dynamic_slice_in_dim(v, start, size) for v in along]
            present = (start + jnp.arange(size) >= number * size).astype(self.dtype)
            return jax.tree.map(jnp.add, total, reduce(self.block(start, size), *parts, present)), None

        parts = [jax.ShapeDtypeStruct((size, *v.shape[1:]), v.dtype) for v in along]
        entries = jax.ShapeDtypeStruct((size, self.shape[1]), self.dtype)
        shapes = jax.eval_shape(reduce, entries, *parts, jax.ShapeDtypeStruct((size,), self.dtype))
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return lax.scan(one, zero, jnp.arange(-(-n // size)))[0]

    def largest(self) -> Any:
        """`max |C|`."""
        return jnp.max(self.rows(lambda block: jnp.max(jnp.abs(block), axis=1)))

    def mean(self) -> Any:
        """The mean entry."""
        return jnp.mean(self.rows(lambda block: jnp.mean(block, axis=1)))

    def min_rows(self, g: Any) -> Any:
        """`min_j (C_ij - g_j)`, `(n,)`: the c-transform."""
        return self.rows(lambda block: jnp.min(block - g, axis=1))

    def softmin_rows(self, h: Any, epsilon: Any) -> Any:
        """`-epsilon log sum_j exp(h_j - C_ij / epsilon)`, `(n,)`; `h_j = -inf` leaves column j out."""
        return self.rows(lambda block: -epsilon * jax.nn.logsumexp(h - block / epsilon, axis=1))

    def log_rows(self, f: Any, g: Any, log_b: Any, epsilon: Any) -> Any:
        """`log sum_j b_j exp((f_i + g_j - C_ij) / epsilon)`, `(n,)`, accurate: for judging a plan.

        `f + g - C` nearly cancels where there is mass; what its two additions round off is added back, and the sum is
        taken in two stages, where rounding grows with the square root of m only.
        """

        one = lambda block, f: _log_sum(three_sum(f[:, None], g, -block) / epsilon + log_b, 1)
        return self.rows(one, f)

    def log_columns(self, f: Any, g: Any, log_a: Any, epsilon: Any) -> Any:
        """`log sum_i a_i exp((f_i + g_j - C_ij) / epsilon)`, `(m,)`: the same over rows."""
        return self.transpose().log_rows(g, f, log_a, epsilon)

    def sum_rows(self, f: Any, g: Any, b: Any, epsilon: Any) -> Any:
        """`sum_j b_j exp((f_i + g_j - C_ij) / epsilon)`, `(n,)`: fast, for potentials that are nearly right.

        The old potential is the shift, so that no maximum is looked for; exponents beyond `HIGHEST` are cut.
        """
        entries = lambda block, f: jnp.exp(jnp.minimum((f[:, None] - block + g) / epsilon, HIGHEST))
        dot = lambda block, f: jnp.matmul(entries(block, f), b, precision=lax.Precision.HIGHEST)
        return self.rows(dot, f)

    def spread(self) -> Any:
        """How much the cost of one source varies, typically: the median over rows of `mean_j C_ij - min_j C_ij`.

        Adding a constant to a row or a huge entry does not move it.
        """
        return jnp.median(self.rows(lambda block: jnp.mean(block - jnp.min(block, axis=1, keepdims=True), axis=1)))


def ladder(size: int) -> int:
    """The smallest of 8, 10, 13, 17, ... (each at least 1.25 times the one before) that holds `size`.

    Example:
        >>> ladder(8), ladder(9), ladder(1000)
        (8, 10, 1032)
    """
    step = 8
    while step < size:
        step = -(-5 * step // 4)
    return step


def three_sum(a: Any, b: Any, c: Any) -> Any:
    """`a + b + c` with the rounding errors of both additions added back.

    Example:
        >>> print(three_sum(jnp.float32(1e8), jnp.float32(3.0), jnp.float32(-1e8)))
        3.0
    """
    first, lost = two_sum(a, b)
    second, also = two_sum(first, c)
    return second + (lost + also)


def two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """`a + b` rounded, and what the rounding lost (Knuth 1969).

    Example:
        >>> print(*two_sum(jnp.float32(1e8), jnp.float32(3.0)))
        1e+08 3.0
    """
    total = a + b
    there = total - a
    return total, (a - (total - there)) + (b - there)


def strided_sum(values: Any, axis: int = -1) -> Any:
    """The sum over one axis of a matrix in two stages, where its length has a divisor that allows it.

    Example:
        >>> print(strided_sum(jnp.ones((2, 64), jnp.float32)))
        [64. 64.]
    """
    axis %= values.ndim
    size = values.shape[axis]
    stride = max((d for d in range(1, 129) if size % d == 0), default=1)
    shape = (*values.shape[:axis], size // stride, stride, *values.shape[axis + 1 :])
    return jnp.sum(jnp.sum(values.reshape(shape), axis=axis), axis=axis)


def _log_sum(exponent: Any, axis: int) -> Any:
    """`log sum exp` over an axis; -inf where everything is."""
    largest = lax.stop_gradient(jnp.max(exponent, axis=axis, keepdims=True))
    shift = jnp.where(jnp.isfinite(largest), largest, 0)
    return jnp.squeeze(shift, axis) + jnp.log(strided_sum(jnp.exp(exponent - shift), axis))


@record
class DenseCost(Cost):
    """The matrix itself.

    Example:
        >>> print(DenseCost(jnp.array([[0.0, 2.0], [1.0, 0.0]])).min_rows(jnp.array([0.0, 3.0])))
        [-1. -3.]
    """

    C: Any

    stored = True

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, m)`."""
        return self.C.shape[-2:]

    @property
    def dtype(self) -> Any:
        """Dtype of C."""
        return self.C.dtype

    @property
    def block_rows(self) -> int:
        """All: the matrix is stored."""
        return self.shape[0]

    def block(self, start: Any, size: int) -> Any:
        """Rows of C."""
        return self.C if size == self.shape[0] else lax.dynamic_slice_in_dim(self.C, start, size)

    def log_columns(self, f: Any, g: Any, log_a: Any, epsilon: Any) -> Any:
        """Along the columns of the stored matrix, which is faster than along the rows of its transpose."""
        return _log_sum(three_sum(f[:, None], g, -self.C) / epsilon + log_a[:, None], 0)

    def padded(self, n: int, m: int) -> "DenseCost":
        """Zeros beyond the matrix."""
        return DenseCost(jnp.pad(self.C, ((0, n - self.shape[0]), (0, m - self.shape[1]))))

    def transpose(self) -> "DenseCost":
        """`C'`."""
        return DenseCost(self.C.T)

    def astype(self, dtype: Any) -> "DenseCost":
        """C in another dtype."""
        return DenseCost(as_array("cost", self.C, dtype))

    def check(self) -> None:
        """Raise for NaN or infinity."""
        check_finite("cost", self.C)


def as_cost(cost: Any, dtype: Any) -> Cost:
    """A cost operator from what users have: a matrix or a cost, brought to one floating dtype.

    Raises:
        InvalidProblem: not a matrix.

    Example:
        >>> as_cost([[0, 1], [1, 0]], jnp.float32).shape
        (2, 2)
    """
    if isinstance(cost, Cost):
        return cost.astype(dtype)
    C = as_array("cost", cost, dtype)
    if C.ndim != 2:
        raise InvalidProblem(f"cost has shape {C.shape}; expected (n, m), or a cost operator")
    return DenseCost(C)
