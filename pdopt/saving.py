"""The checkpoints of `run`: whose they are, when the carry is saved, and what a resumed run begins from.

A run is identified by the digest of its problem, the settings of its method, the versions of the libraries that decide
its bits and the layout of the carry. Tolerance and limits are not part of it: a run may be resumed with others.
"""

import dataclasses
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from pdopt.errors import CheckpointError
from pdopt.rules.loop import Carry
from pdopt.runtime.checkpoints import Checkpoints, library_versions
from pdopt.runtime.fingerprint import digest

FORMAT = 1  # of the carry in a checkpoint; another layout of it needs another number


class Saver:
    """When the carry is saved: every so many seconds, and at the end."""

    def __init__(self, folder: Checkpoints, every: float, clock: Callable[[], float]) -> None:
        self.folder, self.every, self.clock = folder, every, clock
        self.last, self.step = clock(), -1

    def restore(self, template: Carry) -> Carry | None:
        """The newest whole carry, None (with a warning) where there is none."""
        if self.folder.latest() is None:
            message = f"{self.folder.folder} holds no checkpoint: the run begins at the start"
            warnings.warn(message, RuntimeWarning, stacklevel=5)
            return None
        found = self.folder.restore(template)
        self.step = found.step
        return found.state

    def look(self, carry: Carry, now: float) -> None:
        """Save if it is time to; the write goes on beside the next chunk."""
        if now - self.last >= self.every:
            self.last = now
            self.save(carry)

    def end(self, carry: Carry) -> None:
        """Save the last carry and wait for the disk; a failure is a warning, since the solution is in hand."""
        self.save(carry)
        self.folder.close(quiet=True)

    def save(self, carry: Carry) -> None:
        """Save, unless this very iteration is saved already."""
        step = int(carry.iterations)
        if step > self.step and self.folder.save(step, carry):
            self.step = step


def open_folder(
    checkpoint: str | os.PathLike[str] | None, problem: Any, method: Any, resume: bool
) -> AbstractContextManager[Checkpoints | None]:
    """The checkpoints of this run, or a context that holds nothing.

    Raises:
        CheckpointError: the folder holds checkpoints and nobody asked to resume.
    """
    if checkpoint is None:
        return nullcontext()
    identity = {"format": FORMAT, "problem": digest(problem), "method": settings(method), **library_versions()}
    folder = Checkpoints(checkpoint, identity=identity)
    if not resume and folder.latest() is not None:
        step = folder.latest()
        folder.close(quiet=True)
        raise CheckpointError(
            f"{folder.folder} already holds a checkpoint (step {step}): resume from it, or choose an empty folder"
        )
    return folder


def settings(method: Any) -> Any:
    """A method's settings as JSON: nested records by field, arrays as lists, what is neither by its `repr`.

    Example:
        >>> from pdopt.rules.acceleration import Halpern
        >>> settings(Halpern(0.5))
        {'type': 'Halpern', 'reflection': 0.5}
    """
    if dataclasses.is_dataclass(method):
        fields = {f.name: settings(getattr(method, f.name)) for f in dataclasses.fields(method)}
        return {"type": type(method).__name__, **fields}
    if hasattr(method, "dtype"):
        return np.asarray(method).tolist()
    return method if isinstance(method, bool | int | float | str | None) else repr(method)
