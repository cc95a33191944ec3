"""The evaluation of a policy on prompts kept apart: sample, score as in training, and say how sure the numbers are.

Every evaluation draws with the same key, so that two of them differ by the policy and not by luck. Nothing here moves
a multiplier or a parameter.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from pdopt.models.decoder import Decoder
from pdopt.training.constraint_kinds import KINDS
from pdopt.training.data import Position, next_batch
from pdopt.training.evaluation import Interval, bootstrap, judge, pass_at_k, row_means
from pdopt.training.feed import open_stream, own_rows, prompt_arrays
from pdopt.training.gradients import Part, scores_in_parts
from pdopt.training.preparation import Prepared
from pdopt.training.regularisers import kl_cost
from pdopt.training.rewards import text_of
from pdopt.training.rollout import generate, packed_weights
from pdopt.training.scalars import OTHER
from pdopt.training.scoring import MEASURED, Sampled, Scores
from pdopt.training.sections import ConstraintConfig, EvaluationConfig
from pdopt.training.tasks import Source


class Evaluation(NamedTuple):
    """What an evaluation found.

    Attributes:
        step: of the policy.
        scalars: flat names `evaluation/...` -> numbers; intervals as `.../low` and `.../high`.
        samples: prompt, completion and scores of some completions.
        prompts, completions: how many there were.
    """

    step: int
    scalars: dict[str, float]
    samples: list[dict[str, Any]]
    prompts: int
    completions: int


def evaluate_policy(
    prepared: Prepared, model: Decoder, step: int, settings: EvaluationConfig | None = None, prompts: int | None = None,
    reference: Decoder | None = None,
) -> Evaluation:  # fmt: skip
    """Evaluate a policy on the held-out rows of its recipe, and on those of `evaluation.others`.

    Args:
        prepared: the run.
        model: the policy.
        step: for reports.
        settings: in place of the recipe's section.
        prompts: how many rows; None takes all of a table, `data.held_out` of a task.
        reference: what KL is measured against; None measures none.
    """
    recipe = prepared.recipe
    settings = settings or recipe.evaluation
    source = prepared.sources.evaluation
    assert source is not None
    ask = partial(_asked, prepared, model, reference, step, settings, prompts)
    table = ask(source)
    scalars = _scalars(table, settings, recipe.constraints, "evaluation/")
    for name, other in prepared.sources.others.items():
        scalars |= _scalars(ask(other), settings, recipe.constraints, f"evaluation/{OTHER}{name}/")
    count = len(table["reward"])
    return Evaluation(step, scalars, table["samples"], count, count * settings.samples)


def _asked(
    prepared: Prepared, model: Decoder, reference: Decoder | None, step: int, settings: EvaluationConfig,
    prompts: int | None, source: Source,
) -> dict[str, Any]:  # fmt: skip
    """Scores of completions of a source's prompts, `(prompts, samples)` by name, and the samples to read."""
    recipe = prepared.recipe
    wanted = prompts or source.size or recipe.data.held_out
    # As many rows at once as a training step has, or nearly.
    batch_size = recipe.training.prompts * max(1, recipe.training.group // settings.samples)
    stream = open_stream(recipe.data, source, prepared.policy.tokenizer, batch_size, shuffle=False)
    sampling = prepared.sampling.replace(temperature=jax.numpy.float32(settings.temperature))
    key = jax.random.fold_in(jax.random.key(recipe.training.seed), 2)
    ready, position, tables = packed_weights(model), Position(), []
    for start in range(0, wanted, batch_size):
        batch, position = next_batch(stream, position)
        asked = prompt_arrays(batch, settings.samples, prepared.policy.pad, prepared.mesh)
        numbers = asked.numbers + start * settings.samples
        rolled = generate(
            ready, asked.once, asked.once_valid, key, sampling, numbers, prepared.policy.pad, group=settings.samples
        )
        seen = [own_rows(x) for x in (asked.prompts, asked.valid, rolled.tokens, rolled.mask)]
        scores = prepared.scorer(Sampled(asked.rows, seen[0], seen[1], seen[2], seen[3], step))
        table = _table(asked.rows, scores, own_rows(rolled.mask), recipe.data.prompt, len(batch.rows))
        if reference is not None:
            part = Part(asked.prompts, asked.valid, rolled.tokens, rolled.mask, rolled.mask)
            found = _divergence(model, reference, part, recipe.sampling.temperature, recipe.training.micro_rows)
            table |= {name: own_rows(value).reshape(len(batch.rows), -1) for name, value in found.items()}
        tables.append(table)
    table = {name: _gathered([t[name] for t in tables], wanted) for name in tables[0] if name != "samples"}
    return table | {"samples": tables[0]["samples"]}


@partial(jax.jit, static_argnames=("micro",))
def _divergence(model: Decoder, reference: Decoder, part: Part, temperature: Any, micro: int | None) -> dict[str, Any]:
    """KL(policy || reference) of each completion `(b,)`: the cost of a constraint of that kind, and k3 a token."""
    ours, theirs = (scores_in_parts(one, part, temperature, micro).log_probs for one in (model, reference))
    return {"kl": kl_cost(ours, theirs, part.mask), "kl_k3": kl_cost(ours, theirs, part.mask, "k3", "mean")}


def _table(rows: Sequence[Any], scores: Scores, mask: np.ndarray, prompt: str, prompts: int) -> dict[str, Any]:
    """Scores of one batch, `(prompts, samples)` each, and its texts."""
    shaped = lambda x: np.asarray(own_rows(x), np.float64).reshape(prompts, -1)
    found: dict[str, Any] = {"reward": shaped(scores.rewards), "length": mask.sum(axis=1).reshape(prompts, -1)}
    first = next(iter(scores.parts.values()), scores.rewards)
    found["first"] = shaped(first)
    found |= {f"value/{name}": shaped(value) for name, value in scores.values.items()}
    firsts = range(0, len(scores.texts), len(rows) // prompts)  # the first completion of each prompt
    rewards = found["reward"][:, 0]
    found["samples"] = [
        {"prompt": _said(rows[i][prompt]), "completion": scores.texts[i], "reward": float(reward)}
        for i, reward in zip(firsts, rewards)
    ]
    return found


def _said(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else text_of([{**m, "role": "assistant"} for m in prompt])


def _gathered(parts: list[np.ndarray], wanted: int) -> np.ndarray:
    """All batches, of all processes, in the order of the prompts."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        parts = [np.concatenate(list(multihost_utils.process_allgather(part))) for part in parts]
    return np.concatenate(parts)[:wanted]


def _scalars(
    table: Mapping[str, Any], settings: EvaluationConfig, constraints: Sequence[ConstraintConfig], prefix: str
) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in ("reward", "length", "kl", "kl_k3"):
        if name in table:
            found |= _interval(prefix + name, bootstrap(row_means(table[name])))
    first = table["first"]
    right = np.where(np.isnan(first), np.nan, first >= settings.correct)
    for k in settings.k:
        found |= _interval(f"{prefix}pass@{k}", bootstrap(pass_at_k(right, k)))
    for constraint in constraints:
        values = table.get(constraint.kind if constraint.kind in MEASURED else f"value/{constraint.name}")
        if values is None or constraint.limit is None:
            continue  # KL without its reference; classes are reported in training
        if constraint.threshold is not None:
            values = np.where(np.isnan(values), np.nan, values > constraint.threshold)
        sense = "at least" if KINDS[constraint.kind].sign < 0 else "at most"
        held = judge(values, constraint.limit, sense=sense)
        name = f"{prefix}constraint/{constraint.name}"
        found |= _interval(f"{name}/value", held.value)
        off = abs(held.violation) if KINDS[constraint.kind].free else held.violation
        found |= {f"{name}/limit": constraint.limit, f"{name}/violation": off, f"{name}/confidence": held.confidence}
    return found


def _interval(name: str, found: Interval) -> dict[str, float]:
    return {name: found.mean, f"{name}/low": found.low, f"{name}/high": found.high}
