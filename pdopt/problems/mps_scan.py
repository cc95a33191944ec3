"""A line-by-line check of MPS text, because a reader that guesses turns a typing error into another problem.

HiGHS, which reads our models, drops a coefficient it cannot parse, the third pair of a card and (with a warning in
its log) the second of two entries for one place, and adds a column for a bound whose column does not exist. The scan
builds nothing: it raises at the first line that does not mean one thing, and returns counts for comparison.

    NAME  text           OBJSENSE  MAX | MIN          ENDATA
    ROWS     kind name                                kind: N (first one: the objective), L, G, E
    COLUMNS  column row value [row value]             or: name 'MARKER' 'INTORG' | 'INTEND'
    RHS      [set] row value [row value]              on the objective row: minus the offset
    RANGES   [set] row value [row value]              L: [b - |r|, b], G: [b, b + |r|], E: [b, b + r] or [b + r, b]
    BOUNDS   kind [set] column [value]                UP LO FX LI UI SC SI with a value, FR MI PL BV without
    QUADOBJ | QMATRIX                                 the Hessian of the objective: see `mps_quadratic`

Free format separates fields by blanks. Fixed format puts them in columns 2-3, 5-12, 15-22, 25-36, 40-47 and 50-61, so
names may hold blanks. Of several right-hand sides, ranges or bounds sets none is chosen: the file is refused.
"""

import gzip
import math
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pdopt.errors import InvalidFile
from pdopt.problems.mps_quadratic import QUADRATIC, scan_hessian

LARGEST = 1e15  # HiGHS refuses matrix values from here on (its option large_matrix_value)

_ALONE = {b"ROWS", b"COLUMNS", b"RHS", b"RANGES", b"BOUNDS", b"ENDATA", *QUADRATIC}  # headers without a word after them
_REFUSED = {
    b"QSECTION": "this form of a quadratic objective is not read; expected QUADOBJ or QMATRIX",
    b"QCMATRIX": "quadratic constraints are not read, only quadratic objectives",
}
_SENSES = {b"MAX": True, b"MAXIMIZE": True, b"MIN": False, b"MINIMIZE": False}
_MARKER = b"'MARKER'"
_PLACES = ((1, 3), (4, 12), (14, 22), (24, 36), (39, 47), (49, 61))  # of fixed format, from 0
# Which sides a bound kind sets, and whether it has a value.
_BOUNDS = {
    b"UP": ("upper", True), b"LO": ("lower", True), b"FX": ("lower upper", True), b"LI": ("lower", True),
    b"UI": ("upper", True), b"SC": ("upper", True), b"SI": ("upper", True), b"FR": ("lower upper", False),
    b"MI": ("lower", False), b"PL": ("upper", False), b"BV": ("lower upper", False),
}  # fmt: skip


class Scan(NamedTuple):
    """What the scan counted: without the N rows and explicit zeros, as HiGHS counts them.

    `quadratic` counts a triangle of the Hessian; `quadratic_line` is that of its section, None where there is none.
    """

    name: str
    rows: int
    columns: int
    nonzeros: int
    maximise: bool
    notes: tuple[str, ...]
    quadratic: int = 0
    quadratic_line: int | None = None


