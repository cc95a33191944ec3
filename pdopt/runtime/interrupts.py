"""Ctrl-C and SIGTERM as a flag that is read between chunks, so that a long run can end with its state in hand.

Without it a Ctrl-C during a jitted chunk raises KeyboardInterrupt somewhere in the host loop and the state is lost.
The first signal only sets the flag; a second Ctrl-C raises at once, because the person at the keyboard has the last
word. Exit codes by convention: 128 + the signal's number (130 SIGINT, 143 SIGTERM).
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import jax


class StopFlag:
    """Whether, and by which signal, a stop was asked for.

    Attributes:
        signal: number of the first signal seen, None before.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self.signal: int | None = None

    @property
    def stopped(self) -> bool:
        """True once a signal has arrived or `stop` was called."""
        return self._event.is_set()

    def stop(self, number: int | None = None) -> None:
        """Ask for a stop; the first reason given is the one that is kept."""
        if not self._event.is_set():
            self.signal = number
            self._event.set()


@contextmanager
def stop_flag(
    signals: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM),
) -> Iterator[StopFlag]:
    """Turn the signals into a flag for the length of a `with` block; the handlers before it are put back at its end.

    Outside the main thread no handler can be installed and the flag simply stays down. When `jax.distributed` is
    initialised SIGTERM is left to JAX's preemption notifier, which tells all processes the same step to stop at. A
    handler that was not installed from Python is left alone, since it could not be put back.

    Raises:
        KeyboardInterrupt: inside the block, at a SIGINT that comes after the flag is up.

    Example:
        >>> with stop_flag() as flag:
        ...     signal.raise_signal(signal.SIGINT)
        ...     print(flag.stopped, flag.signal)
        True 2
    """
    flag = StopFlag()

    def seen(number: int, frame: FrameType | None) -> None:
        if flag.stopped and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.stop(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in signals:
            left_to_jax = number == signal.SIGTERM and jax.distributed.is_initialized()
            if not left_to_jax and signal.getsignal(number) is not None:
                before[number] = number
    try:
        for number in before:
            before[number] = signal.signal(number, seen)
        yield flag
    finally:
        for number, handler in before.items():
            if handler is not number:
                signal.signal(number, handler)
