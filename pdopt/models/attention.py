"""Rotary positions and grouped-query attention; the kernel is chosen once, by backend.

    rope:       [x1 cos a - x2 sin a, x2 cos a + x1 sin a],  a = position * frequency,  x1, x2 the halves of a head
    attention:  softmax(q k' / sqrt(head_dim) + mask) v,     each group of heads shares one key and value head

Rope and softmax are computed in float32 whatever the compute type. A row that may see no key attends to all of them
evenly instead of becoming NaN; such rows are padding, and are masked by whoever reads them.
"""

import logging
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdopt.errors import InvalidOption
from pdopt.models.columns import attend_columns
from pdopt.models.config import Rope

KERNELS = ("xla", "columns", "cudnn", "splash")

_log = logging.getLogger(__name__)


def rotations(rope: Rope, head_dim: int, positions: Any) -> tuple[Any, Any]:
    """`(cos, sin)` of the angles, each `(..., 1, head_dim / 2)` float32: the same for all heads and layers.

    Example:
        >>> cos, sin = rotations(Rope(), 4, jnp.array([[0, 1]]))
        >>> cos.shape, float(cos[0, 0, 0, 0])
        ((1, 2, 1, 2), 1.0)
    """
    frequencies = np.asarray(rope.frequencies(head_dim), np.float32)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Any, turned: tuple[Any, Any]) -> Any:
    """Rope of `x (..., heads, head_dim)`, in float32, in the dtype of x.

    Example:
        >>> x = jnp.ones((1, 1, 1, 2))
        >>> print(rotate(x, (jnp.zeros((1, 1, 1, 1)), jnp.ones((1, 1, 1, 1))))[0, 0, 0])
        [-1.  1.]
    """
    cos, sin = turned
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def attend(
    q: Any, k: Any, v: Any, mask: Any, kernel: str = "xla", scalar: float | None = None, cap: float | None = None
) -> Any:
    """Attention of queries `(b, t, heads, e)` to keys and values `(b, s, kv_heads, e)` under `mask (b, t, s)`.

    Args:
        kernel: one of `KERNELS`; "splash" has no dense masks and takes "xla" here.
        scalar: scores are `q k / sqrt(scalar)`; None: e.
        cap: c of `c tanh(score / c)`, which no fused kernel has; None: none.

    Raises:
        InvalidOption: another kernel.

    Example:
        >>> one = jnp.ones((1, 2, 1, 4))
        >>> print(attend(one, one, one, jnp.ones((1, 2, 2), bool)).shape)
        (1, 2, 1, 4)
    """
    require_kernel(kernel)
    scale = q.shape[-1] ** -0.5 if scalar is None else scalar**-0.5
    if cap is not None:
        return _capped(q, k, v, mask, scale, cap)
    if kernel == "columns":
        return attend_columns(q, k, v, mask, scale)
    named: Any = "cudnn" if kernel == "cudnn" else "xla"
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], scale=scale, implementation=named)


def _capped(q: Any, k: Any, v: Any, mask: Any, scale: float, cap: float) -> Any:
    b, t, heads, e = q.shape
    grouped = q.reshape(b, t, k.shape[2], -1, e)
    scores = jnp.einsum("btkge,bske->bkgts", grouped, k, preferred_element_type=jnp.float32)
    scores = cap * jnp.tanh(scale / cap * scores)
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min), axis=-1)
    return jnp.einsum("bkgts,bske->btkge", weights.astype(v.dtype), v).reshape(b, t, heads, e)


def attend_causal(q: Any, k: Any, v: Any, lengths: Any, kernel: str = "cudnn", scalar: float | None = None) -> Any:
    """Causal attention within one block whose rows have their `lengths (b,)` real tokens first: no mask is made.

    What it gives at places beyond a row's length is finite and means nothing.

    Example:
        >>> one = jnp.ones((1, 2, 1, 4))
        >>> print(attend_causal(one, one, one, jnp.array([2]), "xla")[0, :, 0, 0])
        [1. 1.]
    """
    scale = None if scalar is None else scalar**-0.5
    named: Any = kernel
    return jax.nn.dot_product_attention(
        q, k, v, scale=scale, is_causal=True, query_seq_lengths=lengths, key_value_seq_lengths=lengths,
        implementation=named,
    )  # fmt: skip


def require_kernel(kernel: str) -> None:
    """Raise `InvalidOption` unless the kernel exists."""
    if kernel not in KERNELS:
        raise InvalidOption(f"kernel is {kernel!r}; expected one of {', '.join(KERNELS)}")


@cache
def default_kernel(dtype: Any, head_dim: int = 128, backend: str | None = None) -> str:
    """The kernel for a compute type on a backend, None this process's own; said in the log the first time.

    "cudnn" on a GPU in half precision with heads that it takes, "splash" on a TPU, else "xla".

    Example:
        >>> default_kernel(np.dtype("float32"), 64, "gpu"), default_kernel(np.dtype("float16"), 64, "gpu")
        ('xla', 'cudnn')
    """
    backend = jax.default_backend() if backend is None else backend
    # Multiples of 8 up to 128 on every card that has the kernel; 256 on some.
    fused = np.dtype(dtype).itemsize == 2 and head_dim % 8 == 0 and head_dim <= 128
    kernel = "cudnn" if backend == "gpu" and fused else "splash" if backend == "tpu" else "xla"
    _log.info("attention: %s on %s in %s with heads of %d", kernel, backend, np.dtype(dtype).name, head_dim)
    return kernel


def in_window(mask: Any, window: int, at: Any = 0) -> Any:
    """The mask `(b, t, s)` of queries in columns `at`, `at + 1`, ...: only the last `window` columns, its own included.

    Columns, not positions, as in `transformers`; the same where the pads of a row stand at its start.

    Example:
        >>> print(in_window(jnp.ones((1, 3, 3), bool), 2)[0].astype(int))
        [[1 1 1]
         [1 1 1]
         [0 1 1]]
    """
    t, s = mask.shape[1:]
    return mask & ((at + jnp.arange(t))[:, None] - jnp.arange(s) < window)


def causal_mask(positions: Any, valid: Any) -> Any:
    """Who may see whom within one block of tokens, `(b, t, t)`: valid tokens at the same or an earlier position.

    Example:
        >>> print(causal_mask(jnp.array([[0, 1]]), jnp.array([[True, True]]))[0].astype(int))
        [[1 0]
         [1 1]]
    """
    t = positions.shape[1]
    order = jnp.arange(t)
    return (order[:, None] >= order)[None] & valid[:, None, :]
