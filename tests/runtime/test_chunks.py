"""Pacing with made clocks: the machine is a number of seconds an iteration."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdopt.errors import InvalidOption
from pdopt.runtime.chunks import Pace

DEFAULT = Pace()


def lengths(rate: float, looks: int = 40, pace: Pace = DEFAULT) -> list[int]:
    """Chunk lengths on a machine that takes `rate` seconds an iteration."""
    k, out = pace.first, []
    for _ in range(looks):
        out.append(k)
        k = pace.next(k, k * rate)
    return out


def test_doubles_until_a_chunk_is_long_enough():
    assert lengths(1e-4, 6) == [64, 128, 256, 512, 512, 512]  # 512 x 0.1 ms = 51 ms
    assert lengths(1e-7)[-1] == 64 * 2**13  # 52 ms
    assert Pace().next(64, 0.0) == 128
    assert Pace().next(64, -1.0) == 128
    assert Pace().next(64, math.nan) == 128
    assert Pace().next(0, 0.01) == 2
    assert Pace().next(2**30, 0.0) == 2**30
    assert Pace().next(64, math.inf) == 1


def test_shortens_what_takes_too_long():
    assert lengths(0.02, 3) == [64, 25, 25]
    assert lengths(3.0, 3) == [64, 1, 1]


@given(st.floats(1e-7, 100.0), st.integers(1, 10**6))
def test_settles_between_the_two_times(rate, first):
    """On a steady machine the last chunk lies in [least, most], unless a single iteration is longer than that."""
    pace = Pace(first=first)
    ends = lengths(rate, 40, pace)[-2:]
    assert ends[0] == ends[1]
    assert ends[1] * rate <= pace.most * (1 + 1e-12) or ends[1] == 1
    assert ends[1] * rate >= pace.least


@given(st.integers(1, 10**9), st.floats(0, 1e6))
def test_the_next_chunk_is_never_predicted_to_be_too_long_and_never_more_than_double(k, seconds):
    pace = Pace()
    following = pace.next(k, seconds)
    assert 1 <= following <= 2 * k
    assert following == 1 or seconds * following / k <= max(pace.most, 2 * pace.least) * (1 + 1e-12)


def test_a_slow_spell_is_forgotten():
    pace = Pace()
    assert pace.next(pace.next(1000, 2.0), 0.02) == 500


def test_a_time_limit_shortens_the_last_chunk():
    pace = Pace()
    assert pace.within(1000, 1e-3, 0.25) == 250
    assert pace.within(1000, 1e-3, 10.0) == 1000
    assert pace.within(1000, 1e-3, -1.0) == 1
    assert pace.within(1000, 0.0, 1.0) == 1000
    assert pace.within(1000, 5e-324, 1.0) == 1000
    assert pace.within(1000, 1e-3, math.inf) == 1000


def test_settings_are_checked():
    assert Pace().check() == Pace()
    for pace, name in ((Pace(first=0), "first"), (Pace(least=0.0), "least"), (Pace(most=0.06), "most")):
        with pytest.raises(InvalidOption, match=name):
            pace.check()
