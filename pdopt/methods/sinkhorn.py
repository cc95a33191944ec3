"""Sinkhorn's method for entropic transport: the saddle step, made exact one marginal at a time (Sinkhorn 1967).

    f_i += omega eps (log a_i - log row_i),    g_j += omega eps (log b_j - log column_j)

One iteration is a sweep: the rows' potentials, then the columns'. What `sinkhorn_kernel.py` calls a kernel is made once
for a block of `every` sweeps. Both marginals are known at the end of a sweep at no further cost (the first half of the
next one needs the rows', and the columns' are scaled by a known factor), so a check costs O(n + m).

Around the sweeps, all decided in checks:

    annealing        a cold start solves at a large epsilon first and lowers it, when epsilon is small for the cost
                     (Kosowsky, Yuille 1994); potentials are in units of cost and carry over as they are
    over-relaxation  once the error falls steadily at omega = 1, `omega = 2 / (1 + sqrt(1 - rate))` (Thibault et al.
                     2021; Lehmann et al. 2021), from the rate measured over a block
    guard            a block that ends with NaN or twice the error is thrown away and omega goes back to 1
    stall            rounding that keeps the error from falling ends the run with PRECISION_LIMIT

Not done here: low-rank plans, screening, stochastic half sweeps.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import lax

from pdopt.errors import InvalidOption, require_range, unknown_name
from pdopt.geometry.checks import concrete
from pdopt.geometry.moves import Euclidean
from pdopt.geometry.sets import Reals
from pdopt.methods.sinkhorn_kernel import MODES, kernel_of
from pdopt.problems.transport_view import EntropicView, entropic
from pdopt.rules.saddle import NO_MEMORY, advance, respond, row, saddle_step
from pdopt.types import Pair, Visit, record

# An epsilon of this share of the cost's spread, or more, is not annealed: it would cost more than it saves.
EASY = 0.02
# A stage of annealing ends at this error, or after this many sweeps.
LOOSE, PATIENCE = 3e-2, 50
# Over-relaxation begins below this error, after two blocks at omega = 1, and stays below this omega.
STEADY, LARGEST_OMEGA = 0.1, 1.9
# Blocks without a new smallest error after which rounding is held to be what is left.
STALL = 10


class Control(NamedTuple):
    """What checks decide by: the present epsilon and omega, and what the blocks so far have shown."""

    epsilon: Any
    omega: Any
    error: Any
    previous: Any
    blocks: Any
    lowest: Any
    idle: Any
    known: Any


class State(NamedTuple):
    """The pair (marginals and potentials), and how it is moved."""

    pair: Pair
    control: Control


@record(static=("every", "mode", "anneal"))
class Sinkhorn:
    """Sinkhorn's method with annealing and guarded over-relaxation.

    Attributes:
        omega: relaxation in [1, 2), or None: measured (see above). 1 is the plain method.
        anneal: lower epsilon in stages from a cold start where it is small.
        ratio: in (0, 1), by which a stage lowers epsilon.
        mode: "absorbed" stores the kernel, `(n, m)`; "streamed" never does; "auto" chooses by the cost and its size.
        every: sweeps between checks, >= 1; the kernel is made anew at each.

    Raises:
        InvalidOption: a setting outside its range.

    Example:
        >>> import pdopt
        >>> problem = pdopt.Transport([[0.0, 1.0], [1.0, 0.0]], regulariser=pdopt.Entropy(0.5), dtype=jnp.float32)
        >>> solution = pdopt.solve(problem, Sinkhorn(), tolerance=1e-5)
        >>> print(solution.x.todense().round(2))
        [[0.44 0.06]
         [0.06 0.44]]
    """

    omega: Any = None
    anneal: bool = True
    ratio: Any = 0.25
    mode: str = "auto"
    every: int = 10

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise unknown_name("mode", self.mode, MODES)
        if not isinstance(self.every, int) or self.every < 1:
            raise InvalidOption(f"every is {self.every!r}; expected an integer >= 1")
        if not isinstance(self.anneal, bool):
            raise InvalidOption(f"anneal is {self.anneal!r}; expected True or False")
        if not concrete(self):
            return
        if self.omega is not None:
            require_range("omega", self.omega, 1.0, 1.999)
        require_range("ratio", self.ratio, 0.01, 0.99)

    def view(self, problem: Any) -> EntropicView:
        """The problem as this method sees it."""
        return entropic(problem)

    def init(self, view: EntropicView, start: Pair) -> State:
        """The first state: epsilon of the first stage, and rows made exact in the log domain, whatever the start."""
        dtype = view.epsilon.dtype
        cold = optax.tree.norm(start.y) == 0
        spread = view.cost.spread()
        staged = cold & (view.epsilon < EASY * spread) if self.anneal else jnp.zeros((), bool)
        epsilon = jnp.where(staged, spread, view.epsilon)
        tau = 1 / (1 + epsilon * view.lost)
        exact = row(
            primal=lambda x, y: x._replace(row=view.cost.log_rows(y.f, y.g, view.log_b, epsilon)),
            violation=lambda seen: -epsilon * seen.row,
            move=lambda y, v, step: y._replace(f=Euclidean(Reals())(y.f, tau * v - (1 - tau) * y.f, step)),
        )
        pair, _ = saddle_step(exact, jnp.ones((), dtype), start)
        far, one, none = jnp.full((), jnp.inf, dtype), jnp.ones((), dtype), jnp.int32(0)
        control = Control(epsilon, one, far, far, none, far, none, jnp.zeros((), bool))
        return State(view.into(Pair(view.unknown(), pair.y)), control)

    def step(self, view: EntropicView, state: State) -> tuple[State, Visit]:
        """One sweep."""
        return self.block(view, state, 1)

    def block(self, view: EntropicView, state: State, steps: Any) -> tuple[State, Visit]:
        """`steps` sweeps about one kernel; the last one moves the columns without over-relaxation.

        Every half sweep is a saddle step that starts half a beat later: the rows' marginal is at hand from the sweep
        before (`respond`), and is computed at the end for the check and the next sweep (`advance`).
        """
        control = state.control
        kernel = kernel_of(view, self.mode).make(view, state.pair.y, control.epsilon)
        rows, columns, shift = kernel.row_half(), kernel.column_half(), kernel.shift()

        def sweep(number: Any, pair: Pair) -> Pair:
            omega = jnp.where(number == steps - 1, jnp.ones_like(control.omega), control.omega)
            y, _ = respond(shift, pair.y, pair.x, omega, NO_MEMORY)
            y, _ = respond(rows, y, pair.x, control.omega, NO_MEMORY)
            seen, _ = saddle_step(columns, omega, Pair(pair.x, y))
            x, _ = advance(rows, Pair(kernel.settled(seen.x, y, seen.y), seen.y), NO_MEMORY)
            return Pair(x, seen.y)

        first = kernel.into(state.pair)
        x = lax.cond(control.known, lambda: first.x, lambda: advance(rows, first, NO_MEMORY)[0])
        after = kernel.back(lax.fori_loop(0, steps, sweep, Pair(x, first.y)))
        error = view.error(after)
        lost = ~jnp.isfinite(error) | (control.known & (error > 2 * control.error))
        lost &= control.omega > 1
        # Instead of a block that is thrown away, one exact half sweep from where it began.
        y, _ = respond(rows, first.y, x, jnp.ones_like(control.omega), NO_MEMORY)
        kept = optax.tree.where(lost, kernel.back(Pair(view.unknown(), y)), after)
        found = control._replace(
            omega=jnp.where(lost, 1, control.omega), error=jnp.where(lost, control.error, error),
            previous=jnp.where(lost, jnp.inf, control.error), blocks=jnp.where(lost, 0, control.blocks + 1),
            known=~lost,
        )  # fmt: skip
        return State(kept, found), Visit(state.pair, kept)

    def pair(self, view: EntropicView, state: State, visit: Visit) -> Pair:
        """The pair to return now; marginals at another epsilon than the problem's are not those of its plan."""
        known = state.control.known & (state.control.epsilon == view.epsilon)
        return Pair(optax.tree.where(known, state.pair.x, view.unknown()), state.pair.y)

    def check(self, view: EntropicView, state: State, visit: Visit) -> State:
        """Lower epsilon, or set omega, where the rules say so."""
        control = self._relaxed(self._watched(view, state.control))
        final = control.epsilon == view.epsilon
        settled = (control.error < LOOSE) | (control.blocks * self.every >= PATIENCE)
        lower = jnp.maximum(control.epsilon * self.ratio, view.epsilon)
        far = jnp.full_like(control.error, jnp.inf)
        staged = control._replace(
            epsilon=lower, omega=jnp.ones_like(control.omega), error=far, previous=far,
            blocks=jnp.zeros_like(control.blocks), known=jnp.zeros_like(control.known),
        )  # fmt: skip
        return State(state.pair, optax.tree.where(settled & ~final, staged, control))

    def stalled(self, state: State) -> Any:
        """Whether the error has not reached a new low for long: rounding is what is left."""
        return state.control.idle >= STALL

    def _relaxed(self, control: Control) -> Control:
        """omega by the rate of the last block, once two blocks at omega = 1 fell steadily."""
        rate = jnp.clip((control.error / control.previous) ** (1 / self.every), 0, 1)
        best = jnp.minimum(2 / (1 + jnp.sqrt(1 - rate)), LARGEST_OMEGA) if self.omega is None else self.omega
        steady = (control.blocks >= 2) & (control.error < STEADY) & (control.error < control.previous)
        omega = jnp.where(steady & (control.omega == 1), best, control.omega)
        return control._replace(omega=omega.astype(control.omega.dtype))

    def _watched(self, view: EntropicView, control: Control) -> Control:
        """Count blocks without a new lowest error at the problem's own epsilon."""
        final = control.known & (control.epsilon == view.epsilon)
        lower = control.error < control.lowest
        idle = jnp.where(final, jnp.where(lower, 0, control.idle + 1), control.idle)
        return control._replace(lowest=jnp.where(final & lower, control.error, control.lowest), idle=idle)
