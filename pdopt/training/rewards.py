"""Scores of sampled texts, given by functions: rewards and constraint costs alike.

A score function has the signature that TRL gave to rewards, so that functions written for it work unchanged:

    f(prompts=..., completions=..., completion_ids=..., **columns) -> [float | None, ...]      one score a row

called with keyword arguments only, plain or `async`. `completions` are texts, or where the data are conversations lists
of messages `[{"role": "assistant", "content": ...}]`; `columns` are the other columns of the data, one list each. None
and NaN say that a function does not apply to a row: such a score is left out of every mean, never counted as 0.

`score_table` calls all functions at the same time, each in a thread of its own, within one time limit. Threads are
daemons: one that hangs cannot keep the process alive. Coroutines of all batches run in one event loop, so that a client
may keep its connections, and late ones are cancelled. What a thread cannot bound is a call into C that holds Python's
lock (a catastrophic pattern in `re`, for instance).
"""

import asyncio
import functools
import inspect
import math
import queue
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from pdopt.errors import InvalidOption, PdoptError, require_range

# Text shown in an error, in characters.
SHOWN = 300
# Least seconds that rows get when the one that hangs is looked for.
LEAST = 1.0


class ScoreFunction(Protocol):
    """What scores texts; a reward or a cost by the use that is made of it."""

    def __call__(self, *, prompts: list[Any], completions: list[Any], completion_ids: list[Any], **columns: Any) -> Any:
        """One score a row, in order: a number, or None where the function does not apply; or an awaitable of them."""
        ...


class ScoreError(PdoptError, RuntimeError):
    """A score function that raised, ran out of time or returned something else than a score a row."""


class ScoreTable(NamedTuple):
    """Scores of one batch: a row a text, a column a function.

    Attributes:
        values: `(n, k)` float64, NaN where a function gave none.
        names: of the functions, in the order of the columns.
        missing: `(k,)` rows for which a function gave None or NaN.
        failed: `(k,)` rows lost to an exception or the time limit, 0 unless `failure="mask"`.
        seconds: `(k,)` wall-clock seconds of each function.
    """

    values: np.ndarray
    names: tuple[str, ...]
    missing: np.ndarray
    failed: np.ndarray
    seconds: np.ndarray

    def column(self, name: str) -> np.ndarray:
        """The `(n,)` scores of one function; KeyError if there is none of that name."""
        if name not in self.names:
            raise KeyError(name)
        return self.values[:, self.names.index(name)]


class _Outcome(NamedTuple):
    scores: Any = None
    error: BaseException | None = None
    seconds: float = 0.0
    late: bool = False


def score_table(
    functions: Mapping[str, Callable[..., Any]] | Sequence[Callable[..., Any]],
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[Any]] | None = None,
    *,
    timeout: float = 60.0,
    failure: Literal["raise", "mask"] = "raise",
    extra: Mapping[str, Any] | None = None,
) -> ScoreTable:
    """Call every function on the same n rows.

    Args:
        functions: score functions, by name or as a sequence (then named by `name_of`, names must differ).
        prompts, completions, completion_ids: n each.
        columns: the other columns of the data, n values each.
        timeout: seconds for the whole batch, > 0; every function has as long, since they run together.
        failure: "raise" stops at an exception or the time limit; "mask" scores the rows of a function that raised one
            by one and gives NaN to those that raise again, and NaN to all rows of one that ran out of time.
        extra: passed to every function as it is, not one value a row (the step's number, for instance).

    Raises:
        ScoreError: a function raised or ran out of time (named with the row, its text and the traceback: the row is
            found by calling the function again on fewer rows), returned another number of scores, or a score that is
            neither a finite number, NaN nor None; a function asks for a column that the data lack.
        InvalidOption: lengths that differ, two functions of one name, a column named like an argument.

    Example:
        >>> def short(completions, **columns):
        ...     return [float(len(text) < 4) if text else None for text in completions]
        >>> table = score_table([short], ["a", "b", "c"], ["yes", "maybe", ""], [[1], [2, 3], []])
        >>> table.names, table.column("short").tolist(), table.missing.tolist()
        (('short',), [1.0, 0.0, nan], [1])
    """
    named = dict(functions) if isinstance(functions, Mapping) else _by_name(functions)
    require_range("timeout", timeout, 0.0, open_low=True)
    if failure not in ("raise", "mask"):
        raise InvalidOption(f'failure is {failure!r}; expected "raise" or "mask"')
    rows = _rows(prompts, completions, completion_ids, columns or {})
    calls = {name: partial(_call, name, function, dict(extra or {})) for name, function in named.items()}
    outcomes = _together({name: partial(call, rows) for name, call in calls.items()}, timeout)
    count = len(prompts)
    values = np.full((count, len(named)), np.nan)
    failed = np.zeros(len(named), np.int64)
    for column, (name, outcome) in enumerate(outcomes.items()):
        if not outcome.late and outcome.error is None:
            values[:, column] = _checked(name, outcome.scores, rows, count)
        elif failure == "raise" or isinstance(outcome.error, ScoreError):
            raise _blame(name, outcome, calls[name], rows, count, timeout)
        else:
            values[:, column], failed[column] = _masked(name, outcome, calls[name], rows, count, timeout)
    seconds = np.array([outcome.seconds for outcome in outcomes.values()])
    return ScoreTable(values, tuple(named), np.isnan(values).sum(axis=0), failed, seconds)


