"""Tasks made on the spot: endless, without download, any row by its number.

    row(i) = make(draws of Philox(key = (seed, i)))

so that a position in the data is one integer, two processes make the same rows without talking, and nothing is stored.
A row has `prompt`, `answer` and `difficulty` (what a curriculum or a report groups by), and what its checker needs.

`split="train"` and `split="test"` part the prompts by a hash of their text, an eighth of them for the test: a small
space of questions would otherwise have most test questions in the training data.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, Protocol

from pdopt.errors import InvalidOption, unknown_name
from pdopt.training.draws import Draws
from pdopt.training.expressions import evaluate

Row = dict[str, Any]
Split = Literal["train", "test"] | None

# One prompt in so many belongs to the test split.
TEST_SHARE = 8
# Attempts at a row of the asked split, or at a solvable row, before the task is called impossible.
ATTEMPTS = 10_000


class Source(Protocol):
    """Rows by number: a generated task, or a table that was read (`pdopt.training.data`)."""

    @property
    def name(self) -> str:
        """For reports."""
        ...

    @property
    def size(self) -> int | None:
        """Number of rows; None for an endless source."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this source from another, as JSON: saved in checkpoints and compared on resume."""
        ...

    def __getitem__(self, index: int) -> Row:
        """Row `index`."""
        ...


@dataclasses.dataclass(frozen=True)
class Task:
    """An endless source of rows.

    Attributes:
        name: of the factory.
        settings: of the factory, as JSON.
        make: one row from draws, or None where the draws led to none.
        seed: >= 0; another seed is another sequence of rows.
        split: which prompts; None takes all.
    """

    name: str
    settings: Mapping[str, Any]
    make: Callable[[Draws], Row | None]
    seed: int = 0
    split: Split = None

    def __post_init__(self) -> None:
        if not isinstance(self.seed, int) or self.seed < 0:
            raise InvalidOption(f"seed is {self.seed!r}; expected an integer >= 0")
        if self.split not in (None, "train", "test"):
            raise InvalidOption(f'split is {self.split!r}; expected "train", "test" or None')

    @property
    def size(self) -> None:
        """None: it never ends."""
        return None

    @property
    def identity(self) -> dict[str, Any]:
        """The factory, its settings, seed and split."""
        return {"task": self.name, "settings": dict(self.settings), "seed": self.seed, "split": self.split}

    def __getitem__(self, index: int) -> Row:
        """Row `index` >= 0.

        Raises:
            IndexError: a negative index.
            InvalidOption: no row was found in 10 000 attempts: the settings leave none in this split.
        """
        if index < 0:
            raise IndexError(f"row {index}; rows of a task start at 0 and never end")
        draws = Draws(self.seed, index)
        for _ in range(ATTEMPTS):
            row = self.make(draws)
            if row is not None and (self.split is None or (self.split == "test") == held_out(row["prompt"])):
                return row
        raise InvalidOption(f"task {self.name} with {dict(self.settings)} has no row {index} in split {self.split!r}")


def held_out(prompt: str) -> bool:
    """Whether a prompt belongs to the test split: an eighth of all, by the sha256 of its text."""
    return hashlib.sha256(prompt.encode()).digest()[0] % TEST_SHARE == 0


