"""The package's public face: every name exists, nothing heavy is imported before one is used."""

import subprocess
import sys
from pathlib import Path

import pytest

import pdopt

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", pdopt.__all__)
def test_public_names_exist(name):
    assert getattr(pdopt, name) is not None
    assert name in dir(pdopt)


def test_the_list_is_sorted_and_complete():
    assert set(pdopt.__all__) == set(pdopt._HOMES)
    with pytest.raises(AttributeError, match="module 'pdopt' has no attribute 'slove'"):
        pdopt.slove  # noqa: B018  # pyright: ignore


@pytest.mark.multiprocess
def test_importing_is_light_and_leaves_jax_alone():
    code = (
        "import sys, pdopt\n"
        "assert 'jax' not in sys.modules\n"
        "import pdopt.solve, pdopt.run\n"
        "assert callable(pdopt.solve) and callable(pdopt.run) and pdopt.errors.InvalidProblem\n"
        "from pdopt import *\n"
        "import jax\n"
        "assert not jax.config.jax_enable_x64 and not jax.live_arrays()\n"
        "heavy = {'highspy', 'rich', 'orbax', 'typer', 'matplotlib', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
