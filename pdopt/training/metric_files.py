"""The record of a run as JSON lines: `metrics.jsonl`, `samples.jsonl`, and a page of samples to read for each step.

A line is written by one call of the system in append mode, so a kill at any moment leaves whole lines, or, where the
disk was full, a part of the last one, which the next opening cuts off. A resumed run takes back what was reported at or
after its first step: the file then reads as if the run had never stopped. NaN and infinities become null.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pdopt.errors import CheckpointError, InvalidFile
from pdopt.runtime.files import write_atomic
from pdopt.training.reporters import Samples, Scalars

METRICS, SAMPLES, PAGES = "metrics.jsonl", "samples.jsonl", "samples"


class MetricFiles:
    """A reporter that writes files in a folder; made if absent.

    Args:
        folder: of the run.
        resume: the next step of a run that is continued; None is a new run.

    Raises:
        CheckpointError: a new run where lines of another are.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = MetricFiles(folder)
        ...     for step in (1, 2, 3):
        ...         files.scalars(step, {"reward": step / 2})
        ...     files.close()
        ...     MetricFiles(folder, resume=3).close()
        ...     [line["step"] for line in read_lines(Path(folder) / "metrics.jsonl")]
        [1, 2]
    """

    def __init__(self, folder: str | Path, *, resume: int | None = None) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._files = {name: _open(self._folder / name, resume) for name in (METRICS, SAMPLES)}
        if resume is not None:
            for page in (self._folder / PAGES).glob("step-*.md"):
                if int(page.stem.removeprefix("step-")) >= resume:
                    page.unlink()

    def scalars(self, step: int, values: Scalars) -> None:
        """One line of numbers."""
        self._append(METRICS, {"step": int(step), **{name: _finite(value) for name, value in values.items()}})

    def text(self, step: int, table: Samples) -> None:
        """One line a sample, and a page of them."""
        for sample in table:
            self._append(SAMPLES, {"step": int(step), **{name: _finite(value) for name, value in sample.items()}})
        pages = self._folder / PAGES
        pages.mkdir(exist_ok=True)
        write_atomic(pages / f"step-{step:06d}.md", samples_page(step, table))

    def close(self) -> None:
        """Force what was written to the disk."""
        while self._files:
            _, file = self._files.popitem()
            with contextlib.suppress(OSError):  # some file systems cannot be forced; the lines are written all the same
                os.fsync(file)
            os.close(file)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        data = (json.dumps(row, ensure_ascii=False, default=str) + "\n").encode("utf-8", "backslashreplace")
        written = os.write(self._files[name], data)
        if written < len(data):
            raise OSError(f"{self._folder / name}: {written} of {len(data)} bytes were written; the disk may be full")


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; a part of a line at the end, left by a crash, is no row.

    Raises:
        InvalidFile: no such file, or a whole line that is no JSON object.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidFile(path, f"cannot be read: {error.strerror}") from error
    rows = []
    for number, line in enumerate(_whole(data), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InvalidFile(path, f"not JSON: {error}", number) from error
        if not isinstance(row, dict):
            raise InvalidFile(path, f"a {type(row).__name__}; expected an object", number)
        rows.append(row)
    return rows


def samples_page(step: int, table: Sequence[Mapping[str, Any]]) -> str:
    """Samples as Markdown: texts as blocks, everything else as a list.

    Example:
        >>> print(samples_page(3, [{"prompt": "1+1=", "completion": "2", "reward": 1.0}]))
        # Samples of step 3
        <BLANKLINE>
        ## 1
        <BLANKLINE>
        prompt
        ```text
        1+1=
        ```
        completion
        ```text
        2
        ```
        - reward: 1.0
        <BLANKLINE>
    """
    lines = [f"# Samples of step {step}", ""]
    for number, sample in enumerate(table, 1):
        lines += [f"## {number}", ""]
        for name, value in sample.items():
            if isinstance(value, str):
                fence = "`" * (max([2, *(len(run) for run in _runs(value))]) + 1)
                lines += [name, f"{fence}text", value, fence]
            else:
                lines.append(f"- {name}: {value}")
        lines.append("")
    # Half a surrogate pair, which a byte-level vocabulary can decode to, is no UTF-8.
    return "\n".join(lines).encode("utf-8", "backslashreplace").decode("utf-8")


def _open(path: Path, resume: int | None) -> int:
    """A descriptor that appends, after what is to be taken back was."""
    data = path.read_bytes() if path.exists() else b""
    lines = _whole(data)
    if resume is None:
        if lines:
            raise CheckpointError(f"{path} holds {len(lines)} lines of another run; resume it, or give another folder")
        kept = []
    else:
        kept = [line for line in lines if _step(path, line) < resume]
    if b"".join(kept) != data:
        write_atomic(path, b"".join(kept).decode("utf-8"))
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def _whole(data: bytes) -> list[bytes]:
    """Lines that end with a line's end."""
    return [line for line in data.splitlines(keepends=True) if line.endswith(b"\n")]


def _step(path: Path, line: bytes) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidFile(path, f"a line tells no step: {line[:80]!r}") from error


def _finite(value: Any) -> Any:
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _runs(text: str) -> Iterator[str]:
    """The runs of backticks in a text."""
    run = ""
    for letter in text + " ":
        if letter == "`":
            run += letter
        elif run:
            yield run
            run = ""
