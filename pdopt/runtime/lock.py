"""One run a folder: a lock that dies with its process, and a probe that the folder can be written at all.

The lock is an operating-system lock (`flock`) on a file that also says who holds it. The system drops it when the
process ends, even by SIGKILL, so no run is locked out by a dead one on the same machine. Where the file was left by
another host the lock proves nothing, and a person must decide. Needs a POSIX system.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
import warnings
from pathlib import Path
from typing import Any

from pdopt.errors import CheckpointError

LOCK_NAME = ".pdopt-lock"


class FolderLock:
    """Exclusive use of `folder` from construction to `release`; the folder must exist.

    A lock left behind by a dead process of this host is taken over with a warning.

    Raises:
        CheckpointError: another run holds the folder (its pid and host are named), or the file is from another host.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_NAME
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise CheckpointError(f"{folder} cannot be locked: {error.strerror}") from error
        try:
            held_here = self._take(folder)
            self._claim(folder, held_here)
        except BaseException:
            os.close(self._file)
            raise

    def release(self) -> None:
        """Give the folder back; calling it again does nothing. The empty file stays: removing it would be a race."""
        if self._file >= 0:
            with contextlib.suppress(OSError):  # a full disk must not keep the lock held
                os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file = -1

    def _take(self, folder: Path) -> bool:
        """Whether the system's lock was taken; False where the file system has none."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                f"{folder} is in use by {_describe(self._holder())}; end that run or choose another folder"
            ) from error
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL):
                return False
            raise CheckpointError(f"{folder} cannot be locked: {error.strerror}") from error
        return True

    def _claim(self, folder: Path, held_here: bool) -> None:
        holder = self._holder()
        if holder:
            here = holder.get("host") == socket.gethostname()
            dead = held_here or not _alive(holder.get("pid"))
            if not (here and dead):
                raise CheckpointError(
                    f"{folder} is in use by {_describe(holder)}; if that run has ended, delete {self.path}"
                )
            warnings.warn(
                f"{folder}: took over the lock of {_describe(holder)}, which ended without giving it back",
                RuntimeWarning,
                stacklevel=4,
            )
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")})
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, text.encode(), 0)
            os.fsync(self._file)
        except OSError as error:
            raise CheckpointError(f"{folder} is not writable: {error.strerror}") from error

    def _holder(self) -> dict[str, Any]:
        text = os.pread(self._file, 4096, 0)
        if not text:
            return {}
        try:
            found = json.loads(text)
        except ValueError:
            return {"pid": "unknown", "host": "unknown"}
        return found if isinstance(found, dict) else {"pid": "unknown", "host": "unknown"}


def probe(folder: Path) -> None:
    """Make the folder and write a file in it, so that a run fails before its first iteration rather than at a save.

    Raises:
        CheckpointError: there is a file where the folder should be, or it cannot be made or written.
    """
    name = folder / f".probe-{socket.gethostname()}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        name.write_bytes(b"pdopt")
        name.unlink()
    except (FileExistsError, NotADirectoryError) as error:
        raise CheckpointError(f"{folder} cannot be a checkpoint folder: there is a file at {error.filename}") from error
    except OSError as error:
        with contextlib.suppress(OSError):
            name.unlink(missing_ok=True)
        raise CheckpointError(f"{folder} is not writable: {error.strerror}") from error


def _alive(pid: Any) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return True  # an unreadable holder is not known to be dead
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _describe(holder: dict[str, Any]) -> str:
    if not holder:
        return "another run"
    return f"process {holder.get('pid')} on {holder.get('host')} (since {holder.get('since', 'unknown')})"
