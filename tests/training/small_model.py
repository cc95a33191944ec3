"""A tiny decoder whose distributions are far from flat, and prompts of many lengths."""

import jax
import jax.numpy as jnp
import numpy as np

from pdopt.models.config import DecoderConfig
from pdopt.models.decoder import Decoder, initialise

CONFIG = DecoderConfig(vocabulary=64, width=32, depth=2, heads=4, kv_heads=2, head_dim=8, hidden=64)


def small(config=CONFIG, seed=0):
    params = jax.tree.map(lambda leaf: 8 * leaf if leaf.ndim > 1 else leaf, initialise(config, jax.random.key(seed)))
    return Decoder(params, config)


def left_padded(rows=5, width=9, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, 64, (rows, width))
    lengths = rng.integers(1, width + 1, rows)
    valid = np.arange(width)[None] >= width - lengths[:, None]
    return jnp.asarray(np.where(valid, tokens, 0)), jnp.asarray(valid)
