"""Lines that align, come at most so often, and never lose the last row; tables and numbers."""

import io
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.runtime.progress import COLUMNS, IterationLog, Progress, Silent, format_number, render_table

ROW = {
    "iter": 123456,
    "objective": -1234.5678901,
    "dual objective": 0.0,
    "gap": 1e-300,
    "primal residual": math.nan,
    "dual residual": math.inf,
    "step": jnp.float32(0.125),
    "time": 12.34,
}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def made(**settings) -> tuple[IterationLog, io.StringIO, Clock]:
    out, clock = io.StringIO(), Clock()
    return IterationLog(out, clock=clock, **settings), out, clock


def test_columns_align_whatever_the_numbers():
    log, out, _ = made(every=0.0)
    log.start()
    for row in (ROW, {**ROW, "objective": -1e300, "iter": 0}, {"iter": 5}):
        log.update(row)
    log.finish()
    header, *lines = out.getvalue().splitlines()
    assert header.endswith("time (s)")
    assert [c for c in COLUMNS if c in header] == list(COLUMNS)
    assert {len(line) for line in lines} == {len(header)}
    end = header.index("gap") + 3
    assert [line[:end].split()[-1] for line in lines] == ["1.00e-300", "1.00e-300", "-"]
    assert lines[0].split() == [
        "123456",
        "-1.2345679e+03",
        "0.0000000e+00",
        "1.00e-300",
        "nan",
        "inf",
        "1.25e-01",
        "12.3",
    ]


def test_lines_are_few_and_the_last_row_is_never_lost():
    log, out, clock = made(columns=("iter",), every=1.0)
    log.start(1000)
    for k in range(50):
        clock.now = 0.1 * k  # five seconds of a run, looked at ten times a second
        log.update({"iter": k})
    log.finish("Stopped.")
    lines = out.getvalue().split()
    assert lines[0] == "iter"
    assert len(lines) == 1 + 5 + 1 + 1
    assert lines[-2:] == ["49", "Stopped."]


def test_a_row_that_was_kept_is_not_repeated_and_a_log_can_start_again():
    log, out, _ = made(columns=("iter",))
    for _ in range(2):
        log.start()
        log.update({"iter": 1})
        log.finish()
    assert out.getvalue().split() == ["iter", "1"] * 2


def test_a_terminal_gets_a_live_line_and_the_same_kept_lines():
    out, clock = Terminal(), Clock()
    log = IterationLog(out, columns=("iter", "gap"), clock=clock)
    log.start(total_hint=200)
    log.update({"iter": 50, "gap": 1.0})
    clock.now = 0.3
    log.update({"iter": 100, "gap": 0.5})
    clock.now = 0.4
    log.update({"iter": 150, "gap": 0.25})  # neither kept nor drawn
    log.finish("Optimal [done].")
    text = out.getvalue()
    assert "100   5.00e-01   50 % of the limit" in text
    assert "75 %" not in text
    assert "150   2.50e-01" in text  # the last row, printed at the end
    assert "Optimal [done]." in text  # not read as markup


def test_standard_output_is_left_alone(capsys):
    log = IterationLog()
    log.start()
    log.update(ROW)
    log.finish("done")
    seen = capsys.readouterr()
    assert seen.out == ""
    assert seen.err.count("\n") == 3


def test_silence(capsys):
    listeners: list[Progress] = [Silent(), Silent()]
    for progress in listeners:
        progress.start(3)
        progress.update(ROW)
        progress.finish("done")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("value", "spec", "text"),
    [
        (None, "", "-"),
        (None, ".2e", "-"),
        (True, "", "yes"),
        (np.bool_(False), "", "no"),
        (1234567, "", "1234567"),
        (1234567, ".2e", "1.23e+06"),
        (np.int32(3), "d", "3"),
        (3.0, "d", "3"),
        (0.0, "", "0"),
        (0.0001, "", "0.0001"),
        (0.00001, "", "1e-05"),
        (999999.0, "", "999999"),
        (1e6, "", "1e+06"),
        (1 / 3, "", "0.333333"),
        (jnp.float32(0.5), ".3f", "0.500"),
        (math.nan, ".2e", "nan"),
        (-math.inf, "d", "-inf"),
        ("optimal", ".2e", "optimal"),
        (1 + 2j, "", "(1+2j)"),
    ],
)
def test_numbers(value, spec, text):
    assert format_number(value, spec) == text


def test_a_table_aligns_numbers_and_text():
    text = render_table(
        "Peers",
        ["solver", "iterations", "gap", "time (s)", "solved"],
        [
            ("pdopt", np.int64(1200), 1e-9, 0.25, True),
            {"solver": "other", "iterations": 7, "gap": None, "time (s)": 10.0},
        ],
        {"gap": ".1e"},
    )
    assert text.splitlines() == [
        "Peers",
        "solver  iterations      gap  time (s)  solved",
        "------  ----------  -------  --------  ------",
        "pdopt         1200  1.0e-09     0.250     yes",
        "other            7        -    10.000       -",
    ]


def test_a_column_of_floats_has_one_format():
    def column(*values):
        return [line.strip() for line in render_table("", ["v"], [(v,) for v in values]).splitlines()[2:]]

    assert column(1.5, 22.25) == ["1.50", "22.25"]
    assert column(0.001, 1.0) == ["0.00100", "1.00000"]
    assert column(1e-9, 1.0) == ["1.000e-09", "1.000e+00"]
    assert column(0.0, math.nan) == ["0.000", "nan"]


def test_an_empty_table_and_a_wrong_row():
    assert render_table("", ["a", "b"], []).splitlines() == ["a  b", "-  -"]
    with pytest.raises(ValueError, match="a row has 1 values; the table has 2 columns"):
        render_table("", ["a", "b"], [(1,)])


def test_rich_is_loaded_only_for_a_terminal():
    import subprocess

    code = "import sys, pdopt.runtime.progress as p, pdopt.runtime.checkpoints; "
    code += "print('rich' in sys.modules, 'orbax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False", "False"]
