"""Diagonal scaling: `A_s = D^-1 A E^-1` by Ruiz passes, then one Pock-Chambolle pass.

Ruiz (2001): every pass divides rows and columns by the square root of their largest entry, so that all rows and
columns tend to linf norm 1. Pock, Chambolle (2011, alpha = 1): divide by the square root of the row and column sums,
which bounds `|A_s|_2 <= 1`.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax

from pdopt.types import record


@record(static=("ruiz", "pock_chambolle", "bound_objective"))
class Scaling:
    """What to scale by before solving.

    Attributes:
        ruiz: number of Ruiz passes, >= 0 (10: cuPDLPx, MPAX, HiPDLP).
        pock_chambolle: whether one Pock-Chambolle pass follows.
        bound_objective: whether right-hand sides and objective are divided by `1 + norm` (cuPDLPx).
    """

    ruiz: int = 10
    pock_chambolle: bool = True
    bound_objective: bool = True


def equilibrate(operator: Any, ruiz: int, pock_chambolle: bool, curvature: Any = None) -> tuple[Any, Any]:
    """Row factors D `(m,)` and column factors E `(n,)`; zero rows and columns keep 1.

    A `curvature` Q, `(n, n)`, is scaled by `E^-1` from both sides, so the columns of `[A; Q]` count: the larger of both
    in a Ruiz pass (MPAX), their sum in that of Pock and Chambolle.

    Example:
        >>> from pdopt.operators.dense import Dense
        >>> D, E = equilibrate(Dense(jnp.array([[4.0]])), 10, False)
        >>> print(D * E)
        [4.]
    """
    m, n = operator.shape
    start = (jnp.ones(m, operator.dtype), jnp.ones(n, operator.dtype))

    def shrink(factors: tuple[Any, Any], kind: str) -> tuple[Any, Any]:
        row, column = factors
        scaled = operator.scale(1 / row, 1 / column)
        across = scaled.column_norms(kind)
        if curvature is not None:
            curved = curvature.scale(1 / column, 1 / column).column_norms(kind)
            across = jnp.maximum(across, curved) if kind == "linf" else across + curved
        return row * _root(scaled.row_norms(kind)), column * _root(across)

    factors = lax.fori_loop(0, ruiz, lambda _, f: shrink(f, "linf"), start) if ruiz else start
    return shrink(factors, "l1") if pock_chambolle else factors


def _root(norm: Any) -> Any:
    return jnp.where(norm > 0, jnp.sqrt(norm), 1)
