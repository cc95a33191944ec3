"""From sampled tokens to rewards and costs: texts through a recipe's functions, or a scorer of one's own.

A scorer is any callable `scorer(sampled) -> Scores`. `TextScorer` decodes and calls the recipe's functions on the host;
a scorer of tokens may be a jitted function of the arrays, and then no text is ever made.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from pdopt.errors import InvalidOption
from pdopt.training.chat import completion_for, decode_completions
from pdopt.training.recipe import Recipe
from pdopt.training.reward_functions import score_function
from pdopt.training.rewards import score_table, text_of

# Measured by the step itself, from tokens and log-probabilities.
MEASURED = ("length", "kl")


class Sampled(NamedTuple):
    """Completions to score: b rows, those of one prompt one after the other.

    Attributes:
        rows: the data's row of each completion.
        prompts, valid: `(b, p)` left padded; tokens, mask: `(b, t)`; arrays of NumPy or JAX.
        step: the training step.
    """

    rows: Sequence[Mapping[str, Any]]
    prompts: Any
    valid: Any
    tokens: Any
    mask: Any
    step: int


class Scores(NamedTuple):
    """Scores of b completions; NaN where there is none.

    Attributes:
        rewards: `(b,)`.
        values: constraint -> `(b,)` cost or score; those that the trainer measures are left out.
        parts: name -> `(b,)`, for reports.
        texts: of the completions, () where none were made.
    """

    rewards: Any
    values: Mapping[str, Any]
    parts: Mapping[str, Any] = {}
    texts: Sequence[str] = ()


class Scorer(Protocol):
    """What turns completions into scores."""

    def __call__(self, sampled: Sampled) -> Scores:
        """Scores of every completion."""
        ...


class TextScorer:
    """The functions of a recipe, called on texts in threads within one time limit (`rewards.score_table`).

    The reward is `sum_k weight_k r_k` over the functions that apply to a row; NaN where none does.

    Args:
        recipe: resolved.
        tokenizer: decodes.
        functions: functions by name, beside the shipped ones; a recipe may use their names.

    Raises:
        InvalidOption: a function that does not exist, or settings that it refuses.
    """

    def __init__(
        self, recipe: Recipe, tokenizer: Any, functions: Mapping[str, Callable[..., Any]] | None = None
    ) -> None:
        given, self._tokenizer, self._column = dict(functions or {}), tokenizer, recipe.data.prompt
        self._weights = {part.name: part.weight for part in recipe.objective.rewards}
        self._functions: dict[str, Callable[..., Any]] = {}
        self._costs: dict[str, str] = {}
        self._timeout, self._failure = recipe.objective.reward_timeout, recipe.objective.failed_reward
        if len(self._weights) < len(recipe.objective.rewards):
            raise InvalidOption(f"objective.rewards has {list(self._weights)} and a name twice; expected each once")
        for part in recipe.objective.rewards:
            self._functions[part.name] = _function(part.name, part.options, given)
        for constraint in recipe.constraints:
            if constraint.kind in MEASURED:
                continue
            # A reward that is constrained as well is called once.
            shared = constraint.cost in self._functions and not constraint.options
            name = constraint.cost if shared else f"cost {constraint.name}"
            if not shared:
                self._functions[name] = _function(constraint.cost, constraint.options, given)
            self._costs[constraint.name] = name

    def __call__(self, sampled: Sampled) -> Scores:
        """Rewards and costs of the texts."""
        tokens, mask = np.asarray(sampled.tokens), np.asarray(sampled.mask)
        ids = [row[kept].tolist() for row, kept in zip(tokens, mask)]
        texts = decode_completions(self._tokenizer, ids)
        prompts = [row[self._column] for row in sampled.rows]
        completions = [completion_for(prompt, text) for prompt, text in zip(prompts, texts)]
        names = [name for name in (sampled.rows[0] if sampled.rows else {}) if name not in RESERVED]
        columns = {name: [row.get(name) for row in sampled.rows] for name in names}
        table = score_table(
            self._functions, prompts, completions, ids, columns, timeout=self._timeout,
            failure=self._failure, extra={"step": sampled.step},  # pyright: ignore[reportArgumentType]
        )  # fmt: skip
        rewards = combined({name: table.column(name) for name in self._weights}, self._weights)
        values = {name: table.column(column).astype(np.float32) for name, column in self._costs.items()}
        parts = {name: table.column(name) for name in table.names}
        return Scores(rewards, values, parts, [text_of(completion) for completion in completions])


# Arguments of every score function; a column of the data with such a name is the prompt itself.
RESERVED = ("prompts", "completions", "completion_ids", "step")


def combined(parts: Mapping[str, Any], weights: Mapping[str, float]) -> np.ndarray:
    """`sum_k weight_k r_k` over the parts that a row has, float32; NaN where it has none.

    Example:
        >>> print(combined({"a": np.array([1.0, np.nan]), "b": np.array([np.nan, np.nan])}, {"a": 2.0, "b": 1.0}))
        [ 2. nan]
    """
    table = np.stack([weights[name] * np.asarray(column, np.float64) for name, column in parts.items()])
    absent = np.isnan(table)
    return np.where(absent.all(axis=0), np.nan, np.where(absent, 0, table).sum(axis=0)).astype(np.float32)


def _function(name: str, options: Mapping[str, Any], given: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    if name not in given:
        return score_function(name, dict(options))
    if options:
        raise InvalidOption(f"{name} was given as a function and has options {dict(options)}; expected none")
    return given[name]
