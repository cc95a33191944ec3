"""The sections of a recipe as frozen records: what each key means, its default, and what it accepts.

`pdopt.training.recipe` puts them together, reads files, and fills in what depends on other keys.
"""

import dataclasses
from typing import Any

from pdopt.training.settings import option

LOSSES = (
    "grpo", "bnpo", "dapo", "dr_grpo", "reinforce++", "gspo", "gspo_token", "cispo", "sapo", "reinforce", "rloo",
    "mdpo", "sft",
)  # fmt: skip
FORMS = ("lagrangian", "centred", "joint", "separate", "leave_one_out", "batch")
KINDS = ("mean", "rate", "at_least", "equality", "kl", "length")
SIGNALS = ("extrapolated", "plain", "averaged", "pid", "positional")
MOVES = ("projection", "entropic", "logarithmic")
SCHEDULES = ("constant", "linear", "cosine", "stable")
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The policy: a model to start from, or the sizes of a new one (`path = ""`)."""

    path: str = option("")  # a folder, a GGUF file, a packaged name or a hub id; "" makes a random model
    tokenizer: str = option("")  # a folder or hub id; "" is the model's own; "bytes" is one token a byte
    family: str = option("llama", choices=("llama", "mistral", "qwen2", "qwen3"))
    width: int = option(128, 1)
    depth: int = option(4, 1)
    heads: int = option(4, 1)
    kv_heads: int = option(2, 1)
    head_dim: int = option(32, 2)
    hidden: int = option(384, 1)
    positions: int = option(2048, 1)
    tied: bool = option(True)
    rope: float = option(10_000.0, 0.0, open_low=True)  # base of the rotary positions of a new model
    balance: bool = option(False)  # prices of experts move after each step, until each has the same load
    dtype: str = option("float32", choices=("float32", "bfloat16"))  # of the parameters that are trained
    compute: str = option("auto", choices=("auto", "float32", "bfloat16"))  # auto: float32 on a CPU, else bfloat16
    kernel: str = option("auto", choices=("auto", "xla", "cudnn"), may_differ=True)
    layers: str = option("auto", choices=("auto", "unroll", "scan"), may_differ=True)  # auto: unrolled on a CPU
    remat: str = option("auto", choices=("auto", "none", "full", "dots"), may_differ=True)  # auto: none on a CPU


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters: `W x + (alpha / rank) B A x`; the reference policy is then the model without them."""

    rank: int = option(0, 0)  # 0 trains all parameters
    alpha: float = option(16.0, 0.0, open_low=True)
    targets: tuple[str, ...] = option(TARGETS, choices=TARGETS)


