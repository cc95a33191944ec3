"""Reports of a run: whole lines that survive a kill, steps taken back on resume, tables for people, trackers."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import types

import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.errors import CheckpointError, InvalidFile, InvalidOption
from pdopt.training.live_table import LiveTable, run_view
from pdopt.training.metric_files import MetricFiles, read_lines, samples_page
from pdopt.training.reporters import constraint_names, open_reporters, plain, several
from pdopt.training.trackers import TensorBoard, WeightsAndBiases


def values(step):
    return {
        "reward": step / 10, "entropy": 1.0, "constraint/length/value": 30.0 - step, "constraint/length/limit": 24.0,
        "constraint/length/violation": 6.0 - step, "constraint/length/multiplier": 0.25,
    }  # fmt: skip


SAMPLES = [
    {"prompt": "1+1=", "completion": "2\n```", "reward": 1.0},
    {"prompt": "2+2=", "completion": "5", "reward": 0.0},
]


class Heard:
    def __init__(self, fails=False):
        self.said, self.fails = [], fails

    def scalars(self, step, values):
        self.said.append((step, dict(values)))

    def text(self, step, table):
        self.said.append((step, list(table)))

    def close(self):
        self.said.append("closed")
        if self.fails:
            raise RuntimeError("no connection")


def test_several_tell_all_and_close_all():
    first, second = Heard(fails=True), Heard()
    reporter = several(first, second)
    reporter.scalars(1, {"reward": jnp.float32(0.5), "bad": np.int64(2)})
    reporter.text(1, SAMPLES)
    with pytest.raises(RuntimeError, match="no connection"):
        reporter.close()
    assert first.said == second.said == [(1, {"reward": 0.5, "bad": 2}), (1, SAMPLES), "closed"]
    assert type(first.said[0][1]["reward"]) is float
    for wrong in (np.zeros(2), "1", None):
        with pytest.raises((TypeError, ValueError)):
            plain({"reward": wrong})


def test_lines_are_json_and_what_is_not_finite_is_null(tmp_path):
    files = MetricFiles(tmp_path)
    files.scalars(1, {"reward": math.nan, "kl_k3": math.inf, "length": 3, "skipped": False})
    files.text(1, [{"completion": "\u00e9\n\ud800", "reward": math.nan, "ids": [1, 2]}])
    files.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"step": 1, "reward": null, "kl_k3": null, "length": 3, "skipped": false}\n'
    (sample,) = read_lines(tmp_path / "samples.jsonl")
    assert sample["completion"].startswith("\u00e9\n")
    assert sample["reward"] is None


def test_a_resumed_run_takes_back_later_steps_and_reads_as_one(tmp_path):
    def run(folder, steps, resume=None):
        files = MetricFiles(folder, resume=resume)
        for step in steps:
            files.scalars(step, values(step))
            files.text(step, SAMPLES)
        files.close()

    run(tmp_path / "whole", range(1, 7))
    run(tmp_path / "parts", range(1, 6))
    with (tmp_path / "parts" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 6, "rew')  # a crash in the middle of a line
    run(tmp_path / "parts", range(4, 7), resume=4)
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    pages = [sorted(page.name for page in (tmp_path / run / "samples").iterdir()) for run in ("whole", "parts")]
    assert pages[0] == pages[1] == [f"step-{step:06d}.md" for step in range(1, 7)]
    MetricFiles(tmp_path / "parts", resume=3).close()
    assert [row["step"] for row in read_lines(tmp_path / "parts" / "metrics.jsonl")] == [1, 2]
    assert len(list((tmp_path / "parts" / "samples").iterdir())) == 2


def test_a_new_run_does_not_write_over_an_old_one(tmp_path):
    files = MetricFiles(tmp_path)
    files.scalars(1, values(1))
    files.close()
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl holds 1 lines of another run"):
        MetricFiles(tmp_path)
    with pytest.raises(CheckpointError, match="resume it, or give another folder"):
        open_reporters(["table"], tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"reward": 1}\n')
    with pytest.raises(InvalidFile, match="a line tells no step"):
        MetricFiles(tmp_path, resume=1)


def test_a_killed_run_leaves_whole_lines(tmp_path):
    code = f"""
        from pdopt.training.metric_files import MetricFiles
        files = MetricFiles({str(tmp_path)!r})
        for step in range(10**9):
            files.scalars(step, {{"reward": 0.5, "text": "x" * 500}})
            if step == 50:
                print("go", flush=True)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    with child:
        assert child.stdout.readline() == b"go\n"
        child.send_signal(signal.SIGKILL)
    rows = read_lines(tmp_path / "metrics.jsonl")
    assert len(rows) > 50
    assert [row["step"] for row in rows] == list(range(len(rows)))
    assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"}\n")


def test_broken_lines_are_named(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    with pytest.raises(InvalidFile, match=r"metrics.jsonl, line 2: not JSON"):
        read_lines(file)
    file.write_text("[1]\n")
    with pytest.raises(InvalidFile, match="line 1: a list"):
        read_lines(file)
    with pytest.raises(InvalidFile, match="cannot be read"):
        read_lines(tmp_path / "absent.jsonl")


def test_a_page_of_samples_holds_texts_that_hold_fences():
    page = samples_page(12, SAMPLES)
    assert "````text\n2\n```\n````" in page
    assert "- reward: 0.0" in page
    assert page.startswith("# Samples of step 12\n\n## 1\n")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(view):
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=120).print(view)
    return out.getvalue()


