"""Model folders that are damaged or do not fit: each gives one clear error that names the file or the tensor."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from pdopt.errors import InvalidFile, InvalidOption
from pdopt.models.checkpoints import INDEX, export, load
from pdopt.models.config import DecoderConfig, Rope, read_config
from pdopt.models.decoder import Decoder, initialise

CONFIG = DecoderConfig(
    vocabulary=64, width=32, depth=2, heads=4, kv_heads=2, head_dim=8, hidden=64, qkv_bias=True, family="qwen2",
    tied=False, eos=(2,), rope=Rope(1e6),
)  # fmt: skip
HF = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    export(Decoder(initialise(CONFIG, jax.random.key(0)), CONFIG), tmp_path / "m")
    return tmp_path / "m"


def change(folder, edit):
    """Rewrite the tensors of a folder."""
    path = folder / "model.safetensors"
    tensors = {name: np.array(value) for name, value in load_file(path).items()}
    edit(tensors)
    save_file(tensors, path)


NAME = "model.layers.1.mlp.up_proj.weight"
DAMAGES = {
    "missing": (lambda t: t.pop(NAME), f"1 tensors are missing, the first {NAME}"),
    "extra": (lambda t: t.update(extra=np.zeros(3, np.float32)), "1 tensors are unknown to qwen2, the first extra"),
    "shape": (lambda t: t.update({NAME: t[NAME][:-1]}), rf"{NAME} has shape \(63, 32\); config.json says \(64, 32\)"),
    "dtype": (lambda t: t.update({NAME: t[NAME].astype(np.int32)}), f"{NAME} has dtype I32; expected F32"),
    "bytes": (lambda t: t.update({NAME: t[NAME].astype(np.int8)}), f"{NAME} has dtype I8; expected F32"),
    "eighths": (
        lambda t: t.update({NAME: t[NAME].astype(jnp.float8_e4m3fn)}),
        f"{NAME} has dtype F8_E4M3; expected F32",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_tensors_that_do_not_fit(folder, damage):
    edit, message = DAMAGES[damage]
    change(folder, edit)
    with pytest.raises(InvalidFile, match=message):
        load(folder)


def test_a_configuration_of_other_sizes_names_the_tensor(folder):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 65}))
    with pytest.raises(InvalidFile, match=r"mlp\.gate_proj\.weight has shape \(64, 32\); config\.json says \(65, 32\)"):
        load(folder)


def test_known_buffers_are_ignored_and_a_tied_copy_too(folder):
    change(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}))
    assert load(folder).config == CONFIG


def test_files_that_are_no_weights(folder):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    # Half of it, without its last byte, its header alone cut, nothing at all, something else.
    for part in (data[: len(data) // 2], data[:-1], data[:20], b"", b"PK" + data[2:]):
        path.write_bytes(part)
        with pytest.raises(InvalidFile, match=r"model\.safetensors: not a whole safetensors file"):
            load(folder)
    path.unlink()
    with pytest.raises(InvalidFile, match=r"no weights; expected model\.safetensors"):
        load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(InvalidFile, match=r"pytorch_model\.bin is pickled, which can run code"):
        load(folder)
    with pytest.raises(InvalidFile, match="no such file; expected a model folder"):
        load(folder / "nowhere")


def test_an_index_is_believed_only_as_far_as_its_files_go(tmp_path):
    model = Decoder(initialise(CONFIG, jax.random.key(0)), CONFIG)
    export(model, tmp_path / "m", shard_bytes=20_000)
    again = load(tmp_path / "m")
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    first = sorted((tmp_path / "m").glob("model-00001*"))[0]
    kept = first.read_bytes()
    first.unlink()
    with pytest.raises(InvalidFile, match=rf"{first.name} is missing, though {INDEX} names it"):
        load(tmp_path / "m")
    # A shard under another's name: its tensors are in two files, and those it replaced in none.
    second = sorted((tmp_path / "m").glob("model-00002*"))[0]
    first.write_bytes(second.read_bytes())
    with pytest.raises(InvalidFile, match=rf"{second.name}: tensor .* is in two files"):
        load(tmp_path / "m")
    first.write_bytes(kept)
    index = tmp_path / "m" / INDEX
    names = json.loads(index.read_text())
    names["weight_map"]["lm_head.weight"] = "../outside.safetensors"
    index.write_text(json.dumps(names))
    with pytest.raises(InvalidFile, match="names a file outside its folder"):
        load(tmp_path / "m")
    index.write_text("[1]")
    with pytest.raises(InvalidFile, match="not an index"):
        load(tmp_path / "m")


def test_export_needs_an_empty_folder_and_its_own_source(folder):
    with pytest.raises(InvalidOption, match="is not empty"):
        export(load(folder), folder)
    other = DecoderConfig(vocabulary=64, width=32, depth=1, heads=4, kv_heads=2, head_dim=8, hidden=64)
    with pytest.raises(InvalidOption, match="has another configuration"):
        export(Decoder(initialise(other, jax.random.key(0)), other), folder.parent / "n", source=folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma"}, "model_type is 'gemma'; implemented are gemma2, gemma3_text, llama"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rope_type is 'yarn'; implemented are default",
        ),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_type llama3 lacks factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not 1"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has sliding_attention"),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 2}, r"layers \[0\] have no experts"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [1]}, r"layers \[1\] have no experts"),
        ({"num_key_value_heads": 3}, "heads is 4; expected a multiple of kv_heads, 3"),
    ],
)
def test_configurations_that_are_not_implemented_are_refused_by_name(changes, message):
    with pytest.raises(InvalidOption, match=message):
        read_config({**HF, **changes})


def test_config_files_that_cannot_be_read(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InvalidFile, match="not JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InvalidFile, match="holds a list"):
        read_config(tmp_path)


def test_old_and_new_spellings_of_rope_are_one():
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    old = read_config({**HF, "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **scaling}})
    new = read_config({**HF, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **scaling}})
    assert old == new
    assert new.rope == Rope(5e5, "llama3", 8.0, 1.0, 4.0, 64)


def test_loading_places_each_parameter_in_its_sharding(folder):
    """One device here; the path by which parts are read is the one of many."""
    mesh = Mesh(np.array(jax.devices()[:1]), ("fsdp",))
    asked = {}

    def sharding(path, shape):
        asked[path] = shape
        return NamedSharding(mesh, PartitionSpec("fsdp"))

    placed = load(folder, sharding=sharding, dtype=jnp.bfloat16)
    assert asked == CONFIG.shapes
    plain = load(folder, dtype=jnp.bfloat16)
    jax.tree.map(np.testing.assert_array_equal, placed.params, plain.params)
    assert all(leaf.sharding.mesh.shape == {"fsdp": 1} for leaf in jax.tree.leaves(placed.params))
