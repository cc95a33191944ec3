"""From a plan that nearly has its marginals to one that has them: what makes a gap of transport a proof.

    T = diag(u) X diag(v) + r c' / |c|_1,    u = min(1, a / X1),  v = min(1, b / X'u),   r, c the masses still missing

is feasible for every X >= 0 and costs at most `2 max C (|X1 - a|_1 + |X'1 - b|_1)` more than X (Altschuler, Weed,
Rigollet 2017, arXiv 1705.09634, algorithm 2). Where all masses are equal and n = m, a permutation read off X is
feasible too and exact where X is nearly one (assignment); the cheaper of the two is taken.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pdopt.problems.costs import Cost, DenseCost
from pdopt.problems.couplings import Marginals, Potentials, marginal_error
from pdopt.types import record

# Rounds of the greedy matching; what is left then is matched in order. Near an optimum two or three do.
ROUNDS = 12

# Entries of a stored cost looked at together while a plan is judged, so that judging stores no array of its size.
JUDGED_ENTRIES = 2**12


@record
class Judged(Cost):
    """A stored cost handed out in small blocks of rows.

    Attributes:
        inner: the stored cost.
    """

    inner: DenseCost

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, m)`."""
        return self.inner.shape

    @property
    def dtype(self) -> Any:
        """Dtype of the entries."""
        return self.inner.dtype

    @property
    def block_rows(self) -> int:
        """All rows where the matrix is small."""
        n, m = self.shape
        return n if n * m <= JUDGED_ENTRIES else max(1, JUDGED_ENTRIES // m)

    def block(self, start: Any, size: int) -> Any:
        """Rows of the stored cost."""
        return self.inner.block(start, size)

    def transpose(self) -> "Judged":
        """The stored transpose."""
        return Judged(self.inner.transpose())

    def astype(self, dtype: Any) -> "Judged":
        """The stored cost in another dtype."""
        return Judged(self.inner.astype(dtype))

    def check(self) -> None:
        """As the stored cost."""
        self.inner.check()


def judged(cost: Cost) -> Cost:
    """The cost in blocks small enough to judge a plan by.

    Example:
        >>> judged(DenseCost(jnp.zeros((512, 512), jnp.float32))).block_rows
        8
    """
    return Judged(cost) if isinstance(cost, DenseCost) else cost


class Rounding(NamedTuple):
    """`T = diag(rows) X diag(columns) + row_left column_left'`: the feasible plan, by its vectors alone."""

    rows: Any
    columns: Any
    row_left: Any
    column_left: Any


class Rounded(NamedTuple):
    """How a plan is rounded: by scaling, or to `permutation (n,)` where `integral`, and what the result costs."""

    scaling: Rounding
    permutation: Any
    integral: Any
    objective: Any
    error: Marginals


def scale_down(cost: Cost, X: Any, a: Any, b: Any) -> Rounding:
    """Scale rows, then columns, down to their masses and say where the missing mass goes.

    Args:
        cost: says only in which blocks of rows X is read.
        X: plan `(n, m)`, >= 0.
        a, b: masses `(n,)`, `(m,)` of equal totals.

    Example:
        >>> X, half = jnp.array([[0.5, 0.25], [0.0, 0.25]]), jnp.full(2, 0.5)
        >>> made = scale_down(DenseCost(X), X, half, half)
        >>> T = apply_rounding(X, made)
        >>> print(T.sum(axis=1), T.sum(axis=0))
        [0.5 0.5] [0.5 0.5]
    """
    rows = _shrink(a, cost.rows(lambda C, X: jnp.sum(X, axis=1), X))
    column = weighted_columns(cost, X, rows)
    columns = _shrink(b, column)
    row_left = jnp.maximum(a - rows * cost.rows(lambda C, X: X @ columns, X), 0)
    column_left = jnp.maximum(b - columns * column, 0)
    total = jnp.sum(column_left)
    return Rounding(rows, columns, row_left, column_left / jnp.where(total > 0, total, 1))


def weighted_columns(cost: Cost, X: Any, u: Any) -> Any:
    """`X'u`, `(m,)`, block by block."""
    return cost.sums(lambda C, X, u, present: (present * u) @ X, X, u)


def apply_rounding(X: Any, rounding: Rounding) -> Any:
    """The feasible plan, `(n, m)`."""
    u, v, r, c = rounding
    return u[:, None] * X * v + r[:, None] * c


def rounded_cost(cost: Any, X: Any, rounding: Rounding) -> Any:
    """`<C, T>` of the rounded plan, without making it."""
    u, v, r, c = rounding
    return jnp.sum(cost.rows(lambda C, X, u, r: jnp.sum(C * (u[:, None] * X * v + r[:, None] * c), axis=1), X, u, r))


def greedy_permutation(keys: Any, size: int, wanted: Any = True) -> Any:
    """A permutation that follows the largest keys: column of every row, `(n,)` int32.

    In rounds: every unmatched row asks for its best free column, every column takes the row that offers it most.

    Args:
        keys: `keys(free)` gives each row's best key and column among the free columns, `(n,)` each.
        size: n.
        wanted: whether anybody reads the result; no round is made where not.

    Example:
        >>> X = jnp.array([[0.9, 0.1], [0.8, 0.2]])
        >>> best = lambda free: (jnp.max(jnp.where(free, X, -1), axis=1), jnp.argmax(jnp.where(free, X, -1), axis=1))
        >>> print(greedy_permutation(best, 2))
        [0 1]
    """
    index = jnp.arange(size, dtype=jnp.int32)
    nobody = jnp.full(size, size, jnp.int32)

    def unmatched(carry: tuple[Any, Any, Any]) -> Any:
        chosen, _, count = carry
        return wanted & jnp.any(chosen < 0) & (count < ROUNDS)

    def ask(carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        chosen, free, count = carry
        value, column = keys(free)
        asks = chosen < 0
        offer = jnp.full(size, -jnp.inf, value.dtype).at[column].max(jnp.where(asks, value, -jnp.inf))
        wins = asks & (value >= offer[column])
        first = nobody.at[column].min(jnp.where(wins, index, size))
        wins = wins & (first[column] == index)  # of equal offers the first row's
        chosen = jnp.where(wins, column.astype(jnp.int32), chosen)
        return chosen, free.at[jnp.where(wins, column, size)].set(False, mode="drop"), count + 1

    start = (jnp.full(size, -1, jnp.int32), jnp.ones(size, bool), jnp.int32(0))
    chosen, free, _ = lax.while_loop(unmatched, ask, start)
    left = chosen < 0
    order = jnp.argsort(~free, stable=True).astype(jnp.int32)  # the free columns first
    return jnp.where(left, order[jnp.cumsum(left) - 1], chosen)


def round_plan(problem: Any, X: Any, y: Potentials) -> Rounded:
    """The cheaper of the two roundings of X; y breaks ties of the permutation by reduced cost."""
    cost, a, b = judged(problem.cost), problem.a, problem.b
    n, m = cost.shape
    scaling = scale_down(cost, X, a, b)
    objective = rounded_cost(cost, X, scaling)
    u, v, r, c = scaling
    made = Marginals(
        u * cost.rows(lambda C, X: X @ v, X) + r * jnp.sum(c), v * weighted_columns(cost, X, u) + jnp.sum(r) * c
    )
    error = marginal_error(made, a, b)
    if n != m:
        return Rounded(scaling, jnp.full(n, -1, jnp.int32), jnp.bool_(False), objective, error)
    mass = a[0]
    uniform = jnp.all(a == mass) & jnp.all(b == b[0]) & (mass > 0)
    permutation = permutation_of(cost, X, y, jnp.where(mass > 0, mass, 1), uniform)
    paid = mass * jnp.sum(permuted_costs(cost, permutation))
    # Of two that cost the same up to rounding the permutation is the answer people want.
    integral = uniform & (paid <= objective + 8 * jnp.finfo(paid.dtype).eps * jnp.abs(objective))
    pick = lambda one, other: jnp.where(integral, one, other)
    exact = Marginals(jnp.sum(jnp.abs(mass - a)), jnp.sum(jnp.abs(mass - b)))
    return Rounded(
        scaling, pick(permutation, -1), integral, pick(paid, objective), jax.tree.map(pick, exact, error)
    )  # fmt: skip


def permutation_of(cost: Cost, X: Any, y: Potentials, mass: Any = 1.0, wanted: Any = True) -> Any:
    """The permutation of the largest `X / mass` (of order 1) and, between equal ones, small reduced costs; `(n,)`.

    Example:
        >>> y = Potentials(jnp.zeros(2), jnp.zeros(2))
        >>> print(permutation_of(DenseCost(jnp.eye(2)), jnp.full((2, 2), 0.5), y))
        [1 0]
    """
    span = jnp.max(jnp.abs(y.f)) + jnp.max(jnp.abs(y.g))
    price = 1 / jnp.where(span > 0, span, 1)

    def keys(free: Any) -> tuple[Any, Any]:
        def best(C: Any, X: Any, f: Any) -> tuple[Any, Any]:
            key = jnp.where(free, X / mass - price * (C - f[:, None] - y.g), -jnp.inf)
            return jnp.max(key, axis=1), jnp.argmax(key, axis=1)

        return cost.rows(best, X, y.f)

    return greedy_permutation(keys, cost.shape[0], wanted)


def permuted_costs(cost: Any, permutation: Any) -> Any:
    """`C[i, permutation[i]]`, `(n,)`."""
    one = lambda C, column: jnp.take_along_axis(C, column[:, None], axis=1)[:, 0]
    return cost.rows(one, permutation)


def rounded_plan(problem: Any, X: Any, rounded: Rounded) -> Any:
    """The feasible plan that `round_plan` chose, `(n, m)`, written over X: no second plan is stored."""
    n, m = X.shape
    size = min(n, judged(problem.cost).block_rows)
    u, v, r, c = rounded.scaling

    def block(number: Any, T: Any) -> Any:
        start = jnp.minimum(number * size, n - size)
        cut = lambda vector: lax.dynamic_slice_in_dim(vector, start, size)
        old = cut(T)
        made = apply_rounding(old, Rounding(cut(u), v, cut(r), c))
        hit = cut(rounded.permutation)[:, None] == jnp.arange(m, dtype=jnp.int32)
        made = jnp.where(rounded.integral, jnp.where(hit, cut(problem.a)[:, None], 0), made)
        # The last block is moved up to fit: its first rows were rounded before.
        fresh = start + jnp.arange(size) >= number * size
        return lax.dynamic_update_slice_in_dim(T, jnp.where(fresh[:, None], made, old), start, 0)

    return lax.fori_loop(0, -(-n // size), block, X)


def _shrink(mass: Any, sums: Any) -> Any:
    return jnp.where(sums > mass, mass / jnp.where(sums > 0, sums, 1), 1)
