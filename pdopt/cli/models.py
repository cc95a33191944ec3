"""`pdopt models inspect`: what a model is and what it takes, from its header alone; no weight is read or allocated."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from pdopt.cli.outcomes import FINISHED, Outcome, stoppable
from pdopt.errors import InvalidOption, unknown_name
from pdopt.runtime.progress import render_table

models = typer.Typer(no_args_is_help=True, help="Look at language models.", rich_markup_mode=None)

BYTES = {"float32": 4, "bfloat16": 2}
MEGA = 1e6

Name = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="FOLDER, FILE.gguf, smollm2, or owner/name.", show_default=False)
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A config.json alone, without weights.")]
MeshSizes = Annotated[
    str | None, typer.Option("--mesh", metavar="DATA,FSDP,TENSOR", help="Memory of a device of this mesh.")
]
Batch = Annotated[int, typer.Option(help="Rows over all devices, with --mesh.")]
Length = Annotated[int, typer.Option(help="Tokens of a row, prompt and continuation, with --mesh.")]
Train = Annotated[bool, typer.Option("--train", help="Memory of a training step (AdamW, remat full), not of sampling.")]
Dtype = Annotated[str, typer.Option(help=f"Of the parameters, with --mesh: {', '.join(BYTES)}.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, whatever the outcome.")]


@dataclass
class InspectOutcome(Outcome):
    """What is known of a model.

    Attributes:
        model: as it was named; family: Hugging Face's model_type.
        sizes: of the configuration, by name.
        parameters: in all; active: those that one token passes through; parts: by part.
        bytes: of the parameters by dtype; stored: bytes in the files by their type (None without files).
        cache_bytes_per_token: keys and values of one token, by dtype.
        device: with --mesh, what one device holds: mesh, purpose, rows, length, dtype, bytes, and parts of (part,
            bytes, how).
    """

    packages: ClassVar[tuple[str, ...]] = (*Outcome.packages, "transformers")

    model: str | None = None
    family: str | None = None
    sizes: dict[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    active: int | None = None
    parts: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    stored: dict[str, int] | None = None
    cache_bytes_per_token: dict[str, int] = field(default_factory=dict)
    device: dict[str, Any] | None = None

    def record(self) -> dict[str, Any]:
        """Every field of the JSON object, in its order."""
        return {
            "status": self.status,
            "model": self.model,
            "family": self.family,
            "sizes": self.sizes,
            "parameters": self.parameters,
            "active": self.active,
            "parts": self.parts,
            "bytes": self.bytes,
            "stored": self.stored,
            "cache_bytes_per_token": self.cache_bytes_per_token,
            "device": self.device,
            **self.ending(),
        }

    def summary(self) -> str:
        """Sizes, then parameters and megabytes by part."""
        if self.parameters is None:
            return ""
        sizes = ", ".join(f"{name} {value}" for name, value in self.sizes.items())
        rows = [
            (name, count, *(count * size / MEGA for size in BYTES.values()))
            for name, count in [*self.parts.items(), ("all", self.parameters), ("active", self.active)]
            if name != "active" or count != self.parameters
        ]
        formats = dict.fromkeys([f"{name} (MB)" for name in BYTES], ".1f")
        lines = [
            f"{self.model}: {self.family}, {sizes}",
            "",
            render_table("", ("part", "parameters", *formats), rows, formats),
            "",
            "cache of a token: " + ", ".join(f"{n} bytes in {k}" for k, n in self.cache_bytes_per_token.items()),
        ]
        if self.stored is not None:
            lines.append("in the files: " + ", ".join(f"{n / MEGA:.1f} MB {kind}" for kind, n in self.stored.items()))
        return "\n".join([*lines, *(self._device_lines() if self.device is not None else [])])

    def _device_lines(self) -> list[str]:
        """The table of one device's memory."""
        assert self.device is not None
        mesh = ", ".join(f"{axis} {size}" for axis, size in self.device["mesh"].items())
        rows = [(part["part"], part["bytes"] / MEGA, part["how"]) for part in self.device["parts"]]
        rows.append(("total", self.device["bytes"] / MEGA, "estimate"))
        title = (
            f"One device of the mesh {mesh}: {self.device['purpose']}, {self.device['rows']} rows of "
            f"{self.device['length']} tokens, {self.device['dtype']}"
        )
        return ["", render_table(title, ("part", "memory (MB)", "how"), rows, {"memory (MB)": ".1f"})]


