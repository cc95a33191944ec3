"""Model folders that would deceive a reader: rows 77, 79 and 81; the rest is in `tests/models/test_checkpoints.py`."""

import json
import struct

import jax
import numpy as np
import pytest

from pdopt.errors import InvalidFile, InvalidOption
from pdopt.models.checkpoints import INDEX, export, load
from pdopt.models.config import DecoderConfig
from pdopt.models.decoder import Decoder, initialise
from pdopt.models.sources import open_model
from pdopt.training.tokenizers import byte_tokenizer

CONFIG = DecoderConfig(vocabulary=16, width=8, depth=1, heads=2, kv_heads=1, head_dim=4, hidden=16, eos=(1,), pad=0)


@pytest.fixture
def folder(tmp_path):
    export(Decoder(initialise(CONFIG, jax.random.key(0)), CONFIG), tmp_path / "m")
    byte_tokenizer(["1+2=3"], vocabulary=16, alphabet="seen").save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def header_of(data):
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(header, body):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def overlapping(data):
    """The second tensor begins where the first does."""
    header, body = header_of(data)
    names = sorted((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"])
    first, second = (header[name]["data_offsets"] for name in names[:2])
    header[names[1]]["data_offsets"] = [first[0], first[0] + second[1] - second[0]]
    return with_header(header, body)


def beyond(data):
    """The last tensor ends after the file."""
    header, body = header_of(data)
    name = max((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"])
    header[name]["data_offsets"][1] += 64
    return with_header(header, body)


HARMS = {
    "absurd header length": lambda data: struct.pack("<Q", 2**60) + data[8:],
    "header is no JSON": lambda data: data[:8] + b"x" + data[9:],
    "offsets overlap": overlapping,
    "offsets beyond the end": beyond,
    "more behind it": lambda data: data + b"12345678",
}


@pytest.mark.parametrize("harm", HARMS)
def test_row_77_weights_whose_header_lies(folder, harm):
    path = folder / "model.safetensors"
    path.write_bytes(HARMS[harm](path.read_bytes()))
    with pytest.raises(InvalidFile, match=r"model\.safetensors: not a whole safetensors file"):
        load(folder)


def add(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_row_79_code_that_comes_with_a_model_is_never_run(folder, tmp_path):
    """Neither the model's nor the tokenizer's, whichever is asked for it."""
    for name in ("modeling_mine", "tokenization_mine"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    add(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "tokenization_mine.Mine"]})
    assert open_model(folder).tokenizer("1+2=").input_ids
    add(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})
    with pytest.raises(InvalidOption, match=r"auto_map is .*modeling_mine.Mine.*code of its own, which is never run"):
        open_model(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", ".."])
def test_row_81_an_index_names_no_file_outside_its_folder(folder, name):
    """Links in the folder are followed: an index cannot make them, and the hub's own cache is made of them."""
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(InvalidFile, match=r"names a file outside its folder|is missing, though"):
        load(folder)
    (folder / INDEX).unlink()
    path = folder / "model.safetensors"
    path.rename(folder.parent / "blob")
    path.symlink_to(folder.parent / "blob")
    np.testing.assert_array_equal(load(folder).params["norm"], initialise(CONFIG, jax.random.key(0))["norm"])
