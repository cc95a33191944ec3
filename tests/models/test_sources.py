"""Names to models: folders, files, packages, the hub; and tokenizers that agree whatever they came from."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from pdopt.errors import InvalidFile, InvalidOption
from pdopt.models import sources
from pdopt.models.sources import locate, model_config, open_model, stored_bytes
from pdopt.models.tokenizers import load_tokenizer
from pdopt.training.chat import encode_prompt

pytest.importorskip("gguf", reason="the extra gguf is not installed")
_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)

TEXTS = ("the cat on the mat", "year 1999, the 19th", "naïve, 東京\n\n  x", "<|start|>user: hi<|end|>", "  lead")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same model as a GGUF file and as a folder."""
    base = tmp_path_factory.mktemp("places")
    path = tiny.write_gguf(base / "tiny.gguf")
    return path, tiny.write_folder(base / "folder", path)


def test_a_folder_and_a_file_are_the_same_model(places):
    path, folder = places
    a, b = open_model(path), open_model(str(folder))
    for name in ("embed", "norm"):
        np.testing.assert_array_equal(a.model.params[name], b.model.params[name])
    for group in ("attention", "mlp"):
        for name, value in a.model.params["layers"][group].items():
            np.testing.assert_array_equal(value, b.model.params["layers"][group][name])
    assert (a.name, b.name) == (str(path), str(folder))
    assert (a.eos, a.pad) == (b.eos, b.pad) == ((0,), 0)
    for text in TEXTS:
        ids = a.tokenizer(text).input_ids
        assert ids == b.tokenizer(text).input_ids
        assert a.tokenizer.decode(ids) == text
    assert model_config(path).shapes == model_config(folder).shapes == model_config(folder / "config.json").shapes


def test_bfloat16_and_a_sharding_reach_the_parameters(places):
    import jax

    place = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    for name in places:
        opened = open_model(name, dtype="bfloat16", sharding=lambda path, shape: place)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(opened.model.params)} == {"bfloat16"}
        assert {next(iter(leaf.devices())).id for leaf in jax.tree.leaves(opened.model.params)} == {1}


def test_every_token_that_ends_a_text(places, tmp_path):
    _, folder = places
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps({"eos_token_id": [0, 5]}))
    try:
        assert open_model(folder).eos == (0, 5)
        settings.write_text("{")
        with pytest.raises(InvalidFile, match="not JSON"):
            open_model(folder)
    finally:
        settings.unlink()


def test_bytes_in_the_files(places):
    path, folder = places
    assert stored_bytes(path) == stored_bytes(folder) == {"F32": 4 * tiny.CONFIG.parameters}
    broken = folder.parent / "broken"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(InvalidFile, match="header cannot be read"):
        stored_bytes(broken)


def test_the_hub(places, monkeypatch):
    import huggingface_hub

    asked = {}

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        return str(places[1])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert open_model("owner/name@v1.2").model.config.width == 16
    assert (asked["name"], asked["revision"]) == ("owner/name", "v1.2")
    assert not any(pattern.endswith((".bin", ".pt")) or pattern == "*" for pattern in asked["allow_patterns"])
    assert asked["ignore_patterns"] == ["*/*"]

    def offline(name, **options):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(InvalidOption, match=r"no network.*hf download owner/name --local-dir FOLDER"):
        locate("owner/name")


def test_names_that_are_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    for name, kind, words in (
        ("smollm3", InvalidOption, "no folder and no .gguf file here, and none of: smollm2"),
        ("absent.gguf", InvalidFile, "no such file"),
        ("./absent/folder", InvalidOption, "no folder"),
        ("weights.bin", InvalidFile, "expected a folder with config.json, or a .gguf file"),
        ("empty", InvalidFile, "config.json"),
    ):
        with pytest.raises(kind, match=words):
            open_model(name)


def test_prompts_with_and_without_a_template(places, tmp_path):
    tokenizer = load_tokenizer(places[1])
    read = lambda prompt, **options: tokenizer.decode(encode_prompt(tokenizer, prompt, **options))
    assert read("hi", as_message=True) == "<|start|>user: hi<|end|><|start|>assistant: "
    told = read("hi", as_message=True, system="be kind")
    assert told.startswith("<|start|>system: be kind<|end|><|start|>user: hi")
    assert read([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]).count("<|start|>") == 3
    assert read("hi") == "hi"
    assert encode_prompt(tokenizer, "") == [1]  # the token that begins a text
    with pytest.raises(InvalidOption, match="a system message needs messages"):
        encode_prompt(tokenizer, "hi", system="x")
    plain = load_tokenizer(tiny.write_gguf(tmp_path / "plain.gguf", template=None, first=True))
    assert encode_prompt(plain, "the") == [1, TOKEN["the"]]
    with pytest.raises(InvalidOption, match="no chat template"):
        encode_prompt(plain, "hi", as_message=True)


def test_a_folder_has_the_tokenizer_of_its_file_whatever_its_family(tmp_path):
    """Words in a tokenizer.json beside a Qwen2, whose own class would read it as merges of bytes."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "left": 3, "right": 4}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer("right left up")["input_ids"] == [4, 3, 0]
    assert tokenizer.eos_token_id == 2


TOKEN = {token: number for number, token in enumerate(tiny.TOKENS)}


def test_how_a_text_is_cut_follows_the_file(tmp_path):
    """Two digits merge where the cut keeps them together, and stay apart where it takes each by itself."""
    pair, apart = [TOKEN["19"]], [TOKEN["1"], TOKEN["9"]]
    for pre, expected in (("smollm", apart), ("qwen2", apart), ("default", pair), ("llama-bpe", pair)):
        assert load_tokenizer(tiny.write_gguf(tmp_path / f"{pre}.gguf", pre=pre))("19").input_ids == expected


def test_tokenizers_that_are_not_implemented_are_refused(tmp_path):
    with pytest.raises(InvalidOption, match=r"ggml\.pre of m\.gguf is 'viking'; implemented are default"):
        load_tokenizer(tiny.write_gguf(tmp_path / "m.gguf", pre="viking"))
    with pytest.raises(InvalidOption, match=r"ggml\.model of m\.gguf is 'llama'"):
        load_tokenizer(tiny.write_gguf(tmp_path / "m.gguf", kind="llama"))
    with pytest.raises(InvalidFile, match="no tokenizer that transformers reads"):
        load_tokenizer(tmp_path)


def test_the_hub_patterns_hold_the_tokenizers_files():
    assert set(sources.TOKENIZER_FILES) <= set(sources.HUB_FILES)