@dataclasses.dataclass(frozen=True)
class ExampleConfig:
    """One turn shown before every prompt: what a user asks and what the assistant answers."""

    prompt: str = option()
    completion: str = option()


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where prompts come from (`pdopt.training.tables.open_source`), and how they become tokens."""

    source: str = option("")  # a generated task, a .jsonl, .json, .parquet or .csv file, or a hub id
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)  # of a task
    split: str = option("")  # "": train
    subset: str = option("")  # configuration of a hub's data set
    evaluation_split: str = option("", may_differ=True)  # "": test of a task; else held_out rows are kept apart
    held_out: int = option(64, 0)  # rows kept for evaluation where there is no split for it
    prompt: str = option("prompt")  # column of the prompt, text or messages
    completion: str = option("answer")  # column of the text that supervised training learns
    as_message: bool = option(False)  # a text becomes the user's message
    system: str = option("")  # message put first where there is none
    examples: tuple[ExampleConfig, ...] = option(())  # turns between the system message and the prompt
    template: dict[str, Any] = dataclasses.field(default_factory=dict)  # further arguments of the chat template
    longest: int = option(256, 1)  # tokens of a prompt
    overlong: str = option("error", choices=("error", "drop"))  # what a longer one is
    shuffle: bool = option(True)
    seed: int = option(0, 0)


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Who samples while training (`pdopt.training.engine`); evaluations are always sampled in this process."""

    url: str = option("")  # of a completion server that shares this file system; "" samples in this process
    folder: str = option("")  # where it reads the weights; "" is `engine` in training.folder
    name: str = option("policy")  # what it calls the model
    reload: str = option("/update_weights_from_disk")  # path that makes it load a folder
    timeout: float = option(600.0, 0.0, open_low=True)  # seconds of one request
    cap: float = option(2.0, 0.0, open_low=True)  # largest weight of a token that it drew


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How completions are sampled while training."""

    max_new: int = option(128, 1)
    temperature: float = option(1.0, 0.0, open_low=True)
    top_k: int = option(0, 0)
    top_p: float = option(1.0, 0.0, 1.0, open_low=True)
    min_p: float = option(0.0, 0.0, 1.0)
    stop: tuple[str, ...] = option(())  # texts that end a completion, beside the end token
    slots: int = option(0, 0)  # rows decoded together, the next prompt moving in where one ends; 0: whole batches
    engine: EngineConfig = option(EngineConfig(), may_differ=True)


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """One part of the reward: a shipped function by name, or `module:function` (which is imported: it is code)."""

    name: str
    weight: float = option(1.0)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class DualConfig:
    """How the multipliers move (`pdopt.training.constraints`); step and theta may be each constraint's own."""

    move: str = option("projection", choices=MOVES)
    signal: str = option("extrapolated", choices=SIGNALS)
    step: float | None = option(None, 0.0)  # none: min(1, 200 / steps)
    theta: float | None = option(None, 0.0)  # of the extrapolation, or kp / step; none: 5 / step
    smoothing: float = option(0.0, 0.0, 0.999)  # decay of the mean of "averaged", or under the differences of "pid"
    derivative: float = option(0.0, 0.0)  # kd of "pid"
    delay: int = option(0, 0)  # steps before the first move
    idle: float = option(0.9, 0.0, 1.0)  # no growth while more than this share of the groups have equal costs


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What the policy ascends, and how constraints enter."""

    loss: str = option("dapo", choices=LOSSES)
    advantage: str = option("", choices=("", *FORMS))  # "": what the loss was published with, else lagrangian
    rewards: tuple[RewardConfig, ...] = option((RewardConfig("exact_match"),))
    epsilon_low: float | None = option(None, 0.0)  # the ratio is kept above 1 - this; none: the loss's own
    epsilon_high: float | None = option(None, 0.0)  # and below 1 + this
    dual_clip: float | None = option(None, 1.0)
    kl: float = option(0.0, 0.0)  # weight of KL(policy || reference) in the loss; as a budget it is a constraint
    kl_estimator: str = option("k2", choices=("k1", "k2", "k3"))
    entropy: float = option(0.0, 0.0)  # weight of the entropy bonus
    passes: int = option(1, 1)  # passes over one rollout
    minibatches: int = option(1, 1)  # optimiser steps in a pass
    mask_truncated: bool = option(False)  # leave out completions that reached max_new (DAPO's overlong filter)
    scale_decay: float = option(0.9, 0.0, 0.9999)  # of the running scales of the "lagrangian" advantage
    scale_epsilon: float = option(0.01, 0.0, open_low=True)  # added to every deviation
    dual: DualConfig = option(DualConfig())
    reward_timeout: float = option(60.0, 0.0, open_low=True, may_differ=True)  # seconds a batch
    failed_reward: str = option("raise", choices=("raise", "mask"))  # what an exception in a reward does


@dataclasses.dataclass(frozen=True)
class ConstraintConfig:
    """One constraint (`pdopt.training.constraint_kinds`): a cost, its limit, the range of its multiplier."""

    name: str
    limit: float | None = option(None)
    limits: tuple[float, ...] = option(())  # one for each class of prompts, instead of `limit`
    class_column: str = option("")  # the column that holds the class of a prompt, 0, 1, ...
    kind: str = option("", choices=("", *KINDS))  # "": length and kl by their names, else mean
    cost: str = option("")  # a shipped function, or `module:function`; "" is the name
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the function
    threshold: float | None = option(None)  # of a rate: what counts is a cost above it
    most: float = option(100.0, 0.0, open_low=True)  # cap of the multiplier
    least: float = option(1e-3, 0.0, open_low=True)  # its floor under the multiplicative moves
    start: float | None = option(None)  # none: 0, or 1 for the multiplicative moves
    unit: float | None = option(None, 0.0, open_low=True)  # violations are counted in it; none: max(1, |limit|)
    step: float | None = option(None, 0.0)
    theta: float | None = option(None, 0.0)


@dataclasses.dataclass(frozen=True)
class OptimiserConfig:
    """AdamW (Loshchilov, Hutter 2019) with a gradient clip and a schedule."""

    learning_rate: float | None = option(None, 0.0, open_low=True)  # none: 1e-6, or 1e-5 for adapters
    schedule: str = option("constant", choices=SCHEDULES)
    warm_up: int = option(0, 0)  # steps from 0 to the learning rate
    decay_steps: int | None = option(None, 1)  # where the schedule reaches its end; none: all optimiser steps
    final: float = option(0.0, 0.0, 1.0)  # share of the learning rate at the end
    fall: float = option(0.25, 0.0, 1.0, open_low=True)  # of "stable": the share of the steps in which it falls
    beta1: float = option(0.9, 0.0, 0.9999)
    beta2: float = option(0.999, 0.0, 0.999999)
    epsilon: float = option(1e-8, 0.0, open_low=True)
    weight_decay: float = option(0.0, 0.0)  # of matrices; norms and biases are not decayed
    clip: float | None = option(1.0, 0.0, open_low=True)  # norm of the whole gradient


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices along each axis; -1 takes what is left."""

    data: int = option(1, -1, may_differ=True)
    fsdp: int = option(-1, -1, may_differ=True)
    tensor: int = option(1, -1, may_differ=True)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the whole state is saved; the last step always is."""

    every: int = option(50, 1, may_differ=True)  # steps
    keep: int = option(2, 1, may_differ=True)  # newest states that stay
    best: str = option("", may_differ=True)  # a metric of the evaluation whose best state stays too; "" for none
    best_is: str = option("highest", choices=("highest", "lowest"), may_differ=True)


@dataclasses.dataclass(frozen=True)
class OtherDataConfig:
    """Prompts of another kind, judged beside the held-out ones and never trained on."""

    name: str
    source: str = option("")  # as in data; "" is data.source
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)  # of a task, laid over data.settings


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation on held-out prompts."""

    every: int = option(50, 0, may_differ=True)  # steps; 0: only at the end
    samples: int = option(8, 1, may_differ=True)  # completions a prompt
    k: tuple[int, ...] = option((1, 8), 1, may_differ=True)  # of pass@k
    temperature: float = option(1.0, 0.0, may_differ=True)
    correct: float = option(1.0, may_differ=True)  # a completion is correct when its first reward reaches this
    others: tuple[OtherDataConfig, ...] = option((), may_differ=True)  # prompts that are judged beside the held-out


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How long, how much at once, and where the run is written."""

    steps: int = option(200, 0, may_differ=True)  # policy steps, each one rollout
    prompts: int = option(16, 1)  # prompts a step
    group: int = option(8, 1)  # completions a prompt
    micro_rows: int | None = option(None, 1, may_differ=True)  # rows at once in a gradient; none: what suits the device
    supervised_steps: int = option(0, 0)  # supervised steps before the first policy step
    supervised_rows: int = option(64, 1)  # texts a supervised step
    supervised_rate: float = option(1e-3, 0.0, open_low=True)  # its learning rate: warm-up over a tenth, then cosine
    seed: int = option(0, 0)
    folder: str = option("runs/pdopt", may_differ=True)
    reporters: tuple[str, ...] = option(
        ("table", "jsonl"), choices=("table", "jsonl", "tensorboard", "wandb"), may_differ=True
    )
    show_samples: int = option(2, 0, may_differ=True)  # completions written at each evaluation
    max_bad_steps: int = option(5, 1, may_differ=True)  # skipped steps in a row that end the run


@dataclasses.dataclass(frozen=True)
class ComparisonConfig:
    """One run that `pdopt compare` sets beside the others: the recipe, changed (`pdopt.training.variants`)."""

    name: str
    weight: float | None = option(None, 0.0)  # every multiplier stays here: 0 measures the constraints and holds none
    changes: tuple[str, ...] = option(())  # section.key=value, as after --set
