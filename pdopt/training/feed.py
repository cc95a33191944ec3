"""Rows of data as arrays on the devices: prompts to continue, or prompts with the completion to learn.

Few shapes are made, because each is compiled for: prompts are padded on the left to a power of two, completions on the
right to a half, a quarter or all of the longest allowed. With several processes each encodes its own rows, and all
agree on the shape.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.models.sharding import batch_sharding
from pdopt.training.chat import encode_prompt
from pdopt.training.data import Batch, PromptStream, left_pad
from pdopt.training.gradients import Part
from pdopt.training.recipe import Recipe
from pdopt.training.sections import DataConfig, OtherDataConfig
from pdopt.training.tables import Table, hold_out, open_source
from pdopt.training.tasks import TASKS, Source

LEAST_COLUMNS = 8


class Prompts(NamedTuple):
    """Prompts ready to be continued: every prompt `group` times, its copies one after the other.

    Attributes:
        rows: this process's rows of data, one for each of its completions.
        once, once_valid: `(b / group, p)`, left padded, on the devices: what is read once for a group.
        prompts, valid: `(b, p)`, the same for each completion.
        numbers: `(b,)` global numbers of the completions: the key of their draws.
    """

    rows: list[Any]
    once: Any
    once_valid: Any
    prompts: Any
    valid: Any
    numbers: Any


class Sources(NamedTuple):
    """Rows to train on, rows kept apart from them (None: none), and rows of other kinds to judge by name."""

    train: Source
    evaluation: Source | None
    others: Mapping[str, Source] = MappingProxyType({})


def open_sources(data: DataConfig, others: Sequence[OtherDataConfig] = ()) -> Sources:
    """The data of a recipe, and that of its section `evaluation.others`.

    Raises:
        InvalidOption: no source, or one that does not exist. InvalidFile: one that cannot be read.
    """
    found = _main_sources(data)
    return found._replace(others={other.name: _other_source(data, other) for other in others})


def _other_source(data: DataConfig, other: OtherDataConfig) -> Source:
    """Prompts of another kind: of a task those of its test split, of a file all."""
    source = other.source or data.source
    settings = {**(data.settings if source == data.source else {}), **other.settings}
    split = (data.evaluation_split or "test") if source in TASKS else None
    return open_source(source, split=split, settings=settings or None)


def _main_sources(data: DataConfig) -> Sources:
    if not data.source:
        raise InvalidOption(f'data.source is ""; expected a task ({", ".join(TASKS)}), a file or a hub id')
    held = partial(open_source, data.source, subset=data.subset or None, settings=data.settings or None)
    if data.source in TASKS:
        return Sources(held(split=data.split or "train"), held(split=data.evaluation_split or "test"))
    whole = held(split=data.split or None)
    if data.evaluation_split:
        return Sources(whole, held(split=data.evaluation_split))
    if not data.held_out or not isinstance(whole, Table):
        return Sources(whole, None)
    return Sources(*hold_out(whole, data.held_out, seed=data.seed))


def open_stream(data: DataConfig, source: Source, tokenizer: Any, batch: int, *, shuffle: bool = True) -> PromptStream:
    """The prompts of a source as batches, each process its own block."""
    encode = partial(
        encode_prompt, tokenizer, as_message=data.as_message, system=data.system or None,
        examples=[(shown.prompt, shown.completion) for shown in data.examples], template_settings=data.template,
    )  # fmt: skip
    return PromptStream(
        source, encode, batch, data.seed, shuffle and data.shuffle, data.longest,
        data.overlong,  # pyright: ignore[reportArgumentType]
        data.prompt, jax.process_index(), jax.process_count(),
    )  # fmt: skip


def prompt_arrays(batch: Batch, group: int, pad: int, mesh: Any) -> Prompts:
    """A batch of prompts, each repeated `group` times."""
    columns = _agreed(_power_of_two(max(map(len, batch.tokens))))
    ids, valid = left_pad(batch.tokens, pad, length=columns)
    rows = [row for row in batch.rows for _ in range(group)]
    numbers = np.arange(len(rows), dtype=np.int32) + batch.start * group
    repeat = lambda x: np.repeat(x, group, axis=0)
    return Prompts(rows, *(on_devices(x, mesh) for x in (ids, valid, repeat(ids), repeat(valid), numbers)))


def taught_arrays(batch: Batch, recipe: Recipe, tokenizer: Any, eos: int, pad: int, mesh: Any) -> Part:
    """A batch of prompts with the completions to learn, each closed by the end token.

    Raises:
        InvalidProblem: a row without a text in the column of completions, or one longer than `sampling.max_new`.
    """
    column, most = recipe.data.completion, recipe.sampling.max_new
    texts = [row.get(column) for row in batch.rows]
    for text, row, number in zip(texts, batch.rows, batch.numbers):
        if not isinstance(text, str):
            raise InvalidProblem(f"row {number} has {text!r} as {column!r}; expected a text (columns: {sorted(row)})")
    # One call for all: a call costs more than a short text.
    taught = [[*ids, eos] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    for ids, number in zip(taught, batch.numbers):
        if len(ids) > most:
            raise InvalidProblem(f"row {number}: {column!r} has {len(ids)} tokens; sampling.max_new allows {most}")
    ids, valid = left_pad(batch.tokens, pad, length=_agreed(_power_of_two(max(map(len, batch.tokens)))))
    columns = completion_columns(_agreed(max(map(len, taught))), most)
    tokens, mask = right_pad(taught, pad, columns)
    arrays = (on_devices(x, mesh) for x in (ids, valid, tokens, mask))
    prompts, valid, tokens, mask = arrays
    return Part(prompts, valid, tokens, mask, mask)


def right_pad(tokens: Sequence[Sequence[int]], pad: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Completions as one array with their starts in the first column, and which tokens are real.

    Example:
        >>> ids, mask = right_pad([[5], [6, 7]], pad=0, columns=3)
        >>> ids.tolist(), mask.sum(axis=1).tolist()
        ([[5, 0, 0], [6, 7, 0]], [1, 2])
    """
    ids, mask = np.full((len(tokens), columns), pad, np.int32), np.zeros((len(tokens), columns), bool)
    for row, given in enumerate(tokens):
        ids[row, : len(given)] = given
        mask[row, : len(given)] = True
    return ids, mask


def completion_columns(longest: int, most: int) -> int:
    """Columns for completions of so many tokens: a quarter, a half or all of `most`.

    Example:
        >>> [completion_columns(n, 30) for n in (0, 8, 9, 15, 16, 30)]
        [8, 8, 15, 15, 30, 30]
    """
    return next(size for size in (-(-most // 4), -(-most // 2), most) if longest <= size)


def on_devices(x: np.ndarray, mesh: Any) -> Any:
    """This process's rows as (its part of) an array whose rows are split over the mesh."""
    if mesh is None:
        return jax.numpy.asarray(x)
    return jax.make_array_from_process_local_data(batch_sharding(mesh), x)


def own_rows(x: Any) -> np.ndarray:
    """The rows of an array that live on this process's devices, in order: what `on_devices` was given."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
        return np.asarray(x)
    parts = {(shard.index[0].start or 0): shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def _power_of_two(n: int) -> int:
    return max(LEAST_COLUMNS, 1 << (n - 1).bit_length())


def _agreed(n: int) -> int:
    """The largest of the processes' numbers."""
    if jax.process_count() == 1:
        return n
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.int32(n))))
