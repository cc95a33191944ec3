"""Any optax optimiser with constraints: `minimise f(x) subject to v_k(x) <= 0 or = 0`, from batches.

An optimiser minimises what it is given the gradient of; here that is the Lagrangian, and the multipliers move beside it
by the dual half of the library's one step. Three lines of a training loop change:

    optimiser = pdopt.constrain(optax.adam(1e-3), {"rate": pdopt.Multiplier(0.1)})          # wrap it

    def loss_fn(params, state, batch):
        ...
        return optimiser.lagrangian(state, loss, {"rate": rate - 0.05})                     # > 0 when broken

    (value, seen), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, state, batch)
    updates, state = optimiser.update(grads, state, params, seen=seen)                      # hand over what was seen

The order of the two halves is a choice, not a class. With v measured on the batch of the gradient:

| order         | x moves by gradient at   | y moves by             | the step                  | passes of the loss   |
|---------------|--------------------------|------------------------|---------------------------|----------------------|
| simultaneous  | (x, y)                   | v(x)                   | theta = -1                | 1 and its gradient   |
| dual_first    | (x, y')                  | v(x)                   | `respond`, then `advance` | 1 and its gradient   |
| primal_first  | (x, y)                   | v(x' + theta (x' - x)) | `saddle_step` with theta  | 2, gradient of one   |
| extragradient | (x~, y~), the look-ahead | v(x~)                  | theta = -1, twice         | 2 and their gradient |

`dual_first` is the default: it costs no more than simultaneous steps and damps (Zhang et al. 2022, arXiv 2102.09468).
From the same y it is the sequence of `primal_first` with theta = 0, begun half a beat earlier: what moves y is then
v(x') on the *next* batch. The last two orders measure twice, so that they need the loss itself: `Constrained.step`.
Extrapolating violations instead of x (`signal=Extrapolated(theta)`), PI, PID and nuPI control, and penalties are
settings of each `Multiplier`, and go with every order.

Not done here: an optimiser for the multipliers other than a move and its signal; a search along x; certificates. For a
deterministic program to high accuracy use a solver.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pdopt.errors import InvalidOption, InvalidProblem, require_range, require_shape, unknown_name
from pdopt.geometry.checks import concrete
from pdopt.methods.multiplier import Axes, Multiplier, Violation
from pdopt.rules.acceleration import extragradient
from pdopt.rules.multipliers import Entrywise, Measured
from pdopt.rules.saddle import Parts, advance, multiplier, respond, saddle_step
from pdopt.types import Memory, Pair, record

# Each order, and whether `update` can take it: with one gradient, and no loss to ask again.
ORDERS = {"simultaneous": True, "dual_first": True, "primal_first": False, "extragradient": False}


class State(NamedTuple):
    """What travels between steps: a pytree that a checkpoint keeps whole.

    Attributes:
        multipliers: by name; float32, or float64 beside float64 parameters.
        penalties: rho by name, () where there is none.
        steps: dual steps by name, () where the step is the penalty. To schedule one, replace it between steps.
        history: of each signal.
        missed: by name, how many measurements were NaN or infinite so far, int32.
        optimiser: the state of the optimiser inside.
    """

    multipliers: dict[str, Any]
    penalties: dict[str, Any]
    steps: dict[str, Any]
    history: dict[str, Any]
    missed: dict[str, Any]
    optimiser: Any


class Seen(NamedTuple):
    """What a batch showed, without gradients.

    Attributes:
        loss: the objective, without multipliers.
        violations: strict, by name, of each multiplier's shape; NaN where nothing was measured.
        missed: measurements of this batch that were NaN or infinite, by name.
        aux: whatever else the loss of `Constrained.step` returned; () if nothing.
    """

    loss: Any
    violations: dict[str, Any]
    missed: dict[str, Any]
    aux: Any = ()


@record(static=("optimiser", "order", "axes"))
class Constrained:
    """An optimiser with constraints, made by `constrain`: optax's `init` and `update`, and two verbs more.

    It goes where an `optax.GradientTransformationExtraArgs` goes by its two functions, `flax.nnx.Optimizer` among them
    (`opt_state` is its state, `optimizer.update(model, grads, seen=seen)` its update); `transformation` is that type.

    Example:
        min x^2 subject to x >= 1, by hand as in any optax loop:

        >>> optimiser = constrain(optax.sgd(0.1), {"floor": Multiplier(0.5)})
        >>> x, state = jnp.float32(0.0), optimiser.init(jnp.float32(0.0))
        >>> lagrangian = lambda x, state: optimiser.lagrangian(state, x**2, {"floor": 1 - x})
        >>> (value, seen), slope = jax.value_and_grad(lagrangian, has_aux=True)(x, state)
        >>> updates, state = optimiser.update(slope, state, x, seen=seen)
        >>> print(seen.violations["floor"], state.multipliers["floor"], optax.apply_updates(x, updates))
        1.0 0.5 0.05
    """

    optimiser: Any
    multipliers: dict[str, Multiplier]
    order: str = "dual_first"
    theta: Any = 0.0
    axes: Axes = ()

    def init(self, params: Any) -> State:
        """The first state for parameters of these shapes and dtypes."""
        floats = [d for d in map(jnp.result_type, jax.tree.leaves(params)) if jnp.issubdtype(d, jnp.floating)]
        dtype = jnp.result_type(jnp.float32, *floats)
        each = lambda make: {name: make(one) for name, one in self.multipliers.items()}
        first = each(lambda one: one.init(dtype))
        return State(
            first,
            each(lambda one: one.first_penalty(dtype)),
            each(lambda one: () if one.step is None else jnp.asarray(one.step, dtype)),
            {name: Entrywise(one.signal).init(first[name]) for name, one in self.multipliers.items()},
            each(lambda one: jnp.zeros((), jnp.int32)),
            self.optimiser.init(params),
        )

    def lagrangian(self, state: State, loss: Any, violations: Mapping[str, Any]) -> tuple[Any, Seen]:
        """`(f + sum_k term_k, seen)`: differentiate the first, hand the second to `update`.

        Args:
            state: the present one; with `dual_first` the terms hold the multipliers that `update` will move to.
            loss: scalar.
            violations: by name, arrays of the multipliers' shapes or `Violation`; a name left out was not measured.

        Raises:
            InvalidOption: a name without a multiplier. InvalidProblem: a wrong shape or dtype.
        """
        state = _plain(state)
        given = self._given(violations)
        require_shape("loss", jnp.shape(loss), (), "it is minimised")
        seen = self._observe(state, loss, given)
        memory = Memory(dual=Dual(state.history, seen))
        y, parts = state.multipliers, self._parts(_no_primal, lambda _: seen)
        if self.order == "dual_first":
            y, memory = respond(parts, y, seen, self._steps(state), memory)
        return self._total(loss, parts.offer(y, memory), state.penalties, given), seen

    def update(
        self, updates: Any, state: State, params: Any = None, *, seen: Seen | None = None, **extra: Any
    ) -> tuple[Any, State]:
        """The optimiser's updates and the next state, with the multipliers moved: `update` of optax.

        Args:
            updates: gradients of `lagrangian`.
            state: the present one, that `lagrangian` was given.
            params: for optimisers that need them.
            seen: from `lagrangian`. extra: handed to the optimiser.

        Raises:
            InvalidOption: `seen` is missing, or the order needs the loss (`primal_first`, `extragradient`: use `step`).
        """
        if not ORDERS[self.order]:
            raise InvalidOption(
                f"order is {self.order!r}, which measures twice; expected 'simultaneous' or 'dual_first', "
                "or a call of step(loss_fn, params, state, ...)"
            )
        if seen is None:
            raise InvalidOption("seen is missing; expected what lagrangian returned beside its value")
        moved, inner = self._inner.update(updates, state.optimiser, params, **extra)
        memory = Memory(inner, Dual(state.history, seen))
        parts = self._parts(_no_primal, lambda _: seen)
        y, memory = respond(parts, state.multipliers, seen, self._steps(state), memory)
        return moved, self._next(state, y, memory)

    def step(self, loss_fn: Callable[..., Any], params: Any, state: State, *args: Any) -> tuple[Any, State, Seen]:
        """A whole step of any order: `(params, state, seen)`.

        Args:
            loss_fn: `(params, *args) -> (loss, violations)` or `(loss, violations, aux)`.
            params: pytree.
            state: the present one.
            args: a batch, keys, ...
        """

        def value(x: Any, state: State) -> tuple[Any, Seen]:
            loss, violations, *aux = loss_fn(x, *args)
            value, seen = self.lagrangian(state, loss, violations)
            return value, seen._replace(aux=aux[0] if aux else ())

        def gradient(x: Any, y: Any, memory: Memory) -> tuple[Any, Seen]:
            present = state._replace(multipliers=y, history=memory.dual.history, optimiser=memory.primal)
            (_, seen), slopes = jax.value_and_grad(value, has_aux=True)(x, present)
            return slopes, seen

        def moved(base: Any, slopes: Any, memory: Memory) -> tuple[Any, Memory]:
            updates, inner = self._inner.update(slopes, memory.primal, base)
            return optax.apply_updates(base, updates), memory._replace(primal=inner)

        pair = Pair(params, state.multipliers)
        if ORDERS[self.order]:
            (_, seen), slopes = jax.value_and_grad(value, has_aux=True)(params, state)
            updates, state = self.update(slopes, state, params, seen=seen)
            return optax.apply_updates(params, updates), state, seen
        memory = Memory(state.optimiser, Dual(state.history))
        if self.order == "primal_first":
            primal = lambda x, y, memory: moved(x, gradient(x, y, memory)[0], memory)
            # The Lagrangian makes its own offer of y.
            parts = self._parts(primal, lambda x: value(x, state)[1], self.theta)._replace(offer=multiplier)
            pair, memory = saddle_step(parts, self._steps(state), pair, memory)
        else:

            def T(base: Pair, at: Pair, memory: Memory) -> tuple[Pair, Memory]:
                slopes, seen = gradient(at.x, at.y, memory)
                parts = self._parts(lambda x, y, memory: moved(x, slopes, memory), lambda _: seen)
                x, memory = advance(parts, base, memory)
                y, memory = respond(parts, base.y, seen, self._steps(state), memory)
                return Pair(x, y), memory

            pair, memory = extragradient(T, pair, memory)
        return pair.x, self._next(state, pair.y, memory), memory.dual.seen

    @property
    def transformation(self) -> optax.GradientTransformationExtraArgs:
        """The same as a pair of functions, for `optax.chain` and others that look at the type."""
        update: Any = self.update
        return optax.GradientTransformationExtraArgs(self.init, update)

    @property
    def _inner(self) -> optax.GradientTransformationExtraArgs:
        return optax.with_extra_args_support(self.optimiser)

    def _steps(self, state: State) -> dict[str, Any]:
        return {n: state.penalties[n] if one.step is None else state.steps[n] for n, one in self.multipliers.items()}

    def _parts(self, primal: Any, seen: Callable[[Any], Seen], theta: Any = 0.0) -> Parts:
        """The functions of the step: signals, moves and offers by name."""
        each = {name: Entrywise(one.signal) for name, one in self.multipliers.items()}

        def signal(seen: Seen, memory: Memory) -> tuple[Any, Memory]:
            own = {name: Memory(dual=memory.dual.history[name]) for name in each}
            both = {name: one(seen.violations[name], own[name]) for name, one in each.items()}
            history = {name: later.dual for name, (_, later) in both.items()}
            return {name: u for name, (u, _) in both.items()}, memory._replace(dual=Dual(history, seen))

        def move(y: Any, u: Any, step: Any) -> Any:
            return {name: Measured(one.move)(y[name], u[name], step[name]) for name, one in self.multipliers.items()}

        def offer(y: Any, memory: Memory) -> Any:
            return {name: one.offer(y[name], Memory(dual=memory.dual.history[name])) for name, one in each.items()}

        return Parts(primal, lambda x, _: seen(x), move, theta, signal, offer)

    def _next(self, state: State, y: Any, memory: Memory) -> State:
        """The state after y moved: penalties grown, misses counted."""
        seen = memory.dual.seen
        grown = {n: one.grown(state.penalties[n], seen.violations[n]) for n, one in self.multipliers.items()}
        missed = {name: state.missed[name] + seen.missed[name] for name in self.multipliers}
        return State(y, grown, state.steps, memory.dual.history, missed, memory.primal)

    def _given(self, violations: Mapping[str, Any]) -> dict[str, Violation]:
        """Every violation as a `Violation`; what a name left out is one of nothing."""
        if not isinstance(violations, Mapping):
            raise InvalidProblem(f"violations is a {type(violations).__name__}; expected a dict of arrays by name")
        for name in violations:
            if name not in self.multipliers:
                raise unknown_name("constraint", name, self.multipliers)
        found = {}
        for name, one in self.multipliers.items():
            value = violations.get(name, Violation())
            found[name] = value if isinstance(value, Violation) else Violation(value)
            one.require(name, found[name])
        return found

    def _observe(self, state: State, loss: Any, given: dict[str, Violation]) -> Seen:
        both = {n: one.observe(given[n], state.multipliers[n].dtype, self.axes) for n, one in self.multipliers.items()}
        violations, missed = ({name: pair[k] for name, pair in both.items()} for k in (0, 1))
        return Seen(jax.lax.stop_gradient(jnp.asarray(loss)), violations, missed)

    def _total(self, loss: Any, shown: Any, penalties: Any, given: dict[str, Violation]) -> Any:
        terms = [one.term(shown[n], penalties[n], given[n], self.axes) for n, one in self.multipliers.items()]
        return sum(terms, jnp.asarray(loss))


class Dual(NamedTuple):
    """The dual memory of the step: histories of the signals, and what was seen last."""

    history: Any
    seen: Any = None


def constrain(
    optimiser: Any,
    multipliers: Mapping[str, Multiplier],
    *,
    order: str = "dual_first",
    theta: Any = 0.0,
    axes: Axes = (),
) -> Constrained:
    """Give an optax optimiser constraints, held by multipliers.

    Args:
        optimiser: any `optax.GradientTransformation`; its own state travels in the new one's.
        multipliers: what holds each constraint, by name.
        order: "simultaneous", "dual_first", "primal_first" or "extragradient".
        theta: >= -1, of `primal_first`: y sees `x' + theta (x' - x)`.
        axes: mesh axes, inside `shard_map`, over which violations are averaged before the move (of indexed constraints,
            added up); the values of `lagrangian` then average to that of all devices. Under `jit` leave it out.

    Raises:
        InvalidOption: something that is no optimiser or multiplier, an order that does not exist, or a theta that is
            below -1 or of another order.

    Example:
        min x^2 subject to x >= 1, whose multiplier is 2:

        >>> optimiser = constrain(optax.sgd(0.1), {"floor": Multiplier(0.5)})
        >>> loss_fn = lambda x: (x**2, {"floor": 1 - x})
        >>> x, state = jnp.float32(0.0), optimiser.init(jnp.float32(0.0))
        >>> advance = jax.jit(lambda x, state: optimiser.step(loss_fn, x, state)[:2])
        >>> for _ in range(200):
        ...     x, state = advance(x, state)
        >>> print(x.round(3), state.multipliers["floor"].round(3))
        1.0 2.0
    """
    if not (callable(getattr(optimiser, "init", None)) and callable(getattr(optimiser, "update", None))):
        raise InvalidOption(f"optimiser is {optimiser!r}; expected an optax.GradientTransformation")
    if not isinstance(multipliers, Mapping):
        raise InvalidOption(f"multipliers is {multipliers!r}; expected a dict of Multiplier by name")
    for name, one in multipliers.items():
        if not isinstance(name, str) or not isinstance(one, Multiplier):
            raise InvalidOption(f"multipliers has {name!r}: {one!r}; expected a name and a Multiplier")
    if order not in ORDERS:
        raise unknown_name("order", order, ORDERS)
    if concrete(theta):
        require_range("theta", theta, -1.0)
        if order != "primal_first" and theta != 0:
            raise InvalidOption(f"theta is {theta} and order is {order!r}; expected order 'primal_first'")
    return Constrained(optimiser, dict(multipliers), order, theta, axes)


def _no_primal(x: Any, y: Any, memory: Memory) -> tuple[Any, Memory]:
    return x, memory


def _plain(state: State) -> State:
    """The state as arrays: `flax.nnx.Optimizer` keeps its own in variables."""
    return jax.tree.map(lambda leaf: leaf[...] if hasattr(leaf, "get_metadata") else leaf, state, is_leaf=_is_variable)


def _is_variable(node: Any) -> bool:
    return hasattr(node, "get_metadata")
