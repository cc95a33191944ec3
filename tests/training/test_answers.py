"""Answers found in texts and compared; the tables are what models and data sets write."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdopt.training.answers import extract_answer, last_boxed, parse_number, same_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"thus \boxed{4} no, \boxed{\frac{a}{b}} ok 7", r"\frac{a}{b}"),
        (r"\fbox{2}", "2"),
        (r"\boxed {x^{2}+1}", "x^{2}+1"),
        (r"unclosed \boxed{3", "3"),
        ("steps 1 2 3\n#### 1,234\nbye", "1,234"),
        ("#### 5 #### 6", "6"),
        ("<answer>3</answer> or <answer> 4 </answer>", "4"),
        ("<answer>3", "3"),
        ("The final answer is: **Paris**. Then 12.", "Paris"),
        ("Answer: x = 12, because 7 + 5 = 13", "12"),
        ("The answer is 3 + 4 = 7.", "7"),
        ("the answer is 3.5. Done.", "3.5"),
        ("the answer isn't clear but 6", "6"),
        ("first 10, then 10-7", "7"),
        ("it is \N{MINUS SIGN}4", "-4"),
        ("costs $1,234.50 in all.", "1,234.50"),
        ("sin2x", None),
        ("", None),
    ],
)
def test_where_the_answer_is(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7), ("+7.", 7), ("-3", -3), ("\N{MINUS SIGN}3", -3), ("1,234", 1234),
        ("1,234,567.5", Fraction(2469135, 2)), ("1,23", None),
        ("3/4", Fraction(3, 4)), ("3 / 4", Fraction(3, 4)), ("-1 1/2", Fraction(-3, 2)), ("1/0", None),
        (r"\frac{3}{4}", Fraction(3, 4)), (r"-\dfrac34", Fraction(-3, 4)), (r"2\frac{1}{2}", Fraction(5, 2)),
        (r"\frac{1}{0}", None), ("25%", Fraction(1, 4)), (r"25\%", Fraction(1, 4)), ("$5.00", 5), ("-$5", -5),
        (r"\$5", 5), ("12 km", 12), (r"12\text{ cm}", 12), ("5 dollars", 5), ("90^\\circ", 90), ("1.5e3", 1500),
        ("1e9999999", None), ("**8**", 8), ("x", None), ("2x+1", None), ("2\\sqrt{3}", None), ("12 or 13", None),
        ("9" * 2000, None), ("inf", None), ("nan", None), ("", None),
    ],
)  # fmt: skip
def test_what_is_a_number(text, value):
    assert parse_number(text) == value


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(-(10**6), 10**6), st.integers(1, 999))
def test_one_number_in_all_its_writings(top, bottom):
    value = Fraction(top, bottom)
    writings = [f"{top}/{bottom}", f"\\frac{{{top}}}{{{bottom}}}", f"${top} / {bottom}$"]
    writings += [str(top), f"{top:,}", f"{top}.0", f"{top} apples"] if bottom == 1 else []
    assert [parse_number(text) for text in writings] == [value] * len(writings)
    assert all(same_answer(a, b) for a in writings for b in writings)
    assert not same_answer(writings[0], f"{top + 1}/{bottom}")


def test_percentages_are_either_convention_and_nothing_else():
    assert same_answer("50%", "50")
    assert same_answer("0.5", "50%")
    assert same_answer("50%", "50 %")
    assert not same_answer("5", "50%")
    assert not same_answer("50", "0.5")


def test_texts_are_compared_without_decoration():
    assert same_answer(r"\left(3, \frac{\pi}{2}\right)", r"(3,\dfrac{\pi}{2})")
    assert same_answer(r"\text{Evelyn}", "evelyn")
    assert not same_answer("(1, 2)", "(2, 1)")
    assert not same_answer("12 or 13", "12")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("1," * 50_000, "1"),
        ("\\boxed{" * 50_000, None),
        ("answer is " * 50_000, None),
        ("<answer>" * 50_000 + "7", "7"),
        ("a " * 50_000, None),
        ("{" * 50_000 + "}" * 50_000, None),
    ],
)
def test_long_texts_are_read_in_one_pass(text, answer):
    # Anything quadratic would keep this test busy for minutes.
    assert extract_answer(text) == answer
    assert last_boxed(text) is None
    assert not same_answer(text, "12")
