"""An engine behind HTTP: weights arrive, token ids and log-probabilities come back, each failure is one clear error."""

import dataclasses
import importlib.util
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pdopt.errors import InvalidOption
from pdopt.training.engine import Engine, EngineError
from pdopt.training.prompts import batches
from pdopt.training.rollouter import Local, Rollouter
from pdopt.training.sampling import Sampling
from tests.training.fake_engine import KEY, SAMPLING, Handler, Server

_spec = importlib.util.spec_from_file_location("small_model", Path(__file__).parent / "small_model.py")
small_model = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small_model)

SHALLOW = small_model.small(dataclasses.replace(small_model.CONFIG, depth=1))
ASKED = [[5, 6, 7], [5, 6, 7], [8], [8], [9, 10], [9, 10]]


@pytest.fixture(scope="module")
def server():
    made = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def engine(server, tmp_path):
    server.seen, server.spoil = [], lambda path, answer: (200, answer)
    return Engine(SHALLOW, f"http://127.0.0.1:{server.server_port}", str(tmp_path), timeout=300.0)


@pytest.fixture(scope="module")
def batch():
    return next(batches([[5, 6, 7], [8], [9, 10]], 3, group=2))


def test_it_writes_what_the_new_weights_write(server, engine, batch):
    assert isinstance(engine, Rollouter)
    other = small_model.small(SHALLOW.config, seed=1)
    updated = engine.update(engine.model).update(other)
    found = updated.generate(batch, KEY, SAMPLING)
    expected = Local(other).generate(next(batches(ASKED, 6)), KEY, SAMPLING)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_array_equal(found.finished, expected.finished)
    np.testing.assert_allclose(found.sampler_log_probs, expected.log_probs, atol=1e-5)
    assert found.log_probs is None
    assert sorted(path.name for path in Path(engine.folder).iterdir()) == ["update-2"]
    path, body = server.seen[-1]
    assert path == "/v1/completions"
    assert body["prompt"] == ASKED
    assert body["max_tokens"] == 4
    assert (body["top_k"], body["stop_token_ids"], body["return_token_ids"]) == (5, [2], True)


def test_tokens_may_come_by_name(server, engine, batch):
    server.model = SHALLOW
    expected = engine.generate(batch, KEY, SAMPLING)

    def named(path, answer):
        for choice in answer["choices"]:
            choice["logprobs"]["tokens"] = [f"token_id:{token}" for token in choice.pop("token_ids")]
        return 200, answer

    server.spoil = named
    np.testing.assert_array_equal(engine.generate(batch, KEY, SAMPLING).tokens, expected.tokens)


def _without(name):
    def change(answer):
        for choice in answer["choices"]:
            choice.pop(name)
        return 200, answer

    return change


def _first(**changes):
    return lambda answer: (200, {"choices": [{**answer["choices"][0], **changes}, *answer["choices"][1:]]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda answer: (500, b"out of memory"), "answered 500: out of memory"),
        (lambda answer: (200, b"<html>"), "answered no JSON"),
        (lambda answer: (200, [1]), "answered a list; expected an object"),
        (lambda answer: (200, {}), "answered with None choices; expected 6"),
        (lambda answer: (200, {"choices": answer["choices"][1:]}), "answered with 5 choices; expected 6"),
        (_without("token_ids"), "without token ids; it needs return_token_ids"),
        (_without("logprobs"), "without log-probabilities; it needs logprobs"),
        (_first(index=7), "a choice with index 7; expected 0 to 5"),
        (_first(index=1), "text 1 twice"),
        (_first(token_ids=[1, 2, 3]), "text 0 with 3 tokens and"),
        (_first(token_ids=[], logprobs={"token_logprobs": []}), "text 0 with 0 tokens and 0"),
    ],
)
def test_wrong_answers_are_told(server, engine, batch, change, message):
    server.model = SHALLOW
    server.spoil = lambda path, answer: change(answer)
    with pytest.raises(EngineError, match=message):
        engine.generate(batch, KEY, SAMPLING.replace(eos=()))


def test_a_slow_server_and_none_are_told(server, engine, batch):
    server.model = SHALLOW

    def slow(path, answer):
        time.sleep(1.0)
        return 200, answer

    server.spoil = slow
    with pytest.raises(EngineError, match=r"did not answer within 0.2 s"):
        engine.replace(timeout=0.2).generate(batch, KEY, SAMPLING)
    with pytest.raises(EngineError, match="cannot be reached"):
        engine.replace(url="http://127.0.0.1:9").generate(batch, KEY, SAMPLING)


def test_weights_that_were_not_loaded_are_told(server, engine):
    server.spoil = lambda path, answer: (200, {"success": False, "message": "no space"})
    with pytest.raises(EngineError, match=r"did not load .*: no space"):
        engine.update(engine.model)


def test_bad_settings_are_refused(engine, batch):
    with pytest.raises(InvalidOption, match="url is 'localhost'"):
        engine.replace(url="localhost")
    with pytest.raises(InvalidOption, match="timeout is 0"):
        engine.replace(timeout=0.0)
    with pytest.raises(InvalidOption, match="stop has a sequence of several tokens"):
        engine.generate(batch, KEY, Sampling(stop=((1, 2),)))
