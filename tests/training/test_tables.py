"""Files of prompts: the same rows have one fingerprint in every format; broken files are named with their line."""

import csv
import json

import pytest

from pdopt.errors import InvalidFile, InvalidOption
from pdopt.training.tables import columns_of, hold_out, load_hub, open_source, read_table, table

ROWS = [{"prompt": "1+1=", "answer": "2"}, {"prompt": 'a \u00e9\n,"b"', "answer": "3"}]


@pytest.fixture
def files(tmp_path):
    """The same rows in every format."""
    from datasets import Dataset

    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "\n", encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps(ROWS), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps({"version": 1, "data": ROWS}), encoding="utf-8")
    Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    with (tmp_path / "a.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "answer"])
        writer.writeheader()
        writer.writerows(ROWS)
    return tmp_path


def test_every_format_gives_the_same_rows_and_fingerprint(files):
    tables = [read_table(files / name) for name in ("a.jsonl", "a.json", "b.json", "a.parquet", "a.csv")]
    assert [[made[i] for i in range(made.size)] for made in tables] == [ROWS] * 5
    assert len({made.sha256 for made in tables}) == 1
    assert tables[0].identity == table(ROWS).identity
    assert open_source(files / "a.csv").identity == tables[0].identity


def test_the_fingerprint_sees_values_order_and_columns():
    others = [
        ROWS[::-1],
        ROWS[:1],
        [*ROWS, ROWS[0]],
        [ROWS[0], {**ROWS[1], "answer": 3}],
        [ROWS[0], {**ROWS[1], "more": None}],
    ]
    assert len({table(rows).sha256 for rows in [ROWS, *others]}) == 6
    assert table(others[-1]).columns == ("prompt", "answer")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"prompt": 1}\n{"prompt": \n', r"a.jsonl, line 2: not JSON"),
        ("a.jsonl", '{"prompt": 1}\n[1]\n', "line 2: a list; expected an object"),
        ("a.jsonl", "\n", "the table has no rows"),
        ("a.json", '{"prompt": 1}', "expected a list of objects"),
        ("a.json", "[1]", "row 0 is a int"),
        ("a.json", "[\n{]", "line 2: not JSON"),
        ("a.csv", "prompt,answer\n1\n", "line 2: expected 2 values"),
        ("a.csv", "prompt,answer\n1,2,3\n", "line 2: expected 2 values"),
        ("a.csv", "prompt,prompt\n1,2\n", "line 1: the header repeats"),
        ("a.csv", 'prompt\n"open\n', "unexpected end of data"),
        ("a.csv", "", "the table has no rows"),
        ("a.parquet", "PAR1 not really", "not Parquet"),
        ("a.txt", "x", "unknown kind of table; expected one of .jsonl"),
    ],
)
def test_broken_files_are_named_with_their_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidFile, match=message):
        open_source(tmp_path / name)


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(InvalidFile, match="no such file"):
        read_table(tmp_path / "absent.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}\n')
    with pytest.raises(InvalidFile, match="utf-8"):
        read_table(tmp_path / "latin.jsonl")


def test_a_hub_that_cannot_be_reached_is_an_error_with_a_way_out(monkeypatch):
    import datasets

    def offline(*arguments, **settings):
        raise ConnectionError("Couldn't reach 'some/set' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(
        InvalidOption, match=r"cannot load the data set 'some/set' .*Couldn't reach.*\.jsonl.*arithmetic"
    ):
        open_source("some/set")


def test_a_hub_data_set_is_a_table(monkeypatch):
    import datasets

    def load(name, subset, *, split, revision):
        assert (name, subset, split, revision) == ("openai/gsm8k", "main", "test", None)
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    made = open_source("openai/gsm8k", split="test", subset="main")
    assert made.identity == table(ROWS).identity
    assert made[1] == ROWS[1]
    assert load_hub("openai/gsm8k", split="test", subset="main").name == "openai/gsm8k:test"


def test_settings_belong_to_what_has_them(files):
    assert open_source("parity", split="test", settings={"length": 3}).identity["split"] == "test"
    with pytest.raises(InvalidOption, match="only generated tasks"):
        open_source(files / "a.json", settings={"digits": 2})
    with pytest.raises(InvalidOption, match="a file is one table"):
        open_source(files / "a.json", split="test")


def test_columns_repeat_for_each_completion():
    rows = [{"prompt": "p", "answer": 1, "completion": "c"}, {"prompt": "q", "level": 2}]
    assert columns_of(rows, repeat=3) == {"answer": [1] * 3 + [None] * 3, "level": [None] * 3 + [2] * 3}


def test_rows_held_out_are_apart_and_depend_on_the_seed():
    whole = table([{"prompt": str(i)} for i in range(20)])
    parts = [hold_out(whole, 6, seed=seed) for seed in (0, 0, 1)]
    kept = [[made[i]["prompt"] for i in range(made.size)] for _, made in parts]
    rest = [parts[0][0][i]["prompt"] for i in range(14)]
    assert kept[0] == kept[1] != kept[2]
    assert sorted(kept[0] + rest, key=int) == [str(i) for i in range(20)]
    assert rest == sorted(rest, key=int)
    for rows in (0, 20):
        with pytest.raises(InvalidOption, match=f"{rows} rows are to be held out of 20; expected 1 to 19"):
            hold_out(whole, rows)
