"""`run`: the solve of `pdopt.solve`, driven from the host in jitted chunks.

    carry_0 = begin(problem, start);    carry_{j+1} = advance_until(carry_j, until_j);    until_{j+1} by the clock

Between chunks the host looks at a handful of scalars: it reports progress, saves, stops at a time limit or a signal.
`until` is traced, so chunks of any length share one compilation, and a chunk ends only where the loop would check
anyway: how a run is cut into chunks changes no bit of its answer, and neither does saving it and going on later.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from pdopt.confirm import confirmed
from pdopt.errors import InvalidOption, InvalidProblem, require_range
from pdopt.mending import Mender
from pdopt.presolved import presolved_run
from pdopt.reports import Report, Seconds
from pdopt.rules.loop import Carry, advance_until, completed
from pdopt.runtime.chunks import Pace
from pdopt.runtime.fitted import compiled
from pdopt.runtime.interrupts import StopFlag, stop_flag
from pdopt.runtime.precision import precision_scope
from pdopt.runtime.progress import COLUMNS, IterationLog, Progress, Silent
from pdopt.saving import Saver, open_folder
from pdopt.solve import checked_options, checked_start, default_method, finish, prepare
from pdopt.types import Pair, Solution, Status

CHECKPOINT_EVERY = 60.0
PACE = Pace()


def run(
    problem: Any,
    method: Any = None,
    *,
    start: Pair | Solution | None = None,
    tolerance: float | None = None,
    max_iterations: int | None = None,
    time_limit: float | None = None,
    progress: bool | Progress = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = CHECKPOINT_EVERY,
    resume: bool = False,
    history: int = 0,
    presolve: bool = False,
) -> Solution:
    """Solve one problem with the host in the loop: progress, time limit, Ctrl-C, checkpoints.

    The same iterations as `solve`, to the last bit, when nothing stops them earlier; an optimum of a small linear
    program is looked at once more (`pdopt.confirmed`), and may prove infeasible. The result is a constant (no
    gradient); inside `jit`, `grad` and `vmap`, and for batches, use `solve`. Ctrl-C or SIGTERM end the run with the
    best pair and status INTERRUPTED; a second Ctrl-C raises. What float32 can reach: see `solve`. For one process: in
    a distributed run the clocks of the processes would cut the run in different places.

    Args:
        problem: one problem, not a batch.
        method: a method object such as `PDHG()`; None takes the problem's default.
        start: a `Pair` in the user's units or a previous `Solution`; not used where a checkpoint is resumed.
        tolerance: all three relative residuals must be at most this (> 0). None: 1e-6 in float64, 1e-4 in float32.
        max_iterations: saddle steps (>= 1). None: 1 000 000.
        time_limit: wall seconds (> 0) from this call on, compilation included; at least one chunk runs, so that there
            is an answer. The status is then TIME_LIMIT.
        progress: True for an iteration log on standard error, or any `Progress`. Its rows show the best pair so far.
        checkpoint: a folder for the state, saved every `checkpoint_every` seconds and at the end. Its steps count
            iterations.
        checkpoint_every: seconds between saves, > 0.
        resume: go on from the newest whole checkpoint in the folder (begin at the start, with a warning, if it holds
            none). It must belong to the same problem, method settings and library versions; tolerance and limits may
            be others. A run that was interrupted and resumed ends with the bits of one that was not.
        history: rows of `solution.history` to keep, as in `solve`.
        presolve: make a linear program smaller by HiGHS first. Optimal is said only of residuals on the original data:
            where postsolve enlarges them the pair is mended there by least squares, and where that will not do the run
            goes on, at last without presolve. Long solves are mended now and then as well, and end where that is
            enough. A problem that presolve itself finds infeasible has that status and no certificate. Iterations
            count all solves, history is the last one's, a checkpoint folder holds a folder for each.

    Returns:
        `Solution`; its status and iterations are on the host already.

    Raises:
        InvalidOption: an option outside its range, or `resume` without `checkpoint`.
        InvalidProblem: a batch or traced problem; a start of the wrong shape, or with NaN.
        UnsupportedProblem: the method has no use for this kind of problem.
        CheckpointError: the folder cannot be used, holds another run, or holds checkpoints and `resume` is False.
        KeyboardInterrupt: at a second Ctrl-C.

    Example:
        >>> import pdopt
        >>> lp = pdopt.LinearProgram([-1.0, -1.0], [[1.0, 2.0]], [-jnp.inf], [4.0], [0.0, 0.0], [3.0, 3.0],
        ...                          dtype=jnp.float32)
        >>> solution = run(lp, tolerance=1e-5, time_limit=60.0)
        >>> print(solution.reason, solution.x.round(2))
        optimal [3.  0.5]
    """
    return timed_run(
        problem, method, start=start, tolerance=tolerance, max_iterations=max_iterations, time_limit=time_limit,
        progress=progress, checkpoint=checkpoint, checkpoint_every=checkpoint_every, resume=resume, history=history,
        presolve=presolve,
    ).solution  # fmt: skip


def timed_run(
    problem: Any,
    method: Any = None,
    *,
    start: Pair | Solution | None = None,
    tolerance: float | None = None,
    max_iterations: int | None = None,
    time_limit: float | None = None,
    progress: bool | Progress = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = CHECKPOINT_EVERY,
    resume: bool = False,
    history: int = 0,
    presolve: bool = False,
    pace: Pace = PACE,
    clock: Callable[[], float] = time.monotonic,
    mender: Mender | None = None,
    confirm: bool = True,
) -> Report:
    """`run`, with its seconds and the signal that stopped it; `pace` and `clock` for programs that own their time.

    `mender` is asked at its iterations whether it can make an answer of the best pair; where it can, the run is over.
    `confirm`: whether the end of a small linear program is looked at once more (`pdopt.confirmed`).
    """
    began = clock()
    method = default_method(problem) if method is None else method
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((problem, method, start))):
        raise InvalidProblem("run drives its loop from the host and cannot be traced: use pdopt.solve in jit and grad")
    limit_s = np.inf if time_limit is None else time_limit
    require_range("time_limit", limit_s, 0.0, open_low=True)
    require_range("checkpoint_every", checkpoint_every, 0.0, open_low=True)
    if resume and checkpoint is None:
        raise InvalidOption("resume needs checkpoint, the folder to resume from")
    pace.check()
    with precision_scope(problem):
        if hasattr(method, "admit"):
            method.admit(problem)
        reach, limit = checked_options(problem, tolerance, max_iterations, "none", history)
        _require_single(problem)
        if presolve:

            def one(
                problem: Any, start: Any, tolerance: float, most: int, seconds: float, folder: Path | None, first: bool,
                mender: Mender | None, confirm: bool,
            ) -> Report:  # fmt: skip
                again = resume and folder is not None and (first or folder.is_dir())
                return timed_run(
                    problem, method, start=start, tolerance=tolerance, max_iterations=most, time_limit=seconds,
                    progress=progress, checkpoint=folder, checkpoint_every=checkpoint_every, resume=again,
                    history=history, pace=pace, clock=clock, mender=mender, confirm=confirm,
                )  # fmt: skip

            first = checked_start(problem, start)
            return presolved_run(one, problem, first, float(reach), int(limit), limit_s, checkpoint, clock)
        program = _Program(problem, method, checked_start(problem, start), reach, limit, history)
        listener = _listener(progress)
        with open_folder(checkpoint, problem, method, resume) as folder, stop_flag() as flag:
            saver = None if folder is None else Saver(folder, checkpoint_every, clock)
            drive = _Drive(program, listener, saver, flag, pace, clock, began, limit_s, mender, confirm)
            return drive.report(resume)


class _Program:
    """The three compiled programs of a run: first carry, chunk, solution. Their options are bound, not compiled in."""

    def __init__(self, problem: Any, method: Any, start: Pair | None, tolerance: Any, limit: Any, history: int) -> None:
        self.problem, self.method, self.tolerance, self.limit = problem, method, tolerance, limit
        self._given = (problem, method, start, tolerance, history)
        self._begin, self._advance, self._finish = (
            f.fitting(problem, method, start) for f in (_BEGIN, _CHUNK, _FINISH)
        )
        shapes = self._begin.eval_shape(*self._given)  # of a jitted function: a second run traces nothing
        self._places = None
        if any(len(getattr(leaf, "devices", set)()) > 1 for leaf in jax.tree.leaves(problem)):
            # Over a mesh a carry keeps its places from chunk to chunk: left free, XLA would choose them anew for every
            # chunk, and compile another for what it chose. A ray begins as zeros, which have no place of their own.
            judge, view, carry = self._begin.lower(*self._given).compile().output_shardings
            self._places = carry._replace(ray=carry.pair)
            self._advance = jax.jit(_advanced, donate_argnames=("carry",), out_shardings=self._places)
            placed = lambda like, at: jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=at)
            shapes = jax.tree.map(placed, shapes, (judge, view, self._places))
        self._judge, self._view, self.template = shapes

    def compile(self) -> None:
        """Compile all three; the calls that follow find the programs made."""
        self._begin.lower(*self._given).compile()
        count = jax.ShapeDtypeStruct((), np.int32)
        given = (self._judge, self._view, self.method, self.template, count, self.tolerance, self.limit)
        self._advance.lower(*given).compile()
        self._finish.lower(self.problem, self._view, self.method, self.template, self.tolerance).compile()

    def begin(self) -> Carry:
        """The first carry; from here on the judge and the view are arrays."""
        self._judge, self._view, carry = self._begin(*self._given)
        return self._placed(carry)

    def chunk(self, carry: Carry, until: int) -> Carry:
        """The carry at the first check at or after `until` iterations; the one passed in is gone."""
        return self._advance(self._judge, self._view, self.method, carry, jnp.int32(until), self.tolerance, self.limit)

    def finish(self, carry: Carry) -> Solution:
        """The solution, its status and iterations on the host."""
        solution = self._finish(self.problem, self._view, self.method, self._placed(carry), self.tolerance)
        count = np.asarray(solution.iterations)
        return solution.replace(status=np.asarray(solution.status), iterations=count)

    def revived(self, carry: Carry) -> Carry:
        """A restored carry under this run's options: a limit or tolerance that was met then may not be met now."""
        limit, error = int(self.limit), float(carry.optimality.residuals.error)
        status = Status(int(carry.status))
        if status is Status.ITERATION_LIMIT or (status is Status.OPTIMAL and not error <= float(self.tolerance)):
            status = Status.RUNNING
        # A method that may distrust residuals looks again, at its next step.
        if status is Status.RUNNING and error <= float(self.tolerance) and not hasattr(self.method, "trusted"):
            status = Status.OPTIMAL
        if status is Status.RUNNING and int(carry.iterations) >= limit:
            status = Status.ITERATION_LIMIT
        return self._placed(carry._replace(status=jnp.int32(int(status))))

    def _placed(self, carry: Carry) -> Carry:
        return carry if self._places is None else jax.device_put(carry, self._places)


