"""Our decoder against `transformers` in torch, family by family, and folders through both libraries."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pdopt.models.checkpoints import export, load
from pdopt.models.decoder import REMATS, Execution

# Test modules are imported by path; the shared families stand beside this file.
_spec = importlib.util.spec_from_file_location("families", Path(__file__).with_name("families.py"))
families = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(families)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Name -> a saved folder and the torch model it came from, made once."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("model")
            model = families.torch_model(name)
            model.save_pretrained(folder)
            made[name] = (folder, model)
        return made[name]

    return get


def torch_logits(model, tokens, mask, positions):
    with torch.no_grad():
        return model(tokens, attention_mask=mask, position_ids=positions).logits.numpy()


def as_jax(*tensors):
    return [jnp.asarray(t.numpy()) for t in tensors]


@jax.jit
def run(model, tokens, positions=None, valid=None):
    return model(tokens, positions, valid)


def slow(name):
    """One that shares its path with another family."""
    return pytest.param(name, marks=pytest.mark.slow)


SHARED = ("qwen3 raw scores", "mistral windows")


@pytest.mark.parametrize("name", [slow(name) if name in SHARED else name for name in families.FAMILIES])
def test_logits_are_those_of_torch(name, folders):
    """float32, with and without left pads: 1e-5 where logits reach 2; torch itself is 1e-6 from float64."""
    folder, model = folders(name)
    tokens, mask, positions = families.padded_batch()
    expected = torch_logits(model, tokens, mask, positions)
    ours = load(folder)
    found = np.asarray(run(ours, *as_jax(tokens, positions, mask)))
    seen = mask.numpy().astype(bool)
    assert found.dtype == np.float32
    assert np.abs(expected[seen]).max() > 0.5
    np.testing.assert_allclose(found[seen], expected[seen], atol=1e-5)
    # The pads change nothing: the short text alone gives the same logits.
    alone = run(ours, jnp.asarray(tokens[:1, 37:].numpy()))
    np.testing.assert_allclose(alone[0], found[0, 37:], atol=1e-5)


@pytest.mark.slow
def test_scan_unrolled_and_remat_give_the_same_numbers_and_gradients(folders):
    folder, _ = folders("qwen3")
    tokens, mask, positions = as_jax(*families.padded_batch(40, 7))

    def loss(model):
        logits = model(tokens, positions, mask)
        return jnp.mean(jnp.where(mask[..., None] > 0, logits, 0) ** 2)

    results = []
    for execution in (Execution(), Execution(unroll=True), *(Execution(remat=name) for name in REMATS[1:])):
        value, slope = jax.jit(jax.value_and_grad(loss))(load(folder, execution=execution))
        results.append((value, slope.params))
    for value, slope in results[1:]:
        np.testing.assert_allclose(value, results[0][0], rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), slope, results[0][1])
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(results[0][1]))


EXPORTED = ["qwen2 tied", slow("qwen2 windows"), "qwen3", "qwen3 experts", "llama3", slow("llama biased"), "mistral",
            slow("mixtral"), slow("gemma2"), "gemma3"]  # fmt: skip


@pytest.mark.parametrize("name", EXPORTED)
def test_an_exported_folder_is_loaded_by_transformers(name, folders, tmp_path):
    folder, model = folders(name)
    ours = load(folder)
    for number, options in enumerate(({"source": folder}, {"shard_bytes": 100_000})):
        out = tmp_path / str(number)
        export(ours, out, **options)
        tokens, mask, positions = families.padded_batch(50, 5)
        back = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
        expected = torch_logits(model, tokens, mask, positions)
        np.testing.assert_array_equal(torch_logits(back, tokens, mask, positions), expected)
        again = load(out)
        assert again.config == ours.config
        jax.tree.map(np.testing.assert_array_equal, again.params, ours.params)
    assert len(list(out.glob("model-*.safetensors"))) > 3


def test_bfloat16_files_and_compute(folders, tmp_path):
    """bfloat16 keeps 8 bits: weights differ by 2^-9 relative, logits of size 2 by a few hundredths."""
    folder, model = folders("llama")
    export(load(folder), tmp_path / "half", dtype=jnp.bfloat16, source=folder)
    half = load(tmp_path / "half")
    assert half.params["embed"].dtype == jnp.float32
    tokens, mask, positions = families.padded_batch(50, 5)
    expected = torch_logits(model, tokens, mask, positions)
    found = load(folder, execution=Execution(compute="bfloat16"))(*as_jax(tokens, positions, mask))
    seen = mask.numpy().astype(bool)
    assert found.dtype == jnp.float32
    assert np.abs(np.asarray(found) - expected)[seen].max() < 0.1
    assert np.abs(np.asarray(half(*as_jax(tokens, positions, mask))) - expected)[seen].max() < 0.1
