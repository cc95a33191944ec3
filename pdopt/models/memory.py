"""Memory of one device, part by part, from shapes alone: nothing is allocated or compiled.

Training, with R rows of length t on a device (the batch over `data x fsdp`), n = R t, c bytes a number computed with:

    parameters, gradients, moments    each split as `sharding.parameter_specs` has it
    saved for the backward pass       depth n width c with remat "full"; more with "dots", "none"; 0 with "offload"
    one block                         what a block makes, with its gathered weights and their gradients, once
    log-probabilities                 a chunk's logits three times, the gathered head and its gradient

Inference: parameters, the copy that decoding reads (whole along `fsdp`, once a rollout), the cache, and a step's work.

What is kept is exact (the compiled program's arguments agree byte for byte); what is made on the way is an estimate of
what XLA holds at once, checked against it within a factor of two. The allocator's own reserve is not counted.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from pdopt.errors import InvalidOption, require_range
from pdopt.models.config import DecoderConfig
from pdopt.models.decoder import REMATS
from pdopt.models.log_probs import rows_at_once
from pdopt.models.sharding import RULES, parameter_specs, sizes_of


class Part(NamedTuple):
    """What one part of a program needs: its name, bytes on one device, and the formula in words."""

    name: str
    bytes: int
    how: str


class MemoryPlan(NamedTuple):
    """Bytes on one device.

    Attributes:
        sizes: axis of the mesh -> size.
        kept: parts that live from step to step: what a compiled program takes as arguments.
        made: parts that live within a step; an estimate.
    """

    sizes: dict[str, int]
    kept: tuple[Part, ...]
    made: tuple[Part, ...]

    @property
    def kept_bytes(self) -> int:
        """The sum of what is kept."""
        return sum(part.bytes for part in self.kept)

    @property
    def made_bytes(self) -> int:
        """The sum of what is made."""
        return sum(part.bytes for part in self.made)

    @property
    def total(self) -> int:
        """All of it."""
        return self.kept_bytes + self.made_bytes

    def rows(self) -> list[tuple[str, int, str]]:
        """`(part, bytes, how)` in order, the total last: what a table shows."""
        return [*map(tuple, self.kept + self.made), ("total", self.total, "on one device")]  # pyright: ignore[reportReturnType]


class _Local(NamedTuple):
    """Sizes on one device."""

    rows: int
    heads: int
    kv_heads: int
    hidden: int
    vocabulary: int


def training_memory(
    config: DecoderConfig, mesh: Any, *, rows: int, length: int, dtype: Any = np.float32, compute: Any = None,
    remat: str = "full", chunk: int | None = None, moments: int = 2, adapters: int = 0,
) -> MemoryPlan:  # fmt: skip
    """Memory of a training step: token log-probabilities, their gradient, an optimiser with moments.

    Args:
        config: the model.
        mesh: a mesh, concrete or abstract, or axis -> size.
        rows, length: of one micro-batch, over all devices.
        dtype: of parameters (moments are float32); compute: of activations, None: the same.
        remat: as in `Execution`.
        chunk: tokens whose logits exist at once, on each device; None: as `token_log_probs` chooses.
        moments: arrays of a parameter's shape in the optimiser: AdamW 2, Lion and Muon 1, SGD 0.
        adapters: numbers trained instead of the parameters (LoRA); 0: all parameters are.

    Raises:
        InvalidOption: a mesh that does not fit the model, a size out of range, an unknown remat.

    Example:
        >>> config = DecoderConfig(vocabulary=32, width=8, depth=1, heads=2, kv_heads=1, head_dim=4, hidden=16)
        >>> plan = training_memory(config, {"data": 1, "fsdp": 2, "tensor": 1}, rows=4, length=8)
        >>> [(part.name, part.bytes) for part in plan.kept]
        [('parameters', 1760), ('moments', 3524), ('batch', 64)]
    """
    for name, value in (("rows", rows), ("length", length), ("chunk", chunk)):
        if value is not None:
            require_range(name, value, 1)
    require_range("moments", moments, 0)
    require_range("adapters", adapters, 0)
    if remat not in REMATS:
        raise InvalidOption(f"remat is {remat!r}; expected one of {', '.join(REMATS)}")
    sizes, size = sizes_of(mesh), np.dtype(dtype).itemsize
    c = size if compute is None else np.dtype(compute).itemsize
    local = _local(config, sizes, rows)
    numbers = _split_numbers(config, sizes)
    trained = adapters or numbers
    kept = [
        Part("parameters", numbers * size, f"{config.parameters:,} numbers of {size} bytes, split"),
        Part("moments", moments * trained * 4 + 4, f"{moments} of each trained number, float32, and a count"),
        Part("batch", 4 * local.rows * length, f"{local.rows} of {rows} rows, int32"),
    ]
    if adapters:
        kept.insert(1, Part("adapters", adapters * size, f"{adapters:,} numbers, on every device"))
    saved, one = _saved(config, local, length, c)[remat], _block(config, local, length, c)
    layer = _layer_numbers(config, sizes)
    here = min(chunk or rows_at_once(local.vocabulary), local.rows * length)
    table = config.width * local.vocabulary
    made = [
        Part("gradients", trained * size, "as what is trained"),
        Part("saved activations", config.depth * saved, f"remat {remat}, {config.depth} layers"),
        Part("one block", one + layer * (c + 4), "its activations, gathered weights and their gradients"),
        Part("log-probabilities", 3 * here * local.vocabulary * 4 + table * (c + 4),
             f"{here} tokens' logits three times, the head and its gradient"),
    ]  # fmt: skip
    return MemoryPlan(sizes, tuple(kept), tuple(made))


def inference_memory(
    config: DecoderConfig, mesh: Any, *, rows: int, length: int, prompt: int = 1, dtype: Any = np.float32,
    compute: Any = None,
) -> MemoryPlan:  # fmt: skip
    """Memory of sampling: `rows` texts whose prompt and continuation together have `length` tokens.

    Args:
        config, mesh, dtype, compute: as in `training_memory`.
        rows, length: over all devices; prompt: tokens of it that are read at once.

    Example:
        >>> config = DecoderConfig(vocabulary=32, width=8, depth=1, heads=2, kv_heads=1, head_dim=4, hidden=16)
        >>> plan = inference_memory(config, {"data": 1, "fsdp": 1, "tensor": 1}, rows=4, length=8)
        >>> {part.name: part.bytes for part in plan.made}["cache"]
        1024
    """
    for name, value in (("rows", rows), ("length", length), ("prompt", prompt)):
        require_range(name, value, 1)
    sizes, size = sizes_of(mesh), np.dtype(dtype).itemsize
    c = size if compute is None else np.dtype(compute).itemsize
    local = _local(config, sizes, rows)
    token = 2 * config.depth * local.kv_heads * config.head_dim * c
    reading = local.rows * prompt
    scores = local.rows * local.heads * prompt * length * 4
    wide = reading * (4 * config.width + 3 * local.hidden + 2 * (local.heads + 2 * local.kv_heads) * config.head_dim)
    tables = config.width * local.vocabulary * (2 if config.tied else 1)
    kept = (
        Part("parameters", _split_numbers(config, sizes) * size, f"{config.parameters:,} numbers, split"),
        Part("batch", local.rows * (5 * prompt + 8) + 12, "tokens, which are real, numbers, limits; key, temperature"),
    )
    made = (
        Part("decoding copy", (config.depth * _layer_numbers(config, sizes) + tables) * c,
             "layers apart and the head, whole along fsdp"),
        Part("cache", local.rows * length * token, f"{local.rows} rows x {length} tokens x {token} bytes"),
        Part("prefill", 2 * scores + wide * c, f"one layer, {prompt} tokens a row"),
        Part("logits", local.rows * local.vocabulary * 4 * 3, "the last token's, three times"),
    )  # fmt: skip
    return MemoryPlan(sizes, kept, made)


def _ways(sizes: dict[str, int]) -> int:
    return math.prod(sizes.get(axis, 1) for axis in RULES["batch"])


def _local(config: DecoderConfig, sizes: dict[str, int], rows: int) -> _Local:
    parameter_specs(sizes, config)  # raises where an axis does not divide
    tensor = sizes.get("tensor", 1)
    kv = config.kv_heads // tensor if config.kv_heads % tensor == 0 else config.kv_heads
    # A token goes through `top` experts.
    hidden = config.hidden if config.experts is None else config.experts.top * config.experts.hidden
    return _Local(-(-rows // _ways(sizes)), config.heads // tensor, kv, hidden // tensor, config.vocabulary // tensor)


def _split_numbers(config: DecoderConfig, sizes: dict[str, int]) -> int:
    """Numbers of all parameters that one device holds."""
    specs = parameter_specs(sizes, config)
    return sum(_held(shape, specs[path], sizes) for path, shape in config.shapes.items())


def _layer_numbers(config: DecoderConfig, sizes: dict[str, int]) -> int:
    """Numbers of one layer on a device, once they are gathered along fsdp."""
    whole = {**sizes, "fsdp": 1}
    specs = parameter_specs(whole, config)
    layers = [(path, shape) for path, shape in config.shapes.items() if path.startswith("layers/")]
    return sum(_held(shape, specs[path], whole) for path, shape in layers) // config.depth


def _held(shape: tuple[int, ...], spec: Any, sizes: dict[str, int]) -> int:
    """Numbers of an array that one device holds."""
    ways = lambda entry: math.prod(sizes[axis] for axis in ((entry,) if isinstance(entry, str) else entry or ()))
    return math.prod(size // ways(entry) for size, entry in zip(shape, spec, strict=True))


def _saved(config: DecoderConfig, local: _Local, length: int, c: int) -> dict[str, int]:
    """Bytes of one layer that wait for the backward pass, by remat."""
    n, w = local.rows * length, config.width
    heads = (local.heads + 2 * local.kv_heads) * config.head_dim
    full = n * w * c
    dots = full + n * (2 * w + heads + 2 * local.hidden) * c
    return {"full": full, "offload": 0, "dots": dots, "none": full + _block(config, local, length, c)}


def _block(config: DecoderConfig, local: _Local, length: int, c: int) -> int:
    """Bytes that one block makes: projections and their turned copies, scores and their softmax, norms, the MLP."""
    n, w = local.rows * length, config.width
    heads = (local.heads + 2 * local.kv_heads) * config.head_dim
    scores = local.rows * local.heads * length * length * (4 + c)
    return n * (4 * w + 2 * heads + 4 * local.hidden) * c + scores
