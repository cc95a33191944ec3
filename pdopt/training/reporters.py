"""Who is told about a training run. The trainer calls three verbs and knows nothing of files, tables or servers.

A *scalar* has a flat name; those of a constraint are `constraint/<name>/<field>`. A *sample* is a row of texts and
scores for people to read. Reporting is the affair of one process; the others have `several()`, which tells no one.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pdopt.errors import unknown_name

Scalars = Mapping[str, Any]
Samples = Sequence[Mapping[str, Any]]

# What is shown of a constraint, in this order; other fields of the same prefix are only recorded.
FIELDS = ("value", "limit", "violation", "multiplier")
PREFIX = "constraint/"


class Reporter(Protocol):
    """A listener. Steps never fall; a step may be reported more than once (training, then evaluation)."""

    def scalars(self, step: int, values: Scalars) -> None:
        """Numbers of one step by name; NaN where there is none."""
        ...

    def text(self, step: int, table: Samples) -> None:
        """Samples of one step: mappings such as prompt, completion, reward."""
        ...

    def close(self) -> None:
        """The run is over; everything told so far is kept."""
        ...


class _Several:
    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self._reporters = tuple(reporters)

    def scalars(self, step: int, values: Scalars) -> None:
        made = plain(values)
        for reporter in self._reporters:
            reporter.scalars(step, made)

    def text(self, step: int, table: Samples) -> None:
        for reporter in self._reporters:
            reporter.text(step, table)

    def close(self) -> None:
        errors = []
        for reporter in self._reporters:
            try:
                reporter.close()
            except Exception as error:  # the others must be closed all the same
                errors.append(error)
        if errors:
            raise errors[0]


def several(*reporters: Reporter) -> Reporter:
    """One reporter that tells all of them in order; of none, one that tells no one.

    `close` closes every one of them, then raises the first error there was.

    Example:
        >>> several().scalars(1, {"reward": 0.5})
    """
    return _Several(reporters)


def open_reporters(
    names: Sequence[str],
    folder: str | Path,
    *,
    resume: int | None = None,
    total: int | None = None,
    config: Mapping[str, Any] | None = None,
) -> Reporter:
    """The reporters that a recipe names, as one; `jsonl` is always among them.

    Args:
        names: of "table" (live on standard error), "jsonl" (`metrics.jsonl`, `samples.jsonl`), "tensorboard", "wandb".
        folder: of the run; made if absent.
        resume: the next step of a run that is continued: what was reported at or after it is taken back. None is a new
            run.
        total: planned steps, for the table.
        config: of the run, for servers that show it.

    Raises:
        InvalidOption: an unknown name, or a package that is not installed.
        CheckpointError: a new run in a folder that holds the metrics of another.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     reporter = open_reporters(["jsonl"], folder)
        ...     reporter.scalars(1, {"reward": 0.5}); reporter.close()
        ...     (Path(folder) / "metrics.jsonl").read_text()
        '{"step": 1, "reward": 0.5}\\n'
    """
    from pdopt.training.live_table import LiveTable
    from pdopt.training.metric_files import MetricFiles
    from pdopt.training.trackers import TensorBoard, WeightsAndBiases

    makers = {
        "jsonl": lambda: MetricFiles(folder, resume=resume),
        "table": lambda: LiveTable(total=total),
        "tensorboard": lambda: TensorBoard(Path(folder) / "tensorboard", resume=resume),
        "wandb": lambda: WeightsAndBiases(folder, config=config, resume=resume is not None),
    }
    for name in names:
        if name not in makers:
            raise unknown_name("reporter", name, makers)
    made: list[Reporter] = []
    try:
        for name in ["jsonl", *dict.fromkeys(name for name in names if name != "jsonl")]:
            made.append(makers[name]())
    except BaseException:
        several(*made).close()
        raise
    return several(*made)


def plain(values: Scalars) -> dict[str, float | int | bool]:
    """Scalars as Python numbers, whatever array they were.

    Raises:
        TypeError: a value that is not one number.

    Example:
        >>> import numpy as np
        >>> plain({"reward": np.float32(0.5), "tokens": 3})
        {'reward': 0.5, 'tokens': 3}
    """
    made = {}
    for name, value in values.items():
        if hasattr(value, "item"):
            value = value.item()
        if not isinstance(value, bool | int | float):
            raise TypeError(f"scalar {name!r} is {value!r}; expected one number")
        made[name] = value
    return made


def constraint_names(values: Scalars) -> list[str]:
    """Names of the constraints that scalars tell of, in order of appearance; a name may hold "/" itself.

    Example:
        >>> constraint_names({"reward": 1, "constraint/length/value": 20, "constraint/length/limit": 24})
        ['length']
    """
    inner = [name.removeprefix(PREFIX) for name in values if name.startswith(PREFIX)]
    return list(dict.fromkeys(name.rpartition("/")[0] for name in inner if "/" in name))


def constraint_line(values: Scalars, name: str) -> dict[str, float]:
    """The shown fields of one constraint, NaN where one is not told."""
    return {field: values.get(f"{PREFIX}{name}/{field}", math.nan) for field in FIELDS}
