"""What sampled completions say about a policy: pure functions of tables on the host, rows prompts, columns samples.

    pass@k       chance that k samples hold a right one:  1 - C(n - c, k) / C(n, k)  of c right ones among n
                 = 1 - prod_{i = n - c + 1}^{n} (1 - k / i)             (Chen et al. 2021, arXiv 2107.03374, eq. 1)
    majority@k   chance that the most frequent of k answers is right    (Wang et al. 2022, arXiv 2203.11171)
    greedy       share of right completions at temperature 0
    constraint   mean cost or score against its limit, in the training's own words: violation > 0 is broken

Uncertainty is over prompts: whole rows are drawn again with replacement (percentile bootstrap, Efron 1979), never
single samples, which are not independent within a prompt. NaN is a sample that was not scored and is left out.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from pdopt.errors import InvalidOption, InvalidProblem, require_range
from pdopt.training.draws import Draws

# Weights of the bootstrap are made for so many (resample, prompt) pairs at a time.
BLOCK = 2**22


class Interval(NamedTuple):
    """An estimate with the ends of its bootstrap interval; `prompts` is how many rows it rests on."""

    mean: float
    low: float
    high: float
    prompts: int


class Judged(NamedTuple):
    """One constraint on the evaluation prompts.

    Attributes:
        value: mean cost or score with its interval.
        limit: of the constraint.
        violation: value - limit for "at most", limit - value for "at least"; > 0 is broken.
        satisfied: whether violation <= 0.
        confidence: share of bootstrap resamples in which it is satisfied.
    """

    value: Interval
    limit: float
    violation: float
    satisfied: bool
    confidence: float


def pass_at_k(right: Any, k: int) -> np.ndarray:
    """Unbiased estimate of pass@k for each prompt.

    Args:
        right: `(p, n)` 0 or 1 (bool or float), NaN where a sample was not judged.
        k: samples that a user would draw, 1 <= k <= n.

    Returns:
        `(p,)` float64; NaN for a prompt with fewer than k judged samples.

    Raises:
        InvalidOption: k out of range.
        InvalidProblem: `right` is not a table of 0, 1 and NaN.

    Example:
        >>> pass_at_k([[1, 0, 0, 0], [0, 0, 0, 0]], 2).tolist()
        [0.5, 0.0]
    """
    right = _marks(right)
    _require_k(k, right.shape[1])
    n, c = np.sum(~np.isnan(right), axis=1), np.nansum(right, axis=1)
    i = np.arange(1, right.shape[1] + 1)
    # Fewer than k wrong samples: i = k is among the factors, which makes the product the 0 that it must be.
    inside = (i > (n - c)[:, None]) & (i <= n[:, None])
    lost = np.prod(np.where(inside, np.maximum(0.0, 1.0 - k / i), 1.0), axis=1)
    return np.where(n >= k, 1.0 - lost, np.nan)


def majority_at_k(answers: Sequence[Sequence[Any]], right: Any, k: int) -> np.ndarray:
    """Estimate of majority@k for each prompt: the mean over disjoint blocks of k samples.

    In a block the most frequent answer wins; among equally frequent ones each wins with equal chance. A None is a
    sample without an answer and has no vote; a block without votes is wrong.

    Args:
        answers: `(p, n)` what each sample answers, in a form in which equal answers are equal (`answers.plain_text`).
        right: `(p, n)` 0 or 1; equal answers of a prompt must be equally right. NaN counts as wrong.
        k: samples that vote, 1 <= k <= n.

    Returns:
        `(p,)` float64.

    Raises:
        InvalidOption: k out of range.
        InvalidProblem: tables of different shapes, or equal answers that are judged differently.

    Example:
        >>> majority_at_k([["4", "4", "5"], ["1", "2", None]], [[1, 1, 0], [1, 0, 0]], 3).tolist()
        [1.0, 0.5]
    """
    right = np.nan_to_num(_marks(right))
    lengths = {len(row) for row in answers}
    if len(answers) != len(right) or lengths - {right.shape[1]}:
        raise InvalidProblem(f"answers have {len(answers)} rows of {sorted(lengths)}; right has shape {right.shape}")
    _require_k(k, right.shape[1])
    blocks = right.shape[1] // k
    won = np.zeros((len(right), blocks))
    for prompt, (given, marks) in enumerate(zip(answers, right)):
        for block in range(blocks):
            part = slice(block * k, (block + 1) * k)
            won[prompt, block] = _vote(prompt, given[part], marks[part])
    return won.mean(axis=1)


def accuracy(right: Any) -> np.ndarray:
    """Share of right samples for each prompt, NaN without a judged one; with one greedy sample a row: 0 or 1.

    Example:
        >>> accuracy([[1, 0], [1, float("nan")]]).tolist()
        [0.5, 1.0]
    """
    return row_means(_marks(right))


def row_means(scores: Any) -> np.ndarray:
    """`(p,)` mean of each row of `(p, n)` scores over what is not NaN; NaN for a row with nothing else."""
    scores = _table(scores)
    seen = ~np.isnan(scores)
    total, count = np.where(seen, scores, 0.0).sum(axis=1), seen.sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def bootstrap(values: Any, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean over prompts with a percentile bootstrap interval.

    Args:
        values: `(p,)` one estimate a prompt; NaN ones are left out.
        level: of the interval, in (0, 1).
        resamples: >= 1.
        seed: the same seed gives the same interval.

    Returns:
        The interval; all NaN without any value.

    Example:
        >>> interval = bootstrap([0.0, 1.0] * 50)
        >>> interval.mean, 0.38 < interval.low < 0.43, 0.57 < interval.high < 0.62
        (0.5, True, True)
    """
    if not 0 < level < 1:
        raise InvalidOption(f"level is {level}; expected a number in (0, 1)")
    values = _present(values)
    if not len(values):
        return Interval(np.nan, np.nan, np.nan, 0)
    means = _resampled(values, resamples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high), len(values))


