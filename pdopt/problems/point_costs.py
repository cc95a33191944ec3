"""Costs made from points and factors, block by block: `|x_i - y_j|^2` and `U V'`. Nothing `(n, m)` is stored."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from pdopt.errors import InvalidProblem
from pdopt.problems.checks import check_finite
from pdopt.problems.costs import Cost
from pdopt.runtime.precision import as_array
from pdopt.types import record


@record
class SqEuclidean(Cost):
    """`C_ij = |x_i - y_j|^2`, never stored.

    Computed as `|x|^2 + |y|^2 - 2 x.y` about the mean of y, at full precision of the product: float32 then loses about
    1e-7 of the largest squared distance from that mean. Reduced-precision matrix units would lose 1e-3.

    Attributes:
        x: `(n, d)`; y: `(m, d)`.

    Example:
        >>> cost = SqEuclidean(jnp.array([[0.0], [1.0]]), jnp.array([[0.0], [3.0]]))
        >>> print(cost.todense())
        [[0. 9.]
         [1. 4.]]
    """

    x: Any
    y: Any

    def __post_init__(self) -> None:
        for name, points in (("x", self.x), ("y", self.y)):
            if jnp.ndim(points) != 2:
                raise InvalidProblem(f"{name} has shape {jnp.shape(points)}; expected (points, dimensions)")
        if jnp.shape(self.x)[1] != jnp.shape(self.y)[1]:
            raise InvalidProblem(
                f"y has points of {jnp.shape(self.y)[1]} dimensions; expected {jnp.shape(self.x)[1]} as in x"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, m)`."""
        return self.x.shape[0], self.y.shape[0]

    @property
    def dtype(self) -> Any:
        """Dtype of the points."""
        return jnp.result_type(self.x, self.y)

    def block(self, start: Any, size: int) -> Any:
        """Rows of squared distances."""
        x = self.x if size == self.shape[0] else lax.dynamic_slice_in_dim(self.x, start, size)
        centre = lax.stop_gradient(jnp.mean(self.y, axis=0))
        x, y = x - centre, self.y - centre
        products = jnp.matmul(x, y.T, precision=lax.Precision.HIGHEST)
        squares = jnp.sum(x * x, axis=1)[:, None] + jnp.sum(y * y, axis=1)
        return jnp.maximum(squares - 2 * products, 0)

    def padded(self, n: int, m: int) -> "SqEuclidean":
        """Further points in the middle of the others."""
        return SqEuclidean(*(_more(points, size) for points, size in ((self.x, n), (self.y, m))))

    def transpose(self) -> "SqEuclidean":
        """The points exchanged."""
        return SqEuclidean(self.y, self.x)

    def astype(self, dtype: Any) -> "SqEuclidean":
        """The points in another dtype."""
        return SqEuclidean(as_array("x", self.x, dtype), as_array("y", self.y, dtype))

    def check(self) -> None:
        """Raise for NaN or infinity."""
        check_finite("x", self.x)
        check_finite("y", self.y)


@record
class LowRank(Cost):
    """`C = U V'`, `U (n, r)`, `V (m, r)`.

    Example:
        >>> print(LowRank(jnp.array([[1.0], [2.0]]), jnp.array([[3.0], [4.0]])).todense())
        [[3. 4.]
         [6. 8.]]
    """

    U: Any
    V: Any

    def __post_init__(self) -> None:
        if jnp.ndim(self.U) != 2 or jnp.ndim(self.V) != 2 or jnp.shape(self.U)[1] != jnp.shape(self.V)[1]:
            raise InvalidProblem(
                f"U has shape {jnp.shape(self.U)} and V {jnp.shape(self.V)}; expected (n, r) and (m, r)"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, m)`."""
        return self.U.shape[0], self.V.shape[0]

    @property
    def dtype(self) -> Any:
        """Dtype of the factors."""
        return jnp.result_type(self.U, self.V)

    def block(self, start: Any, size: int) -> Any:
        """Rows of the product."""
        U = self.U if size == self.shape[0] else lax.dynamic_slice_in_dim(self.U, start, size)
        return jnp.matmul(U, self.V.T, precision=lax.Precision.HIGHEST)

    def padded(self, n: int, m: int) -> "LowRank":
        """Further rows of the factors, equal to the mean of the others."""
        return LowRank(*(_more(factor, size) for factor, size in ((self.U, n), (self.V, m))))

    def transpose(self) -> "LowRank":
        """The factors exchanged."""
        return LowRank(self.V, self.U)

    def astype(self, dtype: Any) -> "LowRank":
        """The factors in another dtype."""
        return LowRank(as_array("U", self.U, dtype), as_array("V", self.V, dtype))

    def check(self) -> None:
        """Raise for NaN or infinity."""
        check_finite("U", self.U)
        check_finite("V", self.V)


def _more(points: Any, size: int) -> Any:
    mean = jnp.mean(points, axis=0, keepdims=True)
    return jnp.concatenate([points, jnp.repeat(mean, size - points.shape[0], axis=0)])
