"""Everything a run needs before its first step, made from a recipe; train, evaluate and a dry run begin here."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pdopt.models.sharding import tree_shardings
from pdopt.training.advantages import init_scales
from pdopt.training.assembly import (
    Policy,
    make_plan,
    make_rollouter,
    make_run_mesh,
    make_sampling,
    needs_reference,
    open_policy,
)
from pdopt.training.data import PromptStream
from pdopt.training.feed import Sources, open_sources, open_stream
from pdopt.training.prices import first_prices
from pdopt.training.recipe import Recipe
from pdopt.training.rollouter import Rollouter
from pdopt.training.sampling import Sampling
from pdopt.training.saving import TOKENIZER, run_identity
from pdopt.training.scoring import Scorer, TextScorer
from pdopt.training.state import Fixed, TrainState, init_state, reference_from, reference_tree
from pdopt.training.step import Plan
from pdopt.training.tokenizers import load_tokenizer, tokenizer_fingerprint


class Prepared(NamedTuple):
    """A run that has not begun.

    Attributes:
        recipe: resolved.
        mesh: None on one device.
        policy: model and tokenizer.
        sources: rows to train on and to evaluate on.
        stream: prompts of policy steps; lessons: of supervised steps.
        plan: of a policy step; sampling: of its rollout; rollouter: who samples.
        scorer: of completions.
        identity: what a checkpoint must have to be continued.
    """

    recipe: Recipe
    mesh: Any
    policy: Policy
    sources: Sources
    stream: PromptStream
    lessons: PromptStream
    plan: Plan
    sampling: Sampling
    rollouter: Rollouter
    scorer: Scorer
    identity: dict[str, Any]


def prepare(
    recipe: Recipe,
    *,
    folder: Path | None = None,
    functions: Mapping[str, Callable[..., Any]] | None = None,
    scorer: Scorer | None = None,
) -> Prepared:
    """Open what a recipe names and check that it fits together.

    Args:
        recipe: resolved.
        folder: of a run that is continued: its tokenizer is used.
        functions: score functions by name, beside the shipped ones.
        scorer: in place of the recipe's functions.

    Raises:
        PdoptError: whatever does not exist, cannot be read, or does not fit; the key or the file is named.
    """
    mesh = make_run_mesh(recipe)
    sources = open_sources(recipe.data, recipe.evaluation.others)
    kept = folder / TOKENIZER if folder is not None else None
    tokenizer = load_tokenizer(kept) if kept is not None and kept.is_dir() else None
    policy = open_policy(recipe, sources.train, mesh, tokenizer)
    first_prices(policy.model, recipe.model.balance)
    training = recipe.training
    scored = recipe.objective.loss != "sft"
    fixed = policy.model.params if recipe.lora.rank else None
    identity = run_identity(recipe, sources.train.identity, tokenizer_fingerprint(policy.tokenizer), fixed)
    return Prepared(
        recipe=recipe, mesh=mesh, policy=policy, sources=sources,
        stream=open_stream(recipe.data, sources.train, policy.tokenizer, training.prompts),
        lessons=open_stream(recipe.data, sources.train, policy.tokenizer, training.supervised_rows),
        plan=make_plan(recipe), sampling=make_sampling(recipe, policy), rollouter=make_rollouter(recipe, policy),
        scorer=scorer or (TextScorer(recipe, policy.tokenizer, functions) if scored else _nothing),
        identity=identity,
    )  # fmt: skip


def _nothing(sampled: Any) -> Any:
    raise AssertionError("supervised training scores nothing")


def start(prepared: Prepared) -> tuple[Fixed, TrainState]:
    """What training reads only, and the state before the first step; every array where the mesh wants it."""
    recipe, policy = prepared.recipe, prepared.policy
    adapted = recipe.lora.rank > 0
    trainable = policy.model.adapters if adapted else policy.model.params
    still = dataclasses.replace(policy.model, params=policy.model.params if adapted else None, adapters=None)
    constraints = prepared.plan.constraints

    def make(trainable: Any) -> TrainState:
        scales = init_scales(len(constraints.rows))
        made = init_state(trainable, recipe.optimiser, constraints.init(), scales, recipe.training.seed)
        return made._replace(prices=first_prices(policy.model, True) if recipe.model.balance else None)

    places = state_places(prepared, jax.eval_shape(make, trainable))
    state = jax.jit(make, out_shardings=places)(trainable)
    # A copy: a step reuses the state's memory, and the model may be in use elsewhere.
    return Fixed(still), jax.tree.map(jnp.copy, state)


def state_places(prepared: Prepared, shapes: Any) -> Any:
    """The sharding of every leaf of a state: on one device as well, so that a state that was restored, or that a step
    has returned, meets the same compiled programs as the first."""
    if prepared.mesh is None:
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.tree.map(lambda _: here, shapes)
    return tree_shardings(prepared.mesh, prepared.policy.model.config, shapes)


def reference_of(prepared: Prepared, fixed: Fixed, state: TrainState) -> Any:
    """The policy that KL is measured against, taken now: the model without its adapters, or a copy of the parameters.

    None where nothing asks for it.
    """
    if not needs_reference(prepared.recipe):
        return None
    if prepared.recipe.lora.rank:
        return fixed.model
    return reference_from(fixed, jax.tree.map(jnp.copy, reference_tree(state)))
