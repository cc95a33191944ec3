"""Anderson mixing (1965) of the points that a fixed-point iteration met: a restart to where their residuals cancel.

Once the active set has settled a saddle step T is affine, and the residual `T z - z` of a weighted mean of points is
the same mean of their residuals. So of all means `sum_i a_i T z_i`, `sum_i a_i = 1`, the one whose residuals cancel
best is the next anchor:

    min_a |sum_i a_i (T z_i - z_i)|,     a = H^-1 1 / (1' H^-1 1),     H = gram + regularisation diag(gram)

Far from a solution T is not affine, so every such jump is taken on trial: it is taken back at the next check where the
error after it is larger than before. A mean may leave the sets by a little; T brings it back.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pdopt.errors import InvalidOption, require_range
from pdopt.operators.sums import dots, mean
from pdopt.types import record


class Past(NamedTuple):
    """The last points of an epoch with their residuals.

    A row holds a point and its residual, flat; one array, since each would be a kernel to compile, written in a circle:
    `place` is where the latest is, and `gram` has the inner products of the residuals. `seen` counts the checks of the
    epoch, and `bound` is what the error may be after a jump (infinite: none is on trial); until then the latest row is
    where it came from.
    """

    rows: Any
    gram: Any
    place: Any
    seen: Any
    bound: Any


class Jump(NamedTuple):
    """What a check makes of the past: whether the epoch ends in a mean, whether a jump is taken back, and to where."""

    taken: Any
    back: Any
    point: Any


@record(static=("memory", "spacing", "regularisation"))
class Anderson:
    """When an epoch of a restarted method ends in a mean of its points.

    Attributes:
        memory: points kept, >= 2; 6 (static).
        spacing: checks from one point to the next, >= 1; 4: neighbours say the same (static).
        sufficient: in (0, 1); a mean ends the epoch early where its residual would be this share of the first one's,
        gain: in (0, 1), and at most this share of the latest;
        spare: in (0, 1]; where the epoch ends anyway, the mean is the new anchor for this share of the latest.
        trust: >= 1; a jump is taken back where the first error after it exceeds `trust` times the one before it.
        regularisation: share of the diagonal of the gram that is added to it (static), at least 8 units of rounding.

    Example:
        `T z = z / 2 + 1` in two dimensions, from two of its points; the fixed point is 2:

        >>> rule = Anderson(memory=2, spacing=1)
        >>> past = rule.init(jnp.zeros(2), jnp.zeros(2))
        >>> for z in (jnp.array([0.0, 4.0]), jnp.array([1.0, 3.0])):
        ...     past = past._replace(seen=past.seen + 1)
        ...     past, weights, total, _ = rule.stored(past, lambda: jnp.concatenate([z / 2 + 1, 1 - z / 2]), 2, True)
        >>> print((weights @ past.rows / total)[:2].round(3))
        [2. 2.]
    """

    memory: int = 6
    spacing: int = 4
    sufficient: Any = 0.3
    gain: Any = 0.5
    spare: Any = 0.9
    trust: Any = 3.0
    regularisation: Any = 1e-10

    def validate(self) -> None:
        """Raise `InvalidOption` for a memory below 2, a spacing below 1 or shares outside their ranges."""
        for name, least in (("memory", 2), ("spacing", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InvalidOption(f"{name} is {value!r}; expected an integer >= {least}")
        for name in ("sufficient", "gain", "spare", "regularisation"):
            require_range(name, getattr(self, name), 0.0, 1.0)
        require_range("trust", self.trust, 1.0)

    def init(self, point: Any, residual: Any) -> Past:
        """An empty past of trees like these."""
        row = jax.eval_shape(_flat, (point, residual))
        infinite, size = jnp.full((), jnp.inf, row.dtype), self.memory
        rows, gram = jnp.zeros((size, *row.shape), row.dtype), jnp.zeros((size, size), row.dtype)
        return Past(rows, gram, jnp.int32(size - 1), jnp.int32(0), infinite)

    def stored(self, past: Past, row: Callable[[], Any], size: int, due: Any) -> tuple[Past, Any, Any, Any]:
        """The past with one row more where it is `due`; weights of the best mean, their sum, its residual's share.

        Args:
            past: its `seen` counts this check.
            row: makes the row.
            size: entries of a point; what follows them in a row is its residual. The share is of squares, of the
                latest residual's; infinite where none is due.
        """
        place = lax.rem(past.place + jnp.asarray(due, jnp.int32), jnp.int32(self.memory))
        old = lax.dynamic_index_in_dim(past.rows, place, keepdims=False)
        # Written where it belongs: the rows themselves would be copied by every branch that they go through.
        latest = lax.cond(due, row, lambda: old)
        rows = lax.dynamic_update_slice_in_dim(past.rows, latest[None], place, 0)
        order = jnp.arange(self.memory, dtype=place.dtype)

        def best() -> tuple[Any, Any, Any, Any]:
            held, residual = lax.stop_gradient((rows, latest))
            own = dots(held, residual[size:])
            line, column = order == place, order[:, None] == place
            gram = jnp.where(line, own[:, None], jnp.where(column, own[None], past.gram))
            age = lax.rem(place - order + self.memory, jnp.int32(self.memory))
            known, diagonal = (age + 1) * self.spacing <= past.seen, order[:, None] == order
            unit = 1 + max(self.regularisation, 8 * float(jnp.finfo(gram.dtype).eps))
            # A place that holds nothing has a row and column of its own, and no weight.
            between = jnp.where(known & known[:, None], gram, 0)
            system = jnp.where(diagonal, jnp.where(known, unit * gram, 1), between)
            weights = _eliminated(jnp.concatenate([system, known[:, None].astype(gram.dtype)], 1))
            total = jnp.sum(weights)
            # The mean's residual is 1 / (1' H^-1 1) in square.
            return gram, weights, total, 1 / (total * jnp.sum(jnp.where(line, own, 0)))

        def none() -> tuple[Any, Any, Any, Any]:
            one = jnp.ones_like(past.bound)
            return past.gram, (order == place).astype(one.dtype), one, jnp.inf * one

        gram, weights, total, share = lax.cond(due, best, none)
        return past._replace(rows=rows, gram=gram, place=place), weights, total, share

    def begun(self, past: Past, jump: Jump, error: Any) -> Past:
        """The past at the start of an epoch: what it holds says nothing of the map to come, and a jump is on trial."""
        return past._replace(seen=jnp.int32(0), bound=jnp.where(jump.taken, self.trust * error, jnp.inf))

    def look(
        self, past: Past, point: Any, residual: Callable[[], Any], accepted: Any, ends: Any, error: Any, epoch: Any
    ) -> tuple[Past, Jump]:
        """What to do at a check.

        Args:
            point: where a restart would go without a jump, `T z` of the latest step.
            residual: makes `T z - z` in a metric in which errors are l2 norms, up to a factor that an epoch keeps.
            accepted: whether the step size let that step stand.
            ends: whether the restart rule ends the epoch here.
            error: of the latest step; epoch: as the restart rule keeps it.
        """
        back = accepted & (epoch.first > past.bound)
        past = past._replace(seen=past.seen + accepted.astype(jnp.int32))
        due = accepted & ~back & (lax.rem(past.seen, jnp.int32(self.spacing)) == 0)
        size = sum(leaf.size for leaf in jax.tree.leaves(point))
        past, weights, total, share = self.stored(past, lambda: _flat((point, residual())), size, due)
        aim = jnp.minimum(self.gain, self.sufficient * epoch.first / error)
        enough = jnp.where(ends, jnp.maximum(aim, self.spare), aim)
        several = past.seen > 2 * self.spacing
        taken = (epoch.restarts > 0) & several & (share <= enough * enough)
        # The first check after a jump has judged it.
        past = past._replace(bound=jnp.full_like(past.bound, jnp.inf))
        return past, Jump(taken, back, partial(_like, point, weights, total, past.rows))


def _flat(tree: Any) -> Any:
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


def _like(tree: Any, weights: Any, total: Any, rows: Any) -> Any:
    """The mean of rows as a tree like this one; what follows it in a row is left out."""
    leaves, structure = jax.tree.flatten(tree)
    ends = np.cumsum([leaf.size for leaf in leaves])
    point = mean(weights, rows[:, : ends[-1]]) / total
    return structure.unflatten(point[end - leaf.size : end].reshape(leaf.shape) for leaf, end in zip(leaves, ends))


def _eliminated(rows: Any) -> Any:
    """The solution of `H a = b` from `[H b]`, by Gauss and Jordan; H is positive definite, so no row is exchanged.

    Example:
        >>> print(_eliminated(jnp.array([[2.0, 0.0, 1.0], [0.0, 4.0, 1.0]])))
        [0.5  0.25]
    """
    size = rows.shape[0]

    def step(i: Any, rows: Any) -> Any:
        mine = jnp.arange(size) == i
        row, column = lax.dynamic_slice_in_dim(rows, i, 1, 0), lax.dynamic_slice_in_dim(rows, i, 1, 1)
        scaled = row / lax.dynamic_slice_in_dim(row, i, 1, 1)
        return jnp.where(mine[:, None], scaled, rows - column * scaled)

    return lax.fori_loop(jnp.int32(0), jnp.int32(size), step, rows)[:, -1]