@models.command()
@stoppable
def inspect(
    ctx: typer.Context,
    model: Name = None,
    config: ConfigFile = None,
    mesh: MeshSizes = None,
    batch: Batch = 8,
    length: Length = 1024,
    train: Train = False,
    dtype: Dtype = "float32",
    json: Json = False,
) -> InspectOutcome:
    """Family, sizes, parameters and memory of MODEL, or of a config.json; weights are not read."""
    outcome: InspectOutcome = ctx.obj.outcome
    if (model is None) == (config is None):
        raise InvalidOption("expected MODEL or --config FILE, one of them")
    if dtype not in BYTES:
        raise unknown_name("--dtype", dtype, BYTES)
    sizes = None if mesh is None else mesh_option(mesh)
    outcome.model = str(config if model is None else model)
    ctx.obj.startup()
    from pdopt.models.sources import model_config, stored_bytes

    found = model_config(outcome.model)
    _describe(outcome, found)
    outcome.stored = stored_bytes(model) if model is not None else None
    if sizes is not None:
        outcome.device = _device(found, sizes, batch, length, train, dtype)
    outcome.end(FINISHED, f"{outcome.family}, {found.parameters} parameters.")
    return outcome


def mesh_option(text: str) -> dict[str, int]:
    """Axis -> size of a `--mesh`.

    Raises:
        InvalidOption: not three integers, each at least 1.

    Example:
        >>> mesh_option("1,8,4")
        {'data': 1, 'fsdp': 8, 'tensor': 4}
    """
    sizes = text.split(",")
    if len(sizes) != 3 or not all(size.strip().isdigit() and int(size) >= 1 for size in sizes):
        raise InvalidOption(f"--mesh is {text!r}; expected DATA,FSDP,TENSOR, each an integer >= 1")
    return dict(zip(("data", "fsdp", "tensor"), map(int, sizes)))


def _device(config: Any, sizes: dict[str, int], rows: int, length: int, train: bool, dtype: str) -> dict[str, Any]:
    """What one device holds, in training or in sampling."""
    import jax.numpy as jnp

    from pdopt.models.memory import inference_memory, training_memory

    plan = (training_memory if train else inference_memory)(
        config, sizes, rows=rows, length=length, dtype=jnp.dtype(dtype)
    )
    return {
        "mesh": sizes, "purpose": "training" if train else "sampling", "rows": rows, "length": length, "dtype": dtype,
        "bytes": plan.total,
        "parts": [{"part": part.name, "bytes": part.bytes, "how": part.how} for part in plan.kept + plan.made],
    }  # fmt: skip


def _describe(outcome: InspectOutcome, config: Any) -> None:
    """Sizes and parameters of a configuration."""
    names = ("vocabulary", "width", "depth", "heads", "kv_heads", "head_dim", "hidden", "positions", "tied")
    outcome.family, outcome.parameters = config.family, config.parameters
    outcome.sizes = {name: getattr(config, name) for name in names}
    if config.experts is not None:
        outcome.sizes |= {"experts": config.experts.count, "experts of a token": config.experts.top}
    outcome.active, outcome.parts = active(config), parts(config)
    outcome.bytes = {kind: size * config.parameters for kind, size in BYTES.items()}
    outcome.cache_bytes_per_token = {kind: config.cache_bytes_per_token * size // 4 for kind, size in BYTES.items()}


def parts(config: Any) -> dict[str, int]:
    """Parameters of the embedding, the layers' attention, MLP or experts, norms, and the head (0 where it is tied).

    Example:
        >>> from pdopt.models.config import DecoderConfig
        >>> parts(DecoderConfig(vocabulary=32, width=8, depth=1, heads=2, kv_heads=1, head_dim=4, hidden=16))
        {'embedding': 256, 'attention': 192, 'mlp': 384, 'norms': 24, 'head': 0}
    """
    inner = "mlp" if config.experts is None else "experts"
    found: dict[str, int] = dict.fromkeys(("embedding", "attention", inner, "norms", "head"), 0)
    for path, shape in config.shapes.items():
        name = path.removeprefix("layers/").split("/")[0]
        part = "norms" if path.endswith("norm") else "embedding" if name == "embed" else name
        found[part] += math.prod(shape)
    return found


def active(config: Any) -> int:
    """Parameters that one token passes through: of the experts only those it is sent to.

    Example:
        >>> from pdopt.models.config import DecoderConfig, Mixture
        >>> sizes = {"vocabulary": 32, "width": 8, "depth": 1, "heads": 2, "kv_heads": 1, "head_dim": 4, "hidden": 16}
        >>> config = DecoderConfig(**sizes, experts=Mixture(count=4, top=1, hidden=16))
        >>> active(config), config.parameters
        (888, 2040)
    """
    if config.experts is None:
        return config.parameters
    shapes = (shape for path, shape in config.shapes.items() if path.startswith("layers/experts/"))
    each = sum(math.prod(shape) for shape in shapes if len(shape) == 4)
    return config.parameters - each * (config.experts.count - config.experts.top) // config.experts.count
