"""The memory of the C heap that compiling leaves behind.

XLA frees what it compiled with, hundreds of megabytes for a training step, but glibc keeps it for later requests, so
that the process stays as large as it was while compiling. `malloc_trim` gives whole free pages back to the system.
"""

import ctypes


def give_back() -> bool:
    """Give free pages of the C heap back to the system; whether there were any (False: none, or not glibc).

    Example:
        >>> give_back() in (True, False)
        True
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, or no shared one
        return False
    return bool(trim(0))


class AfterCompiling:
    """Gives free pages back whenever the number of programs has grown since it looked last.

    Example:
        >>> heap = AfterCompiling()
        >>> heap.look(1), heap.look(1)
        (True, False)
    """

    def __init__(self) -> None:
        self.programs = 0

    def look(self, programs: int) -> bool:
        """Whether there were new programs, after which the heap was trimmed."""
        grown = programs > self.programs
        if grown:
            self.programs = programs
            give_back()
        return grown
