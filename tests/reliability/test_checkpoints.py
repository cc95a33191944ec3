"""Checkpoints: what comes back is what was saved, on any mesh; damage and strangers are refused (rows 51 to 56)."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pdopt.errors import CheckpointError, InvalidOption
from pdopt.runtime.checkpoints import Checkpoints, library_versions
from pdopt.types import Pair, record

IDENTITY = {"problem": "abc", "method": {"name": "pdhg", "theta": 1.0}}


class Counter(NamedTuple):
    done: jax.Array
    last: int


@record(static=("name",))
class Weights:
    w: jax.Array
    name: str = "w"


def grid(rows: int, columns: int) -> jax.sharding.Mesh:
    devices = np.array(jax.devices()[: rows * columns]).reshape(rows, columns)
    return jax.sharding.Mesh(devices, ("row", "col"), axis_types=(AxisType.Auto,) * 2)


def everything(mesh: jax.sharding.Mesh | None) -> dict:
    """One leaf of every kind; matrices are sharded over the mesh."""
    place = (lambda a: a) if mesh is None else (lambda a: jax.device_put(a, NamedSharding(mesh, P("row", "col"))))
    with jax.enable_x64(True):
        wide = place(jnp.arange(64, dtype=jnp.float64).reshape(8, 8) / 3)
        long = jnp.arange(3, dtype=jnp.int64) + 2**40
    keys = jax.random.split(jax.random.key(7), 8)
    return {
        "pair": Pair(place(jnp.arange(32, dtype=jnp.float32).reshape(8, 4) / 7), wide),
        "half": place(jnp.arange(32, dtype=jnp.bfloat16).reshape(8, 4) / 7),
        "weights": Weights(jnp.linspace(0, 1, 5, dtype=jnp.float32)),
        "counter": Counter(jnp.int32(41), 12),
        "flags": jnp.array([True, False, True]),
        "long": long,
        "key": keys if mesh is None else jax.device_put(keys, NamedSharding(mesh, P("row"))),
        "empty": jnp.zeros((0, 3), jnp.float32),
        "host": np.arange(4.0),
        "ratio": 0.1,
        "on": True,
    }


def bits(leaf) -> bytes:
    if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def assert_same(got, expected) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, g), e in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected)):
        assert isinstance(g, jax.Array) == isinstance(e, jax.Array), path
        assert getattr(g, "dtype", type(g)) == getattr(e, "dtype", type(e)), path
        assert bits(g) == bits(e), path


def save_steps(folder: Path, steps=(1, 2), size: int = 64) -> None:
    with Checkpoints(folder, identity=IDENTITY) as checkpoints:
        for step in steps:
            assert checkpoints.save(step, state_at(step, size), {"seconds": float(step)})


def state_at(step: int, size: int = 64) -> dict:
    # Random mantissas, so that the file holds the bytes as they are rather than a few compressed ones.
    return {"x": jax.random.normal(jax.random.key(step), (size,), jnp.float32), "k": jnp.int32(step)}


TEMPLATE = {"x": jax.ShapeDtypeStruct((64,), jnp.float32), "k": jax.ShapeDtypeStruct((), jnp.int32)}


def big_files(folder: Path, step: int) -> list[Path]:
    return sorted((p for p in (folder / str(step) / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("shape", [(4, 2), (2, 2), (1, 2), (1, 1), None])
def test_restores_every_kind_of_leaf_on_every_mesh(tmp_path, shape):
    state = everything(grid(4, 2))
    with Checkpoints(tmp_path, identity=IDENTITY) as checkpoints:
        checkpoints.save(5, state, {"rows": [1, 2], "gap": float("inf")})
        checkpoints.wait()
        template = everything(grid(*shape) if shape else None)
        found = checkpoints.restore(jax.tree.map(lambda a: a * 0 if isinstance(a, float) else a, template))
    assert (found.step, found.extra) == (5, {"rows": [1, 2], "gap": float("inf")})
    assert_same(found.state, state)
    for got, want in zip(jax.tree.leaves(found.state), jax.tree.leaves(template)):
        if isinstance(want, jax.Array):
            assert got.sharding.is_equivalent_to(want.sharding, want.ndim)


def test_uncommitted_leaves_can_meet_a_mesh_after_restore(tmp_path):
    mesh = grid(4, 2)
    state = {"x": jax.device_put(jnp.ones((8, 2)), NamedSharding(mesh, P("row", "col"))), "step": jnp.float32(0.5)}
    with Checkpoints(tmp_path, identity=IDENTITY) as checkpoints:
        checkpoints.save(1, state)
        got = checkpoints.restore(state).state
    assert float(jax.jit(lambda s: jnp.sum(s["x"]) * s["step"])(got)) == 8.0


def test_a_bare_array_and_float64_without_x64(tmp_path):
    with jax.enable_x64(True):
        x = jnp.linspace(0, 1, 7, dtype=jnp.float64) ** 3
    with Checkpoints(tmp_path, identity=IDENTITY) as checkpoints:
        checkpoints.save(1, x)
        got = checkpoints.restore(jax.ShapeDtypeStruct((7,), np.float64)).state
    assert got.dtype == np.float64
    assert bits(got) == bits(x)


def test_state_may_be_donated_right_after_save(tmp_path):
    step = jax.jit(lambda x: x * 1.5 + 1, donate_argnums=0)
    x = jax.random.normal(jax.random.key(0), (1_000_000,), jnp.float32)
    kept = {}
    with Checkpoints(tmp_path, identity=IDENTITY, keep=10) as checkpoints:
        for k in range(4):
            kept[k] = bits(x)
            checkpoints.save(k, {"x": x})
            x = step(step(x))
        checkpoints.wait()
        found = checkpoints.restore({"x": jax.ShapeDtypeStruct((1_000_000,), jnp.float32)})
    assert found.step == 3
    assert bits(found.state["x"]) == kept[3]


def test_a_numpy_leaf_changed_after_save_is_saved_as_it_was(tmp_path):
    x = np.ones(1000)
    with Checkpoints(tmp_path, identity=IDENTITY) as checkpoints:
        checkpoints.save(1, {"x": x})
        x[:] = 2.0
        checkpoints.wait()
        got = checkpoints.restore({"x": x}).state["x"]
    assert isinstance(got, np.ndarray)
    np.testing.assert_array_equal(got, 1.0)


def test_keeps_the_newest_steps(tmp_path):
    save_steps(tmp_path, steps=range(1, 6))
    kept = sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit())
    assert kept == [3, 4, 5]


def test_latest_and_the_empty_folder(tmp_path):
    with Checkpoints(tmp_path / "new" / "deep", identity=IDENTITY) as checkpoints:
        assert checkpoints.latest() is None
        with pytest.raises(CheckpointError, match="holds no checkpoint"):
            checkpoints.restore(TEMPLATE)


def test_a_step_is_saved_once_and_earlier_ones_are_refused(tmp_path):
    save_steps(tmp_path)
    with Checkpoints(tmp_path, identity=IDENTITY) as checkpoints:
        assert checkpoints.latest() == 2
        with pytest.raises(CheckpointError, match="already holds step 2, so step 1 cannot"):
            checkpoints.save(1, state_at(1))
        assert checkpoints.save(3, state_at(3))
        assert not checkpoints.save(3, state_at(3))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def delete(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        (t, f)
        for t in ("data", "manifest", "tree", "meta")
        for f in (flip, truncate, delete)
        if (t, f) != ("tree", delete)
    ],
)
def test_damage_falls_back_to_the_step_before(tmp_path, fault, target):
    """Rows 51 and 52: every file that matters, harmed in three ways, must not change what is restored."""
    save_steps(tmp_path, size=5000)
    template = TEMPLATE | {"x": jax.ShapeDtypeStruct((5000,), jnp.float32)}
    path = {
        "data": big_files(tmp_path, 2)[-1],
        "manifest": tmp_path / "2" / "state" / "manifest.ocdbt",
        "tree": tmp_path / "2" / "state" / "_METADATA",
        "meta": tmp_path / "2" / "meta" / "metadata",
    }[target]
    fault(path)
    with Checkpoints(tmp_path, identity=IDENTITY) as checkpoints:
        with pytest.warns(RuntimeWarning, match=r"step 2 is damaged \(.+\); trying the step before it"):
            found = checkpoints.restore(template)
        assert found.step == 1
        assert_same(found.state, state_at(1, 5000))
        # The run goes on from step 1 and passes the damaged step's number again.
        assert checkpoints.save(2, state_at(2, 5000))
        checkpoints.wait()
        assert_same(checkpoints.restore(template).state, state_at(2, 5000))


def test_without_orbax_description_of_the_tree_the_step_is_still_read_and_verified(tmp_path):
    """The template and `meta` say everything that the deleted file said."""
    save_steps(tmp_path, steps=(1,))
    delete(tmp_path / "1" / "state" / "_METADATA")
    with Checkpoints(tmp_path, identity=IDENTITY) as checkpoints:
        assert_same(checkpoints.restore(TEMPLATE).state, state_at(1))


@pytest.mark.slow
def test_every_bit_flip_in_the_array_data_is_seen(tmp_path):
    """A sample of single-bit flips over the whole data file: the restored state is never wrong."""
    save_steps(tmp_path, steps=(1,), size=5000)
    template = TEMPLATE | {"x": jax.ShapeDtypeStruct((5000,), jnp.float32)}
    path = big_files(tmp_path, 1)[-1]
    whole = path.read_bytes()
    assert len(whole) > 10_000  # so the file does hold the numbers
    seen = 0
    with Checkpoints(tmp_path, identity=IDENTITY) as checkpoints:
        for place in np.random.default_rng(0).integers(0, 8 * len(whole), 12):
            data = bytearray(whole)
            data[place // 8] ^= 1 << (place % 8)
            path.write_bytes(bytes(data))
            try:
                with pytest.warns(RuntimeWarning, match="step 1 is damaged"):
                    checkpoints.restore(template)
            except CheckpointError as error:
                assert "none of the steps [1] is whole" in str(error)  # noqa: PT017
                seen += 1
        path.write_bytes(whole)
        assert_same(checkpoints.restore(template).state, state_at(1, 5000))
    assert seen == 12


def test_other_structure_shape_or_type_is_named(tmp_path):
    """Rows 53 and 54; orbax alone would cast the type without a word."""
    save_steps(tmp_path, steps=(1,))
    cases = {
        r"\['x'\] has shape \[64\]; expected \[65\]": {**TEMPLATE, "x": jax.ShapeDtypeStruct((65,), jnp.float32)},
        r"\['x'\] has dtype float32; expected bfloat16": {**TEMPLATE, "x": jax.ShapeDtypeStruct((64,), jnp.bfloat16)},
        r"\['x'\] has dtype float32; expected float64": {**TEMPLATE, "x": jax.ShapeDtypeStruct((64,), np.float64)},
        r"\['k'\] has dtype int32; expected python int": {**TEMPLATE, "k": 3},
        r"missing \[\"\['y'\]\"\]": {**TEMPLATE, "y": TEMPLATE["x"]},
        r"not expected \[\"\['k'\]\"\]": {"x": TEMPLATE["x"]},
    }
    with Checkpoints(tmp_path, identity=IDENTITY) as checkpoints:
        for message, template in cases.items():
            with pytest.raises(CheckpointError, match=message):
                checkpoints.restore(template)


def test_another_identity_is_refused_with_both_values(tmp_path):
    """Row 55."""
    save_steps(tmp_path, steps=(1,))
    other = IDENTITY | {"problem": "xyz"}
    with Checkpoints(tmp_path, identity=other) as checkpoints:
        with pytest.raises(CheckpointError, match=r"problem is 'abc' in the checkpoint and 'xyz' here"):
            checkpoints.restore(TEMPLATE)
        assert checkpoints.restore(TEMPLATE, ignore=("problem",)).step == 1
    with (
        Checkpoints(tmp_path, identity=IDENTITY | {"versions": library_versions()}) as checkpoints,
        pytest.raises(CheckpointError, match="versions is None in the checkpoint"),
    ):
        checkpoints.restore(TEMPLATE)


def test_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("pdopt.runtime.checkpoints.FORMAT", 0)
    save_steps(tmp_path, steps=(1,))
    monkeypatch.undo()
    with (
        Checkpoints(tmp_path, identity=IDENTITY) as checkpoints,
        pytest.raises(CheckpointError, match="checkpoint format 0; this version reads format 1"),
    ):
        checkpoints.restore(TEMPLATE)


def test_what_is_not_json_or_not_an_array_is_refused_before_writing(tmp_path):
    with pytest.raises(InvalidOption, match="identity is not JSON"):
        Checkpoints(tmp_path, identity={"f": len})
    with pytest.raises(InvalidOption, match="keep is 0"):
        Checkpoints(tmp_path, identity={}, keep=0)
    with Checkpoints(tmp_path, identity=IDENTITY) as checkpoints:
        with pytest.raises(InvalidOption, match="extra is not JSON"):
            checkpoints.save(1, state_at(1), {"a": np.float32(1)})
        with pytest.raises(InvalidOption, match=r"\['f'\] has type builtin_function"):
            checkpoints.save(1, {"f": len})
        assert checkpoints.latest() is None


def test_a_file_where_the_folder_should_be(tmp_path):
    """Row 56: before the first iteration."""
    (tmp_path / "taken").write_text("a file")
    for folder in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(CheckpointError, match="there is a file at"):
            Checkpoints(folder, identity=IDENTITY)
    with pytest.raises(CheckpointError, match="not a folder of a mounted file system"):
        Checkpoints("gs://bucket/run", identity=IDENTITY)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    """Row 56, by a made refusal: a test run as root may write everywhere."""

    def refuse(self, data):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(CheckpointError, match="is not writable: Permission denied"):
        Checkpoints(tmp_path, identity=IDENTITY)


def test_the_description_is_plain_json(tmp_path):
    save_steps(tmp_path, steps=(1,))
    meta = json.loads((tmp_path / "1" / "meta" / "metadata").read_text())
    assert meta["identity"] == IDENTITY
    assert [leaf["name"] for leaf in meta["leaves"]] == ["['k']", "['x']"]
