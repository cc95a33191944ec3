"""`pdopt compare RECIPE`: the recipe beside what it names under `comparison`, from the same start, in one table."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import typer

from pdopt.cli.outcomes import FINISHED, Outcome
from pdopt.cli.train import Changes, Json
from pdopt.errors import require_range
from pdopt.runtime.progress import render_table

Source = Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped name, or a .toml or .yaml file.")]
Seeds = Annotated[int, typer.Option(help="Runs of each method; training.seed is the first seed.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Nothing while it runs.")]
# How the records call the runs of the supervised steps (`comparing.TAUGHT`), and how the table does.
TAUGHT, START = "taught", "supervised start"
SIGNS = {"at least": ">=", "at most": "<="}


@dataclass
class CompareOutcome(Outcome):
    """What is known of a comparison.

    Attributes:
        recipe: as it was named; folder: of the comparison; seeds: of the runs.
        methods: names of the variants, the recipe itself first.
        runs: one record a run (`pdopt.training.comparing.result_of`); planned: how many there will be.
        reward: what the reward is called; files: what was written.
        seconds: compare (wall), processor.
    """

    packages: ClassVar[tuple[str, ...]] = (*Outcome.packages, "optax", "orbax-checkpoint", "transformers")

    recipe: str | None = None
    folder: str | None = None
    seeds: list[int] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    planned: int | None = None
    reward: str = "reward"
    files: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(("compare", "processor")))

    def record(self) -> dict[str, Any]:
        """Every field of the JSON object, in its order."""
        return {
            "status": self.status,
            "methods": self.methods,
            "seeds": self.seeds,
            "runs": self.runs,
            "planned": self.planned,
            "folder": self.folder,
            "files": self.files,
            "recipe": self.recipe,
            "seconds": self.seconds,
            **self.ending(),
        }

    def stopped(self) -> str:
        """What a second Ctrl-C leaves."""
        return "runs that have ended and states that are whole stay: the same command goes on"

    def summary(self) -> str:
        """How it ended, and the table."""
        if not self.runs:
            return ""
        lines = [self.message, "", comparison_table(self.runs, self.reward), ""]
        return "\n".join([*lines, *(f"{what}: {path}" for what, path in self.files.items())])


def comparison_table(runs: Sequence[Mapping[str, Any]], reward: str = "reward") -> str:
    """One row a method: means over its seeds on held-out prompts, and in how many of them each constraint was held.

    Example:
        >>> line = {"value": 0.97, "limit": 0.95, "sense": "at least", "verdict": "held", "multiplier": 0.25}
        >>> run = {"method": "plain", "seed": 0, "reward": {"value": 0.9}, "others": {}, "seconds": 20.0,
        ...        "constraints": {"format": line}}
        >>> print(comparison_table([run, run | {"seed": 1}]))
        means over 2 seeds  reward  format >= 0.95  held    its y  seconds
        ------------------  ------  --------------  ------  -----  -------
        plain                0.900           0.970  2 of 2   0.25       20
    """
    seeds = len({run["seed"] for run in runs})
    constraints = {name: line for run in runs for name, line in run["constraints"].items()}
    others = list(dict.fromkeys(name for run in runs for name in run["others"]))
    limited = {name: f"{name} {SIGNS[line['sense']]} {line['limit']:g}" for name, line in constraints.items()}
    columns = [f"means over {seeds} seeds" if seeds > 1 else "method", reward]
    columns += [column for name in constraints for column in (limited[name], "held", "its y")]
    columns += [*others, "seconds"]
    formats = {reward: ".3f", "its y": ".2f", "seconds": ".0f", **dict.fromkeys([*limited.values(), *others], ".3f")}
    rows = []
    for method in dict.fromkeys(run["method"] for run in runs):
        own = [run for run in runs if run["method"] == method and run["reward"] is not None]
        row = [START if method == TAUGHT else method, _mean([run["reward"]["value"] for run in own])]
        for name in constraints:
            lines = [run["constraints"][name] for run in own if name in run["constraints"]]
            held = sum(line["verdict"] == "held" for line in lines)
            price = _mean([line["multiplier"] for line in lines if "multiplier" in line])
            row += [_mean([line["value"] for line in lines]), f"{held} of {len(lines)}", price]
        row += [_mean([run["others"][name]["value"] for run in own if name in run["others"]]) for name in others]
        rows.append([*row, _mean([run["seconds"] for run in own])])
    return render_table("", columns, rows, formats)


def run_line(run: Mapping[str, Any], reward: str = "reward") -> str:
    """One run in one line, for a log."""
    said = [f"{reward} {run['reward']['value']:.3f}"] if run["reward"] else [str(run["status"])]
    for name, line in run["constraints"].items():
        price = f", y {line['multiplier']:.2f}" if "multiplier" in line else ""
        said.append(f"{name} {line['value']:.3f} ({line['verdict']}{price})")
    said += [f"{name} {found['value']:.3f}" for name, found in run["others"].items()]
    method = START if run["method"] == TAUGHT else run["method"]
    return f"seed {run['seed']}, {method}: {', '.join(said)}; {run['seconds']:.0f} s"


def compare(
    ctx: typer.Context, recipe: Source, seeds: Seeds = 3, changes: Changes = None, json: Json = False,
    quiet: Quiet = False,
) -> CompareOutcome:  # fmt: skip
    """Train RECIPE and what it is compared with, from the same supervised start, and show them in one table.

    Runs that have ended are not repeated: the same command goes on with what was stopped.
    """
    outcome: CompareOutcome = ctx.obj.outcome
    outcome.recipe = recipe
    require_range("--seeds", seeds, 1)
    from pdopt.training.variants import read_variants

    variants = [v._replace(recipe=_told(v.recipe, quiet or json)) for v in read_variants(recipe, changes or [])]
    first = variants[0].recipe
    outcome.methods = [variant.name for variant in variants]
    outcome.seeds = [first.training.seed + k for k in range(seeds)]
    outcome.planned = seeds * (len(variants) + bool(first.training.supervised_steps))
    rewards = first.objective.rewards
    outcome.reward = rewards[0].name.rpartition(":")[2] if len(rewards) == 1 else "reward"

    ctx.obj.startup()
    from pdopt.training.comparing import PLOT, RESULTS, compared_folder
    from pdopt.training.comparing import compare as run

    outcome.folder = str(compared_folder(first))

    def say(result: dict[str, Any]) -> None:
        outcome.runs.append(result)
        if not quiet and not json:
            typer.echo(run_line(result, outcome.reward), err=True)

    found = run(variants, outcome.seeds, say=say)
    outcome.seconds |= {"compare": found.seconds, "processor": found.cpu_seconds}
    said = f"{len(outcome.runs)} of {outcome.planned} runs in {outcome.folder}"
    spent = f"{found.seconds:.0f} s ({found.cpu_seconds:.0f} s of processor time)"
    if str(found.status) == "optimal":
        outcome.end(FINISHED, f"{said}, in {spent}.")
    elif str(found.status) == "interrupted":
        outcome.end("interrupted", f"Stopped by a signal after {said}; the same command goes on.", found.signal)
    else:
        outcome.end(str(found.status), f"{said}, in {spent}; some gave up, their loss or gradient was not finite.")
    folder = compared_folder(first)
    outcome.files = {"results": str(folder / RESULTS)}
    trained = {m: [r["folder"] for r in outcome.runs if r["method"] == m] for m in outcome.methods}
    if trained := {method: folders for method, folders in trained.items() if folders}:
        from pdopt.training.comparison_plot import plot_comparison

        shown = f"{seeds} seeds, shaded: their range" if seeds > 1 else f"seed {outcome.seeds[0]}"
        plot_comparison(trained, folder / PLOT, title=f"{recipe}: {shown}")
        outcome.files["plot"] = str(folder / PLOT)
    return outcome


def _told(recipe: Any, silent: bool) -> Any:
    """The recipe without the live table where nobody would see it: a line a run says enough in a log."""
    kept = tuple(n for n in recipe.training.reporters if n != "table" or (not silent and sys.stderr.isatty()))
    return replace(recipe, training=replace(recipe.training, reporters=kept))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
