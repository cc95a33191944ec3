"""The folder of a run: its recipe, its tokenizer, its checkpoints, and how a run is found and continued.

    recipe.toml      resolved          tokenizer/     files of transformers       metrics.jsonl, samples.jsonl
    state/           newest states     best/          the best by a metric        reference/    where KL needs a copy

A checkpoint holds the whole `TrainState` and, as JSON, the position in the data. What must be the same for a run to be
continued is its identity: every key of the recipe that is not marked `may_differ`, the data, the tokenizer and the
weights that stay fixed. Another version of a library is a warning: numbers may then differ in the last bits.
"""

import json
import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax

from pdopt.errors import CheckpointError, InvalidFile, InvalidOption
from pdopt.runtime.checkpoints import Checkpoints, library_versions
from pdopt.runtime.files import write_atomic
from pdopt.runtime.fingerprint import fingerprints
from pdopt.training.overrides import override, read_tables
from pdopt.training.recipe import CheckpointConfig, Recipe, flat, make_recipe

RECIPE, TOKENIZER, STATE, BEST, REFERENCE = "recipe.toml", "tokenizer", "state", "best", "reference"


class Resumed(NamedTuple):
    """What a checkpoint gave: the step it was saved at, the state, and its JSON."""

    step: int
    state: Any
    extra: dict[str, Any]


def run_identity(recipe: Recipe, data: Any, tokenizer: str | None, fixed: Any) -> dict[str, Any]:
    """What must be equal for a checkpoint of this run to be continued, as JSON; a key a line, so that errors name it.

    Args:
        recipe: resolved.
        data: identity of the source; tokenizer: its fingerprint.
        fixed: tree of weights that training does not change; its fingerprints are compared.
    """
    prints = fingerprints(jax.tree.leaves(fixed)) if fixed is not None else []
    keys = {name: value for name, (value, may_differ) in flat(recipe).items() if not may_differ}
    # A model may have been moved; what is in it is compared.
    for name in ("model.path", "model.tokenizer", "data.source"):
        keys.pop(name)
    return {"kind": "training", **keys, "data": data, "tokenizer": tokenizer, "fixed weights": prints}


def saved_recipe(folder: str | Path, changes: Any = ()) -> Recipe:
    """The recipe of a run's folder, with changes; its folder is where it was found.

    Raises:
        InvalidFile: the folder holds no run.
    """
    path = Path(folder) / RECIPE
    if not path.is_file():
        raise InvalidFile(folder, f"no run: there is no {RECIPE} in it")
    tables, _ = read_tables(path)
    return make_recipe(override(tables, [f"training.folder={json.dumps(str(folder))}", *changes]))


class RunFolder:
    """The checkpoints of one run; a context manager that holds the folder's locks.

    Args:
        folder: of the run; made if absent.
        identity: from `run_identity`.
        config: when to save and what to keep.

    Raises:
        CheckpointError: the folder cannot be written or is in use.
    """

    def __init__(self, folder: str | Path, identity: dict[str, Any], config: CheckpointConfig) -> None:
        self.path = Path(folder)
        self.config = config
        self.best_value: float | None = None
        self._identity = identity
        self._state = Checkpoints(self.path / STATE, identity=identity, keep=config.keep)
        self._best: Checkpoints | None = None
        if config.best:
            try:
                self._best = Checkpoints(self.path / BEST, identity=identity, keep=1)
            except BaseException:
                self._state.close(quiet=True)
                raise

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        quiet = error is not None
        try:
            self._state.close(quiet=quiet)
        finally:
            if self._best is not None:
                self._best.close(quiet=quiet)

    def latest(self) -> int | None:
        """The newest step that is saved."""
        return self._state.latest()

    def save(self, step: int, state: Any, extra: dict[str, Any]) -> bool:
        """Start saving; the write goes on in the background, the state may be donated right after."""
        return self._state.save(step, state, self._described(extra))

    def save_best(self, step: int, state: Any, value: float, extra: dict[str, Any]) -> bool:
        """Save as the best so far if its metric is; NaN never is."""
        if self._best is None or math.isnan(value):
            return False
        better = self.best_value is None or (
            value > self.best_value if self.config.best_is == "highest" else value < self.best_value
        )
        newest = self._best.latest()
        # A run that was killed after this save and before the next state comes by here a second time.
        if not better or (newest is not None and newest >= step):
            return False
        self.best_value = value
        return self._best.save(step, state, self._described(extra) | {self.config.best: value})

    def wait(self) -> None:
        """Return when all is on disk.

        Raises:
            CheckpointError: a save failed; the steps before it are whole.
        """
        self._state.wait()
        if self._best is not None:
            self._best.wait()

    def restore(self, template: Any) -> Resumed:
        """The newest whole state, verified bit for bit, placed as the template's leaves are.

        Raises:
            CheckpointError: there is none, or it belongs to another run; the key is named.
        """
        found = self._state.restore(template)
        self.best_value = found.extra.get("best")
        differing = {
            name: (was, now)
            for name, now in library_versions().items()
            if (was := found.extra.get("versions", {}).get(name)) != now
        }
        if differing:
            said = ", ".join(f"{name} {was} then, {now} now" for name, (was, now) in differing.items())
            warnings.warn(f"{self.path}: saved with other versions ({said}); the last bits may differ", stacklevel=2)
        return Resumed(found.step, found.state, found.extra)

    def save_reference(self, params: Any) -> None:
        """Keep the policy that KL is measured against; written once, on disk when this returns."""
        with Checkpoints(self.path / REFERENCE, identity=self._identity, keep=1, failure="raise") as reference:
            if reference.latest() is None:
                reference.save(0, params)

    def restore_reference(self, template: Any) -> Any:
        """The reference that was kept, None if there is none."""
        if not (self.path / REFERENCE).is_dir():
            return None
        with Checkpoints(self.path / REFERENCE, identity=self._identity, keep=1) as reference:
            return None if reference.latest() is None else reference.restore(template).state

    def _described(self, extra: dict[str, Any]) -> dict[str, Any]:
        return {**extra, "best": self.best_value, "versions": library_versions()}


def write_recipe(folder: str | Path, recipe: Recipe) -> None:
    """Write the resolved recipe into a run's folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_atomic(Path(folder) / RECIPE, recipe.as_toml())


def require_new(folder: str | Path) -> None:
    """Raise unless a new run may begin in the folder: one that holds states is never overwritten in silence.

    Raises:
        InvalidOption: the folder holds states, or is a file.
    """
    path = Path(folder)
    if path.is_file():
        raise CheckpointError(f"training.folder is {path}, which is a file; expected a folder")
    steps = [item for item in (path / STATE).glob("*") if item.name.isdigit()] if (path / STATE).is_dir() else []
    if steps:
        raise InvalidOption(f"training.folder is {path}, which holds a run; resume it, or choose another folder")
