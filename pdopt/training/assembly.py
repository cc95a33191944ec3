"""What the sections of a recipe become: the model, its tokenizer, the data, the constraints, the plan of a step.

Everything that can be wrong with a recipe beyond its own text is found here, before anything is compiled: a mesh that
does not fit the devices or the batch, a tokenizer that does not fit the model, a function that does not exist.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pdopt.errors import InvalidOption
from pdopt.models import lora
from pdopt.models.config import DecoderConfig, Rope
from pdopt.models.decoder import Decoder, Execution, initialise
from pdopt.models.sharding import make_mesh, parameter_sharding, tree_shardings
from pdopt.models.sources import open_model
from pdopt.rules.signals import PID, Averaged, Extrapolated, Offer, Raw
from pdopt.training.constraint_kinds import Constraint
from pdopt.training.constraints import Constraints
from pdopt.training.engine import Engine
from pdopt.training.recipe import Recipe
from pdopt.training.rollouter import Local, Rollouter
from pdopt.training.sampling import Sampling
from pdopt.training.sections import ModelConfig
from pdopt.training.step import Plan
from pdopt.training.tokenizers import byte_tokenizer, load_tokenizer, special_ids

# Rows of the data that a tokenizer made for a run looks at.
TOKENIZER_ROWS = 512


class Policy(NamedTuple):
    """The model of a run before its first step.

    Attributes:
        model: the decoder, adapters included where adapters are trained.
        tokenizer: of transformers; None where prompts are token ids already.
        eos: token ids that end a completion; pad: what fills up rows.
        source: the folder that the model came from, None for a new one.
    """

    model: Decoder
    tokenizer: Any
    eos: tuple[int, ...]
    pad: int
    source: Path | None


def make_run_mesh(recipe: Recipe) -> Any:
    """The mesh of a recipe; None on a single device. Sizes without -1 may ask for fewer devices than one process has.

    Raises:
        InvalidOption: axes that the devices do not fill, or rows that the mesh does not divide.
    """
    sizes = recipe.mesh
    wanted = sizes.data * sizes.fsdp * sizes.tensor
    fewer = jax.process_count() == 1 and min(sizes.data, sizes.fsdp, sizes.tensor) > 0 and wanted < jax.device_count()
    mesh = make_mesh(sizes.data, sizes.fsdp, sizes.tensor, jax.devices()[:wanted] if fewer else None)
    if mesh.size == 1:
        return None
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    training = recipe.training
    rows = training.prompts * training.group
    micro = training.micro_rows or rows // recipe.objective.minibatches
    if training.prompts % ways or micro % ways:
        raise InvalidOption(
            f"training.prompts is {training.prompts} and a micro-batch has {micro} rows; expected multiples of the "
            f"{ways} devices that rows are split over (mesh data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']})"
        )
    return mesh


def make_execution(recipe: Recipe, mesh: Any) -> Execution:
    """How the model runs, "auto" decided by the backend."""
    model, on_cpu = recipe.model, jax.default_backend() == "cpu"
    compute = ("float32" if on_cpu else "bfloat16") if model.compute == "auto" else model.compute
    return Execution(
        compute=jnp.dtype(compute),
        kernel=None if model.kernel == "auto" else model.kernel,
        unroll=on_cpu if model.layers == "auto" else model.layers == "unroll",
        remat=("none" if on_cpu else "full") if model.remat == "auto" else model.remat,
        mesh=mesh,
    )


def open_policy(recipe: Recipe, source: Any, mesh: Any, tokenizer: Any = None) -> Policy:
    """The model and the tokenizer that a run starts from.

    Args:
        recipe: resolved.
        source: rows, for a tokenizer that is made from them.
        mesh: where parameters live; None for one device.
        tokenizer: the run's own, on a resume; None opens or makes it.
    """
    execution = make_execution(recipe, mesh)
    if recipe.model.path:
        place = parameter_sharding(mesh, _config_of(recipe)) if mesh is not None else None
        opened = open_model(recipe.model.path, dtype=recipe.model.dtype, sharding=place, execution=execution)
        tokenizer = tokenizer or _tokenizer(recipe, source) or opened.tokenizer
        special_ids(tokenizer, opened.model.config.vocabulary)
        folder = Path(recipe.model.path)
        found = Policy(opened.model, tokenizer, opened.eos, opened.pad, folder if folder.is_dir() else None)
    else:
        tokenizer = tokenizer or _tokenizer(recipe, source)
        if tokenizer is None:
            raise InvalidOption('model.path and model.tokenizer are ""; expected a model, or a tokenizer for a new one')
        found = _new_policy(recipe, tokenizer, execution, mesh)
    if not recipe.lora.rank:
        return found
    key = jax.random.fold_in(jax.random.key(recipe.training.seed), 1)
    adapters = lora.init(found.model.config, key, recipe.lora.rank, recipe.lora.targets, recipe.lora.alpha)
    return found._replace(model=dataclasses.replace(found.model, adapters=adapters))


def _config_of(recipe: Recipe) -> DecoderConfig:
    from pdopt.models.sources import model_config

    return model_config(recipe.model.path)


def _tokenizer(recipe: Recipe, source: Any) -> Any:
    """The tokenizer that the recipe names, None where it is the model's own."""
    name = recipe.model.tokenizer
    if not name:
        return None
    if name not in ("bytes", "alphabet"):
        return load_tokenizer(name)
    data = recipe.data
    count = min(TOKENIZER_ROWS, source.size or TOKENIZER_ROWS)
    rows = [source[i] for i in range(count)]
    texts = [str(row.get(column, "")) for row in rows for column in (data.prompt, data.completion)]
    # So many tokens that no two bytes are merged: the special ones and the alphabet.
    if name == "bytes":
        return byte_tokenizer(texts, vocabulary=256 + 5)
    letters = len({byte for text in texts for byte in text.encode()})
    return byte_tokenizer(texts, vocabulary=letters + 6, alphabet="seen")


