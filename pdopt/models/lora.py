"""Low-rank adapters (LoRA; Hu et al. 2021, arXiv 2106.09685) beside the weights of a decoder, and PEFT's files.

    x W  becomes  x W + (alpha / r) (x A) B,      A (in, r) normal with deviation 1 / r, B (r, out) zero at the start

Adapters are a tree of their own, `Decoder.adapters`, and the weights stay as they are: training differentiates the
adapters alone, and the reference policy is the same model with `adapters=None`, no second copy in memory.

    trained = lambda adapters: loss(model.replace(adapters=adapters))

Not done here: dropout on the adapter's input, DoRA, ranks that differ between modules; files that ask for them are
refused by name.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pdopt.errors import InvalidFile, InvalidOption, require_range, unknown_name
from pdopt.models.config import DecoderConfig
from pdopt.models.names import Rule, rules
from pdopt.types import record

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
_FOLDERS = {name: "attention" if name in ("q", "k", "v", "o") else "mlp" for name in TARGETS}
# Settings of PEFT that change what an adapter computes -> the values under which it is the formula above.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",), "use_dora": (False,), "fan_in_fan_out": (False,), "modules_to_save": (), "rank_pattern": (),
    "alpha_pattern": (), "layers_to_transform": (), "layer_replication": (), "trainable_token_indices": (),
    "target_parameters": (), "lora_bias": (False,), "alora_invocation_tokens": (),
}  # fmt: skip


class Low(NamedTuple):
    """One adapter of all layers: `a (depth, *in, r)` and `b (depth, r, *out)`, axes as the weight `(*in, *out)` has."""

    a: Any
    b: Any


@record(static=("alpha",))
class Adapters:
    """The adapters of a model.

    Attributes:
        layers: `{"attention": {"q": Low, ...}, "mlp": {"gate": Low, ...}}`, the modules that have one.
        alpha: what `x A B` is multiplied by, times the rank; a constant, not trained.
    """

    layers: Any
    alpha: float

    @property
    def scale(self) -> float:
        """`alpha / r`."""
        return self.alpha / self.rank

    @property
    def rank(self) -> int:
        """r."""
        return jax.tree.leaves(self.layers)[0].shape[-1]

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the adapted modules, in the order of `TARGETS`."""
        return tuple(name for name in TARGETS if name in self.layers.get(_FOLDERS[name], {}))


def init(
    config: DecoderConfig, key: Any, rank: int, targets: Sequence[str] = TARGETS, alpha: float | None = None,
    dtype: Any = jnp.float32,
) -> Adapters:  # fmt: skip
    """New adapters, which change nothing yet.

    Args:
        config: of the decoder.
        key: a JAX key, for A.
        rank: r >= 1.
        targets: modules to adapt, of `TARGETS`.
        alpha: None takes the rank, a scale of 1.
        dtype: of the adapters; float32 whatever the weights have, since they are what is trained.

    Raises:
        InvalidOption: rank below 1, no target, an unknown one, or alpha that is not positive.

    Example:
        >>> config = DecoderConfig(vocabulary=32, width=8, depth=3, heads=2, kv_heads=1, head_dim=4, hidden=16)
        >>> low = init(config, jax.random.key(0), 2).layers["attention"]["o"]
        >>> low.a.shape, low.b.shape
        ((3, 2, 4, 2), (3, 2, 8))
    """
    require_range("rank", rank, 1)
    alpha = float(rank) if alpha is None else float(alpha)
    require_range("alpha", alpha, 0.0, open_low=True)
    if isinstance(targets, str) or not targets:
        raise InvalidOption(f"targets is {targets!r}; expected some of {', '.join(TARGETS)}")
    layers: dict[str, Any] = {}
    for name in targets:
        inputs, outputs = _sides(config, name)
        # The number of the module in TARGETS, so that one module's start does not depend on which others have one.
        draw = jax.random.normal(jax.random.fold_in(key, TARGETS.index(name)), (config.depth, *inputs, rank), dtype)
        low = Low(draw / jnp.asarray(rank, dtype), jnp.zeros((config.depth, rank, *outputs), dtype))
        layers.setdefault(_FOLDERS[name], {})[name] = low
    return Adapters(layers, alpha)