def arithmetic(
    *,
    digits: int | tuple[int, int] = 2,
    operations: str = "+",
    terms: int = 2,
    template: str = "{expression}=",
    seed: int = 0,
    split: Split = None,
) -> Task:
    """Sums and the like; `difficulty` is the number of digits of the longest operand.

    Args:
        digits: of each operand, one number or (least, most).
        operations: of "+-*/"; divisions have whole results, and two terms.
        terms: operands, >= 2; products come before sums, as everywhere.
        template: of the prompt, with `{expression}`.
        seed, split: see `Task`.

    Example:
        >>> task = arithmetic(digits=2)
        >>> task[0] == task[0], sorted(task[0]), evaluate(task[0]["prompt"].rstrip("=")).value == int(task[0]["answer"])
        (True, ['answer', 'difficulty', 'prompt'], True)
    """
    least, most = _range("digits", digits, 1, 50)
    if not operations or not set(operations) <= set("+-*/"):
        raise InvalidOption(f"operations is {operations!r}; expected some of '+-*/'")
    _whole("terms", terms, 2, 20)
    if "/" in operations and terms > 2:
        raise InvalidOption(f"terms is {terms} with divisions; expected 2, so that results are whole")
    _fields(template, ("expression",))

    def make(draws: Draws) -> Row | None:
        lengths = [draws.between(least, most) for _ in range(terms)]
        operands = [draws.digits(length) for length in lengths]
        signs = [draws.choice(operations) for _ in range(terms - 1)]
        if signs == ["/"]:  # a divisor and a quotient were drawn
            divisor, quotient = max(1, operands[0]), operands[1]
            operands, lengths = [divisor * quotient, divisor], [len(str(divisor * quotient)), len(str(divisor))]
        text = str(operands[0]) + "".join(f"{sign}{operand}" for sign, operand in zip(signs, operands[1:]))
        answer = int(evaluate(text).value)
        return {"prompt": template.format(expression=text), "answer": str(answer), "difficulty": max(lengths)}

    settings = {"digits": [least, most], "operations": operations, "terms": terms, "template": template}
    return Task("arithmetic", settings, make, seed, split)


def countdown(
    *,
    numbers: int | tuple[int, int] = (3, 4),
    high: int = 99,
    target: tuple[int, int] = (10, 100),
    operations: str = "+-*/",
    template: str = "Use the numbers {numbers} once each with {operations} and brackets to make {target}.\n",
    seed: int = 0,
    split: Split = None,
) -> Task:
    """Make a target from numbers; always solvable. `answer` is one solution, `difficulty` the count of numbers.

    Columns `numbers` and `target` are what the reward `countdown` reads.

    Args:
        numbers: how many, one number or (least, most).
        high: each lies in 1, ..., high.
        target: least and greatest target.
        operations: of "+-*/"; steps of the solution stay whole and positive.
        template: of the prompt, with `{numbers}`, `{target}` and, if wanted, `{operations}`.
        seed, split: see `Task`.

    Example:
        >>> row = countdown(numbers=3, high=9)[5]
        >>> value, used = evaluate(row["answer"])
        >>> int(value) == row["target"], sorted(map(int, used)) == sorted(row["numbers"])
        (True, True)
    """
    least, most = _range("numbers", numbers, 2, 10)
    _whole("high", high, 1, 10**6)
    lowest, highest = _range("target", target, 1, 10**9)
    if not operations or not set(operations) <= set("+-*/"):
        raise InvalidOption(f"operations is {operations!r}; expected some of '+-*/'")
    _fields(template, ("numbers", "target"), ("operations",))

    def make(draws: Draws) -> Row | None:
        given = [draws.between(1, high) for _ in range(draws.between(least, most))]
        parts: list[tuple[int, str]] = [(number, str(number)) for number in given]
        while len(parts) > 1:
            (a, left), (b, right) = (parts.pop(draws.below(len(parts))) for _ in range(2))
            sign = draws.choice(operations)
            if (sign == "-" and a <= b) or (sign == "/" and a % b):
                return None
            value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[sign]
            parts.append((value, f"({left} {sign} {right})"))
        value, solution = parts[0]
        if not lowest <= value <= highest:
            return None
        prompt = template.format(numbers=" ".join(map(str, given)), target=value, operations=" ".join(operations))
        answer = solution[1:-1]
        return {"prompt": prompt, "answer": answer, "difficulty": len(given), "numbers": given, "target": value}

    settings = {
        "numbers": [least, most], "high": high, "target": [lowest, highest], "operations": operations,
        "template": template,
    }  # fmt: skip
    return Task("countdown", settings, make, seed, split)


