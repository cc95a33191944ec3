"""Paths of a stream: the keys of its steps, stretches of requests, whole samples, and the worst order of one.

The request of step t of a path is drawn with `fold_in(path key, t)`: it depends on neither the horizon, nor the number
of paths, nor the lengths of the stretches it is drawn in.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.problems.streams import Stream
from pdopt.runtime.precision import precision_scope


def stretch(stream: Stream, key: Any, state: Any, first: Any, length: int) -> tuple[Any, Any]:
    """The requests of steps `first`, ..., `first + length - 1` of one path, stacked, and the state after them."""
    steps = first + jnp.arange(length, dtype=jnp.int32)
    if stream.memoryless:
        return jax.vmap(lambda t: stream.draw(jax.random.fold_in(key, t), t))(steps), state

    def arrive(state: Any, t: Any) -> tuple[Any, Any]:
        request, state = stream.arrive(jax.random.fold_in(key, t), t, state)
        return state, request

    state, requests = jax.lax.scan(arrive, state, steps)
    return requests, state


def path_keys(key: Any) -> tuple[Any, Any]:
    """The keys of a path's first state and of its arrivals."""
    first, later = jax.random.split(key)
    return first, later


def keys_of(key: Any, paths: int) -> Any:
    """One key a path: a single key is split, a vector of keys is taken as it is.

    Raises:
        InvalidOption: not a key, or another number of keys than paths.
    """
    if not isinstance(key, jax.Array):
        raise InvalidOption(f"key has type {type(key).__name__}; expected jax.random.key(seed)")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.dtype != jnp.uint32 or key.ndim not in (1, 2):
            raise InvalidOption(f"key has dtype {key.dtype} and shape {key.shape}; expected jax.random.key(seed)")
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        return jax.random.split(key, paths)
    if key.shape != (paths,):
        raise InvalidOption(f"key has shape {key.shape}; expected one key, or {(paths,)}: one for each path")
    return key


def sample(stream: Stream, key: Any, *, horizon: int, paths: int = 1) -> Any:
    """The requests that `simulate` draws with the same key, leading axes `(paths, horizon)`.

    Raises:
        InvalidOption: a horizon or a number of paths below 1, or a key of another shape.

    Example:
        >>> from pdopt import Auctions
        >>> bids = sample(Auctions(), jax.random.key(0), horizon=3, paths=2)
        >>> bids.value.shape
        (2, 3)
    """
    for name, count in (("horizon", horizon), ("paths", paths)):
        require_count(name, count)

    def one(key: Any) -> Any:
        first, later = path_keys(key)
        return stretch(stream, later, stream.begin(first), jnp.int32(0), horizon)[0]

    with precision_scope(stream):
        return jax.jit(jax.vmap(one))(keys_of(key, paths))


def require_count(name: str, value: Any, least: int = 1) -> None:
    """Raise `InvalidOption` unless `value` is an integer, at least `least`, that an int32 holds."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not least <= value < 2**31:
        raise InvalidOption(f"{name} is {value!r}; expected an integer in [{least}, 2^31)")


def worst_order(requests: Any, priority: Any, blocks: int | None = None) -> Any:
    """Sampled paths with their blocks in ascending order of priority: cheap requests first, for replay.

    The same requests in an order that an adversary would choose; any certificate of the path stands.

    Args:
        requests: pytree of arrays with leading axes `(paths, horizon)`, from `sample`.
        priority: `(paths, horizon)`: what to sort by, such as the fare.
        blocks: consecutive stretches of nearly equal length that are kept together; None for single requests.

    Raises:
        InvalidProblem: a priority that is not `(paths, horizon)`. InvalidOption: blocks outside [1, horizon].

    Example:
        >>> from pdopt import Auctions, sample, worst_order
        >>> bids = sample(Auctions(), jax.random.key(0), horizon=5)
        >>> late = worst_order(bids, bids.value)
        >>> bool((late.value[0, 1:] >= late.value[0, :-1]).all())
        True
    """
    rank = np.asarray(priority)
    leaves = jax.tree.leaves(requests)
    if not leaves or rank.ndim != 2 or any(np.shape(leaf)[:2] != rank.shape for leaf in leaves):
        shapes = [np.shape(leaf) for leaf in leaves]
        raise InvalidProblem(f"priority has shape {rank.shape}, requests {shapes}; expected (paths, horizon) and those")
    paths, horizon = rank.shape
    number = horizon if blocks is None else blocks
    require_count("blocks", number)
    if number > horizon:
        raise InvalidOption(f"blocks is {blocks}; expected at most the horizon, {horizon}")
    block = np.arange(horizon) * number // horizon
    means = np.stack([np.bincount(block, row) / np.bincount(block) for row in rank.astype(float)])
    place = np.empty((paths, number), int)
    np.put_along_axis(place, np.argsort(means, axis=1, kind="stable"), np.arange(number)[None], axis=1)
    order = np.argsort(place[:, block], axis=1, kind="stable")
    rows = np.arange(paths)[:, None]
    return jax.tree.map(lambda leaf: leaf[rows, order], requests)
