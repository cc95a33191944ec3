"""Derivatives of a solution by its optimality conditions, and a guard where no rule exists.

The optimal value needs no rule of its own: with the pair held, `value + (L - stop(L))` has the derivative of the
Lagrangian, which is that of the value (envelope theorem); it works forward, backward and batched. The pair itself has
a derivative only where a rule says so. Where none does, `guard` makes sure that nobody reads a silent zero: a gradient
taken back through the pair raises, a tangent pushed forward through it is NaN.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from pdopt.errors import UnsupportedProblem

GRADIENTS = ("implicit", "none")

_refused = Primitive("pdopt_no_derivative")
_refused.def_abstract_eval(lambda tangent: tangent)
_refused.def_impl(lambda tangent: jnp.full_like(tangent, jnp.nan))
mlir.register_lowering(
    _refused, mlir.lower_fun(lambda tangent: jnp.full_like(tangent, jnp.nan), multiple_results=False)
)
batching.primitive_batchers[_refused] = lambda args, axes: (_refused.bind(*args), axes[0])


def _no_transpose(cotangent: Any, tangent: Any) -> Any:
    raise UnsupportedProblem(
        "the pair of this solution has no derivative rule yet (a linear program's solution is piecewise constant in "
        "its data); differentiate solution.objective, or solve with gradient='none'"
    )


ad.primitive_transposes[_refused] = _no_transpose
ad.primitive_jvps[_refused] = lambda primals, tangents: (_refused.bind(*primals), _refused.bind(*tangents))


@jax.custom_jvp
def guard(result: Any, data: Any) -> Any:
    """`result` unchanged, but its derivative with respect to the floating leaves of `data` is refused.

    Example:
        >>> value, slope = jax.jvp(lambda c: guard(jax.lax.stop_gradient(c), c), (1.0,), (1.0,))
        >>> print(slope)
        nan
    """
    return result


@guard.defjvp
def _guard_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    result, data = primals
    moved = [t for t in jax.tree.leaves(tangents[1]) if jnp.issubdtype(t.dtype, jnp.inexact)]

    def refused(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return np.zeros(leaf.shape, jax.dtypes.float0)  # what JAX calls the tangent of an integer
        total = sum((jnp.sum(t).astype(leaf.dtype) for t in moved), jnp.zeros((), leaf.dtype))
        return _refused.bind(jnp.broadcast_to(total, leaf.shape))

    return guard(result, data), jax.tree.map(refused, result)


def envelope(value: Any, lagrangian: Any) -> Any:
    """`value`, with the derivative of `lagrangian`: what the envelope theorem says of an optimal value."""
    return jax.lax.stop_gradient(value) + (lagrangian - jax.lax.stop_gradient(lagrangian))
