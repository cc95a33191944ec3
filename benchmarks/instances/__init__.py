"""Named sets of linear programs: files of the data folder where present, generated ones with a seed elsewhere."""

import csv
from collections import Counter
from pathlib import Path

from benchmarks.data import Instance, read_mps
from benchmarks.instances.generated import generated

STATUS = {"optimal": "optimal", "infeasible": "primal_infeasible", "primal_infeasible": "primal_infeasible"}


def read_folder(folder: Path, reference: Path, largest: int | None = None, smallest: int = 0) -> list[Instance]:
    """The linear programs of a folder of `smallest` to `largest` nonzeros, with what the reference table says.

    A name that the table has in two families (two programs are called sc205) is given as "family/name": records are
    told apart by the name alone.
    """
    with reference.open() as file:
        rows = [(row["name"], row.get("family") or folder.name, row) for row in csv.DictReader(file)]
    known = {(name, family): row for name, family, row in rows}
    count = Counter(name for name, _ in known)
    found = []
    for path in sorted(folder.glob("*.mps.gz")):
        name = path.name.removesuffix(".mps.gz")
        row = known.get((name, folder.name), {})
        if row.get("kind") == "QP" or (largest is not None and int(row.get("nonzeros") or 0) > largest):
            continue
        data = read_mps(path)
        if data is None or data.nonzeros < smallest:
            continue
        text = row.get("objective", "")
        expected = STATUS.get(
            row.get("status", "").lower(), "optimal" if folder.name not in ("core", "infeasible") else ""
        )
        label = name if count[name] < 2 else f"{folder.name}/{name}"
        found.append(Instance(label, folder.name, data, expected, float(text) if text else None))
    return found


FAMILIES = ("core", "netlib", "kennington", "meszaros", "pds", "rail", "infeasible")


def linear_instances(
    folder: Path, full: bool, seed: int, source: str = "auto", families: tuple[str, ...] = (),
    largest: int | None = None, smallest: int = 0,
) -> list[Instance]:  # fmt: skip
    """The families named, else `core` (quick) or all others (full) of `folder/lp`; else generated ones.

    `smallest`, `largest`: nonzeros of an instance of the folder; None: no limit.
    """
    lp = folder / "lp"
    if source == "generated" or (source == "auto" and not lp.is_dir()):
        return generated(seed, scale=4 if full else 1)
    if source == "tiny":
        return generated(seed, scale=0)
    found = []
    for family in families or (FAMILIES[1:] if full else FAMILIES[:1]):
        own = lp / family / "reference.csv"
        found += read_folder(lp / family, own if own.exists() else lp / "reference.csv", largest, smallest)
    return found
