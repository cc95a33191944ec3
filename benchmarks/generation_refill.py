"""Texts of uneven lengths: rows that are refilled as soon as they end against batches that wait for their longest.

256 texts end after 8 to 64 tokens, drawn uniformly, 64 at a time. `python -m benchmarks.generation_refill` is the
child that measures both in turn on one core; it prints one JSON object.
"""

import json
import os
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.children import measured
from benchmarks.claims import Claim
from benchmarks.generation_models import CASES, WIDTH
from benchmarks.harness import Options
from benchmarks.report import Table, number

TEXTS, SLOTS, SHORTEST, LONGEST = 256, 64, 8, 64
REQUIRED = 1.3
LIMIT = 300.0
ROUNDS = 5


def child() -> dict[str, Any]:
    """CPU seconds of both ways, best and median, and whether their texts are the same."""
    import jax

    from pdopt.models.config import DecoderConfig
    from pdopt.models.decoder import Decoder, initialise
    from pdopt.training.refill import refill
    from pdopt.training.rollout import generate
    from pdopt.training.sampling import Sampling

    sizes = CASES["width 128 x 4"].sizes
    assert sizes is not None
    config = DecoderConfig(**sizes)
    model = Decoder(initialise(config, jax.random.key(0)), config)
    rng, key = np.random.default_rng(0), jax.random.key(1)
    prompts = rng.integers(1, config.vocabulary, (TEXTS, WIDTH))
    valid, limits = prompts > 0, rng.integers(SHORTEST, LONGEST + 1, TEXTS)
    sampling = Sampling(max_new=LONGEST)

    def refilled() -> np.ndarray:
        return np.asarray(refill(model, prompts, valid, key, sampling, slots=SLOTS, limits=limits).tokens)

    def batched() -> np.ndarray:
        parts = [slice(first, first + SLOTS) for first in range(0, TEXTS, SLOTS)]
        found = [
            generate(model, prompts[p], valid[p], key, sampling, np.arange(TEXTS)[p], limits=limits[p]).tokens
            for p in parts
        ]
        return np.concatenate([np.asarray(tokens) for tokens in found])

    ways = {"refill": refilled, "batches": batched}
    texts = {name: way() for name, way in ways.items()}  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            before = time.process_time()
            way()
            seconds[name].append(time.process_time() - before)
    return {
        "same": float((texts["refill"] == texts["batches"]).mean()), "tokens": int(limits.sum()), "outcome": "done",
        **{f"{name}_cpu": min(found) for name, found in seconds.items()},
        **{f"{name}_cpu_median": median(found) for name, found in seconds.items()},
    }  # fmt: skip


def measure(limit: float = LIMIT) -> dict[str, Any]:
    """The child under a limit of seconds."""
    about = {"texts": TEXTS, "slots": SLOTS, "lengths": [SHORTEST, LONGEST]}
    return measured("benchmarks.generation_refill", (), about, limit)


def section(options: Options, say: Any = print) -> tuple[list[dict[str, Any]], list[Claim], list[Table], list[Path]]:
    """The record, its claims and table; the same size in quick and full runs."""
    record = measure()
    say(f"refill: {number(record.get('refill_cpu'))} CPU s, in batches {number(record.get('batches_cpu'))}")
    return [record], claims(record), [table(record)], []


def claims(record: dict[str, Any]) -> list[Claim]:
    """The gain, and that the texts are the same."""
    gain = f"CPU seconds of batches over refill, {TEXTS} texts of {SHORTEST} to {LONGEST} tokens, {SLOTS} at a time"
    same = "share of tokens that are the same with refill as in batches"
    if record["outcome"] != "done":
        return [Claim(gain, None, REQUIRED, ">=", record["outcome"]), Claim(same, None, 1.0, ">=", record["outcome"])]
    middle = record["batches_cpu_median"] / record["refill_cpu_median"]
    return [
        Claim(gain, record["batches_cpu"] / record["refill_cpu"], REQUIRED, ">=", f"by medians {middle:.3g}"),
        Claim(same, record["same"], 1.0, ">="),
    ]


def table(record: dict[str, Any]) -> Table:
    """Both ways."""
    rows = [
        [way, number(record.get(f"{way}_cpu")), number(record.get(f"{way}_cpu_median")),
         number(record["tokens"] / record[f"{way}_cpu"] if record["outcome"] == "done" else None), record["outcome"]]
        for way in ("refill", "batches")
    ]  # fmt: skip
    columns = ["way", "CPU s", "median", "tokens / CPU s", "outcome"]
    return Table(f"{TEXTS} texts of {SHORTEST} to {LONGEST} tokens, {SLOTS} at a time, width 128 x 4", columns, rows)


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(json.dumps(child()))
