"""Fingerprints see every change of a word and no change of placement; digests identify a tree across processes."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pdopt.runtime.fingerprint import digest, fingerprint, fingerprints
from pdopt.types import Pair, record

ROOT = Path(__file__).parents[2]
MASK = 0xFFFFFFFF
TYPES = [
    np.float64,
    np.float32,
    jnp.bfloat16,
    np.float16,
    np.int8,
    np.int32,
    np.uint64,
    np.bool_,
    np.complex64,
    np.complex128,
]


def slow_fingerprint(x: np.ndarray) -> str:
    """The definition, word by word, in Python integers."""
    width = {1: np.uint8, 2: np.uint16}.get(x.dtype.itemsize, np.uint32)
    words = [int(w) for w in np.frombuffer(np.ascontiguousarray(x).tobytes(), width)]
    out = ""
    for a, b, c in ((0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35), (0x27D4EB2F, 0x165667B1, 0x9E3779B1)):
        total = 0
        for p, w in enumerate(words):
            t = ((w ^ (a * p & MASK)) * (2 * p + 1) + b * p) & MASK
            s = (t ^ t >> 15) * c & MASK
            total += s ^ s >> 13
        out += f"{total & MASK:08x}"
    return out


def sample(kind) -> np.ndarray:
    x = np.random.default_rng(3).normal(size=(8, 4)) * 50
    return (x + 1j * x[::-1]).astype(kind) if np.dtype(kind).kind == "c" else np.abs(x).astype(kind)


@pytest.mark.parametrize("kind", TYPES)
def test_equals_the_definition_and_is_the_same_for_numpy_and_jax(kind):
    x = sample(kind)
    with jax.enable_x64(True):
        device = jnp.asarray(x)
    assert fingerprint(x) == fingerprint(device) == slow_fingerprint(x)


@pytest.mark.parametrize("kind", [np.float64, np.float32, jnp.bfloat16, np.bool_])
def test_is_the_same_on_every_mesh(kind):
    x = sample(kind)
    found = {fingerprint(x)}
    for rows, columns in ((4, 2), (2, 2), (8, 1), (1, 4)):
        devices = np.array(jax.devices()[: rows * columns]).reshape(rows, columns)
        mesh = jax.sharding.Mesh(devices, ("a", "b"), axis_types=(AxisType.Auto,) * 2)
        for spec in (P("a", "b"), P("a"), P(None, "b"), P()):
            with jax.enable_x64(True):
                found.add(fingerprint(jax.device_put(x, NamedSharding(mesh, spec))))
    assert len(found) == 1


@pytest.mark.parametrize("kind", [np.float64, np.float32, jnp.bfloat16, np.int8])
def test_every_single_bit_flip_is_seen(kind):
    x = sample(kind)
    whole, seen = fingerprint(x), []
    raw = x.tobytes()
    for place in np.random.default_rng(0).choice(8 * len(raw), 100, replace=False):
        data = bytearray(raw)
        data[place // 8] ^= 1 << (place % 8)
        seen.append(np.frombuffer(bytes(data), x.dtype).reshape(x.shape))
    assert whole not in fingerprints(seen)


def test_order_and_signs_of_zero_are_seen():
    x = sample(np.float32)
    swapped = x[[1, 0, *range(2, 8)]]
    assert len(set(fingerprints([x, swapped, x.T, np.zeros(4, np.float32), -np.zeros(4, np.float32)]))) == 5


def test_keys_scalars_and_python_numbers():
    key = jax.random.key(3)
    assert fingerprint(key) == fingerprint(jax.random.key_data(key)) != fingerprint(jax.random.key(4))
    assert fingerprint(0.1) == fingerprint(np.float64(0.1))
    assert fingerprint(np.zeros((0, 3))) == "0" * 16


@record(static=("f", "name"))
class Thing:
    x: jax.Array
    f: object = len
    name: str = "n"


def cost(x):
    return x


def test_digest_sees_values_types_shapes_structure_and_static_fields():
    x = np.arange(4, dtype=np.float32)
    trees = [
        x, -x, x.astype(np.int32), x.reshape(2, 2), [x], (x,), {"a": x}, {"b": x}, Pair(x, None), [x, None],
        Thing(x), Thing(x, name="m"), Thing(x, f=cost), [x, 1], [x, 1.0], [x, True], [x, "1"], [x[:2], x[2:]],
    ]  # fmt: skip
    assert len({digest(tree) for tree in trees}) == len(trees)


def test_digest_does_not_depend_on_placement_or_kind_of_array():
    x = np.arange(8, dtype=np.float32)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("a",), axis_types=(AxisType.Auto,))
    assert digest(x) == digest(jnp.asarray(x)) == digest(jax.device_put(x, NamedSharding(mesh, P("a"))))
    assert digest(x[::-1]) == digest(x[::-1].copy())
    assert digest(jax.random.key(1)) != digest(jax.random.key(2))
    assert digest(np.ones(1)) != digest(np.ones(1, np.float32))


def test_digest_refuses_what_it_cannot_read():
    with pytest.raises(TypeError, match="tracer"):
        jax.jit(lambda x: digest(x) and x)(jnp.ones(2))
    with pytest.raises(TypeError, match="leaf of type object"):
        digest([object()])
    with pytest.raises(TypeError, match="Python objects"):
        digest(np.array([object()]))


CHILD = """
import numpy as np
from pdopt.runtime.fingerprint import digest
from pdopt.types import Pair
def cost(x): return x
import jax
node = jax.tree_util.Partial(cost, np.arange(5.0))
print(digest({"b": Pair(np.arange(3), [1.5, None]), "a": node}))
"""


@pytest.mark.multiprocess
def test_digest_is_the_same_in_every_process():
    """Structures that name functions hold no address, and hash seeds do not matter."""
    seen = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, timeout=90, check=True
        )
        seen.add(done.stdout.strip())
    assert len(seen) == 1
    assert len(seen.pop()) == 64
