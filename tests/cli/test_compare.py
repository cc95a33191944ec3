"""The command compare: one start for all, runs that are not repeated, one table; on a model too small to learn."""

import json
import signal

import jax
import numpy as np
import pytest

from pdopt.cli.app import execute
from pdopt.errors import InvalidOption
from pdopt.training import comparing
from pdopt.training.comparing import compare, seeded
from pdopt.training.runs import open_run
from pdopt.training.trainer import train
from pdopt.training.variants import read_variants
from pdopt.types import Status
from tests.training import tiny

pytestmark = pytest.mark.usefixtures("quick_compiles")

COMPARISON = """
[[comparison]]
name = "held"
[[comparison]]
name = "plain"
weight = 0.0
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A file with a comparison, and where it is written."""
    folder = tmp_path_factory.mktemp("compare")
    made = tiny.recipe(folder / "run", training={"steps": 2}, evaluation={"others": [{"name": "two", "settings": {}}]})
    (folder / "tiny.toml").write_text(made.as_toml() + COMPARISON)
    return folder / "tiny.toml"


def test_entries_become_recipes(recipe):
    held, plain = read_variants(recipe)
    assert (held.name, plain.name, plain.slug) == ("held", "plain", "plain")
    assert held.recipe.constraints[0].step == 1.0
    fixed = plain.recipe.constraints[0]
    assert (fixed.step, fixed.theta, fixed.start, fixed.limit) == (0.0, 0.0, 0.0, 2.0)
    for text, words in (
        ('[[comparison]]\nname="x"\nchanges=["objective.los=1"]', "comparison.x: unknown key 'objective.los'"),
        ('[[comparison]]\nname="a b"\nweight=0\n[[comparison]]\nname="a-b"\nweight=1', "the same folder"),
        ('[[comparison]]\nname="a"\n[[comparison]]\nname="b"', "which change nothing"),
        ("", "names no comparison"),
    ):
        other = recipe.with_name("other.toml")
        other.write_text(recipe.read_text().replace(COMPARISON, "\n" + text))
        with pytest.raises(InvalidOption, match=words):
            read_variants(other)


@pytest.fixture(scope="module")
def stopped(recipe):
    """Ctrl-C after the supervised start."""
    return compare(read_variants(recipe), [0], say=lambda result: signal.raise_signal(signal.SIGINT))


@pytest.mark.slow
def test_a_stopped_comparison_goes_on_and_repeats_nothing(stopped, recipe, capsys, monkeypatch):
    assert (stopped.status, stopped.signal) == (Status.INTERRUPTED, signal.SIGINT)
    assert [result["method"] for result in stopped.results] == [comparing.TAUGHT]
    began = []
    monkeypatch.setattr(comparing, "train", lambda recipe, **more: began.append(recipe) or train(recipe, **more))
    assert execute(["compare", str(recipe), "--seeds", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["status"], found["planned"], len(began)) == ("finished", 3, 2)
    assert [run["method"] for run in found["runs"]] == [comparing.TAUGHT, "held", "plain"]
    assert found["runs"][0] == stopped.results[0]
    held, plain = (run["constraints"]["length"] for run in found["runs"][1:])
    assert held["multiplier"] > 0
    assert plain["multiplier"] == plain["multiplier_most"] == 0
    assert (held["limit"], held["sense"]) == (2.0, "at most")
    assert held["verdict"] == ("held" if held["value"] <= 2 else "near" if held["low"] <= 2 else "broken")
    assert 0 <= found["runs"][1]["others"]["two"]["value"] <= 1

    began.clear()
    assert execute(["compare", str(recipe), "--seeds", "1"]) == 0
    out, err = capsys.readouterr()
    assert began == []
    lines = out.splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("method"))
    assert lines[head].split()[:5] == ["method", "exact_match", "length", "<=", "2"]
    assert [line.split("  ")[0].strip() for line in lines[head + 2 : head + 5]] == ["supervised start", "held", "plain"]
    assert "seed 0, plain: exact_match" in err
    assert (recipe.parent / "run" / "compared" / "plot.png").stat().st_size > 10_000


def test_another_setting_is_another_comparison(stopped, recipe, capsys):
    assert execute(["compare", str(recipe), "--seeds", "1", "--set", "training.supervised_rate=0.5"]) == 2
    assert "holds a run with another training.supervised_rate" in capsys.readouterr().err


def test_a_run_from_the_shared_start_has_the_bits_of_one_that_is_taught_itself(stopped, recipe, tmp_path):
    compare(read_variants(recipe), [0])
    held = read_variants(recipe)[0].recipe
    alone = train(seeded(held, 0, tmp_path / "alone"), reporters=[])
    shared = open_run(recipe.parent / "run" / "compared" / "seed-0" / "held").state
    for one, other in zip(jax.tree.leaves(alone.state.trainable), jax.tree.leaves(shared.trainable), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(alone.state.constraints.y, shared.constraints.y)