def new_config(sizes: ModelConfig, vocabulary: int, **others: Any) -> DecoderConfig:
    """The configuration of a new model of a recipe's sizes; `others` are of `DecoderConfig`."""
    return DecoderConfig(
        vocabulary=vocabulary, width=sizes.width, depth=sizes.depth, heads=sizes.heads, kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim, hidden=sizes.hidden, positions=sizes.positions, tied=sizes.tied,
        rope=Rope(sizes.rope), family=sizes.family, qkv_bias=sizes.family == "qwen2", qk_norm=sizes.family == "qwen3",
        **others,
    )  # fmt: skip


def _new_policy(recipe: Recipe, tokenizer: Any, execution: Execution, mesh: Any) -> Policy:
    sizes, special = recipe.model, special_ids(tokenizer)
    config = new_config(sizes, -(-len(tokenizer) // 8) * 8, eos=(special.eos,), pad=special.pad)
    key = jax.random.key(recipe.training.seed)
    make = partial(initialise, config, dtype=jnp.dtype(sizes.dtype))
    # Compiled only where no device can hold the whole: array by array there is hardly anything to compile.
    places = None if mesh is None else tree_shardings(mesh, config, jax.eval_shape(make, key))
    params = make(key) if mesh is None else jax.jit(make, out_shardings=places)(key)
    return Policy(Decoder(params, config, execution), tokenizer, (special.eos,), special.pad, None)


def make_sampling(recipe: Recipe, policy: Policy) -> Sampling:
    """How completions are sampled while training."""
    given = recipe.sampling
    stop = tuple(tuple(policy.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in given.stop)
    return Sampling(
        given.max_new, jnp.float32(given.temperature), given.top_k, given.top_p, given.min_p, policy.eos, stop
    )


def make_rollouter(recipe: Recipe, policy: Policy) -> Rollouter:
    """Who samples while training; given the policy of each step by `update`.

    Raises:
        InvalidOption: an engine in a run of several processes or beside prices of experts; slots on a mesh.
    """
    given, model = recipe.sampling.engine, policy.model
    if not given.url:
        if recipe.sampling.slots and model.execution.mesh is not None:
            raise InvalidOption("sampling.slots are given on a mesh of devices; expected 0: whole batches")
        return Local(model, policy.pad, recipe.sampling.slots)
    if jax.process_count() > 1:
        raise InvalidOption(f"sampling.engine.url is {given.url} and there are several processes; expected one")
    if recipe.model.balance:
        raise InvalidOption(
            "model.balance is true; a folder of weights, which an engine reads, has no place for prices"
        )
    folder = Path(given.folder or Path(recipe.training.folder) / "engine").resolve()
    return Engine(model, given.url, str(folder), given.name, given.reload, given.timeout, policy.pad)


def make_constraints(recipe: Recipe) -> Constraints:
    """The constraints of a resolved recipe, and how their multipliers move."""
    dual, given = recipe.objective.dual, recipe.constraints
    made = [
        Constraint(
            c.name, c.kind, c.limits or c.limit, len(c.limits), c.threshold, c.most, c.least, c.start, c.unit
        )
        for c in given
    ]  # fmt: skip
    rows = [c for c, constraint in zip(given, made) for _ in constraint.rows]
    step = jnp.array([c.step for c in rows], jnp.float32)
    theta = jnp.array([c.theta for c in rows], jnp.float32)
    signal = {
        "extrapolated": lambda: Extrapolated(theta, start="zero"),
        "plain": Raw,
        "averaged": lambda: Averaged(dual.smoothing),
        "pid": lambda: PID(theta, jnp.ones_like(theta), dual.derivative, dual.smoothing),
        "positional": lambda: Offer(theta * step),
    }[dual.signal]() if rows else None  # fmt: skip
    return Constraints(tuple(made), step if rows else 1.0, signal, dual.move, dual.delay, dual.idle)


def make_plan(recipe: Recipe) -> Plan:
    """What a policy step of a resolved recipe computes."""
    given = recipe.objective
    return Plan(
        constraints=make_constraints(recipe), optimiser=recipe.optimiser, group=recipe.training.group,
        max_new=recipe.sampling.max_new, loss=given.loss, advantage=given.advantage, micro=recipe.training.micro_rows,
        passes=given.passes, minibatches=given.minibatches, mask_truncated=given.mask_truncated,
        kl_estimator=given.kl_estimator, temperature=recipe.sampling.temperature, epsilon_low=given.epsilon_low,
        epsilon_high=given.epsilon_high, dual_clip=given.dual_clip, kl=given.kl, entropy=given.entropy,
        scale_decay=given.scale_decay, scale_epsilon=given.scale_epsilon,
    )  # fmt: skip


def needs_reference(recipe: Recipe) -> bool:
    """Whether anything asks for the log-probabilities of a reference policy."""
    return recipe.objective.kl > 0 or any(constraint.kind == "kl" for constraint in recipe.constraints)
