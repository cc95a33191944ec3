"""Tasks of the package `reasoning-gym` (Stojanovski et al. 2025, arXiv 2505.24760) as a source of rows, with checkers.

Rows have `prompt`, `answer`, `difficulty` (a text, as the task tells it) and `entry`, which its checker reads. Several
of its checkers hand the *policy's* text to Python's `eval` or to sympy's parser, which uses it: a policy would run code
in the process that trains it. Such tasks may be read here, and scored by `exact_match` or `math_answer`; their own
checkers are refused.
"""

import dataclasses
import importlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pdopt.errors import InvalidOption, unknown_name
from pdopt.training.answers import between, last_boxed
from pdopt.training.rewards import ScoreError, text_of
from pdopt.training.tasks import Row

# Seeds of the package are those of Python's `random`, one a row: ours are set so far apart that rows never coincide.
STRIDE = 2**40
_EXECUTES = re.compile(r"\b(?:eval|exec|parse_expr|sympify|literal_eval)\s*\(")


@dataclasses.dataclass(frozen=True)
class GymTask:
    """Rows of one of the package's data sets; made by `reasoning_gym_task`."""

    name: str
    settings: Mapping[str, Any]
    seed: int
    size: int
    version: str
    data: Any

    @property
    def identity(self) -> dict[str, Any]:
        """Name, settings, seed, size and the package's version, on which rows may depend."""
        settings = json.loads(json.dumps(dict(self.settings), default=str))
        return {
            "reasoning_gym": self.name, "settings": settings, "seed": self.seed, "size": self.size,
            "version": self.version,
        }  # fmt: skip

    def __getitem__(self, index: int) -> Row:
        """Row `index`."""
        if not 0 <= index < self.size:
            raise IndexError(f"row {index} of {self.size}")
        entry = self.data[index]
        difficulty = json.dumps(entry["metadata"].get("difficulty"), default=str)
        return {"prompt": entry["question"], "answer": entry["answer"], "difficulty": difficulty, "entry": entry}


def reasoning_gym_task(name: str, *, size: int = 1_000_000, seed: int = 0, **settings: Any) -> GymTask:
    """One of the package's data sets by its name, with its own settings.

    Args:
        name: as registered there ("leg_counting").
        size: rows of an epoch, >= 1.
        seed: >= 0; rows of different seeds are different.
        settings: of the data set.

    Raises:
        InvalidOption: the package is not installed, an unknown name, or settings that the data set refuses.
    """
    gym = _package()
    known = importlib.import_module("reasoning_gym.factory").DATASETS
    if name not in known:
        raise unknown_name("reasoning-gym task", name, known)
    for label, value, least in (("size", size, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or value < least:
            raise InvalidOption(f"{label} is {value!r}; expected an integer >= {least}")
    try:
        data = gym.create_dataset(name, size=size, seed=seed * STRIDE, **settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise InvalidOption(f"reasoning-gym task {name} refuses the settings {settings}: {error}") from error
    from importlib.metadata import version

    return GymTask(name, settings, seed, size, version("reasoning-gym"), data)


def gym_score(task: GymTask) -> Callable[..., list[float | None]]:
    """The task's own checker as a score function, on what `<answer>` or `\\boxed` holds, else on the whole text.

    Raises:
        InvalidOption: a checker in whose module texts are evaluated as Python (see above).
    """
    module = inspect.getmodule(type(task.data))
    if module is None or _EXECUTES.search(inspect.getsource(module)):
        raise InvalidOption(
            f"the checker of {task.name} may execute what the policy wrote; score it by exact_match or math_answer"
        )

    def function(*, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        if "entry" not in columns:
            raise ScoreError(f"score function {task.name} needs the column 'entry'; the data have {sorted(columns)}")
        return [_score(task, text_of(c), entry) for c, entry in zip(completions, columns["entry"])]

    function.__name__ = function.__qualname__ = task.name
    return function


def _score(task: GymTask, text: str, entry: Any) -> float | None:
    if entry is None:
        return None
    stated = between(text, "answer")
    stated = last_boxed(text) if stated is None else stated
    return float(task.data.score_answer((text if stated is None else stated).strip(), entry))


def _package() -> Any:
    try:
        return importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise InvalidOption("tasks of reasoning-gym need the package: pip install reasoning-gym") from error
