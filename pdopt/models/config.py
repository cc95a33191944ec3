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

from pdopt.errors import InvalidFile, InvalidOption, require_range, unknown_name

FAMILIES = ("gemma2", "gemma3_text", "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe")
ROPES = ("default", "linear", "llama3")
# Hugging Face's names of the activations that we have.
ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions: entry pair i of a head turns by `position * f_i`, `f_i = theta^(-2i / head_dim)`.

    `kind="linear"` divides every f by `factor` (Chen et al. 2023, arXiv 2306.15595).
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
        if self.kind == "linear":
            return [f / self.factor for f in plain]
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
class Mixture:
    """A mixture of experts in place of the MLP (`models/experts.py`): each token goes to `top` of `count` experts.

    Attributes:
        count, top: experts, and how many of them a token takes.
        hidden: width inside an expert.
        scores: "softmax" or "sigmoid" of the router's logits.
        normalise: divide the chosen scores of a token by their sum (`norm_topk_prob`).

    Raises:
        InvalidOption: a size below 1, or top above count.
    """

    count: int
    top: int
    hidden: int
    scores: str = "softmax"
    normalise: bool = True

    def __post_init__(self) -> None:
        for name in ("count", "top", "hidden"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise InvalidOption(f"{name} is {getattr(self, name)!r}; expected an integer >= 1")
        if self.top > self.count:
            raise InvalidOption(f"top is {self.top}; expected at most {self.count}, the number of experts")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and switches of a pre-norm decoder with grouped queries, rotary positions and a gated MLP.

    Attributes:
        vocabulary, width, depth, hidden: sizes; `hidden` is the width of the MLP.
        heads, kv_heads, head_dim: `heads` is a multiple of `kv_heads`; head_dim need not be `width / heads`.
        rope: rotary positions.
        norm_epsilon: added to the mean square.
        qkv_bias, output_bias, mlp_bias: biases of those projections.
        qk_norm: RMSNorm of each query and key head before rope (Qwen3, Gemma 3).
        experts: a mixture of experts in place of every MLP, or None.
        activation: of the gate, "silu" or "gelu_tanh" (the tanh form).
        norm_offset: norms multiply by `1 + w` instead of w (Gemma).
        post_norms: norms after attention and MLP too, before the residual (Gemma).
        embed_scaled: embeddings are multiplied by `sqrt(width)` (Gemma).
        query_scalar: scores are `q k / sqrt(query_scalar)`; None: head_dim.
        attention_cap, logit_cap: c of `c tanh(x / c)` on attention scores and on logits (Gemma 2), or None.
        window: how many columns back local layers see, themselves included; None where no layer is local.
        local: which layers are local, one bool each; () where none is.
        local_rope: rotary positions of local layers (Gemma 3); None: as in the others.
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
    experts: Mixture | None = None
    activation: str = "silu"
    norm_offset: bool = False
    post_norms: bool = False
    embed_scaled: bool = False
    query_scalar: int | None = None
    attention_cap: float | None = None
    logit_cap: float | None = None
    window: int | None = None
    local: tuple[bool, ...] = ()
    local_rope: Rope | None = None
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
        if self.activation not in ACTIVATIONS:
            raise unknown_name("activation", self.activation, ACTIVATIONS)
        if self.experts is not None and (self.mlp_bias or self.activation != "silu"):
            raise InvalidOption("experts with mlp_bias or another activation than silu; implemented are plain ones")
        if len(self.local) not in (0, self.depth) or any(self.local) != (self.window is not None):
            raise InvalidOption(f"window is {self.window} and local {self.local}; expected a bool for each of "
                                f"{self.depth} layers, and a window where one is local")  # fmt: skip
        for name in ("window", "attention_cap", "logit_cap", "query_scalar"):
            if getattr(self, name) is not None:
                require_range(name, getattr(self, name), 0.0, open_low=True)

    @property
    def mixed(self) -> bool:
        """Whether local layers and others alternate."""
        return any(self.local) and not all(self.local)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Path of every parameter -> shape; layers are stacked on the first axis of `layers/...`."""
        w, d, h, k, e, f = self.width, self.depth, self.heads, self.kv_heads, self.head_dim, self.hidden
        layer: dict[str, tuple[int, ...]] = {
            "attention_norm": (w,),
            "attention/q": (w, h, e), "attention/k": (w, k, e), "attention/v": (w, k, e), "attention/o": (h, e, w),
            "mlp_norm": (w,),
        }  # fmt: skip
        if self.experts is None:
            layer |= {"mlp/gate": (w, f), "mlp/up": (w, f), "mlp/down": (f, w)}
        else:
            n, m = self.experts.count, self.experts.hidden
            layer |= {"experts/router": (w, n), "experts/gate": (n, w, m), "experts/up": (n, w, m),
                      "experts/down": (n, m, w)}  # fmt: skip
        if self.post_norms:
            layer |= {"attention_post_norm": (w,), "mlp_post_norm": (w,)}
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
    if d.get("auto_map"):
        raise InvalidOption(
            f"auto_map is {d['auto_map']!r}: the model brings code of its own, which is never run, and need not be the "
            f"{family} that model_type names"
        )
    missing = [name for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                                 "intermediate_size") if d.get(name) is None]  # fmt: skip
    if missing:
        raise InvalidOption(f"the configuration lacks {', '.join(missing)}")
    gemma = family.startswith("gemma")
    named = (d.get("hidden_activation") if gemma else None) or d.get("hidden_act", "silu")
    wanted = "gelu_tanh" if gemma else "silu"
    if named != ACTIVATIONS[wanted]:
        raise InvalidOption(f"hidden_act is {named!r}; implemented for {family} is {ACTIVATIONS[wanted]}")
    heads, width, depth = d["num_attention_heads"], d["hidden_size"], d["num_hidden_layers"]
    bias = bool(d.get("attention_bias") or False)
    window, local = _windows(d, depth)
    return DecoderConfig(
        vocabulary=d["vocab_size"], width=width, depth=depth, heads=heads,
        kv_heads=d.get("num_key_value_heads") or heads,
        head_dim=d.get("head_dim") or (256 if gemma else width // heads),
        hidden=d["intermediate_size"], rope=_rope(_layer_rope(d, "full_attention")),
        norm_epsilon=d.get("rms_norm_eps", 1e-6),
        qkv_bias=True if family == "qwen2" else bias, output_bias=False if family == "qwen2" else bias,
        mlp_bias=bool(d.get("mlp_bias") or False), qk_norm=family in ("qwen3", "qwen3_moe", "gemma3_text"),
        experts=_experts(d), activation=wanted, norm_offset=gemma, post_norms=gemma, embed_scaled=gemma,
        query_scalar=(d.get("query_pre_attn_scalar") or 256) if gemma else None,
        attention_cap=d.get("attn_logit_softcapping", 50.0 if family == "gemma2" else None) if gemma else None,
        logit_cap=d.get("final_logit_softcapping", 30.0 if family == "gemma2" else None) if gemma else None,
        window=window, local=local,
        local_rope=_rope(_layer_rope(d, "sliding_attention")) if family == "gemma3_text" else None,
        tied=bool(d.get("tie_word_embeddings", gemma)), positions=d.get("max_position_embeddings", 32_768),
        family=family, bos=d.get("bos_token_id"), eos=_ids(d.get("eos_token_id")), pad=d.get("pad_token_id"),
    )  # fmt: skip


def _experts(d: Mapping[str, Any]) -> Mixture | None:
    """The mixture of experts of the two families that have one."""
    if d["model_type"] == "mixtral":
        return Mixture(d.get("num_local_experts", 8), d.get("num_experts_per_tok", 2), d["intermediate_size"])
    if d["model_type"] != "qwen3_moe":
        return None
    dense = d.get("mlp_only_layers") or [i for i in range(d["num_hidden_layers"])
                                         if (i + 1) % (d.get("decoder_sparse_step") or 1)]  # fmt: skip
    if dense:
        raise InvalidOption(f"layers {dense} have no experts; implemented are experts in every layer")
    return Mixture(
        d.get("num_experts") or d.get("num_local_experts") or 128, d.get("num_experts_per_tok", 8),
        d.get("moe_intermediate_size", 768), normalise=bool(d.get("norm_topk_prob", False)),
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
    names = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor",
                                               "original_max_position_embeddings")}.get(kind, ())  # fmt: skip
    missing = [name for name in names if name not in found]
    if missing:
        raise InvalidOption(f"rope_type {kind} lacks {', '.join(missing)}")
    if kind != "llama3":
        return Rope(float(theta), kind, float(found["factor"]) if names else 1.0)
    factor, low, high, original = (found[name] for name in names)
    return Rope(float(theta), kind, float(factor), float(low), float(high), int(original))


def _layer_rope(d: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """The part of a configuration that says the rope of one kind of layer; Gemma 3 has two."""
    if d["model_type"] != "gemma3_text":
        return d
    ropes = d.get("rope_parameters") or {}
    if kind in ropes or "full_attention" in ropes:
        return {"rope_theta": 1e6 if kind == "full_attention" else 1e4, "rope_parameters": ropes.get(kind)}
    if kind == "sliding_attention":
        return {"rope_theta": d.get("rope_local_base_freq", 1e4)}
    return {"rope_theta": d.get("rope_theta", 1e6), "rope_scaling": d.get("rope_scaling")}


def _windows(d: Mapping[str, Any], depth: int) -> tuple[int | None, tuple[bool, ...]]:
    """The window and the layers it holds in, as each family's own configuration class reads them."""
    family, window, kinds = d["model_type"], d.get("sliding_window"), d.get("layer_types")
    if unknown := sorted(set(kinds or ()) - {"full_attention", "sliding_attention"}):
        raise InvalidOption(f"layer_types has {', '.join(unknown)}; implemented are full_attention, sliding_attention")
    if d.get("use_bidirectional_attention"):
        raise InvalidOption("use_bidirectional_attention is true; implemented is causal attention")
    gemma = family.startswith("gemma")
    if gemma:
        every = 2 if family == "gemma2" else d.get("sliding_window_pattern") or 6
        window = window or 4096
        local = tuple(kind == "sliding_attention" for kind in kinds) if kinds else tuple(
            (i + 1) % every > 0 for i in range(depth)
        )  # fmt: skip
    elif family in ("mistral", "mixtral"):
        local = (window is not None,) * depth
    elif family.startswith("qwen") and d.get("use_sliding_window") and window is not None:
        first = d.get("max_window_layers", 28)
        local = (
            tuple(kind == "sliding_attention" for kind in kinds) if kinds else tuple(i >= first for i in range(depth))
        )
    elif family == "llama" and "sliding_attention" in (kinds or ()):
        raise InvalidOption("layer_types has sliding_attention; implemented for llama is full_attention")
    else:
        local = ()
    # A window as long as the longest text never acts; Gemma's local layers differ in more than the window.
    acts = any(local) and (gemma or window < d.get("max_position_embeddings", math.inf))
    return (window, local) if acts else (None, ())
