"""Low-rank adapters: off, on, merged, packed for decoding, and through PEFT's files."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pdopt.errors import InvalidFile, InvalidOption
from pdopt.models import lora
from pdopt.models.block import linear
from pdopt.models.checkpoints import export
from pdopt.models.config import DecoderConfig
from pdopt.models.decoder import Decoder, Execution, initialise, packed_layers

pytestmark = pytest.mark.usefixtures("quick_compiles")

# Test modules are imported by path; what several share stands beside them.
_spec = importlib.util.spec_from_file_location("through_cache", Path(__file__).with_name("through_cache.py"))
through_cache = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(through_cache)


CONFIG = DecoderConfig(
    vocabulary=48, width=16, depth=2, heads=4, kv_heads=2, head_dim=6, hidden=24, qkv_bias=True, family="qwen2"
)  # fmt: skip
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(3, CONFIG.vocabulary, (2, 7))
VALID = np.arange(7) >= np.array([[2], [0]])


def drawn(tree, scale):
    """Random numbers in the shape of a tree; NumPy's, since XLA's take seconds to compile."""
    return jax.tree.map(lambda leaf: jnp.asarray(scale * RNG.standard_normal(leaf.shape), jnp.float32), tree)


# Large enough that attention is not flat.
WEIGHTS = drawn(jax.eval_shape(lambda: initialise(CONFIG, jax.random.key(0))), 0.15)
WEIGHTS = jax.tree_util.tree_map_with_path(lambda path, leaf: leaf + ("norm" in path[-1].key), WEIGHTS)


@jax.jit
def forward(model):
    return model(TOKENS, valid=VALID)


def base(**execution):
    return Decoder(WEIGHTS, CONFIG, Execution(**execution))


def adapted(model, targets=lora.TARGETS, rank=3, alpha=5.0):
    """Adapters after some training: B is not zero any more."""
    fresh = jax.eval_shape(lambda: lora.init(CONFIG, jax.random.key(1), rank, targets, alpha))
    return model.replace(adapters=drawn(fresh, 0.2))


def close(found, expected, atol):
    np.testing.assert_allclose(np.asarray(found)[VALID], np.asarray(expected)[VALID], rtol=1e-5, atol=atol)


@pytest.fixture(scope="module")
def trained():
    model = adapted(base())
    return model, forward(model)


def test_off_and_new_adapters_are_the_base_bit_for_bit(trained):
    model = base()
    plain = forward(model)
    fresh = model.replace(adapters=lora.init(CONFIG, jax.random.key(1), 3))
    np.testing.assert_array_equal(forward(fresh), plain)
    np.testing.assert_array_equal(forward(trained[0].replace(adapters=None)), plain)
    assert float(jnp.abs(trained[1] - plain).max()) > 0.1


def test_the_formula_in_numpy():
    """One module of one layer, from the definition."""
    x, low = np.arange(6.0).reshape(2, 3) / 7, lora.Low(np.eye(3, 2)[None], np.full((1, 2, 4), 0.5))
    weight = np.ones((3, 4))
    tree = lora.beside({"mlp": {"up": weight[None]}}, lora.Adapters({"mlp": {"up": low}}, 6.0))
    layer = jax.tree.map(lambda leaf: leaf[0], tree["mlp"])
    np.testing.assert_allclose(
        linear(layer, "up", jnp.asarray(x)), x @ weight + 3.0 * x @ low.a[0] @ low.b[0], rtol=1e-6
    )


def test_merged_unrolled_and_decoded_give_the_same(trained):
    model, expected = trained
    close(forward(lora.merge(model)), expected, 1e-5)
    assert lora.merge(model).adapters is None
    close(forward(model.replace(execution=Execution(unroll=True))), expected, 1e-5)
    through_cache.assert_decoding_is_the_full_pass(model, TOKENS, VALID, 5)


@pytest.mark.parametrize(
    "targets", [("k", "down", "up"), *(pytest.param(t, marks=pytest.mark.slow) for t in (lora.TARGETS, ("v",)))]
)
def test_packed_layers_that_keep_adapters_apart_give_the_same(targets):
    """Half precision keeps them apart; here only the embedding is in half, so that float32 can tell."""
    model = adapted(base(compute=jnp.float32), targets)
    model = model.replace(params={**model.params, "embed": model.params["embed"].astype(jnp.bfloat16)})
    layers = packed_layers(model)
    assert ("qkv_low" in layers[0]["attention"]) == bool({"q", "k", "v"} & set(targets))
    assert ("gate_up_low" in layers[0]["mlp"]) == bool({"gate", "up"} & set(targets))
    through_cache.assert_decoding_is_the_full_pass(model, TOKENS, VALID, 5)


def test_gradients_reach_the_adapters_alone(trained):
    model, _ = trained

    def loss(adapters):
        return jnp.mean(forward(model.replace(adapters=adapters)) ** 2)

    grad, loss = jax.jit(jax.grad(loss)), jax.jit(loss)
    slope = grad(model.adapters)
    assert jax.tree.structure(slope) == jax.tree.structure(model.adapters)
    assert all(float(jnp.abs(leaf).max()) > 1e-6 for leaf in jax.tree.leaves(slope))
    # At the start B is zero: A does not move, B does.
    fresh = grad(lora.init(CONFIG, jax.random.key(1), 3, alpha=5.0))
    for low in jax.tree.leaves(fresh.layers, is_leaf=lambda node: isinstance(node, lora.Low)):
        assert not np.any(low.a)
        assert np.any(low.b)
    # Against a difference quotient along a random direction.
    way = drawn(model.adapters, 1.0)
    step = lambda size: loss(jax.tree.map(lambda leaf, d: leaf + size * d, model.adapters, way))
    expected = sum(float(jnp.vdot(a, b)) for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(way)))
    np.testing.assert_allclose((step(1e-2) - step(-1e-2)) / 2e-2, expected, rtol=2e-2)


def test_a_peft_folder_has_its_names_and_comes_back(trained, tmp_path):
    model, _ = trained
    lora.export_adapters(model, tmp_path / "a", base="some/base")
    tensors = load_file(tmp_path / "a" / lora.WEIGHTS)
    assert len(tensors) == 2 * 2 * 7
    prefix = "base_model.model.model.layers.1"
    assert tensors[f"{prefix}.self_attn.q_proj.lora_A.weight"].shape == (3, 16)
    assert tensors[f"{prefix}.self_attn.q_proj.lora_B.weight"].shape == (24, 3)
    low = model.adapters.layers["attention"]["o"]
    np.testing.assert_array_equal(tensors[f"{prefix}.self_attn.o_proj.lora_A.weight"], low.a[1].reshape(24, 3).T)
    np.testing.assert_array_equal(tensors[f"{prefix}.mlp.down_proj.lora_B.weight"],
                                  model.adapters.layers["mlp"]["down"].b[1].T)  # fmt: skip
    settings = json.loads((tmp_path / "a" / lora.SETTINGS).read_text())
    assert (settings["r"], settings["lora_alpha"], settings["base_model_name_or_path"]) == (3, 5.0, "some/base")
    back = lora.load_adapters(tmp_path / "a", CONFIG)
    assert jax.tree.structure(back) == jax.tree.structure(model.adapters)
    jax.tree.map(np.testing.assert_array_equal, back, model.adapters)
    # The rank-stabilised scale is alpha / sqrt r.
    (tmp_path / "a" / lora.SETTINGS).write_text(json.dumps({**settings, "use_rslora": True}))
    np.testing.assert_allclose(lora.load_adapters(tmp_path / "a", CONFIG).scale, 5.0 / 3**0.5)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers 5 for it
def test_peft_computes_the_same(trained, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model, expected = trained
    export(model.replace(adapters=None), tmp_path / "base")
    lora.export_adapters(model, tmp_path / "a")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "a").eval()
    mask = torch.tensor(VALID.astype(int))
    with torch.no_grad():
        logits = theirs(torch.tensor(TOKENS), attention_mask=mask,
                        position_ids=(mask.cumsum(-1) - 1).clamp(0)).logits  # fmt: skip
    close(logits.numpy(), expected, 1e-5)
    theirs.save_pretrained(tmp_path / "b")
    jax.tree.map(np.testing.assert_array_equal, lora.load_adapters(tmp_path / "b", CONFIG), model.adapters)


NAME = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
DAMAGES = {
    "missing": (lambda t: t.pop(NAME), f"tensor {NAME} is missing"),
    "extra": (lambda t: t.update(extra=np.zeros(3, np.float32)), "1 tensors are unknown, the first extra"),
    "shape": (
        lambda t: t.update({NAME: t[NAME][:, :-1]}),
        rf"{NAME} has shape \(3, 15\); the configurations say \(3, 16\)",
    ),
    "dtype": (lambda t: t.update({NAME: t[NAME].astype(np.int8)}), f"{NAME} has dtype int8"),
    "other": (lambda t: t.clear(), "no adapter of a module of qwen2"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_weights_that_do_not_fit(trained, tmp_path, damage):
    edit, message = DAMAGES[damage]
    lora.export_adapters(trained[0], tmp_path / "a")
    tensors = {name: np.array(value) for name, value in load_file(tmp_path / "a" / lora.WEIGHTS).items()}
    edit(tensors)
    save_file(tensors, tmp_path / "a" / lora.WEIGHTS)
    with pytest.raises(InvalidFile, match=message):
        lora.load_adapters(tmp_path / "a", CONFIG)


def test_files_that_are_no_adapters(trained, tmp_path):
    folder = tmp_path / "a"
    lora.export_adapters(trained[0], folder)
    settings = json.loads((folder / lora.SETTINGS).read_text())
    for change, message in (
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"), ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is 'all'"), ({"rank_pattern": {"q_proj": 4}}, "rank_pattern is"),
    ):  # fmt: skip
        (folder / lora.SETTINGS).write_text(json.dumps({**settings, **change}))
        with pytest.raises(InvalidOption, match=message):
            lora.load_adapters(folder, CONFIG)
    (folder / lora.SETTINGS).write_text("{")
    with pytest.raises(InvalidFile, match="not JSON"):
        lora.load_adapters(folder, CONFIG)
    (folder / lora.SETTINGS).write_text(json.dumps(settings))
    data = (folder / lora.WEIGHTS).read_bytes()
    (folder / lora.WEIGHTS).write_bytes(data[:100])
    with pytest.raises(InvalidFile, match="not a whole safetensors file"):
        lora.load_adapters(folder, CONFIG)
    (folder / lora.WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(InvalidFile, match="is pickled, which can run code"):
        lora.load_adapters(folder, CONFIG)
    with pytest.raises(InvalidFile, match="no such file; expected a folder that PEFT saved"):
        lora.load_adapters(tmp_path / "nowhere", CONFIG)


def test_wrong_options_are_refused(trained, tmp_path):
    key = jax.random.key(0)
    for options, message in (
        ({"rank": 0}, "rank is 0"), ({"rank": 2, "targets": "q"}, "targets is 'q'"),
        ({"rank": 2, "targets": ()}, "targets"),
        ({"rank": 2, "targets": ("qq",)}, "unknown target 'qq'"), ({"rank": 2, "alpha": 0}, "alpha is 0"),
    ):  # fmt: skip
        with pytest.raises(InvalidOption, match=message):
            lora.init(CONFIG, key, **options)
    with pytest.raises(InvalidOption, match="model has no adapters"):
        lora.export_adapters(base(), tmp_path / "a")
    with pytest.raises(InvalidOption, match=r"model has adapters; lora\.merge"):
        export(trained[0], tmp_path / "m")
