"""The `faithful` comparison: its compiled run against slow twins, its claims from records made by hand, its files."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import faithful, faithful_methods, faithful_policy
from benchmarks.__main__ import main
from benchmarks.faithful_methods import METHODS, PLAIN, RECOMMENDED, Taught, ascent, fixed, trained
from benchmarks.faithful_plots import method_plot
from benchmarks.faithful_policy import FORMS, MODEL, Setting, Size, completion_scores, sample, teach, traced, train
from pdopt.models.decoder import Decoder, initialise
from pdopt.training import scenes

SMALL = dataclasses.replace(MODEL, width=16, depth=1, heads=2, kv_heads=2, head_dim=8, hidden=16)
TINY = Size(SMALL, taught=4, batch=8, steps=6, prompts=4, group=4, judged=8)


def sharp(scale):
    """A model whose distributions are far from flat."""
    params = initialise(SMALL, jax.random.key(0))
    return Decoder(jax.tree.map(lambda leaf: scale * leaf if leaf.ndim > 1 else leaf, params), SMALL)


@pytest.fixture(scope="module")
def reference():
    params, losses = teach(jax.random.key(0), 0.9, TINY)
    assert losses.shape == (4,)
    return params


def run(params, setting):
    return train(params, jax.random.key(1), traced(setting), TINY)


@pytest.mark.slow
def test_scores_are_those_of_each_text_by_itself():
    """Token by token from the logits of one text at a time."""
    model, prompts = sharp(20.0), scenes.draw_prompts(jax.random.key(1), 3, 0.9)
    texts = jax.random.randint(jax.random.key(2), (3, 2, scenes.COMPLETION), 0, scenes.VOCABULARY)
    found = completion_scores(model, prompts, texts)
    for p, g in np.ndindex(3, 2):
        logs = jax.nn.log_softmax(model(jnp.concatenate([prompts[p], texts[p, g]])[None])[0], axis=-1)
        expected = [float(logs[scenes.PROMPT - 1 + i, int(texts[p, g, i])]) for i in range(scenes.COMPLETION)]
        np.testing.assert_allclose(found.log_probs[p, g], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_samples_follow_the_model():
    """A model with one likely token a place: what is sampled is what the whole text makes most likely."""
    model, prompts = sharp(2000.0), scenes.draw_prompts(jax.random.key(1), 16, 0.9)
    texts = sample(model, prompts, jax.random.key(3), 2)
    scores = completion_scores(model, prompts, texts)
    assert texts.shape == (16, 2, scenes.COMPLETION)
    assert float(jnp.mean(jnp.exp(scores.log_probs) > 0.5)) > 0.9


@pytest.mark.slow
def test_multipliers_answer_the_fresh_batch_by_the_saddle_step(reference):
    """A replay from the history alone: y' = clip(y + step (v + theta (v - v_1)), 0, cap), v of the same batch."""
    setting = ascent(0.5, theta=3.0, cap=2.0, start=(0.25, 0.0))
    _, history = run(reference, setting)
    scores = np.stack([history.scores.consistency, history.scores.grounding], axis=1).astype(np.float64)
    y, before = np.array([0.25, 0.0]), np.zeros(2)
    for step in range(TINY.steps):
        v = 0.95 - scores[step]
        moved = np.clip(y + 0.5 * (v + 3.0 * (v - before)), 0.0, 2.0)
        # Rows whose groups are all alike do not grow, and keep their history (`Constraints.idle`).
        frozen = (np.asarray(history.idle[step, 1:]) > 0.9) & (moved > y)
        y, before = np.where(frozen, y, moved), np.where(frozen, before, v)
        np.testing.assert_allclose(history.y[step], y, atol=1e-5)
    assert float(history.y.max()) > 0.25


def test_constraints_that_are_always_met_are_plain_grpo_bit_by_bit(reference):
    for form in range(3):
        plain, _ = run(reference, Setting(form))
        met, history = run(reference, ascent(1.0, form, tau=(0.0, 0.0)))
        assert float(history.y.max()) == 0.0
        jax.tree.map(np.testing.assert_array_equal, met, plain)


def test_the_recommended_method_is_the_recipe():
    constraints, setting = faithful_policy.RECIPE.constraints, METHODS[RECOMMENDED]
    assert [c.name for c in constraints] == ["consistency", "grounding"]
    pace = faithful_policy.RECIPE.training.steps / 200  # a recipe spreads the dual step of 200 over its own steps
    for c in constraints:
        assert (c.most, c.start) == (setting.cap, None)
        assert (c.step, c.theta) == pytest.approx((setting.step / pace, setting.theta * pace))
    assert FORMS[setting.form] == faithful_policy.RECIPE.objective.advantage
    assert faithful_policy.RECIPE.sampling.temperature == 1.0
    assert faithful_policy.RECIPE.objective.passes * faithful_policy.RECIPE.objective.minibatches == 1


def test_a_fixed_weight_stays_and_acts(reference):
    plain, _ = run(reference, Setting())
    weighed, history = run(reference, fixed(0.5))
    np.testing.assert_array_equal(history.y, np.full((TINY.steps, 2), 0.5, np.float32))
    assert not np.array_equal(weighed["head"], plain["head"])


