"""How the next token is drawn: temperature, then filters, then one draw from a key of the row and the step.

    z = logits / T;   top-k: the k largest;   min-p: p_v >= min_p max p;   top-p: the fewest whose mass reaches top_p

Each filter sees what the one before left. The key of a draw is folded from the row's global number and the step, so a
row's text does not depend on the batch it is in, nor on how many devices hold the batch.
"""

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
    logs = jax.nn.log_softmax(z, axis=-1)
    left = truncate(logs, sampling) if sampling.truncates else logs
    steps = jnp.broadcast_to(step, rows.shape)
    noise = jax.vmap(lambda row, step: _noise(key, row, step, logits.shape[-1]))(rows, steps)
    token = jnp.argmax(left + jnp.where(greedy, 0, noise), axis=-1).astype(jnp.int32)
    pick = lambda values: jnp.take_along_axis(values, token[:, None], axis=-1)[:, 0]
    log_prob = pick(logs)
    sampler = pick(left) - jax.nn.logsumexp(left, axis=-1) if sampling.truncates else log_prob
    return Draw(token, log_prob, sampler)


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