def read_text(path: str | Path) -> bytes:
    """The bytes of a text file, unzipped when it is zipped (whatever its name says).

    Raises:
        InvalidFile: missing, unreadable, empty, a damaged archive, or binary (a NUL byte).
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise InvalidFile(path, "no such file") from None
    except OSError as error:
        raise InvalidFile(path, f"cannot be read ({error.strerror})") from error
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InvalidFile(path, f"damaged gzip archive ({error})") from error
    if not data.strip():
        raise InvalidFile(path, "the file is empty")
    if b"\0" in data:
        raise InvalidFile(path, "binary data (a NUL byte), not text", data.count(b"\n", 0, data.index(b"\0")) + 1)
    return data


def scan_mps(path: str | Path, text: bytes | None = None, *, fixed: bool = False) -> Scan:
    r"""Check MPS text and count what is in it.

    Args:
        path: the file, for messages, and for reading when `text` is not given.
        text: its contents.
        fixed: take fields by column position instead of by blanks.

    Raises:
        InvalidFile: naming file, line and field.

    Example:
        >>> scan_mps("a.mps", b"ROWS\n N cost\n L r\nCOLUMNS\n x cost 1 r 2\nENDATA\n").nonzeros
        1
        >>> scan_mps("a.mps", b"ROWS\n N cost\n L r\nCOLUMNS\n x cost 1 r 2f\nENDATA\n")
        Traceback (most recent call last):
        ...
        pdopt.errors.InvalidFile: a.mps, line 5: '2f' is not a number (row 'r' of column 'x')
    """
    return _Scanner(path, read_text(path) if text is None else text, fixed).scan()


def _fixed_fields(line: bytes) -> list[bytes]:
    """Fields by column position; empty ones at the end are dropped, blank ones before stay."""
    line = line.expandtabs()
    fields = [line[start:stop].strip() for start, stop in _PLACES]
    while fields and not fields[-1]:
        fields.pop()
    return fields


def _fixed_card(line: bytes) -> list[bytes]:
    """The fields of a line in COLUMNS, RHS or RANGES, whose first place is empty."""
    return _fixed_fields(line)[1:]


def _show(field: bytes) -> str:
    return repr(field.decode("utf-8", "replace"))


class _Scanner:
    def __init__(self, path: str | Path, text: bytes, fixed: bool) -> None:
        self.path, self.fixed = path, fixed
        self.lines: Iterator[tuple[int, bytes]] = enumerate(text.splitlines(), start=1)
        self.number = 0
        self.next_header: list[bytes] = []
        self.name, self.maximise, self.nonzeros = "", False, 0
        self.objective: bytes | None = None
        self.rows: dict[bytes, bytes] = {}
        self.columns: dict[bytes, int] = {}
        self.integers: set[bytes] = set()
        self.bounds: dict[tuple[bytes, str], int] = {}
        self.negative: list[bytes] = []  # columns with a negative upper bound
        self.quadratic, self.quadratic_line = 0, None

    def error(self, message: str, number: int | None = None) -> InvalidFile:
        return InvalidFile(self.path, message, self.number if number is None else number)

    def scan(self) -> Scan:
        sections: dict[bytes, Callable[[], list[bytes]]] = {
            b"NAME": self.no_data, b"ROWS": self.scan_rows, b"COLUMNS": self.scan_columns,
            b"RHS": lambda: self.scan_vector(b"RHS"), b"RANGES": lambda: self.scan_vector(b"RANGES"),
            b"BOUNDS": self.scan_bounds, b"OBJSENSE": self.scan_sense,
            **{word: lambda word=word: self.scan_quadratic(word) for word in QUADRATIC},
        }  # fmt: skip
        seen: dict[bytes, int] = {}
        header = self.no_data()
        while header[0] != b"ENDATA":
            word = header[0]
            if word in seen:
                raise self.error(f"a second section {word.decode()}; the first is at line {seen[word]}")
            seen[word] = self.number
            after_columns = dict.fromkeys((b"RHS", b"RANGES", b"BOUNDS", *QUADRATIC), b"COLUMNS")
            needs = {b"COLUMNS": b"ROWS", **after_columns}.get(word)
            if needs and needs not in seen:
                raise self.error(f"section {word.decode()} comes before {needs.decode()}")
            if word == b"NAME":
                self.name = b" ".join(header[1:]).decode("utf-8", "replace")
            if word == b"OBJSENSE" and len(header) > 1:
                self.set_sense(header[1:])
                header = self.no_data()
            else:
                header = sections[word]()
        for word in (b"ROWS", b"COLUMNS"):
            if word not in seen:
                raise self.error(f"ENDATA without a section {word.decode()}")
        for number, line in self.lines:
            if line.strip() and line[0] != 42:
                self.number = number
                raise self.error("text after ENDATA would be ignored")
        rows = sum(kind != b"N" for kind in self.rows.values())
        counts = (rows, len(self.columns), self.nonzeros)
        return Scan(self.name, *counts, self.maximise, tuple(self.notes()), self.quadratic, self.quadratic_line)

    def notes(self) -> Iterator[str]:
        for column in self.negative:
            if (column, "lower") not in self.bounds:
                yield f"negative upper bound without lower bound on {column.decode(errors='replace')}: lower stays 0"
        free = sum(kind == b"N" for kind in self.rows.values()) - (self.objective is not None)
        if free:
            yield f"{free} N rows after the objective left out"
        bounded = {column for column, _ in self.bounds}
        binary = len(self.integers - bounded)
        if binary:
            yield f"{binary} integer columns without bounds: upper bound 1, as MPS has it"

    def cards(self, section: str, split_fixed: Callable[[bytes], list[bytes]] = _fixed_fields) -> Iterator[list[bytes]]:
        """The fields of each line until the next header, which is left in `next_header`."""
        split = split_fixed if self.fixed else bytes.split
        for number, line in self.lines:
            self.number = number
            if line[:1] == b"*" or not line.strip():
                continue
            header = self.header(line)
            if header:
                self.next_header = header
                return
            yield split(line)
        raise self.error(f"the file ends in {section} without ENDATA: it was cut short")

    def header(self, line: bytes) -> list[bytes] | None:
        """The words of a section header, or None for a data line."""
        if line[:1] in (b" ", b"\t"):
            return None
        words = line.split()
        word = words[0]
        if word in _REFUSED:
            raise self.error(f"{word.decode()}: {_REFUSED[word]}")
        if (word in _ALONE and len(words) == 1) or word == b"NAME" or (word == b"OBJSENSE" and len(words) <= 2):
            return words
        if word.isalpha() and word.isupper() and (len(words) == 1 or self.fixed):
            raise self.error(f"unknown section {_show(word)}")
        return None

    def no_data(self) -> list[bytes]:
        found = next(self.cards("its first lines"), None)
        if found:
            raise self.error(f"expected a section (NAME, ROWS, ...), found {_show(b' '.join(found)[:60])}")
        return self.next_header

    def set_sense(self, fields: list[bytes]) -> None:
        if len(fields) != 1 or fields[0] not in _SENSES:
            raise self.error(f"objective sense {_show(b' '.join(fields))}; expected MAX or MIN")
        self.maximise = _SENSES[fields[0]]

    def scan_sense(self) -> list[bytes]:
        fixed, self.fixed = self.fixed, False  # one word, wherever it stands
        for fields in self.cards("OBJSENSE"):
            self.set_sense(fields)
        self.fixed = fixed
        return self.next_header

    def scan_rows(self) -> list[bytes]:
        lines: dict[bytes, int] = {}
        for fields in self.cards("ROWS"):
            if len(fields) != 2:
                raise self.error(f"{len(fields)} fields in ROWS; expected a kind and a name")
            kind, name = fields
            if kind not in (b"N", b"L", b"G", b"E"):
                raise self.error(f"row kind {_show(kind)}; expected N, L, G or E")
            if name in self.rows:
                raise self.error(f"row {_show(name)} is already defined at line {lines[name]}")
            if kind == b"N" and self.objective is None:
                self.objective = name
            self.rows[name], lines[name] = kind, self.number
        return self.next_header

    def scan_columns(self) -> list[bytes]:
        rows, columns, split = self.rows, self.columns, _fixed_card if self.fixed else bytes.split
        current, seen, integer, nonzeros, number = None, {}, False, 0, None
        for number, line in self.lines:  # the hot loop: a few dictionary look-ups and a float a pair
            fields = split(line)
            count = len(fields)
            if (count != 3 and count != 5) or fields[1] == _MARKER or line[0] == 42 or line[0] > 32:
                self.number = number
                if (not fields and not line.strip()) or line[0] == 42:
                    continue
                header = self.header(line)
                if header:
                    self.nonzeros = nonzeros
                    return header
                if _MARKER in line:
                    integer = self.marker(line, integer)
                    continue
                if count != 3 and count != 5:
                    raise self.error(f"{count} fields in COLUMNS; expected 3 or 5 (column, row, value, row, value)")
            column = fields[0]
            if column != current:
                if column in columns:
                    self.number = number
                    raise self.error(f"column {_show(column)} began at line {columns[column]} and was left")
                columns[column] = number
                current, seen = column, {}
                if integer:
                    self.integers.add(column)
            for i in (1, 3) if count == 5 else (1,):
                row, text = fields[i], fields[i + 1]
                kind = rows.get(row)
                try:
                    value = float(text)
                except ValueError:
                    value = math.nan
                if kind is None or row in seen or not -LARGEST < value < LARGEST or b"_" in text:
                    self.number = number
                    value = self.entry(column, row, text, seen)
                seen[row] = number
                if value and kind != b"N":
                    nonzeros += 1
        raise self.error("the file ends in COLUMNS without ENDATA: it was cut short", number)

    def marker(self, line: bytes, integer: bool) -> bool:
        begins = b"'INTORG'" in line
        if begins == (b"'INTEND'" in line) or begins == integer:
            raise self.error(f"MARKER line does not {'end' if integer else 'begin'} integer columns")
        return begins

    def entry(self, column: bytes, row: bytes, text: bytes, seen: dict[bytes, int]) -> float:
        """What is wrong with an entry of the matrix; its value when it only looked unusual."""
        if row not in self.rows:
            raise self.error(f"unknown row {_show(row)} in column {_show(column)}")
        where = f"row {_show(row)} of column {_show(column)}"
        if row in seen:
            raise self.error(f"{where} is already given at line {seen[row]}")
        value = self.value(text, where)
        if abs(value) >= LARGEST and self.rows[row] != b"N":
            raise self.error(f"{_show(text)} is too large: entries must be below {LARGEST:g} ({where})")
        return value

    def value(self, text: bytes, where: str, *, infinite: bool = False) -> float:
        """A number, Fortran's D exponents included; infinity only where `infinite` and spelt as a word."""
        try:
            if b"_" in text:
                raise ValueError
            value = float(re.sub(rb"(?<=[0-9.])[dD](?=[-+0-9])", b"e", text))
        except ValueError:
            raise self.error(f"{_show(text)} is not a number ({where})") from None
        if math.isnan(value):
            raise self.error(f"NaN ({where})")
        if math.isinf(value) and not (infinite and text.lstrip(b"+-").isalpha()):
            raise self.error(f"{_show(text)} is not a finite number ({where})")
        return value

    def scan_vector(self, section: bytes) -> list[bytes]:
        given: dict[bytes, int] = {}
        title, sets = section.decode(), {}
        for fields in self.cards(title, _fixed_card):
            if not 2 <= len(fields) <= 5:
                raise self.error(f"{len(fields)} fields in {title}; expected [set] row value [row value]")
            name, pairs = (fields[0], fields[1:]) if len(fields) % 2 else (b"", fields)
            self.one_set(sets, name, title)
            for row, text in zip(pairs[::2], pairs[1::2]):
                if row not in self.rows:
                    raise self.error(f"unknown row {_show(row)} in {title}")
                where = f"{title} of row {_show(row)}"
                if row in given:
                    raise self.error(f"{where} is already given at line {given[row]}")
                if section == b"RANGES" and self.rows[row] == b"N":
                    raise self.error(f"{where}: an N row has no range")
                self.value(text, where)
                given[row] = self.number
        return self.next_header

    def scan_quadratic(self, section: bytes) -> list[bytes]:
        if self.quadratic_line is not None:
            raise self.error(f"a second quadratic objective; the first is at line {self.quadratic_line}")
        self.quadratic_line = self.number
        cards = ((self.number, fields) for fields in self.cards(section.decode(), _fixed_card))
        self.quadratic = scan_hessian(section, cards, self.columns, self.value, self.error)
        return self.next_header

    def one_set(self, sets: dict[bytes, int], name: bytes, title: str) -> None:
        """Refuse a second set: HiGHS merges all of them, other readers take the first."""
        sets.setdefault(name, self.number)
        if len(sets) > 1:
            first = next(iter(sets))
            raise self.error(f"a second set {_show(name)} in {title}; line {sets[first]} begins {_show(first)}")

    def scan_bounds(self) -> list[bytes]:
        sets: dict[bytes, int] = {}
        for fields in self.cards("BOUNDS"):
            kind = fields[0]
            if kind not in _BOUNDS:
                raise self.error(f"bound kind {_show(kind)}; expected one of {b' '.join(_BOUNDS).decode()}")
            sides, valued = _BOUNDS[kind]
            name, column, text = self.bound_fields(fields, valued)
            self.one_set(sets, name, "BOUNDS")
            if column not in self.columns:
                raise self.error(f"unknown column {_show(column)} in BOUNDS")
            where = f"bound {kind.decode()} of column {_show(column)}"
            for side in sides.split():
                earlier = self.bounds.setdefault((column, side), self.number)
                if earlier != self.number:
                    raise self.error(f"{where}: its {side} bound is already given at line {earlier}")
            if text is not None and self.value(text, where, infinite=True) < 0 and kind in (b"UP", b"UI"):
                self.negative.append(column)
        return self.next_header

    def bound_fields(self, fields: list[bytes], valued: bool) -> tuple[bytes, bytes, bytes | None]:
        """Set, column and value of a bound: the set may be absent, and a kind without value may carry one."""
        count = len(fields)
        if not (3 if valued else 2) <= count <= 4:
            raise self.error(f"{count} fields in BOUNDS; expected kind [set] column{' value' if valued else ''}")
        if count == 4:
            return fields[1], fields[2], fields[3] if valued else None
        if valued:
            return b"", fields[1], fields[2]
        if count == 2:
            return b"", fields[1], None
        named = fields[2] in self.columns or fields[1] not in self.columns
        return (fields[1], fields[2], None) if named else (b"", fields[1], None)
