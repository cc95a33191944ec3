"""One table of names between Hugging Face checkpoints and ours; loading and exporting read it in two directions.

Hugging Face stores a linear map as `[out, in]`; ours is `[in, out]` with the heads apart. A rule says how one tensor of
one layer goes over, and back; layers are stacked by whoever reads the table.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from pdopt.errors import InvalidOption
from pdopt.models.config import DecoderConfig

# Buffers that some exporters write though they hold no parameter.
IGNORED = ("rotary_emb.inv_freq", "self_attn.bias", "self_attn.masked_bias")


class Rule(NamedTuple):
    """How one tensor goes over: its name there, its shape there, and the maps in both directions (NumPy).

    Of experts, which Hugging Face stores one by one, `experts` tensors make one of ours; `{e}` in the name counts them.
    """

    name: str
    shape: tuple[int, ...]
    inward: Callable[[np.ndarray], np.ndarray]
    outward: Callable[[np.ndarray], np.ndarray]
    experts: int = 0

    def names(self, layer: int) -> list[str]:
        """The names of the tensors of one layer."""
        return [self.name.format(i=layer, e=e) for e in range(self.experts or 1)]

    def read(self, tensor: Callable[[str], np.ndarray], layer: int) -> np.ndarray:
        """Our array of one layer, from `tensor(name)`."""
        parts = [self.inward(tensor(name)) for name in self.names(layer)]
        return np.stack(parts) if self.experts else parts[0]

    def write(self, value: np.ndarray, layer: int) -> Iterator[tuple[str, np.ndarray]]:
        """Names and tensors of one layer, from our array."""
        for name, part in zip(self.names(layer), value if self.experts else [value]):
            yield name, self.outward(part)


def rules(config: DecoderConfig) -> dict[str, Rule]:
    """Our path -> rule; `{i}` in a name is the layer, `{e}` the expert.

    Example:
        >>> config = DecoderConfig(vocabulary=32, width=8, depth=1, heads=2, kv_heads=1, head_dim=4, hidden=16)
        >>> rules(config)["layers/attention/q"].name, rules(config)["layers/attention/q"].shape
        ('model.layers.{i}.self_attn.q_proj.weight', (8, 8))
    """
    return {path: _rule(config, path, shape[path.startswith("layers/") :]) for path, shape in config.shapes.items()}


_TOP = {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}
_NORMS = {
    "attention_norm": "input_layernorm.weight", "mlp_norm": "post_attention_layernorm.weight",
    "q_norm": "self_attn.q_norm.weight", "k_norm": "self_attn.k_norm.weight",
}  # fmt: skip
# Where norms stand after attention and MLP too, one of the names means another norm.
_SANDWICH = {
    **_NORMS, "attention_post_norm": "post_attention_layernorm.weight",
    "mlp_norm": "pre_feedforward_layernorm.weight", "mlp_post_norm": "post_feedforward_layernorm.weight",
}  # fmt: skip
_EXPERTS = {
    "qwen3_moe": {
        "router": "mlp.gate.weight", "gate": "mlp.experts.{e}.gate_proj.weight",
        "up": "mlp.experts.{e}.up_proj.weight", "down": "mlp.experts.{e}.down_proj.weight",
    },
    "mixtral": {
        "router": "block_sparse_moe.gate.weight", "gate": "block_sparse_moe.experts.{e}.w1.weight",
        "up": "block_sparse_moe.experts.{e}.w3.weight", "down": "block_sparse_moe.experts.{e}.w2.weight",
    },
}  # fmt: skip
_MODULES = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip


def _rule(config: DecoderConfig, path: str, shape: tuple[int, ...]) -> Rule:
    """The rule of one parameter; `shape` is that of one layer."""
    if path in _TOP:
        return _transposed(_TOP[path], shape, 1) if path == "head" else _same(_TOP[path], shape)
    name = path.rsplit("/", 1)[-1]
    prefix = "model.layers.{i}."
    norms = _SANDWICH if config.post_norms else _NORMS
    if name in norms:
        return _same(prefix + norms[name], shape)
    if "/experts/" in path:
        if config.family not in _EXPERTS:
            raise InvalidOption(
                f"model_type is {config.family!r} with experts; those with names are {', '.join(_EXPERTS)}"
            )
        stored = prefix + _EXPERTS[config.family][name]
        return _transposed(stored, shape, 1) if name == "router" else _transposed(stored, shape[1:], 1, shape[0])
    if name.endswith("_bias"):
        module = _MODULES[name.removesuffix("_bias")]
        flat = int(np.prod(shape))
        return Rule(f"{prefix}{module}.bias", (flat,), lambda t: t.reshape(shape), lambda t: t.reshape(flat))
    inputs = 2 if name == "o" else 1
    return _transposed(f"{prefix}{_MODULES[name]}.weight", shape, inputs)


def _same(name: str, shape: tuple[int, ...]) -> Rule:
    return Rule(name, shape, lambda t: t, lambda t: t)


def _transposed(name: str, shape: tuple[int, ...], inputs: int, count: int = 0) -> Rule:
    """`[out, in]` there; here the first `inputs` axes are the inputs."""
    rows, columns = int(np.prod(shape[inputs:])), int(np.prod(shape[:inputs]))
    return Rule(
        name, (rows, columns), lambda t: t.T.reshape(shape), lambda t: np.ascontiguousarray(t.reshape(columns, rows).T),
        count,
    )  # fmt: skip
