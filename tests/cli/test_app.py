"""The command as a process sees it: one JSON object in every outcome, one line for every error, no JAX for a typo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pdopt.problems.mps
import pdopt.problems.solution_file
from pdopt.cli.app import execute
from pdopt.cli.outcomes import Stopped

ROOT = Path(__file__).parents[2]
TWO = "NAME two\nROWS\n N cost\n L r\nCOLUMNS\n x cost -1 r 1\n y cost -1 r 2\nRHS\n b r 4\nBOUNDS\n"
OPTIMAL = TWO + " UP u x 3\n UP u y 3\nENDATA\n"
INFEASIBLE = OPTIMAL.replace("b r 4", "b r -4")
UNBOUNDED = OPTIMAL.replace("b r 4", "b r 4").replace("r 2", "r 0").replace(" UP u y 3\n", "")


@pytest.fixture
def model(tmp_path):
    def write(text):
        path = tmp_path / "two.mps"
        path.write_text(text)
        return str(path)

    return write


def raising(error):
    def read_model(*_, **__):
        raise error

    return read_model


OUTCOMES = {
    "optimal": (OPTIMAL, [], 0),
    "iteration_limit": (OPTIMAL, ["--tolerance", "1e-14", "--max-iterations", "3"], 3),
    "primal_infeasible": (INFEASIBLE, [], 4),
    "dual_infeasible": (UNBOUNDED, [], 4),
}


@pytest.mark.parametrize("status", OUTCOMES)
def test_one_object_whatever_the_status(model, capsys, status):
    text, options, code = OUTCOMES[status]
    assert execute(["solve", model(text), "--json", "--no-presolve", *options]) == code
    shown = capsys.readouterr()
    (line,) = shown.out.splitlines()
    found = json.loads(line)
    assert (found["status"], found["exit_code"]) == (status, code)
    assert found["problem"]["rows"] == 1
    assert found["problem"]["columns"] == 2
    assert all(value >= 0 for value in found["seconds"].values())
    assert {"primal", "dual", "gap"} == set(found["residuals"])
    assert shown.err.splitlines()[0].split()[0] == "iter"


@pytest.mark.parametrize(
    ("error", "status", "code", "words"),
    [
        (RuntimeError("a\nb"), "error", 1, "internal error, RuntimeError: a b (PDOPT_TRACEBACK=1 shows the traceback)"),
        (KeyboardInterrupt(), "interrupted", 130, "stopped by SIGINT; nothing was saved"),
        (Stopped(15), "interrupted", 143, "stopped by SIGTERM; nothing was saved"),
        (FileNotFoundError(2, "No such file", "x"), "error", 1, "internal error, FileNotFoundError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
@pytest.mark.parametrize("as_json", [False, True])
def test_one_line_and_one_object_whatever_goes_wrong(model, capsys, monkeypatch, error, status, code, words, as_json):
    monkeypatch.setattr(pdopt.problems.mps, "read_model", raising(error))
    assert execute(["solve", model(OPTIMAL), *(["--json"] if as_json else [])]) == code
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith(f"pdopt: {words}")
    assert len(shown.out.splitlines()) == as_json
    if as_json:
        assert json.loads(shown.out)["status"] == status


def test_the_traceback_is_shown_on_demand(model, capsys, monkeypatch):
    monkeypatch.setattr(pdopt.problems.mps, "read_model", raising(RuntimeError("broken")))
    monkeypatch.setenv("PDOPT_TRACEBACK", "1")
    assert execute(["solve", model(OPTIMAL)]) == 1
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert shown.splitlines()[-1] == "pdopt: internal error, RuntimeError: broken"


@pytest.mark.parametrize("as_json", [False, True])
def test_a_result_that_cannot_be_written_is_still_shown(model, capsys, monkeypatch, tmp_path, as_json):
    def full(path, text):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(pdopt.problems.solution_file, "write_atomic", full)
    target = tmp_path / "out.sol"
    options = ["--quiet", "--solution", str(target), *(["--json"] if as_json else [])]
    assert execute(["solve", model(OPTIMAL), *options]) == 1
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [f"pdopt: {target} cannot be written: No space left on device"]
    assert "-3.5" in shown.out
    if as_json:
        assert json.loads(shown.out)["status"] == "error"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["solve"], "Missing argument"),
        (["solve", "a.mps", "--tolerance", "small"], "--tolerance"),
        (["solve", "a.mps", "--max-iterations", "1.5"], "--max-iterations"),
        (["solve", "a.mps", "--resume"], "--resume needs --checkpoint"),
        (["solve", "a.mps", "b.mps"], "b.mps"),
        (["solve", "a.mps", "--solution", "absent/s.txt"], "there is no folder absent"),
        (["solve", "a.mps", "--plot", "a.jpeg"], "expected a name that ends in .png"),
        (["solve", "a.mps", "--history", "."], "which is a folder"),
    ],
)
def test_bad_arguments_are_one_line_and_one_object(capsys, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    for as_json in (False, True):
        assert execute([*arguments, *(["--json"] if as_json else [])]) == 2
        shown = capsys.readouterr()
        (line,) = shown.err.splitlines()
        assert words in line
        assert len(shown.out.splitlines()) == as_json
        if as_json:
            assert json.loads(shown.out)["message"] in line


@pytest.mark.parametrize("option", [["--tolerance", "0"], ["--time-limit", "-1"], ["--max-iterations", "0"]])
def test_numbers_out_of_range_are_refused(model, capsys, option):
    assert execute(["solve", model(OPTIMAL), *option]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{option[0].strip('-').replace('-', '_')} is {float(option[1]):g}"[:12] in line


def test_version(capsys):
    assert execute(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pdopt ")


def test_help_and_no_arguments(capsys):
    assert execute(["solve", "--help"]) == 0
    shown = capsys.readouterr().out
    for option in ("--method", "--tolerance", "--time-limit", "--max-iterations", "--dtype", "--json", "--solution",
                   "--checkpoint", "--resume", "--history", "--plot", "--quiet"):  # fmt: skip
        assert option in shown
    assert execute([]) == 2


@pytest.mark.multiprocess
def test_help_and_typing_errors_import_no_jax():
    code = (
        "import sys; from pdopt.cli.app import execute; import pdopt\n"
        "codes = [execute(a) for a in (['--help'], ['solve', '--help'], ['solve', 'x', '--tolerence', '1'],\n"
        "         ['solve', 'x', '--method', 'y'], ['--version'])]\n"
        "assert codes == [0, 0, 2, 2, 0], codes\n"
        "assert 'jax' not in sys.modules and 'numpy' not in sys.modules\n"
        "assert pdopt.solve.__name__ == 'solve' and 'jax' in sys.modules\n"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr


@pytest.mark.multiprocess
def test_the_module_is_the_command(tmp_path):
    """A process of its own: flags before JAX, the compilation cache in use, nothing but the object on its output."""
    (tmp_path / "two.mps").write_text(OPTIMAL)
    cache = tmp_path / "cache"
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, "-m", "pdopt", "solve", "two.mps", "--json", "--quiet"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    assert json.loads(found.stdout)["objective"] == pytest.approx(-3.5, abs=1e-5)
    assert any(cache.iterdir())
