"""One token after another: weights packed once, keys and values of what was read kept in a cache.

    read:    K, V of a prompt, and its last hidden state;      extend:  s = q K / sqrt(e) + mask,  o = softmax(s) V

A decode step reads every weight and every key once, so it is written for the memory: products that read the same input
lie side by side, keys lie as `(b, kv_heads, head_dim, length)` and values as `(b, kv_heads, length, head_dim)` (each
product then runs along contiguous memory), one array a layer, written in place, and never transposed or cast.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pdopt.models.attention import attend, causal_mask
from pdopt.models.block import norm, project, residual
from pdopt.models.config import DecoderConfig
from pdopt.models.decoder import Decoder, Execution, enter, head, packed_layers
from pdopt.types import record

# Added to the score of a column that is not seen: finite, so that a row which sees none stays finite.
UNSEEN = -1e30


@record(static=("config", "execution"))
class Packed:
    """A decoder's weights as decoding reads them; made by `pack` once for many tokens.

    Attributes:
        embed: `(vocabulary, width)`; norm: `(width,)`, the last one.
        layers: one dictionary a layer, with `qkv` and `gate_up` side by side.
        head: `(width, vocabulary)`; laid out that way for a tied model too.
        config, execution: the decoder's.
    """

    embed: Any
    norm: Any
    layers: tuple[Any, ...]
    head: Any
    config: DecoderConfig
    execution: Execution

    def logits(self, hidden: Any) -> Any:
        """`hidden @ head` in float32."""
        return jnp.matmul(hidden, self.head.astype(hidden.dtype), preferred_element_type=jnp.float32)


class Cache(NamedTuple):
    """What was read: keys `(b, kv_heads, head_dim, length)`, values `(b, kv_heads, length, head_dim)` of each layer.

    One array a layer, not one for all: a token's write is then in place, without copying the other layers. `valid
    (b, length)` says which columns hold tokens; their order does not matter, for positions are turned into the keys.
    """

    keys: tuple[Any, ...]
    values: tuple[Any, ...]
    valid: Any


def pack(model: Decoder) -> Packed:
    """The weights as decoding reads them. The same numbers; a second copy of them while it lives.

    Example:
        >>> from pdopt.models.decoder import initialise
        >>> config = DecoderConfig(vocabulary=32, width=8, depth=1, heads=2, kv_heads=1, head_dim=4, hidden=16)
        >>> packed = pack(Decoder(initialise(config, jax.random.key(0)), config))
        >>> packed.layers[0]["attention"]["qkv"].shape, packed.head.shape
        ((8, 16), (8, 32))
    """
    params = model.params
    matrix = head(model.config, params)
    if model.config.tied:
        # Without the barrier the compiler undoes this transposition and makes it again inside every product.
        matrix = lax.optimization_barrier(matrix)
    return Packed(params["embed"], params["norm"], packed_layers(model), matrix, model.config, model.execution)


def read(packed: Packed, tokens: Any, valid: Any, length: int) -> tuple[Any, Cache]:
    """Read prompts into a new cache.

    Args:
        packed: the weights.
        tokens, valid: `(b, t)`, left padded: real tokens stand at the end.
        length: columns of the cache, >= t; the prompts fill the first t.

    Returns:
        The last hidden states `(b, width)`, normalised, and the cache.
    """
    config, width = packed.config, tokens.shape[1]
    positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
    h, turned, kernel = enter(config, packed.execution, packed.embed, tokens, positions)
    mask = causal_mask(positions, valid)
    keys, values = [], []
    for layer in packed.layers:
        q, k, v = project(config, layer, h, turned)
        keys.append(k.transpose(0, 2, 3, 1))
        values.append(v.transpose(0, 2, 1, 3))
        h = residual(config, layer, h, attend(q, k, v, mask, kernel))
    cache = Cache(tuple(keys), tuple(values), valid)
    return norm(h[:, -1], packed.norm, config.norm_epsilon), grown(cache, length - width)


def extend(packed: Packed, token: Any, positions: Any, cache: Cache, at: Any) -> tuple[Any, Cache]:
    """Read one more token a row.

    Args:
        packed: the weights.
        token, positions: `(b,)`.
        cache: what was read; its `valid` already says whether column `at` counts.
        at: the column that is written, the same in every row.

    Returns:
        Hidden states `(b, width)`, normalised, and the cache with the tokens' keys and values.
    """
    config = packed.config
    h, turned, _ = enter(config, packed.execution, packed.embed, token[:, None], positions[:, None])
    bias = jnp.where(cache.valid, 0, jnp.asarray(UNSEEN, jnp.float32))[:, None, None, :]
    keys, values = [], []
    for layer, old_keys, old_values in zip(packed.layers, cache.keys, cache.values):
        q, k, v = project(config, layer, h, turned)
        keys.append(lax.dynamic_update_slice_in_dim(old_keys, k.transpose(0, 2, 3, 1), at, 3))
        values.append(lax.dynamic_update_slice_in_dim(old_values, v.transpose(0, 2, 1, 3), at, 2))
        h = residual(config, layer, h, look(q[:, 0], keys[-1], values[-1], bias)[:, None])
    return norm(h[:, 0], packed.norm, config.norm_epsilon), Cache(tuple(keys), tuple(values), cache.valid)


def look(q: Any, keys: Any, values: Any, bias: Any) -> Any:
    """Attention of one query a row `(b, heads, e)` to a cache; scores and softmax in float32.

    Example:
        >>> q, keys, values = jnp.zeros((1, 2, 4)), jnp.zeros((1, 1, 4, 3)), jnp.ones((1, 1, 3, 4))
        >>> print(look(q, keys, values, jnp.zeros((1, 1, 1, 3)))[0, 0])
        [1. 1. 1. 1.]
    """
    batch, heads, size = q.shape
    grouped = q.reshape(batch, keys.shape[1], -1, size)
    scores = jnp.einsum("bkge,bkel->bkgl", grouped, keys, preferred_element_type=jnp.float32) * size**-0.5 + bias
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    seen = jnp.einsum("bkgl,bkle->bkge", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return (seen / total).astype(q.dtype).reshape(batch, heads, size)


def grown(cache: Cache, more: int) -> Cache:
    """The cache with `more` empty columns at its end."""
    longer = lambda leaf, axis: jnp.pad(leaf, [(0, more if axis == at else 0) for at in range(leaf.ndim)])
    return Cache(
        tuple(longer(leaf, 3) for leaf in cache.keys),
        tuple(longer(leaf, 2) for leaf in cache.values),
        longer(cache.valid, 1),
    )


def repeated(tree: Any, times: int) -> Any:
    """Each row `times` times, one after another: of a cache, or of any arrays whose first axis is rows."""
    return tree if times == 1 else jax.tree.map(lambda leaf: jnp.repeat(leaf, times, axis=0), tree)
