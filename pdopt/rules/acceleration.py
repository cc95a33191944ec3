"""What is wrapped around a step map `T`: each takes the point, calls T once, and says where to go next.

    Plain        z' = T z                                                          (Lean: the same, no anchor stored)
    Relaxed      z' = z + omega (T z - z)                                          (Krasnoselskii, Mann)
    Averaged     z' = T z, and the weighted mean of all T z is kept beside it      (ergodic PDHG)
    Halpern      z' = w ((1 + rho) T z - rho z) + (1 - w) z0,  w = (k+1)/(k+2)     (Lu, Yang 2024, arXiv 2407.16144)
    Ahead        the same z'; what is judged is T of the point reached, made for the check alone

`extragradient` is the other wrapper: it calls its map twice, and needs one that can be told where to look.

`T` is firmly nonexpansive for PDHG (averagedness 1/2), so `(1 + rho) T - rho I` is nonexpansive for rho <= 1; a map
that is less averaged admits less, which `check_averaged` refuses before tracing.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from pdopt.errors import InvalidOption, require_range
from pdopt.types import Memory, Pair, Visit, record


class Track(NamedTuple):
    """Where an accelerated sequence is: the point, its anchor or mean, and the weight (or number) of steps so far."""

    point: Pair
    anchor: Any
    mean: Any
    count: Any


def _scalar(pair: Pair) -> Any:
    """A zero of the pair's own floating dtype."""
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(pair)]
    return jnp.zeros((), jnp.result_type(*dtypes))


def _to(start: Pair, end: Pair, weight: Any) -> Pair:
    return jax.tree.map(lambda a, b: a + weight * (b - a), start, end)


def _called(rule: Any, T: Any, track: Track, memory: Memory, weight: Any) -> tuple[Track, Memory, Visit]:
    """One call of T, and where the rule goes from there."""
    after, memory = T(track.point, memory)
    return rule.follow(track, after, weight), memory, Visit(track.point, after)


def _where(accepted: Any, moved: Track, track: Track) -> Track:
    return moved if accepted is True else optax.tree.where(accepted, moved, track)


@record
class Plain:
    """`z' = T z`."""

    relaxation = 1.0

    def init(self, pair: Pair) -> Track:
        """Start (or restart) at a pair; the anchor is where the epoch began."""
        return Track(pair, pair, (), _scalar(pair))

    def apply(self, T: Any, track: Track, memory: Memory, weight: Any = 1.0) -> tuple[Track, Memory, Visit]:
        """One call of T; `weight` is the weight of this step in a mean (the step size)."""
        return _called(self, T, track, memory, weight)

    def follow(self, track: Track, after: Pair, weight: Any, accepted: Any = True) -> Track:
        """Where to go from the point once `after = T point` is known; nowhere where it is not `accepted`."""
        return _where(accepted, track._replace(point=after, count=track.count + 1), track)

    def best(self, track: Track, visit: Visit) -> Pair:
        """The pair to return now."""
        return visit.after


@record
class Lean(Plain):
    """`z' = T z` without an anchor, for points too large to be kept twice: all that is stored is z.

    A rule that wants to know how far an epoch went is shown its last step instead.
    """

    def init(self, pair: Pair) -> Track:
        """Start (or restart) at a pair."""
        return Track(pair, (), (), _scalar(pair))

    def best(self, track: Track, visit: Visit) -> Pair:
        """The point itself: it is `T z` wherever the step was taken, and the state alone makes it again."""
        return track.point


@record
class Relaxed:
    """`z' = z + omega (T z - z)`; over-relaxation for omega in (1, 2).

    Attributes:
        omega: in (0, 2); below 2 for a firmly nonexpansive map.
    """

    omega: Any = 1.5

    @property
    def relaxation(self) -> Any:
        """Largest multiple of `T z - z` taken."""
        return self.omega

    def init(self, pair: Pair) -> Track:
        """Start at a pair."""
        return Track(pair, pair, (), _scalar(pair))

    def apply(self, T: Any, track: Track, memory: Memory, weight: Any = 1.0) -> tuple[Track, Memory, Visit]:
        """One relaxed step."""
        return _called(self, T, track, memory, weight)

    def follow(self, track: Track, after: Pair, weight: Any, accepted: Any = True) -> Track:
        """The relaxed point."""
        point = _to(track.point, after, self.omega)
        return _where(accepted, track._replace(point=point, count=track.count + 1), track)

    def best(self, track: Track, visit: Visit) -> Pair:
        """`T z`, which lies in the sets; the relaxed point may not."""
        return visit.after


