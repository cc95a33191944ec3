"""float64 without touching global configuration (temporary minimal version; the runtime branch replaces it)."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np



def precision_scope(tree: Any) -> Any:
    """Context in which the tree's own precision holds: float64 on when any leaf is float64 and JAX's default is not."""
    wide = any(getattr(leaf, "dtype", None) == np.float64 for leaf in jax.tree.leaves(tree))
    return jax.enable_x64(True) if wide and not jax.config.jax_enable_x64 else contextlib.nullcontext()


def resolve_dtype(values: dict[str, Any], dtype: Any = None, *, allow_low_precision: bool = False) -> Any:
    """The one floating dtype of a problem's data."""
    if dtype is not None:
        return np.dtype(dtype)
    kinds = [np.dtype(v.dtype) for v in values.values() if hasattr(v, "dtype")]
    floats = [k for k in kinds if jnp.issubdtype(k, jnp.floating)]
    return max(floats, key=lambda k: k.itemsize) if floats else np.dtype(jnp.result_type(float))


def as_array(name: str, value: Any, dtype: Any) -> Any:
    """`value` as an array of `dtype`, under the scope that dtype needs."""
    if isinstance(value, jax.Array) and value.dtype == dtype:
        return value
    with jax.enable_x64(True) if np.dtype(dtype) == np.float64 else contextlib.nullcontext():
        return jnp.asarray(value, dtype)
