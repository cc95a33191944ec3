"""Zero-sum matrix games: two players mix their actions, one pays what the other gains.

    min_x max_y  x'A y       x in the simplex of m row actions, y in the simplex of n column actions

By von Neumann (1928) the order does not matter: `max_j (A'x)_j` is what x can be made to pay, `min_i (A y)_i` what y
can be held to, and they meet at the value of the game. So a pair proves by itself how good it is, with no further
data.
"""

from dataclasses import InitVar
from typing import Any

import jax
import jax.numpy as jnp

from pdopt.errors import InvalidProblem
from pdopt.geometry.balls import Simplex
from pdopt.operators.convert import as_operator
from pdopt.problems.checks import check_finite
from pdopt.runtime.precision import precision_scope, resolve_dtype
from pdopt.types import Optimality, Pair, Residuals, record


@record
class MatrixGame:
    """`min_x max_y x'A y` over two simplices; the row player x pays `payoff` to the column player y.

    Args:
        payoff: `(m, n)` dense array, SciPy sparse matrix, BCOO or operator; m, n >= 1.
        dtype: floating dtype of the data; default: that of the input, as for `LinearProgram`.
        check: look at the values (NaN, infinities); the shape is always checked.

    Raises:
        InvalidProblem: a player without actions, NaN or infinity; the message names the place.

    Example:
        >>> import pdopt
        >>> pennies = MatrixGame([[1.0, -1.0], [-1.0, 1.0]], dtype=jnp.float32)
        >>> print(pdopt.solve(pennies).x.round(3))
        [0.5 0.5]
    """

    payoff: Any
    dtype: InitVar[Any] = None
    check: InitVar[bool] = True
    allow_low_precision: InitVar[bool] = False

    def __post_init__(self, dtype: Any, check: bool, allow_low_precision: bool) -> None:
        dtype = resolve_dtype([("payoff", self.payoff)], dtype, allow_low_precision=allow_low_precision)
        payoff = as_operator(self.payoff, dtype)
        if min(payoff.shape) < 1:
            raise InvalidProblem(f"payoff has shape {payoff.shape}; expected at least one action for each player")
        object.__setattr__(self, "payoff", payoff)
        if check and hasattr(payoff, "entries"):
            check_finite("payoff", payoff.entries)

    @property
    def shape(self) -> tuple[int, int]:
        """`(m, n)`: actions of the row player and of the column player."""
        return self.payoff.shape

    @property
    def sense(self) -> float:
        """1: the row player minimises."""
        return 1.0

    def pair_shapes(self) -> Pair:
        """Shapes and dtype of a pair: x `(m,)`, y `(n,)`."""
        m, n = self.shape
        return Pair(jax.ShapeDtypeStruct((m,), self.payoff.dtype), jax.ShapeDtypeStruct((n,), self.payoff.dtype))

    def minimised(self) -> "MatrixGame":
        """Itself."""
        return self

    def flip(self, pair: Pair) -> Pair:
        """The pair itself: a game has one sense."""
        return pair

    def certificate(self, proof: Any, ray: Pair) -> Any:
        """The best replies at the returned pair, a Pair of pure strategies."""
        return proof

    def value(self, pair: Pair) -> Any:
        """`x'A y`, what the row player pays on average."""
        with precision_scope(self):
            return pair.x @ self.payoff.matvec(pair.y)

    def best_responses(self, pair: Pair) -> Pair:
        """Pure best replies: x against y (`argmin_i (A y)_i`) and y against x (`argmax_j (A'x)_j`), as unit vectors."""
        with precision_scope(self):
            m, n = self.shape
            dtype = self.payoff.dtype
            row, column = jnp.argmin(self.payoff.matvec(pair.y)), jnp.argmax(self.payoff.rmatvec(pair.x))
            return Pair(jax.nn.one_hot(row, m, dtype=dtype), jax.nn.one_hot(column, n, dtype=dtype))

    def residuals(self, pair: Pair) -> Residuals:
        """See `optimality`."""
        return self.optimality(pair).residuals

    def optimality(self, pair: Pair) -> Optimality:
        """Residuals and both objectives of a pair.

        primal, dual: l2 distance of x, of y to its simplex (a set of size 1: relative and absolute are the same);
        objective `U = max_j (A'x)_j`, dual objective `D = min_i (A y)_i`; gap `|U - D| / (1 + |U| + |D|)`. At a pair
        inside the simplices `U - D >= 0`, the sum of what both players lose against a best reply. float32 reaches
        about 1e-6.
        """
        with precision_scope(self):
            x, y = pair
            upper, lower = jnp.max(self.payoff.rmatvec(x)), jnp.min(self.payoff.matvec(y))
            simplex = Simplex()
            primal, dual = simplex.distance(x), simplex.distance(y)
            gap = jnp.abs(upper - lower)
            worst = jnp.maximum(_outside(x), _outside(y))
            relative = gap / (1 + jnp.abs(upper) + jnp.abs(lower))
            residuals = Residuals(primal, dual, relative, primal, dual, gap, worst)
            return Optimality(residuals, upper, lower, self.best_responses(pair))

    def lagrangian(self, pair: Pair, proof: Any) -> Any:
        """`x'A y`: the value's derivative with respect to the payoffs is `x y'` (envelope theorem)."""
        return pair.x @ self.payoff.matvec(pair.y)

    def valid(self) -> Any:
        """Whether the payoffs are numbers (for traced data, where a constructor cannot raise)."""
        return jnp.all(jnp.isfinite(self.payoff.entries)) if hasattr(self.payoff, "entries") else jnp.bool_(True)


def _outside(p: Any) -> Any:
    """The largest single violation of `p >= 0, sum p = 1`."""
    return jnp.maximum(jnp.max(-p), jnp.abs(jnp.sum(p) - 1))
