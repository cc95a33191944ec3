"""One floating type per problem, and float64 without touching JAX's configuration.

A problem's type is decided once, in its constructor (`resolve_dtype`, `as_array`); from then on the type of its leaves
is the truth. With JAX's default 32-bit mode a float64 leaf is only safe inside `jax.enable_x64(True)`: outside of it
`sum`, `maximum`, `where` and others fall back to float32, most of them silently. Hence the second half of the rule:
every public entry point opens `precision_scope(problem)` around the whole call.

| input                                   | type of the problem (`dtype=None`)                                      |
|-----------------------------------------|-------------------------------------------------------------------------|
| integers, bools, lists, Python numbers  | the default float (float32, or float64 when x64 is on); they widen none |
| NumPy float64, x64 off                  | float32, with one warning that names the cure                           |
| a JAX float64 array                     | float64                                                                 |
| mixed                                   | the widest                                                              |
| float16, bfloat16, float8               | refused unless `allow_low_precision`                                    |
"""

import contextlib
import math
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdopt.errors import InvalidOption, InvalidProblem

_WIDE = ("float64", "complex128")


def precision_scope(tree: Any) -> AbstractContextManager[Any]:
    """The context in which `tree` may be computed with: `jax.enable_x64(True)` if a leaf is float64 and x64 is off.

    Otherwise a context that does nothing. The scope is local to the thread; a traced function inside it is compiled
    anew. Results leave it as float64 arrays; `np.asarray` of them is always safe, arithmetic belongs inside a scope.

    Args:
        tree: a pytree of arrays, tracers or `ShapeDtypeStruct`. Python numbers and NumPy scalars (`np.float64(0.1)`
            among the settings of a float32 problem) do not count.

    Example:
        >>> with jax.enable_x64(True):
        ...     x = jnp.ones(3, jnp.float64)
        >>> with precision_scope(x):
        ...     print(jnp.sum(x).dtype)
        float64
    """
    # str: a NumPy dtype equals None, its own default type.
    wide = any(
        str(getattr(leaf, "dtype", "")) in _WIDE for leaf in jax.tree.leaves(tree) if not isinstance(leaf, np.generic)
    )
    return jax.enable_x64(True) if wide and not _x64() else contextlib.nullcontext()


def resolve_dtype(
    values: Iterable[tuple[str, Any]],
    dtype: Any = None,
    *,
    allow_low_precision: bool = False,
    stacklevel: int = 3,
) -> np.dtype:
    """Decide the one floating type of a problem from its named data, by the table at the head of this file.

    Lists, Python numbers and NumPy scalars are weak: they take the type of the others. Pytrees (operators, records)
    count leaf by leaf; None is skipped. Only types are looked at, so tracers are welcome.

    Args:
        values: pairs (name, array-like), names as the user knows them.
        dtype: the type asked for, or None to follow the data.
        allow_low_precision: let float16, bfloat16 and float8 through.
        stacklevel: frames between the warning and the user's line, as in `warnings.warn`.

    Returns:
        The floating type, as a NumPy dtype.

    Raises:
        InvalidProblem: data in low precision (unless allowed), complex, or not numbers.
        InvalidOption: `dtype` is not a floating type, or is a low-precision one that was not allowed.

    Example:
        >>> resolve_dtype([("c", np.ones(3, np.float32)), ("b", [1, 2])])
        dtype('float32')
        >>> resolve_dtype([("c", np.ones(3))], dtype=jnp.float64)
        dtype('float64')
    """
    asked = None if dtype is None else _asked(dtype, allow_low_precision)
    found: list[np.dtype] = []
    narrowed: list[str] = []
    for name, value in values:
        for leaf in jax.tree.leaves(value):
            kind = _leaf_dtype(name, leaf)
            if kind is None:
                continue
            if asked is None and _is_low(kind) and not allow_low_precision:
                raise InvalidProblem(
                    f"{name} is {kind.name}; expected float32 or float64 (pass dtype=jnp.float32 to convert, "
                    "or allow_low_precision=True to keep it)"
                )
            if kind == np.float64 and not _on_device(leaf) and not _x64():
                narrowed.append(name)
                kind = np.dtype(np.float32)
            found.append(kind)
    if asked is not None:
        return asked
    result = _widest(found)
    if narrowed and result != np.float64:
        warnings.warn(
            f"{', '.join(dict.fromkeys(narrowed))}: NumPy float64 data converted to {result.name} because JAX's "
            "64-bit mode is off; pass dtype=jnp.float64 to keep float64, or dtype=jnp.float32 to silence this",
            UserWarning,
            stacklevel=stacklevel,
        )
    return result


