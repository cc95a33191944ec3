"""Dispatch: bring the tokens of each expert together, apply all experts at once, and bring the results back.

Nothing of size tokens x experts x capacity is formed. Three layouts, all from one sort of the `(T, K)` choices:

    places    `(E, C)` token numbers; gather `(E, C, D)`, one batched product a weight, gather back. With a capacity C
              the choices that find no place are dropped, first choices before second ones, then in token order.
    blocks    no capacity: the tokens of each expert are padded to whole blocks of B, at most `K T / B + E` blocks, each
              multiplied by its expert's weights (gathered, so B is about `K T / E`: at most twice the balanced work).
    ragged    no capacity: sorted tokens and group sizes to `lax.ragged_dot`, the right choice where the backend has a
              kernel for it (TPU, GPU); on a CPU it computes every expert for every token.

Sums over the K results of a token run in a fixed order, so results do not depend on scheduling.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Weights(NamedTuple):
    """Gated experts `down(silu(gate x) * up x)`: gate and up `(E, D, F)`, down `(E, F, D)`."""

    gate: Any
    up: Any
    down: Any


def sort_choices(experts: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Order of the `(K T,)` choices by expert, and each expert's first place in it `(E + 1,)`.

    Choice n is the `n // T`-th of token `n % T`, so that a stable sort puts first choices first, then token order.

    Example:
        >>> order, first = sort_choices(jnp.array([[1], [0], [1]]), 2)
        >>> print(order, first)
        [1 0 2] [0 1 3]
    """
    flat = experts.T.ravel()
    sizes = jnp.zeros(count, jnp.int32).at[flat].add(1)
    return jnp.argsort(flat, stable=True), jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(sizes)])


def by_places(weights: Weights, x: jax.Array, tokens: jax.Array) -> jax.Array:
    """Results `(E, C, D)` for tokens `(E, C)`; an empty place (token number T) computes on zeros."""
    gathered = x.at[tokens].get(mode="fill", fill_value=0)
    return _gated(weights, gathered, "ecd,edf->ecf", "ecf,efd->ecd")


def give_places(experts: jax.Array, count: int, places: int) -> tuple[jax.Array, jax.Array]:
    """Places for the choices `(T, K)` of the tokens.

    Returns:
        tokens `(E, C)` with T in empty places, and for each choice its place `e C + c` `(T, K)`, or `E C` if dropped.

    Example:
        >>> tokens, place = give_places(jnp.array([[0], [0], [0], [1]]), 2, 2)
        >>> print(tokens.tolist(), place.ravel())
        [[0, 1], [3, 4]] [0 1 4 2]
    """
    length, top = experts.shape
    order, first = sort_choices(experts, count)
    flat = experts.T.ravel()
    rank = jnp.zeros(length * top, jnp.int32).at[order].set(jnp.arange(length * top, dtype=jnp.int32)) - first[flat]
    place = jnp.where(rank < places, flat * places + rank, count * places)
    token = jnp.tile(jnp.arange(length, dtype=jnp.int32), top)
    table = jnp.full(count * places, length, jnp.int32).at[place].set(token, mode="drop")
    return table.reshape(count, places), place.reshape(top, length).T


def collect(results: jax.Array, place: jax.Array, gate: jax.Array) -> jax.Array:
    """`sum_k gate_tk results[place_tk]` `(T, D)`; a dropped choice adds nothing."""
    flat = results.reshape(-1, results.shape[-1])
    picked = flat.at[place].get(mode="fill", fill_value=0)
    return jnp.sum(gate.astype(picked.dtype)[..., None] * picked, axis=1)


def scatter(results: jax.Array, tokens: jax.Array, gate: jax.Array, length: int) -> jax.Array:
    """`sum over the places of a token of gate results` `(T, D)`, where experts chose `(E, C)`."""
    weighted = gate.astype(results.dtype)[..., None] * results
    return jnp.zeros((length, results.shape[-1]), results.dtype).at[tokens].add(weighted, mode="drop")


def by_blocks(weights: Weights, x: jax.Array, experts: jax.Array, gate: jax.Array) -> jax.Array:
    """Every choice served, in whole blocks; `(T, D)`."""
    length, top = experts.shape
    count = weights.up.shape[0]
    block = max(8, -(-length * top // count))
    blocks = -(-length * top // block) + count
    order, first = sort_choices(experts, count)
    sizes = first[1:] - first[:-1]
    begin = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(-(-sizes // block))]) * block  # padded first places
    flat = experts.T.ravel()
    rank = jnp.zeros(length * top, jnp.int32).at[order].set(jnp.arange(length * top, dtype=jnp.int32)) - first[flat]
    place = begin[flat] + rank
    token = jnp.tile(jnp.arange(length, dtype=jnp.int32), top)
    table = jnp.full(blocks * block, length, jnp.int32).at[place].set(token).reshape(blocks, block)
    owner = jnp.searchsorted(begin[1:], jnp.arange(blocks, dtype=jnp.int32) * block, side="right")
    own = jax.tree.map(lambda w: w[jnp.minimum(owner, count - 1)], weights)
    return collect(by_places(own, x, table), place.reshape(top, length).T, gate)


def by_ragged(weights: Weights, x: jax.Array, experts: jax.Array, gate: jax.Array) -> jax.Array:
    """Every choice served, through `lax.ragged_dot`; `(T, D)`."""
    length, top = experts.shape
    order, first = sort_choices(experts, weights.up.shape[0])
    sizes = first[1:] - first[:-1]
    gathered = x[order % length]
    hidden = jax.nn.silu(lax.ragged_dot(gathered, weights.gate, sizes)) * lax.ragged_dot(gathered, weights.up, sizes)
    results = lax.ragged_dot(hidden, weights.down, sizes)
    place = jnp.zeros(length * top, jnp.int32).at[order].set(jnp.arange(length * top, dtype=jnp.int32))
    return collect(results, place.reshape(top, length).T, gate)


def _gated(weights: Weights, x: jax.Array, into: str, back: str) -> jax.Array:
    hidden = jax.nn.silu(jnp.einsum(into, x, weights.gate)) * jnp.einsum(into, x, weights.up)
    return jnp.einsum(back, hidden, weights.down)
