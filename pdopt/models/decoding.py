"""One token after another: weights packed once, keys and values of what was read kept in a cache.

    read:    K, V of a prompt, and its last hidden state;      extend:  s = q K / sqrt(e) + mask,  o = softmax(s) V

A decode step reads every weight and every key once, so it is written for the memory: products that read the same input
lie side by side, weights lie as `(out, in)` (`block.Outward`), keys as `(b, kv_heads, head_dim, length)` and values as
`(b, kv_heads, length, head_dim)` (each product then runs along contiguous memory), one array a layer, written in place,
and never transposed or cast. A tied head is the embedding itself.

The limit, measured on one core of a loaded machine, float32, width 576: one row reads the weights at 15 GB/s, which is
all that the core gets. At 16 rows the products run at 54 GFLOP/s, and at 108 when their weights are in the cache: half
of a product is waiting for weights (rows of 1536 numbers: 77 GFLOP/s, so the length of a row seems to be the cause).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pdopt.models.attention import causal_mask
from pdopt.models.block import Outward, look, normed, outward, project, residual, where_local
from pdopt.models.config import DecoderConfig
from pdopt.models.decoder import Decoder, Execution, compute_dtype, enter, logits, packed_layers
from pdopt.models.sharding import RESIDUAL, constrain, split_heads
from pdopt.types import record

# Added to the score of a column that is not seen: finite, so that a row which sees none stays finite.
UNSEEN = -1e30
# Dense matrices of a packed layer -> how many of their axes are inputs.
_MATRICES = {"attention": {"qkv": 1, "o": 2}, "mlp": {"gate_up": 1, "down": 1}}


@record(static=("config", "execution"))
class Packed:
    """A decoder's weights as decoding reads them; made by `pack` once for many tokens.

    Attributes:
        embed: `(vocabulary, width)`; norm: `(width,)`, the last one.
        layers: one dictionary a layer, with `qkv` and `gate_up` side by side, every dense matrix `Outward`, that is
            `(out, in)`; on a mesh the matrices keep the axes of the parameters.
        head: None for a tied model, which reads `embed`; else `Outward`, `(vocabulary, width)`; on a mesh always an
            array `(width, vocabulary)`.
        config, execution: the decoder's.
    """

    embed: Any
    norm: Any
    layers: tuple[Any, ...]
    head: Any
    config: DecoderConfig
    execution: Execution

    @property
    def dtype(self) -> Any:
        """Of products, activations and the cache."""
        return compute_dtype(self.embed, self.execution)

    def logits(self, hidden: Any) -> Any:
        """Logits of the next token, float32."""
        head = Outward(self.embed) if self.head is None else self.head
        return logits(self.config, self.execution, head, hidden)


class Cache(NamedTuple):
    """What was read: keys `(b, kv_heads, head_dim, length)`, values `(b, kv_heads, length, head_dim)` of each layer.

    One array a layer, not one for all: a token's write is then in place, without copying the other layers. `valid
    (b, length)` says which columns hold tokens; their order does not matter, for positions are turned into the keys.
    A loop over tokens of one row alone holds its keys and values without the first axis (`alone`).
    """

    keys: tuple[Any, ...]
    values: tuple[Any, ...]
    valid: Any


def pack(model: Decoder) -> Packed:
    """The weights as decoding reads them. The same numbers; while it lives a second copy of the layers' weights and of
    an untied head.

    Example:
        >>> from pdopt.models.decoder import initialise
        >>> config = DecoderConfig(vocabulary=32, width=8, depth=1, heads=2, kv_heads=1, head_dim=4, hidden=16)
        >>> packed = pack(Decoder(initialise(config, jax.random.key(0)), config))
        >>> packed.layers[0]["attention"]["qkv"].matrix.shape, packed.head is None
        ((16, 8), True)
    """
    config, mesh, dtype = model.config, model.execution.mesh, compute_dtype(model.params["embed"], model.execution)
    embed = model.params["embed"]
    if config.tied:
        embed = constrain(embed.astype(dtype), mesh, "vocab", None)
        # On a mesh a head of its own, split by words: turned inside the loop, its product would gather them again.
        head = None if mesh is None else lax.optimization_barrier(embed.T)
    else:
        head = constrain(model.params["head"].astype(dtype), mesh, None, "vocab")
        head = outward(head) if mesh is None else head
    layers = tuple(_cast(layer, dtype) for layer in packed_layers(model))
    # On a mesh the weights keep the axes by which they are split.
    layers = tuple(map(_turned, layers)) if mesh is None else layers
    return Packed(embed, model.params["norm"], layers, head, config, model.execution)


def _cast(layer: Any, dtype: Any) -> Any:
    """Matrices in the type of the products, once; norms and biases keep theirs."""
    cast = lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf
    return {name: jax.tree.map(cast, part) if name in ("attention", "mlp") else part for name, part in layer.items()}


def _turned(layer: Any) -> Any:
    """The layer with every dense matrix `Outward`; adapters, biases, norms and experts as they are."""
    made = dict(layer)
    for folder, inputs in _MATRICES.items():
        if folder in layer:
            turned = {name: outward(layer[folder][name], count) for name, count in inputs.items()}
            made[folder] = {**layer[folder], **turned}
    return made


def read(packed: Packed, tokens: Any, valid: Any, length: int) -> tuple[Any, Cache]:
    """Read prompts into a new cache.

    Args:
        packed: the weights.
        tokens, valid: `(b, t)`, left padded: real tokens stand at the end.
        length: columns of the cache, >= t; the prompts fill the first t.

    Returns:
        The last hidden states `(b, width)`, normalised, and the cache.
    """
    config, mesh, width = packed.config, packed.execution.mesh, tokens.shape[1]
    positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
    h, turned, kernel = enter(config, packed.execution, packed.embed, tokens, positions)
    mask = causal_mask(positions, valid)
    keys, values = [], []
    for layer in packed.layers:
        h = constrain(h, mesh, *RESIDUAL)
        q, k, v = split_heads(mesh, *project(config, layer, h, turned))
        keys.append(_kept(k.transpose(0, 2, 3, 1), mesh))
        values.append(_kept(v.transpose(0, 2, 1, 3), mesh))
        h = residual(config, layer, h, look(config, layer, q, k, v, mask, kernel), mesh)
    cache = Cache(tuple(keys), tuple(values), valid)
    return normed(config, h[:, -1], packed.norm), grown(cache, length - width)


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
    config, mesh = packed.config, packed.execution.mesh
    h, turned, _ = enter(config, packed.execution, packed.embed, token[:, None], positions[:, None])
    whole, local = _biases(config, cache.valid, at)
    keys, values = [], []
    for layer, old_keys, old_values in zip(packed.layers, cache.keys, cache.values):
        h = constrain(h, mesh, *RESIDUAL)
        q, k, v = split_heads(mesh, *project(config, layer, h, turned))
        new = k.transpose(0, 2, 3, 1).reshape(*old_keys.shape[:-1], 1), v.reshape(*old_values.shape[:-2], 1, -1)
        keys.append(_kept(lax.dynamic_update_slice_in_dim(old_keys, new[0], at, old_keys.ndim - 1), mesh))
        values.append(_kept(lax.dynamic_update_slice_in_dim(old_values, new[1], at, old_values.ndim - 2), mesh))
        bias = whole if local is None else where_local(config, layer, local, whole)
        seen = look_back(q[:, 0], _whole(keys[-1]), _whole(values[-1]), bias, config.query_scalar, config.attention_cap)
        h = residual(config, layer, h, seen[:, None], mesh)
    return normed(config, h[:, 0], packed.norm), Cache(tuple(keys), tuple(values), cache.valid)


def _biases(config: DecoderConfig, valid: Any, at: Any) -> tuple[Any, Any]:
    """What is added to the scores of each column `(b, 1, 1, length)`, in most layers and in those with a window.

    The cache may be a ring: a column's age is counted backwards from the one that is written.
    """
    bias = lambda seen: jnp.where(seen, 0, jnp.asarray(UNSEEN, jnp.float32))[:, None, None, :]
    if config.window is None:
        return bias(valid), None
    length = valid.shape[1]
    age = (at - jnp.arange(length)) % length
    return bias(valid), bias(valid & (age < config.window))


def _kept(x: Any, mesh: Any) -> Any:
    """Rows and heads of a cache split over the mesh."""
    return x if x.ndim == 3 else constrain(x, mesh, "batch", "kv_heads", None, None)


def look_back(q: Any, keys: Any, values: Any, bias: Any, scalar: float | None = None, cap: float | None = None) -> Any:
    """Attention of one query a row `(b, heads, e)` to a cache; scores and softmax in float32.

    `bias` is added to the scores; `scalar` and `cap` are those of `attention.attend`.

    Example:
        >>> q, keys, values = jnp.zeros((1, 2, 4)), jnp.zeros((1, 1, 4, 3)), jnp.ones((1, 1, 3, 4))
        >>> print(look_back(q, keys, values, jnp.zeros((1, 1, 1, 3)))[0, 0])
        [1. 1. 1. 1.]
    """
    batch, heads, size = q.shape
    scale = (size if scalar is None else scalar) ** -0.5
    grouped = q.reshape(batch, keys.shape[1], -1, size)
    scores = jnp.einsum("bkge,bkel->bkgl", grouped, keys, preferred_element_type=jnp.float32) * scale
    scores = (scores if cap is None else cap * jnp.tanh(scores / cap)) + bias
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    seen = jnp.einsum("bkgl,bkle->bkge", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return (seen / total).astype(q.dtype).reshape(batch, heads, size)


def alone(cache: Cache, mesh: Any = None) -> Cache:
    """For a loop over tokens: keys and values of one row without the row's axis; others, and on a mesh, as they are.

    The compiler drops an axis of length 1 for the products but not for what a loop carries: with it, the carried array
    and the one that is read are two, and every token copies the whole cache several times.
    """
    if mesh is not None or cache.valid.shape[0] != 1:
        return cache
    return Cache(tuple(leaf[0] for leaf in cache.keys), tuple(leaf[0] for leaf in cache.values), cache.valid)


def together(cache: Cache) -> Cache:
    """The cache with its axis of rows, after `alone`."""
    return Cache(tuple(map(_whole, cache.keys)), tuple(map(_whole, cache.values)), cache.valid)


def _whole(leaf: Any) -> Any:
    """One array of a cache with its axis of rows."""
    return leaf if leaf.ndim == 4 else leaf[None]


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
