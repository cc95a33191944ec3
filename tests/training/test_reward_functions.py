"""The rewards and costs that come with the library, on texts whose scores were worked out by hand."""

import sys

import pytest

from pdopt.errors import InvalidOption
from pdopt.training.reward_functions import (
    SHIPPED,
    arithmetic,
    countdown,
    exact_match,
    format_regex,
    length_cost,
    math_answer,
    repetition_cost,
    score_function,
)
from pdopt.training.rewards import ScoreError, score_table


def chat(*texts):
    return [[{"role": "assistant", "content": text}] for text in texts]


def test_exact_match():
    texts = ["4", " 4\n", "4.", "Yes", "x"]
    answers = ["4", "4", "4", "yes", None]
    assert exact_match()(completions=texts, answer=answers) == [1, 1, 0, 0, None]
    assert exact_match(strip=False, ignore_case=True)(completions=texts, answer=answers) == [1, 0, 0, 1, None]
    assert exact_match(column="gold")(completions=chat("4"), gold=[4]) == [1]


def test_math_answer_reads_solutions_on_both_sides():
    score = math_answer(column="solution")
    texts = [r"\boxed{1/2}", "#### 1,000", "The answer is 7 apples.", "no number", r"I say \boxed{12 or 13}", "8"]
    truth = [r"So \boxed{\frac{1}{2}}.", "2 + 998\n#### 1000", "7", "3", "12", None]
    assert score(completions=texts, solution=truth) == [1, 1, 1, 0, 0, None]


def test_math_verify_checks_symbols():
    pytest.importorskip("math_verify", reason="the optional package math-verify is not installed")
    score = math_answer(checker="math-verify")
    texts, answers = [r"\boxed{(x+1)^2}", r"\boxed{x}"], ["$x^2+2x+1$"] * 2
    assert score_table([score], ["?"] * 2, texts, [[1]] * 2, {"answer": answers}).values[:, 0].tolist() == [1, 0]


def test_math_verify_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(InvalidOption, match="pip install math-verify"):
        math_answer(checker="math-verify")
    with pytest.raises(InvalidOption, match="unknown checker 'verify'"):
        math_answer(checker="verify")


def test_arithmetic_gives_a_share_for_right_digits():
    score = arithmetic(digits=0.5)
    texts = ["23 + 48 = 71", "so 171", "91", "-71", "71.5", "", "70"]
    assert score(completions=texts, answer=["71"] * 7) == [1, 0.5 * 2 / 3, 0.25, 0, 0, 0, 0.25]
    assert arithmetic()(completions=["72", "71"], answer=["71", None]) == [0, None]
    with pytest.raises(ValueError, match="the answer 'seven' is not a number"):
        score(completions=["7"], answer=["seven"])


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("(75 - 3) / 6 * 2", 1), ("I try.\n(75 - 3) / 6 * 2 = 24", 1), ("<answer>2*(75-3)/6</answer> done", 1),
        (r"\boxed{2 \times (75 - 3) \div 6}", 1),
        ("75 - 3 * 6 * 2", 0.1),  # 39: the numbers rightly used
        ("24", 0), ("75 - 3", 0), ("(75 - 3) / 6 * 2 * 1", 0), ("(75 - 3) / (6 / 2) * 1", 0), ("72 / 6 * 2", 0),
        ("(75 - 3) / 6 + 6 + 2 + 4", 0), ("__import__('os')", 0), ("(75 - 3) / 6 * 2 / 0", 0), ("", 0), ("\n \n", 0),
    ],
)  # fmt: skip
def test_countdown_wants_each_number_once_and_the_target(text, score):
    columns = {"numbers": [[2, 3, 6, 75]], "target": [24]}
    assert countdown(valid=0.1)(completions=[text], **columns) == [score]
    assert countdown(valid=0.1)(completions=chat(text), **columns) == [score]


def test_countdown_may_leave_numbers_out_and_use_equal_ones_as_often_as_given():
    columns = {"numbers": [[4, 4, 4], [4, 4, 4], [4, 4], None], "target": [16, 12, 12, 1]}
    texts = ["4 * 4", "4 + 4 + 4", "4 + 4 + 4", "1"]
    assert countdown(every=False)(completions=texts, **columns) == [1, 1, 0, None]
    assert countdown()(completions=texts, **columns) == [0, 1, 0, None]


def test_format_regex():
    texts = ["<think>a\nb</think> 4", " <think></think> 4 ", "<THINK>a</THINK> 4", "x <think>a</think> 4 x"]
    assert format_regex(r"<think>.*</think>\s*\d+")(completions=texts) == [1, 1, 0, 0]
    assert format_regex(r"<think>.*</think>", flags="i", whole=False)(completions=texts) == [0, 1, 1, 1]
    with pytest.raises(InvalidOption, match=r"pattern '\(' does not compile"):
        format_regex("(")
    with pytest.raises(InvalidOption, match="flags is 'z'"):
        format_regex("a", flags="z")


def test_a_pattern_that_explodes_is_stopped():
    with pytest.raises(ScoreError, match=r"format_regex raised TimeoutError[^\n]*at row 1"):
        score_table([format_regex("(?:a|aa)+b", timeout=0.02)], ["?"] * 2, ["aab", "a" * 60 + "ba"], [[1]] * 2)


def test_length_cost():
    given = {"completions": ["one two", "", "ab"], "completion_ids": [[1, 2, 3], [], [4]]}
    assert length_cost()(**given) == [3, 0, 1]
    assert length_cost(unit="words")(**given) == [2, 0, 1]
    assert length_cost(unit="characters", free=1.5)(**given) == [5.5, 0, 0.5]
    with pytest.raises(InvalidOption, match="unknown unit 'token'; did you mean 'tokens'"):
        length_cost(unit="token")


def test_repetition_cost():
    given = {"completions": [""] * 4, "completion_ids": [[1, 2, 3, 4], [1, 1, 1, 1], [1, 2, 1, 2, 1], [1]]}
    assert repetition_cost(n=2)(**given) == [0, pytest.approx(2 / 3), 0.5, 0]
    assert repetition_cost(n=1)(**given) == [0, 0.75, pytest.approx(0.6), 0]
    with pytest.raises(InvalidOption, match="n is 0"):
        repetition_cost(n=0)


def test_names_are_those_of_the_factories():
    settings = {"format_regex": {"pattern": "a"}}
    assert [score_function(name, settings.get(name)).__name__ for name in SHIPPED] == list(SHIPPED)


def test_functions_by_name():
    with pytest.raises(InvalidOption, match="unknown score function 'exact_mach'; did you mean 'exact_match'"):
        score_function("exact_mach")
    with pytest.raises(InvalidOption, match="length_cost refuses the settings"):
        score_function("length_cost", {"limit": 3})
    with pytest.raises(ScoreError, match=r"exact_match needs the column 'answer'; the data have \[\]"):
        score_function("exact_match")(completions=["a"])
