"""Budgets in integers and in compensated sums: exact in float32 over many steps, inside jit too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.errors import InvalidProblem
from pdopt.problems.ledger import Ledger, Pile, pile_up, total_of


@pytest.mark.parametrize("unit", [None, 0.1])
def test_many_small_amounts_sum_exactly_in_a_compiled_loop(unit):
    """10^5 times 0.1 from 20 000: the plain float32 difference is off by whole units, the ledger by none."""
    ledger = Ledger.open(jnp.asarray([20_000.0], jnp.float32), 100_000, unit)
    use = jnp.asarray([0.1], jnp.float32)

    @jax.jit
    def run(left):
        return jax.lax.fori_loop(0, 100_000, lambda _, left: ledger.spend(left, use, ledger.fits(left, use)), left)

    spent = float(ledger.spent(run(ledger.start()))[0])
    exact = 100_000 * (float(np.float32(0.1)) if unit is None else 0.1)
    assert abs(spent - exact) <= np.spacing(np.float32(exact))
    plain = np.float32(20_000) + np.add.accumulate(np.full(100_000, np.float32(-0.1)), dtype=np.float32)[-1]
    assert abs(20_000 - plain - exact) > 1


def test_piles_keep_what_a_float_loses():
    pile = Pile(jnp.float32(2**24), jnp.float32(0))
    add = jax.jit(lambda pile: jax.lax.fori_loop(0, 10, lambda _, p: pile_up(p, jnp.float32(1)), pile))
    assert float(total_of(add(pile))) == 2**24 + 10


def test_a_budget_is_rounded_down_to_units_and_too_many_are_refused():
    ledger = Ledger.open(jnp.asarray([2.7, 2.9999, 3.0], jnp.float32), 10, 1.0)
    np.testing.assert_array_equal(ledger.budget, [2, 3, 3])
    with pytest.raises(InvalidProblem, match="expected at most 2147483647"):
        Ledger.open(jnp.asarray([1e12], jnp.float32), 10, 1.0)


def test_nothing_used_always_fits_and_one_short_resource_refuses_all():
    ledger = Ledger.open(jnp.asarray([0.5, 9.0], jnp.float32), 10, None)
    left = ledger.start()
    assert bool(ledger.fits(left, jnp.zeros(2)))
    assert not bool(ledger.fits(left, jnp.asarray([0.6, 0.1], jnp.float32)))
    same = ledger.spend(left, jnp.ones(2, jnp.float32), jnp.bool_(False))
    np.testing.assert_array_equal(ledger.spent(same), [0, 0])
