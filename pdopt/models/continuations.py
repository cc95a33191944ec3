"""Several continuations of each prompt, the prompt read once: the hidden states that their tokens are predicted from.

    row of a prompt:   prompt | continuation 1 | ... | continuation G       p + G n columns, where apart are G (p + n)
    a continuation's token sees the prompt and what stands before it in its own continuation, and no other one

All but attention acts on a token alone, so a row runs through the layers like any other (experts, adapters, remat, a
mesh); attention takes it apart, and lends the prompt's keys and values to its continuations. The same mathematics as
each continuation behind a prompt of its own: gradients of what is lent are summed over those it was lent to.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pdopt.errors import require_shape
from pdopt.models.attention import causal_mask
from pdopt.models.block import look
from pdopt.models.config import DecoderConfig
from pdopt.models.decoder import Decoder, compute_dtype, run_layers
from pdopt.models.decoding import repeated
from pdopt.models.kernels import block_attention, choose, needs_front
from pdopt.models.sharding import rows_divide


def states_before(model: Decoder, prompts: Any, valid: Any, tokens: Any, present: Any) -> Any:
    """The last hidden states `(b, t, width)`, normalised, that the tokens of continuations are predicted from.

    A prompt with several continuations is read once, except on a mesh that does not divide the prompts evenly: there
    each continuation gets a prompt of its own.

    Args:
        model: the decoder.
        prompts, valid: `(P, p)`, left padded.
        tokens, present: `(b, t)`, right padded; b = P G, the G continuations of a prompt one after the other.

    Raises:
        InvalidProblem: shapes that do not match.

    Example:
        >>> from pdopt.models.decoder import initialise
        >>> config = DecoderConfig(vocabulary=32, width=8, depth=1, heads=2, kv_heads=1, head_dim=4, hidden=16)
        >>> model = Decoder(initialise(config, jax.random.key(0)), config)
        >>> prompts, tokens = jnp.array([[0, 5, 7]]), jnp.array([[3, 4], [3, 9]])
        >>> states_before(model, prompts, prompts > 0, tokens, tokens > 0).shape
        (2, 2, 8)
    """
    count, (rows, columns), mesh = prompts.shape[0], tokens.shape, model.execution.mesh
    require_shape("tokens", tokens.shape, (rows // count * count, columns), "prompts have as many continuations each")
    group, read = rows // count, columns - 1
    if group > 1 and read and (mesh is None or rows_divide(mesh, count)):
        return _together(model, prompts, valid, tokens[:, :-1], present[:, :-1])
    prompts, valid = repeated((prompts, valid), group)
    every = jnp.concatenate([prompts, tokens[:, :-1]], axis=1)
    seen = jnp.concatenate([valid, present[:, :-1]], axis=1)
    return model.hidden(every, None, seen)[:, prompts.shape[1] - 1 :]


def _together(model: Decoder, prompts: Any, valid: Any, tokens: Any, present: Any) -> Any:
    """The states before the first of `tokens (b, n)` and after each of them."""
    (count, width), (rows, read) = prompts.shape, tokens.shape
    before = jnp.cumsum(valid, axis=1)
    after = repeated(before[:, -1:], rows // count) + jnp.cumsum(present, axis=1)
    positions = jnp.maximum(_joined(before, after) - 1, 0)
    params = {**model.params, "layers": model.stack()}
    kernel = choose(model.config, model.execution.kernel, compute_dtype(model.params["embed"], model.execution))
    see = _attention(model.config, kernel, valid, present, model.execution.mesh)
    hidden, _ = run_layers(
        model.config, model.execution, params, _joined(prompts, tokens), positions, _joined(valid, present), see
    )
    last, states = _apart(hidden, width, read)
    return jnp.concatenate([repeated(last[:, -1:], rows // count), states], axis=1)


def _joined(prompts: Any, own: Any) -> Any:
    """`(P, p, ...)` and `(P G, n, ...)` as rows `(P, p + G n, ...)`."""
    return jnp.concatenate([prompts, own.reshape(prompts.shape[0], -1, *own.shape[2:])], axis=1)


def _apart(x: Any, width: int, read: int) -> tuple[Any, Any]:
    """The two that were joined; `width` is p, `read` is n."""
    return x[:, :width], x[:, width:].reshape(-1, read, *x.shape[2:])


def _attention(
    config: DecoderConfig, kernel: str, valid: Any, present: Any, mesh: Any
) -> Callable[[Any, Any, Any, Any], Any]:
    """`(layer, q, k, v) -> seen` for joined rows, as `kernels.block_attention` for plain ones."""
    (count, width), (rows, read) = valid.shape, present.shape
    group = rows // count
    lend = lambda prompt, own: jnp.concatenate([repeated(prompt, group), own], axis=1)
    if kernel == "splash" or needs_front(config, kernel):
        return _fused(config, kernel, valid, present, mesh)
    first = causal_mask(valid, valid)
    later = causal_mask(present, present)
    whole = jnp.broadcast_to(repeated(valid, group)[:, None], (rows, read, width))
    later = jnp.concatenate([whole, later], axis=2)
    fast = "columns" if kernel == "xla" and jax.default_backend() == "cpu" else kernel

    def see(layer: Any, q: Any, k: Any, v: Any) -> Any:
        (q, own_q), (k, own_k), (v, own_v) = (_apart(x, width, read) for x in (q, k, v))
        seen = look(config, layer, own_q, lend(k, own_k), lend(v, own_v), later, fast, at=width)
        return _joined(look(config, layer, q, k, v, first, kernel), seen)

    return see


def _fused(
    config: DecoderConfig, kernel: str, valid: Any, present: Any, mesh: Any
) -> Callable[[Any, Any, Any, Any], Any]:
    """By a kernel that wants queries and keys of the same columns: attention alone sees a prompt for each text."""
    (count, width), (rows, read) = valid.shape, present.shape
    group = rows // count
    lend = lambda prompt, own: jnp.concatenate([repeated(prompt, group), own], axis=1)
    every = lend(valid, present)
    order = jnp.argsort(~every, axis=1, stable=True) if needs_front(config, kernel) else None
    back = None if order is None else jnp.argsort(order, axis=1)
    turn = lambda x, order: x if order is None else jnp.take_along_axis(x, _like(order, x), axis=1)
    every = turn(every, order)
    attend = block_attention(config, kernel, jnp.cumsum(every, axis=1), every, mesh)

    def see(layer: Any, q: Any, k: Any, v: Any) -> Any:
        seen = turn(attend(layer, *(turn(lend(*_apart(x, width, read)), order) for x in (q, k, v))), back)
        return _joined(seen[::group, :width], seen[:, width:])

    return see


def _like(order: Any, x: Any) -> Any:
    """`order (b, t)` with as many axes as x."""
    return order.reshape(*order.shape, *(1,) * (x.ndim - 2))