def judge(
    scores: Any,
    limit: float,
    *,
    sense: Literal["at most", "at least"] = "at most",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Judged:
    """A constraint's mean over prompts against its limit; each prompt counts once, however many samples it has.

    Args:
        scores: `(p, n)` costs ("at most") or scores ("at least"), NaN where the constraint does not apply.
        limit: of the mean.
        sense: which side is allowed.
        level, resamples, seed: of the interval (`bootstrap`).

    Returns:
        What was found; satisfied is False where nothing was measured.

    Example:
        >>> found = judge([[20.0, 24.0], [30.0, 22.0]], 25.0)
        >>> found.value.mean, found.violation, found.satisfied
        (24.0, -1.0, True)
    """
    if sense not in ("at most", "at least"):
        raise InvalidOption(f'sense is {sense!r}; expected "at most" or "at least"')
    each = row_means(scores)
    value = bootstrap(each, level=level, resamples=resamples, seed=seed)
    sign = 1.0 if sense == "at most" else -1.0
    violation = sign * (value.mean - limit)
    if not value.prompts:
        return Judged(value, float(limit), float("nan"), False, float("nan"))
    kept = sign * (_resampled(_present(each), resamples, seed) - limit) <= 0
    return Judged(value, float(limit), float(violation), bool(violation <= 0), float(kept.mean()))


def _vote(prompt: int, answers: Sequence[Any], marks: np.ndarray) -> float:
    votes: dict[Any, int] = {}
    truth: dict[Any, float] = {}
    for answer, mark in zip(answers, marks):
        if answer is None:
            continue
        votes[answer] = votes.get(answer, 0) + 1
        if truth.setdefault(answer, float(mark)) != mark:
            raise InvalidProblem(f"prompt {prompt}: the answer {answer!r} is judged both right and wrong")
    most = max(votes.values(), default=0)
    winners = [truth[answer] for answer, count in votes.items() if count == most]
    return sum(winners) / len(winners) if winners else 0.0


def _resampled(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """`(resamples,)` means of rows drawn with replacement."""
    require_range("resamples", resamples, 1)
    generator = np.random.Generator(np.random.Philox(key=Draws(seed, len(values)).below(2**63)))
    share = np.full(len(values), 1.0 / len(values))
    at_once = max(1, BLOCK // len(values))
    means = []
    for start in range(0, resamples, at_once):
        counts = generator.multinomial(len(values), share, size=min(at_once, resamples - start))
        means.append(counts @ values / len(values))
    return np.concatenate(means)


def _present(values: Any) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1:
        raise InvalidProblem(f"values have shape {values.shape}; expected one a prompt")
    return values[~np.isnan(values)]


def _table(scores: Any) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or 0 in scores.shape:
        raise InvalidProblem(f"scores have shape {scores.shape}; expected (prompts, samples)")
    return scores


def _marks(right: Any) -> np.ndarray:
    right = _table(right)
    if not np.all((right == 0) | (right == 1) | np.isnan(right)):
        raise InvalidProblem("right holds other values than 0, 1 and NaN; compare scores with a bound first")
    return right


def _require_k(k: int, n: int) -> None:
    if not isinstance(k, int | np.integer) or not 1 <= k <= n:
        raise InvalidOption(f"k is {k!r}; expected an integer in [1, {n}], the samples of a prompt")