def name_of(function: Any) -> str:
    """The name under which a function's scores are reported.

    Example:
        >>> name_of(len), name_of(partial(len))
        ('len', 'len')
    """
    if isinstance(function, partial):
        return name_of(function.func)
    return getattr(function, "__name__", None) or type(function).__name__


def text_of(completion: Any) -> str:
    """The text of a completion: itself, or what the assistant's messages say, a line each.

    Example:
        >>> text_of("4"), text_of([{"role": "assistant", "content": "4"}])
        ('4', '4')
    """
    if isinstance(completion, str):
        return completion
    messages = [completion] if isinstance(completion, Mapping) else list(completion)
    said = [_content(m.get("content")) for m in messages if m.get("role", "assistant") == "assistant"]
    return "\n".join(said)


def _content(content: Any) -> str:
    """A message's content as text; of one in parts, the parts that are text."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or () if isinstance(part, Mapping))


def _by_name(functions: Sequence[Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    named: dict[str, Callable[..., Any]] = {}
    for function in functions:
        if (name := name_of(function)) in named:
            raise InvalidOption(
                f"two score functions are named {name!r}; give them as a mapping with names that differ"
            )
        named[name] = function
    return named


Rows = dict[str, list[Any]]


def _rows(prompts: Any, completions: Any, completion_ids: Any, columns: Mapping[str, Sequence[Any]]) -> Rows:
    rows = {"prompts": list(prompts), "completions": list(completions), "completion_ids": list(completion_ids)}
    for name, column in columns.items():
        if name in rows:
            raise InvalidOption(f"a column of the data is named {name!r}, like an argument of every score function")
        rows[name] = list(column)
    for name, column in rows.items():
        if len(column) != len(rows["prompts"]):
            raise InvalidOption(
                f"{name} has {len(column)} values; expected {len(rows['prompts'])}, one for each prompt"
            )
    return rows


def _call(name: str, function: Callable[..., Any], extra: dict[str, Any], rows: Rows, limit: float) -> Any:
    """One call, in the present thread; what it awaits is waited for at most `limit` seconds and then cancelled."""
    # Lists of its own: a function that changes its arguments must not change those of the others.
    given: dict[str, Any] = {**{column: list(values) for column, values in rows.items()}, **extra}
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some callables written in C have no signature
        parameters = []
    if parameters:
        by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if lacking := [p.name for p in by_name if p.default is p.empty and p.name not in given]:
            raise ScoreError(f"score function {name} needs the column {lacking[0]!r}; the data have {sorted(given)}")
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            given = {p.name: given[p.name] for p in by_name if p.name in given}
    result = function(**given)
    return _awaited(result, limit) if inspect.isawaitable(result) else result


def _awaited(result: Awaitable[Any], limit: float) -> Any:
    async def wait() -> Any:
        return await result

    waiting = asyncio.run_coroutine_threadsafe(wait(), _event_loop())
    try:
        return waiting.result(limit)
    except TimeoutError:
        if waiting.done():  # the function's own error, not ours
            raise
        waiting.cancel()
        raise _Late from None


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One loop for all batches, in a daemon thread: the connections that a judge's client keeps belong to a loop."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="score event loop", daemon=True).start()
    return loop


class _Late(Exception):
    """What was awaited did not come in time."""


def _together(calls: Mapping[str, Callable[[float], Any]], timeout: float) -> dict[str, _Outcome]:
    """Run every call in a daemon thread; those that did not end within the time are late."""
    done: queue.SimpleQueue[tuple[str, _Outcome]] = queue.SimpleQueue()
    start = time.monotonic()

    def run(name: str, call: Callable[[float], Any]) -> None:
        try:
            outcome = _Outcome(scores=call(timeout))
        except _Late:
            outcome = _Outcome(late=True)
        except BaseException as error:  # handed to the caller's thread, SystemExit of a user's function included
            outcome = _Outcome(error=error)
        done.put((name, outcome._replace(seconds=time.monotonic() - start)))

    for name, call in calls.items():
        threading.Thread(target=run, args=(name, call), name=f"score {name}", daemon=True).start()
    found: dict[str, _Outcome] = {}
    while len(found) < len(calls):
        try:
            name, outcome = done.get(timeout=max(0.0, start + timeout - time.monotonic()))
        except queue.Empty:
            break
        found[name] = outcome
    late = _Outcome(late=True, seconds=timeout)
    return {name: found.get(name, late) for name in calls}


def _checked(name: str, scores: Any, rows: Rows, count: int) -> np.ndarray:
    """`(n,)` float64 from what a function returned."""
    if isinstance(scores, str | bytes | Mapping) or not hasattr(scores, "__len__"):
        raise ScoreError(f"score function {name} returned a {type(scores).__name__}; expected a list of {count} scores")
    if len(scores) != count:
        raise ScoreError(f"score function {name} returned {len(scores)} scores for {count} rows")
    return np.array([_number(name, score, row, rows) for row, score in enumerate(scores)], np.float64)


def _number(name: str, score: Any, row: int, rows: Rows) -> float:
    if score is None:
        return math.nan
    if hasattr(score, "item") and getattr(score, "size", 1) == 1:  # scalars of NumPy, JAX and torch
        score = score.item()
    if not isinstance(score, bool | int | float) or math.isinf(score):
        raise ScoreError(
            f"score function {name} gave {score!r} ({type(score).__name__}) for row {row}; expected a finite number, "
            f"or None or NaN where it does not apply{_shown(rows, row)}"
        )
    return float(score)


def _blame(
    name: str, outcome: _Outcome, call: Callable[[Rows, float], Any], rows: Rows, count: int, timeout: float
) -> ScoreError:
    """The error that names the function, the row and the text."""
    if isinstance(outcome.error, ScoreError):
        return outcome.error
    row, again = _culprit(name, outcome, call, rows, count, timeout)
    if outcome.late:
        what = f"score function {name} ran longer than {timeout:g} s for {count} rows"
        if row is None:
            return ScoreError(f"{what}; no single row takes as long")
        return ScoreError(
            f"{what}; row {row} alone ran longer than {max(LEAST, timeout / count):g} s{_shown(rows, row)}"
        )
    error = again if again is not None else outcome.error
    assert error is not None
    trace = "".join(traceback.format_exception(error)).rstrip()
    kind = f"{type(error).__name__}: {error}"
    if row is None:
        made = ScoreError(f"score function {name} raised {kind}, for the whole batch of {count} rows only\n{trace}")
    else:
        made = ScoreError(f"score function {name} raised {kind}, at row {row}{_shown(rows, row)}\n{trace}")
    made.__cause__ = error
    return made


def _culprit(
    name: str, outcome: _Outcome, call: Callable[[Rows, float], Any], rows: Rows, count: int, timeout: float
) -> tuple[int | None, BaseException | None]:
    """A row that fails alone as the batch did, found by halving, and its exception; None if the halves succeed."""
    low, high = 0, count
    found = outcome.error
    while high - low > 1:
        middle = (low + high) // 2
        for part in ((low, middle), (middle, high)):
            limit = max(LEAST, timeout * (part[1] - part[0]) / count)
            again = _together({name: partial(call, _part(rows, *part))}, limit)[name]
            if again.late if outcome.late else again.error is not None:
                (low, high), found = part, again.error
                break
        else:
            return None, None
    return (low, found) if count else (None, None)


def _masked(
    name: str, outcome: _Outcome, call: Callable[[Rows, float], Any], rows: Rows, count: int, timeout: float
) -> tuple[np.ndarray, int]:
    """Scores row by row, NaN for those that fail, and how many did."""
    scores, lost = np.full(count, np.nan), 0
    if outcome.late:
        return scores, count
    start = time.monotonic()
    for row in range(count):
        left = start + timeout - time.monotonic()
        one = _part(rows, row, row + 1)
        again = _together({name: partial(call, one)}, left)[name] if left > 0 else _Outcome(late=True)
        if again.late or again.error is not None:
            lost += 1
        else:
            scores[row] = _checked(name, again.scores, one, 1)[0]
    return scores, lost


def _part(rows: Rows, low: int, high: int) -> Rows:
    return {name: column[low:high] for name, column in rows.items()}


def _shown(rows: Rows, row: int) -> str:
    def short(value: Any) -> str:
        text = repr(value if isinstance(value, str) else text_of(value))
        return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"

    prompt = rows["prompts"][row]
    prompt = prompt if isinstance(prompt, str) else "\n".join(_content(m.get("content")) for m in prompt)
    return f"\n  prompt: {short(prompt)}\n  completion: {short(rows['completions'][row])}"
