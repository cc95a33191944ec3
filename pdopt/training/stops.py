"""Strings that end a text: looked for on the host, since where they begin depends on how tokens spell them.

    end = min { n : the text of the first n tokens contains a stop string }

Stop sequences of token ids are compared on the device (`Sampling.stop`); a string can be spelt by many of them.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from pdopt.training.rollout import Rollout


class StopText(NamedTuple):
    """Strings that end a text, the tokens that complete them included, and how token ids become text."""

    strings: tuple[str, ...]
    decode: Callable[[Sequence[int]], str]


def text_end(tokens: Sequence[int], stop: StopText) -> int | None:
    """How many tokens it takes until the text contains a stop string; None where it never does.

    Example:
        >>> letters = lambda tokens: "".join("abcdef"[token] for token in tokens)
        >>> text_end([0, 1, 2, 3, 4], StopText(("cd", "e"), letters)), text_end([0, 1], StopText(("c",), letters))
        (4, None)
    """
    inside = lambda size: any(string in stop.decode(tokens[:size]) for string in stop.strings)
    if not inside(len(tokens)):
        return None
    return bisect_left(range(1, len(tokens) + 1), True, key=inside) + 1


def cut(rollout: Rollout, stop: StopText, pad: int = 0) -> Rollout:
    """The rollout with every text ended where it first contains a stop string; such texts are finished.

    What `refill` does between chunks, after the fact: the tokens behind a cut were drawn in vain.

    Example:
        >>> row = lambda dtype: jnp.ones((1, 3), dtype)
        >>> whole = Rollout(jnp.array([[0, 1, 2]]), row(float), row(float), row(bool), jnp.array([False]), 3)
        >>> print(cut(whole, StopText(("b",), lambda tokens: "".join("abc"[token] for token in tokens))).mask)
        [[ True  True False]]
    """
    tokens, mask, finished = (np.array(x) for x in (rollout.tokens, rollout.mask, rollout.finished))
    for row, size in enumerate(mask.sum(axis=1)):
        end = text_end(tokens[row, :size].tolist(), stop)
        if end is not None:
            finished[row], mask[row, end:] = True, False
    clear = lambda values: None if values is None else jnp.where(mask, values, 0)
    return Rollout(
        jnp.where(mask, tokens, pad), clear(rollout.log_probs), clear(rollout.sampler_log_probs), jnp.asarray(mask),
        jnp.asarray(finished), rollout.steps,
    )  # fmt: skip
