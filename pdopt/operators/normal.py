"""The matrix of a Newton step on rows, `H = Q + A' diag(w) A + diag(d)`, put together and factored for any w, d >= 0.

Which entries H has is known from the patterns of Q and A alone, so that is looked at once, on the host: an order of
the variables that makes H a narrow band (Cuthill, McKee 1969, reversed), and where every product `a_ij a_ik` of two
entries of a row goes. Putting H together is then two scatters. Without a plan H is one dense block.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jax.core import Tracer
from scipy.sparse.csgraph import reverse_cuthill_mckee

from pdopt.operators.band import BlockFactor, factorise, solve
from pdopt.operators.convert import dense
from pdopt.operators.diagonal import Diagonal
from pdopt.operators.sparse import Sparse
from pdopt.types import record

NARROWEST = 16  # of a block: below it a step of the scan costs its overhead alone
PAIRS = 3e7  # products of entries of a row: more are not listed
LARGEST = 512e6  # bytes of a factor


@record(static=("width", "count"))
class BandPlan:
    """Where the entries of H go, in blocks along its band.

    Attributes:
        place: `(n,)`: where a variable is among the `count * width` of the band's order.
        curved: for each entry of Q on or below the diagonal, in the band's order, its index in Q's entries, and where
            it goes in the flat blocks.
        rows, left, right, target: for each product of two entries of a row: the row, the two entries' indices, and
            where it goes.
        width, count: of the blocks.
    """

    place: Any
    curved: tuple[Any, Any]
    rows: Any
    left: Any
    right: Any
    target: Any
    width: int
    count: int

    @staticmethod
    def make(Q: Any, A: Any) -> "BandPlan | None":
        """From operators with concrete patterns; None where they have none, or where H is too full.

        Example:
            >>> from pdopt.operators.convert import as_operator
            >>> A = as_operator(sp.eye(100, 100, 0) - sp.eye(100, 100, 1), jnp.float32)
            >>> plan = BandPlan.make(Diagonal.make(np.ones(100), jnp.float32), A)
            >>> plan.width, plan.count
            (16, 7)
        """
        if not isinstance(Q, Sparse | Diagonal) or not isinstance(A, Sparse):
            return None
        curved, rows = _pattern(Q), _pattern(A)
        if curved is None or rows is None:
            return None
        (q_row, q_column), (a_row, a_column) = curved, rows
        n = Q.shape[1]
        length = np.bincount(a_row, minlength=A.shape[0])
        if np.sum(length.astype(float) ** 2) > PAIRS:
            return None
        ones = lambda row, column, rows: sp.csr_matrix((np.ones(row.size), (row, column)), shape=(rows, n))
        whole = ones(a_row, a_column, A.shape[0])
        whole = sp.csr_matrix(whole.T @ whole + ones(q_row, q_column, n) + sp.eye(n))
        order = reverse_cuthill_mckee(whole, symmetric_mode=True)
        place = np.empty(n, np.int64)
        place[order] = np.arange(n)
        entries = whole.tocoo()
        band = int(np.max(np.abs(place[entries.row] - place[entries.col]), initial=0))
        width = min(max(band, NARROWEST), n)
        width = n if 2 * width > n else width
        count = -(-n // width)
        if 16 * count * width * width > LARGEST:
            return None
        left, right = _pairs(length)
        target = _flat(place[a_column[left]], place[a_column[right]], width, count)
        kept = target >= 0
        left, right, target = left[kept], right[kept], target[kept]
        where = _flat(place[q_row], place[q_column], width, count)
        small = lambda index: index.astype(np.int32)
        curved = (small(np.flatnonzero(where >= 0)), small(where[where >= 0]))
        return BandPlan(
            small(place), curved, small(a_row[left]), small(left), small(right), small(target), width, count
        )

    @property
    def work(self) -> float:
        """Floating-point operations of one factor: a third of `width^3` for a dense H, seven thirds a block else."""
        return (1 if self.count == 1 else 7 * self.count) * float(self.width) ** 3 / 3


@record
class Normal:
    """`H = Q + A' diag(w) A + diag(d)` of given Q and A, as `factor(w, d)`; `plan` None for a dense H."""

    Q: Any
    A: Any
    plan: BandPlan | None

    def factor(self, weights: Any, diagonal: Any) -> BlockFactor:
        """The factor of H; NaN where it is not positive definite.

        Args:
            weights: w, `(m,)`. diagonal: d, `(n,)`.
        """
        plan = self.plan
        if plan is None:
            A, Q = dense(self.A), dense(self.Q)
            return factorise(
                (Q + A.T @ (weights[:, None] * A) + jnp.diag(diagonal))[None], jnp.zeros((1, *Q.shape), Q.dtype)
            )
        entries, size = self.A.entries, plan.count * plan.width
        blocks = jnp.zeros(2 * size * plan.width, entries.dtype)
        blocks = blocks.at[plan.curved[1]].add(self.Q.entries[plan.curved[0]])
        blocks = blocks.at[plan.target].add(weights[plan.rows] * entries[plan.left] * entries[plan.right])
        # Places of the last block that no variable has are kept apart from the others by a one.
        along = jnp.ones(size, entries.dtype).at[plan.place].set(diagonal)
        own, below = blocks.reshape(2, plan.count, plan.width, plan.width)
        return factorise(own + jax.vmap(jnp.diag)(along.reshape(plan.count, plan.width)), below)

    def solve(self, factor: BlockFactor, v: Any) -> Any:
        """`H^-1 v`, `(n,)`."""
        if self.plan is None:
            return solve(factor, v)
        padded = jnp.zeros(self.plan.count * self.plan.width, v.dtype).at[self.plan.place].set(v)
        return solve(factor, padded)[self.plan.place]


def _pattern(operator: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Rows and columns of the entries, in their order; None where they are traced."""
    if isinstance(operator, Diagonal):
        each = np.arange(operator.shape[0])
        return each, each
    if isinstance(operator.row, Tracer):
        return None
    return np.asarray(operator.row, np.int64), np.asarray(operator.column, np.int64)


def _pairs(length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every ordered pair of entries of the same row, entries being stored row by row."""
    start = np.concatenate([[0], np.cumsum(length)])[:-1]
    squares = length.astype(np.int64) ** 2
    row = np.repeat(np.arange(length.size), squares)
    within = np.arange(row.size) - np.repeat(np.cumsum(squares) - squares, squares)
    return start[row] + within // length[row], start[row] + within % length[row]


def _flat(row: np.ndarray, column: np.ndarray, width: int, count: int) -> np.ndarray:
    """Where an entry goes in `(2, N, b, b)`: diagonal blocks, then blocks below them; -1 above the diagonal."""
    block, under = column // width, row // width > column // width
    flat = ((under * count + block) * width + row % width) * width + column % width
    return np.where(row >= column, flat, -1)
