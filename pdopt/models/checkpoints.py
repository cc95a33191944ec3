"""Hugging Face folders in and out: safetensors only, read lazily, placed straight into their sharding.

`load` never holds two full copies on the host: each array is made by reading the parts its devices need. Pickled
weights (`.bin`, `.pt`, `.ckpt`) can run code when read and are refused by name. Every tensor of the files must be used,
and every parameter found: a checkpoint that almost fits is an error.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pdopt.errors import InvalidFile, InvalidOption
from pdopt.models.config import ACTIVATIONS, DecoderConfig, Rope, read_config
from pdopt.models.decoder import DEFAULT, Decoder, Execution, put
from pdopt.models.names import IGNORED, Rule, rules

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
_FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "F64": np.float64}


def load(
    folder: str | Path,
    *,
    dtype: Any = jnp.float32,
    sharding: Callable[[str, tuple[int, ...]], Any] | None = None,
    execution: Execution = DEFAULT,
) -> Decoder:
    """The model of a local Hugging Face folder.

    Args:
        folder: holds `config.json` and `model.safetensors` (or shards with their index).
        dtype: of the parameters, whatever the files have.
        sharding: path, shape -> sharding of each parameter; None: JAX's default device.
        execution: how the decoder runs.

    Raises:
        InvalidFile: a file that is missing, truncated, pickled, or does not fit the configuration; names the tensor.
        InvalidOption: a family or option that is not implemented.
    """
    folder = Path(folder)
    config = read_config(folder)
    with _opened(folder) as tensors:
        _match(folder, config, rules(config), tensors)

        def tensor(name: str) -> np.ndarray:
            try:
                return tensors[name].get_tensor(name)
            except SafetensorError as error:
                raise InvalidFile(folder, f"tensor {name} cannot be read: {error}") from error

        return Decoder(assemble(config, tensor, dtype, sharding), config, execution)


def assemble(
    config: DecoderConfig, tensor: Callable[[str], np.ndarray], dtype: Any,
    sharding: Callable[[str, tuple[int, ...]], Any] | None,
) -> dict[str, Any]:  # fmt: skip
    """The parameters, from `tensor(name)` in Hugging Face's names and layout; each placed as soon as it is read.

    Args:
        config: what the parameters are.
        tensor: reads one tensor; called once for each device that needs a part of it.
        dtype: of the parameters.
        sharding: path, shape -> sharding, or None.
    """
    params: dict[str, Any] = {}
    for path, rule in rules(config).items():
        shape = config.shapes[path]
        read = _reader(rule, tensor, shape, path.startswith("layers/"), np.dtype(dtype))
        if sharding is None:
            value = jnp.asarray(read(tuple(slice(None) for _ in shape)))
        else:
            value = jax.make_array_from_callback(shape, sharding(path, shape), read)
        put(params, path, value)
    return params


def _reader(
    rule: Rule, tensor: Callable[[str], np.ndarray], shape: tuple[int, ...], stacked: bool, dtype: np.dtype
) -> Callable[[Any], np.ndarray]:
    """`index -> array`: the wanted part of a parameter, layer by layer."""

    def read(index: Any) -> np.ndarray:
        if not stacked:
            return np.asarray(rule.inward(tensor(rule.name))[index], dtype)
        layers = range(*index[0].indices(shape[0]))
        parts = (rule.read(tensor, i)[tuple(index[1:])] for i in layers)
        return np.stack([np.asarray(part, dtype) for part in parts])

    return read


@contextmanager
def _opened(folder: Path) -> Iterator[dict[str, Any]]:
    """Every tensor's name -> the open file that holds it."""
    with ExitStack() as stack:
        tensors: dict[str, Any] = {}
        for path in _files(folder):
            try:
                file = stack.enter_context(safe_open(path, "np"))
            except (SafetensorError, OSError) as error:
                raise InvalidFile(path, f"not a whole safetensors file: {error}") from error
            names = file.keys()
            if twice := sorted(set(names) & tensors.keys()):
                raise InvalidFile(path, f"tensor {twice[0]} is in two files")
            tensors |= dict.fromkeys(names, file)
        yield tensors


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, from its index where it has one."""
    if not folder.is_dir():
        raise InvalidFile(folder, "no such folder; expected a model folder with config.json and model.safetensors")
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidFile(index, "not an index: expected JSON with weight_map, tensor -> file") from error
        if any(Path(name).name != name for name in names):
            raise InvalidFile(index, "names a file outside its folder")
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InvalidFile(folder, f"{missing[0]} is missing, though {INDEX} names it")
    if not names:
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
        if pickled:
            raise InvalidFile(folder, f"{pickled[0]} is pickled, which can run code; expected model.safetensors")
        raise InvalidFile(folder, f"no weights; expected model.safetensors or {INDEX}")
    return [folder / name for name in names]


def _match(folder: Path, config: DecoderConfig, table: dict[str, Rule], tensors: dict[str, Any]) -> None:
    """The names, shapes and types of the files are exactly those of the configuration."""
    wanted: dict[str, tuple[int, ...]] = {}
    for path, rule in table.items():
        layers = range(config.depth) if path.startswith("layers/") else [0]
        wanted |= {name: rule.shape for i in layers for name in rule.names(i)}
    if missing := sorted(wanted.keys() - tensors.keys()):
        raise InvalidFile(folder, f"{len(missing)} tensors are missing, the first {missing[0]}")
    # A tied model may store its head too, as the copy that it is.
    known = {*wanted, "lm_head.weight"} if config.tied else set(wanted)
    extra = sorted(name for name in tensors.keys() - known if not name.endswith(IGNORED))
    if extra:
        raise InvalidFile(folder, f"{len(extra)} tensors are unknown to {config.family}, the first {extra[0]}")
    for name, shape in wanted.items():
        piece = tensors[name].get_slice(name)
        if tuple(piece.get_shape()) != shape:
            raise InvalidFile(folder, f"{name} has shape {tuple(piece.get_shape())}; config.json says {shape}")
        if piece.get_dtype() not in _FLOATS:
            raise InvalidFile(folder, f"{name} has dtype {piece.get_dtype()}; expected {', '.join(_FLOATS)}")


def export(
    model: Decoder, folder: str | Path, *, dtype: Any = None, source: str | Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:  # fmt: skip
    """Write a folder that `transformers` loads: `config.json`, safetensors shards, index, tokenizer files.

    Args:
        model: the decoder.
        folder: made if absent; must be empty.
        dtype: of the files; None keeps the parameters'.
        source: the folder the model came from: its `config.json` is kept (dtype updated) and tokenizer files copied.
        shard_bytes: largest file.

    Raises:
        InvalidOption: the folder has files in it, or the model has adapters or router prices, which it cannot hold.
    """
    if model.balance is not None and np.any(np.asarray(model.balance.y)):
        raise InvalidOption(
            f"model has router prices, for which {model.config.family} has no name; replace(balance=None) exports it "
            "without them, and it then routes otherwise"
        )
    if model.adapters is not None:
        raise InvalidOption(
            "model has adapters; lora.merge(model) adds them to the weights, lora.export_adapters writes them"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise InvalidOption(f"folder {folder} is not empty; expected a new one")
    kind = np.dtype(model.params["embed"].dtype if dtype is None else dtype)
    (folder / "config.json").write_text(json.dumps(_config(model.config, source, kind), indent=2))
    if source is not None:
        for name in TOKENIZER_FILES:
            if (Path(source) / name).is_file():
                shutil.copy(Path(source) / name, folder / name)
    _write(folder, model, kind, shard_bytes)


def _write(folder: Path, model: Decoder, kind: np.dtype, shard_bytes: int) -> None:
    """Shards in order of the table; one that holds everything is called model.safetensors and needs no index."""
    names: list[list[str]] = []
    for number, shard in enumerate(_shards(_outward(model, kind), shard_bytes), 1):
        save_file(shard, folder / f"part-{number}.safetensors", metadata={"format": "pt"})
        names.append(list(shard))
    if len(names) == 1:
        (folder / "part-1.safetensors").rename(folder / "model.safetensors")
        return
    where = {}
    for number, inside in enumerate(names, 1):
        name = f"model-{number:05d}-of-{len(names):05d}.safetensors"
        (folder / f"part-{number}.safetensors").rename(folder / name)
        where |= dict.fromkeys(inside, name)
    total = model.config.parameters * kind.itemsize
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2))


def _shards(tensors: Iterator[tuple[str, np.ndarray]], limit: int) -> Iterator[dict[str, np.ndarray]]:
    """Consecutive tensors gathered into shards of at most `limit` bytes (one tensor at least)."""
    shard: dict[str, np.ndarray] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


def _outward(model: Decoder, kind: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    for path, rule in rules(model.config).items():
        value = model.params
        for part in path.split("/"):
            value = value[part]
        if path.startswith("layers/"):
            for i in range(model.config.depth):
                for name, tensor in rule.write(np.asarray(value[i]), i):
                    yield name, np.ascontiguousarray(tensor, kind)
        else:
            yield rule.name, np.ascontiguousarray(rule.outward(np.asarray(value)), kind)


_CLASSES = {
    "gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM", "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM", "mixtral": "MixtralForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM",
}  # fmt: skip


def _config(config: DecoderConfig, source: str | Path | None, kind: np.dtype) -> dict[str, Any]:
    """`config.json`: the source's own, or one written from ours."""
    if source is not None:
        found = json.loads((Path(source) / "config.json").read_text())
        if read_config(found) != config:
            raise InvalidOption(f"source {source} has another configuration than the model")
        return {
            **{k: v for k, v in found.items() if k not in ("torch_dtype", "quantization_config")},
            "dtype": kind.name,
        }
    eos: Any = list(config.eos) if len(config.eos) > 1 else (config.eos[0] if config.eos else None)
    written = {
        "architectures": [_CLASSES[config.family]], "model_type": config.family, "vocab_size": config.vocabulary,
        "hidden_size": config.width, "num_hidden_layers": config.depth, "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim, "intermediate_size": config.hidden,
        "hidden_act": ACTIVATIONS[config.activation], "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied, "max_position_embeddings": config.positions,
        "rope_parameters": _ropes(config), "attention_bias": config.output_bias,
        "mlp_bias": config.mlp_bias, "bos_token_id": config.bos, "eos_token_id": eos, "pad_token_id": config.pad,
        "dtype": kind.name,
    }  # fmt: skip
    return written | _switches(config)


