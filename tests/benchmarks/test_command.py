"""The command, run as a user runs it, on two tiny generated instances with a cheap peer."""

import json
import math
import sys
import time

import pytest

from benchmarks import harness, linear
from benchmarks.__main__ import main
from benchmarks.children import measured
from benchmarks.claims import Claim
from benchmarks.harness import Options, run_all, run_child
from benchmarks.instances import linear_instances
from benchmarks.solvers import SOLVERS, Solver

QUICK = ["linear", "--instances", "tiny", "--peers", "highs-simplex,highs-ipm", "--tolerances", "1e-4"]


@pytest.mark.multiprocess
def test_files_and_exit_code(tmp_path, capsys):
    assert main([*QUICK, "--output", str(tmp_path), "--strict"]) == 0  # no claim can be judged without pdopt
    folder = tmp_path / "linear"
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert len(records) == 4
    assert {record["outcome"] for record in records} == {"solved"}
    assert all(record["machine"]["python"] and record["versions"]["highspy"] for record in records)
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1  # CPU alone: simplex and interior steps are not compared
    assert (folder / "profile-cpu-0.0001.json").exists()
    claims = json.loads((folder / "claims.json").read_text())
    assert {claim["verdict"] for claim in claims} == {"not judged"}
    assert "not judged" in capsys.readouterr().out


@pytest.mark.multiprocess
def test_strict_fails_with_a_failed_claim(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(linear, "claims", lambda records, options: [Claim("impossible", 2.0, 1.0, "<=")])
    assert main([*QUICK, "--output", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["linear"]["claims"][0]["verdict"] == "fails"
    assert main([*QUICK, "--output", str(tmp_path), "--strict"]) == 1


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["--peers", "nobody"], ["--time-limit", "0"], ["--tolerances", "a"]]
)
def test_bad_arguments(arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2


def test_list(capsys):
    assert main(["--list"]) == 0
    assert "linear" in capsys.readouterr().out


def runs(tmp_path, **changes):
    options = Options(tmp_path, tolerances=(1e-4,), **changes)
    return run_all(linear_instances(tmp_path, False, 0, "tiny"), ("peer",), options, lambda line: None)


@pytest.mark.multiprocess
def test_budget_spent_is_a_row(tmp_path, monkeypatch):
    monkeypatch.setitem(SOLVERS, "peer", Solver("highs", {}, ("highspy",)))
    assert [record["outcome"] for record in runs(tmp_path, budget=0.0)] == ["cut", "cut"]


@pytest.mark.multiprocess
def test_a_child_that_dies_is_a_row(tmp_path, monkeypatch):
    # The child process reads its own registry, which does not know "peer": it ends before its first task.
    monkeypatch.setitem(SOLVERS, "peer", Solver("highs", {}, ("highspy",)))
    assert [record["outcome"] for record in runs(tmp_path)] == ["crash", "crash"]


def child(tmp_path, script, allowed=60.0, deadline=60.0):
    command = [sys.executable, "-c", script]
    return run_child(command, allowed, time.monotonic() + deadline, tmp_path / "log")[0]


HANGS = 'import signal; print(\'{"start": "a"}\', flush=True); signal.pause()'


@pytest.mark.multiprocess
def test_a_child_that_hangs_is_killed(tmp_path):
    assert "overran" in child(tmp_path, HANGS, allowed=0.1)["a"]


@pytest.mark.multiprocess
def test_a_child_that_takes_too_much_cpu_is_ended_by_the_system(tmp_path):
    script = "from benchmarks import worker; worker.say(start='a'); worker.limit_cpu(0.1)\nwhile True: pass"
    assert "overran" in child(tmp_path, script)["a"]


@pytest.mark.multiprocess
def test_the_deadline_of_the_run_cuts_a_task(tmp_path):
    # The deadline must leave the interpreter time to start, or no task is under way when it passes.
    assert child(tmp_path, HANGS, deadline=3.0) == {"a": {"cut": "time budget of the whole run"}}


@pytest.mark.multiprocess
def test_a_killed_child_is_a_crash(tmp_path):
    script = 'import os; print(\'{"start": "a"}\', flush=True); os.abort()'
    assert child(tmp_path, script)["a"] == {"crash": "the child process ended with code -6"}


def test_a_missing_peer_is_a_row(tmp_path, monkeypatch):
    monkeypatch.setitem(SOLVERS, "peer", Solver("highs", {}, ("highspy",)))
    monkeypatch.setattr(harness, "run_child", lambda *_: ({}, {"missing": "No module named 'peer'"}))
    records = runs(tmp_path)
    assert [record["outcome"] for record in records] == ["not installed", "not installed"]
    assert records[0]["detail"] == "No module named 'peer'"


def test_a_child_may_have_no_limit(tmp_path):
    """`--full` has none unless one is given."""
    path = tmp_path / "figures.json"
    path.write_text('{"cpu": 1.5}')
    assert measured("json.tool", ("--compact", str(path)), {"side": "own"}, math.inf) == {"side": "own", "cpu": 1.5}
