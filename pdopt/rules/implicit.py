"""Derivatives of a solution by its optimality conditions, and a guard where no rule exists.

The optimal value has the derivative of the Lagrangian with the pair held (envelope theorem): forward, backward and
batched. The pair itself has a derivative only where a rule says so. Where none does, `guard` makes sure that nobody
reads a silent zero: a gradient taken back through the pair raises, a tangent pushed forward through it is NaN.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from pdopt.errors import UnsupportedProblem

GRADIENTS = ("implicit", "unrolled", "none")

_refused = Primitive("pdopt_no_derivative")
_refused.def_abstract_eval(lambda tangent: tangent)
_refused.def_impl(lambda tangent: jnp.full_like(tangent, jnp.nan))
mlir.register_lowering(
    _refused, mlir.lower_fun(lambda tangent: jnp.full_like(tangent, jnp.nan), multiple_results=False)
)
batching.primitive_batchers[_refused] = lambda args, axes: (_refused.bind(*args), axes[0])


def _no_transpose(cotangent: Any, tangent: Any) -> Any:
    raise UnsupportedProblem(
        "the pair of this solution has no derivative rule (a linear program's solution is piecewise constant in its "
        "objective); differentiate solution.objective, give the program a curvature (pdopt.proximal_program), or solve "
        "with gradient='unrolled' or 'none'"
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
    moved = [t for t in jax.tree.leaves(tangents[1]) if jnp.issubdtype(_dtype(t), jnp.inexact)]

    def refused(leaf: Any) -> Any:
        kind = _dtype(leaf)
        if not jnp.issubdtype(kind, jnp.inexact):
            return np.zeros(jnp.shape(leaf), jax.dtypes.float0)  # what JAX calls the tangent of an integer
        total = sum((jnp.sum(t).astype(kind) for t in moved), jnp.zeros((), kind))
        return _refused.bind(jnp.broadcast_to(total, jnp.shape(leaf)))

    return guard(result, data), jax.tree.map(refused, result)


def _dtype(leaf: Any) -> Any:
    """Of an array, a tracer, a float0 tangent or a Python number."""
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def envelope(value: Any, lagrangian: Callable[[Any], Any], data: Any) -> Any:
    """`value`, with the derivative of `lagrangian` at `data`: what the envelope theorem says of an optimal value.

    The slopes are computed here and now, in the precision scope of the solve, so that pulling a gradient back is one
    product a leaf and works wherever the caller stands. A second derivative would need that of the pair and is refused.

    Example:
        >>> print(jax.grad(lambda c: envelope(jnp.float32(7), lambda d: jnp.sum(d**2), c))(jnp.arange(3.0)))
        [0. 2. 4.]
    """
    leaves, slopes = _slopes(lagrangian, jax.lax.stop_gradient(data), data)
    return _sloped(jax.lax.stop_gradient(value), leaves, guard(slopes, leaves))


def smooth_envelope(value: Any, lagrangian: Callable[[Any], Any], data: Any) -> Any:
    """`envelope` where the pair inside `lagrangian` has a derivative of its own: second derivatives follow from it.

    Example:
        >>> value = lambda c: smooth_envelope(jnp.float32(7), lambda d: d**3, c)
        >>> print(jax.grad(value)(2.0), jax.grad(jax.grad(value))(2.0))
        12.0 12.0
    """
    leaves, slopes = _slopes(lagrangian, data, data)
    return _sloped(jax.lax.stop_gradient(value), leaves, slopes)


def _slopes(lagrangian: Callable[[Any], Any], at: Any, data: Any) -> tuple[list[Any], list[Any]]:
    """The floating leaves of the data and the slopes of the Lagrangian there."""
    slopes = jax.grad(lagrangian, allow_int=True)(at)
    pairs = [
        (leaf, slope)
        for leaf, slope in zip(jax.tree.leaves(data), jax.tree.leaves(slopes))
        if jnp.issubdtype(_dtype(leaf), jnp.floating)
    ]
    return [leaf for leaf, _ in pairs], [slope for _, slope in pairs]


@jax.custom_jvp
def _sloped(value: Any, leaves: Any, slopes: Any) -> Any:
    """`value`; its derivative with respect to `leaves` is `slopes`."""
    return value


@_sloped.defjvp
def _sloped_jvp(primals: tuple[Any, Any, Any], tangents: tuple[Any, Any, Any]) -> tuple[Any, Any]:
    value, leaves, slopes = primals
    parts = [jnp.sum(slope * moved) for slope, moved in zip(slopes, tangents[1])]
    return _sloped(value, leaves, slopes), sum(parts, jnp.zeros_like(value))
