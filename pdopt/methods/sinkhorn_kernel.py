"""The half sweeps of Sinkhorn's method, written in logarithms of scalings about potentials that stay put for a block.

    T = u K v,   K = a b' exp((f (+) g - C) / eps),   u = exp(y.f),  v = exp(y.g),   new potentials  f + eps y.f, g + eps y.g

    half sweep      primal             violation              move, step omega
    rows            row = u (K v)      log a - log row        y.f + omega (tau v - (1 - tau) (f / eps + y.f))
    columns         column = v (K'u)   log b - log column     the same of g
    shift           -                  -                      along (1, -1), to the best place at once

tau = rho / (rho + eps), 1 where balanced, for which a move with omega = 1 makes its marginal exact: block maximisation of
the dual, a mirror step of size eps in KL. The shift is the translation-invariant form of Sejourne, Vialard and Peyre
(2022): moving mass of the potentials from f to g leaves the plan as it is, so its best amount has a closed form; without
it small eps / rho creeps at the rate tau. It is 0 for a balanced problem.

`Absorbed` makes K once for a block and then needs plain products, two reads of K for a sweep; `Streamed` makes the
entries anew in each half sweep, block of rows by block of rows, and stores none. Since the old potentials are in K, its
entries are those of a nearly feasible plan: nothing overflows, as exp(-C / eps) does (Schmitzer 2019, absorption).
"""

import abc
from typing import Any

import jax.numpy as jnp
from jax import lax

from pdopt.geometry.moves import Euclidean
from pdopt.geometry.sets import Box
from pdopt.problems.costs import HIGHEST, two_sum
from pdopt.problems.couplings import Marginals, Potentials
from pdopt.problems.transport_view import EntropicView, entries
from pdopt.rules.saddle import Parts, row
from pdopt.types import Pair, record

MODES = ("auto", "absorbed", "streamed")
# Entries up to which a cost that is not stored gets a stored kernel: 128 MiB in float32.
STORED_ENTRIES = 2**25
# Farthest that a logarithm of a scaling moves in one block; beyond it the next block goes on from there.
FARTHEST = 40.0


class Kernel(abc.ABC):
    """A view about fixed potentials `base` at one epsilon."""

    view: EntropicView
    base: Potentials
    epsilon: Any

    @abc.abstractmethod
    def rows(self, y: Potentials) -> Any:
        """`T 1`."""

    @abc.abstractmethod
    def columns(self, y: Potentials) -> Any:
        """`T'1`."""

    def into(self, pair: Pair) -> Pair:
        """The pair in logarithms of scalings: at the base they are 0."""
        return Pair(pair.x, Potentials(jnp.zeros_like(pair.y.f), jnp.zeros_like(pair.y.g)))

    def back(self, pair: Pair) -> Pair:
        """The pair with potentials in the user's units, and the marginals of the plan that these have once rounded.

        `f + eps y.f` loses up to half a unit in the last place of f, which 1 / eps magnifies: each marginal is scaled
        by what its own potential lost. What the other side lost averages out over the sum.
        """
        f, lost_f = two_sum(self.base.f, self.epsilon * pair.y.f)
        g, lost_g = two_sum(self.base.g, self.epsilon * pair.y.g)
        x = pair.x
        row, column = x.row * jnp.exp(-lost_f / self.epsilon), x.column * jnp.exp(-lost_g / self.epsilon)
        return Pair(Marginals(row, column), Potentials(f, g))

    def potentials(self, y: Potentials) -> Potentials:
        """The potentials of y, in the user's units."""
        return Potentials(self.base.f + self.epsilon * y.f, self.base.g + self.epsilon * y.g)

    def row_half(self) -> Parts:
        """The half sweep that makes `T 1` what it should be."""
        view = self.view
        return row(
            primal=lambda x, y: x._replace(row=self.rows(y)),
            violation=lambda seen: _log_ratio(view.log_a, seen.row),
            move=lambda y, v, omega: y._replace(f=_moved(y.f, v, omega, self._pulls(self.base.f, view.lost))),
        )

    def column_half(self) -> Parts:
        """The half sweep that makes `T'1` what it should be."""
        view = self.view
        return row(
            primal=lambda x, y: x._replace(column=self.columns(y)),
            violation=lambda seen: _log_ratio(view.log_b, seen.column),
            move=lambda y, v, omega: y._replace(g=_moved(y.g, v, omega, self._pulls(self.base.g, view.gained))),
        )

    def shift(self) -> Parts:
        """The best move along (1, -1), which changes no entry of the plan: `<a, e^(-f/rho_a)> = <b, e^(-g/rho_b)>`."""
        view = self.view

        def move(y: Potentials, v: Any, step: Any) -> Potentials:
            totals = [jnp.sum(jnp.exp(log)) for log in view.log_targets(self.potentials(y))]
            pull = view.lost + view.gained
            amount = jnp.where(pull > 0, jnp.log(totals[0] / totals[1]) / jnp.where(pull > 0, pull, 1), 0)
            c = jnp.clip(amount / self.epsilon, -FARTHEST, FARTHEST)
            return Potentials(jnp.where(view.a > 0, y.f + c, 0), jnp.where(view.b > 0, y.g - c, 0))

        return row(primal=lambda x, y: x, violation=lambda seen: (), move=move)

    def settled(self, x: Marginals, before: Potentials, after: Potentials) -> Marginals:
        """Marginals after a move of the columns: theirs is scaled, so it is known without a product."""
        return x._replace(column=x.column * jnp.exp(after.g - before.g))

    def _pulls(self, base: Any, lost: Any) -> tuple[Any, Any]:
        tau = 1 / (1 + self.epsilon * lost)
        return tau, base / self.epsilon


