"""The quadratic sections of MPS text: the Hessian Q of an objective `x'Qx/2 + c'x`.

    QUADOBJ   column column value [column value]     one triangle, either one; the other is meant too
    QMATRIX   column column value [column value]     the whole matrix: every entry off the diagonal stands twice, equal

HiGHS adds up an entry that is given twice, adds a column for a name that does not exist and reads `2f` as 2; the scan
refuses all three.
"""

from collections.abc import Callable, Iterable

from pdopt.errors import InvalidFile

QUADRATIC = (b"QUADOBJ", b"QMATRIX")


def scan_hessian(
    section: bytes,
    cards: Iterable[tuple[int, list[bytes]]],
    columns: dict[bytes, int],
    value: Callable[[bytes, str], float],
    error: Callable[[str, int | None], InvalidFile],
) -> int:
    """Check a section and count the nonzeros of a triangle of Q.

    Args:
        section: QUADOBJ or QMATRIX.
        cards: number and fields of every line.
        columns: the columns of the model.
        value: a number from its text, or the error.
        error: the error of a message and a line.

    Raises:
        InvalidFile: an unknown column, an entry given twice (QUADOBJ: in either triangle), a QMATRIX without symmetry.

    Example:
        >>> cards = [(7, [b"x", b"x", b"2"]), (8, [b"y", b"x", b"1"])]
        >>> fail = lambda message, line=None: InvalidFile("a.mps", message, line)
        >>> scan_hessian(b"QUADOBJ", cards, {b"x": 1, b"y": 2}, lambda text, where: float(text), fail)
        2
    """
    title, whole = section.decode(), section == b"QMATRIX"
    found: dict[tuple[bytes, bytes], tuple[float, int]] = {}
    for line, fields in cards:
        if len(fields) not in (3, 5):
            raise error(f"{len(fields)} fields in {title}; expected column column value [column value]", line)
        first = fields[0]
        for second, text in zip(fields[1::2], fields[2::2]):
            for column in (first, second):
                if column not in columns:
                    raise error(f"unknown column {_show(column)} in {title}", line)
            where = f"{title} of columns {_show(first)} and {_show(second)}"
            for place in ((first, second),) if whole else ((first, second), (second, first)):
                if place in found:
                    raise error(f"{where} is already given at line {found[place][1]}", line)
            found[first, second] = (value(text, where), line)
    if whole:
        for (first, second), (entry, line) in found.items():
            if found.get((second, first), (0.0, 0))[0] != entry:
                raise error(
                    f"{title} is not symmetric: columns {_show(first)} and {_show(second)} have {entry:g}, the other "
                    f"way round {found.get((second, first), (0.0, 0))[0]:g}",
                    line,
                )
    lower = {frozenset(place) for place, (entry, _) in found.items() if entry}
    return len(lower)


def _show(field: bytes) -> str:
    return repr(field.decode("utf-8", "replace"))
