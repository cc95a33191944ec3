"""Batches of prompts in an order that a saved position continues exactly.

    order of epoch e    permutation of 0, ..., n - 1 from (seed, e)          (`draws.random_order`)
    position            (e, o): rows order[o:] of epoch e come next
    batch               the next B rows that fit, through the end of an epoch into the next one

`next_batch` is a pure function of the stream and the position. What is kept between steps, and in a checkpoint, is two
integers and the identity of the data; a resume with other data is refused. An epoch gives each row once, whatever B is;
B may even change between a save and a resume.

With several processes every one goes through the same global order and keeps its own block of each batch, the one that
`jax.make_array_from_process_local_data` expects of it.

A prompt longer than `longest` tokens is dropped or an error, by choice, and never cut: a policy would be asked another
question than its answer belongs to.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from pdopt.errors import CheckpointError, InvalidOption, InvalidProblem, require_range
from pdopt.training.draws import random_order
from pdopt.training.tasks import Row, Source

# Rows of an endless source that may be too long in a row before the stream gives up.
PATIENCE = 10_000


class Position(NamedTuple):
    """Where the next batch begins: epoch, and rows of its order that are behind."""

    epoch: int = 0
    offset: int = 0


class Batch(NamedTuple):
    """What one process takes of a global batch of B prompts.

    Attributes:
        rows: b = B / processes rows.
        tokens: token ids of each prompt, not padded.
        numbers: `(b,)` numbers of the rows in the source.
        start: place of the first row in the global batch: row i here is `start + i` there.
        dropped: prompts of the whole batch's range that were too long.
    """

    rows: list[Row]
    tokens: list[list[int]]
    numbers: np.ndarray
    start: int
    dropped: int


@dataclasses.dataclass(frozen=True)
class PromptStream:
    """How rows become batches.

    Attributes:
        source: a task or a table.
        encode: token ids of a prompt (`chat.encode_prompt` with its settings).
        batch: prompts of the global batch, a multiple of `processes`.
        seed: of the order, >= 0.
        shuffle: False takes rows in the source's order; an endless source has only that one.
        longest: most tokens of a prompt; None has no limit.
        overlong: "drop" or "error" for longer ones.
        column: of the prompts.
        process, processes: which block of each batch is this process's.

    Raises:
        InvalidOption: a setting outside its range, or a batch that the processes cannot share equally.
        InvalidProblem: a row of a table without the column of prompts.
    """

    source: Source
    encode: Callable[[Any], list[int]]
    batch: int
    seed: int = 0
    shuffle: bool = True
    longest: int | None = None
    overlong: Literal["drop", "error"] = "drop"
    column: str = "prompt"
    process: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        require_range("batch", self.batch, 1)
        require_range("seed", self.seed, 0)
        require_range("processes", self.processes, 1)
        require_range("process", self.process, 0, self.processes - 1)
        if self.longest is not None:
            require_range("longest", self.longest, 1)
        if self.overlong not in ("drop", "error"):
            raise InvalidOption(f'overlong is {self.overlong!r}; expected "drop" or "error"')
        if self.batch % self.processes:
            raise InvalidOption(f"batch is {self.batch}; expected a multiple of the {self.processes} processes")
        columns = getattr(self.source, "columns", None)
        if columns is not None and self.column not in columns:
            lacking = next(i for i in range(self.source.size or 0) if self.column not in self.source[i])
            raise InvalidProblem(
                f"row {lacking} of {self.source.name} has no column {self.column!r} (its columns: "
                f"{sorted(self.source[lacking])})"
            )


def next_batch(stream: PromptStream, position: Position) -> tuple[Batch, Position]:
    """The batch that begins at a position, and the position after it.

    Raises:
        InvalidProblem: a row without a prompt (its number and columns are named), a prompt that cannot be encoded, one
            too long with `overlong="error"`, or nothing but too long ones in a whole epoch.

    Example:
        >>> from pdopt.training.tables import table
        >>> rows = table([{"prompt": word} for word in ("a", "bb", "cccc")])
        >>> stream = PromptStream(rows, encode=lambda text: [ord(letter) for letter in text], batch=2, longest=3)
        >>> batch, position = next_batch(stream, Position())
        >>> sorted(row["prompt"] for row in batch.rows), batch.dropped, position.epoch + (position.offset == 2)
        (['a', 'bb'], 1, 1)
    """
    own = range(
        stream.process * stream.batch // stream.processes, (stream.process + 1) * stream.batch // stream.processes
    )
    rows, tokens, numbers, dropped, since = [], [], [], 0, 0
    taken = 0
    while taken < stream.batch:
        number, after = _at(stream, position)
        # Without a limit only this process's prompts need tokens; with one all must be judged, here as elsewhere.
        if stream.longest is not None or taken in own:
            row = stream.source[number]
            encoded = _encoded(stream, row, number)
            if stream.longest is not None and len(encoded) > stream.longest:
                _refuse_long(stream, row, number, len(encoded))
                dropped, since, position = dropped + 1, since + 1, after
                if since >= (stream.source.size or PATIENCE):
                    raise InvalidProblem(
                        f"{since} prompts in a row of {stream.source.name} are longer than {stream.longest} tokens; "
                        "none is left to train on"
                    )
                continue
            if taken in own:
                rows.append(row)
                tokens.append(encoded)
                numbers.append(number)
        taken, since, position = taken + 1, 0, after
    return Batch(rows, tokens, np.array(numbers, np.int64), own.start, dropped), position


class Survey(NamedTuple):
    """Prompts that were looked at: how many, how many of them too long, and lengths in tokens."""

    rows: int
    overlong: int
    mean_length: float
    longest: int


def survey(stream: PromptStream, most: int = 1000) -> Survey:
    """Lengths of the first prompts of the source, to be told before a run starts.

    Example:
        >>> from pdopt.training.tasks import parity
        >>> survey(PromptStream(parity(length=3), encode=lambda text: [1] * len(text), batch=1, longest=10), most=5)
        Survey(rows=5, overlong=5, mean_length=16.0, longest=16)
    """
    rows = min(most, stream.source.size or most)
    lengths = [len(_encoded(stream, stream.source[number], number)) for number in range(rows)]
    overlong = sum(stream.longest is not None and length > stream.longest for length in lengths)
    return Survey(rows, overlong, float(np.mean(lengths)), max(lengths))


def position_record(stream: PromptStream, position: Position) -> dict[str, Any]:
    """A position with what it belongs to, as JSON for a checkpoint.

    Example:
        >>> from pdopt.training.tasks import parity
        >>> stream = PromptStream(parity(), encode=lambda text: [1], batch=2, seed=3)
        >>> record = position_record(stream, Position(0, 8))
        >>> record["epoch"], record["offset"], record["seed"], resume_position(stream, record)
        (0, 8, None, Position(epoch=0, offset=8))
    """
    return {"epoch": int(position.epoch), "offset": int(position.offset), **_order_of(stream)}


def resume_position(stream: PromptStream, record: Mapping[str, Any]) -> Position:
    """The position of a checkpoint, if it belongs to this stream's data and order.

    Raises:
        CheckpointError: other data, another seed or shuffling; both sides are shown.
    """
    now = _order_of(stream)
    saved = {name: record.get(name) for name in now}
    if saved != now:
        differing = [name for name in now if saved[name] != now[name]]
        shown = "; ".join(f"{name}: saved {saved[name]}, now {now[name]}" for name in differing)
        raise CheckpointError(f"the position was saved for other data ({shown}); give the same data or start anew")
    return Position(int(record["epoch"]), int(record["offset"]))


def left_pad(
    tokens: Sequence[Sequence[int]], pad: int, *, length: int | None = None, multiple: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as one array with their ends in the last column, as `rollout.generate` takes them.

    Args:
        tokens: ids of each row.
        pad: id that fills up.
        length: columns; None takes the longest row's, rounded up.
        multiple: round up to a multiple of this, so that few lengths are compiled for.

    Returns:
        `(b, length)` int32 ids and `(b, length)` bool, True at real tokens.

    Raises:
        InvalidProblem: no rows, a row longer than `length`, or an empty one.

    Example:
        >>> ids, valid = left_pad([[5], [6, 7]], pad=0, multiple=4)
        >>> ids.tolist(), valid.sum(axis=1).tolist()
        ([[0, 0, 0, 5], [0, 0, 6, 7]], [1, 2])
    """
    require_range("multiple", multiple, 1)
    if not tokens or not all(len(row) for row in tokens):
        raise InvalidProblem(
            f"{len(tokens)} prompts, of {[len(row) for row in tokens]} tokens; expected at least one token each"
        )
    longest = max(len(row) for row in tokens)
    columns = -(-longest // multiple) * multiple if length is None else length
    if longest > columns:
        raise InvalidProblem(f"a prompt has {longest} tokens; expected at most {columns}")
    ids, valid = np.full((len(tokens), columns), pad, np.int32), np.zeros((len(tokens), columns), bool)
    for row, given in enumerate(tokens):
        ids[row, columns - len(given) :] = given
        valid[row, columns - len(given) :] = True
    return ids, valid


def _order_of(stream: PromptStream) -> dict[str, Any]:
    """What decides which rows follow which; the batch's size and the processes do not."""
    shuffled = stream.shuffle and stream.source.size is not None
    return {
        "source": stream.source.identity,
        "column": stream.column,
        "shuffle": shuffled,
        "seed": int(stream.seed) if shuffled else None,
    }


def _at(stream: PromptStream, position: Position) -> tuple[int, Position]:
    """The number of the row at a position, and the position after it."""
    size = stream.source.size
    if size is None:
        return position.offset, Position(0, position.offset + 1)
    epoch, offset = position
    number = int(random_order(size, stream.seed, epoch)[offset]) if stream.shuffle else offset
    return number, Position(epoch, offset + 1) if offset + 1 < size else Position(epoch + 1, 0)


def _encoded(stream: PromptStream, row: Row, number: int) -> list[int]:
    prompt = row.get(stream.column)
    if not isinstance(prompt, str | Sequence) or not prompt:
        raise InvalidProblem(
            f"row {number} of {stream.source.name} has {prompt!r} as {stream.column!r}; expected a text or messages "
            f"(its columns: {sorted(row)})"
        )
    try:
        return stream.encode(prompt)
    except InvalidProblem as error:
        raise InvalidProblem(f"row {number} of {stream.source.name}: {error}") from error


def _refuse_long(stream: PromptStream, row: Row, number: int, length: int) -> None:
    if stream.overlong == "error":
        raise InvalidProblem(
            f"the prompt of row {number} of {stream.source.name} has {length} tokens; at most {stream.longest} fit "
            f'(overlong="drop" leaves such rows out): {str(row[stream.column])[:200]!r}'
        )
