"""Which part of a text is its answer, and when two answers are the same.

Found, in this order: the last `\\boxed{...}`, what follows the last `####`, the last `<answer>...</answer>`, what
follows the last "answer is" or "answer:", the last number. Compared as exact rational numbers where both are numbers
("1,234.50", "-3", "\\frac{1}{2}", "1 1/2", "3/4", "25%", "$5", "12 km", "1.5e3"), else as text without LaTeX's spacing
and decoration. A percentage equals the number before its sign and a hundredth of it, since data sets write both.

Conventions of the fields: `\\boxed` of MATH (Hendrycks et al. 2021), `####` of GSM8K (Cobbe et al. 2021), the tags of
DeepSeek-R1 (2025). Texts are a policy's own: patterns are linear and lengths are limited.
"""

import re
from fractions import Fraction

from pdopt.training.expressions import DIGITS

# Longest answer that is compared, in characters: longer ones are no answers of these data sets.
LONGEST = 1000

_BRACES = re.compile(r"\\f?boxed\s{0,3}\{|[{}]")
_NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3}(?!\d))?|[-+]?\.\d+"
_NUMBERS = re.compile(rf"(?<![\w.])(?:{_NUMBER})(?:\s?/\s?\d+)?%?", re.ASCII)
_ANSWER_IS = re.compile(r"answer\s{0,3}(?:is\b\s{0,3}:?|:|=)", re.IGNORECASE)
_REASON = re.compile(r",?\s(?:because|since|so|as|which)\s", re.IGNORECASE)
_SIMPLE = re.compile(rf"({_NUMBER})(?:\s*/\s*([-+]?\d+(?:\.\d+)?))?", re.ASCII)
_MIXED = re.compile(r"([-+]?)(\d+)\s+(\d+)\s*/\s*(\d+)", re.ASCII)
_FRACTION = re.compile(
    r"([-+]?)(\d*)\s*\\frac\s*(?:\{\s*([-+]?\d+)\s*\}|(\d))\s*(?:\{\s*([-+]?\d+)\s*\}|(\d))", re.ASCII
)
_UNIT = re.compile(r"\s*(?:\\?(?:text|mathrm|mbox)\s*\{[^{}]*\}|[^\W\d_][^\d{}=+*<>]{0,40}|°[CF]?|\^\\circ|\\circ)\s*")
_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|mbox|textbf)\s*\{([^{}]*)\}")
_SPACING = re.compile(r"\\(?:left|right|quad|displaystyle|limits)(?![a-zA-Z])|\\[!,;: ]|\s+|~")
_CURRENCY = "$€£¥"


def extract_answer(text: str) -> str | None:
    """The part of a text that states its answer, without surrounding space; None where there is none.

    Example:
        >>> extract_answer(r"So x = 4, hence \\boxed{\\frac{1}{2}}."), extract_answer("3 + 4 = 7 apples #### 7")
        ('\\\\frac{1}{2}', '7')
        >>> [extract_answer(t) for t in ("The answer is **12 km**. Not 13.", "first 3, then 1,250.", "none")]
        ['12 km', '1,250', None]
    """
    text = _plain_signs(text)
    if (found := last_boxed(text)) is not None:
        return found
    if "####" in text:
        return _line(text.rpartition("####")[2])
    if (found := between(text, "answer")) is not None:
        return found
    marks = list(_ANSWER_IS.finditer(text))
    if marks and (line := _sentence(text[marks[-1].end() :])):
        return line
    numbers = _NUMBERS.findall(text)
    return numbers[-1] if numbers else None


def last_boxed(text: str) -> str | None:
    """What the last complete `\\boxed{...}` (or `\\fbox`) holds, braces matched; None without one.

    Example:
        >>> last_boxed(r"\\boxed{1} then \\boxed{\\frac{3}{4}}, \\boxed{")
        '\\\\frac{3}{4}'
    """
    start, found, open_at = -1, None, []
    for mark in _BRACES.finditer(text):  # one pass: texts full of unclosed boxes cost no more than others
        if mark[0] != "}":
            open_at.append(mark.end() if len(mark[0]) > 1 else -1)
        elif open_at and (opened := open_at.pop()) > start:
            start, found = opened, text[opened : mark.start()].strip()
    return found


