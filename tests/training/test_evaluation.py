"""pass@k, majority@k and intervals against enumeration over all subsets and resamples."""

import itertools
import math

import numpy as np
import pytest

from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.training.evaluation import accuracy, bootstrap, judge, majority_at_k, pass_at_k

NAN = float("nan")


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        right = [1] * c + [0] * (n - c)
        subsets = list(itertools.combinations(right, k))
        expected = sum(any(subset) for subset in subsets) / len(subsets)
        np.testing.assert_allclose(pass_at_k([right], k), [expected], atol=1e-14)


def test_pass_at_k_with_many_samples_does_not_overflow():
    n, c, k = 2000, 3, 100
    expected = 1 - math.comb(n - c, k) / math.comb(n, k)
    np.testing.assert_allclose(pass_at_k([[1.0] * c + [0.0] * (n - c)], k), [expected], rtol=1e-12)


def test_samples_that_were_not_judged_are_left_out():
    right = [[1, NAN, 0, 0], [NAN, NAN, NAN, 1], [NAN] * 4]
    np.testing.assert_allclose(pass_at_k(right, 2), [2 / 3, NAN, NAN])
    np.testing.assert_allclose(pass_at_k(right, 1), [1 / 3, 1, NAN])
    np.testing.assert_allclose(accuracy(right), [1 / 3, 1, NAN])


def test_pass_at_1_is_the_accuracy():
    right = np.random.default_rng(0).integers(0, 2, (20, 7))
    np.testing.assert_allclose(pass_at_k(right, 1), accuracy(right), atol=1e-14)


def test_majority_votes():
    answers = [["a", "a", "b", "c"], ["a", "b", "b", "b"], ["a", "b", "c", "d"], ["a", None, None, None], [None] * 4]
    right = [[1, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert majority_at_k(answers, right, 4).tolist() == [1, 0, 0.25, 1, 0]
    assert majority_at_k(answers, right, 2).tolist() == [0.5, 0.25, 0.25, 0.5, 0]
    assert majority_at_k(answers, right, 3).tolist() == [1, 0, 1 / 3, 1, 0]  # the fourth sample fills no block
    np.testing.assert_array_equal(majority_at_k(answers, right, 1), accuracy(right))


def test_the_interval_is_that_of_all_resamples():
    values = np.array([0.0, 0.3, 1.0, 0.7])
    means = [np.mean(draw) for draw in itertools.product(values, repeat=4)]
    interval = bootstrap(values, level=0.8, resamples=40_000)
    assert interval.mean == pytest.approx(0.5)
    # The quantiles of the exact distribution, up to its steps of 0.075 or less near them.
    np.testing.assert_allclose(interval[1:3], np.quantile(means, [0.1, 0.9]), atol=0.03)
    assert interval.prompts == 4


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(1)
    covered = [
        low <= 0.3 <= high
        for _, low, high, _ in (bootstrap(rng.random(60) < 0.3, resamples=300, seed=i) for i in range(200))
    ]
    # 95 % of 200, less what a percentile interval loses at 60 prompts, give or take four standard errors.
    assert 0.86 <= np.mean(covered) <= 1.0


def test_the_seed_decides_and_blocks_do_not(monkeypatch):
    values = np.random.default_rng(0).random(50)
    first = bootstrap(values, seed=3, resamples=101)
    assert first == bootstrap(values, seed=3, resamples=101) != bootstrap(values, seed=4, resamples=101)
    monkeypatch.setattr("pdopt.training.evaluation.BLOCK", 500)
    assert bootstrap(values, seed=3, resamples=101) == first


def test_missing_prompts_do_not_count_and_none_at_all_is_nan():
    assert bootstrap([1.0, NAN, 1.0]) == (1.0, 1.0, 1.0, 2)
    assert np.isnan(bootstrap([NAN])[:3]).all()


def test_constraints_are_judged_by_their_sense():
    costs = np.array([[10.0, 20.0], [30.0, NAN], [NAN, NAN], [20.0, 20.0]])  # row means 15, 30, -, 20
    at_most = judge(costs, 22.0)
    assert at_most.value.mean == pytest.approx(65 / 3)
    assert at_most.violation == pytest.approx(65 / 3 - 22)
    assert at_most.satisfied
    at_least = judge(costs, 22.0, sense="at least")
    assert at_least.violation == pytest.approx(22 - 65 / 3)
    assert not at_least.satisfied
    # No resample has its mean on the limit, so each satisfies exactly one of the two.
    assert at_most.confidence + at_least.confidence == pytest.approx(1.0)
    exact = np.mean([np.mean(draw) <= 22 for draw in itertools.product([15, 30, 20], repeat=3)])
    assert at_most.confidence == pytest.approx(exact, abs=0.05)
    assert judge([[1.0]], 1.0).satisfied
    nothing = judge([[NAN]], 1.0)
    assert not nothing.satisfied
    assert math.isnan(nothing.violation)


def test_what_cannot_be_evaluated_is_refused():
    for k in (0, 4, 1.5):
        with pytest.raises(InvalidOption, match=rf"k is {k}; expected an integer in \[1, 3\]"):
            pass_at_k([[1, 0, 1]], k)
    with pytest.raises(InvalidProblem, match="other values than 0, 1 and NaN"):
        pass_at_k([[0.5]], 1)
    with pytest.raises(InvalidProblem, match=r"shape \(2,\)"):
        accuracy([1, 0])
    with pytest.raises(InvalidProblem, match="answer 'a' is judged both right and wrong"):
        majority_at_k([["a", "a"]], [[1, 0]], 2)
    with pytest.raises(InvalidProblem, match="answers have 1 rows"):
        majority_at_k([["a"]], [[1, 0]], 1)
    with pytest.raises(InvalidOption, match="level is 1"):
        bootstrap([1.0], level=1.0)
    with pytest.raises(InvalidOption, match="sense is 'below'"):
        judge([[1.0]], 1.0, sense="below")
