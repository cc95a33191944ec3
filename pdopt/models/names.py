"""One table of names between Hugging Face checkpoints and ours; loading and exporting read it in two directions.

Hugging Face stores a linear map as `[out, in]`; ours is `[in, out]` with the heads apart. A rule says how one tensor of
one layer goes over, and back; layers are stacked by whoever reads the table.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np

from pdopt.errors import InvalidOption
from pdopt.models.config import DecoderConfig

# `(name, slices) -> array`: the wanted rows and columns of a tensor.
Read: TypeAlias = Callable[[str, tuple[slice, ...]], np.ndarray]
# Buffers that some exporters write though they hold no parameter.
IGNORED = ("rotary_emb.inv_freq", "self_attn.bias", "self_attn.masked_bias")


class Rule(NamedTuple):
    """How one tensor goes over, as data that is read in both directions.

    Attributes:
        name: the tensor's there; `{i}` is the layer, `{e}` the expert.
        ours: shape of our array of one layer (of one expert).
        groups: for each axis there the axes of ours that make it, flattened: `((1, 2), (0,))` takes `[in, heads, e]`
            to `[heads e, in]`.
        experts: of experts, which Hugging Face stores one by one, this many tensors make one of ours; 0: no experts.
    """

    name: str
    ours: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    experts: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape there."""
        return tuple(math.prod(self.ours[axis] for axis in group) for group in self.groups)

    def names(self, layer: int) -> list[str]:
        """The names of the tensors of one layer."""
        return [self.name.format(i=layer, e=e) for e in range(self.experts or 1)]

    def inward(self, tensor: np.ndarray, sizes: tuple[int, ...] | None = None) -> np.ndarray:
        """Our array from a whole tensor, or from the part of it that holds `sizes` of ours."""
        order = [axis for group in self.groups for axis in group]
        sizes = self.ours if sizes is None else sizes
        return tensor.reshape([sizes[axis] for axis in order]).transpose(np.argsort(order))

    def outward(self, value: np.ndarray) -> np.ndarray:
        """The tensor from our array."""
        order = [axis for group in self.groups for axis in group]
        return value.transpose(order).reshape(self.shape)

    def read(self, tensor: Read, layer: int, index: tuple[slice, ...]) -> np.ndarray:
        """The part `index` of our array of one layer; of each tensor no more is read than the rows and columns of it.

        Where a group's first axis alone is cut, its part is one run of the tensor's axis; else the axis is read whole.
        """
        if self.experts:
            chosen, inner = self.names(layer)[index[0]], index[1:]
            return np.stack([self._part(tensor, name, inner) for name in chosen])
        return self._part(tensor, self.names(layer)[0], index)

    def write(self, value: np.ndarray, layer: int) -> Iterator[tuple[str, np.ndarray]]:
        """Names and tensors of one layer, from our array."""
        for name, part in zip(self.names(layer), value if self.experts else [value]):
            yield name, self.outward(part)

    def _part(self, tensor: Read, name: str, index: tuple[slice, ...]) -> np.ndarray:
        bounds = [part.indices(size)[:2] for part, size in zip(index, self.ours)]
        runs, sizes, rest = [], list(self.ours), list(index)
        for first, *others in self.groups:
            begin, end, step = 0, self.ours[first], math.prod(self.ours[axis] for axis in others)
            if all(bounds[axis] == (0, self.ours[axis]) for axis in others):
                begin, end = bounds[first]
                sizes[first], rest[first] = end - begin, slice(None)
            runs.append(slice(begin * step, end * step))
        return self.inward(tensor(name, tuple(runs)), tuple(sizes))[tuple(rest)]


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
        return Rule(f"{prefix}{module}.bias", shape, (tuple(range(len(shape))),))
    inputs = 2 if name == "o" else 1
    return _transposed(f"{prefix}{_MODULES[name]}.weight", shape, inputs)


def _same(name: str, shape: tuple[int, ...]) -> Rule:
    return Rule(name, shape, tuple((axis,) for axis in range(len(shape))))


def _transposed(name: str, shape: tuple[int, ...], inputs: int, experts: int = 0) -> Rule:
    """`[out, in]` there; here the first `inputs` axes are the inputs."""
    return Rule(name, shape, (tuple(range(inputs, len(shape))), tuple(range(inputs))), experts)
