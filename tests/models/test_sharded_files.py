"""Model folders and meshes: parts are read where they belong, on one process and on two, and written back whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from pdopt.models import checkpoints
from pdopt.models.config import DecoderConfig
from pdopt.models.decoder import Decoder, put
from pdopt.models.sharding import make_mesh, parameter_sharding

CONFIG = DecoderConfig(
    vocabulary=32, width=16, depth=2, heads=4, kv_heads=2, head_dim=4, hidden=24, qkv_bias=True, tied=False,
    family="qwen2",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rng = np.random.default_rng(0)
    params = {}
    for path, shape in CONFIG.shapes.items():
        put(params, path, rng.normal(size=shape).astype(np.float32))
    where = tmp_path_factory.mktemp("model")
    checkpoints.export(Decoder(params, CONFIG), where)
    np.save(where / "rows.npy", rng.integers(0, 32, (4, 6), np.int32))
    return where


def test_a_folder_goes_into_its_parts_and_comes_out_the_same(folder, tmp_path):
    if jax.device_count() < 8:
        pytest.skip("eight devices are needed; XLA_FLAGS was set by the caller to fewer")
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    spread = checkpoints.load(folder, sharding=parameter_sharding(mesh, CONFIG))
    jax.tree.map(np.testing.assert_array_equal, spread.params, checkpoints.load(folder).params)
    # Copied over data, split over the other two.
    assert spread.params["layers"]["mlp"]["up"].addressable_shards[0].data.shape == (2, 8, 12)
    checkpoints.export(spread, tmp_path / "out")
    one, two = (load_file(where / "model.safetensors") for where in (folder, tmp_path / "out"))
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.multiprocess
def test_two_processes_read_a_folder_and_make_the_logits_of_one(folder, monkeypatch):
    from tests.distributed.group import run_group

    monkeypatch.setenv("PDOPT_TEST_FOLDER", str(folder))
    alone = checkpoints.load(folder)
    expected = np.asarray(jax.jit(lambda model, rows: model(rows))(alone, jnp.asarray(np.load(folder / "rows.npy"))))
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(alone.params))
    for lines in run_group("model", 2, devices=2):
        numbers = dict(line.split(" ", 1) for line in lines)
        assert numbers["devices"] == "4"
        # Half of the model, and what is whole on every device: norms twice, and biases, which `tensor` splits, once.
        assert total / 2 < int(numbers["bytes"]) < 0.6 * total
        found = np.array([float(v) for v in numbers["logits"].split()]).reshape(expected.shape)
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
