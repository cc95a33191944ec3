"""The table of first-order dynamics, iterate by iterate: against plain loops, against Cooper, and row against row."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pdopt
from pdopt.rules.signals import PID, Averaged, Chain, Extrapolated

# Test modules are imported by path.
_spec = importlib.util.spec_from_file_location("cooper_runs", Path(__file__).parent / "cooper_runs.py")
runs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(runs)
Plan = runs.Plan
SGD = optax.sgd(Plan().rate)

pytestmark = pytest.mark.usefixtures("quick_compiles")
ORDERS = ("simultaneous", "dual_first", "primal_first", "extragradient")
PLANS = {
    **{order: Plan(order) for order in ORDERS},
    **{f"augmented {order}": Plan(order, "augmented") for order in ORDERS},
    "method of multipliers": Plan("primal_first", "augmented", step=2.0),
    "penalty": Plan(form="penalty"),
    "nuPI from 0": Plan("dual_first", gains=(3.0, 1.0, 0.3)),
    "nuPI from 0, simultaneous": Plan("simultaneous", gains=(3.0, 1.0, 0.3)),
    "optimistic": Plan("simultaneous", gains=(1.0, 1.0, 0.0)),
}


def multipliers(plan):
    kp, ki, nu = plan.gains or (0.0, 1.0, 0.0)
    signal = PID(kp, ki, smoothing=nu, start=plan.start)
    step, penalty = plan.step, None
    if plan.form == "augmented":
        penalty, step = plan.rho, None if plan.step == plan.rho else plan.step
    elif plan.form == "penalty":
        penalty, step = plan.rho, 0.0
    make = lambda kind: kind(step, penalty, signal=signal)
    return {"ball": make(pdopt.Multiplier), "plane": make(pdopt.Multiplier.equality)}


def loss_fn(x):
    loss = ((runs.A @ x - runs.B) ** 2).sum() / 2 + (x**4).sum() / 4
    return loss, {"ball": x @ x - 0.5, "plane": runs.C @ x - 0.3}


@jax.jit
def follow(optimiser, start):
    """All iterates by one scan; settings are traced, so that rows of the same structure share a program."""

    def body(carry, _):
        x, state, _ = optimiser.step(loss_fn, *carry)
        return (x, state), (x, jnp.stack([state.multipliers["ball"], state.multipliers["plane"]]))

    return jax.lax.scan(body, (start, optimiser.init(start)), length=Plan().steps)[1]


def by_pdopt(plan, theta=0.0, held=None):
    optimiser = pdopt.constrain(SGD, held or multipliers(plan), order=plan.order, theta=theta)
    with jax.enable_x64(True):
        return jax.device_get(follow(optimiser, jnp.asarray(runs.START)))


@pytest.mark.parametrize("name", PLANS)
def test_the_loop_written_by_hand(name):
    found, expected = by_pdopt(PLANS[name]), runs.by_hand(PLANS[name])
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-12)
    assert np.abs(expected[1]).max() > 0.1 or PLANS[name].form == "penalty", "multipliers that never moved show nothing"


@pytest.mark.parametrize("name", PLANS)
def test_cooper(name):
    """Cooper 1.0.1, from which the loop by hand is known to be the same thing."""
    pytest.importorskip("cooper", reason="cooper-optim is not installed")
    found, expected = by_pdopt(PLANS[name]), runs.by_cooper(PLANS[name])
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-6)


def test_coopers_plain_first_step_forgets_the_first_error():
    """The paper's nuPI with a plain first step keeps xi_0 = e_0; Cooper 1.0.1 takes xi_0 = 0 for dense multipliers."""
    plan = Plan("dual_first", gains=(3.0, 1.0, 0.3), start="first")
    found, expected = by_pdopt(plan), runs.by_hand(plan)
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-12)
    pytest.importorskip("cooper", reason="cooper-optim is not installed")
    theirs = runs.by_cooper(plan)
    np.testing.assert_allclose(found[1][0], theirs[1][0], rtol=0, atol=1e-12)
    assert np.abs(found[1][1] - theirs[1][1]).max() > 1e-3


