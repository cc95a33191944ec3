"""The README's Python runs as it stands, and it holds exactly the two commands that CI reads from it."""

import gzip
import importlib.util
import re
from pathlib import Path

import jax
import numpy as np

# The small language model of the tests beside the models; test modules are imported by path.
_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parent / "models" / "tiny.py")
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)

README = (Path(__file__).parent.parent / "README.md").read_text()
MODEL = """NAME SMALL
ROWS
 N cost
 L r1
COLUMNS
 x cost -1 r1 1
 y cost -1 r1 2
RHS
 RHS r1 4
BOUNDS
 UP BND x 3
 UP BND y 3
ENDATA
"""


def test_its_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afiro.mps.gz").write_bytes(gzip.compress(MODEL.encode()))
    tiny.write_folder(tmp_path / "model", tiny.write_gguf(tmp_path / "tiny.gguf"))
    names = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
    assert "Optimal" in capsys.readouterr().out
    # min -x1 - 2 x2 with x1 + 2 x2 <= 4: the first row's right-hand side is worth -1, the second's nothing.
    np.testing.assert_allclose(np.asarray(names["prices"]), [-1.0, 0.0], atol=1e-3)
    assert names["values"].shape == (8,)
    assert isinstance(names["values"], jax.Array)
    assert names["logits"].shape == (*names["ids"].shape, tiny.CONFIG.vocabulary)
    assert names["rollout"].mask.all()


def test_it_holds_two_commands():
    commands = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith("python -m benchmarks linear")
    assert "pytest" in commands[1]
