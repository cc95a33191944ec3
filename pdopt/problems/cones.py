"""Which entries of a vector make up second-order cones, and what is done to them there and nowhere else.

A cone is a list of places `(t, z1, ..., zk)` with `t >= |z|_2`. Cones of one size are projected together, so that a
thousand cones of three entries are one gather, one projection and one scatter.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from pdopt.errors import InvalidProblem
from pdopt.geometry.cones import SecondOrderCone
from pdopt.types import record


@record
class Cones:
    """Disjoint second-order cones among the entries of a vector.

    Attributes:
        groups: for each size of cone the places, int32 `(count, size)`, the bound's first.

    Example:
        >>> cones = Cones.of("rows", [[1, 2, 3]], 4)
        >>> print(cones.project(jnp.array([-7.0, 0.0, 3.0, 4.0])))
        [-7.   2.5  1.5  2. ]
    """

    groups: tuple[Any, ...] = ()

    @staticmethod
    def of(name: str, cones: Sequence[Any], size: int) -> "Cones":
        """From lists of places in a vector of `size` entries.

        Raises:
            InvalidProblem: a cone that is empty, a place outside the vector, or in two cones.
        """
        lists = [np.asarray(cone) for cone in cones]
        for number, places in enumerate(lists):
            if places.ndim != 1 or not places.size or not np.issubdtype(places.dtype, np.integer):
                raise InvalidProblem(f"{name}[{number}] is {cones[number]!r}; expected a list of at least one integer")
            if places.min() < 0 or places.max() >= size:
                raise InvalidProblem(f"{name}[{number}] has a place outside 0 to {size - 1}: {places.tolist()}")
        together = np.concatenate(lists) if lists else np.zeros(0, np.int64)
        seen, count = np.unique(together, return_counts=True)
        if np.any(count > 1):
            raise InvalidProblem(f"{name} names place {seen[count > 1][0]} twice; expected disjoint cones")
        sizes = sorted({places.size for places in lists})
        return Cones(tuple(np.stack([p for p in lists if p.size == k]).astype(np.int32) for k in sizes))

    @property
    def places(self) -> np.ndarray:
        """All places, in no order; of concrete cones."""
        return np.concatenate([np.ravel(group) for group in self.groups]) if self.groups else np.zeros(0, np.int32)

    def replaced(self, v: Any, new: Any) -> Any:
        """`v`, with the entries of the cones taken from `new`."""
        for group in self.groups:
            v = v.at[group].set(new[group], unique_indices=True)
        return v

    def project(self, v: Any) -> Any:
        """`v`, with each cone's entries projected on the cone."""
        for group in self.groups:
            v = v.at[group].set(SecondOrderCone().project(v[group]), unique_indices=True)
        return v

    def even(self, factor: Any) -> Any:
        """Positive factors, with the geometric mean of a cone's in all its places: so scaled, a cone stays a cone."""
        for group in self.groups:
            mean = jnp.exp(jnp.mean(jnp.log(factor[group]), axis=-1, keepdims=True))
            factor = factor.at[group].set(jnp.broadcast_to(mean, group.shape), unique_indices=True)
        return factor

    def put(self, order: Any) -> "Cones":
        """The same cones where entries are stored in another order (`operators.base.Order`), or None."""
        return self if order is None else Cones(tuple(order.rank[group] for group in self.groups))


NONE = Cones()
