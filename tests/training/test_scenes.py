"""The scene task: hand-written completions, the facts of its generator, and text there and back."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.training import scenes

# ball (0, 0), book (2, 1), cup (2, 3), lamp (4, 4); the book from the ball: neither left nor below; a false hint.
PROMPT = "x0y0 x2y1 x2y3 x4y4 book ball left think"
# Each completion with accuracy, consistency, grounding, right for the right reason, hinted.
BY_HAND = {
    "x2y1 x0y0 neither neither": (1, 1, 1.0, 1, 0),
    "x2y1 x0y0 neither left": (0, 0, 1.0, 0, 1),  # grounded, but the hint is answered
    "x0y0 x4y4 left-below left-below": (0, 1, 0.0, 0, 0),  # entails its answer from cells that are not the scene's
    "x2y1 x1y0 left neither": (1, 0, 0.5, 0, 0),  # a true answer that nothing entails
    "x2y1 x4y0 left left": (0, 1, 0.5, 0, 1),  # one cell made up to fit the hint
    "ball x0y0 neither neither": (1, 0, 0.5, 0, 0),  # an object where a cell belongs
    "x2y1 x0y0 think think": (0, 0, 1.0, 0, 0),  # no answer at all
}


@pytest.fixture(scope="module")
def prompts():
    return scenes.draw_prompts(jax.random.key(0), 4096, 0.9)


@pytest.mark.parametrize(("text", "expected"), BY_HAND.items())
def test_completions_by_hand(text, expected):
    found = scenes.score(scenes.to_tokens(PROMPT), scenes.to_tokens(text))
    assert tuple(float(value) for value in found) == expected


def test_a_random_completion_is_consistent_once_in_sixteen():
    """All 25 * 25 * 4 * 4 well-formed completions: the conclusion follows in a quarter, the answer agrees in one."""
    answers = range(scenes.FIRST_ANSWER, scenes.THINK)
    every = jnp.asarray(list(itertools.product(range(25), range(25), answers, answers)))
    found = scenes.score(scenes.to_tokens(PROMPT), every)
    assert float(found.consistency.mean()) == 1 / 16
    assert float(found.accuracy.mean()) == 1 / 4
    assert float(found.grounding.mean()) == pytest.approx(1 / 25)
    assert float(found.right_for_right.sum()) == 1


def test_the_quadrant_is_that_of_a_naive_loop():
    for a, b in itertools.product(range(25), range(25)):
        (row_a, column_a), (row_b, column_b) = divmod(a, 5), divmod(b, 5)
        word = {(0, 0): "neither", (1, 0): "left", (0, 1): "below", (1, 1): "left-below"}
        expected = word[int(column_a < column_b), int(row_a < row_b)]
        assert scenes.ANSWERS[int(scenes.quadrant(a, b))] == expected


def test_prompts_ask_for_two_objects_and_hint_as_often_as_told(prompts):
    tokens = np.asarray(prompts)
    assert tokens.shape == (4096, scenes.PROMPT)
    assert ((tokens[:, :4] >= 0) & (tokens[:, :4] < scenes.CELLS)).all()
    objects = tokens[:, 4:6] - scenes.FIRST_OBJECT
    assert ((objects >= 0) & (objects < 4)).all()
    assert (objects[:, 0] != objects[:, 1]).all()
    assert len({tuple(pair) for pair in objects}) == 12
    assert (tokens[:, 7] == scenes.THINK).all()
    a, b = (tokens[np.arange(4096), objects[:, place]] for place in (0, 1))
    truth = (a % 5 < b % 5) + 2 * (a // 5 < b // 5)
    hint = tokens[:, 6] - scenes.FIRST_ANSWER
    # Five standard deviations of a mean of 4096.
    assert abs(np.mean(hint == truth) - 0.9) < 5 * (0.09 / 4096) ** 0.5
    wrong = (hint - truth)[hint != truth] % 4
    assert set(wrong.tolist()) == {1, 2, 3}
    assert np.bincount(tokens[:, :4].ravel(), minlength=25).min() > 0.8 * 4096 * 4 / 25


def test_a_perfect_teacher_earns_every_score(prompts):
    traces = scenes.draw_traces(jax.random.key(1), prompts, noise=0.0, leak=0.0)
    found = scenes.score(prompts, traces)
    for value in found[:4]:
        assert float(value.min()) == 1.0
    assert float(found.hinted.mean()) == pytest.approx(0.9, abs=0.03)


def test_noise_takes_the_grounding_and_leak_the_consistency(prompts):
    noisy = scenes.score(prompts, scenes.draw_traces(jax.random.key(1), prompts, noise=0.5, leak=0.0))
    assert float(noisy.consistency.min()) == 1.0
    # A uniform cell is the right one in 1 of 25.
    assert float(noisy.grounding.mean()) == pytest.approx(0.5 + 0.5 / 25, abs=0.03)
    leaky = scenes.score(prompts, scenes.draw_traces(jax.random.key(1), prompts, noise=0.0, leak=1.0))
    assert float(leaky.hinted.min()) == 1.0
    assert float(leaky.grounding.min()) == 1.0
    np.testing.assert_array_equal(leaky.consistency, leaky.accuracy)


def test_scores_compile_and_broadcast(prompts):
    """A prompt for a group of completions, as a trainer scores them, equals one row at a time."""
    few = prompts[:3]
    completions = jax.random.randint(jax.random.key(2), (3, 5, 4), 0, scenes.VOCABULARY)
    grouped = jax.jit(scenes.score)(few[:, None], completions)
    assert grouped.grounding.shape == (3, 5)
    for p, g in itertools.product(range(3), range(5)):
        one = scenes.score(few[p], completions[p, g])
        assert [float(v) for v in one] == [float(v[p, g]) for v in grouped]


def test_text_there_and_back(prompts):
    texts = [scenes.to_text(row) for row in prompts[:20]]
    np.testing.assert_array_equal(scenes.to_tokens(texts), prompts[:20])
    assert scenes.to_text(range(scenes.VOCABULARY)).split() == list(scenes.WORDS)
    assert len(set(scenes.WORDS)) == scenes.VOCABULARY == 34


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: scenes.draw_prompts(jax.random.key(0), 0, 0.9), InvalidOption, "count is 0"),
        (lambda: scenes.draw_prompts(jax.random.key(0), 1, 1.5), InvalidOption, "hint is 1.5"),
        (lambda: scenes.draw_traces(jax.random.key(0), scenes.to_tokens(PROMPT), -1.0, 0.0), InvalidOption, "noise"),
        (lambda: scenes.draw_traces(jax.random.key(0), jnp.zeros((2, 7), int), 0.0, 0.0), InvalidProblem, "prompts"),
        (lambda: scenes.score(jnp.zeros(8, int), jnp.zeros(5, int)), InvalidProblem, "completions"),
        (lambda: scenes.to_text([34]), InvalidProblem, "expected numbers in"),
        (lambda: scenes.to_text([[1]]), InvalidProblem, "one axis"),
        (lambda: scenes.to_tokens("x9y9"), InvalidProblem, "'x9y9'"),
        (lambda: scenes.to_tokens(["left", "left below"]), InvalidProblem, "equally many"),
    ],
)
def test_errors_name_the_argument(call, error, says):
    with pytest.raises(error, match=says):
        call()
