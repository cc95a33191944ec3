"""What can be said of a nonlinear program before anything is compiled: traceable functions, shapes, bounds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdopt.errors import InvalidProblem
from pdopt.runtime.precision import as_array

UNTRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def argument(leaf: Any, dtype: Any) -> Any:
    """A leaf of `args` as an array: Python floats take x's type, everything else keeps its own.

    Example:
        >>> print(argument(2.0, jnp.float32).dtype, argument(np.arange(2), jnp.float32).dtype)
        float32 int32
    """
    if isinstance(leaf, jax.Array):
        return leaf
    if isinstance(leaf, float) and not isinstance(leaf, np.generic):
        return as_array("args", leaf, dtype)
    try:
        return jnp.asarray(leaf)
    except TypeError as error:
        raise InvalidProblem(f"args has a leaf of type {type(leaf).__name__}; expected arrays or numbers") from error


def spread_bound(name: str, bound: Any, absent: float, like: Any) -> Any:
    """A bound as a pytree of arrays like `like`, from None, a scalar, or a pytree that is a prefix of it.

    Example:
        >>> print(spread_bound("lower", 0.0, -jnp.inf, {"w": jnp.ones(2)}))
        {'w': Array([0., 0.], dtype=float32)}
    """
    bound = absent if bound is None else bound

    def fill(value: Any, part: Any) -> Any:
        def leaf(x: Any) -> Any:
            given = as_array(name, absent if value is None else value, x.dtype)
            try:
                return jnp.broadcast_to(given, x.shape)
            except ValueError as error:
                raise InvalidProblem(
                    f"{name} has shape {np.shape(given)}; expected {x.shape}, that of start"
                ) from error

        return jax.tree.map(leaf, part)

    try:
        return jax.tree.map(fill, bound, like, is_leaf=lambda node: node is None)
    except InvalidProblem:
        raise
    except ValueError as error:
        raise InvalidProblem(
            f"{name} has structure {jax.tree.structure(bound)}; expected a prefix of that of start, "
            f"{jax.tree.structure(like)}"
        ) from error


def check_functions(program: Any) -> None:
    """Trace each function once, without compiling: raise `InvalidProblem` for what cannot be one of a program."""
    for name in ("f", "equality", "inequality"):
        function = getattr(program, name)
        if function is None and name != "f":
            continue
        if not callable(function):
            raise InvalidProblem(f"{name} has type {type(function).__name__}; expected a function of x")
        found = _shape(name, function, program)
        leaves = jax.tree.leaves(found)
        if name == "f":
            if len(leaves) != 1 or int(np.prod(leaves[0].shape)) != 1:
                raise InvalidProblem(f"f returns {_described(found)}; expected a scalar")
        elif not leaves:
            raise InvalidProblem(f"{name} returns no arrays; expected a pytree of arrays, or {name}=None")
        for leaf in leaves:
            if not (jnp.issubdtype(leaf.dtype, jnp.floating) or jnp.issubdtype(leaf.dtype, jnp.integer)):
                raise InvalidProblem(f"{name} returns {leaf.dtype}; expected real numbers")


def _shape(name: str, function: Any, program: Any) -> Any:
    try:
        return jax.eval_shape(function, program.start, *program.args)
    except UNTRACEABLE as error:
        first = str(error).splitlines()[0]
        raise InvalidProblem(
            f"{name} cannot be traced by JAX ({type(error).__name__}: {first}); write it with jax.numpy, and branches "
            "on values with jax.numpy.where or jax.lax.cond"
        ) from error
    except TypeError as error:
        raise InvalidProblem(
            f"{name} cannot be called with x and {len(program.args)} further arguments (args), or returns something "
            f"other than arrays: {error}"
        ) from error


def _described(tree: Any) -> str:
    return ", ".join(f"an array of shape {leaf.shape}" for leaf in jax.tree.leaves(tree)) or "nothing"
