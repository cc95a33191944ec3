"""A decoder and recipes so small that compiling is all they cost; one set of shapes, so that programs are shared."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pdopt.models.config import DecoderConfig
from pdopt.models.decoder import Decoder, initialise
from pdopt.training.advantages import init_scales
from pdopt.training.recipe import OptimiserConfig, make_recipe
from pdopt.training.state import Fixed, init_state
from pdopt.training.step import Experience

CONFIG = DecoderConfig(vocabulary=16, width=16, depth=2, heads=2, kv_heads=1, head_dim=8, hidden=32, eos=(1,), pad=0)
GROUP, MAX_NEW = 4, 4
OPTIMISER = OptimiserConfig(learning_rate=1e-2, decay_steps=10)


def model(seed=0):
    """A decoder whose distributions are far from flat."""
    params = jax.tree.map(lambda leaf: 8 * leaf if leaf.ndim > 1 else leaf, initialise(CONFIG, jax.random.key(seed)))
    return Decoder(params, CONFIG)


def fixed(reference=None):
    return Fixed(dataclasses.replace(model(), params=None), reference)


def state(constraints, seed=0):
    """A fresh state; a step donates it, so every use needs its own."""
    params = jax.tree.map(jnp.copy, model().params)
    return init_state(params, OPTIMISER, constraints.init(), init_scales(len(constraints.rows)), seed)


def experience(values=None, rewards=None, seed=0):
    """Eight completions of two prompts, of several lengths, with the log-probabilities that the model gives them."""
    rng = np.random.default_rng(seed)
    rows = 2 * GROUP
    prompts = np.repeat(np.array([[0, 3, 4], [5, 6, 7]]), GROUP, axis=0)
    tokens = rng.integers(2, 16, (rows, MAX_NEW))
    lengths = np.array([4, 4, 3, 1, 2, 4, 4, 3])
    mask = np.arange(MAX_NEW) < lengths[:, None]
    tokens[np.arange(rows), lengths - 1] = np.where(lengths < MAX_NEW, 1, tokens[np.arange(rows), lengths - 1])
    tokens = np.where(mask, tokens, 0)
    every = np.concatenate([prompts, tokens], axis=1)
    valid = np.concatenate([prompts > 0, mask], axis=1)
    logits = np.asarray(model()(jnp.asarray(every), None, jnp.asarray(valid)), np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    log_probs = np.take_along_axis(logs[:, 2:-1], tokens[..., None], axis=-1)[..., 0]
    return Experience(
        jnp.asarray(prompts), jnp.asarray(prompts > 0), jnp.asarray(tokens), jnp.asarray(mask),
        jnp.asarray(np.where(mask, log_probs, 0), jnp.float32), jnp.asarray(lengths < MAX_NEW),
        jnp.asarray(rng.integers(0, 3, rows) if rewards is None else rewards, jnp.float32),
        {name: jnp.asarray(value, jnp.float32) for name, value in (values or {}).items()}, {},
    )  # fmt: skip


def recipe(folder, **sections):
    """A run of two supervised and four policy steps on one-digit sums."""
    tables = {
        "model": {"tokenizer": "alphabet", "width": 16, "depth": 2, "heads": 2, "kv_heads": 1, "head_dim": 8,
                  "hidden": 32, "layers": "scan"},
        "data": {"source": "arithmetic", "settings": {"digits": 1}, "held_out": 4},
        "sampling": {"max_new": MAX_NEW},
        "optimiser": {"learning_rate": 1e-2, "decay_steps": 4},  # given, so that a longer run is the same program
        "constraints": [{"name": "length", "limit": 2.0}],
        "checkpoint": {"every": 2},
        "evaluation": {"every": 0, "samples": GROUP, "k": [1, GROUP]},
        "mesh": {"fsdp": 1},
        "training": {"steps": 4, "prompts": 4, "group": GROUP, "supervised_steps": 2, "supervised_rows": 8,
                     "folder": str(folder), "reporters": ["jsonl"]},
    }  # fmt: skip
    for name, changes in sections.items():
        tables[name] = changes if isinstance(changes, list) else {**tables.get(name, {}), **changes}
    return make_recipe(tables)


def shared_recipe(folder, **sections):
    """Three policy steps that any number of processes takes alike: a step size at which rounding stays rounding."""
    training = {"steps": 3, "supervised_steps": 0}
    optimiser = {"learning_rate": 1e-3, "decay_steps": 3}
    return recipe(folder, training=training, optimiser=optimiser, **sections)
