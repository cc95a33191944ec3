"""The rows of the `faithful` comparison: methods as settings of one compiled run, and one record a run."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.faithful_policy import FORMS, HINT, NO_HINT, PROXY_HINT, Setting, Size, judge, teach, traced, train
from pdopt.training.scenes import to_text

SEPARATE, JOINT, LAGRANGIAN = range(len(FORMS))
# The latter is what the rule of the scenes recipe plans for 200 steps.
PLAIN, RECOMMENDED = "plain GRPO", "step 1, theta 5, separate"
LAST = 50  # batches whose mean stands beside the final figure
PROXY_LATE = 200  # the same for the proxy variant, whose figures are means of a wandering policy


def fixed(weight: float, form: int = JOINT) -> Setting:
    """A weight that never moves."""
    return Setting(form, start=(weight, weight))


def ascent(step: float, form: int = SEPARATE, theta: float = 0.0, **others: Any) -> Setting:
    """Multipliers that move: dual ascent, and with theta the same as a PI controller with `kp = theta step`."""
    return Setting(form, step, theta, **others)


METHODS = {
    PLAIN: Setting(),
    "fixed weight 0.1, joint": fixed(0.1),
    "fixed weight 0.5, joint": fixed(0.5),
    "fixed weight 1, joint": fixed(1.0),
    "dual ascent 0.05, separate": ascent(0.05),
    "dual ascent 1, separate": ascent(1.0),
    RECOMMENDED: ascent(1.0, theta=5.0),
    "step 1, theta 5, joint": ascent(1.0, JOINT, 5.0),
    "step 1, theta 5, lagrangian": ascent(1.0, LAGRANGIAN, 5.0),
}
# A tau of 0 is always met, and without theta its multiplier stays 0: the other constraint stands alone.
SWEEP = {
    "fixed weight 0.1, separate": fixed(0.1, SEPARATE),
    "fixed weight 0.5, separate": fixed(0.5, SEPARATE),
    "dual ascent 0.01, separate": ascent(0.01),
    "dual ascent 0.5, separate": ascent(0.5),
    "dual ascent 0.05, joint": ascent(0.05, JOINT),
    "step 0.05, theta 0.5, lagrangian": ascent(0.05, LAGRANGIAN, 0.5),
    "tau 0.85 (below the hint's 0.9)": ascent(1.0, theta=5.0, tau=(0.85, 0.85)),
    "tau 0.98 (hardly reachable)": ascent(1.0, theta=5.0, tau=(0.98, 0.95)),
    "consistency alone, dual ascent 1": ascent(1.0, tau=(0.95, 0.0)),
    "grounding alone, dual ascent 1": ascent(1.0, tau=(0.0, 0.95)),
}
_PROXY = {"tau": (0.9, 0.95), "cap": 10.0, "hint": PROXY_HINT, "proxy": True}
PROXY = {
    "fixed weight 0.5": Setting(start=(0.5, 0.5), **_PROXY),
    "dual ascent 0.05": ascent(0.05, **_PROXY),
    "dual ascent 0.2": ascent(0.2, **_PROXY),
    "dual ascent 1": ascent(1.0, **_PROXY),
    "step 0.2, theta 25": ascent(0.2, theta=25.0, **_PROXY),
    "step 1, theta 5": ascent(1.0, theta=5.0, **_PROXY),
    "step 1, theta 5, lagrangian": ascent(1.0, LAGRANGIAN, 5.0, **_PROXY),
}
CAUSAL = "plain GRPO, hint tells nothing"


class Taught(NamedTuple):
    """The supervised reference of one seed."""

    seed: int
    params: Any
    record: dict[str, Any]


class Runs(NamedTuple):
    """Records of all runs, and the histories behind them by (kind, method), one for each seed in order."""

    records: list[dict[str, Any]]
    histories: dict[tuple[str, str], list[dict[str, np.ndarray]]]


def taught(seed: int, size: Size, hint: float = HINT) -> Taught:
    """Teach one reference and judge it."""
    start = time.process_time()
    params, losses = jax.block_until_ready(teach(_key(seed, 0), hint, size))
    seconds = time.process_time() - start
    figures = final(params, seed, hint, size) | {"loss": float(np.mean(losses[-20:])), "cpu": seconds}
    return Taught(seed, params, {"kind": "reference", "seed": seed, "hint": hint, **figures})


def final(params: Any, seed: int, hint: float, size: Size) -> dict[str, Any]:
    """Figures of a policy on fresh prompts, its accuracy where the hint tells nothing, and some of its texts."""
    found = judge(params, _key(seed, 1), hint, size)
    texts = [[to_text(p), to_text(t)] for p, t in zip(np.asarray(found.prompts), np.asarray(found.texts))]
    figures = {name: float(value) for name, value in found.scores._asdict().items()}
    unhinted = judge(params, _key(seed, 3), NO_HINT, size)
    return {**figures, "no_hint": float(unhinted.scores.accuracy), "texts": texts}


def trained(
    reference: Taught, kind: str, name: str, setting: Setting, size: Size, last: int = LAST
) -> tuple[dict[str, Any], Any]:
    """Train one method from one reference: its record, and its history as arrays."""
    seed, start = reference.seed, time.process_time()
    params, history = jax.block_until_ready(train(reference.params, _key(seed, 2), traced(setting), size))
    seconds = time.process_time() - start
    curves = {name: np.asarray(value) for name, value in history.scores._asdict().items()}
    curves |= {"y": np.asarray(history.y), "entropy": np.asarray(history.entropy), "idle": np.asarray(history.idle)}
    late = curves["consistency"][-last:]
    return {
        "kind": kind, "method": name, "seed": seed, **final(params, seed, setting.hint, size),
        "consistency_late": float(late.mean()), "consistency_late_std": float(late.std()),
        "grounding_late": float(curves["grounding"][-last:].mean()),
        "short": float(np.maximum(0.95 - curves["consistency"], 0).sum()),
        "y_late": curves["y"][-last:].mean(0).tolist(), "y_last": curves["y"][-1].tolist(),
        "y_most": curves["y"].max(0).tolist(), "cpu": seconds,
    }, curves  # fmt: skip


def run_all(seeds: tuple[int, ...], full: bool, size: Size, say: Callable[[str], Any]) -> Runs:
    """Every method on every seed; in a full run the sweeps on the first seed, the causal control and the proxy too."""
    records: list[dict[str, Any]] = []
    histories: dict[tuple[str, str], list[dict[str, np.ndarray]]] = {}

    def follow(reference: Taught, kind: str, methods: dict[str, Setting], size: Size, last: int = LAST) -> None:
        for name, setting in methods.items():
            record, curves = trained(reference, kind, name, setting, size, last)
            records.append(record)
            histories.setdefault((kind, name), []).append(curves)
            say(f"{kind}, {name}, seed {reference.seed}: {_line(record)}, {record['cpu']:.0f} CPU s")

    for seed in seeds:
        reference = taught(seed, size)
        records.append(reference.record)
        say(f"reference, seed {seed}: {_line(reference.record)}, {reference.record['cpu']:.0f} CPU s")
        follow(reference, "method", METHODS, size)
        if full and seed == seeds[0]:
            follow(reference, "sweep", SWEEP, size)
            follow(reference, "proxy", PROXY, size._replace(steps=size.steps * 3 // 2), PROXY_LATE)
            control = taught(seed, size, NO_HINT)
            records.append(control.record)
            follow(control, "causal", {CAUSAL: Setting(hint=NO_HINT)}, size)
    return Runs(records, histories)


def _key(seed: int, use: int) -> Any:
    """A key for one use within a seed."""
    return jax.random.fold_in(jax.random.key(seed), use)


def _line(record: dict[str, Any]) -> str:
    parts = [f"{name} {record[name]:.3f}" for name in ("accuracy", "consistency", "grounding")]
    return ", ".join(parts)
