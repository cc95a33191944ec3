"""The child process of the training benchmark: one engine on one core, told what to do line by line.

`python -m benchmarks.training_engines ENGINE FOLDER` loads the folder of `benchmarks.training_models`, says
`{"ready": ...}`, answers the first line `{"gradient": FILE, "updated": FILE}` by the loss of the fixed batch, its
gradient and the parameters after one update in files under Hugging Face names, and each further line `{"seed": n}` by
one step of training: CPU seconds of generation with the reward and of the update, and peaks of the resident set.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.children import answering
from benchmarks.training_models import (
    BATCH,
    CLIP,
    DATA,
    EPSILON,
    GROUP,
    NEVER,
    NEW,
    PROMPTS,
    RATE,
    ROWS,
    WORDS,
    even_share,
)  # fmt: skip

ENGINES = ("pdopt", "trl")
PACKAGES = {"pdopt": ("jax", "jaxlib"), "trl": ("trl", "transformers", "torch")}


class Pdopt:
    """What `training.trainer` does in a step, with the clock read between rollout and update."""

    def __init__(self, folder: Path) -> None:
        from pdopt.training.preparation import prepare, start
        from pdopt.training.recipe import make_recipe

        recipe = make_recipe({
            "model": {"path": str(folder), "tokenizer": str(folder / WORDS)},
            "data": {"source": str(folder / DATA), "held_out": 0},
            "sampling": {"max_new": NEW},
            "objective": {
                "loss": "dapo", "advantage": "centred", "rewards": [{"name": "even"}],
                "epsilon_low": EPSILON[0], "epsilon_high": EPSILON[1],
            },
            "optimiser": {"learning_rate": RATE, "clip": CLIP},
            "training": {"prompts": PROMPTS, "group": GROUP, "folder": str(folder / "run")},
        })  # fmt: skip
        self.prepared = prepare(recipe, functions={"even": even_share})
        self.fixed, self.state = start(self.prepared)

    def check(self, order: dict[str, Any], batch: dict[str, np.ndarray]) -> float:
        """The loss; gradient and updated parameters into files."""
        import jax
        import optax

        from pdopt.models.checkpoints import export
        from pdopt.training.gradients import Part, gradient
        from pdopt.training.optimiser import make_optimiser
        from pdopt.training.step import policy_objective

        plan, mask = self.prepared.plan, batch["mask"]
        part = Part(
            batch["prompts"][::GROUP], batch["valid"][::GROUP], batch["tokens"], mask, mask,
            np.zeros(mask.shape, np.float32), advantage=batch["advantage"],
        )  # fmt: skip
        part = jax.tree.map(jax.numpy.asarray, part)

        @jax.jit
        def both(state: Any, part: Any) -> Any:
            loss, found, _ = gradient(self.fixed, state.trainable, part, policy_objective(plan), plan.temperature)
            moved, _ = make_optimiser(plan.optimiser).update(found, state.optimiser, state.trainable)
            return loss, found, optax.apply_updates(state.trainable, moved)

        loss, found, updated = both(self.state, part)
        for tree, place in ((found, order["gradient"]), (updated, order["updated"])):
            export(dataclasses.replace(self.fixed.model, params=tree), Path(place))
        return float(loss)

    def steps(self, orders: Iterator[dict[str, Any]], say: Any) -> None:
        """One step an order."""
        import jax

        from pdopt.runtime.heap import give_back
        from pdopt.training.data import Position, next_batch
        from pdopt.training.feed import prompt_arrays
        from pdopt.training.rollout import generate, packed_weights
        from pdopt.training.scoring import Sampled
        from pdopt.training.state import policy, step_key
        from pdopt.training.step import Experience, policy_step

        prepared, position = self.prepared, Position()
        sampling = dataclasses.replace(prepared.sampling, eos=(NEVER,))
        for order in orders:
            clock = Clock()
            batch, position = next_batch(prepared.stream, position)
            asked = prompt_arrays(batch, GROUP, prepared.policy.pad, None)
            rolled = generate(
                packed_weights(policy(self.fixed, self.state.trainable)), asked.once, asked.once_valid,
                step_key(self.state), sampling, asked.numbers, prepared.policy.pad, group=GROUP,
            )  # fmt: skip
            arrays = (np.asarray(x) for x in (asked.prompts, asked.valid, rolled.tokens, rolled.mask))
            prompts, valid, tokens, mask = arrays
            sampled = Sampled(asked.rows, prompts, valid, tokens, mask, order["seed"])
            scores = prepared.scorer(sampled)
            clock.lap()
            seen = Experience(
                asked.prompts, asked.valid, rolled.tokens, rolled.mask, rolled.log_probs, rolled.finished,
                jax.numpy.asarray(scores.rewards), {}, {},
            )  # fmt: skip
            self.state, report = policy_step(prepared.plan, self.fixed, self.state, seen)
            report = jax.device_get(report)
            say(**clock.read(), loss=float(report["loss"]), tokens=float(report["tokens"]))
            give_back()  # as `train` does after a step that was compiled for


class Trl:
    """`GRPOTrainer.train` itself; a callback waits for the next order before each step."""

    def __init__(self, folder: Path) -> None:
        import torch
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

        torch.set_num_threads(1)
        rows = [json.loads(line) for line in (folder / DATA).read_text().splitlines()]
        config = GRPOConfig(
            output_dir=str(folder / "trl"), use_cpu=True, bf16=False, report_to="none", save_strategy="no",
            logging_strategy="no", disable_tqdm=True, dataloader_num_workers=0, max_steps=10_000,
            per_device_train_batch_size=ROWS, gradient_accumulation_steps=1, num_generations=GROUP,
            max_completion_length=NEW, loss_type="dapo", beta=0.0, epsilon=EPSILON[0], epsilon_high=EPSILON[1],
            temperature=1.0, top_p=1.0, top_k=0, learning_rate=RATE, lr_scheduler_type="constant",
            max_grad_norm=CLIP, weight_decay=0.0, gradient_checkpointing=False,
            generation_kwargs={"eos_token_id": NEVER},
        )  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.trainer = GRPOTrainer(
            model, even_share, args=config, train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(folder / WORDS),
        )  # fmt: skip
        self.trainer.eos_token_ids = [NEVER]

    def check(self, order: dict[str, Any], batch: dict[str, np.ndarray]) -> float:
        """The loss; gradient and updated parameters into files; the parameters are put back."""
        import torch
        from safetensors.torch import save_file

        trainer = self.trainer
        model = trainer.model
        whole = lambda name: torch.from_numpy(batch[name].astype(np.int64))
        inputs = {
            "prompt_ids": whole("prompts"), "prompt_mask": whole("valid"), "completion_ids": whole("tokens"),
            "completion_mask": whole("mask"), "advantages": torch.from_numpy(batch["advantage"]),
            "num_items_in_batch": whole("mask").sum(),
        }  # fmt: skip
        kept = {name: value.clone() for name, value in model.state_dict().items()}
        model.train()
        trainer.current_gradient_accumulation_steps = 1
        loss = trainer.compute_loss(model, inputs)
        loss.backward()
        named = lambda read: {name: read(p).detach().clone().contiguous() for name, p in model.named_parameters()}
        save_file(named(lambda p: p.grad), order["gradient"])
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        trainer.create_optimizer()
        trainer.optimizer.step()
        save_file(named(lambda p: p), order["updated"])
        model.load_state_dict(kept)
        model.zero_grad(set_to_none=True)
        trainer.optimizer = None
        for metrics in trainer._metrics.values():
            metrics.clear()
        return float(loss)

    def steps(self, orders: Iterator[dict[str, Any]], say: Any) -> None:
        """One step an order."""
        from transformers import TrainerCallback

        clock = Clock()
        sample = self.trainer._generate_and_score_completions

        def timed(*given: Any, **named: Any) -> Any:
            found = sample(*given, **named)
            clock.lap()
            clock.tokens = float(found["completion_mask"].sum())
            return found

        class Turns(TrainerCallback):
            """Waits before a step, answers behind it."""

            def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
                if next(orders, None) is None:
                    sys.exit(0)
                clock.start()

            def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
                say(**clock.read(), tokens=clock.tokens)

        self.trainer._generate_and_score_completions = timed
        self.trainer.add_callback(Turns())
        self.trainer.train()


class Clock:
    """CPU and wall seconds of the two parts of a step, and the peak of the resident set in it."""

    def __init__(self) -> None:
        self.tokens = 0.0
        self.start()

    def start(self) -> None:
        """The step begins."""
        from benchmarks.generation_engines import reset_peak

        self.reset = reset_peak()
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        self.rolled = self.cpu

    def lap(self) -> None:
        """Completions are scored; the update begins."""
        self.rolled = time.process_time()

    def read(self) -> dict[str, Any]:
        """The step has ended."""
        from benchmarks.transport_memory import peak_mb

        cpu, wall = time.process_time(), time.perf_counter()
        return {
            "rollout": self.rolled - self.cpu, "update": cpu - self.rolled, "step": cpu - self.cpu,
            "wall": wall - self.wall, "peak_mb": peak_mb() if self.reset else None,
        }  # fmt: skip


def resident_mb() -> float | None:
    """The resident set of this process now, MB; None where the system does not say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    found = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmRSS")]
    return int(found[0]) * 1024 / 1e6 if found else None


def serve(name: str, folder: Path) -> None:
    """Load, compare, then step by step until there is no further line."""
    say = answering()
    started = time.process_time()
    try:
        engine = {"pdopt": Pdopt, "trl": Trl}[name](folder)
    except ImportError as error:
        say(missing=str(error))
        return
    versions = {package: metadata.version(package) for package in PACKAGES[name]}
    say(ready=time.process_time() - started, versions=versions, loaded_mb=resident_mb())
    orders = (json.loads(line) for line in sys.stdin)
    for order in orders:
        with np.load(folder / BATCH) as file:
            say(loss=engine.check(order, dict(file)))
        break
    engine.steps(orders, say)


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
