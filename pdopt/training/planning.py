"""What a policy step will take, known before it runs: the compiled program's memory, what it sends, what there is.

Nothing is allocated for the batch: the step is compiled for shapes. Kept is what lives from step to step, on one
device; made is what the compiler reserves within a step.
"""

import re
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pdopt.errors import InvalidOption
from pdopt.models.sharding import batch_sharding
from pdopt.training.feed import LEAST_COLUMNS
from pdopt.training.preparation import Prepared, reference_of, start
from pdopt.training.scoring import MEASURED
from pdopt.training.state import Fixed, priced
from pdopt.training.step import Experience, policy_step

SENDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class StepPlan(NamedTuple):
    """The compiled policy step.

    Attributes:
        rows, prompt, completion: its shape.
        kept: bytes of its arguments on one device; made: of temporaries and of outputs that reuse no argument.
        available: bytes of the device, None where it does not say.
        sends: kind of collective -> how many stand in the program.
        parameters, trainable: of the model.
    """

    rows: int
    prompt: int
    completion: int
    kept: int
    made: int
    available: int | None
    sends: dict[str, int]
    parameters: int
    trainable: int

    @property
    def total(self) -> int:
        """Bytes on one device."""
        return self.kept + self.made


def plan_step(prepared: Prepared, *, available: int | None = None) -> StepPlan:
    """Compile a policy step for the longest batch there can be.

    Args:
        prepared: the run.
        available: bytes of one device; None asks it.

    Raises:
        InvalidOption: it needs more memory than there is.
    """
    recipe = prepared.recipe
    fixed, state = start(prepared)
    reference = reference_of(prepared, fixed, state)
    fixed = Fixed(fixed.model, reference)
    rows, prompt, most = (
        recipe.training.prompts * recipe.training.group,
        max(LEAST_COLUMNS, 1 << (recipe.data.longest - 1).bit_length()),
        recipe.sampling.max_new,
    )
    read, state = priced(fixed, state.prices), state._replace(prices=None)
    compiled = policy_step.lower(prepared.plan, read, state, batch_shapes(prepared, rows, prompt, most)).compile()
    memory: Any = compiled.memory_analysis()
    made = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    trainable = count(state.trainable)
    adapted = fixed.model.params is not None
    found = StepPlan(
        rows, prompt, most, memory.argument_size_in_bytes, made,
        device_memory() if available is None else available, sends(compiled.as_text() or ""),
        trainable + (count(fixed.model.params) if adapted else 0), trainable,
    )  # fmt: skip
    _judge(found)
    return found


def batch_shapes(prepared: Prepared, rows: int, prompt: int, completion: int) -> Experience:
    """Shapes of a batch as `policy_step` takes it, where the mesh wants it."""
    place = None if prepared.mesh is None else batch_sharding(prepared.mesh)
    shape = lambda dtype, *sizes: jax.ShapeDtypeStruct(sizes, dtype, sharding=place)
    constraints = prepared.recipe.constraints
    values = {c.name: shape(jnp.float32, rows) for c in constraints if c.kind not in MEASURED}
    prompts = rows // prepared.recipe.training.group
    classes = {c.name: shape(jnp.int32, prompts) for c in constraints if c.class_column}
    return Experience(
        shape(jnp.int32, rows, prompt), shape(jnp.bool_, rows, prompt), shape(jnp.int32, rows, completion),
        shape(jnp.bool_, rows, completion), shape(jnp.float32, rows, completion), shape(jnp.bool_, rows),
        shape(jnp.float32, rows), values, classes,
    )  # fmt: skip


def device_memory() -> int | None:
    """Bytes that a device has for this program: its own limit, or the machine's free memory for a CPU."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    path = Path("/proc/meminfo")
    if not path.is_file():
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    return None if found is None else int(found[1]) * 1024 // jax.local_device_count()


def sends(text: str) -> dict[str, int]:
    """Collectives in a compiled program's text, by kind; one in a loop's body stands there once.

    Example:
        >>> sends("%x = f32[4] all-reduce(f32[4] %a), ...\\n%y = f32[4] add(f32[4] %x, f32[4] %x)")
        {'all-reduce': 1}
    """
    pattern = re.compile(rf"=\s*\S.*?\s({'|'.join(SENDS)})(?:-start)?\(")
    return dict(Counter(hit[1] for line in text.splitlines() if (hit := pattern.search(line))))


def _judge(plan: StepPlan) -> None:
    """Refuse what does not fit, warn of what hardly does (reliability.md row 84)."""
    if plan.available is None:
        return
    share = plan.total / plan.available
    said = (
        f"a step needs {plan.total / 1e9:.2f} GB on a device ({plan.kept / 1e9:.2f} kept, {plan.made / 1e9:.2f} made)"
    )
    advice = "a smaller training.micro_rows, model.remat = full, a larger mesh.fsdp, or lora.rank > 0 needs less"
    if share > 1:
        raise InvalidOption(f"{said}, and there are {plan.available / 1e9:.2f} GB; {advice}")
    if share > 0.9:
        warnings.warn(f"{said}, {share:.0%} of what there is; {advice}", stacklevel=3)