def as_array(name: str, value: Any, dtype: Any) -> jax.Array:
    """`value` as a JAX array of exactly `dtype`, whatever JAX's 64-bit mode is.

    Arrays and tracers that already have the type are returned as they are (weakly typed ones lose the weakness, which
    would break a loop's carry). Host data are copied, so that later changes in place do not reach the problem.
    Differentiable with respect to traced values.

    Args:
        name: what the user calls it, for messages.
        value: array, tracer, scalar or (nested) list of these.
        dtype: the type to have, from `resolve_dtype`.

    Raises:
        InvalidProblem: not numbers, ragged, complex, or finite values that the type cannot hold (1e300 in float32).

    Example:
        >>> as_array("c", [1, 2], jnp.float64).dtype
        dtype('float64')
        >>> as_array("c", "abc", jnp.float32)
        Traceback (most recent call last):
        ...
        pdopt.errors.InvalidProblem: c has type str; expected numbers
    """
    dtype = np.dtype(dtype)
    for leaf in jax.tree.leaves(value):
        _leaf_dtype(name, leaf)
    if isinstance(value, jax.Array):
        if value.dtype == dtype and not getattr(value.aval, "weak_type", False):
            return value
        with _scope(dtype, value.dtype):
            return jnp.asarray(value, dtype)
    if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(value)):
        # A list that holds tracers: NumPy cannot take it, and each part must be converted on its own, because a stack
        # of float64 parts outside the scope would be cut.
        parts = [as_array(name, part, dtype) for part in value]
        with _scope(dtype):
            try:
                return jnp.stack(parts)
            except ValueError as error:
                raise InvalidProblem(f"{name} is not a rectangular array: {error}") from error
    return _from_host(name, value, dtype)


def default_float() -> np.dtype:
    """What JAX makes of a Python float here and now: float32, or float64 when x64 is on."""
    return np.dtype(np.float64 if _x64() else np.float32)


def _from_host(name: str, value: Any, dtype: np.dtype) -> jax.Array:
    try:
        host = np.asarray(value)
    except ValueError as error:
        raise InvalidProblem(f"{name} is not a rectangular array: {error}") from error
    if host.dtype == object:
        raise InvalidProblem(f"{name} has type {type(value).__name__}; expected a dense array of numbers")
    with np.errstate(over="ignore"):  # an overflow is reported below, with the name and the number
        cut = host.astype(dtype)
    if host.dtype.kind == "f" and host.dtype.itemsize > dtype.itemsize:
        lost = np.isinf(cut) & np.isfinite(host)
        if lost.any():
            largest = float(host[lost].ravel()[np.argmax(np.abs(host[lost]))])
            cure = "; pass dtype=jnp.float64" if math.isfinite(largest) and dtype != np.float64 else ""
            raise InvalidProblem(f"{name} has the value {largest:g}, which {dtype.name} cannot hold{cure}")
    with _scope(dtype):
        return jnp.array(cut, dtype)  # jnp.asarray may share the memory of a NumPy array on CPU


def _scope(*kinds: np.dtype) -> AbstractContextManager[Any]:
    wide = any(np.dtype(kind).itemsize == 8 for kind in kinds)
    return jax.enable_x64(True) if wide and not _x64() else contextlib.nullcontext()


def _x64() -> bool:
    return bool(jax.config.read("jax_enable_x64"))


def _on_device(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)


def _is_low(kind: np.dtype) -> bool:
    return jnp.issubdtype(kind, jnp.floating) and kind.itemsize < 4


def _leaf_dtype(name: str, leaf: Any) -> np.dtype | None:
    """The floating type a leaf insists on, None if it has none (weak or integer); refuses what is not a number."""
    kind = getattr(leaf, "dtype", None)
    if kind is None:
        if isinstance(leaf, bool | int | float):
            return None
        raise InvalidProblem(f"{name} has type {type(leaf).__name__}; expected numbers")
    if not (jnp.issubdtype(kind, np.number) or jnp.issubdtype(kind, np.bool_)):
        raise InvalidProblem(f"{name} has dtype {kind}; expected numbers")
    if jnp.issubdtype(kind, jnp.complexfloating):
        raise InvalidProblem(f"{name} is complex ({kind}); expected real numbers")
    weak = isinstance(leaf, np.generic) or (isinstance(leaf, jax.Array) and getattr(leaf.aval, "weak_type", False))
    if weak or not jnp.issubdtype(kind, jnp.floating):
        return None
    return np.dtype(np.float64) if kind == np.longdouble else np.dtype(kind)


def _widest(found: list[np.dtype]) -> np.dtype:
    if not found:
        return default_float()
    result = found[0]
    for kind in found[1:]:
        result = np.dtype(jnp.promote_types(result, kind))
    return result


def _asked(dtype: Any, allow_low_precision: bool) -> np.dtype:
    try:
        asked = np.dtype(dtype)
    except TypeError as error:
        raise InvalidOption(f"dtype is {dtype!r}; expected a floating type such as jnp.float64") from error
    if not jnp.issubdtype(asked, jnp.floating) or asked.itemsize > 8:
        raise InvalidOption(f"dtype is {asked.name}; expected jnp.float32 or jnp.float64")
    if _is_low(asked) and not allow_low_precision:
        raise InvalidOption(f"dtype is {asked.name}; low precision needs allow_low_precision=True")
    return asked
