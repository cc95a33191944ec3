"""What transport solvers pass around: potentials, marginals, and plans that are applied but not stored.

`Potentials` are the multipliers of the two marginal constraints, `(f, g) = d value / d(a, b)`; `Marginals` are what a
plan puts on both sides, `(T 1, T'1)`. A plan is an operator: `matvec(v) = T v`, `rmatvec(u) = T'u`, `todense()`; one
that is stored whole is an `operators.dense.Dense`.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp


class Potentials(NamedTuple):
    """Multipliers of the row and column marginals, `f (n,)` and `g (m,)`, in units of cost."""

    f: Any
    g: Any


class Marginals(NamedTuple):
    """What a plan puts on each source and on each target: `row (n,)`, `column (m,)`, in units of mass."""

    row: Any
    column: Any


def marginal_error(marginals: Marginals, a: Any, b: Any) -> Marginals:
    """`(|T1 - a|_1, |T'1 - b|_1)`.

    Example:
        >>> error = marginal_error(Marginals(jnp.array([1.0]), jnp.array([0.5, 0.5])), jnp.array([1.0]), jnp.ones(2))
        >>> print(error.row, error.column)
        0.0 1.0
    """
    return Marginals(jnp.sum(jnp.abs(marginals.row - a)), jnp.sum(jnp.abs(marginals.column - b)))
