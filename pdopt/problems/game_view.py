"""A matrix game as a saddle: `f = 0` on the simplex, `v(x) = A'x`, and y moves inside its own simplex.

The two moves are data. With Euclidean ones this is the view of PDHG; with entropic ones the same view is that of mirror
descent: `x' = softmax(log x - step A y)`, `y' = softmax(log y + step A'x)`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pdopt.geometry.balls import Simplex
from pdopt.geometry.entropic import Entropic
from pdopt.geometry.moves import Move
from pdopt.operators.norms import POWER_ITERATIONS, spectral_norm
from pdopt.types import Pair, record


@record
class GameSaddle:
    """`min_x max_y <A'x, y>` over two simplices, each side with its geometry.

    A game is not scaled: a diagonal scaling would turn the simplices into other sets. Moves act on one vector each.

    Attributes:
        payoff: operator A, `(m, n)`.
        primal, dual: how x and y move inside their simplices.
        balance: first primal weight, 1: both simplices have the same size.
    """

    payoff: Any
    primal: Move
    dual: Move
    balance: Any

    def start(self) -> Pair:
        """Uniform strategies."""
        m, n = self.payoff.shape
        dtype = self.payoff.dtype
        return Pair(jnp.full(m, 1 / m, dtype), jnp.full(n, 1 / n, dtype))

    def into(self, pair: Pair) -> Pair:
        """The nearest strategies; in the entropic geometry no weight is 0, where it would have to stay."""
        return Pair(_inside(self.primal, pair.x), _inside(self.dual, pair.y))

    def back(self, pair: Pair) -> Pair:
        """The pair itself: the view has the user's units."""
        return pair

    def prox(self, v: Any, step: Any) -> Any:
        """Projection on the simplex of x."""
        return Simplex().project(v)

    def gradient(self, x: Any, y: Any) -> Any:
        """`A y`: what each row action pays against y."""
        return self.payoff.matvec(y)

    def violation(self, x: Any) -> Any:
        """`A'x`: what each column action gains against x."""
        return self.payoff.rmatvec(x)

    def move(self, y: Any, v: Any, step: Any) -> Any:
        """The dual step: towards the columns that gain."""
        return self.dual(y, v, step)

    def descend(self, x: Any, gradient: Any, step: Any) -> Any:
        """The primal step, away from the rows that pay: the same kind of move against the gradient."""
        return self.primal(x, -gradient, step)

    def best(self, y: Any) -> Any:
        """The pure strategy that pays least against y."""
        return jax.nn.one_hot(jnp.argmin(self.payoff.matvec(y)), self.payoff.shape[0], dtype=self.payoff.dtype)

    def norm(self, limit: int = POWER_ITERATIONS) -> Any:
        """`|A|` between the norms of the two geometries.

        Entropic on both sides: `max |A_ij|` (l1 norms, in which the entropy is 1-strongly convex by Pinsker's
        inequality). Otherwise `|A|_2`, which is at least as large and safe for a mixture too.
        """
        if isinstance(self.primal, Entropic) and isinstance(self.dual, Entropic):
            return jnp.max(self.payoff.row_norms("linf"), initial=0)
        return spectral_norm(self.payoff, self.payoff.shape[0], self.payoff.dtype, limit=limit)


def _inside(move: Move, p: Any) -> Any:
    p = Simplex().project(p)
    if not isinstance(move, Entropic):
        return p
    raised = jnp.maximum(p, jnp.finfo(p.dtype).eps)
    return raised / jnp.sum(raised)
