"""`pdopt models inspect`: what a model is and what it takes, from its header alone; no weight is read or allocated."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from pdopt.cli.outcomes import FINISHED, Outcome, stoppable, versions
from pdopt.errors import InvalidOption
from pdopt.runtime.progress import render_table

models = typer.Typer(no_args_is_help=True, help="Look at language models.", rich_markup_mode=None)

BYTES = {"float32": 4, "bfloat16": 2}
MEGA = 1e6

Name = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="FOLDER, FILE.gguf, smollm2, or owner/name.", show_default=False)
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A config.json alone, without weights.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, whatever the outcome.")]


@dataclass
class InspectOutcome(Outcome):
    """What is known of a model.

    Attributes:
        model: as it was named; family: Hugging Face's model_type.
        sizes: of the configuration, by name.
        parameters: in all; parts: by part.
        bytes: of the parameters by dtype; stored: bytes in the files by their type (None without files).
        cache_bytes_per_token: keys and values of one token, by dtype.
    """

    packages: ClassVar[tuple[str, ...]] = (*Outcome.packages, "transformers")

    model: str | None = None
    family: str | None = None
    sizes: dict[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    parts: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    stored: dict[str, int] | None = None
    cache_bytes_per_token: dict[str, int] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Every field of the JSON object, in its order."""
        return {
            "status": self.status,
            "model": self.model,
            "family": self.family,
            "sizes": self.sizes,
            "parameters": self.parameters,
            "parts": self.parts,
            "bytes": self.bytes,
            "stored": self.stored,
            "cache_bytes_per_token": self.cache_bytes_per_token,
            "exit_code": self.code,
            "message": self.message,
            "error": self.error,
            "warnings": self.warnings,
            "versions": versions(self.packages),
        }

    def summary(self) -> str:
        """Sizes, then parameters and megabytes by part."""
        if self.parameters is None:
            return ""
        sizes = ", ".join(f"{name} {value}" for name, value in self.sizes.items())
        rows = [
            (name, count, *(count * size / MEGA for size in BYTES.values()))
            for name, count in [*self.parts.items(), ("all", self.parameters)]
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
        return "\n".join(lines)


@models.command()
@stoppable
def inspect(ctx: typer.Context, model: Name = None, config: ConfigFile = None, json: Json = False) -> InspectOutcome:
    """Family, sizes, parameters and memory of MODEL, or of a config.json; weights are not read."""
    outcome: InspectOutcome = ctx.obj.outcome
    if (model is None) == (config is None):
        raise InvalidOption("expected MODEL or --config FILE, one of them")
    outcome.model = str(config if model is None else model)
    ctx.obj.startup()
    from pdopt.models.sources import model_config, stored_bytes

    found = model_config(outcome.model)
    _describe(outcome, found)
    outcome.stored = stored_bytes(model) if model is not None else None
    outcome.end(FINISHED, f"{outcome.family}, {found.parameters} parameters.")
    return outcome


def _describe(outcome: InspectOutcome, config: Any) -> None:
    """Sizes and parameters of a configuration."""
    names = ("vocabulary", "width", "depth", "heads", "kv_heads", "head_dim", "hidden", "positions", "tied")
    outcome.family, outcome.parameters = config.family, config.parameters
    outcome.sizes = {name: getattr(config, name) for name in names}
    outcome.parts = parts(config)
    outcome.bytes = {kind: size * config.parameters for kind, size in BYTES.items()}
    outcome.cache_bytes_per_token = {kind: config.cache_bytes_per_token * size // 4 for kind, size in BYTES.items()}


def parts(config: Any) -> dict[str, int]:
    """Parameters of the embedding, the layers' attention, MLP and norms, and the head (0 where it is tied).

    Example:
        >>> from pdopt.models.config import DecoderConfig
        >>> parts(DecoderConfig(vocabulary=32, width=8, depth=1, heads=2, kv_heads=1, head_dim=4, hidden=16))
        {'embedding': 256, 'attention': 192, 'mlp': 384, 'norms': 24, 'head': 0}
    """
    found = dict.fromkeys(("embedding", "attention", "mlp", "norms", "head"), 0)
    for path, shape in config.shapes.items():
        if path.endswith("norm"):
            part = "norms"
        else:
            part = {"embed": "embedding"}.get(path, path.removeprefix("layers/").split("/")[0])
        found[part] += math.prod(shape)
    return found
