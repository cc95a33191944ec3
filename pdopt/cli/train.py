"""`pdopt train RECIPE`: run a recipe, go on with a run, or say what a run would take.

Everything that needs JAX is imported inside the command, after the recipe was found to be good.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from pdopt.cli.outcomes import FINISHED, Outcome
from pdopt.errors import InvalidOption
from pdopt.runtime.progress import render_table

Source = Annotated[
    str | None, typer.Argument(metavar="RECIPE", help="A shipped name, or a .toml or .yaml file.", show_default=False)
]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change the recipe; repeatable.")
]
Resume = Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with the run in this folder.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, compile a step, say its memory, run nothing.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, whatever the outcome.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No table while it runs.")]


@dataclass
class TrainOutcome(Outcome):
    """What is known of a run.

    Attributes:
        recipe: as it was named; folder: of the run.
        resolved: the whole recipe as tables.
        steps: taken; planned: in all.
        metrics: of the last step; evaluation: the last one.
        plan: with --dry-run, what a step takes: rows, prompt, completion, bytes, collectives, parameters.
        files: what was written.
        seconds: prepare, train.
    """

    packages: ClassVar[tuple[str, ...]] = (*Outcome.packages, "optax", "orbax-checkpoint", "transformers")

    recipe: str | None = None
    folder: str | None = None
    resolved: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    planned: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    evaluation: dict[str, float] = field(default_factory=dict)
    plan: dict[str, Any] | None = None
    files: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(("prepare", "train")))

    def record(self) -> dict[str, Any]:
        """Every field of the JSON object, in its order."""
        return {
            "status": self.status,
            "steps": self.steps,
            "planned": self.planned,
            "metrics": self.metrics,
            "evaluation": self.evaluation,
            "plan": self.plan,
            "folder": self.folder,
            "files": self.files,
            "recipe": self.recipe,
            "resolved": self.resolved,
            "seconds": self.seconds,
            **self.ending(),
        }

    def stopped(self) -> str:
        """What a second Ctrl-C leaves: the states that were whole."""
        if self.folder is None:
            return super().stopped()
        return f"the newest state in {self.folder} that is whole stays: pdopt train --resume {self.folder}"

    def summary(self) -> str:
        """How the run ended and what its evaluation found, or what a step would take."""
        if self.plan is not None:
            rows = [(name.replace("_", " "), value) for name, value in self.plan.items()]
            return "\n".join([self.message, "", render_table("", ("step", "value"), rows)])
        if self.steps is None:
            return ""
        lines = [self.message]
        if self.evaluation:
            lines += ["", evaluation_table(self.evaluation)]
        return "\n".join([*lines, "", *(f"{what}: {path}" for what, path in self.files.items())])


def evaluation_table(scalars: dict[str, float]) -> str:
    """The numbers of an evaluation with their intervals; of other prompts after the name of their kind."""
    from pdopt.training.scalars import OTHER

    names = [name for name in scalars if f"{name}/low" in scalars]
    rows = []
    for name in names:
        limit = scalars.get(f"{name.removesuffix('/value')}/limit") if name.endswith("/value") else None
        shown = name.removeprefix("evaluation/").removeprefix(OTHER).removesuffix("/value").replace("/", " ")
        rows.append((shown, scalars[name], scalars[f"{name}/low"], scalars[f"{name}/high"], limit))
    formats: dict[str, str] = dict.fromkeys(("mean", "low", "high", "limit"), ".3f")
    return render_table("", ("evaluation", *formats), rows, formats)


def train(
    ctx: typer.Context,
    recipe: Source = None,
    changes: Changes = None,
    resume: Resume = None,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> TrainOutcome:
    """Train a language model by RECIPE, under its constraints."""
    outcome: TrainOutcome = ctx.obj.outcome
    outcome.recipe = recipe
    if (recipe is None) == (resume is None):
        raise InvalidOption("expected RECIPE or --resume RUN, one of them")
    found = _read(recipe, resume, changes or [])
    if quiet or json:
        from dataclasses import replace

        kept = tuple(name for name in found.training.reporters if name != "table")
        found = replace(found, training=replace(found.training, reporters=kept))
    from pdopt.training.settings import as_table

    outcome.folder, outcome.resolved = found.training.folder, as_table(found)
    outcome.planned = found.training.steps + found.training.supervised_steps
    if not json and not quiet:
        typer.echo(found.as_toml())

    ctx.obj.startup()
    if dry_run:
        return _plan(outcome, found)
    from pdopt.training.trainer import train as run

    before = time.monotonic()
    trained = run(found, resume=resume is not None)
    outcome.seconds["train"] = time.monotonic() - before
    outcome.steps, outcome.metrics = trained.steps, trained.metrics
    outcome.evaluation = trained.evaluation.scalars if trained.evaluation is not None else {}
    _end(outcome, trained)
    return outcome


def _read(recipe: str | None, resume: Path | None, changes: list[str]) -> Any:
    if resume is not None:
        from pdopt.training.saving import saved_recipe

        return saved_recipe(resume, changes)
    from pdopt.training.recipe import read_recipe

    assert recipe is not None
    return read_recipe(recipe, changes)


def _plan(outcome: TrainOutcome, found: Any) -> TrainOutcome:
    from pdopt.training.data import survey
    from pdopt.training.planning import plan_step
    from pdopt.training.preparation import prepare

    before = time.monotonic()
    prepared = prepare(found)
    seen = survey(prepared.stream)
    plan = plan_step(prepared)
    outcome.seconds["prepare"] = time.monotonic() - before
    outcome.plan = {
        "rows": plan.rows, "prompt_tokens": plan.prompt, "completion_tokens": plan.completion,
        "parameters": plan.parameters, "trainable": plan.trainable, "tokens_known": len(prepared.policy.tokenizer),
        "kept_bytes": plan.kept, "made_bytes": plan.made, "available_bytes": plan.available,
        **{f"survey_{name}": value for name, value in seen._asdict().items()},
        **{kind.replace("-", "_"): count for kind, count in plan.sends.items()},
    }  # fmt: skip
    outcome.end(FINISHED, f"The recipe is good; a step takes {plan.total / 1e6:.1f} MB on a device. Nothing was run.")
    return outcome


def _end(outcome: TrainOutcome, trained: Any) -> None:
    """Status, sentence and files."""
    import jax

    folder = str(trained.folder)
    again = f"To go on: pdopt train --resume {folder}"
    status = str(trained.status)
    if status == "optimal":
        outcome.end(FINISHED, f"Finished {trained.steps} steps in {trained.seconds:.1f} s.")
    elif status == "interrupted":
        outcome.end(status, f"Stopped by a signal after step {trained.steps}, saved. {again}", trained.signal)
    else:
        skipped = int(trained.metrics.get("bad", 0))
        said = f"{skipped} steps in a row had a loss or gradient that is not finite, the last one {trained.steps}."
        outcome.end(status, f"{said} The parameters of the last good step are in the newest state of {folder}.")
    outcome.files = {"run": folder}
    metrics, picture = trained.folder / "metrics.jsonl", trained.folder / "plot.png"
    if jax.process_index() == 0 and metrics.is_file():
        from pdopt.training.training_plot import plot_training

        plot_training(metrics, picture, title=str(outcome.recipe or trained.folder))
        outcome.files |= {"metrics": str(metrics), "plot": str(picture)}
