"""Checksums of arrays: a 64-bit one that lives where the shards live, and a sha256 that identifies a problem.

**Fingerprint.** Let w_i be the 32-bit words of an array's bits in row-major order (shorter types widened, 64-bit types
as two words) and p_i = i mod 2^32. For each of two lanes with its own constants a, b and odd c

    F = sum_i h(w_i, p_i) mod 2^32,    h(w, p) = mix((w xor a p) (2 p + 1) + b p)
    mix(t) = s xor (s >> 13)  with  s = c (t xor (t >> 15))

Each h(., p) is a bijection of the words, so a change within a single word is always seen; the sum makes the value
independent of order, hence of how the array is laid over devices: a local sum and one all-reduce, no gather. It is a
checksum against accidents, not against an adversary.

**Digest.** sha256 over the structure, shapes, types and raw bytes of all leaves, on the host.
"""

import hashlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

# (a, b, c) of each lane: the golden ratio, and multipliers of the public murmur3 and xxhash32 finalisers, all odd.
_LANES = ((0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35), (0x27D4EB2F, 0x165667B1, 0x9E3779B1))


def fingerprint(x: Any) -> str:
    """The fingerprint of one array as 16 hexadecimal digits: equal for equal bits on every mesh, -0.0 apart from 0.0.

    Args:
        x: array of any numeric, bool or PRNG key type, sharded in any way; not a tracer.

    Example:
        >>> fingerprint(jnp.float32(1.5)) == fingerprint(np.float32(1.5)) != fingerprint(jnp.float32(-1.5))
        True
    """
    return fingerprints([x])[0]


def fingerprints(leaves: list[Any]) -> list[str]:
    """`fingerprint` of each array, with one wait for all of them."""
    with jax.enable_x64(True):  # 64-bit words must not be cut on the way in
        lanes = [_settled(_lanes(raw_bits(leaf))) for leaf in leaves]
    return [f"{int(first):08x}{int(second):08x}" for first, second in jax.device_get(lanes)]


def _settled(lanes: Any) -> Any:
    """On several CPU devices, wait: many small programs with all-reduces in flight can starve each other of threads."""
    devices = lanes[0].sharding.device_set
    several = len(devices) > 1 and next(iter(devices)).platform == "cpu"
    return jax.block_until_ready(lanes) if several else lanes


def raw_bits(x: Any) -> Any:
    """An array whose bits are those of `x`: the key data of a PRNG key, anything else as it is."""
    kind = getattr(x, "dtype", None)
    return jax.random.key_data(x) if kind is not None and jnp.issubdtype(kind, jax.dtypes.prng_key) else x


@jax.jit
def _lanes(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], axis=-1)
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    word = jnp.dtype(f"uint{min(8 * x.dtype.itemsize, 32)}")
    bits = lax.bitcast_convert_type(x, word).astype(jnp.uint32)  # 64-bit types gain an axis of 2
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * jnp.uint32(size % 2**32) + lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    first, second = (_sum_mixed(bits, place, *lane) for lane in _LANES)
    return first, second


def _sum_mixed(bits: jax.Array, place: jax.Array, a: int, b: int, c: int) -> jax.Array:
    mixed = (bits ^ (place * jnp.uint32(a))) * (jnp.uint32(2) * place + jnp.uint32(1)) + place * jnp.uint32(b)
    mixed = (mixed ^ (mixed >> jnp.uint32(15))) * jnp.uint32(c)
    return jnp.sum(mixed ^ (mixed >> jnp.uint32(13)), dtype=jnp.uint32)


def digest(tree: Any) -> str:
    """sha256 of a pytree (64 hexadecimal digits): structure, static fields, and each leaf's type, shape and raw bytes.

    The same for NumPy and JAX leaves, for any placement on devices and in any process. Static fields enter by their
    `repr` without memory addresses, so a static function counts by its qualified name only. All processes of a
    distributed run must call it together, since arrays are gathered.

    Raises:
        TypeError: a leaf is a tracer, or is neither an array nor a Python number, string or None.

    Example:
        >>> digest({"c": np.ones(2, np.float32)}) == digest({"c": jnp.ones(2, jnp.float32)})
        True
    """
    leaves, structure = jax.tree.flatten(tree)
    total = hashlib.sha256(re.sub(r" at 0x[0-9a-fA-F]+", "", str(structure)).encode())
    for leaf in leaves:
        kind, shape, data = _parts(leaf)
        total.update(f"|{kind}{shape}|".encode())
        total.update(data)
    return total.hexdigest()


def _parts(leaf: Any) -> tuple[str, tuple[int, ...], bytes]:
    if isinstance(leaf, Tracer):
        raise TypeError(f"digest needs concrete arrays; got the tracer {leaf}")
    if isinstance(leaf, bool | int | float | complex | str):
        return type(leaf).__name__, (), repr(leaf).encode()
    if not hasattr(leaf, "dtype"):
        raise TypeError(f"digest cannot read a leaf of type {type(leaf).__name__}")
    kind = str(leaf.dtype)
    bits = raw_bits(leaf)
    if isinstance(bits, jax.Array) and not (bits.is_fully_addressable or bits.is_fully_replicated):
        from jax.experimental import multihost_utils

        bits = multihost_utils.process_allgather(bits, tiled=True)
    host = np.asarray(bits)
    if host.dtype == object:
        raise TypeError("digest cannot read an array of Python objects")
    return kind, tuple(leaf.shape), np.ascontiguousarray(host).tobytes()