def _ropes(config: DecoderConfig) -> dict[str, Any]:
    """`rope_parameters`; Gemma 3 has them for each kind of layer."""
    if config.local_rope is not None:
        return {"full_attention": _rope(config.rope), "sliding_attention": _rope(config.local_rope)}
    return _rope(config.rope)


def _rope(rope: Rope) -> dict[str, Any]:
    found: dict[str, Any] = {"rope_type": rope.kind, "rope_theta": rope.theta}
    if rope.kind == "linear":
        found["factor"] = rope.factor
    if rope.kind == "llama3":
        found |= {
            "factor": rope.factor, "low_freq_factor": rope.low, "high_freq_factor": rope.high,
            "original_max_position_embeddings": rope.original,
        }  # fmt: skip
    return found


def _switches(config: DecoderConfig) -> dict[str, Any]:
    """What only some families write: windows, experts, Gemma's caps."""
    found: dict[str, Any] = {}
    if config.family in ("mistral", "mixtral") or config.local:
        found["sliding_window"] = config.window
    if config.local:
        found["layer_types"] = ["sliding_attention" if local else "full_attention" for local in config.local]
        if config.family.startswith("qwen"):
            found |= {"use_sliding_window": True, "max_window_layers": config.local.index(True)}
    if config.family.startswith("gemma"):
        found |= {
            "hidden_activation": ACTIVATIONS[config.activation], "query_pre_attn_scalar": config.query_scalar,
            "attn_logit_softcapping": config.attention_cap, "final_logit_softcapping": config.logit_cap,
        }  # fmt: skip
    if config.experts is not None:
        mixture = config.experts
        key = "num_local_experts" if config.family == "mixtral" else "num_experts"
        found |= {key: mixture.count, "num_experts_per_tok": mixture.top}
        if config.family == "qwen3_moe":
            found |= {"moe_intermediate_size": mixture.hidden, "norm_topk_prob": mixture.normalise,
                      "decoder_sparse_step": 1, "mlp_only_layers": []}  # fmt: skip
    return found
