"""Rotary positions and grouped-query attention; the kernel is chosen once, by backend.

    rope:       [x1 cos a - x2 sin a, x2 cos a + x1 sin a],  a = position * frequency,  x1, x2 the halves of a head
    attention:  softmax(q k' / sqrt(head_dim) + mask) v,     each group of heads shares one key and value head

Rope and softmax are computed in float32 whatever the compute type. A row that may see no key attends to all of them
evenly instead of becoming NaN; such rows are padding, and are masked by whoever reads them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdopt.errors import InvalidOption
from pdopt.models.config import Rope

KERNELS = ("xla", "cudnn")


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


def attend(q: Any, k: Any, v: Any, mask: Any, kernel: str = "xla") -> Any:
    """Attention of queries `(b, t, heads, e)` to keys and values `(b, s, kv_heads, e)` under `mask (b, t, s)`.

    Args:
        kernel: "xla", or "cudnn" (NVIDIA, bfloat16 or float16).

    Raises:
        InvalidOption: another kernel.

    Example:
        >>> one = jnp.ones((1, 2, 1, 4))
        >>> print(attend(one, one, one, jnp.ones((1, 2, 2), bool)).shape)
        (1, 2, 1, 4)
    """
    if kernel not in KERNELS:
        raise InvalidOption(f"kernel is {kernel!r}; expected one of {', '.join(KERNELS)}")
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation=kernel)  # pyright: ignore[reportArgumentType]


def default_kernel(dtype: Any) -> str:
    """The kernel for this backend and compute type; asked once, when a model is built.

    Example:
        >>> default_kernel(jnp.float32)
        'xla'
    """
    return "cudnn" if jax.default_backend() == "gpu" and np.dtype(dtype).itemsize == 2 else "xla"


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
