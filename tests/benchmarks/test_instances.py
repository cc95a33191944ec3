"""The folder's reader: families, sizes, and two programs of one name."""

import gzip

import pytest

from benchmarks.harness import Options, run_all
from benchmarks.instances import linear_instances

PROGRAM = "NAME t\nROWS\n N cost\n G row\nCOLUMNS\n x cost {cost} row 1\nRHS\n rhs row 1\nENDATA\n"
REFERENCE = """name,family,rows,columns,nonzeros,status,objective
same,meszaros,1,1,1,optimal,3.0
alone,netlib,1,1,1,infeasible,
same,netlib,1,1,1,optimal,2.0
"""


@pytest.fixture
def folder(tmp_path):
    for family, name, cost in (("meszaros", "same", 3), ("netlib", "same", 2), ("netlib", "alone", 1)):
        path = tmp_path / "lp" / family / f"{name}.mps.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt") as file:
            file.write(PROGRAM.format(cost=cost))
    (tmp_path / "lp" / "reference.csv").write_text(REFERENCE)
    return tmp_path


def test_two_of_one_name_keep_their_own_reference(folder):
    found = linear_instances(folder, True, 0, families=("netlib", "meszaros"))
    assert [(i.name, i.expected, i.objective, i.data.c.tolist()) for i in found] == [
        ("alone", "primal_infeasible", None, [1.0]),
        ("netlib/same", "optimal", 2.0, [2.0]),
        ("meszaros/same", "optimal", 3.0, [3.0]),
    ]


def test_the_name_does_not_depend_on_the_choice_of_families(folder):
    assert [i.name for i in linear_instances(folder, True, 0, families=("meszaros",))] == ["meszaros/same"]


def test_sizes(folder):
    assert linear_instances(folder, True, 0, families=("netlib",), smallest=2) == []
    assert linear_instances(folder, True, 0, families=("netlib",), largest=0) == []


def test_records_of_one_name_are_refused(folder, tmp_path):
    twice = linear_instances(folder, True, 0, families=("meszaros", "meszaros"))
    with pytest.raises(ValueError, match="meszaros/same"):
        run_all(twice, ("pdopt",), Options(output=tmp_path), lambda line: None)
