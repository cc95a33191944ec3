"""One layer of the decoder, as pure functions of the configuration, the layer's parameters and the residual stream.

    project:  q, k, v = rope(norm h W)          residual:  h += seen o;   h += down(silu(gate n) * up n),  n = norm h

What stands between the two, attention, belongs to the caller: a block of tokens sees itself, a new token sees a cache.
A layer is a nested dictionary of arrays, named as in `config.shapes`.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pdopt.models.attention import attend, in_window, rotate, rotations
from pdopt.models.config import DecoderConfig
from pdopt.models.lora import Low
from pdopt.models.routed import mix

# Rows up to which a product with `Outward` weights has the weights as its left side, which is streamed while the right
# one is rearranged; measured on one core: 8 rows 30.6 against 27.4 GFLOP/s, 16 rows 53.7 against 47.6, 32 rows 61.5
# against 64.6.
FEW_ROWS = 16


def norm(x: Any, weight: Any, epsilon: float, offset: bool = False) -> Any:
    """RMSNorm (Zhang, Sennrich 2019) over the last axis, in float32, in the dtype of x; times `1 + w` with `offset`.

    Example:
        >>> print(norm(jnp.array([3.0, 3.0]), jnp.ones(2), 0.0).round(3))
        [1. 1.]
    """
    wide = x.astype(jnp.float32)
    scale = lax.rsqrt(jnp.mean(wide * wide, axis=-1) + epsilon)
    factor = weight.astype(jnp.float32)
    unit = wide * lax.broadcast_in_dim(scale, x.shape, range(x.ndim - 1))
    return scaled(unit, 1 + factor if offset else factor).astype(x.dtype)


@jax.custom_jvp
def scaled(x: Any, factor: Any) -> Any:
    """`x factor`, a vector times every row of x, whose gradient in the vector is one product: `1' (x dy)`.

    A CPU sums over rows ten times faster that way than by adding them up.

    Example:
        >>> print(jax.grad(lambda factor: scaled(jnp.ones((3, 2)), factor).sum())(jnp.ones(2)))
        [3. 3.]
    """
    return x * factor


@scaled.defjvp
def _scaled(given: tuple[Any, Any], moved: tuple[Any, Any]) -> tuple[Any, Any]:
    (x, factor), (dx, dfactor) = given, moved
    ones = jnp.ones((math.prod(x.shape[:-1]), 1), dfactor.dtype)
    rows = jnp.matmul(ones, dfactor[None], precision=lax.Precision.HIGHEST).reshape(x.shape)
    return x * factor, dx * factor + x * rows


def normed(config: DecoderConfig, x: Any, weight: Any) -> Any:
    """The norm of this decoder."""
    return norm(x, weight, config.norm_epsilon, config.norm_offset)


class Turns(NamedTuple):
    """Rotations of the tokens' positions, `(cos, sin)`: those of most layers, and those of local ones or None."""

    whole: Any
    local: Any


def turns(config: DecoderConfig, positions: Any) -> Turns:
    """The rotations that every layer uses."""
    local = None if config.local_rope is None else rotations(config.local_rope, config.head_dim, positions)
    return Turns(rotations(config.rope, config.head_dim, positions), local)


class Outward(NamedTuple):
    """A weight as `(out, in)`: the weights of one output are contiguous, and products with few rows read them faster.

    The four products of a layer of width 576, float32, weights out of the cache, one core with AVX-512 (XLA of jaxlib
    0.10), 16 rows: 53.7 GFLOP/s this way, 44.9 as `(in, out)`; 32 rows 64.6 and 57.4; a single row is read as fast
    either way. The head of a tied decoder is its embedding as it stands.
    """

    matrix: Any

    def after(self, x: Any, out: Any = None) -> Any:
        """`x W' (..., out)` for x `(..., in)`, in the dtype `out` or that of x.

        Example:
            >>> print(Outward(jnp.ones((3, 2))).after(jnp.ones((1, 2))))
            [[2. 2. 2.]]
        """
        flat, matrix = x.reshape(-1, x.shape[-1]), self.matrix.astype(x.dtype)
        product = partial(lax.dot_general, dimension_numbers=(((1,), (1,)), ((), ())), preferred_element_type=out)
        if len(flat) > FEW_ROWS:
            made = product(flat, matrix)
        else:
            # Behind the barrier, or the compiler turns the product round again.
            made = lax.optimization_barrier(product(matrix, flat)).T
        return made.reshape(*x.shape[:-1], -1)


def outward(matrix: Any, inputs: int = 1) -> Outward:
    """The weight `(*in, *out)`, whose first `inputs` axes are inputs, kept as `(out, in)`.

    Behind a barrier: without it the compiler undoes the transposition and makes it again in every product.
    """
    flat = matrix.reshape(math.prod(matrix.shape[:inputs]), -1)
    return Outward(lax.optimization_barrier(flat.T))


def linear(part: Any, name: str, x: Any, axes: int = 1) -> Any:
    """`x W + b + (x A) B`, the last `axes` axes of x with the first of W; the bias and the adapter where there are any.

    W is an array, or `Outward`, which keeps it the other way round.

    Example:
        >>> print(linear({"up": jnp.ones((2, 3)), "up_bias": jnp.ones(3)}, "up", jnp.ones((1, 2))))
        [[3. 3. 3.]]
    """
    weight = part[name]
    if isinstance(weight, Outward):
        out = weight.after(x.reshape(*x.shape[: x.ndim - axes], -1))
    else:
        # Rows of one axis: with two, the gradient of W would be a product of turned copies on a CPU.
        weight = weight.astype(x.dtype)
        flat = x.reshape(-1, math.prod(weight.shape[:axes]))
        out = (flat @ weight.reshape(flat.shape[1], -1)).reshape(*x.shape[: x.ndim - axes], *weight.shape[axes:])
    bias, low = part.get(f"{name}_bias"), part.get(f"{name}_low")
    if low is not None:
        out = out + jnp.tensordot(jnp.tensordot(x, low.a.astype(x.dtype), axes), low.b.astype(x.dtype), 1)
    return out if bias is None else out + bias.astype(x.dtype)


