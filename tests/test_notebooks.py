"""Every notebook runs from top to bottom, and the committed outputs belong to the committed text.

`python tests/test_notebooks.py` runs them all and writes the outputs beside the text.
"""

import os
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
TEXTS = sorted((ROOT / "notebooks").glob("*.py"))


def executed(text: Path) -> Any:
    """The notebook of a text file, run in a fresh kernel at the project's root."""
    notebook = jupytext.read(text)
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}})
    with client.setup_kernel(env=environment):
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
    for index, cell in enumerate(notebook.cells):
        # When a cell ran, and a random name for it, are of no interest and would change the file each time.
        cell.metadata.pop("execution", None)
        cell.id = f"cell-{index}"
    return notebook


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.stem)
def test_runs_without_errors(text: Path) -> None:
    outputs = [output for cell in executed(text).cells for output in cell.get("outputs", [])]
    assert outputs, "a notebook that shows nothing"
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.stem)
def test_the_committed_outputs_belong_to_the_text(text: Path) -> None:
    stored = nbformat.read(text.with_suffix(".ipynb"), as_version=4)
    source = jupytext.read(text)
    assert [(cell.cell_type, cell.source) for cell in stored.cells] == [(c.cell_type, c.source) for c in source.cells]
    assert all(cell.outputs or cell.execution_count for cell in stored.cells if cell.cell_type == "code")
    assert str(ROOT) not in text.with_suffix(".ipynb").read_text(), "a path of this machine in an output"


if __name__ == "__main__":
    for text in TEXTS:
        nbformat.write(executed(text), text.with_suffix(".ipynb"))
