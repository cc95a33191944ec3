"""A run with a budget of KL to its supervised start: measured on held-out prompts, by the run and when opened again."""

import pytest

from pdopt.training.evaluating import evaluate_policy
from pdopt.training.runs import open_run
from pdopt.training.trainer import train
from tests.training import tiny

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.mark.slow
def test_divergence_is_measured_on_held_out_prompts(tmp_path):
    constraints = [{"name": "kl", "limit": 0.01}, {"name": "length", "limit": 2.0}]
    trained = train(tiny.recipe(tmp_path / "run", constraints=constraints), reporters=[])
    found = trained.evaluation.scalars
    assert found["evaluation/constraint/kl/value"] == found["evaluation/kl"]
    assert found["evaluation/constraint/kl/limit"] == pytest.approx(0.01)
    assert found["evaluation/kl_k3"] > 0
    opened = open_run(tmp_path / "run")
    again = evaluate_policy(opened.prepared, opened.model, opened.step, reference=opened.reference)
    assert again.scalars == pytest.approx(found, abs=1e-6)
    itself = evaluate_policy(opened.prepared, opened.reference, 0, reference=opened.reference)
    assert itself.scalars["evaluation/kl"] == pytest.approx(0, abs=1e-6)
    assert "evaluation/kl" not in evaluate_policy(opened.prepared, opened.model, 0).scalars
