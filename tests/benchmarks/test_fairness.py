"""The benchmark `fairness`: what is judged, what a missing library leaves open, and pdopt's engine; no timing."""

import json

import numpy as np
import pytest

from benchmarks import fairness
from benchmarks.__main__ import COMPARISONS
from benchmarks.fairness_data import HIDDEN, batches, first_weights
from benchmarks.fairness_engines import ROWS, Pdopt, check, rate_at, train


def answer(accuracy: float, gap: float, seconds: float) -> dict:
    curves = {"accuracy": [0.5, accuracy], "gap": [0.2, gap], "price": [0.0, 0.3]}
    return curves | {"seconds": [3 * seconds, seconds, seconds], "first": 1.0}


def records(cooper: bool = True) -> list[dict]:
    found = []
    for row in ROWS:
        found.append({"kind": "iterates", "row": row, "difference": 1e-7 if cooper else None})
        for seed, gap in enumerate((0.045, 0.052)):
            about = {"kind": "training", "row": row, "seed": seed}
            found.append(about | {"engine": "pdopt"} | fairness.record(answer(0.95, gap, 0.001)))
            if cooper:
                found.append(about | {"engine": "cooper"} | fairness.record(answer(0.94, gap, 0.004)))
    return found if cooper else [*found, {"kind": "training", "engine": "cooper", "outcome": "not installed"}]


def test_registered():
    assert COMPARISONS["fairness"] is fairness


def test_claims():
    found = {claim.promise: claim for claim in fairness.claims(records())}
    assert len(found) == 4 * len(ROWS)
    assert all(claim.holds for claim in found.values())
    speed = found["simultaneous: steps per CPU second over Cooper's"]
    assert speed.measured == pytest.approx(4.0)
    assert found["simultaneous: rate away from its limit 0.05, worst seed"].measured == pytest.approx(0.005)
    assert found["simultaneous: accuracy less Cooper's, mean of seeds"].measured == pytest.approx(0.01)
    broken = [r | ({"gap": 0.02} if r["kind"] == "training" else {"difference": 1.0}) for r in records()]
    failed = [claim.promise for claim in fairness.claims(broken) if claim.holds is False]
    assert len(failed) == 2 * len(ROWS)


def test_without_cooper_nothing_is_claimed_of_it(tmp_path):
    missing = records(cooper=False)
    judged = [claim for claim in fairness.claims(missing) if claim.holds is not None]
    assert [claim.promise.split(": ")[1][:4] for claim in judged] == ["rate"] * len(ROWS)
    (table,) = fairness.tables(missing)
    assert {row[-1] for row in table.rows if row[1] == "cooper"} == {"not installed"}
    picture = fairness.plot(missing, tmp_path / "gap.png")
    assert picture is not None
    assert picture.exists()


def test_batches_and_weights_are_seeded():
    rows = batches(10, 4, 5, seed=1)
    assert rows.shape == (5, 4)
    np.testing.assert_array_equal(rows, batches(10, 4, 5, seed=1))
    assert all(len(set(epoch.ravel())) == 8 for epoch in (rows[:2], rows[2:4])), "an epoch repeats nothing"
    weights = first_weights(7, seed=0)
    assert weights["in"].shape == (7, HIDDEN)
    assert (rate_at(0, 10), rate_at(10, 10)) == (1e-3, 0.0)


@pytest.mark.slow
def test_pdopts_engine_trains(tmp_path, monkeypatch):
    """On made-up applications whose smaller group is approved less: one chunk of a training, and the check's file."""
    rng = np.random.default_rng(0)
    minority = rng.random(300) < 0.4
    features = rng.standard_normal((300, 5)).astype(np.float32) - minority[:, None]
    data = {"features": features, "approved": features.sum(1) > -2, "minority": minority}
    monkeypatch.setattr("benchmarks.fairness_engines.CHECKED", 3)
    engine = Pdopt(data)
    try:
        assert check(engine, data, ROWS["alternating"], str(tmp_path / "found.npy")) == {"checked": 3}
    finally:
        import jax

        jax.config.update("jax_enable_x64", False)
    found = np.load(tmp_path / "found.npy")
    assert found.shape == (3, 5 * HIDDEN + HIDDEN + HIDDEN + 1 + 1)
    assert found.dtype == np.float64
    assert (found[0] != found[0].astype(np.float32)).mean() > 0.9, "float64 in name only"
    assert np.abs(np.diff(found, axis=0)).max() > 0
    trained = train(engine, data, ROWS["alternating, nuPI"], seed=0, steps=60)
    assert len(trained["gap"]) == 2
    assert trained["price"][-1] > 0
    json.dumps(trained)
