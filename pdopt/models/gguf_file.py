"""GGUF files (llama.cpp's container, version 2 and 3): the header as Python values, tensors as views of the file.

    "GGUF", version, tensor count, key count;  keys (name, type, value);  tensors (name, shape, type, offset);  data

The `gguf` package reads a vocabulary of 49 152 tokens in 5 seconds, an array object for every string; one pass with
`struct` over the same bytes takes a tenth of one. What the blocks of each quantisation mean is left to that package.
"""

import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pdopt.errors import InvalidFile, InvalidOption

# Code of a value's type -> its struct format; 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
VERSIONS = (2, 3)
# Entries that are dequantised at once, about what a core's own cache holds in float32.
_GROUP = 1 << 16


class Stored(NamedTuple):
    """One tensor of a file: its shape (rows first, as in NumPy), the code of its type, its bytes."""

    shape: tuple[int, ...]
    kind: int
    data: np.ndarray

    def values(self) -> np.ndarray:
        """The numbers, float32, in the tensor's shape."""
        gguf = quantisations()
        kind = gguf.GGMLQuantizationType(self.kind)
        if self.kind == gguf.GGMLQuantizationType.F32:
            return self.data.view("<f4").reshape(self.shape)
        if self.kind == gguf.GGMLQuantizationType.F16:
            return self.data.view("<f2").reshape(self.shape).astype(np.float32)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        try:
            # `dequantize` takes sixteen rows at a time: rows of a few thousand entries spare it small calls.
            rows = max(1, len(self.data) // size * block * 16 // _GROUP)
            cut = len(self.data) // size // rows * rows * size
            parts = [gguf.dequantize(self.data[:cut].reshape(rows, -1), kind).reshape(-1)]
            if cut < len(self.data):
                parts.append(gguf.dequantize(self.data[cut:].reshape(1, -1), kind).reshape(-1))
        except NotImplementedError as error:
            raise InvalidOption(f"tensors of type {kind.name} cannot be read: {error}") from error
        return (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(self.shape)


class GGUFFile(NamedTuple):
    """The keys of a file and its tensors by name; the bytes of the tensors stay in the file until they are read."""

    path: Path
    keys: dict[str, Any]
    tensors: dict[str, Stored]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the default.

        Raises:
            InvalidFile: the key is absent and there is no default.
        """
        if key in self.keys:
            return self.keys[key]
        if default is None:
            raise InvalidFile(self.path, f"lacks the key {key}")
        return default


def quantisations() -> Any:
    """The package `gguf`.

    Raises:
        InvalidOption: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise InvalidOption("reading GGUF files needs the package gguf; install pdopt[gguf]") from error
    return gguf


def read_gguf(path: str | Path) -> GGUFFile:
    """The header of a GGUF file, with its tensors mapped and not read.

    Raises:
        InvalidFile: no such file, not GGUF, another version, or cut short.
        InvalidOption: a quantisation that the installed `gguf` does not know, or the package is not installed.
    """
    path = Path(path)
    sizes = quantisations().GGML_QUANT_SIZES
    if not path.is_file():
        raise InvalidFile(path, "no such file; expected a GGUF file")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InvalidFile(path, "not a GGUF file: it does not begin with GGUF")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        cursor = _Cursor(data, 4)
        version = cursor.scalar("I")
        if version not in VERSIONS:
            raise InvalidFile(path, f"has GGUF version {version}; read are {', '.join(map(str, VERSIONS))}")
        count, keys = cursor.scalar("Q"), cursor.scalar("Q")
        found = {cursor.string(): cursor.value(cursor.scalar("I")) for _ in range(keys)}
        entries = [_entry(cursor) for _ in range(count)]
    except (struct.error, UnicodeDecodeError, KeyError, OverflowError) as error:
        raise InvalidFile(path, f"not a whole GGUF file: its header breaks off at byte {cursor.at}") from error
    align = int(found.get("general.alignment", 32))
    start = -(-cursor.at // align) * align
    whole = np.frombuffer(data, np.uint8)
    tensors = {}
    for name, shape, kind, offset in entries:
        if kind not in sizes:
            raise InvalidOption(f"{path.name} has {name} in type {kind}, which the installed gguf does not know")
        block, size = sizes[kind]
        length = int(np.prod(shape, dtype=np.int64)) // block * size
        if start + offset + length > len(whole):
            raise InvalidFile(path, f"not a whole GGUF file: {name} ends after the file does")
        tensors[name] = Stored(shape, kind, whole[start + offset : start + offset + length])
    return GGUFFile(path, found, tensors)


class _Cursor:
    """A place in the header; each read moves it on."""

    def __init__(self, data: Any, at: int) -> None:
        self.data, self.at = data, at

    def scalar(self, code: str) -> Any:
        """One little-endian number."""
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        """Length, then UTF-8."""
        size = self.scalar("Q")
        text = self.data[self.at : self.at + size]
        if len(text) < size:
            raise struct.error("cut short")
        self.at += size
        return text.decode()

    def value(self, kind: int) -> Any:
        """A value of a type; arrays become lists."""
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        inner, count = self.scalar("I"), self.scalar("Q")
        if inner in (_STRING, _ARRAY):
            return [self.value(inner) for _ in range(count)]
        code = _SCALARS[inner]
        values = list(struct.unpack_from(f"<{count}{code}", self.data, self.at))
        self.at += count * struct.calcsize("<" + code)
        return values


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type and offset of one tensor; the file has the fastest axis first."""
    name, axes = cursor.string(), cursor.scalar("I")
    shape = tuple(cursor.scalar("Q") for _ in range(axes))[::-1]
    return name, shape, cursor.scalar("I"), cursor.scalar("Q")
