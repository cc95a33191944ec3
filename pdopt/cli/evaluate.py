"""`pdopt evaluate RUN`: a run's policy on the prompts kept apart, with intervals."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from pdopt.cli.outcomes import FINISHED, Outcome
from pdopt.cli.train import evaluation_table
from pdopt.errors import InvalidOption, require_range

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]
K = Annotated[list[int] | None, typer.Option("--k", help="k of pass@k; repeatable. [default: the recipe's]")]
Samples = Annotated[int | None, typer.Option(help="Completions a prompt. [default: the recipe's, at least k]")]
Prompts = Annotated[int | None, typer.Option(help="Prompts. [default: all of a table, data.held_out of a task]")]
Temperature = Annotated[float | None, typer.Option(help="0 takes the likeliest token. [default: the recipe's]")]
Best = Annotated[bool, typer.Option("--best", help="The state that checkpoint.best kept, not the newest.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, whatever the outcome.")]


@dataclass
class EvaluateOutcome(Outcome):
    """What an evaluation found.

    Attributes:
        run: folder; step: of the policy.
        scalars: numbers by name, with the ends of their intervals.
        prompts, completions: how many; samples: texts of some.
        seconds: open, evaluate.
    """

    packages: ClassVar[tuple[str, ...]] = (*Outcome.packages, "transformers")

    run: str | None = None
    step: int | None = None
    scalars: dict[str, float] = field(default_factory=dict)
    prompts: int | None = None
    completions: int | None = None
    samples: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(("open", "evaluate")))

    def record(self) -> dict[str, Any]:
        """Every field of the JSON object, in its order."""
        return {
            "status": self.status,
            "step": self.step,
            "evaluation": self.scalars,
            "prompts": self.prompts,
            "completions": self.completions,
            "samples": self.samples,
            "run": self.run,
            "seconds": self.seconds,
            **self.ending(),
        }

    def summary(self) -> str:
        """The table of the numbers."""
        return f"{self.message}\n\n{evaluation_table(self.scalars)}" if self.scalars else ""


def evaluate(
    ctx: typer.Context,
    run: Run,
    k: K = None,
    samples: Samples = None,
    prompts: Prompts = None,
    temperature: Temperature = None,
    best: Best = False,
    json: Json = False,
) -> EvaluateOutcome:
    """Evaluate the policy of RUN on the prompts kept apart."""
    outcome: EvaluateOutcome = ctx.obj.outcome
    outcome.run = str(run)
    for name, value, least in (("--samples", samples, 1), ("--prompts", prompts, 1), ("--temperature", temperature, 0)):
        if value is not None:
            require_range(name, value, least)
    from pdopt.training.saving import saved_recipe

    recipe = saved_recipe(run)
    given = recipe.evaluation
    wanted = tuple(k) if k else given.k
    count = samples if samples is not None else max(given.samples, *wanted)
    if not all(1 <= size <= count for size in wanted):
        raise InvalidOption(f"--k is {list(wanted)}; expected numbers in [1, {count}], the completions of a prompt")
    settings = replace(
        given, k=wanted, samples=count, temperature=given.temperature if temperature is None else temperature
    )

    ctx.obj.startup()
    from pdopt.training.evaluating import evaluate_policy
    from pdopt.training.runs import open_run

    before = time.monotonic()
    opened = open_run(run, best=best)
    outcome.step = opened.step
    outcome.seconds["open"] = time.monotonic() - before
    if opened.prepared.sources.evaluation is None:
        raise InvalidOption(f"{run} keeps no rows apart: data.held_out is 0 and there is no data.evaluation_split")
    before = time.monotonic()
    found = evaluate_policy(opened.prepared, opened.model, opened.step, settings, prompts, opened.reference)
    outcome.seconds["evaluate"] = time.monotonic() - before
    outcome.scalars, outcome.samples = found.scalars, found.samples
    outcome.prompts, outcome.completions = found.prompts, found.completions
    outcome.end(FINISHED, f"{run}, step {opened.step}: {found.completions} completions of {found.prompts} prompts.")
    return outcome
