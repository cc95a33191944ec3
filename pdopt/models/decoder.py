"""The decoder as pure functions of a configuration and a tree of parameters.

    h = embed[tokens];   for each layer:  h += o(attention(norm h));  h += down(silu(gate n) * up n), n = norm h
    logits = norm(h) @ head;             norm x = x / sqrt(mean x^2 + eps) * w, in float32

Parameters are a nested dictionary (`config.shapes` names them); layers are stacked on a leading axis. They run in a
`lax.scan` (one compiled block, compile time free of depth) or unrolled (faster on a CPU, and for decoding).
`Decoder` pairs the two for users: a pytree to call, differentiate and shard.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pdopt.errors import InvalidOption, require_shape
from pdopt.models.attention import attend, causal_mask, default_kernel, rotations
from pdopt.models.block import norm, packed, project, residual
from pdopt.models.config import DecoderConfig
from pdopt.models.lora import Adapters, beside, merged
from pdopt.models.sharding import RESIDUAL, constrain, lookup, split_heads
from pdopt.types import record

REMATS = ("none", "full", "dots")


class Execution(NamedTuple):
    """How the same numbers are computed; nothing here changes the model.

    Attributes:
        compute: dtype of products and activations; parameters are cast to it. None: the parameters' own.
        kernel: attention kernel; None chooses by backend.
        unroll: run the layers in a Python loop instead of a scan.
        remat: what the backward pass recomputes: "none", "full" (all but block inputs), "dots" (all but products).
        mesh: where activations are split (`sharding.make_mesh`); None leaves them to the compiler.
    """

    compute: Any = None
    kernel: str | None = None
    unroll: bool = False
    remat: str = "none"
    mesh: Any = None


DEFAULT = Execution()


class Cache(NamedTuple):
    """Keys and values already computed: one `(b, length, kv_heads, head_dim)` array for each layer, and what is valid.

    One array a layer, not one for all: a token's write is then in place, without copying the other layers.
    """

    keys: tuple[Any, ...]
    values: tuple[Any, ...]
    valid: Any


@record(static=("config", "execution"))
class Decoder:
    """A language model: `decoder(tokens, positions, valid) -> logits (b, t, vocabulary)`, float32.

    Attributes:
        params: nested dictionary of arrays, as `config.shapes` has them.
        config: `DecoderConfig`.
        execution: how it runs.
        adapters: low-rank changes of the layers' weights (`lora.init`); None: none, the weights alone.

    Example:
        >>> config = DecoderConfig(vocabulary=32, width=8, depth=1, heads=2, kv_heads=1, head_dim=4, hidden=16)
        >>> model = Decoder(initialise(config, jax.random.key(0)), config)
        >>> model(jnp.array([[1, 2, 3]])).shape
        (1, 3, 32)
    """

    params: Any
    config: DecoderConfig
    execution: Execution = DEFAULT
    adapters: Adapters | None = None

    def __call__(self, tokens: Any, positions: Any = None, valid: Any = None) -> Any:
        """Logits of every position; `valid (b, t)` marks real tokens, `positions` defaults to counting them."""
        return self.logits(self.hidden(tokens, positions, valid))

    def hidden(self, tokens: Any, positions: Any = None, valid: Any = None) -> Any:
        """The last hidden states `(b, t, width)`, normalised."""
        positions, valid = _placed(tokens, positions, valid)
        mask = causal_mask(positions, valid)
        params = {**self.params, "layers": beside(self.params["layers"], self.adapters)}
        return run_layers(self.config, self.execution, params, tokens, positions, mask)

    def logits(self, hidden: Any) -> Any:
        """`hidden @ head` in float32."""
        matrix = head(self.config, self.params, self.execution.mesh).astype(hidden.dtype)
        logits = jnp.matmul(hidden, matrix, preferred_element_type=jnp.float32)
        return constrain(logits, self.execution.mesh, "batch", *(None,) * (hidden.ndim - 2), "vocab")


def head(config: DecoderConfig, params: Any, mesh: Any = None) -> Any:
    """The matrix `(width, vocabulary)` that makes logits; on a mesh its width is whole on every device."""
    return constrain(params["embed"].T if config.tied else params["head"], mesh, None, "vocab")


def initialise(config: DecoderConfig, key: Any, dtype: Any = jnp.float32) -> Any:
    """Random parameters: normal with deviation 0.02, projections into the residual divided by `sqrt(2 depth)` (GPT-2).

    Example:
        >>> config = DecoderConfig(vocabulary=32, width=8, depth=1, heads=2, kv_heads=1, head_dim=4, hidden=16)
        >>> initialise(config, jax.random.key(0))["layers"]["mlp"]["down"].shape
        (1, 16, 8)
    """
    params: dict[str, Any] = {}
    for number, (path, shape) in enumerate(config.shapes.items()):
        name = path.rsplit("/", 1)[-1]
        if name.endswith("norm"):
            value = jnp.ones(shape, dtype)
        elif name.endswith("bias"):
            value = jnp.zeros(shape, dtype)
        else:
            scale = 0.02 / (2 * config.depth) ** 0.5 if name in ("o", "down") else 0.02
            value = scale * jax.random.normal(jax.random.fold_in(key, number), shape, dtype)
        put(params, path, value)
    return params


def put(params: dict[str, Any], path: str, value: Any) -> None:
    """Set `params[a][b][c]` for the path `a/b/c`, making the dictionaries on the way."""
    *folders, name = path.split("/")
    for folder in folders:
        params = params.setdefault(folder, {})
    params[name] = value


def _placed(tokens: Any, positions: Any, valid: Any) -> tuple[Any, Any]:
    valid = jnp.ones(tokens.shape, bool) if valid is None else valid.astype(bool)
    require_shape("valid", valid.shape, tokens.shape, "tokens has that shape")
    if positions is None:
        positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
    require_shape("positions", positions.shape, tokens.shape, "tokens has that shape")
    return positions, valid


def run_layers(config: DecoderConfig, execution: Execution, params: Any, tokens: Any, positions: Any, mask: Any) -> Any:
    """Normalised hidden states of a block of tokens that see each other through `mask (b, t, t)`."""
    h, turned, kernel = _enter(config, execution, params, tokens, positions)
    mesh = execution.mesh

    def block(h: Any, layer: Any) -> tuple[Any, None]:
        h = constrain(h, mesh, *RESIDUAL)
        q, k, v = split_heads(mesh, *project(config, layer, h, turned))
        return residual(config, layer, h, attend(q, k, v, mask, kernel)), None

    block = _checkpointed(block, execution.remat)
    if execution.unroll:
        for number in range(config.depth):
            h, _ = block(h, slice_layer(params["layers"], number))
    else:
        h, _ = lax.scan(block, h, params["layers"])
    return norm(h, params["norm"], config.norm_epsilon)


def extend(
    model: Decoder, layers: tuple[Any, ...], tokens: Any, positions: Any, mask: Any, cache: Cache, at: Any
) -> tuple[Any, Cache]:
    """Hidden states of new tokens that see the cache, and the cache with theirs written at column `at`.

    Args:
        model: the decoder.
        layers: its `packed_layers`, made once by the caller so that decoding does not slice at every token.
        tokens, positions: `(b, t)` new tokens.
        mask: `(b, t, length)` what each may see of the cache, themselves included.
        cache: what was seen before.
        at: the column of the first new token, the same in every row.
    """
    config, mesh = model.config, model.execution.mesh
    h, turned, kernel = _enter(config, model.execution, model.params, tokens, positions)
    keys, values = [], []
    write = lambda old, new: constrain(
        lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), at, 1), mesh, "batch", None, "kv_heads", None
    )
    for number, layer in enumerate(layers):
        h = constrain(h, mesh, *RESIDUAL)
        q, k, v = split_heads(mesh, *project(config, layer, h, turned))
        keys.append(write(cache.keys[number], k))
        values.append(write(cache.values[number], v))
        seen = attend(q, keys[-1].astype(q.dtype), values[-1].astype(q.dtype), mask, kernel)
        h = residual(config, layer, h, seen)
    return norm(h, model.params["norm"], config.norm_epsilon), Cache(tuple(keys), tuple(values), cache.valid)


def packed_layers(model: Decoder) -> tuple[Any, ...]:
    """The layers apart, with q, k, v side by side in `qkv` and gate, up in `gate_up`: fewer, wider products.

    The same numbers; worth it where many small steps read the same weights. Adapters are added to weights that are kept
    and used in float32; in half precision the sum would round most of an adapter away, so there they stay apart.
    """
    whole = min(jnp.dtype(dtype).itemsize for dtype in (model.params["embed"].dtype, compute_dtype(model))) >= 4
    layers = (merged if whole else beside)(model.params["layers"], model.adapters)
    return tuple(packed(model.config, slice_layer(layers, number)) for number in range(model.config.depth))


def compute_dtype(model: Decoder) -> Any:
    """The dtype of products and activations."""
    compute = model.execution.compute
    return jnp.dtype(model.params["embed"].dtype if compute is None else compute)


def empty_cache(config: DecoderConfig, batch: int, length: int, dtype: Any) -> Cache:
    """A cache without a token."""
    shape = (batch, length, config.kv_heads, config.head_dim)
    arrays = lambda: tuple(jnp.zeros(shape, dtype) for _ in range(config.depth))
    return Cache(arrays(), arrays(), jnp.zeros((batch, length), bool))


def slice_layer(layers: Any, number: int) -> Any:
    """The parameters of one layer out of the stack."""
    return jax.tree.map(lambda leaf: leaf[number], layers)


def _enter(config: DecoderConfig, execution: Execution, params: Any, tokens: Any, positions: Any) -> Any:
    dtype = params["embed"].dtype if execution.compute is None else jnp.dtype(execution.compute)
    kernel = default_kernel(dtype) if execution.kernel is None else execution.kernel
    h = lookup(params["embed"], tokens, dtype, execution.mesh)
    return h, rotations(config.rope, config.head_dim, positions), kernel


def _checkpointed(block: Any, remat: str) -> Any:
    if remat == "none":
        return block
    if remat == "full":
        return jax.checkpoint(block, prevent_cse=False)
    if remat == "dots":
        kept = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        return jax.checkpoint(block, prevent_cse=False, policy=kept)
    raise InvalidOption(f"remat is {remat!r}; expected one of {', '.join(REMATS)}")
