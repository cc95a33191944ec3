"""Writing a file whole or not at all: a reader sees the old contents or the new, never a part."""

import contextlib
import os
from pathlib import Path


def write_atomic(path: str | Path, text: str) -> None:
    """Write UTF-8 text to a new file in the same folder, force it to disk, then put it in place of `path`.

    A crash or error at any moment leaves what was at `path` before; an error also removes the new file. A symbolic
    link stays one: the file that it names is replaced.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomic(Path(folder) / "a.txt", "done")
        ...     print(*(f"{file.name}: {file.read_text()}" for file in Path(folder).iterdir()))
        a.txt: done
    """
    target = Path(os.path.realpath(path))
    new = target.with_name(f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}.new")
    try:
        with new.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        raise
    folder = os.open(target.parent, os.O_RDONLY)  # the change of name is data of the folder
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
