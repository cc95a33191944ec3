"""`pdopt export RUN OUT`: a run's policy as a folder that transformers loads."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from pdopt.cli.outcomes import FINISHED, Outcome
from pdopt.errors import unknown_name

DTYPES = ("float32", "bfloat16", "float16")

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, new or empty.", show_default=False)]
Best = Annotated[bool, typer.Option("--best", help="The state that checkpoint.best kept, not the newest.")]
Dtype = Annotated[str | None, typer.Option(help=f"One of {', '.join(DTYPES)}. [default: that of the parameters]")]
Adapters = Annotated[bool, typer.Option("--adapters", help="PEFT's adapter files alone, not added to the weights.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, whatever the outcome.")]


@dataclass
class ExportOutcome(Outcome):
    """What was exported: the run, the step of its policy, the folder, its files and their bytes."""

    run: str | None = None
    step: int | None = None
    folder: str | None = None
    files: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(("open", "write")))

    def record(self) -> dict[str, Any]:
        """Every field of the JSON object, in its order."""
        return {
            "status": self.status,
            "step": self.step,
            "folder": self.folder,
            "files": self.files,
            "run": self.run,
            "seconds": self.seconds,
            **self.ending(),
        }

    def summary(self) -> str:
        """What was written."""
        return self.message if self.files else ""


def export(
    ctx: typer.Context,
    run: Run,
    out: Out,
    best: Best = False,
    dtype: Dtype = None,
    adapters: Adapters = False,
    json: Json = False,
) -> ExportOutcome:
    """Write the policy of RUN to OUT, weights, configuration and tokenizer."""
    outcome: ExportOutcome = ctx.obj.outcome
    outcome.run, outcome.folder = str(run), str(out)
    if dtype is not None and dtype not in DTYPES:
        raise unknown_name("--dtype", dtype, DTYPES)
    from pdopt.training.saving import saved_recipe

    saved_recipe(run)
    ctx.obj.startup()
    import jax.numpy as jnp

    from pdopt.training.runs import export_run, open_run

    before = time.monotonic()
    opened = open_run(run, best=best)
    outcome.step = opened.step
    outcome.seconds["open"] = time.monotonic() - before
    before = time.monotonic()
    export_run(opened, out, dtype=None if dtype is None else jnp.dtype(dtype), adapters=adapters)
    outcome.seconds["write"] = time.monotonic() - before
    outcome.files = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    size = sum(outcome.files.values()) / 1e6
    outcome.end(FINISHED, f"{run}, step {opened.step}, written to {out}: {len(outcome.files)} files, {size:.1f} MB.")
    return outcome
