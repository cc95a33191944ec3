"""Signals become a flag for the length of a block (row 38)."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import jax
import pytest

from pdopt.runtime.interrupts import stop_flag

ROOT = Path(__file__).parents[2]
BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", BOTH)
def test_the_first_signal_sets_the_flag_and_the_handlers_come_back(number):
    before = [signal.getsignal(s) for s in BOTH]
    with stop_flag() as flag:
        assert (flag.stopped, flag.signal) == (False, None)
        signal.raise_signal(number)
        assert (flag.stopped, flag.signal) == (True, number)
    assert [signal.getsignal(s) for s in BOTH] == before


def test_the_second_ctrl_c_raises_and_the_handlers_come_back():
    before = [signal.getsignal(s) for s in BOTH]
    with pytest.raises(KeyboardInterrupt), stop_flag() as flag:  # noqa: PT012
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # a launcher may repeat itself
        assert flag.signal == signal.SIGTERM
        signal.raise_signal(signal.SIGINT)
    assert flag.signal == signal.SIGTERM  # the first reason is kept
    assert [signal.getsignal(s) for s in BOTH] == before


def test_blocks_may_be_nested():
    with stop_flag() as outer:
        with stop_flag() as inner:
            signal.raise_signal(signal.SIGINT)
        assert inner.stopped
        assert not outer.stopped
        signal.raise_signal(signal.SIGINT)
        assert outer.stopped


def test_a_flag_can_be_raised_by_hand():
    with stop_flag() as flag:
        flag.stop()
        assert (flag.stopped, flag.signal) == (True, None)


def test_outside_the_main_thread_no_handler_is_installed():
    seen = []

    def work():
        with stop_flag() as flag:
            seen.append((flag.stopped, [signal.getsignal(s) for s in BOTH]))

    before = [signal.getsignal(s) for s in BOTH]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert seen == [(False, before)]


def test_sigterm_is_left_to_jax_in_a_distributed_run(monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    before = signal.getsignal(signal.SIGTERM)
    with stop_flag() as flag:
        assert signal.getsignal(signal.SIGTERM) is before
        signal.raise_signal(signal.SIGINT)
        assert flag.signal == signal.SIGINT


def test_a_handler_that_is_not_pythons_is_left_alone(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGTERM else signal.SIG_DFL)
    with stop_flag():
        monkeypatch.undo()
        assert signal.getsignal(signal.SIGTERM) is before


LOOP = """
    import jax, jax.numpy as jnp, sys
    from pdopt.runtime.interrupts import stop_flag
    chunk = jax.jit(lambda x: jax.lax.fori_loop(0, 1000, lambda _, v: v * 0.999 + 0.001, x))
    x = chunk(jnp.zeros(10))
    with stop_flag() as flag:
        print("ready", flush=True)
        while not (flag.stopped and sys.argv[1] == "once"):
            x = jax.block_until_ready(chunk(x))
            if flag.stopped:
                print("seen", flush=True)
    print("best", float(x[0]), flush=True)
    sys.exit(128 + flag.signal)
"""


def looping(mode: str) -> subprocess.Popen:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", textwrap.dedent(LOOP), mode],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "ready"
    return process


@pytest.mark.multiprocess
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_looping_child_ends_with_its_state(number, code):
    process = looping("once")
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err[-2000:]
    assert float(out.split("best")[1]) > 0
    assert err == ""


@pytest.mark.multiprocess
def test_a_child_that_does_not_listen_ends_at_the_second_ctrl_c():
    process = looping("never")
    os.kill(process.pid, signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "seen"
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    assert "KeyboardInterrupt" in err
