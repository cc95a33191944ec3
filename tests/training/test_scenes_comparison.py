"""`pdopt compare scenes` on three seeds: plain GRPO drops the trace, multipliers keep it at a better accuracy."""

import pytest

from pdopt.training.comparing import TAUGHT, compare
from pdopt.training.variants import read_variants
from pdopt.types import Status

PLAIN, HELD = "plain GRPO", "multipliers"


@pytest.mark.slow
def test_what_plain_grpo_breaks_is_held_at_a_better_accuracy(tmp_path):
    """Held-out figures of every seed, with the margins of the benchmark `faithful`; some ten minutes of processor."""
    changes = [f"training.folder={tmp_path}", "training.reporters=['jsonl']"]
    variants = [v for v in read_variants("scenes", changes) if v.name in (PLAIN, HELD)]
    found = compare(variants, [0, 1, 2])
    assert found.status == Status.OPTIMAL
    for seed in range(3):
        runs = {run["method"]: run for run in found.results if run["seed"] == seed}
        value = lambda method, name, runs=runs: runs[method]["constraints"][name]["value"]
        taught, plain, held = (runs[name]["reward"]["value"] for name in (TAUGHT, PLAIN, HELD))
        assert value(TAUGHT, "consistency") >= 0.85
        assert 0.45 <= value(TAUGHT, "grounding") <= 0.55
        assert plain >= 0.87 > taught
        assert value(PLAIN, "consistency") <= 0.65
        assert value(HELD, "consistency") >= 0.94
        assert runs[HELD]["constraints"]["consistency"]["late"] >= 0.95
        assert value(HELD, "grounding") >= 0.97
        assert held >= plain + 0.04
        unhinted = lambda method, runs=runs: runs[method]["others"]["hint tells nothing"]["value"]
        assert unhinted(HELD) >= unhinted(PLAIN) + 0.4
