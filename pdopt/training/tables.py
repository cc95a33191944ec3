"""Tables of prompts: files by their extension, or a hub's data set, with a fingerprint of what is in them.

The fingerprint is a sha256 over the rows as JSON in order, so the same rows are the same data whether they come from
`.jsonl` or `.parquet`, from another folder or another machine.
"""

import csv
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pdopt.errors import InvalidFile, InvalidOption
from pdopt.training.draws import random_order
from pdopt.training.tasks import TASKS, Row, Source, task


@dataclasses.dataclass(frozen=True)
class Table:
    """A finite source of rows.

    Attributes:
        name: file or data set, for reports.
        rows: a sequence of mappings.
        columns: names that every row has.
        sha256: of the rows' content.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    columns: tuple[str, ...]
    sha256: str

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @property
    def identity(self) -> dict[str, Any]:
        """Number of rows, columns and content; not the name, so a file may move between a save and a resume."""
        return {"rows": self.size, "columns": list(self.columns), "sha256": self.sha256}

    def __getitem__(self, index: int) -> Row:
        """Row `index`."""
        return dict(self.rows[index])


def open_source(
    source: str | Path,
    *,
    split: str | None = None,
    subset: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Source:
    """The rows that a recipe names.

    In this order: a generated task (`arithmetic`; `settings` are its own, `split` its split), a file (`.jsonl`,
    `.json`, `.parquet`, `.csv`), else a hub id.

    Args:
        source: name, path or id.
        split: "train" if None, for a hub's data set; None takes all rows of a task.
        subset: configuration of a hub's data set ("main" of gsm8k).
        settings: of a task.

    Raises:
        InvalidFile: a file that cannot be read or is empty.
        InvalidOption: settings for what has none, a data set that cannot be loaded.

    Example:
        >>> open_source("parity", settings={"length": 3}).size is None
        True
    """
    name = str(source)
    if name in TASKS:
        return task(name, {**(settings or {}), **({"split": split} if split else {})})
    if settings:
        raise InvalidOption(
            f"settings {dict(settings)} are given for {name!r}; only generated tasks {sorted(TASKS)} have any"
        )
    if Path(name).suffix.lower() in READERS:
        if split or subset:
            raise InvalidOption(f"split or subset is given for the file {name}; a file is one table")
        return read_table(name)
    if Path(name).exists():
        raise InvalidFile(name, f"unknown kind of table; expected one of {', '.join(READERS)}")
    return load_hub(name, split=split or "train", subset=subset)


def table(rows: Sequence[Mapping[str, Any]], name: str = "rows") -> Table:
    """A table of rows in memory, or of any sequence of mappings such as a `datasets.Dataset`.

    Raises:
        InvalidFile: no rows, or a row that is not a mapping.

    Example:
        >>> table([{"prompt": "1+1=", "answer": "2"}]).columns
        ('prompt', 'answer')
    """
    total, columns, count = hashlib.sha256(), None, 0
    for row in _scan(rows):
        if not isinstance(row, Mapping):
            raise InvalidFile(name, f"row {count} is a {type(row).__name__}; expected an object with columns")
        total.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass"))
        total.update(b"\n")
        columns = dict.fromkeys(row) if columns is None else {key: None for key in columns if key in row}
        count += 1
    if not count:
        raise InvalidFile(name, "the table has no rows")
    return Table(name, rows, tuple(map(str, columns or ())), total.hexdigest())


def read_table(path: str | Path) -> Table:
    """The rows of a file by its extension.

    `.jsonl`: an object a line; `.json`: a list of objects, or an object with one under "data"; `.parquet`; `.csv`: with
    a header, all values texts.

    Raises:
        InvalidFile: unknown extension, missing, malformed (with the line) or empty.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "sums.jsonl"
        ...     _ = file.write_text('{"prompt": "1+1=", "answer": "2"}\\n')
        ...     read_table(file)[0]
        {'prompt': '1+1=', 'answer': '2'}
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InvalidFile(path, f"unknown kind of table; expected one of {', '.join(READERS)}")
    if not path.is_file():
        raise InvalidFile(path, "no such file")
    try:
        return table(reader(path), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidFile(path, str(error)) from error


def load_hub(name: str, *, split: str = "train", subset: str | None = None, revision: str | None = None) -> Table:
    """A data set of the Hugging Face hub by its id; code that comes with one is never run.

    Raises:
        InvalidOption: it cannot be loaded: no such id, split or subset, or no connection.
    """
    from datasets import load_dataset

    try:
        loaded = load_dataset(name, subset, split=split, revision=revision)
    except Exception as error:  # the hub's client raises errors of many packages
        first = str(error).strip().partition("\n")[0]
        raise InvalidOption(
            f"cannot load the data set {name!r} (subset {subset!r}, split {split!r}): {type(error).__name__}: {first}. "
            f"Without a connection give a local file ({', '.join(READERS)}) or a generated task ({', '.join(TASKS)})"
        ) from error
    return table(loaded, f"{name}:{split}")  # pyright: ignore[reportArgumentType]


def hold_out(whole: Table, rows: int, *, seed: int = 0) -> tuple[Table, Table]:
    """A table in two: what is left to train on, and `rows` rows drawn by the seed and kept for evaluation.

    Both keep the order of the source.

    Raises:
        InvalidOption: no row would be left on one side.

    Example:
        >>> rest, kept = hold_out(table([{"prompt": str(i)} for i in range(10)]), 3)
        >>> rest.size, kept.size, {rest[i]["prompt"] for i in range(7)} & {kept[i]["prompt"] for i in range(3)}
        (7, 3, set())
    """
    if not 0 < rows < whole.size:
        raise InvalidOption(f"{rows} rows are to be held out of {whole.size}; expected 1 to {whole.size - 1}")
    order = random_order(whole.size, "held out", seed)
    rest, kept = ([whole[int(i)] for i in sorted(part)] for part in (order[rows:], order[:rows]))
    return table(rest, whole.name), table(kept, f"{whole.name} (held out)")


def _scan(rows: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The rows in order; of a `datasets.Dataset` a thousand at a time, which is ten times faster than one by one."""
    batches = getattr(rows, "iter", None)
    if batches is None:
        yield from rows
        return
    for batch in batches(batch_size=1000):
        yield from (dict(zip(batch, values)) for values in zip(*batch.values()))


def _read_jsonl(path: Path) -> list[Any]:
    found = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InvalidFile(path, f"not JSON: {error.msg} at column {error.colno}", number) from error
            if not isinstance(row, dict):
                raise InvalidFile(path, f"a {type(row).__name__}; expected an object", number)
            found.append(row)
    return found


def _read_json(path: Path) -> list[Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InvalidFile(path, f"not JSON: {error.msg}", error.lineno) from error
    rows = loaded.get("data") if isinstance(loaded, dict) else loaded
    if not isinstance(rows, list):
        raise InvalidFile(path, 'expected a list of objects, or an object with such a list under "data"')
    return rows


def _read_csv(path: Path) -> list[Any]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        names = reader.fieldnames or []
        if len(set(names)) < len(names):
            raise InvalidFile(path, f"the header repeats a column: {names}", 1)
        found = []
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise InvalidFile(path, f"expected {len(names)} values, one for each of {names}", reader.line_num)
                found.append(row)
        except csv.Error as error:
            raise InvalidFile(path, str(error), reader.line_num) from error
    return found


def _read_parquet(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet  # comes with datasets
    from datasets import Dataset

    try:
        return Dataset(pyarrow.parquet.read_table(path))
    except pyarrow.ArrowInvalid as error:
        raise InvalidFile(path, f"not Parquet: {error}") from error


READERS: Mapping[str, Callable[[Path], Any]] = MappingProxyType(
    {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet, ".csv": _read_csv}
)


def columns_of(
    rows: Iterable[Mapping[str, Any]], *, repeat: int = 1, leave: Sequence[str] = ("prompt", "completion")
) -> dict[str, list[Any]]:
    """Columns of a batch as score functions take them: each row's value `repeat` times, None where a row has none.

    Args:
        rows: of the batch.
        repeat: completions of each prompt, >= 1.
        leave: columns that are not handed on: score functions get `prompts` and `completions` themselves.

    Example:
        >>> columns_of([{"prompt": "1+1=", "answer": "2"}, {"prompt": "?"}], repeat=2)
        {'answer': ['2', '2', None, None]}
    """
    rows = list(rows)
    left_out = {*leave, "prompts", "completions", "completion_ids"}
    names = dict.fromkeys(name for row in rows for name in row if name not in left_out)
    return {name: [row.get(name) for row in rows for _ in range(repeat)] for name in names}
