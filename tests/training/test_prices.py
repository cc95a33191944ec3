"""Prices of experts beside training: counted in parts or whole, moved until loads are even, saved with the state."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.errors import InvalidOption
from pdopt.models.checkpoints import export
from pdopt.models.config import Mixture
from pdopt.models.decoder import Decoder, initialise
from pdopt.training.metric_files import read_lines
from pdopt.training.prices import first_prices, loads, moved
from pdopt.training.runs import export_run, open_run
from pdopt.training.saving import saved_recipe
from pdopt.training.tokenizers import byte_tokenizer
from pdopt.training.trainer import train
from tests.training import tiny

pytestmark = pytest.mark.usefixtures("quick_compiles")

CONFIG = dataclasses.replace(
    tiny.CONFIG, vocabulary=24, family="mixtral", experts=Mixture(count=4, top=2, hidden=8), hidden=8
)


def leaning():
    """Experts whose loads lean: what all tokens have in common speaks for the first."""
    params = jax.tree.map(lambda leaf: 8 * leaf if leaf.ndim > 1 else leaf, initialise(CONFIG, jax.random.key(0)))
    experts = params["layers"]["experts"]
    router = experts["router"].at[..., 0].add(0.1)
    layers = {**params["layers"], "experts": {**experts, "router": router}}
    return Decoder({**params, "embed": params["embed"] + 0.2, "layers": layers}, CONFIG)


def texts():
    rng = np.random.default_rng(0)
    prompts, tokens = rng.integers(2, 24, (64, 4)), rng.integers(2, 24, (64, 5))
    valid, present = np.arange(4) >= rng.integers(0, 4, (64, 1)), np.arange(5) < rng.integers(1, 6, (64, 1))
    return tuple(map(jnp.asarray, (prompts, valid, tokens, present)))


def test_prices_even_the_loads_of_a_batch():
    model, batch = leaning(), texts()
    model = dataclasses.replace(model, balance=first_prices(model, True))
    tally = loads(model, *batch)
    real = int(batch[1].sum() + batch[3][:, :-1].sum())
    np.testing.assert_array_equal(tally.loads.sum(axis=-1), [2 * real] * CONFIG.depth)
    jax.tree.map(np.testing.assert_array_equal, tally, loads(model, *batch, micro=16))
    spreads = []
    for _ in range(8):
        prices, told = moved(model, loads(model, *batch))
        model = dataclasses.replace(model, balance=prices)
        spreads.append(float(told["experts/load_max_worst"]))
    # Few different tokens: those alike go together, and no price parts them.
    assert spreads[0] > 1.6
    assert spreads[-1] < spreads[0] - 0.2


def test_prices_without_experts_are_refused_and_rest_where_nobody_asks():
    with pytest.raises(InvalidOption, match=r"model\.balance is true and the model has no experts"):
        first_prices(tiny.model(), True)
    assert first_prices(leaning(), False) is None


@pytest.mark.slow
def test_a_run_moves_them_saves_them_and_goes_on_with_the_same_bits(tmp_path):
    export(leaning(), tmp_path / "model")
    byte_tokenizer(["0123456789+="], vocabulary=18, alphabet="seen").save_pretrained(tmp_path / "model")
    recipe = lambda name, steps: tiny.recipe(
        tmp_path / name, model={"path": str(tmp_path / "model"), "tokenizer": "", "balance": True},
        training={"steps": steps, "supervised_steps": 3, "supervised_rate": 1e-5},
        # Weights that hardly move: what changes the loads of the policy's own texts is the prices.
        optimiser={"learning_rate": 1e-5, "decay_steps": 8},
    )  # fmt: skip
    whole = train(recipe("whole", 8))
    lines = [line for line in read_lines(tmp_path / "whole" / "metrics.jsonl") if "experts/load_max" in line]
    assert len(lines) == 11, "supervised steps move them as well"
    own = [line["experts/load_max"] for line in lines[3:]]
    assert np.mean(own[-2:]) < np.mean(own[:2]) - 0.1
    assert float(jnp.abs(whole.state.prices.y).max()) > 0
    train(recipe("cut", 1))
    resumed = train(saved_recipe(tmp_path / "cut", ["training.steps=8"]), reporters=[], resume=True)
    for one, other in zip(jax.tree.leaves(whole.state.prices), jax.tree.leaves(resumed.state.prices), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(whole.state.trainable["embed"], resumed.state.trainable["embed"])
    opened = open_run(tmp_path / "whole")
    np.testing.assert_array_equal(opened.model.balance.y, whole.state.prices.y)
    with pytest.warns(UserWarning, match="the experts' prices have no place in a folder of mixtral"):
        export_run(opened, tmp_path / "out")
