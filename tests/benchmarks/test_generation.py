"""The generation benchmark's claims, tables and children; its figures are measured by the benchmark itself."""

import json
import sys

import numpy as np
import pytest

from benchmarks import generation_memory, generation_refill, generation_speed
from benchmarks.generation_engines import _Numbers
from benchmarks.generation_speed import Engine, claims, compare, plot, ratio, tables

CASE = "width 128 x 4"


def record(engine, rate=100.0, mode="greedy", batch=16, **more):
    seconds = batch * generation_speed.NEW / rate
    return {
        "case": CASE, "batch": batch, "mode": mode, "engine": engine, "new": generation_speed.NEW, "outcome": "done",
        "rate": rate, "rate_median": 0.9 * rate, "cpu": seconds, "compile_cpu": 1.0, "peak_mb": 100.0, **more,
    }  # fmt: skip


def test_the_worse_mode_is_claimed():
    records = [
        record("pdopt", 400), record("transformers", 100), record("tunix", 500),
        record("pdopt", 250, "sampled"), record("transformers", 100, "sampled"), record("tunix", 100, "sampled"),
    ]  # fmt: skip
    assert ratio(records, CASE, 16, "transformers") == 2.5
    found = {claim.promise: claim for claim in claims(records)}
    torch = found[f"new tokens per CPU second over transformers's, {CASE}, batch 16"]
    tunix = found[f"new tokens per CPU second over tunix's, {CASE}, batch 16"]
    assert (torch.measured, torch.required, torch.holds) == (2.5, 3.0, False)
    assert (tunix.measured, tunix.required, tunix.holds) == (0.8, 1.0, False)
    assert "by medians 2.5" in torch.note


def test_an_absent_peer_is_said_and_not_judged():
    absent = {"case": CASE, "batch": 16, "mode": "greedy", "engine": "tunix", "outcome": "not installed"}
    records = [record("pdopt", 400, first_equal=1.0, equal=0.98), record("transformers", 100, first_equal=1.0), absent]
    found = {claim.promise: claim for claim in claims(records)}
    tunix = found[f"new tokens per CPU second over tunix's, {CASE}, batch 16"]
    assert (tunix.holds, tunix.note) == (None, "not installed")
    same = found["share of first greedy tokens of pdopt equal to transformers'"]
    assert (same.holds, "0.980" in same.note) == (True, True)
    (table,) = tables(records)
    assert table.rows[0][:5] == ["16, greedy", "pdopt", "400", "360", "4"]
    assert table.rows[-1][-1] == "not installed"


def test_a_real_model_has_its_own_bound():
    records = [
        {**record(engine, rate), "case": "SmolLM2-135M"} for engine, rate in (("pdopt", 16), ("transformers", 10))
    ]
    assert claims(records)[0].required == generation_speed.REQUIRED_REAL


