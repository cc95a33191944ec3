"""Named sets of linear programs: files of the data folder where present, generated ones with a seed elsewhere."""

import csv
from pathlib import Path

from benchmarks.data import Instance, read_mps
from benchmarks.instances.generated import generated

STATUS = {"optimal": "optimal", "infeasible": "primal_infeasible", "primal_infeasible": "primal_infeasible"}


def read_folder(folder: Path, reference: Path) -> list[Instance]:
    """All linear programs of a folder with what the reference table says of them; quadratic programs are left out."""
    with reference.open() as file:
        known = {row["name"]: row for row in csv.DictReader(file)}
    found = []
    for path in sorted(folder.glob("*.mps.gz")):
        name = path.name.removesuffix(".mps.gz")
        row = known.get(name, {})
        data = None if row.get("kind") == "QP" else read_mps(path)
        if data is None:
            continue
        text = row.get("objective", "")
        expected = STATUS.get(
            row.get("status", "").lower(), "optimal" if folder.name not in ("core", "infeasible") else ""
        )
        found.append(Instance(name, folder.name, data, expected, float(text) if text else None))
    return found


def linear_instances(folder: Path, full: bool, seed: int, source: str = "auto") -> list[Instance]:
    """`core` (quick) or every family (full) of `folder/lp`; generated ones where it is absent or asked for."""
    lp = folder / "lp"
    if source == "generated" or (source == "auto" and not lp.is_dir()):
        return generated(seed, scale=4 if full else 1)
    if source == "tiny":
        return generated(seed, scale=0)
    if not full:
        return read_folder(lp / "core", lp / "core" / "reference.csv")
    families = ("netlib", "kennington", "meszaros", "pds", "rail", "infeasible")
    return [i for family in families for i in read_folder(lp / family, lp / "reference.csv")]
