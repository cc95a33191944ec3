"""A recipe: everything a training run is, as frozen records; what a file says, with every default filled in.

    read_recipe("arithmetic", ["training.steps=50"])   a shipped name, or a .toml or .yaml file, and changes to it

One section of the file for each record below. Ranges and choices stand beside the fields; what concerns several fields
at once is checked by `resolve`, which also fills in what depends on others, so that a resolved recipe says it all.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pdopt.errors import InvalidOption, unknown_name
from pdopt.training.overrides import SUFFIXES, override, read_tables
from pdopt.training.settings import as_table, as_toml, build, option

LOSSES = (
    "grpo", "bnpo", "dapo", "dr_grpo", "reinforce++", "gspo", "gspo_token", "cispo", "sapo", "reinforce", "rloo",
    "mdpo", "sft",
)  # fmt: skip
FORMS = ("lagrangian", "centred", "joint", "separate", "leave_one_out", "batch")
PUBLISHED = {"dr_grpo": "centred", "rloo": "leave_one_out", "reinforce++": "batch"}
KINDS = ("mean", "rate", "at_least", "equality", "kl", "length")
SIGNALS = ("extrapolated", "plain", "averaged", "pid", "positional")
MOVES = ("projection", "entropic", "logarithmic")
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
class SamplingConfig:
    """How completions are sampled while training."""

    max_new: int = option(128, 1)
    temperature: float = option(1.0, 0.0, open_low=True)
    top_k: int = option(0, 0)
    top_p: float = option(1.0, 0.0, 1.0, open_low=True)
    min_p: float = option(0.0, 0.0, 1.0)
    stop: tuple[str, ...] = option(())  # texts that end a completion, beside the end token


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
    schedule: str = option("constant", choices=("constant", "linear", "cosine"))
    warm_up: int = option(0, 0)  # steps from 0 to the learning rate
    decay_steps: int | None = option(None, 1)  # where the schedule reaches its end; none: all optimiser steps
    final: float = option(0.0, 0.0, 1.0)  # share of the learning rate at the end
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
class EvaluationConfig:
    """Evaluation on held-out prompts."""

    every: int = option(50, 0, may_differ=True)  # steps; 0: only at the end
    samples: int = option(8, 1, may_differ=True)  # completions a prompt
    k: tuple[int, ...] = option((1, 8), 1, may_differ=True)  # of pass@k
    temperature: float = option(1.0, 0.0, may_differ=True)
    correct: float = option(1.0, may_differ=True)  # a completion is correct when its first reward reaches this


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
class Recipe:
    """One run. Sections that a file leaves out have their defaults.

    Example:
        >>> Recipe(training=TrainingConfig(steps=3)).objective.loss
        'dapo'
    """

    model: ModelConfig = ModelConfig()
    lora: LoRAConfig = LoRAConfig()
    data: DataConfig = DataConfig()
    sampling: SamplingConfig = SamplingConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    constraints: tuple[ConstraintConfig, ...] = option(())
    optimiser: OptimiserConfig = OptimiserConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    training: TrainingConfig = TrainingConfig()

    def as_toml(self) -> str:
        """The text of a file that `read_recipe` reads back as this recipe."""
        return as_toml({name: table for name, table in as_table(self).items() if table != []}) + "\n"


def make_recipe(tables: Mapping[str, Any], *, loose: bool = False) -> Recipe:
    """The resolved recipe of sections of plain values.

    Raises:
        InvalidOption: an unknown key (the nearest known one is named), a wrong type, a value outside its range, or
            values that do not go together.

    Example:
        >>> make_recipe({"constraints": [{"name": "length", "limit": 24}]}).constraints[0].limit
        24.0
    """
    return resolve(build(Recipe, tables, loose=loose))


def read_recipe(source: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """The resolved recipe of a shipped name or a file, with `section.key=value` changes.

    Raises:
        InvalidFile: no such file, or its syntax. InvalidOption: see `make_recipe`; a name that is not shipped.

    Example:
        >>> read_recipe("arithmetic", ["training.steps=7"]).training.steps
        7
    """
    tables, loose = read_tables(find_recipe(source))
    return make_recipe(override(tables, changes), loose=loose)


def find_recipe(source: str | Path) -> Path:
    """The file of a shipped name, or the path itself."""
    path = Path(source)
    if path.suffix in SUFFIXES or path.exists() or len(path.parts) > 1:
        return path
    if str(source) not in shipped():
        raise unknown_name("recipe", str(source), shipped())
    return Path(str(resources.files("pdopt.training") / "recipes" / f"{source}.toml"))


def shipped() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("pdopt.training") / "recipes"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with every value that depends on others filled in, once they were found to go together.

    Raises:
        InvalidOption: values that contradict each other; the keys are named.
    """
    training, objective = recipe.training, recipe.objective
    if not recipe.model.path and recipe.model.heads % recipe.model.kv_heads:
        raise InvalidOption(f"model.heads is {recipe.model.heads}; expected a multiple of model.kv_heads")
    if objective.loss == "sft" and recipe.constraints:
        raise InvalidOption("objective.loss is 'sft' and there are constraints; expected none: nothing is sampled")
    form = objective.advantage or PUBLISHED.get(objective.loss, "lagrangian")
    if objective.loss != "sft" and form != "batch" and training.group < 2:
        raise InvalidOption(f"training.group is {training.group}; the {form} advantage compares 2 at least")
    rows = training.prompts * training.group
    if objective.minibatches > training.prompts or training.prompts % objective.minibatches:
        raise InvalidOption(
            f"objective.minibatches is {objective.minibatches}; expected a divisor of training.prompts, "
            f"{training.prompts}"
        )
    micro = training.micro_rows
    if micro is not None and (rows // objective.minibatches) % micro:
        raise InvalidOption(
            f"training.micro_rows is {micro}; expected a divisor of the {rows // objective.minibatches} rows of a "
            f"minibatch (training.prompts {training.prompts} x training.group {training.group} / "
            f"objective.minibatches {objective.minibatches})"
        )
    if [n for n in (recipe.mesh.data, recipe.mesh.fsdp, recipe.mesh.tensor) if n == 0]:
        raise InvalidOption("an axis of mesh is 0; expected -1 or a number of devices")
    if too_many := [k for k in recipe.evaluation.k if k > recipe.evaluation.samples]:
        raise InvalidOption(f"evaluation.k has {too_many[0]}; expected at most evaluation.samples")
    rate = recipe.optimiser.learning_rate or (1e-5 if recipe.lora.rank else 1e-6)
    decay = recipe.optimiser.decay_steps or max(1, training.steps * objective.passes * objective.minibatches)
    return dataclasses.replace(
        recipe,
        objective=dataclasses.replace(objective, advantage=form),
        constraints=tuple(_resolved(constraint, recipe) for constraint in recipe.constraints),
        optimiser=dataclasses.replace(recipe.optimiser, learning_rate=rate, decay_steps=decay),
    )


def _resolved(constraint: ConstraintConfig, recipe: Recipe) -> ConstraintConfig:
    """Kind, cost, step and theta filled in (llm_trainer 3.5: what damps is theta times step, 5 here)."""
    full = f"constraints.{constraint.name}"
    dual = recipe.objective.dual
    first = lambda *values: next(value for value in values if value is not None)
    step = first(constraint.step, dual.step, min(1.0, 200 / max(recipe.training.steps, 1)))
    theta = first(constraint.theta, dual.theta, 5 / step if step else 0.0)
    if (constraint.limit is None) == (not constraint.limits):
        raise InvalidOption(f"{full}.limit is {constraint.limit}; expected a number, or limits for the classes")
    if bool(constraint.limits) != bool(constraint.class_column):
        raise InvalidOption(f"{full}.limits and {full}.class_column go together; expected both or neither")
    cost = constraint.cost or constraint.name
    kind = constraint.kind or (cost if cost in ("length", "kl") else "mean")
    return dataclasses.replace(constraint, cost=cost, kind=kind, step=step, theta=theta)


def flat(recipe: Recipe) -> dict[str, tuple[Any, bool]]:
    """`section.key -> (value, whether a resumed run may have another)`; one constraint is one key."""
    found: dict[str, tuple[Any, bool]] = {}
    for section in dataclasses.fields(recipe):
        part = getattr(recipe, section.name)
        if isinstance(part, tuple):
            found |= {f"{section.name}.{item.name}": (as_table(item), False) for item in part}
            continue
        table = as_table(part)
        for field in dataclasses.fields(part):
            found[f"{section.name}.{field.name}"] = (table.get(field.name), bool(field.metadata.get("may_differ")))
    return found