def sort(
    *,
    length: int | tuple[int, int] = (3, 6),
    high: int = 99,
    template: str = "sort {numbers}:",
    seed: int = 0,
    split: Split = None,
) -> Task:
    """Numbers to be put in ascending order; `difficulty` is how many.

    Args:
        length: how many, one number or (least, most).
        high: each lies in 0, ..., high.
        template: of the prompt, with `{numbers}`.
        seed, split: see `Task`.

    Example:
        >>> row = sort(length=3, high=9, seed=1)[0]
        >>> sorted(row["prompt"].removeprefix("sort ").rstrip(":").split()) == row["answer"].split()
        True
    """
    least, most = _range("length", length, 1, 1000)
    _whole("high", high, 1, 10**9)
    _fields(template, ("numbers",))

    def make(draws: Draws) -> Row | None:
        drawn = [draws.between(0, high) for _ in range(draws.between(least, most))]
        prompt = template.format(numbers=" ".join(map(str, drawn)))
        return {"prompt": prompt, "answer": " ".join(map(str, sorted(drawn))), "difficulty": len(drawn)}

    return Task("sort", {"length": [least, most], "high": high, "template": template}, make, seed, split)


def parity(
    *,
    length: int | tuple[int, int] = (4, 12),
    template: str = "parity of {bits}:",
    seed: int = 0,
    split: Split = None,
) -> Task:
    """Whether the number of ones among bits is "even" or "odd"; `difficulty` is the number of bits.

    Args:
        length: bits, one number or (least, most).
        template: of the prompt, with `{bits}`.
        seed, split: see `Task`.

    Example:
        >>> row = parity(length=5)[3]
        >>> row["answer"] == ("odd" if row["prompt"].count("1") % 2 else "even")
        True
    """
    least, most = _range("length", length, 1, 1000)
    _fields(template, ("bits",))

    def make(draws: Draws) -> Row | None:
        bits = [draws.below(2) for _ in range(draws.between(least, most))]
        prompt = template.format(bits=" ".join(map(str, bits)))
        return {"prompt": prompt, "answer": "odd" if sum(bits) % 2 else "even", "difficulty": len(bits)}

    return Task("parity", {"length": [least, most], "template": template}, make, seed, split)


TASKS: Mapping[str, Callable[..., Task]] = MappingProxyType(
    {"arithmetic": arithmetic, "countdown": countdown, "sort": sort, "parity": parity}
)


def task(name: str, settings: Mapping[str, Any] | None = None) -> Task:
    """The generated task that a recipe names.

    Raises:
        InvalidOption: an unknown name, or settings that the task refuses.

    Example:
        >>> task("sort", {"length": 2, "seed": 3}).identity["settings"]["length"]
        [2, 2]
    """
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    try:
        return TASKS[name](**settings or {})
    except TypeError as error:
        raise InvalidOption(f"task {name} refuses the settings {dict(settings or {})}: {error}") from error


def _whole(name: str, value: Any, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidOption(f"{name} is {value!r}; expected an integer in [{low}, {high}]")


def _range(name: str, value: Any, low: int, high: int) -> tuple[int, int]:
    pair: Any = value if isinstance(value, tuple | list) and len(value) == 2 else (value, value)
    least, most = pair
    _whole(name, least, low, high)
    _whole(name, most, low, high)
    if least > most:
        raise InvalidOption(f"{name} is {value!r}; expected (least, most) with least <= most")
    return least, most


def _fields(template: str, needed: Sequence[str], allowed: Sequence[str] = ()) -> None:
    """Check a template by filling it with marks."""
    marks = {name: f"<{name}>" for name in (*needed, *allowed)}
    try:
        filled = template.format(**marks)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise InvalidOption(f"template {template!r} cannot be filled: {error!r}; fields are {sorted(marks)}") from error
    if lacking := [name for name in needed if marks[name] not in filled]:
        raise InvalidOption(f"template {template!r} lacks {{{lacking[0]}}}")
