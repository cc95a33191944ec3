"""Free pages of the heap go back to the system: after programs were compiled, and only then."""

import ctypes
from pathlib import Path

import pytest

from pdopt.runtime import heap


def resident() -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1])


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_freed_blocks_below_a_kept_one_go_back():
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.free.argtypes = [ctypes.c_void_p]
    blocks = [library.malloc(100_000) for _ in range(600)]  # below the size that is mapped by itself
    for block in blocks:
        ctypes.memset(block, 1, 100_000)
    for block in blocks[:-1]:
        library.free(block)
    before = resident()
    assert heap.give_back()
    assert resident() < before - 30_000
    library.free(blocks[-1])


def test_another_c_library_is_no_error(monkeypatch):
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())
    assert heap.give_back() is False


def test_it_looks_when_programs_were_added(monkeypatch):
    calls = []
    monkeypatch.setattr(heap, "give_back", lambda: calls.append(1) or True)
    after = heap.AfterCompiling()
    assert [after.look(count) for count in (0, 1, 1, 3)] == [False, True, False, True]
    assert len(calls) == 2
