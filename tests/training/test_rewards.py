"""The table of scores: what functions see, what they may return, and what their failures say."""

import asyncio
import threading
import time
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.errors import InvalidOption
from pdopt.training.rewards import ScoreError, name_of, score_table, text_of
from pdopt.training.user_functions import load_function

PROMPTS = ["p0", "p1", "p2", "p3", "p4"]
TEXTS = ["a", "bb", "ccc", "dddd", "eeeee"]
IDS = [[1] * n for n in range(1, 6)]
COLUMNS = {"answer": ["a", "x", "ccc", None, "y"]}


def table(functions, **settings):
    return score_table(functions, PROMPTS, TEXTS, IDS, COLUMNS, **settings)


def test_functions_see_keyword_arguments_and_every_column():
    seen = {}

    def score(**given):
        seen.update(given)
        return [0.0] * 5

    table([score], extra={"step": 3})
    assert seen == {"prompts": PROMPTS, "completions": TEXTS, "completion_ids": IDS, **COLUMNS, "step": 3}


def test_a_function_written_for_trl_runs_unchanged():
    def accuracy(completions, answer, **kwargs):
        contents = [completion[0]["content"] for completion in completions]
        return [1.0 if c == a else 0.0 for c, a in zip(contents, answer)]

    def bare(completions):  # no **kwargs: gets only what it names
        return [len(c[0]["content"]) for c in completions]

    async def judge(prompts, completions, **kwargs):
        async def one(completion):
            await asyncio.sleep(0.001)
            return len(text_of(completion)) / 10

        return await asyncio.gather(*map(one, completions))

    chats = [[{"role": "assistant", "content": text}] for text in TEXTS]
    prompts = [[{"role": "user", "content": text}] for text in PROMPTS]
    scores = score_table([accuracy, bare, judge], prompts, chats, IDS, COLUMNS)
    assert scores.names == ("accuracy", "bare", "judge")
    np.testing.assert_array_equal(
        scores.values, np.array([[1, 0, 1, 0, 0], [1, 2, 3, 4, 5], [0.1, 0.2, 0.3, 0.4, 0.5]]).T
    )
    assert scores.failed.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "scores",
    [
        [1, 0.5, True, None, float("nan")],
        (1, 0.5, np.bool_(True), None, np.float32("nan")),
        np.array([1, 0.5, 1, np.nan, np.nan]),
        jnp.array([1, 0.5, 1, jnp.nan, jnp.nan]),
    ],
    ids=["list", "tuple", "numpy", "jax"],
)
def test_numbers_of_any_kind_count_and_missing_ones_are_nan(scores):
    made = table({"f": lambda **_: scores})
    np.testing.assert_array_equal(made.column("f"), [1, 0.5, 1, np.nan, np.nan])
    assert made.values.dtype == np.float64
    assert made.missing.tolist() == [2]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0] * 4, "f returned 4 scores for 5 rows"),
        ([1.0] * 6, "f returned 6 scores for 5 rows"),
        (0.5, "f returned a float; expected a list of 5"),
        (None, "f returned a NoneType"),
        ("11111", "f returned a str"),
        ([1, 1, "1", 1, 1], r"f gave '1' \(str\) for row 2.*\n.*p2.*\n.*ccc"),
        ([1, 1, 1, float("inf"), 1], r"f gave inf \(float\) for row 3"),
        ([1, [1], 1, 1, 1], r"f gave \[1\] \(list\) for row 1"),
    ],
)
def test_anything_else_is_refused_by_name_and_row(scores, message):
    with pytest.raises(ScoreError, match=message):
        table({"f": lambda **_: scores})


def fails_at(row, kind=ValueError):
    def fussy(completions, **_):
        texts = list(completions)  # all read before one fails, as most functions do
        if TEXTS[row] in texts:
            raise kind("I do not like it")
        return [1.0] * len(texts)

    return fussy


@pytest.mark.parametrize("row", range(5))
def test_an_exception_names_function_row_text_and_trace(row):
    with pytest.raises(ScoreError) as caught:
        table([fails_at(row)])
    message = str(caught.value)
    assert f"fussy raised ValueError: I do not like it, at row {row}" in message
    assert f"prompt: '{PROMPTS[row]}'" in message
    assert f"completion: '{TEXTS[row]}'" in message
    assert 'raise kind("I do not like it")' in message
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_exception_of_the_batch_alone_says_so():
    def small(completions, **_):
        if len(completions) == 5:
            raise RuntimeError("too many")
        return [0.0] * len(completions)

    with pytest.raises(ScoreError, match="for the whole batch of 5 rows only"):
        table([small])


def test_an_exit_of_a_function_does_not_end_the_run():
    with pytest.raises(ScoreError, match="raised SystemExit"):
        table([fails_at(1, SystemExit)])


def test_failures_can_be_masked_and_are_counted():
    scores = table([fails_at(2), partial(lambda **_: [2.0] * 5)], failure="mask")
    np.testing.assert_array_equal(scores.values[:, 0], [1, 1, np.nan, 1, 1])
    assert scores.failed.tolist() == [1, 0]
    assert scores.missing.tolist() == [1, 0]