def test_the_table_shows_each_constraint_with_its_multiplier():
    rows = {
        **values(2), "kl_k3": 0.01, "constraint/a/b/value": 0.9, "constraint/a/b/limit": 0.8,
        "constraint/a/b/violation": -0.1, "constraint/a/b/multiplier": math.nan, "other": 3.0,
    }  # fmt: skip
    assert constraint_names(rows) == ["length", "a/b"]
    text = shown(run_view(2, rows, total=8, elapsed=3.0))
    lines = text.splitlines()
    assert lines[0].startswith("step 2 of 8   3 s   about 9 s left")
    (length,) = [line for line in lines if line.startswith("length ")]
    assert [cell.strip() for cell in length.replace("\u2502", "|").split("|")] == [
        "length",
        "28",
        "24",
        "4",
        "0.25",
        "broken",
    ]
    (other,) = [line for line in lines if line.startswith("a/b")]
    assert "nan" in other
    assert other.rstrip().endswith("held")
    assert "other" not in text


def test_a_terminal_gets_a_live_table_and_samples_above_it():
    out = Terminal()
    table = LiveTable(out, total=3)
    table.scalars(1, values(1))
    table.text(1, SAMPLES)
    table.scalars(2, {"evaluation/accuracy": 0.5})
    table.close()
    text = out.getvalue()
    assert "sample 2" in text
    assert "completion: '5'" in text
    assert "accuracy" in text
    assert text.index("sample 1") < text.rindex("multiplier")


def test_elsewhere_lines_are_written_at_most_every_so_often_and_the_last_one_always():
    out, now = io.StringIO(), [0.0]
    table = LiveTable(out, every=10.0, clock=lambda: now[0])
    for step in range(1, 8):
        now[0] = 3.0 * step
        table.scalars(step, values(step))
    table.text(7, [{"completion": "x" * 1000, "reward": 1.0}])
    table.close()
    lines = out.getvalue().splitlines()
    assert lines[0].split() == ["iter", "reward", "entropy", "length", "y", "length", "time", "(s)"]
    assert [line.split()[0] for line in lines if line.strip()[:1].isdigit()] == ["1", "5", "7"]
    assert "(1002 characters)" in out.getvalue()


def test_trackers_that_are_not_installed_say_what_to_install(tmp_path, monkeypatch):
    for module in ("tensorboard", "tensorboard.summary.writer.event_file_writer", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
    for name, package in (("tensorboard", "tensorboard"), ("wandb", "wandb")):
        with pytest.raises(InvalidOption, match=f"pip install {package}"):
            open_reporters([name], tmp_path / name)
    with pytest.raises(InvalidOption, match="unknown reporter 'tensorbord'; did you mean 'tensorboard'"):
        open_reporters(["tensorbord"], tmp_path)


def test_tensorboard_reads_what_was_written_and_forgets_what_was_taken_back(tmp_path):
    pytest.importorskip("tensorboard", reason="the optional package tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps, resume in [(range(1, 6), None), (range(3, 5), 3)]:
        board = TensorBoard(tmp_path, resume=resume)
        for step in steps:
            board.scalars(step, {"reward": step + (100.0 if resume else 0.0), "missing": math.nan})
            board.text(step, SAMPLES)
        board.close()
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("reward")] == [(1, 1), (2, 2), (3, 103), (4, 104)]
    assert "missing" not in read.Tags()["scalars"]
    assert b"# Samples of step 4" in read.Tensors("samples")[-1].tensor_proto.string_val[0]


def test_weights_and_biases_gets_our_steps_and_continues_its_run(tmp_path, monkeypatch):
    calls = []

    class Run:
        id = "abc"

        def define_metric(self, *names, **settings):
            calls.append(("define", names, settings))

        def log(self, row):
            calls.append(("log", row))

        def finish(self):
            calls.append(("finish",))

    def init(**settings):
        calls.append(("init", settings))
        return Run()

    fake = types.SimpleNamespace(init=init, Table=lambda columns, data: (columns, data))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    reporter = WeightsAndBiases(tmp_path, config={"a": 1})
    reporter.scalars(3, {"reward": 0.5})
    reporter.text(3, SAMPLES)
    reporter.close()
    assert calls[0] == ("init", {"dir": str(tmp_path), "config": {"a": 1}, "id": None, "resume": "allow"})
    assert ("define", ("*",), {"step_metric": "step"}) in calls
    assert ("log", {"step": 3, "reward": 0.5}) in calls
    assert calls[-2][1]["samples"] == (
        ["prompt", "completion", "reward"],
        [list(sample.values()) for sample in SAMPLES],
    )
    assert calls[-1] == ("finish",)
    WeightsAndBiases(tmp_path, resume=True)
    assert [call[1]["id"] for call in calls if call[0] == "init"] == [None, "abc"]
    assert json.loads((tmp_path / "wandb-run.json").read_text()) == {"id": "abc"}