def test_alternating_orders_are_one_sequence_half_a_beat_apart():
    """From the same y: the x of primal_first are those of dual_first once its first move of y is undone."""
    x, y = by_pdopt(Plan("primal_first"))
    optimiser = pdopt.constrain(SGD, multipliers(Plan("dual_first")))
    with jax.enable_x64(True):
        point, state = jnp.asarray(x[0]), optimiser.init(jnp.asarray(x[0]))
        step = jax.jit(lambda *carry: optimiser.step(loss_fn, *carry)[:2])
        for k in range(1, 12):  # the first step of primal_first has y = 0 and moves x alone
            point, state = step(point, state)
            np.testing.assert_allclose(point, x[k], rtol=0, atol=1e-12)
            np.testing.assert_allclose(state.multipliers["ball"], y[k - 1, 0], rtol=0, atol=1e-12)


def test_theta_chooses_the_point_that_is_seen():
    """-1 is simultaneous, 0 alternating; of an affine constraint theta on x and on violations are the same."""
    simultaneous, plain = by_pdopt(Plan("simultaneous")), by_pdopt(Plan("primal_first"))
    np.testing.assert_allclose(by_pdopt(Plan("primal_first"), theta=-1)[0], simultaneous[0], rtol=0, atol=1e-14)
    ahead = by_pdopt(Plan("primal_first"), theta=1.0)
    assert np.abs(ahead[0] - plain[0]).max() > 1e-3
    # v' + theta (v' - v): the earlier violation of the first step is that of the start, which only x knows.
    held = {"plane": pdopt.Multiplier.equality(0.1, signal=Extrapolated(1.0))}
    only = lambda x: (loss_fn(x)[0], {"plane": loss_fn(x)[1]["plane"]})
    on_v = pdopt.constrain(SGD, held, order="primal_first")
    on_x = pdopt.constrain(SGD, {"plane": pdopt.Multiplier.equality(0.1)}, order="primal_first", theta=1.0)
    with jax.enable_x64(True):
        start = jnp.asarray(runs.START)
        state = on_v.init(start)
        first = only(start)[1]["plane"]
        history = state.history["plane"]._replace(one=first, started=jnp.asarray(True))
        one, other = (start, state._replace(history={"plane": history})), (start, on_x.init(start))
        step = [jax.jit(lambda *carry, way=way: way.step(only, *carry)[:2]) for way in (on_v, on_x)]
        for _ in range(20):
            one, other = step[0](*one), step[1](*other)
            np.testing.assert_allclose(one[0], other[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", ["dual_first", "extragradient"])
def test_identities_of_signals(order):
    """nuPI without smoothing is theta on violations (1e-15); without a proportional part it is gradient ascent."""
    settings = Plan(order)
    ways = {
        "nuPI": PID(proportional=2.5, integral=1.0, smoothing=0.0),
        "theta": Extrapolated(2.5, start="zero"),
        "integral": PID(integral=1.0),
        "averaged to nothing": Chain((Averaged(0.0),)),
    }

    def run(signal, step=0.1):
        held = {"ball": pdopt.Multiplier(step, signal=signal), "plane": pdopt.Multiplier.equality(step, signal=signal)}
        return by_pdopt(settings, held=held)

    found = {name: run(signal) for name, signal in ways.items()}
    plain = by_pdopt(settings)
    for place in (0, 1):
        np.testing.assert_allclose(found["nuPI"][place], found["theta"][place], rtol=0, atol=1e-15)
        np.testing.assert_allclose(found["integral"][place], plain[place], rtol=0, atol=1e-15)
        np.testing.assert_allclose(found["averaged to nothing"][place], plain[place], rtol=0, atol=1e-15)
    assert np.abs(found["nuPI"][1] - plain[1]).max() > 1e-3