@record
class Averaged:
    """`z' = T z` with the mean of all `T z` since the start, weighted by the step sizes.

    Example:
        >>> track = Averaged().init(Pair(jnp.float32(0), jnp.float32(0)))
        >>> add_one = lambda z, memory: (Pair(z.x + 1, z.y + 1), memory)
        >>> for _ in range(3):
        ...     track, _, _ = Averaged().apply(add_one, track, Memory())
        >>> print(track.mean.x)
        2.0
    """

    relaxation = 1.0

    def init(self, pair: Pair) -> Track:
        """Start at a pair; the mean starts there with weight 0."""
        return Track(pair, pair, pair, _scalar(pair))

    def apply(self, T: Any, track: Track, memory: Memory, weight: Any = 1.0) -> tuple[Track, Memory, Visit]:
        """One step; the mean moves by its share."""
        return _called(self, T, track, memory, weight)

    def follow(self, track: Track, after: Pair, weight: Any, accepted: Any = True) -> Track:
        """`after`, and the mean with it in."""
        total = track.count + weight
        mean = _to(track.mean, after, weight / total)
        return _where(accepted, Track(after, track.anchor, mean, total), track)

    def best(self, track: Track, visit: Visit) -> Pair:
        """The mean."""
        return track.mean


@record
class Halpern:
    """`z' = w ((1 + rho) T z - rho z) + (1 - w) z0`, `w = (k+1)/(k+2)`: the reflected Halpern iteration.

    Attributes:
        reflection: rho in [0, 1]; 1 is full reflection (firmly nonexpansive maps), 0 plain Halpern. 0.85 with the
            adaptive step solved the most linear programs of the development set (linear spec, section 4b).
    """

    reflection: Any = 0.85

    @property
    def relaxation(self) -> Any:
        """Largest multiple of `T z - z` taken."""
        return 1.0 + self.reflection

    def init(self, pair: Pair) -> Track:
        """Start at a pair, which becomes the anchor."""
        return Track(pair, pair, (), _scalar(pair))

    def apply(self, T: Any, track: Track, memory: Memory, weight: Any = 1.0) -> tuple[Track, Memory, Visit]:
        """One reflected step, drawn back towards the anchor."""
        return _called(self, T, track, memory, weight)

    def follow(self, track: Track, after: Pair, weight: Any, accepted: Any = True) -> Track:
        """`z + w (1 + rho) (T z - z) + (1 - w) (z0 - z)`: the blend of `after`, the point and the anchor.

        Both weights of a step that is not accepted are 0: a choice between whole vectors would be read and made entry
        by entry. In this form no sum has two products, either of which a compiler may fuse with it: it rounds alike
        wherever it is compiled, in a batch as alone.
        """
        w = (track.count + 1) / (track.count + 2)
        ahead, home, count = w * (1 + self.reflection), 1 - w, track.count + 1
        if accepted is not True:
            ahead, home = (jnp.where(accepted, weight, 0) for weight in (ahead, home))
            count = jnp.where(accepted, count, track.count)
        blend = lambda z, after, anchor: z + ahead * (after - z) + home * (anchor - z)
        return track._replace(point=jax.tree.map(blend, track.point, after, track.anchor), count=count)

    def best(self, track: Track, visit: Visit) -> Pair:
        """The un-reflected `T z`, which lies in the sets."""
        return visit.after


@record
class Ahead(Halpern):
    """Halpern's iteration for points too large to be kept four times: all that is stored is the point and its anchor.

    No step keeps its `T z`: a check looks one step ahead of the point, at a `T z` that the state alone makes again.
    """


def extragradient(T: Any, pair: Pair, memory: Memory) -> tuple[Pair, Memory]:
    """`z~ = T(z; z)`, then `z' = T(z; z~)`: from where we are, by the slopes at where that leads (Korpelevich 1976).

    The memory goes through both calls, as the moments of ExtraAdam do (Gidel et al. 2019, arXiv 1802.10551).

    Args:
        T: `(base, at, memory) -> (pair, memory)`, a step from `base` with gradients and violations taken at `at`.

    Example:
        min_x max_y x y from (1, 0), steps of 1/2: the plain step goes to (1, 0.5), away from the saddle.

        >>> T = lambda base, at, memory: (Pair(base.x - 0.5 * at.y, base.y + 0.5 * at.x), memory)
        >>> extragradient(T, Pair(1.0, 0.0), Memory())[0]
        Pair(x=0.75, y=0.5)
    """
    ahead, memory = T(pair, pair, memory)
    return T(pair, ahead, memory)


def check_averaged(acceleration: Any, averaged: float, name: str) -> None:
    """Refuse more relaxation than a map of averagedness `averaged` allows: at most `1 / averaged`.

    Raises:
        InvalidOption: the acceleration takes a longer step along `T z - z`.

    Example:
        >>> check_averaged(Halpern(reflection=1.0), 1.0, "extra-gradient")
        Traceback (most recent call last):
        ...
        pdopt.errors.InvalidOption: Halpern takes 2 (T z - z); extra-gradient allows at most 1
    """
    relaxation = acceleration.relaxation
    if isinstance(relaxation, Tracer):
        return
    require_range(f"relaxation of {type(acceleration).__name__}", relaxation, 0.0)
    if float(np.asarray(relaxation)) > 1.0 / averaged + 1e-12:
        raise InvalidOption(
            f"{type(acceleration).__name__} takes {float(relaxation):g} (T z - z); "
            f"{name} allows at most {1 / averaged:g}"
        )
