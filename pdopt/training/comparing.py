"""Runs set beside each other: the same start, data and seeds, one policy for each variant of a recipe.

    for each seed:      teach once -> for each variant: policy steps from there -> judge on the same held-out prompts

    folder/seed-0/taught/           the run of the supervised steps
    folder/seed-0/plain-grpo/       a run as any other, and result.json once it has ended
    folder/results.json, plot.png   of all

Whatever has ended is not done again, and what was stopped goes on: the same call continues. A run that another setting
made is refused, key by key.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pdopt.errors import InvalidOption
from pdopt.runtime.files import write_atomic
from pdopt.runtime.interrupts import stop_flag
from pdopt.training.constraint_kinds import KINDS
from pdopt.training.evaluating import evaluate_policy
from pdopt.training.metric_files import METRICS
from pdopt.training.recipe import Recipe, flat
from pdopt.training.runs import open_run
from pdopt.training.saving import saved_recipe
from pdopt.training.scalars import OTHER
from pdopt.training.tables import GYM
from pdopt.training.tasks import TASKS
from pdopt.training.trainer import Trained, train
from pdopt.training.training_plot import read_metrics
from pdopt.training.variants import Variant
from pdopt.types import Status

RESULT, RESULTS, PLOT = "result.json", "results.json", "plot.png"
TAUGHT = "taught"
# What policy steps alone read: variants that differ in nothing else share their supervised steps.
POLICY_KEYS = (
    "objective.", "constraints.", "evaluation.", "checkpoint.", "comparison.", "mesh.", "sampling.temperature",
    "sampling.top_", "sampling.min_p", "sampling.stop", "training.steps", "training.prompts", "training.group",
    "training.folder", "training.reporters", "training.show_samples", "training.max_bad_steps",
    "optimiser.learning_rate", "optimiser.schedule", "optimiser.warm_up", "optimiser.decay_steps", "optimiser.final",
    "optimiser.fall",
)  # fmt: skip


class Compared(NamedTuple):
    """How a comparison ended.

    Attributes:
        status: OPTIMAL where every run has ended well, INTERRUPTED, or NUMERICAL_ERROR where one gave up.
        results: one record a run, in the order of seeds and variants (`result_of`); those of the supervised starts
            come first of their seed, under the name `TAUGHT`.
        signal: number of the signal that stopped it.
        seconds, cpu_seconds: of this call.
    """

    status: Status
    results: list[dict[str, Any]]
    signal: int | None
    seconds: float
    cpu_seconds: float


def compare(
    variants: Sequence[Variant],
    seeds: Sequence[int],
    *,
    say: Callable[[dict[str, Any]], Any] = lambda result: None,
    functions: Mapping[str, Callable[..., Any]] | None = None,
) -> Compared:
    """Run every variant on every seed, or what is left of it.

    Args:
        variants: from `read_variants`.
        seeds: each changes the first weights, the data and every draw together.
        say: told each result as it is there.
        functions: score functions by name, beside the shipped ones.

    Raises:
        InvalidOption: the folder holds runs with other settings.
        Others as `train`.
    """
    began, cpu = time.monotonic(), time.process_time()
    folder = compared_folder(variants[0].recipe)
    results: list[dict[str, Any]] = []
    status, signal = Status.OPTIMAL, None
    with stop_flag() as flag:
        for name, recipe, taught in _planned(variants, seeds, folder):
            ended = None if flag.stopped else _ended(name, recipe, taught, functions)
            if ended is None or isinstance(ended, Trained):
                status, signal = Status.INTERRUPTED, flag.signal if ended is None else ended.signal
                break
            results.append(ended)
            say(ended)
            if ended["status"] != str(Status.OPTIMAL):
                status = Status.NUMERICAL_ERROR
                if name == TAUGHT:
                    break
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / RESULTS, json.dumps(results, indent=1) + "\n")
    return Compared(status, results, signal, time.monotonic() - began, time.process_time() - cpu)


def compared_folder(recipe: Recipe) -> Path:
    """Where the comparison of a recipe is written."""
    return Path(recipe.training.folder) / "compared"


def _planned(variants: Sequence[Variant], seeds: Sequence[int], folder: Path) -> Any:
    """(name, recipe of the run, folder of the supervised start or None), in order."""
    for seed in seeds:
        place = folder / f"seed-{seed}"
        first = seeded(variants[0].recipe, seed, place / TAUGHT)
        shared = first.training.supervised_steps > 0 and first.objective.loss != "sft"
        if shared:
            yield TAUGHT, dataclasses.replace(first, training=dataclasses.replace(first.training, steps=0)), None
        for variant in variants:
            recipe = seeded(variant.recipe, seed, place / variant.slug)
            yield variant.name, recipe, place / TAUGHT if shared and not _taught_otherwise(first, recipe) else None


def seeded(recipe: Recipe, seed: int, folder: Path) -> Recipe:
    """The recipe with a seed for its weights, its data and its draws, in a folder of its own."""
    data = recipe.data
    generated = data.source in TASKS or data.source.startswith(GYM)
    settings = {**data.settings, "seed": seed} if generated else data.settings
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(data, seed=seed, settings=settings),
        training=dataclasses.replace(recipe.training, seed=seed, folder=str(folder)),
    )


def _taught_otherwise(one: Recipe, other: Recipe) -> list[str]:
    """Keys that make other supervised steps."""
    return [key for key in _differing(one, other) if not key.startswith(POLICY_KEYS)]


def _differing(one: Recipe, other: Recipe, ignored: tuple[str, ...] = ()) -> list[str]:
    a, b = flat(one), flat(other)
    value = lambda table, key: table.get(key, (None, False))[0]
    return [key for key in a | b if value(a, key) != value(b, key) and not key.startswith(ignored)]


def _ended(name: str, recipe: Recipe, taught: Path | None, functions: Any) -> dict[str, Any] | Trained:
    """The result of a run, known already or made now; the `Trained` of one that was stopped."""
    folder = Path(recipe.training.folder)
    path = folder / RESULT
    if path.is_file():
        # What a run shows on the way is not what it finds.
        told = ("training.folder", "training.reporters", "training.show_samples", "checkpoint.", "mesh.")
        if other := _differing(saved_recipe(folder), recipe, told):
            raise InvalidOption(f"{folder} holds a run with another {', '.join(other)}; choose another training.folder")
        return json.loads(path.read_text(encoding="utf-8"))
    start = None if taught is None else open_run(taught, functions=functions).state.trainable
    cpu = time.process_time()
    trained = train(recipe, resume=True, functions=functions, taught=start)
    if trained.signal is not None:
        return trained
    if trained.evaluation is None:  # it was stopped between its last step and its evaluation
        opened = open_run(folder, functions=functions)
        if opened.prepared.sources.evaluation is not None:
            found = evaluate_policy(opened.prepared, opened.model, opened.step, reference=opened.reference)
            trained = trained._replace(evaluation=found)
    result = result_of(name, recipe, trained) | {"cpu_seconds": time.process_time() - cpu}
    write_atomic(path, json.dumps(result, indent=1) + "\n")
    return result


def result_of(name: str, recipe: Recipe, trained: Trained) -> dict[str, Any]:
    """The record of a run that has ended, as JSON.

    method, seed, status, steps, seconds, folder; reward, and the reward of each of `evaluation.others`, on held-out
    prompts: `{value, low, high}` with the ends of a 95 % interval; constraints: name -> the same with limit, sense,
    violation (> 0: broken), verdict, the mean of its values in the last quarter of the training batches as `late`, and
    its multiplier at the end and at most.
    """
    found = trained.evaluation.scalars if trained.evaluation is not None else {}
    curves = read_metrics(trained.folder / METRICS)
    interval = lambda key: {"value": found[key], "low": found[f"{key}/low"], "high": found[f"{key}/high"]}
    constraints = {}
    for constraint in recipe.constraints:
        key = f"evaluation/constraint/{constraint.name}"
        if f"{key}/value" not in found:
            continue
        line: dict[str, Any] = interval(f"{key}/value") | {
            "limit": found[f"{key}/limit"], "violation": found[f"{key}/violation"],
            "sense": "at least" if KINDS[constraint.kind].sign < 0 else "at most",
        }  # fmt: skip
        line["verdict"] = verdict(line)
        column = lambda field, name=constraint.name: curves.get(f"constraint/{name}/{field}", np.zeros((0, 2)))[:, 1]
        values, shown = column("value"), column("multiplier")
        if len(values):
            late = float(values[-max(1, len(values) // 4) :].mean())
            line |= {"late": late, "multiplier": float(shown[-1]), "multiplier_most": float(shown.max())}
        constraints[constraint.name] = line
    others = {other.name: f"evaluation/{OTHER}{other.name}/reward" for other in recipe.evaluation.others}
    return {
        "method": name, "seed": recipe.training.seed, "status": str(trained.status), "steps": trained.steps,
        "reward": interval("evaluation/reward") if found else None,
        "others": {other: interval(key) for other, key in others.items() if key in found},
        "constraints": constraints, "seconds": trained.total_seconds, "folder": str(trained.folder),
    }  # fmt: skip


def verdict(line: Mapping[str, Any]) -> str:
    """What a held-out value says of its limit: "held", "near" (broken by less than the interval), or "broken".

    Example:
        >>> line = {"value": 0.94, "low": 0.93, "high": 0.95, "limit": 0.95, "violation": 0.01, "sense": "at least"}
        >>> verdict(line), verdict(line | {"high": 0.945}), verdict(line | {"violation": -0.01})
        ('near', 'broken', 'held')
    """
    if line["violation"] <= 0:
        return "held"
    return "near" if line["low"] <= line["limit"] <= line["high"] else "broken"
