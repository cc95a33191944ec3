"""The loop of a training run on the host: prompts, rollout, scores, step, and all that surrounds them.

    for each step:   sample completions of the present policy -> score them -> respond and advance (`step.policy_step`)

Metrics are fetched one step late: while the devices sample, the host reads what the step before has left. A run can be
stopped at any moment and continued: the state, the position in the data and the identity of the run are in its
checkpoints, every draw comes from the run's key and the step's number, so an interrupted run repeats the bits of one
that was not (same mesh and versions). SIGTERM and Ctrl-C end the step, save, and return. Meanwhile a second SIGTERM
changes nothing (launchers repeat it), and a second Ctrl-C raises at once: a state that is half written is never taken
for a whole one, and the run goes on from the one before.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from pdopt.errors import CheckpointError
from pdopt.runtime.heap import AfterCompiling
from pdopt.runtime.interrupts import StopFlag, stop_flag
from pdopt.training.data import Position, next_batch, position_record, resume_position
from pdopt.training.evaluating import Evaluation, evaluate_policy
from pdopt.training.feed import completion_columns, on_devices, own_rows, prompt_arrays, taught_arrays
from pdopt.training.gradients import Part
from pdopt.training.optimiser import init_moments, supervised_settings
from pdopt.training.preparation import Prepared, prepare, reference_of, start
from pdopt.training.prices import loads, moved
from pdopt.training.prompts import Prompts
from pdopt.training.recipe import Recipe
from pdopt.training.reporters import Reporter, open_reporters, several
from pdopt.training.rollouter import corrected
from pdopt.training.saving import TOKENIZER, RunFolder, require_new, write_recipe
from pdopt.training.scoring import Sampled, Scorer, Scores
from pdopt.training.settings import as_table
from pdopt.training.state import Fixed, TrainState, policy, priced, reference_from, reference_tree, step_key
from pdopt.training.step import Experience, policy_step, supervised_step
from pdopt.types import Status


class Trained(NamedTuple):
    """How a run ended.

    Attributes:
        status: OPTIMAL for a run that took all its steps, INTERRUPTED, or NUMERICAL_ERROR.
        steps: taken in all, supervised ones included.
        state: the last one; None where it was given to a caller that went on.
        metrics: of the last step.
        evaluation: the last one, None if there was none.
        folder: of the run.
        signal: number of the signal that stopped it.
        seconds: wall seconds of this call; total_seconds: of the run, earlier calls included.
    """

    status: Status
    steps: int
    state: TrainState
    metrics: dict[str, float]
    evaluation: Evaluation | None
    folder: Path
    signal: int | None
    seconds: float
    total_seconds: float


class Drawn(NamedTuple):
    """Completions `(b, t)` as a step takes them; weights and metrics where another engine drew them."""

    tokens: Any
    mask: Any
    log_probs: Any
    finished: Any
    weights: Any = None
    metrics: Mapping[str, Any] = MappingProxyType({})


def train(
    recipe: Recipe,
    *,
    reporters: Sequence[Reporter] | None = None,
    resume: bool = False,
    functions: Mapping[str, Callable[..., Any]] | None = None,
    scorer: Scorer | None = None,
    taught: Any = None,
) -> Trained:
    """Run a recipe to its end, or go on with a run.

    Args:
        recipe: resolved (`recipe.read_recipe`).
        reporters: who is told; None makes those of the recipe.
        resume: go on from the newest whole checkpoint in `training.folder`; from the start, if it holds none.
        functions: score functions by name, beside the shipped ones.
        scorer: what scores completions, in place of the recipe's functions.
        taught: what the supervised steps have made already, as `TrainState.trainable` of a run of the same model, data
            and seed: they are not taken again. The run has the bits of one that takes them.

    Raises:
        InvalidOption: what a recipe names does not exist or does not fit; the folder holds another run.
        CheckpointError: the folder cannot be used, or the checkpoint belongs to another run.
        ScoreError: a score function failed (`objective.failed_reward`).
        KeyboardInterrupt: at a second Ctrl-C.
    """
    folder = Path(recipe.training.folder)
    if not resume:
        require_new(folder)
    prepared = prepare(recipe, folder=folder if resume else None, functions=functions, scorer=scorer)
    with RunFolder(folder, prepared.identity, recipe.checkpoint) as files, stop_flag() as flag:
        if jax.process_index() == 0:
            write_recipe(folder, recipe)
            prepared.policy.tokenizer.save_pretrained(folder / TOKENIZER)
        run = _Run(prepared, files, flag)
        run.open(resume, taught)
        if jax.process_index() == 0:
            run.reporter = _reporter(recipe, run, resume) if reporters is None else several(*reporters)
        try:
            return run.go()
        finally:
            run.reporter.close()


def _reporter(recipe: Recipe, run: "_Run", resume: bool) -> Reporter:
    training = recipe.training
    return open_reporters(
        training.reporters, training.folder, resume=run.step + 1 if resume else None, total=run.total,
        config=as_table(recipe),
    )  # fmt: skip


class _Run:
    """The state of the host loop: everything here can be made again from the last checkpoint."""

    def __init__(self, prepared: Prepared, files: RunFolder, flag: StopFlag) -> None:
        self.prepared, self.files, self.flag = prepared, files, flag
        self.recipe = prepared.recipe
        self.reporter: Reporter = several()
        self.rollouter = prepared.rollouter
        self.position = self.lessons = Position()
        self.late: tuple[int, dict[str, Any], dict[str, float]] | None = None
        self.metrics: dict[str, float] = {}
        self.evaluation: Evaluation | None = None
        self.shapes: set[tuple[int, ...]] = set()
        self.heap = AfterCompiling()
        self.seconds_before = 0.0
        self.began = time.monotonic()
        training = self.recipe.training
        only_taught = self.recipe.objective.loss == "sft"
        self.taught = training.supervised_steps + (training.steps if only_taught else 0)
        self.total = training.supervised_steps + training.steps

    def open(self, resume: bool, taught: Any = None) -> None:
        """The first state, the one that was saved, or the one that was taught elsewhere."""
        self.fixed, self.state = start(self.prepared)
        self.step = 0
        if taught is not None:
            self.step = self.recipe.training.supervised_steps
            place = lambda new, old: jax.device_put(jax.numpy.copy(new), old.sharding)
            placed = jax.tree.map(place, taught, self.state.trainable)
            step = jax.device_put(jax.numpy.int32(self.step), self.state.step.sharding)
            self.state = self.state._replace(step=step, trainable=placed)
        if resume and self.files.latest() is not None:
            found = self.files.restore(self.state)
            self.state, self.step = found.state, found.step
            self.position = resume_position(self.prepared.stream, found.extra["position"])
            self.lessons = resume_position(self.prepared.lessons, found.extra["lessons"])
            self.seconds_before = float(found.extra.get("seconds", 0.0))
        if self.step > self.taught or (self.step == self.taught and self.taught):
            kept = self.files.restore_reference(reference_tree(self.state))
            if kept is not None:
                self._refer(kept)

    def go(self) -> Trained:
        """Take the steps that are left."""
        status = Status.OPTIMAL
        while self.step < self.total:
            taught = self.step < self.taught
            if self.step == self.recipe.training.supervised_steps and not taught:
                self._begin_policy()
            self._teach() if taught else self._practise()
            self.step += 1
            stopping = self._stopping()
            if stopping or self.step == self.total:
                self._collect()
            if self._bad():
                status = Status.NUMERICAL_ERROR
                self.files.save(self.step, self.state, self._extra())  # skipped steps left it as the last good one was
                break
            due = self.step % self.recipe.checkpoint.every == 0
            self._evaluate_if_due(stopping)
            if due or stopping or self.step == self.total:
                self.files.save(self.step, self.state, self._extra())
            if stopping and self.step < self.total:
                status = Status.INTERRUPTED
                break
        self.files.wait()
        return Trained(
            status, self.step, self.state, self.metrics, self.evaluation, self.files.path, self.flag.signal,
            (now := time.monotonic()) - self.began, self.seconds_before + now - self.began,
        )  # fmt: skip

    def _begin_policy(self) -> None:
        """Between supervised and policy steps: new moments, and the reference is the policy of now."""
        if self.recipe.training.supervised_steps:
            moments = init_moments(self.recipe.optimiser, self.state.trainable)
            placed = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), moments, self.state.optimiser)
            self.state = self.state._replace(optimiser=placed)
        reference = reference_of(self.prepared, self.fixed, self.state)
        if reference is None:
            return
        if self.fixed.model.params is None:
            kept = self.files.restore_reference(reference_tree(self.state))
            if kept is None:
                self.files.save_reference(kept := reference_tree(self.state))
                kept = jax.tree.map(jax.numpy.copy, kept)  # steps reuse the state's memory
            self._refer(kept)
        else:
            self.fixed = Fixed(self.fixed.model, reference)

    def _refer(self, kept: Any) -> None:
        self.fixed = Fixed(self.fixed.model, reference_from(self.fixed, kept))

    def _policy(self) -> Any:
        """The decoder of now, with the prices of now."""
        return policy(priced(self.fixed, self.state.prices), self.state.trainable)

    def _stepped(self, step: Callable[..., Any], texts: tuple[Any, ...]) -> dict[str, Any]:
        """Take a step, and then move the experts' prices by where the texts of its batch went; the step's report."""
        prices, read = self.state.prices, priced(self.fixed, self.state.prices)
        told: dict[str, Any] = {}
        if prices is not None:
            present = policy(read, self.state.trainable)
            tallies = loads(present, *texts, self.recipe.training.micro_rows)
            prices, told = moved(dataclasses.replace(present, params=None, adapters=None), tallies)
        self.state, report = step(read, self.state._replace(prices=None))
        self.state = self.state._replace(prices=prices)
        self._settle()
        return report | told

    def _teach(self) -> None:
        """One supervised step."""
        recipe, prepared = self.recipe, self.prepared
        began = time.monotonic()
        batch, self.lessons = next_batch(prepared.lessons, self.lessons)
        part = taught_arrays(
            batch, recipe, prepared.policy.tokenizer, prepared.policy.eos[0], prepared.policy.pad, prepared.mesh
        )
        alone = recipe.objective.loss == "sft" and not recipe.training.supervised_steps
        settings = recipe.optimiser if alone else supervised_settings(recipe.training, recipe.optimiser)
        step = lambda fixed, state: supervised_step(settings, fixed, state, part, recipe.training.micro_rows)
        report = self._stepped(step, (part.prompts, part.valid, part.tokens, part.present))
        self._shape(part.prompts.shape, part.tokens.shape)
        self._collect()
        host = {"phase": 0.0, "dropped": float(batch.dropped), "dispatched": time.monotonic(), "began": began}
        self.late = (self.step + 1, report, host)

    def _practise(self) -> None:
        """One policy step: sample, score, respond and advance."""
        recipe, prepared = self.recipe, self.prepared
        training = recipe.training
        began = time.monotonic()
        batch, self.position = next_batch(prepared.stream, self.position)
        asked = prompt_arrays(batch, training.group, prepared.policy.pad, prepared.mesh)
        drawn = self._draw(asked)
        sampled = time.monotonic()
        own = self._own
        scores = prepared.scorer(
            Sampled(asked.rows, own(asked.prompts), own(asked.valid), own(drawn.tokens), own(drawn.mask), self.step)
        )
        scored = time.monotonic()
        seen = Experience(
            asked.prompts, asked.valid, drawn.tokens, drawn.mask, drawn.log_probs, drawn.finished,
            *self._placed(scores), self._classes(batch), drawn.weights,
        )  # fmt: skip
        self._shape(asked.prompts.shape, drawn.tokens.shape)
        step = lambda fixed, state: policy_step(prepared.plan, fixed, state, seen)
        report = self._stepped(step, (seen.prompts, seen.valid, seen.tokens, seen.mask))
        host = {
            "phase": 1.0, "dropped": float(batch.dropped), "began": began, "dispatched": time.monotonic(),
            "seconds_rollout": sampled - began, "seconds_reward": scored - sampled,
            **{f"reward/{name}": float(np.nanmean(part)) for name, part in scores.parts.items() if _some(part)},
        }  # fmt: skip
        self.late = (self.step + 1, {**report, **drawn.metrics}, host)

    def _draw(self, asked: Any) -> Drawn:
        """Completions of the present policy, which the devices make while the step before is reported."""
        prepared, recipe = self.prepared, self.recipe
        present = self._policy()
        self.rollouter = self.rollouter.update(present)
        prompts = Prompts(asked.once, asked.once_valid, asked.numbers, np.arange(len(asked.once)))
        rolled = self.rollouter.generate(prompts, step_key(self.state), prepared.sampling)
        self._collect()
        foreign = rolled.log_probs is None
        # What comes from a host, not from our own devices, is placed as everything else is.
        hosted = foreign or not isinstance(rolled.tokens, jax.Array)
        here = lambda x: on_devices(np.asarray(x), prepared.mesh) if hosted else x
        longest = np.asarray(rolled.mask).sum(axis=1).max() if hosted else rolled.steps
        columns = completion_columns(int(longest), recipe.sampling.max_new)
        logs = rolled.sampler_log_probs if foreign else rolled.log_probs
        tokens, mask, logs = (here(x[:, :columns]) for x in (rolled.tokens, rolled.mask, logs))
        finished = here(rolled.finished)
        if not foreign:
            return Drawn(tokens, mask, logs, finished)
        part = Part(asked.prompts, asked.valid, tokens, mask, mask)
        micro, cap = recipe.training.micro_rows, recipe.sampling.engine.cap
        found = corrected(present, part, logs, recipe.sampling.temperature, cap, micro)
        return Drawn(tokens, mask, found.log_probs, finished, found.weights, found.metrics)

    def _own(self, x: Any) -> Any:
        return x if self.prepared.mesh is None else own_rows(x)

    def _placed(self, scores: Scores) -> tuple[Any, dict[str, Any]]:
        """Rewards and costs on the devices, float32."""
        place = lambda x: x if isinstance(x, jax.Array) else on_devices(np.asarray(x, np.float32), self.prepared.mesh)
        return place(scores.rewards), {name: place(value) for name, value in scores.values.items()}

    def _classes(self, batch: Any) -> dict[str, Any]:
        """The class of each prompt, for constraints that have classes; -1, none, where the row does not say."""
        found = {}
        for constraint in self.recipe.constraints:
            if constraint.class_column:
                column = [row.get(constraint.class_column) for row in batch.rows]
                numbers = np.array([-1 if value is None else int(value) for value in column], np.int32)
                found[constraint.name] = on_devices(numbers, self.prepared.mesh)
        return found

    def _settle(self) -> None:
        """On a mesh of CPU devices, wait: programs with collectives must not wait for each other's threads there."""
        if self.prepared.mesh is not None and jax.default_backend() == "cpu":
            jax.block_until_ready(self.state)

    def _shape(self, prompts: tuple[int, ...], tokens: tuple[int, ...]) -> None:
        self.shapes.add((*prompts, tokens[1]))

    def _collect(self) -> None:
        """Read what the step before has left, and tell the reporters."""
        self.heap.look(len(self.shapes))
        if self.late is None:
            return
        step, report, host = self.late
        self.late = None
        taught = host["phase"] == 0
        # Those of both phases are one series.
        both = ("bad", "skipped", "experts/")
        named = lambda name: f"supervised/{name}" if taught and not name.startswith(both) else name
        values = {named(name): float(value) for name, value in jax.device_get(report).items()}
        now = time.monotonic()
        host["seconds_update"] = now - host.pop("dispatched")
        host["seconds_step"] = now - host.pop("began")
        host["programs"] = float(len(self.shapes))
        if "tokens" in values:
            host["tokens_per_second"] = values["tokens"] / max(host["seconds_step"], 1e-9)
        self.metrics = values | host
        self.reporter.scalars(step, self.metrics)

    def _bad(self) -> bool:
        """Whether too many steps in a row were skipped."""
        return self.metrics.get("bad", 0) >= self.recipe.training.max_bad_steps

    def _stopping(self) -> bool:
        """Whether a signal asked for the end; the same answer on every process."""
        if jax.process_count() == 1:
            return self.flag.stopped
        from jax.experimental import multihost_utils

        reached = multihost_utils.reached_preemption_sync_point(self.step)
        asked = multihost_utils.process_allgather(np.int32(self.flag.stopped))
        return bool(reached or np.any(asked))

    def _evaluate_if_due(self, stopping: bool) -> None:
        every = self.recipe.evaluation.every
        due = (every and self.step % every == 0) or self.step == self.total
        if not due or stopping or self.prepared.sources.evaluation is None or self.recipe.objective.loss == "sft":
            return
        self._collect()
        found = evaluate_policy(self.prepared, self._policy(), self.step, reference=self.fixed.reference)
        self.evaluation = found
        self.reporter.scalars(self.step, found.scalars)
        if shown := found.samples[: self.recipe.training.show_samples]:
            self.reporter.text(self.step, shown)
        best = self.recipe.checkpoint.best
        if best:
            if best not in found.scalars:
                known = ", ".join(sorted(found.scalars))
                raise CheckpointError(f"checkpoint.best is {best!r}; the evaluation has {known}")
            self.files.save_best(self.step, self.state, found.scalars[best], self._extra())

    def _extra(self) -> dict[str, Any]:
        return {
            "position": position_record(self.prepared.stream, self.position),
            "lessons": position_record(self.prepared.lessons, self.lessons),
            "seconds": self.seconds_before + time.monotonic() - self.began,
            "recipe": self.recipe.as_toml(),
        }


def _some(part: Any) -> bool:
    return bool(np.any(~np.isnan(np.asarray(part, np.float64))))
