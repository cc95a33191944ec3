"""What a decoder is, as one frozen record; no class per family.

`read_config` makes it from what Hugging Face folders hold (`config.json`, old and new spellings of rope). What is not
implemented is refused by name, with what is: a silently wrong rope or window is the worst failure of a loader.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pdopt.errors import InvalidFile, InvalidOption

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ROPES = ("default", "llama3")


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions: entry pair i of a head turns by `position * f_i`, `f_i = theta^(-2i / head_dim)`.

    `kind="llama3"` slows the long waves by `factor` (Llama 3.1, 2024): with wavelength `w = 2 pi / f`, f stays where
    `w < original / high`, becomes `f / factor` where `w > original / low`, and blends in between.
    """

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192

    def __post_init__(self) -> None:
        if self.kind not in ROPES:
            raise InvalidOption(f"rope_type is {self.kind!r}; implemented are {', '.join(ROPES)}")

    def frequencies(self, head_dim: int) -> list[float]:
        """The `head_dim / 2` angles a position.

        Example:
            >>> Rope(theta=100.0).frequencies(4)
            [1.0, 0.1]
        """
        plain = [self.theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
        return plain if self.kind == "default" else [self._slowed(f) for f in plain]

    def _slowed(self, f: float) -> float:
        wave = 2 * math.pi / f
        if wave < self.original / self.high:
            return f
        if wave > self.original / self.low:
            return f / self.factor
        share = (self.original / wave - self.low) / (self.high - self.low)
        return (1 - share) * f / self.factor + share * f


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and switches of a pre-norm decoder with grouped queries, rotary positions and a gated MLP.

    Attributes:
        vocabulary, width, depth, hidden: sizes; `hidden` is the width of the MLP.
        heads, kv_heads, head_dim: `heads` is a multiple of `kv_heads`; head_dim need not be `width / heads`.
        rope: rotary positions.
        norm_epsilon: added to the mean square.
        qkv_bias, output_bias, mlp_bias: biases of those projections.
        qk_norm: RMSNorm of each query and key head before rope (Qwen3).
        tied: the head is the transposed embedding.
        positions: longest text the model was made for.
        family: Hugging Face's `model_type`, for export.
        bos, eos, pad: token ids; eos may be several.

    Raises:
        InvalidOption: a size below 1, heads not a multiple of kv_heads, an odd head_dim, an unknown family.

    Example:
        >>> DecoderConfig(vocabulary=512, width=64, depth=2, heads=4, kv_heads=2, head_dim=16, hidden=128).parameters
        106816
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    rope: Rope = Rope()
    norm_epsilon: float = 1e-6
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tied: bool = True
    positions: int = 32_768
    family: str = "llama"
    bos: int | None = None
    eos: tuple[int, ...] = ()
    pad: int | None = None

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "depth", "heads", "kv_heads", "head_dim", "hidden", "positions"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise InvalidOption(f"{name} is {getattr(self, name)!r}; expected an integer >= 1")
        if self.heads % self.kv_heads:
            raise InvalidOption(f"heads is {self.heads}; expected a multiple of kv_heads, {self.kv_heads}")
        if self.head_dim % 2:
            raise InvalidOption(f"head_dim is {self.head_dim}; expected an even number: rope turns pairs")
        if self.family not in FAMILIES:
            raise InvalidOption(f"model_type is {self.family!r}; implemented are {', '.join(FAMILIES)}")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Path of every parameter -> shape; layers are stacked on the first axis of `layers/...`."""
        w, d, h, k, e, f = self.width, self.depth, self.heads, self.kv_heads, self.head_dim, self.hidden
        layer: dict[str, tuple[int, ...]] = {
            "attention_norm": (w,),
            "attention/q": (w, h, e), "attention/k": (w, k, e), "attention/v": (w, k, e), "attention/o": (h, e, w),
            "mlp_norm": (w,),
            "mlp/gate": (w, f), "mlp/up": (w, f), "mlp/down": (f, w),
        }  # fmt: skip
        if self.qkv_bias:
            layer |= {"attention/q_bias": (h, e), "attention/k_bias": (k, e), "attention/v_bias": (k, e)}
        if self.output_bias:
            layer |= {"attention/o_bias": (w,)}
        if self.qk_norm:
            layer |= {"attention/q_norm": (e,), "attention/k_norm": (e,)}
        if self.mlp_bias:
            layer |= {"mlp/gate_bias": (f,), "mlp/up_bias": (f,), "mlp/down_bias": (w,)}
        whole = {"embed": (self.vocabulary, w), "norm": (w,)}
        if not self.tied:
            whole |= {"head": (w, self.vocabulary)}
        return whole | {f"layers/{name}": (d, *shape) for name, shape in layer.items()}

    @property
    def parameters(self) -> int:
        """How many numbers the model has; a tied head counts once."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def cache_bytes_per_token(self) -> int:
        """Keys and values of one token in float32, all layers."""
        return 4 * 2 * self.depth * self.kv_heads * self.head_dim


def read_config(source: Any) -> DecoderConfig:
    """A `DecoderConfig` from a folder or `config.json`, a dictionary, or a transformers config object.

    Raises:
        InvalidFile: no such file, or not JSON. InvalidOption: a family or option that is not implemented.

    Example:
        >>> read_config({"model_type": "qwen2", "vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2,
        ...              "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
        ...              "rope_theta": 1e6, "tie_word_embeddings": True}).rope
        Rope(theta=1000000.0, kind='default', factor=1.0, low=1.0, high=4.0, original=8192)
    """
    if isinstance(source, str | Path):
        return _from_dict(_from_file(Path(source)))
    return _from_dict(source if isinstance(source, Mapping) else source.to_dict())


def _from_file(path: Path) -> Mapping[str, Any]:
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise InvalidFile(path, "no such file; expected a model folder with config.json")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise InvalidFile(path, f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidFile(path, f"holds a {type(found).__name__}; expected an object with model_type")
    return found


def _from_dict(d: Mapping[str, Any]) -> DecoderConfig:
    family = d.get("model_type")
    if family not in FAMILIES:
        raise InvalidOption(f"model_type is {family!r}; implemented are {', '.join(FAMILIES)}")
    missing = [name for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                                 "intermediate_size") if d.get(name) is None]  # fmt: skip
    if missing:
        raise InvalidOption(f"the configuration lacks {', '.join(missing)}")
    _refuse_windows(d)
    if d.get("hidden_act", "silu") != "silu":
        raise InvalidOption(f"hidden_act is {d['hidden_act']!r}; implemented is silu")
    heads, width = d["num_attention_heads"], d["hidden_size"]
    bias = bool(d.get("attention_bias") or False)
    return DecoderConfig(
        vocabulary=d["vocab_size"], width=width, depth=d["num_hidden_layers"], heads=heads,
        kv_heads=d.get("num_key_value_heads") or heads, head_dim=d.get("head_dim") or width // heads,
        hidden=d["intermediate_size"], rope=_rope(d), norm_epsilon=d.get("rms_norm_eps", 1e-6),
        qkv_bias=True if family == "qwen2" else bias, output_bias=False if family == "qwen2" else bias,
        mlp_bias=bool(d.get("mlp_bias") or False), qk_norm=family == "qwen3",
        tied=bool(d.get("tie_word_embeddings", False)), positions=d.get("max_position_embeddings", 32_768),
        family=family, bos=d.get("bos_token_id"), eos=_ids(d.get("eos_token_id")), pad=d.get("pad_token_id"),
    )  # fmt: skip


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _rope(d: Mapping[str, Any]) -> Rope:
    """Rope from `rope_parameters` (transformers 5) or from `rope_theta` and `rope_scaling` (older folders)."""
    found = {**(d.get("rope_scaling") or {}), **(d.get("rope_parameters") or {})}
    kind = found.get("rope_type", found.get("type", "default"))
    theta = found.get("rope_theta", d.get("rope_theta", 10_000.0))
    if found.get("partial_rotary_factor", d.get("partial_rotary_factor") or 1.0) != 1.0:
        raise InvalidOption("partial_rotary_factor is not 1; implemented is rope on whole heads")
    if kind != "llama3":
        return Rope(float(theta), kind)
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    missing = [name for name in names if name not in found]
    if missing:
        raise InvalidOption(f"rope_type llama3 lacks {', '.join(missing)}")
    factor, low, high, original = (found[name] for name in names)
    return Rope(float(theta), kind, float(factor), float(low), float(high), int(original))


def _refuse_windows(d: Mapping[str, Any]) -> None:
    """Sliding windows that would act: Mistral's own, or Qwen's where switched on."""
    window = d.get("sliding_window")
    acts = window is not None and (d["model_type"] == "mistral" or d.get("use_sliding_window"))
    if acts and window < d.get("max_position_embeddings", math.inf):
        raise InvalidOption(f"sliding_window is {window}; implemented is full attention (sliding_window null)")
    kinds = set(d.get("layer_types") or ()) - {"full_attention"}
    if kinds:
        raise InvalidOption(f"layer_types has {', '.join(sorted(kinds))}; implemented is full_attention")
