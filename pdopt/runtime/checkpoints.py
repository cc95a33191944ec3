"""Checkpoints that survive kills, full disks, flipped bits and another number of devices.

A folder holds one subfolder per saved step, written by orbax under a temporary name and renamed when whole. Beside the
arrays, `meta` keeps what orbax does not check: each leaf's name, shape, type and mesh-independent fingerprint, the
identity of the run (problem, method, versions), the caller's `extra` as JSON, and a sha256 of all of that. On restore

    meta whole -> same identity -> same leaves, shapes, types -> arrays read onto the template's shardings -> same bits

A damaged step (any failure to read it, or other bits) is left where it is, with a warning, and the step before it is
tried; another identity, shape or type is an error at once, because an older step would have it too.

Leaves are stored as a flat list in the order of the tree, so any registered pytree works; empty arrays and the types of
Python numbers live in `meta`. Only folders of a mounted file system are supported. In a distributed run every process
calls every function here with its own shards.
"""

import gc
import hashlib
import json
import os
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from pdopt.errors import CheckpointError, InvalidOption, require_range
from pdopt.runtime.fingerprint import fingerprints
from pdopt.runtime.leaves import describe, like, named, revive, storable, target
from pdopt.runtime.lock import FolderLock, probe

FORMAT = 1


class Restored(NamedTuple):
    """What `Checkpoints.restore` found: the step, the state with the template's structure, and the caller's JSON."""

    step: int
    state: Any
    extra: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run in one folder; a context manager that holds the folder's lock.

    Args:
        folder: where the steps go; made if absent.
        identity: what must be the same for a checkpoint to be continued, as JSON: for example the problem's `digest`,
            the method's settings, `library_versions()`.
        keep: how many of the newest steps stay, >= 1.
        failure: what `save` does about an earlier save that failed, a full disk for instance: "warn" and go on, or
            "raise". `wait` always raises.

    Raises:
        CheckpointError: the folder cannot be written, is a file, or is in use by another run.
        InvalidOption: `keep` < 1 or an identity that is not JSON.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> folder = tempfile.TemporaryDirectory()
        >>> with Checkpoints(folder.name, identity={"problem": "diet"}) as checkpoints:
        ...     _ = checkpoints.save(10, {"x": jnp.arange(3.0)}, {"seconds": 1.5})
        ...     checkpoints.wait()
        ...     found = checkpoints.restore({"x": jax.ShapeDtypeStruct((3,), jnp.float32)})
        >>> found.step, found.extra, found.state["x"].tolist()
        (10, {'seconds': 1.5}, [0.0, 1.0, 2.0])
        >>> folder.cleanup()
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        identity: dict[str, Any],
        keep: int = 3,
        failure: Literal["warn", "raise"] = "warn",
    ) -> None:
        if "://" in os.fspath(folder):
            raise CheckpointError(f"{os.fspath(folder)} is not a folder of a mounted file system")
        require_range("keep", keep, 1)
        if failure not in ("warn", "raise"):
            raise InvalidOption(f"failure is {failure!r}; expected 'warn' or 'raise'")
        self.folder = Path(folder).absolute()
        self.identity: dict[str, Any] = _plain("identity", identity)
        self._failure = failure
        self._pending: int | None = None  # the step whose save has not been seen to end
        self._done: set[int] = set()  # steps saved by this run, seen to end
        self._damaged: set[int] = set()
        self._closed = False
        probe(self.folder)
        self._lock = FolderLock(self.folder) if jax.process_index() == 0 else None
        try:
            import orbax.checkpoint as ocp

            self._ocp = ocp
            options = ocp.CheckpointManagerOptions(max_to_keep=int(keep), create=True, cleanup_tmp_directories=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except BaseException:
            self._unlock()
            raise

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.close(quiet=error is not None)

    def latest(self) -> int | None:
        """The newest complete step, None if there is none; its contents are not checked.

        A save under way does not count before `wait` or the next `save` has seen it end.
        """
        return max((step for step in self._manager.all_steps() if step != self._pending), default=None)

    def save(self, step: int, state: Any, extra: dict[str, Any] | None = None) -> bool:
        """Start saving `state` as `step`; the write goes on in the background.

        The arrays are copied before the call returns, so the state may be donated to the next step right after.

        Args:
            step: above every step in the folder, unless those were found damaged by `restore`.
            state: pytree of arrays, PRNG keys and Python numbers, sharded in any way.
            extra: whatever else a resume needs, as JSON (iteration, seconds, position in the data).

        Returns:
            True if a save was started, False if this run has saved this step already or, with `failure="warn"`, if
            it could not be started.

        Raises:
            CheckpointError: the folder holds later steps that were not resumed from; a save failed and
                `failure="raise"`.
            InvalidOption: `extra` is not JSON.
        """
        self._settle(raising=self._failure == "raise")
        if step in self._done:
            return False
        later = [old for old in self._manager.all_steps() if old >= step and old not in self._damaged]
        if later:
            raise CheckpointError(
                f"{self.folder} already holds step {max(later)}, so step {step} cannot be saved: "
                "resume from it or choose an empty folder"
            )
        # 64-bit leaves keep their type only inside the scope. NumPy leaves become copies: the write happens later.
        with jax.enable_x64(True):
            leaves = named(state)
            described = [describe(name, value) for name, value in leaves]
            prints = fingerprints([value for _, value in leaves])
            arrays = {_slot(i): storable(value) for i, (_, value) in enumerate(leaves) if 0 not in np.shape(value)}
        meta = {
            "format": FORMAT,
            "step": int(step),
            "saved": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "identity": self.identity,
            "leaves": [leaf | {"bits": bits} for leaf, bits in zip(described, prints)],
            "extra": _plain("extra", extra or {}),
        }
        meta["seal"] = _seal(meta)
        save_args = self._ocp.args
        items: dict[str, Any] = {"meta": save_args.JsonSave(meta)}
        if arrays:
            items["state"] = save_args.StandardSave(arrays)
        try:
            for old in sorted(old for old in self._damaged if old >= step):
                self._manager.delete(old)
            self._damaged -= {old for old in self._damaged if old >= step}
            with jax.enable_x64(True):
                self._manager.save(int(step), args=save_args.Composite(**items), force=True)
        except Exception as error:  # the disk can fail in many types of error; none of them is swallowed
            self._report(step, error, raising=self._failure == "raise")
            return False
        self._pending = int(step)
        return True

    def wait(self) -> None:
        """Return when everything saved so far is on disk.

        Raises:
            CheckpointError: the last save failed; the steps before it are whole.
        """
        self._settle(raising=True)

    def restore(self, template: Any, *, ignore: tuple[str, ...] = ()) -> Restored:
        """The newest whole step, verified bit for bit.

        Args:
            template: a tree like the saved state; its leaves give shape, type and sharding (arrays, or
                `ShapeDtypeStruct`; no sharding: the default device). Python numbers come back as Python numbers, NumPy
                arrays as NumPy arrays. The mesh may differ from the one that saved.
            ignore: keys of `identity` that may differ, for example after a change of configuration.

        Raises:
            CheckpointError: there is no step, or none is whole; another identity (both values are shown), format,
                structure, shape or type (the leaf is named).
        """
        self._settle(raising=False)
        steps = sorted(self._manager.all_steps(), reverse=True)
        if not steps:
            raise CheckpointError(f"{self.folder} holds no checkpoint")
        cause: Exception | None = None
        for step in steps:
            try:
                meta = self._read_meta(step)
            except Exception as error:
                cause = self._damage(step, error)
                continue
            self._compare(step, meta, template, ignore)
            try:
                state = self._read_state(step, meta, template)
            except Exception as error:
                cause = self._damage(step, error)
                continue
            return Restored(step, state, meta["extra"])
        raise CheckpointError(f"{self.folder}: none of the steps {sorted(steps)} is whole") from cause

    def close(self, *, quiet: bool = False) -> None:
        """Wait for the last save and give the folder back.

        Args:
            quiet: report a failed save as a warning (used when another error is on its way).

        Raises:
            CheckpointError: the last save failed, unless `quiet`.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._settle(raising=not quiet)
        finally:
            try:
                self._manager.close()
            finally:
                self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _settle(self, *, raising: bool) -> None:
        """Wait for the save under way and note how it ended."""
        step, self._pending = self._pending, None
        if step is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # reported with its cause by `_report`
            self._report(step, error, raising=raising)
            return
        self._done.add(step)

    def _report(self, step: int, error: Exception, *, raising: bool) -> None:
        self._manager.reload()  # orbax counts the failed step as present until it looks at the disk again
        text = f"{self.folder}: step {step} was not saved ({_short(error)}); the newest whole step is {self.latest()}"
        if raising:
            raise CheckpointError(text) from error
        warnings.warn(text, RuntimeWarning, stacklevel=4)

    def _damage(self, step: int, error: Exception) -> Exception:
        self._damaged.add(step)
        _drop_frames(error)
        warnings.warn(
            f"{self.folder}: step {step} is damaged ({_short(error)}); trying the step before it",
            RuntimeWarning,
            stacklevel=3,
        )
        return error

    def _read_meta(self, step: int) -> dict[str, Any]:
        read = self._manager.restore(step, args=self._ocp.args.Composite(meta=self._ocp.args.JsonRestore()))
        meta = dict(read["meta"])
        if meta.pop("seal", None) != _seal(meta):
            raise CheckpointError("its description does not match its seal")
        return meta

    def _compare(self, step: int, meta: dict[str, Any], template: Any, ignore: tuple[str, ...]) -> None:
        where = f"{self.folder}, step {step}"
        if meta["format"] != FORMAT:
            raise CheckpointError(f"{where}: checkpoint format {meta['format']}; this version reads format {FORMAT}")
        saved = meta["identity"]
        for key in sorted((saved.keys() | self.identity.keys()) - set(ignore)):
            if saved.get(key) != self.identity.get(key):
                raise CheckpointError(
                    f"{where} belongs to another run: {key} is {saved.get(key)!r} in the checkpoint "
                    f"and {self.identity.get(key)!r} here"
                )
        wanted = [describe(name, value) for name, value in named(template)]
        names, kept = [w["name"] for w in wanted], [k["name"] for k in meta["leaves"]]
        if names != kept:
            missing = [name for name in names if name not in kept]
            extra = [name for name in kept if name not in names]
            what = f"missing {missing}, not expected {extra}" if missing or extra else f"order {kept}, expected {names}"
            raise CheckpointError(f"{where}: other leaves than expected: {what}")
        for want, have in zip(wanted, meta["leaves"]):
            for what in ("shape", "dtype"):
                if want[what] != have[what]:
                    name = want["name"] or "the state"
                    raise CheckpointError(f"{where}: {name} has {what} {have[what]}; expected {want[what]}")

    def _read_state(self, step: int, meta: dict[str, Any], template: Any) -> Any:
        leaves, structure = jax.tree.flatten(template)
        targets = {_slot(i): target(leaf) for i, leaf in enumerate(leaves) if 0 not in np.shape(leaf)}
        with jax.enable_x64(True):
            arrays: Any = {}
            if targets:
                state = self._ocp.args.StandardRestore(targets)
                arrays = self._manager.restore(step, args=self._ocp.args.Composite(state=state))["state"]
            values = [revive(arrays.get(_slot(i)), leaf) for i, leaf in enumerate(leaves)]
        for have, bits in zip(meta["leaves"], fingerprints(values)):
            if have["bits"] != bits:
                raise CheckpointError(f"{have['name'] or 'the state'} has other bits than were saved")
        return jax.tree.unflatten(structure, [like(value, leaf) for value, leaf in zip(values, leaves)])


def library_versions() -> dict[str, str]:
    """Versions of what decides a run's bits, for `identity`: jax, jaxlib and pdopt ("source" if not installed).

    Example:
        >>> sorted(library_versions())
        ['jax', 'jaxlib', 'pdopt']
    """
    from importlib import metadata

    found = {}
    for name in ("jax", "jaxlib", "pdopt"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "source"
    return found


def _slot(index: int) -> str:
    return f"{index:06d}"


def _plain(name: str, value: dict[str, Any]) -> dict[str, Any]:
    """The value as JSON gives it back (tuples become lists), so that comparisons see what a file would hold."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise InvalidOption(f"{name} is not JSON: {error}") from error


def _seal(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _drop_frames(error: BaseException | None) -> None:
    """Let go of what a failed read still holds, its type, text and causes apart.

    orbax leaves coroutines behind that were never started, and Python complains about each when it is collected, at
    some later time and place; they are collected here, where the failure itself is being reported.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="coroutine .* was never awaited", category=RuntimeWarning)
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__ or error.__context__
        gc.collect()


def _short(error: Exception) -> str:
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0][:200]}" if first else type(error).__name__
