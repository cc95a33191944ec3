"""Whoever writes the texts: this library's own decoder, or an engine in another process.

    update(params): from now on these weights;      generate(prompts, key, sampling): texts of them

A trainer holds one `Rollouter` and asks no more. What another engine says of its own probabilities is not what the
training pass computes (other kernels, other rounding, filters, another temperature): it is kept as
`sampler_log_probs`, the trainer recomputes `log_probs`, and `truncated_ratio` weighs each token by the difference.
"""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from pdopt.errors import require_range
from pdopt.models.decoder import Decoder
from pdopt.training.prompts import Prompts
from pdopt.training.refill import refill
from pdopt.training.rollout import Rollout, generate
from pdopt.training.sampling import Sampling
from pdopt.types import record


@runtime_checkable
class Rollouter(Protocol):
    """Writes texts with the weights it was given last."""

    def update(self, params: Any) -> "Rollouter":
        """The same with other weights, a tree as `DecoderConfig.shapes` names it."""
        ...

    def generate(self, prompts: Prompts, key: Any, sampling: Sampling) -> Rollout:
        """As many texts of each prompt as `prompts.rows` has numbers for, in that order."""
        ...


@record(static=("pad", "slots", "chunk"))
class Local:
    """This library's own decoder.

    Attributes:
        model: the decoder.
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

    model: Decoder
    pad: int = 0
    slots: int = 0
    chunk: int = 32

    def __post_init__(self) -> None:
        require_range("slots", self.slots, 0)
        require_range("chunk", self.chunk, 1)

    def update(self, params: Any) -> "Local":
        """The same with other weights; nothing is copied."""
        return self.replace(model=self.model.replace(params=params))

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


def truncated_ratio(ours: Any, theirs: Any, cap: float = 2.0) -> Any:
    """`min(exp(ours - theirs), cap)`: weights of tokens that another engine drew; no gradient flows through them.

    Args:
        ours: log-probabilities of the drawn tokens as the training pass has them; theirs: as the sampler had them.
        cap: largest weight, > 0 (truncated importance sampling: Ionides, 2008).

    Raises:
        InvalidOption: cap not above 0.

    Example:
        >>> print(truncated_ratio(jnp.array([-1.0, -1.0]), jnp.array([-1.0, -5.0])))
        [1. 2.]
    """
    require_range("cap", cap, 0.0, open_low=True)
    # The minimum is taken before the exponential, which cannot overflow then.
    difference = jnp.minimum(jnp.asarray(ours, jnp.float32) - theirs, jnp.log(jnp.float32(cap)))
    return jax.lax.stop_gradient(jnp.exp(difference))