def _begun(problem: Any, method: Any, start: Any, tolerance: Any, history: int) -> tuple[Any, Any, Carry]:
    judge, view, carry = prepare(problem, method, start, tolerance, history)
    # The barrier keeps the user's own arrays out of the carry, which the chunks donate.
    return judge, view, jax.lax.optimization_barrier(carry)


def _advanced(judge: Any, view: Any, method: Any, carry: Carry, until: Any, tolerance: Any, limit: Any) -> Carry:
    return advance_until(judge, view, method, carry, until, tolerance, limit)


def _finished(problem: Any, view: Any, method: Any, carry: Carry, tolerance: Any) -> Solution:
    return finish(problem, completed(view, method, carry), tolerance)


_BEGIN = compiled(_begun, static_argnames=("history",))
_CHUNK = compiled(_advanced, donate_argnames=("carry",))
_FINISH = compiled(_finished)


class _Look(NamedTuple):
    """What the host reads between chunks."""

    status: Any
    iterations: Any
    objective: Any
    dual_objective: Any
    gap: Any
    primal: Any
    dual: Any


class _Drive:
    """The host's loop around the chunks."""

    def __init__(
        self, program: _Program, listener: Progress, saver: Saver | None, flag: StopFlag, pace: Pace,
        clock: Callable[[], float], began: float, limit_s: float, mender: Mender | None, confirm: bool,
    ) -> None:  # fmt: skip
        self.mender, self.confirm = mender, confirm
        self.program, self.listener, self.saver, self.flag = program, listener, saver, flag
        self.pace, self.clock, self.began, self.limit_s = pace, clock, began, limit_s

    def report(self, resume: bool) -> Report:
        """Compile, begin or resume, iterate, save, finish."""
        restored = self.saver.restore(self.program.template) if self.saver and resume else None
        before = self.clock()
        self.program.compile()
        compiling = self.clock() - before
        self.listener.start(int(self.program.limit))
        sentence = ""
        try:
            carry = self.program.begin()
            if restored is not None:
                carry = self.program.revived(restored)
            carry, stopped = self.iterate(carry)
            if self.saver:
                self.saver.end(carry)
            solution = self.program.finish(carry._replace(status=jnp.int32(int(stopped))))
            solution = confirmed(self.program.problem, solution) if self.confirm else solution
            sentence = solution.reason.sentence
        finally:
            self.listener.finish(sentence)
        seconds = Seconds(compiling, self.clock() - self.began - compiling)
        interrupted = stopped is Status.INTERRUPTED
        return Report(solution, seconds, self.flag.signal if interrupted else None)

    def iterate(self, carry: Carry) -> tuple[Carry, Status]:
        """Chunk after chunk until a status, a signal or the time limit; why it stopped."""
        # A method that looks at each step takes long ones, each an inner minimisation: the first tells how long.
        length, limit = 1 if self.program.method.every == 1 else self.pace.first, int(self.program.limit)
        look = self.look(carry)
        if self.mender is not None:
            self.mender.after(int(look.iterations))
        while look.status == Status.RUNNING or look.iterations < 0:  # -1: the start is not judged yet
            if self.flag.stopped:
                return carry, Status.INTERRUPTED
            done, before = max(int(look.iterations), 0), self.clock()
            until = min(done + length, limit)
            carry = self.program.chunk(carry, until if self.mender is None else min(until, self.mender.next))
            look = self.look(carry)
            now = self.clock()
            self.tell(look, now)
            if look.status != Status.RUNNING:
                break
            if self.mends(carry, look):
                return carry, Status.OPTIMAL
            if self.saver:
                self.saver.look(carry, now)
            left = self.began + self.limit_s - now
            if left <= 0:
                return carry, Status.TIME_LIMIT
            steps = int(look.iterations) - done
            length = self.pace.within(self.pace.next(steps, now - before), (now - before) / steps, left)
        return carry, Status(int(look.status))

    def mends(self, carry: Carry, look: _Look) -> bool:
        """Whether the mender, where it is its turn, makes an answer of the best pair."""
        done = int(look.iterations)
        if self.mender is None or done < self.mender.next:
            return False
        return self.mender(carry.pair, float(max(look.primal, look.dual, look.gap)), done)

    def look(self, carry: Carry) -> _Look:
        """Wait for the chunk and read its scalars."""
        found, r = carry.optimality, carry.optimality.residuals
        values = (carry.status, carry.iterations, found.objective, found.dual_objective, r.gap, r.primal, r.dual)
        return _Look(*jax.device_get(values))

    def tell(self, look: _Look, now: float) -> None:
        """One row of the log, in the user's sense."""
        sense = self.program.problem.sense
        self.listener.update({
            "iter": int(look.iterations),
            "objective": sense * float(look.objective),
            "dual objective": sense * float(look.dual_objective),
            "gap": float(look.gap),
            "primal residual": float(look.primal),
            "dual residual": float(look.dual),
            "time": now - self.began,
        })  # fmt: skip