def _log_ratio(log_target: Any, marginal: Any) -> Any:
    """`log target - log marginal`, 0 in empty bins; a marginal that underflowed counts as the smallest number."""
    tiny = jnp.finfo(marginal.dtype).tiny
    there = jnp.isfinite(log_target)
    return jnp.where(there, jnp.where(there, log_target, 0) - jnp.log(jnp.maximum(marginal, tiny)), 0)


def _moved(log: Any, v: Any, omega: Any, pulls: tuple[Any, Any]) -> Any:
    tau, base = pulls
    return Euclidean(Box(-FARTHEST, FARTHEST))(log, tau * v - (1 - tau) * (base + log), omega)


@record
class Absorbed(Kernel):
    """K stored: `(n, m)`, made once for a block of sweeps."""

    view: EntropicView
    base: Potentials
    epsilon: Any
    K: Any

    @staticmethod
    def make(view: EntropicView, base: Potentials, epsilon: Any) -> "Absorbed":
        """`K = a b' exp((f (+) g - C) / epsilon)`; one addition is exact where there is mass, f - C being near -g."""
        exponent = ((base.f[:, None] - view.cost.todense()) + base.g) / epsilon
        # b first: a product of two tiny masses could underflow before the exponential makes it large.
        K = view.a[:, None] * (view.b * jnp.exp(jnp.minimum(exponent, HIGHEST)))
        return Absorbed(view, base, epsilon, K)

    def rows(self, y: Potentials) -> Any:
        """`u (K v)`, at full precision: reduced-precision matrix units would end the convergence at 1e-3."""
        return jnp.exp(y.f) * jnp.matmul(self.K, jnp.exp(y.g), precision=lax.Precision.HIGHEST)

    def columns(self, y: Potentials) -> Any:
        """`v (K'u)`."""
        return jnp.exp(y.g) * jnp.matmul(jnp.exp(y.f), self.K, precision=lax.Precision.HIGHEST)


@record
class Streamed(Kernel):
    """Entries made when they are needed: the shifted log step, or the soft minima of a separable grid."""

    view: EntropicView
    base: Potentials
    epsilon: Any

    @staticmethod
    def make(view: EntropicView, base: Potentials, epsilon: Any) -> "Streamed":
        """Nothing to prepare."""
        return Streamed(view, base, epsilon)

    def rows(self, y: Potentials) -> Any:
        """`a_i sum_j b_j exp((f_i + g_j - C_ij) / epsilon)`."""
        f, g = self.potentials(y)
        return self.view.a * self.view.cost.sum_rows(f, g, self.view.b, self.epsilon)

    def columns(self, y: Potentials) -> Any:
        """The same of the transposed cost."""
        f, g = self.potentials(y)
        return self.view.b * self.view.cost.transpose().sum_rows(g, f, self.view.a, self.epsilon)


def kernel_of(view: EntropicView, mode: str) -> Any:
    """Which kernel a mode means for this cost: by its kind and size, both known before compilation.

    A dense cost is stored already, so its kernel may be; a grid is cheaper by its axes; the others are stored up to
    `STORED_ENTRIES`.
    """
    if mode != "auto":
        return Absorbed if mode == "absorbed" else Streamed
    return (
        Absorbed if view.cost.stored or (entries(view.cost) <= STORED_ENTRIES and not view.cost.separable) else Streamed
    )