def slow_at(row, seconds):
    def sleepy(completions, **_):
        if TEXTS[row] in completions:
            time.sleep(seconds)
        return [1.0] * len(completions)

    return sleepy


def test_a_function_that_hangs_is_left_behind_and_named(monkeypatch):
    monkeypatch.setattr("pdopt.training.rewards.LEAST", 0.05)
    with pytest.raises(ScoreError, match=r"sleepy ran longer than 0.1 s for 5 rows; row 3 alone(.|\n)*dddd"):
        table([slow_at(3, 30.0), lambda **_: [0.0] * 5], timeout=0.1)


def test_time_is_shared_by_all_functions_and_a_late_one_can_be_masked():
    start = time.monotonic()
    scores = table(
        {"late": slow_at(0, 30.0), "also": slow_at(1, 30.0), "quick": lambda **_: [0.5] * 5},
        timeout=0.2,
        failure="mask",
    )
    assert time.monotonic() - start < 10  # not 30, and they waited together
    assert np.isnan(scores.values[:, :2]).all()
    assert scores.column("quick").tolist() == [0.5] * 5
    assert scores.failed.tolist() == [5, 5, 0]


def test_a_late_coroutine_is_cancelled():
    ended = threading.Event()

    async def never(**_):
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    assert table([never], timeout=0.1, failure="mask").failed.tolist() == [5]
    assert ended.wait(10)


def test_a_time_out_of_the_functions_own_is_its_error():
    async def gives_up(**_):
        raise TimeoutError("the judge does not answer")

    with pytest.raises(ScoreError, match="gives_up raised TimeoutError: the judge does not answer, at row 0"):
        table([gives_up])


def test_coroutines_of_all_batches_share_a_loop_so_that_clients_keep_their_connections():
    loops = []

    async def judge(completions, **_):
        loops.append(asyncio.get_running_loop())
        return [0.0] * len(completions)

    table([judge])
    table([judge])
    assert loops[0] is loops[1]
    assert loops[0].is_running()


def test_a_function_that_changes_its_lists_changes_no_one_elses():
    def greedy(completions, answer, **_):
        completions.clear()
        return [len(answer)] * 5

    for _ in range(3):
        scores = table({"greedy": greedy, "count": lambda completions, **_: [len(completions)] * len(completions)})
        assert scores.column("count").tolist() == [5] * 5


def test_missing_columns_and_clashing_names_are_refused():
    def wants(completions, solution, **_):
        return [0.0] * len(completions)

    for failure in ("raise", "mask"):
        with pytest.raises(ScoreError, match=r"wants needs the column 'solution'; the data have \['answer'"):
            table([wants], failure=failure)
    with pytest.raises(InvalidOption, match="two score functions are named 'wants'"):
        table([wants, wants])
    with pytest.raises(InvalidOption, match="answer has 4 values; expected 5"):
        score_table([wants], PROMPTS, TEXTS, IDS, {"answer": [1] * 4})
    with pytest.raises(InvalidOption, match="completions has 2 values; expected 5"):
        score_table([wants], PROMPTS, TEXTS[:2], IDS)
    with pytest.raises(InvalidOption, match="a column of the data is named 'prompts'"):
        score_table([wants], PROMPTS, TEXTS, IDS, {"prompts": PROMPTS})
    with pytest.raises(InvalidOption, match="timeout is 0"):
        table([wants], timeout=0)
    with pytest.raises(InvalidOption, match="failure is 'ignore'"):
        table([wants], failure="ignore")


def test_no_functions_and_no_rows_give_empty_tables():
    assert table([]).values.shape == (5, 0)
    assert score_table([lambda completions: []], [], [], []).values.shape == (0, 1)


def test_names():
    class Judge:
        def __call__(self, **_):
            return []

    assert name_of(Judge()) == "Judge"
    assert name_of(partial(partial(fails_at), 1)) == "fails_at"


def test_texts_of_many_shapes():
    assert text_of([{"role": "user", "content": "no"}, {"role": "assistant", "content": "yes"}]) == "yes"
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    assert text_of([{"role": "assistant", "content": parts}]) == "ab"
    assert text_of([{"role": "assistant", "content": None}]) == ""


def test_users_functions_by_file_and_module(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def reward(completions, **_):\n    return [1.0] * len(completions)\n"
        "def make(size):\n    return lambda **_: size\nx = 1\n"
    )
    assert load_function(f"{file}:reward")(completions="ab") == [1.0, 1.0]
    assert load_function(f"{file}:make", {"size": 3})() == 3
    assert load_function("os.path:join") is __import__("os").path.join
    for source, message in [
        (f"{file}:nothing", r"has no 'nothing' \(callable there: reward, make\)"),
        (f"{file}:x", "is a int; expected a function"),
        (f"{tmp_path}/absent.py:f", "is not a file"),
        ("pdopt.absent:f", "cannot import 'pdopt.absent'"),
        ("no_colon", "names no function"),
    ]:
        with pytest.raises(InvalidOption, match=message):
            load_function(source)
    with pytest.raises(InvalidOption, match="refuses the settings"):
        load_function(f"{file}:make", {"wrong": 1})
    file.write_text("raise RuntimeError('broken')")
    with pytest.raises(InvalidOption, match="RuntimeError: broken"):
        load_function(f"{file}:reward")
