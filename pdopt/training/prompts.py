"""Prompts of many lengths in few shapes: left padded to buckets, in batches of one size.

    bucket(n) = the least of 16, 32, 64, ... (or of a given list) that is >= n

A compiled rollout knows one shape: with buckets there are as many compilations as buckets, not as lengths. Every text
has a number of its own, that of its prompt times the group plus its place in the group; draws are keyed by it, so that
neither buckets nor batches change what is drawn.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from pdopt.errors import InvalidOption, InvalidProblem, require_range

SHORTEST = 16


class Prompts(NamedTuple):
    """One batch of prompts.

    Attributes:
        tokens: `(size, bucket)` int32, left padded; valid: which of them are real.
        rows: `(size * group,)` numbers of the texts.
        index: `(size,)` which prompt each row is; -1: none, a row that only fills the batch.
    """

    tokens: Any
    valid: Any
    rows: Any
    index: Any


def bucket_of(length: int, buckets: Sequence[int] | None = None) -> int:
    """The bucket for a prompt of so many tokens.

    Raises:
        InvalidProblem: longer than the largest of `buckets`.

    Example:
        >>> bucket_of(5), bucket_of(33), bucket_of(33, (40, 80))
        (16, 64, 40)
    """
    if buckets is None:
        return max(SHORTEST, 1 << (length - 1).bit_length())
    fits = [size for size in buckets if size >= length]
    if not fits:
        raise InvalidProblem(f"a prompt has {length} tokens; the largest bucket holds {max(buckets, default=0)}")
    return min(fits)


def batches(
    ids: Sequence[Sequence[int]], size: int, *, pad: int = 0, buckets: Sequence[int] | None = None, group: int = 1,
    first: int = 0,
) -> Iterator[Prompts]:  # fmt: skip
    """Batches of prompts of one bucket each, shortest bucket first, in their order within it.

    Args:
        ids: token ids of each prompt.
        size: prompts a batch, >= 1; the last of a bucket is filled with rows of one pad token and index -1.
        pad: token id of the padding.
        buckets: lengths; None: powers of two from 16.
        group: texts that will be drawn for each prompt.
        first: number of the first prompt, so that later calls go on counting texts.

    Raises:
        InvalidOption: size or group below 1, or an empty bucket. InvalidProblem: a prompt that is empty or too long.

    Example:
        >>> for batch in batches([[5, 6], [7] * 20, [8]], 2):
        ...     print(batch.tokens.shape, batch.index)
        (2, 16) [0 2]
        (2, 32) [ 1 -1]
    """
    require_range("size", size, 1)
    require_range("group", group, 1)
    if buckets is not None and (not buckets or min(buckets) < 1):
        raise InvalidOption(f"buckets is {buckets!r}; expected lengths >= 1")
    if empty := [number for number, prompt in enumerate(ids) if not len(prompt)]:
        raise InvalidProblem(f"prompt {empty[0]} has no tokens")
    return _batches(ids, size, pad, buckets, group, first)


def _batches(
    ids: Sequence[Sequence[int]], size: int, pad: int, buckets: Sequence[int] | None, group: int, first: int
) -> Iterator[Prompts]:
    sorted_by: dict[int, list[int]] = {}
    for number, prompt in enumerate(ids):
        sorted_by.setdefault(bucket_of(len(prompt), buckets), []).append(number)
    spare = first + len(ids)
    for width in sorted(sorted_by):
        members = sorted_by[width]
        for start in range(0, len(members), size):
            yield _batch(ids, members[start : start + size], size, width, pad, group, first, spare)


def _batch(
    ids: Sequence[Sequence[int]],
    members: list[int],
    size: int,
    width: int,
    pad: int,
    group: int,
    first: int,
    spare: int,
) -> Prompts:
    tokens, valid = np.full((size, width), pad, np.int32), np.zeros((size, width), bool)
    index = np.full(size, -1)
    index[: len(members)] = members
    valid[len(members) :, -1] = True
    for row, number in enumerate(members):
        length = len(ids[number])
        tokens[row, width - length :], valid[row, width - length :] = ids[number], True
    numbers = np.where(index >= 0, index + first, spare)
    rows = (numbers[:, None] * group + np.arange(group)).ravel().astype(np.int32)
    return Prompts(tokens, valid, rows, index)