def between(text: str, tag: str) -> str | None:
    """What the last `<tag>...</tag>` holds, without surrounding space; None without one.

    Example:
        >>> between("<think>2+2</think><answer> 4 </answer>", "answer")
        '4'
    """
    head, closed, _ = text.rpartition(f"</{tag}>")
    _, opened, inside = head.rpartition(f"<{tag}>")
    return inside.strip() if closed and opened else None


def same_answer(given: str, truth: str) -> bool:
    """Whether two answers are the same number, or the same text up to case, spacing and LaTeX's decoration.

    Example:
        >>> [same_answer(a, "0.5") for a in (".50", "1/2", r"$\\frac12$", "50%", "0.51")]
        [True, True, True, True, False]
        >>> same_answer(r"\\text{Even}", "even"), same_answer("(1, 2)", "(1,2)"), same_answer("1,200 m", "1200")
        (True, True, True)
    """
    if len(given) > LONGEST or len(truth) > LONGEST:
        return given == truth
    if plain_text(given) == plain_text(truth):
        return True
    a, b = _values(given), _values(truth)
    return bool(a & b) if a and b else False


def parse_number(text: str) -> Fraction | None:
    """The exact number that a text is, a unit or currency sign aside; None where it is something else.

    A percentage is its hundredth.

    Example:
        >>> [str(parse_number(t)) for t in ("1,234.5", r"-\\frac{3}{4}", "1 1/2", "25%", "$5.00", "7 apples", "x+1")]
        ['2469/2', '-3/4', '3/2', '1/4', '5', '7', 'None']
    """
    if len(text) > DIGITS:
        return None
    text = _bare(_plain_signs(text))
    percent = text.endswith("%")
    number = _rational(text.rstrip("%\\ ") if percent else text)
    return number / 100 if percent and number is not None else number


def plain_text(text: str) -> str:
    """A text as it is compared: no dollar signs, spacing or LaTeX decoration, no full stop, small letters.

    Example:
        >>> plain_text(r"$\\left( \\dfrac{1}{2}, \\text{ Yes} \\right)$.")
        '(\\\\frac{1}{2},yes)'
    """
    text = _TEXT.sub(r"\1", _plain_signs(text)).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return _SPACING.sub("", text.replace("\\$", "").replace("$", "").replace("*", "")).rstrip(".").casefold()


def _values(text: str) -> set[Fraction]:
    """The numbers that a text may mean: a percentage means two."""
    number = parse_number(text)
    if number is None:
        return set()
    return {number, number * 100} if "%" in text else {number}


def _bare(text: str) -> str:
    text = text.strip().strip("*").strip().rstrip(".").strip()
    text = text.replace("\\$", "").replace("\\%", "%").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = re.sub(r"\\[!,;: ]|\\left|\\right", "", text)
    return re.sub(rf"^([-+]?)\s*[{re.escape(_CURRENCY)}]\s*", r"\1", text.strip("$ ")).strip()


def _rational(text: str) -> Fraction | None:
    for pattern, build in ((_FRACTION, _from_latex), (_MIXED, _from_mixed), (_SIMPLE, _from_simple)):
        match = pattern.match(text)
        if match and (match.end() == len(text) or _UNIT.fullmatch(text, match.end())):
            return build(match)
    return None


def _from_simple(match: re.Match[str]) -> Fraction | None:
    top = Fraction(match[1].replace(",", ""))
    bottom = Fraction(match[2]) if match[2] else Fraction(1)
    return top / bottom if bottom else None


def _from_mixed(match: re.Match[str]) -> Fraction | None:
    return _mixed(match[1], match[2], match[3], match[4])


def _from_latex(match: re.Match[str]) -> Fraction | None:
    return _mixed(match[1], match[2] or "0", match[3] or match[4], match[5] or match[6])


def _mixed(sign: str, whole: str, top: str, bottom: str) -> Fraction | None:
    divisor = int(bottom)
    if not divisor:
        return None
    value = int(whole) + Fraction(int(top), divisor)
    return -value if sign == "-" else value


def _line(text: str) -> str | None:
    return text.strip().partition("\n")[0].strip() or None


def _sentence(text: str) -> str | None:
    """What a line states: up to a full stop that ends a sentence, without reasons, after the last equality sign."""
    line = text.strip().partition("\n")[0]
    stated = _REASON.split(re.split(r"\.(?:\s|$)", line, maxsplit=1)[0], maxsplit=1)[0]
    return stated.rpartition("=")[2].strip().strip("*").strip() or None


def _plain_signs(text: str) -> str:
    return text.replace("\N{MINUS SIGN}", "-")
