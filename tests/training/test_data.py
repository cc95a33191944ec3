"""The order of prompts: every row once an epoch, continued exactly, shared by processes, refused for other data."""

import json
from collections import Counter

import numpy as np
import pytest

from pdopt.errors import CheckpointError, InvalidOption, InvalidProblem
from pdopt.training.data import (
    Position,
    PromptStream,
    left_pad,
    next_batch,
    position_record,
    resume_position,
    survey,
)
from pdopt.training.tables import table
from pdopt.training.tasks import parity

N = 10


def encode(prompt):
    return [ord(letter) for letter in prompt]


def source(n=N, longer=()):
    return table([{"prompt": f"{i:02d}" + "x" * (i in longer), "answer": i} for i in range(n)])


def run(stream, batches, position=None):
    """The batches from a position, and the position at the end."""
    found, position = [], Position() if position is None else position
    for _ in range(batches):
        batch, position = next_batch(stream, position)
        found.append(batch)
    return found, position


def numbers(batches):
    return [int(number) for batch in batches for number in batch.numbers]


@pytest.mark.parametrize("batch", [1, 3, 5, 7, 10, 23])
def test_each_epoch_gives_every_row_once_in_a_new_order(batch):
    stream = PromptStream(source(), encode, batch=batch, seed=4)
    made = numbers(run(stream, -(-3 * N // batch))[0])
    epochs = [made[e * N : (e + 1) * N] for e in range(3)]
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    # The order belongs to the seed and the epoch, not to the batch's size.
    assert made == numbers(run(PromptStream(source(), encode, batch=1, seed=4), len(made))[0])
    assert made[:N] != numbers(run(PromptStream(source(), encode, batch=1, seed=5), N)[0])


def test_unshuffled_rows_come_in_the_order_of_the_source():
    assert numbers(run(PromptStream(source(), encode, batch=4, shuffle=False), 5)[0]) == [*range(N), *range(N)]


@pytest.mark.parametrize("batch", [3, 5])
@pytest.mark.parametrize("saved_after", range(6))
def test_a_resumed_run_sees_what_the_uninterrupted_one_saw(batch, saved_after):
    # With batch 5 the second save lies exactly between two epochs, with batch 3 a batch spans them.
    whole, end = run(PromptStream(source(), encode, batch=batch, seed=1), 8)
    first, position = run(PromptStream(source(), encode, batch=batch, seed=1), saved_after)
    record = json.loads(json.dumps(position_record(PromptStream(source(), encode, batch=batch, seed=1), position)))
    stream = PromptStream(source(), encode, batch=batch, seed=1)
    second, again = run(stream, 8 - saved_after, resume_position(stream, record))
    assert numbers(first + second) == numbers(whole)
    assert again == end
    assert [batch.tokens for batch in first + second] == [batch.tokens for batch in whole]


def test_the_end_of_an_epoch_is_the_start_of_the_next():
    stream = PromptStream(source(), encode, batch=5)
    assert run(stream, 2)[1] == Position(1, 0)
    assert run(stream, 4)[1] == Position(2, 0)
    # The batch may change its size between a save and a resume: no row is skipped or repeated.
    record = position_record(stream, run(stream, 1)[1])
    other = PromptStream(source(), encode, batch=2)
    rest, _ = run(other, 5, resume_position(other, record))
    assert sorted(numbers(run(stream, 1)[0]) + numbers(rest)[:5]) == list(range(N))


def test_other_data_are_refused_and_both_are_shown():
    record = position_record(PromptStream(source(), encode, batch=2, seed=1), Position(0, 4))
    for stream, message in [
        (PromptStream(source(N + 1), encode, batch=2, seed=1), "'rows': 10.*'rows': 11"),
        (PromptStream(source(longer={3}), encode, batch=2, seed=1), "sha256.*sha256"),
        (PromptStream(source(), encode, batch=2, seed=2), "seed: saved 1, now 2"),
        (PromptStream(source(), encode, batch=2, seed=1, shuffle=False), "shuffle: saved True, now False"),
        (PromptStream(parity(), encode, batch=2), "'rows': 10.*'task': 'parity'"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            resume_position(stream, record)
    record = position_record(PromptStream(parity(seed=1), encode, batch=2), Position(0, 4))
    with pytest.raises(CheckpointError, match=r"'seed': 1.*'seed': 2"):
        resume_position(PromptStream(parity(seed=2), encode, batch=2), record)


@pytest.mark.parametrize("longest", [None, 2])
def test_processes_share_the_global_batches_in_blocks(longest):
    alone, end = run(PromptStream(source(longer={2, 7}), encode, batch=6, seed=2, longest=longest), 4)
    shared = [
        run(PromptStream(source(longer={2, 7}), encode, batch=6, seed=2, longest=longest, process=p, processes=3), 4)
        for p in range(3)
    ]
    for number, batch in enumerate(alone):
        blocks = [batches[number] for batches, _ in shared]
        assert [int(i) for block in blocks for i in block.numbers] == batch.numbers.tolist()
        assert [block.start for block in blocks] == [0, 2, 4]
        assert {block.dropped for block in blocks} == {batch.dropped}
    assert {position for _, position in shared} == {end}


def test_an_endless_source_goes_on_by_number():
    stream = PromptStream(parity(length=4), encode, batch=3)
    batches, position = run(stream, 4)
    assert numbers(batches) == list(range(12))
    assert position == Position(0, 12)
    assert [row for batch in batches for row in batch.rows] == [parity(length=4)[i] for i in range(12)]


def test_long_prompts_are_dropped_whole_and_counted():
    stream = PromptStream(source(longer={0, 4, 9}), encode, batch=7, longest=2)
    (first, second), position = run(stream, 2)
    assert sorted(numbers([first])) == [1, 2, 3, 5, 6, 7, 8]
    assert Counter(numbers([first, second])) == dict.fromkeys([1, 2, 3, 5, 6, 7, 8], 2)
    assert 3 <= first.dropped + second.dropped <= 6
    assert all(len(tokens) == 2 for batch in (first, second) for tokens in batch.tokens)
    assert position.epoch >= 1
    assert survey(stream) == (10, 3, 2.3, 3)


def test_long_prompts_can_be_an_error_and_too_many_always_are():
    stream = PromptStream(source(longer={4}), encode, batch=10, longest=2, overlong="error")
    with pytest.raises(InvalidProblem, match=r"row 4 of rows has 3 tokens; at most 2 fit .*'04x'"):
        next_batch(stream, Position())
    with pytest.raises(InvalidProblem, match="10 prompts in a row of rows are longer than 1 tokens"):
        next_batch(PromptStream(source(), encode, batch=1, longest=1), Position())
    with pytest.raises(InvalidProblem, match="10000 prompts in a row of parity"):
        next_batch(PromptStream(parity(), encode, batch=1, longest=1), Position())


def test_rows_without_a_prompt_are_named():
    rows = [{"prompt": "a"}, {"question": "b"}]
    with pytest.raises(InvalidProblem, match=r"row 1 of rows has no column 'prompt' \(its columns: \['question'\]\)"):
        PromptStream(table(rows), encode, batch=1)
    for prompt in (None, 3, "", []):
        stream = PromptStream(table([{"prompt": prompt}]), encode, batch=1)
        with pytest.raises(InvalidProblem, match=r"row 0 of rows has .* as 'prompt'; expected a text or messages"):
            next_batch(stream, Position())


def test_settings_are_checked_at_once():
    for settings, message in [
        ({"batch": 0}, "batch is 0"),
        ({"batch": 5, "processes": 2}, "batch is 5; expected a multiple of the 2 processes"),
        ({"batch": 2, "process": 2, "processes": 2}, "process is 2"),
        ({"batch": 2, "longest": 0}, "longest is 0"),
        ({"batch": 2, "overlong": "cut"}, "overlong is 'cut'"),
        ({"batch": 2, "seed": -1}, "seed is -1"),
    ]:
        with pytest.raises(InvalidOption, match=message):
            PromptStream(source(), encode, **settings)


def test_left_padding():
    ids, valid = left_pad([[1, 2, 3], [4]], pad=9, length=4)
    np.testing.assert_array_equal(ids, [[9, 1, 2, 3], [9, 9, 9, 4]])
    np.testing.assert_array_equal(valid, [[False, True, True, True], [False, False, False, True]])
    assert ids.dtype == np.int32
    assert left_pad([[1] * 9], pad=0, multiple=8)[0].shape == (1, 16)
    with pytest.raises(InvalidProblem, match="a prompt has 3 tokens; expected at most 2"):
        left_pad([[1, 2, 3]], pad=0, length=2)
    with pytest.raises(InvalidProblem, match=r"of \[1, 0\] tokens"):
        left_pad([[1], []], pad=0)
