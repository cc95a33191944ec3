"""Solutions written and read back: every number exact, every damage an error."""

import dataclasses
import json

import numpy as np
import pytest

from pdopt.errors import InvalidFile, InvalidProblem
from pdopt.problems.linear import Certificate, LinearProgram
from pdopt.problems.mps import Model
from pdopt.problems.solution_file import read_solution, write_solution
from pdopt.types import Pair, Residuals, Solution, Status


@pytest.fixture(params=[np.float64, np.float32])
def model(request):
    problem = LinearProgram([1.0, 2.0, 0.0], np.array([[1.0, 1, 0], [0, 3, 1]]), [1.0, -np.inf], [1.0, 5.0],
                            np.zeros(3), np.full(3, np.inf), dtype=request.param)  # fmt: skip
    return Model(problem, "two words", ("r 1", "r2"), ("x", "y 2", "z"), 0, ())


def solution(model, *, z=True):
    dtype = model.problem.c.dtype
    x = np.array([1 / 3, 1e-300 if dtype == np.float64 else 1e-30, np.pi], dtype)
    pair = Pair(x, np.array([-0.1, 0.0], dtype))
    certificate = Certificate(np.array([0.7, np.nan, -np.inf], dtype), pair) if z else None
    residuals = Residuals(1e-9, 2e-9, np.inf, 0.1, 0.2, 0.3, np.nan)
    return Solution(pair, np.int32(Status.OPTIMAL), 1 / 7, -1e22, residuals, np.int32(12), certificate)


@pytest.mark.parametrize("suffix", [".sol", ".json"])
@pytest.mark.parametrize("z", [True, False])
def test_round_trip_is_exact(tmp_path, model, suffix, z):
    given = solution(model, z=z)
    path = tmp_path / f"out{suffix}"
    write_solution(path, model, given)
    found = read_solution(path)
    np.testing.assert_array_equal(found.x, given.x)
    np.testing.assert_array_equal(found.y, given.y)
    np.testing.assert_allclose(found.activity, [1 / 3, np.pi], rtol=4 * np.finfo(model.problem.c.dtype).eps)
    if z:
        np.testing.assert_array_equal(found.reduced_costs, given.certificate.z)
    else:
        assert found.reduced_costs is None
    assert (found.model, found.status, found.iterations) == ("two words", Status.OPTIMAL, 12)
    assert (found.column_names, found.row_names) == (model.column_names, model.row_names)
    assert (found.numbers["objective"], found.numbers["dual_objective"]) == (1 / 7, -1e22)
    np.testing.assert_array_equal([found.numbers[name] for name in Residuals._fields], given.residuals)


def test_every_cut_of_the_text_is_refused(tmp_path, model):
    path = tmp_path / "out.sol"
    write_solution(path, model, solution(model))
    lines = path.read_text().splitlines(keepends=True)
    for count in range(len(lines)):
        path.write_text("".join(lines[:count]))
        with pytest.raises(InvalidFile):
            read_solution(path)
    path.write_text("".join([*lines, "more\n"]))
    with pytest.raises(InvalidFile, match="expected the end"):
        read_solution(path)


@pytest.mark.parametrize(
    "change", [{"x": [1.0]}, {"y": None}, {"status": "fine"}, {"format": "other"}, {"extra": 1}, {"reduced_costs": [1]}]
)
def test_damaged_json_is_refused(tmp_path, model, change):
    path = tmp_path / "out.json"
    write_solution(path, model, solution(model))
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InvalidFile):
        read_solution(path)
    path.write_text("{")
    with pytest.raises(InvalidFile, match="line 1"):
        read_solution(path)


def test_missing(tmp_path):
    with pytest.raises(InvalidFile, match="no such file"):
        read_solution(tmp_path / "absent.sol")


def test_shapes_must_fit(tmp_path, model):
    right = solution(model)
    wrong = dataclasses.replace(right, pair=Pair(right.x[:2], right.y))
    with pytest.raises(InvalidProblem, match="x has shape"):
        write_solution(tmp_path / "out.sol", model, wrong)
    assert list(tmp_path.iterdir()) == []