def beside(layers: Any, adapters: Adapters | None) -> Any:
    """The layers' parameters with each adapter beside its weight, as `q_low` beside `q`, B times the scale.

    Example:
        >>> adapters = Adapters({"mlp": {"up": Low(jnp.ones((1, 2, 4)), jnp.ones((1, 4, 3)))}}, 8.0)
        >>> beside({"mlp": {"up": jnp.ones((1, 2, 3))}}, adapters)["mlp"]["up_low"].b[0, 0]
        Array([2., 2., 2.], dtype=float32)
    """
    if adapters is None:
        return layers
    made = dict(layers)
    for folder, modules in adapters.layers.items():
        added = {f"{name}_low": Low(low.a, low.b * adapters.scale) for name, low in modules.items()}
        made[folder] = {**layers[folder], **added}
    return made


def merged(layers: Any, adapters: Adapters | None) -> Any:
    """The layers' parameters with `(alpha / r) A B` added to each adapted weight, in float32 at least."""
    if adapters is None:
        return layers
    made = dict(layers)
    for folder, modules in adapters.layers.items():
        changed = {name: _sum(layers[folder][name], low, adapters.scale) for name, low in modules.items()}
        made[folder] = {**layers[folder], **changed}
    return made


def _sum(weight: Any, low: Low, scale: float) -> Any:
    wide = jnp.promote_types(jnp.float32, weight.dtype)
    depth, rank = low.b.shape[:2]
    a, b = low.a.reshape(depth, -1, rank).astype(wide), low.b.reshape(depth, rank, -1).astype(wide)
    change = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST).reshape(weight.shape)
    return (weight.astype(wide) + scale * change).astype(weight.dtype)


def merge(model: Any) -> Any:
    """The same model without adapters: they are added to its weights.

    Args:
        model: a `Decoder`.

    Returns:
        A `Decoder` whose `adapters` are None.
    """
    return model.replace(
        params={**model.params, "layers": merged(model.params["layers"], model.adapters)}, adapters=None
    )


def export_adapters(model: Any, folder: str | Path, *, base: str | None = None, dtype: Any = None) -> None:
    """Write a folder that `peft.PeftModel.from_pretrained` reads.

    Args:
        model: a `Decoder` with adapters.
        folder: made if absent; must be empty.
        base: name or folder of the base model, kept in the settings.
        dtype: of the file; None keeps the adapters'.

    Raises:
        InvalidOption: the model has no adapters, or the folder has files in it.
    """
    if model.adapters is None:
        raise InvalidOption("model has no adapters; expected some, from lora.init or lora.load_adapters")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise InvalidOption(f"folder {folder} is not empty; expected a new one")
    table = rules(model.config)
    tensors: dict[str, np.ndarray] = {}
    for name in model.adapters.targets:
        low = model.adapters.layers[_FOLDERS[name]][name]
        for number in range(model.config.depth):
            a, b = np.asarray(low.a[number]), np.asarray(low.b[number])
            flat = {"A": a.reshape(-1, a.shape[-1]).T, "B": b.reshape(b.shape[0], -1).T}
            for side, value in flat.items():
                tensors[_name(table, name, number, side)] = np.ascontiguousarray(
                    value, None if dtype is None else dtype
                )
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": model.adapters.rank,
        "lora_alpha": model.adapters.alpha, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False,
        "inference_mode": True, "use_rslora": False, "use_dora": False,
        "target_modules": [_module(table, name).rsplit(".", 1)[-1] for name in model.adapters.targets],
    }  # fmt: skip
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2))


