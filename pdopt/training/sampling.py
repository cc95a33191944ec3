"""How the next token is drawn: temperature, then filters, then one draw from a key of the row and the step.

    z = logits / T;   top-k: the k largest;   min-p: p_v >= min_p max p;   top-p: the fewest whose mass reaches top_p

Each filter sees what the one before left. The key of a draw is folded from the row's global number and the step, so a
row's text does not depend on the batch it is in, nor on how many devices hold the batch.

A draw is two races of Gumbel noise (Gumbel, 1954: argmax_v z_v + g_v has the distribution softmax z): first between
blocks of the vocabulary, each with its log-mass, then inside the winner. The distribution is exact, and a row needs
about `2 sqrt(vocabulary)` random numbers instead of one a token. The race is kept, rather than inverting the cumulative
sum, because rounding the logits by 1e-6 then changes about one draw in a million; boundaries of a cumulative sum over
50 000 small probabilities would move by more than the probabilities.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pdopt.errors import InvalidOption, require_range
from pdopt.geometry.checks import concrete
from pdopt.types import record

# Largest nucleus that top-p looks for without sorting the vocabulary; `exact` sorts it all.
NUCLEUS = 1024


@record(static=("max_new", "top_k", "top_p", "min_p", "eos", "stop", "exact"))
class Sampling:
    """What to draw and when to stop.

    Attributes:
        max_new: most new tokens, >= 1.
        temperature: >= 0, traced (another value does not recompile); 0 takes the likeliest token.
        top_k: keep the k likeliest; 0 keeps all.
        top_p: keep the fewest likeliest tokens whose probabilities sum to this; 1 keeps all.
        min_p: keep tokens at least this likely relative to the likeliest; 0 keeps all.
        eos: token ids that end a text; they belong to it.
        stop: sequences of token ids that end a text; they belong to it.
        exact: top-p over the whole vocabulary, not only its 1024 likeliest tokens.

    Raises:
        InvalidOption: a setting outside its range.

    Example:
        >>> Sampling(max_new=8, top_p=0.9).top_p
        0.9
    """

    max_new: int = 128
    temperature: Any = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    eos: tuple[int, ...] = ()
    stop: tuple[tuple[int, ...], ...] = ()
    exact: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.max_new, int) or self.max_new < 1:
            raise InvalidOption(f"max_new is {self.max_new!r}; expected an integer >= 1")
        if not isinstance(self.top_k, int) or self.top_k < 0:
            raise InvalidOption(f"top_k is {self.top_k!r}; expected an integer >= 0")
        require_range("top_p", self.top_p, 0.0, 1.0, open_low=True)
        require_range("min_p", self.min_p, 0.0, 1.0)
        if any(not sequence for sequence in self.stop):
            raise InvalidOption("stop has an empty sequence; expected token ids")
        if concrete(self.temperature):
            require_range("temperature", self.temperature, 0.0)

    @property
    def truncates(self) -> bool:
        """Whether a filter leaves tokens out."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


class Draw(NamedTuple):
    """Tokens `(b,)`, their log-probability under the whole policy, and under what the filters left."""

    token: Any
    log_prob: Any
    sampler_log_prob: Any


def draw(logits: Any, sampling: Sampling, key: Any, rows: Any, step: Any) -> Draw:
    """Draw one token a row.

    Args:
        logits: `(b, vocabulary)` float32.
        key: of the rollout; rows: `(b,)` global numbers of the rows; step: of the draw in its row, scalar or `(b,)`.

    Example:
        >>> found = draw(jnp.array([[0.0, 9.0, 0.0]]), Sampling(temperature=0.0), jax.random.key(0), jnp.arange(1), 0)
        >>> int(found.token[0])
        1
    """
    greedy = jnp.asarray(sampling.temperature) == 0
    z = logits / jnp.where(greedy, 1, sampling.temperature).astype(logits.dtype)
    left = truncate(jax.nn.log_softmax(z, axis=-1), sampling) if sampling.truncates else z
    blocks = _blocks(left)
    best = jnp.max(blocks, axis=-1)
    top = jnp.max(best, axis=-1, keepdims=True)
    mass = jnp.sum(jnp.exp(blocks - top[..., None]), axis=-1)
    count, size = blocks.shape[1:]
    noise = jax.vmap(partial(_noise, key, size=count + size))(rows, jnp.broadcast_to(step, rows.shape))
    block = jnp.argmax(jnp.where(greedy, best, jnp.log(mass) + noise[:, :count]), axis=-1)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    place = jnp.argmax(inside + jnp.where(greedy, 0, noise[:, count:]), axis=-1)
    picked = jnp.take_along_axis(inside, place[:, None], axis=-1)[:, 0]
    sampler = picked - top[:, 0] - jnp.log(jnp.sum(mass, axis=-1))
    token = (block * size + place).astype(jnp.int32)
    return Draw(token, picked if sampling.truncates else sampler, sampler)


def _blocks(logits: Any) -> Any:
    """The vocabulary in blocks `(b, count, size)`, about as many as each is long."""
    batch, vocabulary = logits.shape
    wide = 1 << (math.isqrt(vocabulary).bit_length())
    sizes = [size for size in (wide, wide // 2, wide // 4) if size and vocabulary % size == 0]
    size = sizes[0] if sizes else wide
    spare = -vocabulary % size
    padded = jnp.pad(logits, ((0, 0), (0, spare)), constant_values=-jnp.inf) if spare else logits
    return padded.reshape(batch, -1, size)


def _noise(key: Any, row: Any, step: Any, size: int) -> Any:
    return jax.random.gumbel(jax.random.fold_in(jax.random.fold_in(key, row), step), (size,), jnp.float32)


def truncate(logs: Any, sampling: Sampling) -> Any:
    """Log-probabilities with -inf where a filter leaves a token out; ties at a threshold all stay.

    Example:
        >>> print(jnp.exp(truncate(jnp.log(jnp.array([[0.5, 0.25, 0.125]])), Sampling(top_k=2))).round(2))
        [[0.5  0.25 0.  ]]
    """
    if 0 < sampling.top_k < logs.shape[-1]:
        least = lax.top_k(logs, sampling.top_k)[0][:, -1:]
        logs = jnp.where(logs >= least, logs, -jnp.inf)
    if sampling.min_p > 0:
        least = jnp.max(logs, axis=-1, keepdims=True) + jnp.log(jnp.asarray(sampling.min_p, logs.dtype))
        logs = jnp.where(logs >= least, logs, -jnp.inf)
    if sampling.top_p < 1:
        logs = jnp.where(logs >= _nucleus(logs, sampling), logs, -jnp.inf)
    return logs


def _nucleus(logs: Any, sampling: Sampling) -> Any:
    """The least log-probability inside the nucleus, `(b, 1)`; a token stays while the mass before it is short."""
    size = logs.shape[-1] if sampling.exact else min(logs.shape[-1], NUCLEUS)
    ranked = lax.top_k(logs, size)[0]
    mass = jnp.exp(ranked - jax.nn.logsumexp(logs, axis=-1, keepdims=True))
    before = jnp.cumsum(mass, axis=-1) - mass
    last = jnp.sum(before < sampling.top_p, axis=-1, keepdims=True) - 1
    return jnp.take_along_axis(ranked, last, axis=-1)
