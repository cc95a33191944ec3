"""Exit codes of every status, and a record that is strict JSON whatever it holds."""

import json
import math
import os
import signal

import pytest

from pdopt.cli.outcomes import EXIT_CODES, Stopped, exit_code, sigterm_raises
from pdopt.cli.solve import SolveOutcome
from pdopt.types import Status

# Design, section 8.
DESIGN = {
    0: (Status.OPTIMAL,),
    2: (Status.INVALID_PROBLEM,),
    3: (Status.ITERATION_LIMIT, Status.TIME_LIMIT, Status.PRECISION_LIMIT, Status.PENALTY_LIMIT,
        Status.LOCALLY_INFEASIBLE),
    4: (Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE),
    5: (Status.NUMERICAL_ERROR, Status.DIVERGED),
    130: (Status.INTERRUPTED,),
}  # fmt: skip


def test_every_status_has_the_exit_code_of_the_design():
    expected = {str(status): code for code, statuses in DESIGN.items() for status in statuses}
    assert expected == EXIT_CODES
    assert set(expected) == {str(status) for status in Status} - {"running"}
    assert [exit_code("interrupted", n) for n in (None, signal.SIGINT, signal.SIGTERM)] == [130, 130, 143]


def test_the_record_is_strict_json():
    outcome = SolveOutcome(objective=math.inf, residuals={"primal": math.nan, "dual": 0.5, "gap": -math.inf})
    outcome.fail(2, "two\nlines", ValueError("x"))

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    found = json.loads(outcome.as_json(), parse_constant=refuse)
    assert found["objective"] is None
    assert found["residuals"] == {"primal": None, "dual": 0.5, "gap": None}
    assert (found["message"], found["error"]["type"]) == ("two lines", "ValueError")
    assert set(found["seconds"]) == {"read", "presolve", "compile", "solve"}
    assert set(found["problem"]) == {"rows", "columns", "nonzeros", "quadratic"}


def test_sigterm_raises_inside_the_block_only():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped), sigterm_raises():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