def load_adapters(folder: str | Path, config: DecoderConfig, *, dtype: Any = jnp.float32) -> Adapters:
    """The adapters of a PEFT folder, for `Decoder(..., adapters=...)`.

    Args:
        folder: holds `adapter_config.json` and `adapter_model.safetensors`.
        config: of the decoder they belong to.
        dtype: of the adapters.

    Raises:
        InvalidFile: a file that is missing, damaged, pickled, or does not fit the configuration; names the tensor.
        InvalidOption: an adapter of another kind than the formula of this module.
    """
    folder = Path(folder)
    settings, tensors = _settings(folder), _tensors(folder)
    rank, alpha = settings["r"], float(settings["lora_alpha"])
    if settings.get("use_rslora"):  # x A B times alpha / sqrt r there (Kalajdzievski 2023, arXiv 2312.03732)
        alpha *= math.sqrt(rank)
    table = rules(config)
    targets = [name for name in TARGETS if _name(table, name, 0, "A") in tensors]
    if not targets:
        raise InvalidFile(
            folder / WEIGHTS, f"no adapter of a module of {config.family}; expected {_name(table, 'q', 0, 'A')}"
        )
    layers: dict[str, Any] = {}
    for name in targets:
        inputs, outputs = _sides(config, name)
        flat = {"A": (rank, math.prod(inputs)), "B": (math.prod(outputs), rank)}
        sides = []
        for side, shape in flat.items():
            read = (_take(folder, tensors, _name(table, name, i, side), shape) for i in range(config.depth))
            sides.append(np.stack([np.asarray(value.T, dtype) for value in read]))
        low = Low(sides[0].reshape(-1, *inputs, rank), sides[1].reshape(-1, rank, *outputs))
        layers.setdefault(_FOLDERS[name], {})[name] = Low(*map(jnp.asarray, low))
    if tensors:
        raise InvalidFile(folder / WEIGHTS, f"{len(tensors)} tensors are unknown, the first {min(tensors)}")
    return Adapters(layers, alpha)


def _take(folder: Path, tensors: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor out of the dictionary, so that what stays there is unknown."""
    value = tensors.pop(name, None)
    if value is None:
        raise InvalidFile(folder / WEIGHTS, f"tensor {name} is missing")
    if value.shape != shape:
        raise InvalidFile(folder / WEIGHTS, f"{name} has shape {value.shape}; the configurations say {shape}")
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise InvalidFile(folder / WEIGHTS, f"{name} has dtype {value.dtype}; expected floating point")
    return value


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    if not path.is_file():
        raise InvalidFile(path, "no such file; expected a folder that PEFT saved")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise InvalidFile(path, f"not JSON: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("r"), int) or "lora_alpha" not in found:
        raise InvalidFile(path, "lacks r or lora_alpha; expected the settings of a LoRA adapter")
    if found.get("peft_type", "LORA") != "LORA":
        raise InvalidOption(f"peft_type is {found['peft_type']!r}; implemented is LORA")
    for name, plain in _PLAIN.items():
        value = found.get(name)
        if value and value not in plain:
            raise InvalidOption(f"{name} is {value!r} in {path}; implemented are plain adapters without it")
    return found


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    path = folder / WEIGHTS
    if not path.is_file():
        if (folder / "adapter_model.bin").is_file():
            raise InvalidFile(folder / "adapter_model.bin", f"is pickled, which can run code; expected {WEIGHTS}")
        raise InvalidFile(path, "no such file; expected the weights of the adapter")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InvalidFile(path, f"not a whole safetensors file: {error}") from error


def _sides(config: DecoderConfig, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The input and output axes of one module's weight."""
    if name not in TARGETS:
        raise unknown_name("target", name, TARGETS)
    path = f"layers/{_FOLDERS[name]}/{name}"
    if path not in config.shapes:
        raise InvalidOption(f"target {name!r} is no dense module of this model; adapt {', '.join(TARGETS[:4])}")
    shape = config.shapes[path][1:]
    inputs = 2 if name == "o" else 1
    return shape[:inputs], shape[inputs:]


def _module(table: dict[str, Rule], name: str) -> str:
    return table[f"layers/{_FOLDERS[name]}/{name}"].name.removesuffix(".weight")


def _name(table: dict[str, Rule], name: str, number: int, side: str) -> str:
    return f"base_model.model.{_module(table, name).format(i=number)}.lora_{side}.weight"