def project(config: DecoderConfig, layer: Any, h: Any, turned: Turns) -> tuple[Any, Any, Any]:
    """Queries, keys and values `(b, t, heads, head_dim)` of one layer, turned by their positions."""
    part = layer["attention"]
    n = normed(config, h, layer["attention_norm"])
    if "qkv" in part:
        ends = (config.heads * config.head_dim, (config.heads + config.kv_heads) * config.head_dim)
        flat = jnp.split(linear(part, "qkv", n), ends, axis=-1)
        q, k, v = (value.reshape(*value.shape[:2], -1, config.head_dim) for value in flat)
    else:
        q, k, v = (linear(part, name, n) for name in ("q", "k", "v"))
    if config.qk_norm:
        q, k = normed(config, q, part["q_norm"]), normed(config, k, part["k_norm"])
    own = turned.whole if turned.local is None else where_local(config, layer, turned.local, turned.whole)
    return rotate(q, own), rotate(k, own), v


def look(config: DecoderConfig, layer: Any, q: Any, k: Any, v: Any, mask: Any, kernel: str, at: Any = 0) -> Any:
    """What queries in columns `at`, `at + 1`, ... see of keys and values: `mask (b, t, s)` and the layer's window."""
    if config.window is not None:
        mask = where_local(config, layer, in_window(mask, config.window, at), mask)
    return attend(q, k, v, mask, kernel, config.query_scalar, config.attention_cap)


def where_local(config: DecoderConfig, layer: Any, local: Any, whole: Any) -> Any:
    """The one or the other, by the kind of the layer; a scan over layers of both kinds chooses as it runs."""
    if not config.mixed:
        return local if any(config.local) else whole
    return jax.tree.map(lambda a, b: jnp.where(layer["local"], a, b), local, whole)


def residual(config: DecoderConfig, layer: Any, h: Any, seen: Any, mesh: Any = None) -> Any:
    """What attention saw `(b, t, heads, head_dim)` goes into the residual stream; then the MLP, or the experts."""
    return residual_and_tally(config, layer, h, seen, mesh=mesh)[0]


def residual_and_tally(
    config: DecoderConfig, layer: Any, h: Any, seen: Any, valid: Any = None, mesh: Any = None
) -> tuple[Any, Any]:
    """`residual`, and the `Tally` of where the experts' valid tokens went; None without experts."""
    out = linear(layer["attention"], "o", seen, 2)
    h = h + (normed(config, out, layer["attention_post_norm"]) if config.post_norms else out)
    n = normed(config, h, layer["mlp_norm"])
    if config.experts is None:
        out, tally = gated(config, layer["mlp"], n), None
    else:
        out, tally = mix(config.experts, layer["experts"], layer.get("router_bias"), n, valid, mesh)
    return h + (normed(config, out, layer["mlp_post_norm"]) if config.post_norms else out), tally


def gated(config: DecoderConfig, part: Any, n: Any) -> Any:
    """`down(act(gate n) * up n)`; gate and up may lie side by side in `gate_up`."""
    if "gate_up" in part:
        gate, up = jnp.split(linear(part, "gate_up", n), 2, axis=-1)
    else:
        gate, up = linear(part, "gate", n), linear(part, "up", n)
    act = jax.nn.silu if config.activation == "silu" else partial(jax.nn.gelu, approximate=True)
    return linear(part, "down", act(gate) * up)


def packed(config: DecoderConfig, layer: Any) -> Any:
    """The layer with q, k, v side by side in `qkv` and gate, up in `gate_up`: fewer, wider products, same numbers."""
    made = {**layer, "attention": _side_by_side(layer["attention"], ("q", "k", "v"), config.width)}
    if config.experts is None:
        made["mlp"] = _side_by_side(layer["mlp"], ("gate", "up"), config.width)
    return made


def _side_by_side(part: Any, names: tuple[str, ...], inputs: int) -> Any:
    """Weights, biases and adapters of `names` next to each other, and the rest of the part."""
    whole = "_".join(names) if len(names) == 2 else "".join(names)
    made = {key: value for key, value in part.items() if key.split("_")[0] not in names or key.endswith("_norm")}
    flat = [part[name].reshape(inputs, -1) for name in names]
    made[whole] = jnp.concatenate(flat, axis=1)
    if f"{names[0]}_bias" in part:
        made[f"{whole}_bias"] = jnp.concatenate([part[f"{name}_bias"].ravel() for name in names])
    low = {name: part[f"{name}_low"] for name in names if f"{name}_low" in part}
    if low:
        # B becomes block diagonal: one product more for all, where apart each module would need two.
        rows = [
            jnp.concatenate([
                low[name].b.reshape(low[name].b.shape[0], -1) if other == name
                else jnp.zeros((low[name].b.shape[0], weight.shape[1]), low[name].b.dtype)
                for other, weight in zip(names, flat)
            ], axis=1)
            for name in low
        ]  # fmt: skip
        made[f"{whole}_low"] = Low(jnp.concatenate([one.a for one in low.values()], axis=1), jnp.concatenate(rows))
    return made
