"""Exact values of arithmetic written by a model: rational numbers, four operations, brackets; nothing is ever executed.

    sum     = product (("+" | "-") product)*
    product = signed (("*" | "/") signed)*
    signed  = ("+" | "-") signed | number | "(" sum ")"

The text comes from a policy that is paid for the result, so every limit is set here: length, depth of nesting, digits
of a number. There is no power operator, hence no short text with a huge value.
"""

import re
from fractions import Fraction
from typing import NamedTuple

# Longest expression in characters and deepest nesting of brackets and signs; a number has at most `DIGITS` characters.
LENGTH = 2000
DEPTH = 50
DIGITS = 300

_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d*)?|\.\d+)|([-+*/()]))", re.ASCII)
# What models write for the four signs.
_SIGNS = {
    "\N{MULTIPLICATION SIGN}": "*", "\N{MIDDLE DOT}": "*", "\\times": "*", "\\cdot": "*",
    "\N{DIVISION SIGN}": "/", "\\div": "/", "\N{MINUS SIGN}": "-", "\N{EN DASH}": "-",
}  # fmt: skip


class InvalidExpression(ValueError):
    """A text that is no expression of the grammar, or one without a value; the message says where and why."""


class Value(NamedTuple):
    """What an expression is worth and the numbers written in it, in order of writing."""

    value: Fraction
    numbers: tuple[Fraction, ...]


def evaluate(text: str) -> Value:
    """The exact value of an arithmetic expression.

    Raises:
        InvalidExpression: anything outside the grammar, a division by zero, or a text beyond the limits.

    Example:
        >>> value, numbers = evaluate("(7 + 3) * 4 / 6")
        >>> str(value), [int(number) for number in numbers]
        ('20/3', [7, 3, 4, 6])
        >>> evaluate("2 ** 9")
        Traceback (most recent call last):
        ...
        pdopt.training.expressions.InvalidExpression: expected a number or "(" at 3 of '2 ** 9'
    """
    reader = _Reader(text)
    value = reader.sum(0)
    reader.end()
    return Value(value, tuple(reader.numbers))


class _Reader:
    """Recursive descent over the tokens of one text."""

    def __init__(self, text: str) -> None:
        if len(text) > LENGTH:
            raise InvalidExpression(f"the expression has {len(text)} characters; at most {LENGTH} are read")
        self._text = text
        for sign, plain in _SIGNS.items():
            text = text.replace(sign, plain)
        self._tokens = _tokens(text)
        self._next = 0
        self.numbers: list[Fraction] = []

    def sum(self, depth: int) -> Fraction:
        total = self.product(depth)
        while self._token() in ("+", "-"):
            total += self.product(depth) if self._take() == "+" else -self.product(depth)
        return total

    def product(self, depth: int) -> Fraction:
        total = self.signed(depth)
        while self._token() in ("*", "/"):
            if self._take() == "*":
                total *= self.signed(depth)
                continue
            where, divisor = self._next, self.signed(depth)
            if not divisor:
                raise InvalidExpression(f"division by zero at {self._place(where)}")
            total /= divisor
        return total

    def signed(self, depth: int) -> Fraction:
        if depth > DEPTH:
            raise InvalidExpression(f"more than {DEPTH} brackets and signs within each other")
        token = self._token()
        if token in ("+", "-"):
            return self.signed(depth + 1) if self._take() == "+" else -self.signed(depth + 1)
        if token == "(":
            self._take()
            value = self.sum(depth + 1)
            if self._token() != ")":
                raise InvalidExpression(f'expected ")" at {self._place(self._next)}')
            self._take()
            return value
        if not token or token in "*/)":
            raise InvalidExpression(f'expected a number or "(" at {self._place(self._next)}')
        if len(token) > DIGITS:
            raise InvalidExpression(f"a number of {len(token)} characters; at most {DIGITS} are read")
        self.numbers.append(Fraction(self._take()))
        return self.numbers[-1]

    def end(self) -> None:
        if self._token():
            raise InvalidExpression(f"expected an operation at {self._place(self._next)}")

    def _token(self) -> str:
        return self._tokens[self._next][0] if self._next < len(self._tokens) else ""

    def _take(self) -> str:
        self._next += 1
        return self._tokens[self._next - 1][0]

    def _place(self, number: int) -> str:
        place = self._tokens[number][1] if number < len(self._tokens) else len(self._text)
        return f"{place} of {self._text!r}"


def _tokens(text: str) -> list[tuple[str, int]]:
    found, place, text = [], 0, text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise InvalidExpression(f"cannot read {text[place : place + 12]!r} at {place}")
        found.append((match.group(1) or match.group(2), match.start(match.lastindex or 0)))
        place = match.end()
    return found
