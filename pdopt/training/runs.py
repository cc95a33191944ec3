"""What a run has left: its policy, opened again to be evaluated, sampled from or exported."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from pdopt.errors import InvalidOption
from pdopt.models.checkpoints import export
from pdopt.models.decoder import Decoder
from pdopt.models.lora import export_adapters, merge
from pdopt.runtime.checkpoints import Checkpoints
from pdopt.training.assembly import needs_reference
from pdopt.training.preparation import Prepared, prepare, start
from pdopt.training.recipe import Recipe
from pdopt.training.saving import BEST, REFERENCE, STATE, saved_recipe
from pdopt.training.state import Fixed, TrainState, policy, priced, reference_from, reference_tree


class OpenedRun(NamedTuple):
    """A run's policy at one of its saved steps, and the policy that its KL is measured against, if any."""

    prepared: Prepared
    model: Decoder
    state: TrainState
    step: int
    reference: Decoder | None = None


def open_run(folder: str | Path, *, best: bool = False, changes: Any = (), **given: Any) -> OpenedRun:
    """The newest, or the best, saved policy of a run.

    Args:
        folder: of the run; no other process may be using it.
        best: the state that `checkpoint.best` kept, instead of the newest.
        changes: `section.key=value` changes of its recipe, where keys may differ.
        given: `functions` and `scorer`, as for `train`.

    Raises:
        InvalidFile: no run there. CheckpointError: no whole state, or a recipe that was changed where it may not be.
        InvalidOption: `best` of a run that kept none.
    """
    recipe: Recipe = saved_recipe(folder, changes)
    place = Path(folder) / (BEST if best else STATE)
    if not place.is_dir():
        kind = "best state (checkpoint.best names the metric)" if best else "state"
        raise InvalidOption(f"{folder} holds no {kind}")
    prepared = prepare(recipe, folder=Path(folder), **given)
    fixed, template = start(prepared)
    with Checkpoints(place, identity=prepared.identity, keep=recipe.checkpoint.keep) as checkpoints:
        found = checkpoints.restore(template)
    model = policy(priced(fixed, found.state.prices), found.state.trainable)
    return OpenedRun(prepared, model, found.state, found.step, _reference(prepared, Path(folder), fixed, template))


def _reference(prepared: Prepared, folder: Path, fixed: Fixed, template: TrainState) -> Decoder | None:
    """What the run's KL is measured against; None where nothing asks, or where no policy step was taken yet."""
    if not needs_reference(prepared.recipe):
        return None
    if prepared.recipe.lora.rank:
        return fixed.model
    if not (folder / REFERENCE).is_dir():
        return None
    with Checkpoints(folder / REFERENCE, identity=prepared.identity, keep=1) as kept:
        return None if kept.latest() is None else reference_from(fixed, kept.restore(reference_tree(template)).state)


def export_run(opened: OpenedRun, folder: str | Path, *, dtype: Any = None, adapters: bool = False) -> None:
    """Write the policy as a folder that `transformers` loads, its tokenizer with it.

    Args:
        opened: from `open_run`.
        folder: made if absent; must be empty.
        dtype: of the files; None keeps the parameters'.
        adapters: write PEFT's adapter files alone; otherwise adapters are added to the weights.

    Raises:
        InvalidOption: the folder has files in it, or `adapters` of a run that trained none.
    """
    prepared, model = opened.prepared, opened.model
    if model.balance is not None:
        said = f"the experts' prices have no place in a folder of {model.config.family}; what is written routes without"
        warnings.warn(said, stacklevel=2)
        model = dataclasses.replace(model, balance=None)
    source = prepared.policy.source
    if adapters:
        export_adapters(model, folder, base=prepared.recipe.model.path or None, dtype=dtype)
    else:
        export(merge(model) if model.adapters is not None else model, folder, dtype=dtype, source=source)
    if prepared.policy.tokenizer is not None:
        prepared.policy.tokenizer.save_pretrained(str(folder))
