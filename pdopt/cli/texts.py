"""One batch of rows to texts: chunks of tokens are decoded, searched for stop texts, and handed on as they come."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pdopt.models.sources import Opened
from pdopt.training.prompts import bucket_of
from pdopt.training.sampling import Sampling
from pdopt.training.stream import stream


class Row(NamedTuple):
    """What to go on from: the number of its prompt and of its sample, and the prompt's token ids."""

    prompt: int
    sample: int
    ids: list[int]


def complete(
    opened: Opened, rows: list[Row], size: int, first: int, key: Any, sampling: Sampling, stops: tuple[str, ...],
    every: int, flag: Any, listen: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """The texts of one batch: prompt, sample, text, tokens, finish.

    Args:
        opened: the model.
        rows: the batch. size: rows of the compiled program; a short batch repeats its last row.
        first: number of its first row in the whole run.
        key, sampling: as `generate`'s.
        stops: texts that end a text and are cut off; found in the decoded text, however it is made of tokens.
        every: tokens between two looks.
        flag: a `StopFlag`; when it is up what came so far is returned.
        listen: told what is new in the first row's text.
    """
    width = bucket_of(max(len(row.ids) for row in rows))
    ids = [rows[min(i, len(rows) - 1)].ids for i in range(size)]
    numbers = first + np.minimum(np.arange(size), len(rows) - 1)
    prompts = np.full((size, width), opened.pad, np.int32)
    valid = np.zeros((size, width), bool)
    for i, tokens in enumerate(ids):
        prompts[i, width - len(tokens) :] = tokens
        valid[i, width - len(tokens) :] = True
    texts, said = [""] * len(rows), 0
    found: Any = None
    cut = [False] * len(rows)
    for found in stream(opened.model, prompts, valid, key, sampling, numbers, opened.pad, every):
        whole = [bool(end) or int(found.steps) == sampling.max_new for end in found.finished]
        for i in range(len(rows)):
            if not cut[i]:
                texts[i], cut[i] = _text(opened, found, i, stops)
        if listen is not None:
            # What might still become a stop text, or the rest of a letter, is held back.
            safe = len(texts[0]) if whole[0] or cut[0] else _safe(texts[0], stops)
            listen(texts[0][said:safe])
            said = max(said, safe)
        if flag.stopped or all(end or done for end, done in zip(cut, whole)):
            break
    if listen is not None:
        listen(texts[0][said:])
    return [
        {
            "prompt": row.prompt, "sample": row.sample, "text": texts[i], "tokens": int(found.mask[i].sum()),
            "finish": _finish(found, i, cut[i], sampling),
        }
        for i, row in enumerate(rows)
    ]  # fmt: skip


def _text(opened: Opened, found: Any, row: int, stops: tuple[str, ...]) -> tuple[str, bool]:
    """The text of a row so far, and whether a stop text ended it."""
    text = opened.tokenizer.decode(found.tokens[row][found.mask[row]], skip_special_tokens=True)
    places = [place for place in map(text.find, stops) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)


def _safe(text: str, stops: tuple[str, ...]) -> int:
    """How much of a text can be said: not the beginning of a stop text, nor a letter whose bytes are not all there.

    Example:
        >>> _safe("one two EN", ("END",)), _safe("one two", ("END",)), _safe("caf\N{REPLACEMENT CHARACTER}", ())
        (8, 7, 3)
    """
    size = len(text.rstrip("\N{REPLACEMENT CHARACTER}"))
    for stop in stops:
        for length in range(min(len(stop) - 1, size), 0, -1):
            if text.endswith(stop[:length]):
                size = min(size, len(text) - length)
                break
    return size


def _finish(found: Any, row: int, cut: bool, sampling: Sampling) -> str:
    if cut:
        return "stop"
    if found.finished[row]:
        return "eos"
    return "length" if int(found.steps) == sampling.max_new else "interrupted"