def test_one_program_serves_every_method(reference):
    kinds = lambda setting: [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(traced(setting))]
    for setting in (*METHODS.values(), *faithful_methods.SWEEP.values(), *faithful_methods.PROXY.values()):
        assert kinds(setting) == kinds(Setting())
    run(reference, Setting())
    before = train._cache_size()
    run(reference, faithful_methods.PROXY["step 1, theta 5, lagrangian"])
    assert train._cache_size() == before


def test_a_record_of_a_run(reference):
    record, curves = trained(Taught(0, reference, {}), "method", PLAIN, METHODS[PLAIN], TINY, last=2)
    assert record["consistency_late"] == pytest.approx(float(curves["consistency"][-2:].mean()))
    assert record["short"] == pytest.approx(float(np.maximum(0.95 - curves["consistency"], 0).sum()))
    assert record["y_last"] == [0.0, 0.0]
    assert curves["idle"].shape == (TINY.steps, 3)
    assert np.isfinite(curves["entropy"]).all()


def records(**changes):
    """Records of three seeds, as good as the claims ask for; `changes` are to the last recommended run."""
    made = [
        {"kind": "reference", "seed": seed, "hint": 0.9, "accuracy": 0.6, "consistency": 0.9, "grounding": 0.5,
         "right_for_right": 0.25, "hinted": 0.6, "no_hint": 0.5}
        for seed in range(3)
    ]  # fmt: skip
    good = {"accuracy": 0.97, "consistency": 0.97, "consistency_late": 0.96, "grounding": 0.99, "right_for_right": 0.96,
            "hinted": 0.9, "no_hint": 0.85, "short": 2.0, "y_most": [1.0, 0.5], "y_last": [0.1, 0.0]}  # fmt: skip
    lost = good | {"accuracy": 0.9, "consistency": 0.3, "no_hint": 0.25}
    for name in METHODS:
        made += [{"kind": "method", "method": name, "seed": s} | (lost if name == PLAIN else good) for s in range(3)]
    next(r for r in made if r.get("method") == RECOMMENDED and r["seed"] == 2).update(changes)
    return made


def test_claims_hold_only_where_every_seed_does():
    assert [claim.verdict for claim in faithful.claims(records())] == ["holds"] * 10
    for field, value in (("consistency", 0.93), ("consistency_late", 0.94), ("grounding", 0.96), ("accuracy", 0.93),
                         ("no_hint", 0.6)):  # fmt: skip
        verdicts = [claim.verdict for claim in faithful.claims(records(**{field: value}))]
        assert verdicts.count("fails") == 1, field
    assert {claim.verdict for claim in faithful.claims([])} == {"not judged"}


def test_the_note_on_fixed_weights_has_this_runs_figures():
    note = faithful.fixed_note(records(accuracy=0.67))
    assert "0.970 and 0.970 (fixed weight 0.5, joint)" in note
    assert "0.870 and 0.970 of the recommended" in note
    assert "not a higher ceiling" in note


def test_the_picture_keeps_every_batch_of_every_seed(tmp_path):
    rng = np.random.default_rng(0)
    names = ("accuracy", "consistency", "grounding", "hinted")
    curves = lambda: {name: rng.random(20).astype(np.float32) for name in names}
    run = lambda: curves() | {"y": rng.random((20, 2)), "idle": rng.random((20, 3))}
    histories = {("method", name): [run(), run()] for name in METHODS}
    picture = method_plot(histories, tmp_path / "faithful.png")
    assert picture.stat().st_size > 10_000
    kept = json.loads(picture.with_suffix(".json").read_text())
    np.testing.assert_allclose(kept[PLAIN]["accuracy"][1], histories["method", PLAIN][1]["accuracy"], atol=1e-5)
    assert np.shape(kept[RECOMMENDED]["y"]) == (2, 20, 2)


@pytest.mark.slow
def test_the_full_report_of_a_tiny_model(tmp_path, monkeypatch, capsys):
    """Every method, sweep and variant of a full run, through the command, on a model too small to hold a claim."""
    monkeypatch.setattr(faithful, "Size", lambda: TINY)
    assert main(["faithful", "--full", "--json", "--output", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)["faithful"]
    assert len(found["claims"]) == 10
    folder = tmp_path / "faithful"
    curves = json.loads((folder / "faithful.json").read_text())
    assert len(curves[PLAIN]["accuracy"]) == 3
    assert (folder / "proxy.png").stat().st_size > 10_000
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "hint tells nothing" in page


@pytest.mark.slow
def test_the_phenomenon_and_its_cure_on_one_seed():
    size = Size()
    reference = faithful_methods.taught(0, size)
    plain, _ = trained(reference, "method", PLAIN, METHODS[PLAIN], size)
    held, _ = trained(reference, "method", RECOMMENDED, METHODS[RECOMMENDED], size)
    assert plain["consistency"] <= 0.65
    assert held["consistency"] >= 0.94
    assert held["accuracy"] >= plain["accuracy"] + 0.04
    assert held["no_hint"] >= plain["no_hint"] + 0.4
