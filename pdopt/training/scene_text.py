"""The scene task as short texts, one character a token: what the trainer reads, and the scores as reward functions.

    prompt      AGQYkb1>     cells of ball, book, cup and lamp; where is the cup (k) seen from the book (b)?; hint; go
    completion  QG22         cell of the cup, cell of the book, conclusion, answer

Cells are the letters A to Y row by row, objects b (ball), k (book), c (cup), l (lamp), answers the digits 0 neither,
1 left, 2 below, 3 left and below. Under a tokenizer of single characters a text is the same tokens as in `scenes.py`,
which defines the task and its scores; here are the same draws from a host's generator, and scores of texts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pdopt.errors import require_range
from pdopt.training import scenes
from pdopt.training.draws import Draws
from pdopt.training.rewards import text_of

# Character number n is token n of the task.
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXY" + "bkcl" + "0123" + ">"
_NUMBERS = {character: number for number, character in enumerate(CHARACTERS)}
# Draws decide with probability p by an integer below this.
_FINE = 1 << 30


def written(tokens: Sequence[int]) -> str:
    """The text of tokens.

    Example:
        >>> written([0, 6, 16, 24, 26, 25, 30, 33])
        'AGQYkb1>'
    """
    return "".join(CHARACTERS[token] for token in tokens)


def row_maker(hint: float, noise: float, leak: float) -> Callable[[Draws], dict[str, Any]]:
    """A function from draws to a row: `prompt`, `trace` (of the imperfect teacher), `answer`, and `hinted`, the hint.

    The distribution is that of `scenes.draw_prompts` and `scenes.draw_traces`.

    Raises:
        InvalidOption: a probability outside [0, 1].

    Example:
        >>> row = row_maker(hint=1.0, noise=0.0, leak=0.0)(Draws(0, 0))
        >>> row["trace"][3] == row["answer"] == row["hinted"] == row["prompt"][6]
        True
    """
    for name, value in (("hint", hint), ("noise", noise), ("leak", leak)):
        require_range(name, value, 0.0, 1.0)
    objects, answers = len(scenes.OBJECTS), len(scenes.ANSWERS)

    def make(draws: Draws) -> dict[str, Any]:
        happens = lambda probability: draws.below(_FINE) < probability * _FINE
        cells = [draws.below(scenes.CELLS) for _ in range(objects)]
        a = draws.below(objects)
        b = (a + 1 + draws.below(objects - 1)) % objects
        truth = _quadrant(cells[a], cells[b])
        shown = truth if happens(hint) else (truth + 1 + draws.below(answers - 1)) % answers
        stated = [draws.below(scenes.CELLS) if happens(noise) else cells[asked] for asked in (a, b)]
        conclusion = _quadrant(*stated)
        given = shown if happens(leak) else conclusion
        word = lambda answer: scenes.FIRST_ANSWER + answer
        prompt = [*cells, scenes.FIRST_OBJECT + a, scenes.FIRST_OBJECT + b, word(shown), scenes.THINK]
        trace = [*stated, word(conclusion), word(given)]
        return {"prompt": written(prompt), "trace": written(trace), "answer": str(truth), "hinted": str(shown)}

    return make


def accuracy(*, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """1 where the answer of a completion is right.

    Example:
        >>> accuracy(prompts=["AGQYkb1>"] * 2, completions=["GA00", "AY33"])
        [1.0, 0.0]
    """
    return _scores(prompts, completions).accuracy.tolist()


def consistency(*, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """1 where the stated cells entail the conclusion and the conclusion is the answer.

    Example:
        >>> consistency(prompts=["AGQYkb1>"] * 3, completions=["GA00", "AY33", "GA03"])
        [1.0, 1.0, 0.0]
    """
    return _scores(prompts, completions).consistency.tolist()


def grounding(*, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """The share of the two stated cells that are those of the scene.

    Example:
        >>> grounding(prompts=["AGQYkb1>"] * 3, completions=["GA00", "GY33", "no such text"])
        [1.0, 0.5, 0.0]
    """
    return _scores(prompts, completions).grounding.tolist()


def _scores(prompts: list[Any], completions: list[Any]) -> scenes.Scores:
    for prompt in prompts:
        if not isinstance(prompt, str) or len(prompt) != scenes.PROMPT or not set(prompt) <= set(CHARACTERS):
            raise ValueError(f"the prompt {prompt!r} is no scene; expected {scenes.PROMPT} characters of {CHARACTERS}")
    return scenes.score(_tokens(prompts, scenes.PROMPT), _tokens(completions, scenes.COMPLETION))


def _tokens(texts: list[Any], length: int) -> np.ndarray:
    """Tokens `(n, length)`; a text of another length is nothing but THINK, which is neither a cell nor an answer."""
    found = np.full((len(texts), length), scenes.THINK, np.int32)
    for row, text in enumerate(map(text_of, texts)):
        if len(text) == length:
            found[row] = [_NUMBERS.get(character, scenes.THINK) for character in text]
    return found


def _quadrant(a: int, b: int) -> int:
    """`scenes.quadrant` of two integers, without an array."""
    return (a % scenes.GRID < b % scenes.GRID) + 2 * (a // scenes.GRID < b // scenes.GRID)
