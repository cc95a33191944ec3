"""A run whose completions another engine draws: it gets each policy, and what it says of tokens only weighs them."""

import threading

import numpy as np
import pytest

from pdopt.training.assembly import make_rollouter
from pdopt.training.rollouter import Local
from pdopt.training.sampling import Sampling
from pdopt.training.scoring import Scores
from pdopt.training.trainer import train
from tests.training import tiny
from tests.training.fake_engine import Handler, Server

pytestmark = pytest.mark.usefixtures("quick_compiles")


class Notes:
    def __init__(self):
        self.lines = []

    def scalars(self, step, values):
        self.lines.append(values)

    def text(self, step, table):
        pass

    def close(self):
        pass


@pytest.fixture(scope="module")
def server():
    made = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def run(server, folder, shift=0.0):
    """Two policy steps of completions that the server draws, its log-probabilities off by a constant."""

    def spoil(path, answer):
        for choice in answer.get("choices", []):
            logs = choice["logprobs"]
            logs["token_logprobs"] = [value + shift for value in logs["token_logprobs"]]
        return 200, answer

    server.seen, server.spoil, server.sampling = [], spoil, Sampling(tiny.MAX_NEW, eos=(1,))
    engine = {"url": f"http://127.0.0.1:{server.server_port}", "timeout": 300.0}
    recipe = tiny.recipe(folder, training={"steps": 2, "supervised_steps": 0}, sampling={"engine": engine})
    notes = Notes()
    odd = lambda sampled: Scores((np.asarray(sampled.tokens)[:, 0] % 2).astype(np.float32), {})
    return train(recipe, reporters=[notes], scorer=odd), notes.lines


@pytest.mark.slow
def test_a_run_by_an_engine_that_agrees_and_by_one_that_is_off(server, tmp_path):
    trained, lines = run(server, tmp_path / "exact")
    assert [path for path, _ in server.seen] == ["/update_weights_from_disk", "/v1/completions"] * 2
    assert [body["n"] for path, body in server.seen if path == "/v1/completions"] == [1, 1]
    assert lines[0]["engine_gap"] < 1e-5
    assert lines[0]["engine_weight"] == pytest.approx(1.0, abs=1e-5)
    assert lines[0]["gap"] < 1e-5, "log-probabilities are the policy's own"
    loaded = server.model.params["embed"]
    assert not np.array_equal(loaded, trained.state.trainable["embed"]), "the second update came before the last step"
    # Every token twice as likely as the engine says: twice the loss and the gradient, and the same multipliers.
    _, double = run(server, tmp_path / "off", -np.log(2.0))
    assert double[0]["engine_gap"] == pytest.approx(np.log(2.0), abs=1e-5)
    assert double[0]["engine_weight"] == pytest.approx(2.0, abs=1e-4)
    assert lines[0]["gradient_norm"] > 1e-3
    assert double[0]["gradient_norm"] == pytest.approx(2 * lines[0]["gradient_norm"], rel=1e-3)
    name = "constraint/length/multiplier"
    assert double[0][name] == lines[0][name]


def test_without_an_engine_the_run_samples_itself(tmp_path):
    recipe = tiny.recipe(tmp_path, sampling={"slots": 3})
    policy = type("Policy", (), {"model": tiny.model(), "pad": 0})()
    made = make_rollouter(recipe, policy)
    assert isinstance(made, Local)
    assert made.slots == 3
