"""The leaves of a checkpoint: how each is described, stored, and read back as what it was.

A leaf is an array (JAX or NumPy, any numeric type or PRNG keys) or a Python number. What orbax cannot hold is handled
here: PRNG keys go as their key data, Python numbers as 64-bit arrays, and empty arrays only as their description.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdopt.errors import InvalidOption
from pdopt.runtime.fingerprint import raw_bits


def named(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree with their paths as text, such as `.pair.x`, in the order of the tree."""
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def describe(name: str, leaf: Any) -> dict[str, Any]:
    """Name, shape and type of a leaf; the type of a Python number is its class, of a PRNG key its algorithm's."""
    if isinstance(leaf, bool | int | float) and not isinstance(leaf, np.generic):
        return {"name": name, "shape": [], "dtype": f"python {type(leaf).__name__}"}
    if not hasattr(leaf, "dtype") or leaf.dtype == object:
        raise InvalidOption(f"{name or 'the state'} has type {type(leaf).__name__}; a checkpoint holds arrays")
    return {"name": name, "shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def storable(leaf: Any) -> jax.Array:
    """The array that is written for a leaf; call it inside `jax.enable_x64(True)`. NumPy data are copied."""
    bits = raw_bits(leaf)
    return bits if isinstance(bits, jax.Array) else jnp.array(bits)


def target(leaf: Any) -> jax.ShapeDtypeStruct:
    """Where and as what a leaf is read. `jnp.asarray` of Python numbers gives the 64-bit types they were saved in."""
    if not hasattr(leaf, "dtype"):
        with jax.enable_x64(True):
            leaf = jnp.asarray(leaf)
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shape, dtype = leaf.shape, leaf.dtype
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(shape, dtype))
        shape, dtype = data.shape, data.dtype
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def revive(value: Any, leaf: Any) -> Any:
    """The array that was read, or the empty one that was not written; PRNG keys wrapped again.

    A leaf that was not committed to a device comes back uncommitted: committed to the first device, it could not meet
    arrays of a mesh in one computation.
    """
    if value is None:
        return jnp.zeros(leaf.shape, leaf.dtype)
    free = getattr(leaf, "sharding", None) is None or not getattr(leaf, "committed", True)
    if free:
        value = jnp.array(np.asarray(value))
    if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(value, impl=jax.random.key_impl(jnp.empty((), leaf.dtype)))
    return value


def like(value: jax.Array, leaf: Any) -> Any:
    """The value as the kind of thing the template's leaf is: JAX array, NumPy array or Python number."""
    if isinstance(leaf, bool | int | float) and not isinstance(leaf, np.generic):
        return type(leaf)(value)
    return np.asarray(value) if isinstance(leaf, np.ndarray | np.generic) else value
