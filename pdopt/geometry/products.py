"""Products of sets: `C = C_1 x C_2 x ...`, a pytree of sets that matches a pytree of points.

Everything separates: the projection is taken part by part, the support function is the sum of the parts' and the
squared distance the sum of the squared distances.
"""

from typing import Any

import jax

from pdopt.errors import InvalidProblem
from pdopt.geometry.points import total
from pdopt.geometry.sets import ConvexSet
from pdopt.types import record


@record
class Product(ConvexSet):
    """A pytree of sets. A point has the same structure, with an array (or a pytree of arrays) in place of each set.

    Attributes:
        sets: pytree whose leaves are sets; products nest.

    Raises:
        InvalidProblem: something in the tree that is not a set, or a point whose structure does not match.

    Example:
        >>> import jax.numpy as jnp
        >>> from pdopt.geometry.sets import Orthant, Reals
        >>> print(Product({"h": Reals(), "g": Orthant()}).project({"h": jnp.array(-1.0), "g": jnp.array(-1.0)}))
        {'g': Array(0., dtype=float32...), 'h': Array(-1., dtype=float32...)}
    """

    sets: Any

    def __post_init__(self) -> None:
        for part in self.parts:
            if not isinstance(part, ConvexSet):
                raise InvalidProblem(f"sets contains {part!r}; expected a pytree whose leaves are sets")

    @property
    def parts(self) -> list[ConvexSet]:
        """The sets, in the order of the tree."""
        return jax.tree.leaves(self.sets, is_leaf=is_set)

    @property
    def is_cone(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether every part is a cone."""
        return all(part.is_cone for part in self.parts)

    @property
    def bounded(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether every part is bounded."""
        return all(part.bounded for part in self.parts)

    @property
    def separable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether every part is a product over entries."""
        return all(part.separable for part in self.parts)

    def project(self, x: Any) -> Any:
        """The nearest point, part by part."""
        return self._map(lambda part, leaf: part.project(leaf), x)

    def support(self, y: Any, tolerance: Any = 0.0) -> jax.Array:
        """The sum of the parts' support functions."""
        return total(self._map(lambda part, leaf: part.support(leaf, tolerance), y))

    def _map(self, function: Any, x: Any) -> Any:
        try:
            matched = jax.tree.map(lambda part, leaf: (part, leaf), self.sets, x, is_leaf=is_set)
        except ValueError as error:
            seen, expected = jax.tree.structure(x), jax.tree.structure(self.sets, is_leaf=is_set)
            raise InvalidProblem(f"the point has structure {seen}; expected that of the sets, {expected}") from error
        return jax.tree.map(lambda both: function(*both), matched, is_leaf=_is_matched)


def is_set(thing: Any) -> bool:
    """Whether a node of a tree is a set, where the tree of sets ends.

    Example:
        >>> is_set(Product(())), is_set(())
        (True, False)
    """
    return isinstance(thing, ConvexSet)


def _is_matched(node: Any) -> bool:
    return isinstance(node, tuple) and len(node) == 2 and is_set(node[0])
