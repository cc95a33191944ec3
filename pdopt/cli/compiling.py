"""Seconds spent on compiling, told apart from running: JAX reports when each trace, lowering and compilation ran."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_COMPILING = "/jax/core/compile/"


@contextmanager
def compile_clock() -> Iterator[Callable[[], float]]:
    """A function that gives the seconds compiled so far inside the block; traces inside of traces count once.

    Example:
        >>> import jax
        >>> with compile_clock() as seconds:
        ...     found = jax.jit(lambda x: 3 * x + 1)(2.0)
        >>> seconds() > 0
        True
    """
    import jax

    spans: list[tuple[float, float]] = []

    def seen(event: str, start: float, end: float, **more: Any) -> None:
        if event.startswith(_COMPILING):
            spans.append((start, end))

    jax.monitoring.register_event_time_span_listener(seen)
    try:
        yield lambda: union(spans)
    finally:
        jax.monitoring.unregister_event_time_span_listener(seen)


def union(spans: list[tuple[float, float]]) -> float:
    """The length of a union of intervals.

    Example:
        >>> union([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0)])
        4.0
    """
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
