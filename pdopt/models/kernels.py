"""Attention of a block of tokens to itself, by the kernel of the backend; each is tested against dense attention.

    xla     dense masks (`attention.attend`): the reference, and the only one on a CPU
    cudnn   NVIDIA's fused kernel; causal by itself, rows with their real tokens first, so that no mask is read
    splash  Pallas on a TPU: causal masks and windows by blocks, pads by segment ids; unseen blocks cost nothing

A dense mask costs `t^2` bytes of traffic a row, which the last two avoid. A new token that sees a cache goes through
`block.look` whatever the kernel. Splash runs under `shard_map` on a mesh, since a compiler cannot split it by itself.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from pdopt.models.attention import attend_causal, causal_mask, default_kernel, require_kernel
from pdopt.models.block import look
from pdopt.models.config import DecoderConfig
from pdopt.models.sharding import activation_spec

# Rows and columns of a block of splash attention: a multiple of a TPU's 128 lanes; larger blocks need fewer loads.
LANES, LARGEST = 128, 512


def choose(config: DecoderConfig, kernel: str | None, dtype: Any) -> str:
    """The kernel asked for, or the default of this backend.

    Raises:
        InvalidOption: one that does not exist.

    Example:
        >>> config = DecoderConfig(vocabulary=32, width=8, depth=1, heads=2, kv_heads=1, head_dim=4, hidden=16)
        >>> choose(config, "cudnn", jnp.float32)
        'cudnn'
    """
    if kernel is None:
        return default_kernel(jnp.dtype(dtype), config.head_dim)
    require_kernel(kernel)
    return kernel


def needs_front(config: DecoderConfig, kernel: str) -> bool:
    """Whether the kernel wants the real tokens of each row before its pads."""
    return kernel == "cudnn" and config.window is None and config.attention_cap is None


def block_attention(
    config: DecoderConfig, kernel: str, positions: Any, valid: Any, mesh: Any = None
) -> Callable[[Any, Any, Any, Any], Any]:
    """`(layer, q, k, v) -> seen` for all layers of one pass; masks are made once, here.

    Args:
        config: windows, cap and scale of the scores.
        kernel: one of `attention.KERNELS`.
        positions, valid: `(b, t)` of the block; with "cudnn" the valid ones come first in each row.
        mesh: where rows and heads are split, or None.
    """
    if kernel == "splash":
        return partial(_splash_layer, config, valid, mesh)
    if needs_front(config, kernel):
        lengths = jnp.sum(valid, axis=1, dtype=jnp.int32)
        return lambda layer, q, k, v: attend_causal(q, k, v, lengths, kernel, config.query_scalar)
    mask = causal_mask(positions, valid)
    return lambda layer, q, k, v: look(config, layer, q, k, v, mask, kernel)


def _splash_layer(config: DecoderConfig, valid: Any, mesh: Any, layer: Any, q: Any, k: Any, v: Any) -> Any:
    run = partial(splash, scalar=config.query_scalar, cap=config.attention_cap, mesh=mesh)
    if not config.mixed:
        return run(q, k, v, valid, window=config.window)
    local = partial(run, window=config.window)
    return lax.cond(layer["local"], local, run, q, k, v, valid)


def splash(
    q: Any, k: Any, v: Any, valid: Any, *, scalar: float | None = None, cap: float | None = None,
    window: int | None = None, mesh: Any = None,
) -> Any:  # fmt: skip
    """Causal attention within one block by the Pallas kernel; on a CPU in its slow interpreter, for tests.

    Args:
        q: `(b, t, heads, e)`; k, v: `(b, t, kv_heads, e)`.
        valid: `(b, t)`; real tokens see real ones, pads see pads, so that every row is finite.
        scalar, cap: as in `attend`.
        window: columns that are seen, its own included; None: all before.
        mesh: where rows and heads are split, or None.

    Returns:
        `(b, t, heads, e)`.
    """
    scale = (q.shape[-1] if scalar is None else scalar) ** -0.5
    scaled = (q.astype(jnp.float32) * scale).astype(q.dtype)
    local = partial(_splash_local, cap=cap, window=window)
    if mesh is None:
        return local(scaled, k, v, valid)
    heads = activation_spec(mesh, q.shape, ("batch", None, "heads", None))
    kv_heads = activation_spec(mesh, k.shape, ("batch", None, "kv_heads", None))
    if heads[2] != kv_heads[2]:
        # Fewer key heads than devices: each device gets those of its queries.
        k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
        kv_heads = heads
    split = jax.shard_map(
        local, mesh=mesh, in_specs=(heads, kv_heads, kv_heads, P(heads[0])), out_specs=heads, check_vma=False
    )
    return split(scaled, k, v, valid)


def _splash_local(q: Any, k: Any, v: Any, valid: Any, *, cap: float | None, window: int | None) -> Any:
    """The kernel on the rows and heads of one device."""
    b, t, heads, e = q.shape
    block = min(LARGEST, -(-t // LANES) * LANES)
    spare = -t % block
    longer = lambda x: jnp.pad(x, ((0, 0), (0, spare), *((0, 0),) * (x.ndim - 2)))
    rows = longer(valid.astype(jnp.int32))
    # (b, kv_heads, group, t, e) and (b, kv_heads, t, e): each key head serves its group of queries.
    grouped = longer(q).reshape(b, t + spare, k.shape[2], -1, e).transpose(0, 2, 3, 1, 4)
    keys, values = (longer(x).transpose(0, 2, 1, 3) for x in (k, v))
    run = lambda interpret: partial(_kernel, block=block, cap=cap, window=window, interpret=interpret)
    out = lax.platform_dependent(grouped, keys, values, rows, cpu=run(True), default=run(False))
    return out.transpose(0, 3, 1, 2, 4).reshape(b, t + spare, heads, e)[:, :t]


def _kernel(
    q: Any, k: Any, v: Any, segments: Any, *, block: int, cap: float | None, window: int | None, interpret: bool
) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    t = q.shape[3]
    one = masks.CausalMask((t, t)) if window is None else masks.LocalMask((t, t), (window - 1, 0), 0)
    sizes = kernels.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block, block_kv_dkv=block,
        block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    kernel = kernels.make_splash_mqa(
        masks.MultiHeadMask([one] * q.shape[2]), block_sizes=sizes, attn_logits_soft_cap=cap, head_shards=1,
        q_seq_shards=1, interpret=interpret,
    )  # fmt: skip
    heads = lambda q, k, v, ids: jax.vmap(partial(kernel, segment_ids=ids))(q, k, v)
    return jax.vmap(heads)(q, k, v, kernels.SegmentIds(segments, segments))
