"""A linear program given a curvature, so that its solution can be differentiated: the proximal rule."""

from typing import Any

import jax.numpy as jnp

from pdopt.errors import InvalidOption, require_range, require_shape
from pdopt.operators.diagonal import Diagonal
from pdopt.problems.checks import concrete
from pdopt.problems.linear import LinearProgram
from pdopt.problems.quadratic import QuadraticProgram
from pdopt.runtime.precision import as_array, precision_scope


def proximal_program(lp: LinearProgram, weight: Any, reference: Any = None) -> QuadraticProgram:
    """`lp` with `weight |x - reference|^2 / 2` added: a quadratic program whose solution can be differentiated.

    For a small enough weight its solution solves the linear program too, and is the one nearest to the reference
    (Mangasarian 1979); its derivative in c is then that of the vertex, 0. A larger weight smooths: x moves with c over
    a range of about `|c| / weight`. A maximisation subtracts the term.

    Args:
        weight: > 0; in units of the objective per unit of x squared. May be traced.
        reference: `(n,)`, default 0.

    Raises:
        InvalidOption: a weight that is not positive, or not a linear program.

    Example:
        >>> import jax, pdopt
        >>> lp = pdopt.LinearProgram([1.0, 2.0], [[1.0, 1.0]], [1.0], [1.0], [0.0, 0.0], dtype=jnp.float32)
        >>> smooth = lambda c: pdopt.solve(pdopt.proximal_program(lp.replace(c=c), 4.0), tolerance=1e-5).x
        >>> print((8 * smooth(lp.c)).round(2), (8 * jax.jacobian(smooth)(lp.c)).round(2)[0])
        [5. 3.] [-1.  1.]
    """
    if not isinstance(lp, LinearProgram):
        raise InvalidOption(f"lp has type {type(lp).__name__}; expected a LinearProgram")
    if concrete(weight) is not None:
        require_range("weight", weight, 0.0, open_low=True)
    n, dtype = lp.shape[1], lp.c.dtype
    with precision_scope(lp):
        weight = as_array("weight", weight, dtype)
        reference = as_array("reference", jnp.zeros(n, dtype) if reference is None else reference, dtype)
        require_shape("reference", reference.shape, (n,), f"A has {n} columns")
        pull = lp.sense * weight
        c, offset = lp.c - pull * reference, lp.offset + pull * reference @ reference / 2
        Q = Diagonal(jnp.broadcast_to(pull, (n,)))
        rows = (lp.A, lp.row_lower, lp.row_upper, lp.lower, lp.upper)
        return QuadraticProgram(Q, c, *rows, offset, lp.maximise, check=False, allow_low_precision=True)
