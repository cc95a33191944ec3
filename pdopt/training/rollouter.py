"""Whoever writes the texts: this library's own decoder, or an engine in another process.

    update(model): from now on this policy;      generate(prompts, key, sampling): texts of it

A trainer holds one `Rollouter` and asks no more. What another engine says of its own probabilities is not what the
training pass computes (other kernels, other rounding, filters, another temperature): it is kept as
`sampler_log_probs`, the trainer recomputes `log_probs`, and weighs each token by the difference (`corrected`).
"""

from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from pdopt.errors import require_range
from pdopt.models.decoder import Decoder
from pdopt.models.decoding import Packed
from pdopt.training.gradients import Part, scores_in_parts
from pdopt.training.objectives import engine_weights
from pdopt.training.prompts import Prompts
from pdopt.training.refill import refill
from pdopt.training.rollout import Rollout, generate, packed_weights
from pdopt.training.sampling import Sampling
from pdopt.types import record


@runtime_checkable
class Rollouter(Protocol):
    """Writes texts with the policy it was given last."""

    def update(self, model: Decoder) -> "Rollouter":
        """The same with another policy of the same configuration, adapters included."""
        ...

    def generate(self, prompts: Prompts, key: Any, sampling: Sampling) -> Rollout:
        """As many texts of each prompt as `prompts.rows` has numbers for, in that order."""
        ...


@record(static=("pad", "slots", "chunk"))
class Local:
    """This library's own decoder.

    Attributes:
        model: the decoder, or its `decoding.pack`.
        pad: token id written after a text's end.
        slots: 0 decodes each batch together; else `refill` with so many rows, for lengths that vary.
        chunk: most steps between two looks of the host, with slots.

    Example:
        >>> from pdopt.models.config import DecoderConfig
        >>> from pdopt.models.decoder import initialise
        >>> from pdopt.training.prompts import batches
        >>> config = DecoderConfig(vocabulary=32, width=8, depth=1, heads=2, kv_heads=1, head_dim=4, hidden=16)
        >>> rollouter = Local(Decoder(initialise(config, jax.random.key(0)), config))
        >>> batch = next(batches([[5, 6], [7]], 2, group=2))
        >>> rollouter.generate(batch, jax.random.key(1), Sampling(max_new=3)).tokens.shape
        (4, 3)
    """

    model: Decoder | Packed
    pad: int = 0
    slots: int = 0
    chunk: int = 32

    def __post_init__(self) -> None:
        require_range("slots", self.slots, 0)
        require_range("chunk", self.chunk, 1)

    def update(self, model: Decoder) -> "Local":
        """The same with another policy, whose weights are packed once for all its texts."""
        return Local(packed_weights(model), self.pad, self.slots, self.chunk)

    def generate(self, prompts: Prompts, key: Any, sampling: Sampling) -> Rollout:
        """Texts of the prompts, those of one prompt next to each other."""
        tokens, valid, rows = prompts.tokens, prompts.valid, prompts.rows
        group = group_of(prompts)
        if not self.slots:
            return generate(self.model, tokens, valid, key, sampling, rows, self.pad, group=group)
        each = lambda leaf: jnp.repeat(jnp.asarray(leaf), group, axis=0)
        return refill(
            self.model, each(tokens), each(valid), key, sampling, rows, self.pad, slots=self.slots, chunk=self.chunk
        )


def group_of(prompts: Prompts) -> int:
    """How many texts a batch asks of each prompt."""
    return len(prompts.rows) // len(prompts.tokens)


class Corrected(NamedTuple):
    """What the trainer makes of texts that another engine drew.

    Attributes:
        log_probs: `(b, t)` of the policy itself, at the sampling temperature.
        weights: `(b, t)` of each token's term in the loss (`objectives.engine_weights`).
        metrics: `engine_gap`, the mean distance of both log-probabilities, and `engine_weight`, the mean weight.
    """

    log_probs: Any
    weights: Any
    metrics: dict[str, Any]


@partial(jax.jit, static_argnames=("micro",))
def corrected(model: Decoder, part: Part, theirs: Any, temperature: Any, cap: Any, micro: int | None) -> Corrected:
    """Log-probabilities recomputed, and the weights that the difference asks for.

    Args:
        model: the policy that the engine was given.
        part: the texts; `part.present` marks their tokens.
        theirs: `(b, t)` log-probabilities as the engine tells them.
        temperature: of the sampling; cap: largest weight; micro: rows at once.
    """
    ours = scores_in_parts(model, part, temperature, micro).log_probs
    weights = engine_weights(ours, theirs, part.present, cap)
    mean = lambda x: jnp.sum(jnp.where(part.present, x, 0)) / jnp.maximum(jnp.sum(part.present), 1)
    return Corrected(ours, weights, {"engine_gap": mean(jnp.abs(ours - theirs)), "engine_weight": mean(weights)})
