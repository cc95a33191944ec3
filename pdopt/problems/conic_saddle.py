"""A second-order cone program for PDHG: the linear program's view, with cones held by projections on both sides.

x' = project(x0 - tau (c - A'y));    y' = project(y + sigma (row_lower - A seen))        in a cone
"""

from typing import Any

import jax.numpy as jnp

from pdopt.operators.norms import POWER_ITERATIONS
from pdopt.problems.cones import Cones
from pdopt.types import Pair, record


@record
class ConicSaddle:
    """A scaled conic program.

    Attributes:
        linear: the saddle view of the linear program of the same data, scaled evenly within each cone.
        rows, columns: the cones, in the view's order of rows and columns.
    """

    linear: Any
    rows: Cones
    columns: Cones

    @property
    def balance(self) -> Any:
        """The first primal weight."""
        return self.linear.balance

    def start(self) -> Pair:
        """The point of the bounds nearest to 0, which lies in every cone, and no multipliers."""
        return self.linear.start()

    def into(self, pair: Pair) -> Pair:
        """A pair in the user's units, scaled and moved into its sets."""
        inside, free = self.linear.into(pair), self.linear.carried(pair)
        return Pair(
            self.columns.replaced(inside.x, self.columns.project(free.x)),
            self.rows.replaced(inside.y, self.rows.project(free.y)),
        )

    def back(self, pair: Pair) -> Pair:
        """A pair (or a direction) in the user's units and order."""
        return self.linear.back(pair)

    def prox(self, v: Any, step: Any) -> Any:
        """Projection on the box and on the cones."""
        return self.columns.project(self.linear.prox(v, step))

    def gradient(self, x: Any, y: Any) -> Any:
        """`c - A'y`."""
        return self.linear.gradient(x, y)

    def violation(self, x: Any) -> Any:
        """`-A x`."""
        return self.linear.violation(x)

    def move(self, y: Any, v: Any, step: Any) -> Any:
        """The prox of two-sided rows at `y + step v`; in a cone the projection of `y + step (row_lower + v)`."""
        low = self.linear.rows.row_lower
        climbed = y + step * (v + jnp.where(jnp.isfinite(low), low, 0))
        return self.rows.replaced(self.linear.move(y, v, step), self.rows.project(climbed))

    def norm(self, limit: int = POWER_ITERATIONS) -> Any:
        """`|A_s|_2`."""
        return self.linear.norm(limit)
