"""The benchmark `training`: what is judged, and that the two engines are read alike; no timing."""

import numpy as np
import pytest

from benchmarks import training
from benchmarks.__main__ import COMPARISONS
from benchmarks.training_models import GROUP, PROMPTS, even_share, fixed_batch, word_tokenizer


def answers(rollout: float, update: float, peak: float) -> list[dict]:
    """A check, a step that compiles, two steps."""
    step = lambda factor: {
        "rollout": factor * rollout, "update": factor * update, "step": factor * (rollout + update), "peak_mb": peak,
        "tokens": 4096.0,
    }  # fmt: skip
    return [{"loss": -0.5}, step(20), step(1.5), step(1)]


@pytest.fixture
def records() -> list[dict]:
    return [
        training.record("pdopt", {"loaded_mb": 100.0, "versions": {}}, answers(0.2, 0.4, 300.0), None),
        training.record("trl", {"loaded_mb": 200.0, "versions": {}}, answers(0.6, 0.6, 500.0), None),
    ]


def save(folder, engine: str, gradient: dict, updated: dict) -> None:
    from safetensors.numpy import save_file

    for place, tree in zip(training.files(folder, engine), (gradient, updated)):
        if engine == "pdopt":
            place.mkdir()
            place = place / "model.safetensors"
        save_file(tree, place)


def test_registered():
    assert COMPARISONS["training"] is training


def test_the_first_step_is_apart_and_the_best_counts(records):
    assert records[0]["step"] == pytest.approx(0.6)
    assert records[0]["step_median"] == pytest.approx(0.75)
    assert records[0]["first"] == pytest.approx(12.0)
    assert training.ratio(records, "step") == pytest.approx(2.0)
    assert training.ratio(records, "update") == pytest.approx(1.5)


def test_claims_of_memory_are_shares_of_the_peer(records):
    found = {claim.promise: claim for claim in training.claims(records)}
    assert found["pdopt's peak memory over TRL's, whole process"].measured == pytest.approx(0.6)
    assert found["pdopt's peak memory over TRL's, beyond the loaded model"].measured == pytest.approx(200 / 300)


def test_a_gradient_that_differs_fails(tmp_path, records):
    from safetensors.numpy import save_file

    start = {"w": np.zeros(4, np.float32)}
    save_file(start, tmp_path / "model.safetensors")
    same = {"w": np.ones(4, np.float32)}
    save(tmp_path, "pdopt", same, same)
    save(tmp_path, "trl", {"w": np.array([1, 1, 1, 1.01], np.float32)}, same)
    training.compare(tmp_path, records)
    verdicts = {claim.promise.split(", ")[-1]: claim.verdict for claim in training.claims(records)}
    assert verdicts["its gradient"] == "fails"
    assert verdicts["its AdamW update"] == "holds"
    assert verdicts["loss of a fixed batch"] == "holds"
    assert training.distance(same, {"v": same["w"]}) == float("inf")


def test_without_the_peer_nothing_is_claimed(records):
    absent = training.record("trl", {}, [], "not installed")
    found = training.claims([records[0], absent])
    assert all(claim.verdict == "not judged" for claim in found)
    assert all("trl: not installed" in claim.note for claim in found)
    assert training.table([records[0], absent]).rows[1][-1] == "not installed"


def test_the_fixed_batch_is_padded_on_its_outer_sides():
    batch = fixed_batch()
    assert len(batch["advantage"]) == PROMPTS * GROUP
    assert batch["valid"][:, -1].all()
    assert not batch["valid"].all()
    assert batch["mask"][:, 0].all()
    assert (np.diff(batch["mask"].astype(int), axis=1) <= 0).all()


def test_a_token_is_a_word():
    tokenizer = word_tokenizer()
    assert tokenizer("w5 w9 w500")["input_ids"] == [5, 9, 500]
    assert tokenizer.decode([5, 9]) == "w5 w9"
    assert even_share(None, None, [[2, 4, 5, 7], []]) == [0.5, 0.0]
