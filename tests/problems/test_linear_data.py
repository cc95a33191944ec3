"""What a linear program's constructor refuses, converts and keeps: reliability rows 1 to 18."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

import pdopt
from pdopt.errors import InvalidProblem
from pdopt.operators.dense import Dense
from pdopt.operators.implicit import Implicit
from pdopt.operators.sparse import Sparse

INF = np.inf


def make(data, **options):
    return pdopt.LinearProgram(**data, **options)


GOOD = {"c": [1.0, 2.0, 3.0], "A": np.ones((2, 3), np.float32), "row_lower": [0.0, 0.0], "row_upper": [1.0, INF],
            "lower": [0.0, -INF, 0.0], "upper": [1.0, INF, INF]}  # fmt: skip


def changed(name, index, value):
    array = np.array(GOOD[name], np.float32)
    array[index] = value
    return GOOD | {name: array}


@pytest.mark.parametrize("name", [k for k in GOOD if k != "A"])
def test_nan_is_refused_with_its_place(name):
    with pytest.raises(InvalidProblem, match=rf"{name} has 1 NaN at index 1"):
        make(changed(name, 1, np.nan))


def test_nan_in_the_matrix_or_the_offset_is_refused_with_its_place():
    with pytest.raises(InvalidProblem, match=r"A has 1 NaN at index \(1, 2\)"):
        make(changed("A", (1, 2), np.nan))
    with pytest.raises(InvalidProblem, match="offset has 1 NaN"):
        make(GOOD | {"offset": np.nan})
    with pytest.raises(InvalidProblem, match=r"c has 2 NaN at index 0 \(the first\)"):
        make(GOOD | {"c": [np.nan, 0.0, np.nan]})


def test_nan_in_a_sparse_matrix_is_refused_with_its_row_and_column():
    matrix = sp.random(100, 100, density=0.05, random_state=0, format="coo", dtype=np.float32)
    matrix.data[7] = np.nan
    bad = (int(matrix.row[7]), int(matrix.col[7]))
    data = {
        "c": np.zeros(100, np.float32),
        "A": matrix,
        "row_lower": np.zeros(100, np.float32),
        "row_upper": np.ones(100, np.float32),
    }
    with pytest.raises(InvalidProblem, match=rf"A has 1 NaN at index \({bad[0]}, {bad[1]}\)"):
        make(data)


@pytest.mark.parametrize("value", [INF, -INF])
def test_infinity_where_a_number_is_needed_is_refused(value):
    with pytest.raises(InvalidProblem, match="c has 1 infinity at index 0"):
        make(changed("c", 0, value))
    with pytest.raises(InvalidProblem, match=r"A has 1 infinity at index \(0, 0\)"):
        make(changed("A", (0, 0), value))


@pytest.mark.parametrize(
    ("name", "value", "sign"),
    [("row_lower", INF, "\\+"), ("lower", INF, "\\+"), ("row_upper", -INF, "-"), ("upper", -INF, "-")],
)
def test_a_bound_infinite_on_the_wrong_side_is_refused(name, value, sign):
    with pytest.raises(InvalidProblem, match=f"{name} has 1 {sign}infinity at index 1"):
        make(changed(name, 1, value))


def test_an_equality_at_infinity_is_refused():
    with pytest.raises(InvalidProblem, match="row_lower has 1"):
        make(GOOD | {"row_lower": [0.0, INF], "row_upper": [1.0, INF]})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("c", [1.0, 2.0], r"c has shape \(2,\); expected \(3,\) because A has 3 columns"),
        ("c", [[1.0], [2.0], [3.0]], r"c has shape \(3, 1\)"),
        ("row_lower", [0.0] * 3, r"row_lower has shape \(3,\); expected \(2,\) because A has 2 rows"),
        ("row_upper", 1.0, r"row_upper has shape \(\)"),
        ("lower", [0.0] * 4, r"lower has shape \(4,\); expected \(3,\)"),
        ("upper", [0.0] * 2, r"upper has shape \(2,\)"),
        ("offset", [1.0], r"offset has shape \(1,\)"),
        ("A", [1.0, 2.0, 3.0], r"A has shape \(3,\); expected two dimensions"),
        ("A", "abc", "A has type str"),
    ],
)
def test_a_wrong_shape_is_refused_with_both(name, value, message):
    with pytest.raises(InvalidProblem, match=message):
        make(GOOD | {name: value})


def test_crossed_bounds_are_left_to_the_solver():
    lp = make(GOOD | {"lower": [2.0, 0.0, 0.0]})
    assert bool(lp.crossed())
    assert not bool(make(GOOD).crossed())


def test_unchecked_data_are_taken_as_they_are_and_judged_when_traced():
    bad = make(changed("c", 0, np.nan), check=False)
    assert not bool(bad.valid())
    assert bool(make(GOOD).valid())
    for name, value in (("A", np.nan), ("lower", INF), ("row_upper", -INF), ("row_lower", np.nan)):
        index = (0, 0) if name == "A" else 0
        assert not bool(jax.jit(lambda lp: lp.valid())(make(changed(name, index, value), check=False))), name


@pytest.mark.parametrize("kind", [int, bool, np.int8, np.uint16])
def test_integers_become_the_default_float(kind):
    lp = pdopt.LinearProgram(np.array([1, 0], kind), np.array([[1, 1]], kind), np.array([1], kind), np.array([1], kind))
    assert {leaf.dtype for leaf in jax.tree.leaves(lp)} == {np.dtype(np.float32)}
    with jax.enable_x64(True):
        lp = pdopt.LinearProgram(
            np.array([1, 0], kind), np.array([[1, 1]], kind), np.array([1], kind), np.array([1], kind)
        )
        assert {leaf.dtype for leaf in jax.tree.leaves(lp)} == {np.dtype(np.float64)}


def test_low_precision_is_refused_unless_asked_for():
    low = GOOD | {"A": jnp.ones((2, 3), jnp.bfloat16)}
    with pytest.raises(InvalidProblem, match="A is bfloat16"):
        make(low)
    assert (
        make({k: jnp.asarray(v, jnp.bfloat16) for k, v in low.items()}, allow_low_precision=True).c.dtype
        == jnp.bfloat16
    )
    assert make(low, dtype=jnp.float32).A.dtype == jnp.float32


def test_float64_data_are_narrowed_with_a_warning_or_kept_when_asked():
    wide = GOOD | {"c": np.array([1.0, 2.0, 3.0])}
    with pytest.warns(UserWarning, match=r"c: NumPy float64 data converted to float32.*dtype=jnp.float64"):
        assert make(wide).c.dtype == np.float32
    assert make(wide, dtype=jnp.float64).A.dtype == np.float64


def test_mixed_types_are_promoted_to_the_widest_operators_too():
    with jax.enable_x64(True):
        c = jnp.ones(3, jnp.float64)
        for A in (
            Dense(jnp.ones((2, 3), jnp.float32)),
            Sparse.from_entries([0, 1], [0, 2], [1.0, 1.0], (2, 3), jnp.float32),
        ):
            lp = make(GOOD | {"c": c, "A": A})
            floating = [leaf.dtype for leaf in jax.tree.leaves(lp) if np.issubdtype(leaf.dtype, np.floating)]
            assert set(floating) == {np.dtype(np.float64)}
        implicit = Implicit((), lambda d, x: x[:2], lambda d, y: jnp.pad(y, (0, 1)), (2, 3))
        assert make(GOOD | {"c": np.ones(3, np.float32), "A": implicit}, dtype=jnp.float32).A.dtype == np.float32


def test_replacing_a_field_checks_it():
    lp = make(GOOD)
    assert lp.replace(offset=2.0).offset.dtype == np.float32
    with pytest.raises(InvalidProblem, match="c has 1 NaN at index 2"):
        lp.replace(c=jnp.array([0.0, 0.0, np.nan]))
    with pytest.raises(InvalidProblem, match="c has shape"):
        lp.replace(c=jnp.zeros(4))
    assert lp.replace(maximise=True).sense == -1.0


def test_defaults_and_shape():
    lp = pdopt.LinearProgram([1.0], [[1.0]], [0.0], [1.0])
    assert lp.shape == (1, 1)
    assert float(lp.offset) == 0
    assert float(lp.lower[0]) == -INF
    assert float(lp.upper[0]) == INF
    assert lp.pair_shapes().x.shape == (1,)
    assert lp.pair_shapes().y.dtype == np.float32


def test_host_data_are_copied():
    c = np.ones(3, np.float32)
    lp = make(GOOD | {"c": c})
    c[:] = np.nan
    assert bool(jnp.all(jnp.isfinite(lp.c)))
