"""Rewards and costs that come with the library: factories that take settings and give score functions.

    exact_match          1 where the text is the answer
    math_answer          1 where the answer found in the text equals the answer (`pdopt.training.answers`)
    arithmetic           1 where the last number is the answer, else a share for right digits
    countdown            1 where an expression uses the given numbers once each and is worth the target
    format_regex         1 where the text has a pattern
    length_cost          tokens, words or characters (beyond a number that is free)
    repetition_cost      share of n-grams that were there before

A function reads its columns by the names that its factory was given, has the factory's name, and gives None for a row
whose column is None: it does not apply there.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Literal

from pdopt.errors import InvalidOption, require_range, unknown_name
from pdopt.training.answers import between, extract_answer, last_boxed, parse_number, same_answer
from pdopt.training.expressions import InvalidExpression, evaluate
from pdopt.training.rewards import ScoreError, text_of
from pdopt.training.user_functions import load_function

Scores = list[float | None]
Function = Callable[..., Scores]


def exact_match(*, column: str = "answer", strip: bool = True, ignore_case: bool = False) -> Function:
    """1 where the completion is the answer, else 0.

    Args:
        column: column of the answers.
        strip: leave out space around both.
        ignore_case: compare small letters.

    Example:
        >>> exact_match()(completions=[" 42\\n", "42."], answer=["42", "42"])
        [1.0, 0.0]
    """

    def plain(text: str) -> str:
        text = text.strip() if strip else text
        return text.casefold() if ignore_case else text

    def score(text: str, answer: Any) -> float:
        return float(plain(text) == plain(str(answer)))

    return _each("exact_match", column, score)


def math_answer(*, column: str = "answer", checker: Literal["own", "math-verify"] = "own") -> Function:
    """1 where the answer that a completion states equals the answer of the row, else 0.

    Args:
        column: column of the answers; one that is a whole solution (`#### 7`, `\\boxed{7}`) is read like a completion.
        checker: "own" compares numbers exactly and other answers as text (`same_answer`); "math-verify" also compares
            symbolic expressions, sets and intervals where those differ, by the package of that name.

    Raises:
        InvalidOption: an unknown checker, or the package is not installed.

    Example:
        >>> texts = [r"Half of it: \\boxed{\\frac12}", "so 2/4 of them.", "about 0.6"]
        >>> math_answer()(completions=texts, answer=["0.5", "0.5", "0.5"])
        [1.0, 1.0, 0.0]
    """
    if checker not in ("own", "math-verify"):
        raise unknown_name("checker", checker, ("own", "math-verify"))
    verified = _math_verify() if checker == "math-verify" else lambda text, truth: False

    def score(text: str, answer: Any) -> float:
        truth = str(answer)
        if "####" in truth or "\\boxed" in truth:
            truth = extract_answer(truth) or truth
        given = extract_answer(text)
        return float((given is not None and same_answer(given, truth)) or verified(text, truth))

    return _each("math_answer", column, score)


def arithmetic(*, column: str = "answer", digits: float = 0.0) -> Function:
    """1 where the last number of the completion is the answer, else `digits` times the share of right digits.

    Digits are compared from the units upwards over the longer of the two numbers; a wrong sign or a fraction earns
    none. A share below 1 gives a model that is trained from nothing something to climb before the first right answer.

    Args:
        column: column of the answers, integers.
        digits: most that a wrong number can earn, in [0, 1).

    Example:
        >>> arithmetic(digits=0.5)(completions=["7 + 5 = 12", "13", "none"], answer=["12", "12", "12"])
        [1.0, 0.25, 0.0]
    """
    require_range("digits", digits, 0.0, 1.0)

    def score(text: str, answer: Any) -> float:
        truth, given = parse_number(str(answer)), _last_number(text)
        if truth is None:
            raise ValueError(f"the answer {answer!r} is not a number")
        if given is None:
            return 0.0
        if given == truth:
            return 1.0
        return digits * _right_digits(given, truth)

    return _each("arithmetic", column, score)


def countdown(*, numbers: str = "numbers", target: str = "target", every: bool = True, valid: float = 0.0) -> Function:
    """1 where the completion's expression uses the row's numbers, each once, and is worth the target.

    The expression is what the last `<answer>` or `\\boxed` holds, else the last line; a right-hand side "= 24" is left
    out. It is read by `expressions.evaluate`: exact, four operations, nothing executed.

    Args:
        numbers, target: columns of the numbers given and of the value wanted.
        every: all numbers must be used; otherwise each at most once.
        valid: score of an expression that uses the numbers rightly and misses the target, in [0, 1).

    Example:
        >>> texts = ["<answer>(7 - 3) * 6 = 24</answer>", "6 * 4", "7 * 3 + 6"]
        >>> countdown(valid=0.1)(completions=texts, numbers=[[3, 6, 7]] * 3, target=[24] * 3)
        [1.0, 0.0, 0.1]
    """
    require_range("valid", valid, 0.0, 1.0)

    def score(text: str, row: tuple[Any, Any]) -> float:
        given, wanted = Counter(map(Fraction, row[0])), Fraction(row[1])
        try:
            value, used = evaluate(_expression(text))
        except InvalidExpression:
            return 0.0
        counted = Counter(used)
        rightly = counted == given if every else counted <= given
        return (1.0 if value == wanted else valid) if rightly else 0.0

    def function(*, completions: Sequence[Any], **columns: Any) -> Scores:
        rows = zip(completions, _column("countdown", columns, numbers), _column("countdown", columns, target))
        return [None if n is None or t is None else score(text_of(c), (n, t)) for c, n, t in rows]

    return _named("countdown", function)


def format_regex(pattern: str, *, whole: bool = True, flags: str = "s", timeout: float = 1.0) -> Function:
    """1 where the completion has the pattern, else 0: as a reward, or as a rate to be held at least.

    Args:
        pattern: a regular expression of the `regex` package (a superset of `re`).
        whole: the whole text must match, space around it aside; otherwise any part.
        flags: letters of inline flags: `s` (a dot also matches a line's end), `i`, `m`, `x`.
        timeout: seconds for one text; a pattern that runs longer (catastrophic backtracking) is an error.

    Raises:
        InvalidOption: a pattern that does not compile.

    Example:
        >>> thinks = format_regex("<think>.*</think>\\\\s*\\\\d+")
        >>> thinks(completions=["<think>2 and 2</think> 4", "4"])
        [1.0, 0.0]
    """
    import regex  # comes with transformers; unlike `re` it can be given a time limit

    if not set(flags) <= set("simx"):
        raise InvalidOption(f"flags is {flags!r}; expected letters of 'simx'")
    require_range("timeout", timeout, 0.0, open_low=True)
    try:
        compiled = regex.compile(f"(?{flags}:{pattern})" if flags else pattern)
    except regex.error as error:
        raise InvalidOption(f"pattern {pattern!r} does not compile: {error}") from error

    def score(text: str) -> float:
        found = compiled.fullmatch(text.strip(), timeout=timeout) if whole else compiled.search(text, timeout=timeout)
        return float(found is not None)

    def function(*, completions: Sequence[Any], **columns: Any) -> Scores:
        return [score(text_of(completion)) for completion in completions]

    return _named("format_regex", function)


def length_cost(*, unit: Literal["tokens", "words", "characters"] = "tokens", free: float = 0.0) -> Function:
    """max(0, length - free) of the completion; with `free = 0` the length itself, to be held below a limit.

    Args:
        unit: what is counted; the end token counts as a token.
        free: length without cost, >= 0.

    Example:
        >>> length_cost(free=2)(completions=["a b c", ""], completion_ids=[[5, 6, 7], []])
        [1.0, 0.0]
    """
    require_range("free", free, 0.0)
    count = _counter(unit)

    def function(*, completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **columns: Any) -> Scores:
        return [float(max(0, len(count(c, ids)) - free)) for c, ids in zip(completions, completion_ids)]

    return _named("length_cost", function)


def repetition_cost(*, n: int = 4, unit: Literal["tokens", "words", "characters"] = "tokens") -> Function:
    """Share of the completion's n-grams that occurred in it before, `1 - distinct / all`, in [0, 1).

    0 for a text shorter than n. The measure of "Neural Text Generation with Unlikelihood Training" (Welleck et al.,
    2020, seq-rep-n).

    Args:
        n: length of the grams, >= 1.
        unit: what they are made of.

    Example:
        >>> repetition_cost(n=2, unit="words")(completions=["go on go on go", "go on"], completion_ids=[[], []])
        [0.5, 0.0]
    """
    if not isinstance(n, int) or n < 1:
        raise InvalidOption(f"n is {n!r}; expected an integer >= 1")
    pieces = _counter(unit)

    def score(parts: Sequence[Hashable]) -> float:
        grams = [tuple(parts[start : start + n]) for start in range(len(parts) - n + 1)]
        return 1.0 - len(set(grams)) / len(grams) if grams else 0.0

    def function(*, completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **columns: Any) -> Scores:
        return [score(pieces(c, ids)) for c, ids in zip(completions, completion_ids)]

    return _named("repetition_cost", function)


SHIPPED: Mapping[str, Callable[..., Function]] = MappingProxyType(
    {
        made.__name__: made
        for made in (exact_match, math_answer, arithmetic, countdown, format_regex, length_cost, repetition_cost)
    }
)


def score_function(source: str, settings: Mapping[str, Any] | None = None) -> Callable[..., Any]:
    """The score function that a recipe names: a shipped one, `module:function` or `file.py:function`.

    Args:
        source: the name.
        settings: for a shipped name, the factory's settings; for a user's own, see `load_function`.

    Raises:
        InvalidOption: an unknown name, or settings that the factory refuses.

    Example:
        >>> score_function("length_cost", {"unit": "words"})(completions=["a b"], completion_ids=[[1]])
        [2.0]
    """
    if ":" in source:
        return load_function(source, settings)
    if source not in SHIPPED:
        raise unknown_name("score function", source, SHIPPED)
    try:
        return SHIPPED[source](**settings or {})
    except TypeError as error:
        raise InvalidOption(f"{source} refuses the settings {dict(settings or {})}: {error}") from error


def _named(name: str, function: Any) -> Function:
    function.__name__ = function.__qualname__ = name
    return function


def _each(name: str, column: str, score: Callable[[str, Any], float]) -> Function:
    """A function that scores each text against the same row's value of one column."""

    def function(*, completions: Sequence[Any], **columns: Any) -> Scores:
        answers = _column(name, columns, column)
        return [None if a is None else score(text_of(c), a) for c, a in zip(completions, answers)]

    return _named(name, function)


def _column(name: str, columns: Mapping[str, Any], column: str) -> Any:
    if column not in columns:
        raise ScoreError(f"score function {name} needs the column {column!r}; the data have {sorted(columns)}")
    return columns[column]


def _counter(unit: str) -> Callable[[Any, Sequence[int]], Sequence[Hashable]]:
    kinds: dict[str, Callable[[Any, Sequence[int]], Sequence[Hashable]]] = {
        "tokens": lambda completion, ids: ids,
        "words": lambda completion, ids: text_of(completion).split(),
        "characters": lambda completion, ids: text_of(completion),
    }
    if unit not in kinds:
        raise unknown_name("unit", unit, kinds)
    return kinds[unit]


def _last_number(text: str) -> Fraction | None:
    found = extract_answer(text)
    return None if found is None else parse_number(found)


def _right_digits(given: Fraction, truth: Fraction) -> float:
    if given.denominator != 1 or truth.denominator != 1 or (given < 0) != (truth < 0):
        return 0.0
    a, b = str(abs(int(given)))[::-1], str(abs(int(truth)))[::-1]
    return sum(x == y for x, y in zip(a, b)) / max(len(a), len(b))


def _expression(text: str) -> str:
    inside = between(text, "answer") or last_boxed(text)
    lines = (text if inside is None else inside).strip().splitlines()
    return lines[-1].partition("=")[0] if lines else ""


def _math_verify() -> Callable[[str, str], bool]:
    try:
        from math_verify import parse, verify  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InvalidOption('checker="math-verify" needs the package: pip install math-verify') from error

    def verified(text: str, truth: str) -> bool:
        # Its own time limits are signals, for the main thread alone: 0 is none, and `score_table` has the limit.
        gold = parse(truth if "$" in truth else f"\\boxed{{{truth}}}", parsing_timeout=0)
        return bool(verify(gold, parse(text, parsing_timeout=0), timeout_seconds=0))

    return verified
