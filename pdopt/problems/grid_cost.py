"""The cost between two product grids that is a sum over axes: its kernels are products of small kernels.

C_ij = sum_k axes[k][i_k, j_k],    exp(-C / epsilon) = K_1 (x) ... (x) K_d
"""

from typing import Any

import jax
import jax.numpy as jnp

from pdopt.errors import InvalidProblem
from pdopt.problems.checks import check_finite
from pdopt.problems.costs import HIGHEST, Cost
from pdopt.runtime.precision import as_array
from pdopt.types import record


@record
class Grid(Cost):
    """`C_ij = sum_k axes[k][i_k, j_k]` between two product grids, bins in C order (last axis fastest).

    A soft minimum over all columns is one over each axis in turn: `N sum_k m_k` exponentials instead of `N^2`.

    Attributes:
        axes: one `(n_k, m_k)` matrix for each axis; squared Euclidean distance is a sum over axes.

    Example:
        >>> line = jnp.array([[0.0, 1.0], [1.0, 0.0]])
        >>> print(Grid((line, 10 * line)).todense()[0])
        [ 0. 10.  1. 11.]
    """

    axes: Any

    separable = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", tuple(self.axes))
        if not self.axes or any(jnp.ndim(axis) != 2 for axis in self.axes):
            shapes = [jnp.shape(axis) for axis in self.axes]
            raise InvalidProblem(f"axes have shapes {shapes}; expected one (n_k, m_k) matrix for each axis")

    @property
    def sources(self) -> tuple[int, ...]:
        """Bins along each axis of the first grid."""
        return tuple(axis.shape[0] for axis in self.axes)

    @property
    def targets(self) -> tuple[int, ...]:
        """Bins along each axis of the second grid."""
        return tuple(axis.shape[1] for axis in self.axes)

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, m)`: products of the bins along the axes."""
        n = m = 1
        for rows, columns in zip(self.sources, self.targets):
            n, m = n * rows, m * columns
        return n, m

    @property
    def dtype(self) -> Any:
        """Dtype of the axes."""
        return jnp.result_type(*self.axes)

    def block(self, start: Any, size: int) -> Any:
        """Rows, by the indices of their bins along each axis."""
        places = jnp.unravel_index(start + jnp.arange(size), self.sources)
        total = jnp.zeros((size, 1), self.dtype)
        for place, axis in zip(places, self.axes):
            total = (total[:, :, None] + axis[place][:, None, :]).reshape(size, -1)
        return total

    def transpose(self) -> "Grid":
        """Every axis transposed."""
        return Grid(tuple(axis.T for axis in self.axes))

    def astype(self, dtype: Any) -> "Grid":
        """The axes in another dtype."""
        return Grid(tuple(as_array(f"axes[{k}]", axis, dtype) for k, axis in enumerate(self.axes)))

    def check(self) -> None:
        """Raise for NaN or infinity."""
        for k, axis in enumerate(self.axes):
            check_finite(f"axes[{k}]", axis)

    def largest(self) -> Any:
        """`max |C|`, from the extremes along the axes."""
        high, low = (sum(pick(axis) for axis in self.axes) for pick in (jnp.max, jnp.min))
        return jnp.maximum(jnp.abs(high), jnp.abs(low))

    def mean(self) -> Any:
        """The mean entry: the sum of the means."""
        return sum((jnp.mean(axis) for axis in self.axes), jnp.zeros((), self.dtype))

    def min_rows(self, g: Any) -> Any:
        """`min_j (C_ij - g_j)`, axis by axis."""
        return self._fold(-g, lambda values, axis: jnp.min(values[..., None, :] + axis, axis=-1))

    def softmin_rows(self, h: Any, epsilon: Any) -> Any:
        """`-epsilon log sum_j exp(h_j - C_ij / epsilon)`, axis by axis."""
        lse = lambda values, axis: jax.nn.logsumexp(values[..., None, :] - axis / epsilon, axis=-1)
        return -epsilon * self._fold(h, lse)

    def log_rows(self, f: Any, g: Any, log_b: Any, epsilon: Any) -> Any:
        """`log sum_j b_j exp((f_i + g_j - C_ij) / epsilon)`, by the soft minimum over each axis."""
        return (f - self.softmin_rows(log_b + g / epsilon, epsilon)) / epsilon

    def sum_rows(self, f: Any, g: Any, b: Any, epsilon: Any) -> Any:
        """The same without the logarithm."""
        log_b = jnp.where(b > 0, jnp.log(jnp.where(b > 0, b, 1)), -jnp.inf)
        return jnp.exp(jnp.minimum(self.log_rows(f, g, log_b, epsilon), HIGHEST))

    def spread(self) -> Any:
        """The sum over axes of the median of `mean_j - min_j`."""
        return sum((jnp.median(jnp.mean(c, axis=1) - jnp.min(c, axis=1)) for c in self.axes), jnp.zeros((), self.dtype))

    def _fold(self, values: Any, reduce: Any) -> Any:
        values = values.reshape(self.targets)
        for k, axis in enumerate(self.axes):
            values = jnp.moveaxis(reduce(jnp.moveaxis(values, k, -1), axis), -1, k)
        return values.reshape(-1)
