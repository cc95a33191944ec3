"""The arithmetic parser against Python's own fractions, and what it refuses."""

import ast
import operator
import re
import warnings
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdopt.training.expressions import DEPTH, DIGITS, LENGTH, InvalidExpression, evaluate

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def number(value):
    return str(value), Fraction(value), [Fraction(value)], 3


def binary(parts):
    """Two made expressions joined: text, value (None without one), numbers, how tightly the text binds."""
    (left, a, seen, left_rank), sign, (right, b, also, right_rank) = parts
    rank = 1 if sign in "+-" else 2
    # Brackets exactly where Python needs them: a lower rank on the left, a lower or equal one on the right.
    left = f"({left})" if left_rank < rank else left
    right = f"( {right})" if right_rank <= rank else right
    undefined = a is None or b is None or (sign == "/" and b == 0)
    return f"{left} {sign}{right}", None if undefined else OPERATIONS[sign](a, b), seen + also, rank


def negated(part):
    text, value, seen, rank = part
    return f"-({text})" if rank < 3 else f"- {text}", None if value is None else -value, seen, 2


EXPRESSIONS = st.recursive(
    st.integers(0, 99).map(number) | st.sampled_from(["0.5", "12.25", ".75"]).map(number),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(binary) | inner.map(negated),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(EXPRESSIONS)
def test_value_and_numbers_are_those_of_exact_fractions(made):
    text, value, seen, _ = made
    if value is None:
        with pytest.raises(InvalidExpression, match="division by zero"):
            evaluate(text)
    else:
        assert evaluate(text) == (value, tuple(seen))


def by_python(text):
    """The value by Python's own parser and Fraction, None where a text is outside of the grammar."""
    text = re.sub(r"(?<![\d.])0+(?=\d)", "", text).strip()  # Python refuses leading zeros

    def value(node):
        if isinstance(node, ast.BinOp):
            return {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}[
                type(node.op)
            ](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp):
            return {ast.UAdd: operator.pos, ast.USub: operator.neg}[type(node.op)](value(node.operand))
        return Fraction({ast.Constant: ast.get_source_segment(text, node)}[type(node)])

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return value(ast.parse(text, mode="eval").body)
    except (SyntaxError, KeyError, ZeroDivisionError):
        return None


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text("0123456789.+-*/() ", max_size=10))
def test_any_text_is_read_as_python_reads_it_or_refused(text):
    try:
        value = evaluate(text).value
    except InvalidExpression:
        value = None
    assert value == by_python(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'expected a number or "\\(" at 0'),
        ("1 +", 'expected a number or "\\("'),
        ("1 2", "expected an operation at 2"),
        ("(1 + 2", 'expected "\\)"'),
        ("1)", "expected an operation"),
        ("2 ** 3", 'expected a number or "\\("'),
        ("7 // 2", 'expected a number or "\\("'),
        ("1 / (2 - 2)", "division by zero"),
        ("__import__('os')", "cannot read"),
        ("1e3", "cannot read 'e3'"),
        ("(" * (DEPTH + 2) + "1" + ")" * (DEPTH + 2), "more than 50"),
        ("-" * 5000 + "1", f"at most {LENGTH}"),
        ("-" * 100 + "1", "more than 50"),
        ("9" * (DIGITS + 1), f"at most {DIGITS}"),
        ("\u0661 + 1", "cannot read"),
    ],
)
def test_refusals_say_where(text, message):
    with pytest.raises(InvalidExpression, match=message):
        evaluate(text)


def test_signs_that_models_write():
    assert evaluate("2 \N{MULTIPLICATION SIGN} 3 \N{MINUS SIGN} 4 \N{DIVISION SIGN} 2").value == 4
    assert evaluate(r"6 \times 7 \div 2").value == 21