def test_the_picture(tmp_path):
    rows = [record(engine, 100 * batch, mode, batch)
            for engine in ("pdopt", "tunix") for mode in ("greedy", "sampled") for batch in (1, 16)]  # fmt: skip
    path = plot(rows, CASE, tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert json.loads(path.with_suffix(".json").read_text())["pdopt, greedy"] == {"batch": [1, 16], "rate": [100, 1600]}
    assert plot(rows, "another", tmp_path) is None


CHILD = """
import json, sys
import numpy as np
print(json.dumps({"ready": 0.0, "versions": {}}), flush=True)
for number, line in enumerate(sys.stdin):
    order = json.loads(line)
    np.save(order["tokens"], np.full((2, 3), order["seed"]))
    print(json.dumps({"cpu": 100.0 - number, "wall": 1.0, "peak_mb": 7.0 + number, "shape": [2, 3]}), flush=True)
"""


def scripted(monkeypatch, scripts):
    """Engines that run a script instead of theirs."""
    popen = generation_speed.subprocess.Popen

    def start(command, **options):
        return popen([sys.executable, "-c", scripts[command[3]]], **options)

    monkeypatch.setattr(generation_speed.subprocess, "Popen", start)


@pytest.mark.multiprocess
def test_engines_take_turns_and_the_first_call_is_apart(tmp_path, monkeypatch):
    gone = "raise ModuleNotFoundError(\"No module named 'tunix'\")"
    broken = "import json; print(json.dumps({'ready': 0.0}), flush=True); input(); raise RuntimeError('out of words')"
    scripted(monkeypatch, {"pdopt": CHILD, "tunix": gone, "transformers": broken})
    said = []
    found = {
        r["engine"]: r for r in compare(CASE, tmp_path, (2,), 2, float("inf"), said.append) if r["mode"] == "greedy"
    }
    ours = found["pdopt"]
    assert (ours["cpu"], ours["cpu_median"], ours["compile_cpu"], ours["peak_mb"]) == (98.0, 98.5, 2.0, 9.0)
    assert ours["rate"] == pytest.approx(2 * generation_speed.NEW / 98)
    assert found["tunix"]["outcome"] == "not installed"
    assert found["transformers"]["outcome"] == "RuntimeError: out of words"
    assert len(said) == 2
    np.testing.assert_array_equal(np.load(tmp_path / "pdopt-greedy-2.npy"), np.full((2, 3), 2))


def test_the_deadline_cuts(tmp_path, monkeypatch):
    scripted(monkeypatch, dict.fromkeys(generation_speed.ENGINES, CHILD))
    assert {r["outcome"] for r in compare(CASE, tmp_path, (2,), 2, 0.0, print)} == {"cut"}


def test_a_child_that_cannot_start_is_an_error(tmp_path):
    with Engine("nobody", tmp_path) as engine:
        assert "KeyError" in engine.about["error"]


def test_the_tokenizer_of_numbers():
    numbers = _Numbers()
    assert numbers.encode("5 17 3") == [5, 17, 3]
    assert not numbers.bos_id()


def memory(way, growth, value=-12.0, slope=40.0):
    return {"way": way, "tokens": 2048, "growth_mb": growth, "baseline_mb": 1.0, "cpu": 1.0, "value": value,
            "slopes": [slope, slope], "outcome": "done"}  # fmt: skip


@pytest.mark.parametrize(("growth", "slope", "holds"), [(250.0, 40.0, (True, True)), (251.0, 40.01, (False, False))])
def test_memory_claims(growth, slope, holds):
    found = generation_memory.claims([memory("chunked", growth, slope=slope), memory("materialised", 1000.0)])
    assert tuple(claim.holds for claim in found) == holds
    assert "251" in found[0].note or "250" in found[0].note


def test_memory_without_a_side_is_not_judged():
    records = [memory("chunked", 1.0), {"way": "materialised", "tokens": 2048, "outcome": "crash"}]
    assert [claim.holds for claim in generation_memory.claims(records)] == [None, None]
    assert generation_memory.table(records).rows[1][-1] == "crash"


def test_both_ways_have_the_same_value_and_gradient(monkeypatch):
    monkeypatch.setattr(generation_memory, "VOCABULARY", 64)
    a, b = (generation_memory.child(way, 24) for way in generation_memory.WAYS)
    np.testing.assert_allclose([a["value"], *a["slopes"]], [b["value"], *b["slopes"]], rtol=1e-5)


def test_refill_claims():
    done = {"outcome": "done", "same": 1.0, "tokens": 100, "refill_cpu": 1.0, "batches_cpu": 1.29,
            "refill_cpu_median": 1.0, "batches_cpu_median": 1.4}  # fmt: skip
    assert [claim.holds for claim in generation_refill.claims(done)] == [False, True]
    assert generation_refill.claims(done)[0].note == "by medians 1.4"
    crash = {"outcome": "crash"}
    assert [claim.holds for claim in generation_refill.claims(crash)] == [None, None]
    assert generation_refill.table(crash).rows[0][-1] == "crash"