def _require_single(problem: Any) -> None:
    """Refuse a batch: the constructors make single problems, so extra axes come from stacking or from `vmap`."""
    leaves = {name: np.ndim(getattr(problem, name)) for name in ("offset", "c") if hasattr(problem, name)}
    for name, rank in leaves.items():
        expected = {"offset": 0, "c": 1}[name]
        if rank > expected:
            raise InvalidProblem(
                f"{name} has {rank} axes; expected {expected}: run takes one problem, use jax.vmap(pdopt.solve) for a "
                "batch"
            )


def log_columns(width: int) -> tuple[str, ...]:
    """The columns of the iteration log that fit on lines of `width` characters.

    Example:
        >>> "dual objective" in log_columns(120), "dual objective" in log_columns(80)
        (True, False)
    """
    names = tuple(name for name in COLUMNS if name != "step")  # a method's own matter, and not every method has one
    full = sum(max(size, len(name)) for name, (size, _) in COLUMNS.items() if name in names) + 2 * (len(names) - 1)
    return names if width >= full else tuple(name for name in names if name != "dual objective")


def iteration_log() -> IterationLog:
    """The log of `progress=True`, as wide as the terminal allows; one that goes to a file has no width."""
    return IterationLog(columns=log_columns(shutil.get_terminal_size().columns if sys.stderr.isatty() else 1000))


def _listener(progress: bool | Progress) -> Progress:
    if isinstance(progress, bool):
        return iteration_log() if progress else Silent()
    if not all(hasattr(progress, verb) for verb in ("start", "update", "finish")):
        raise InvalidOption(f"progress has type {type(progress).__name__}; expected a bool or a Progress")
    return progress
