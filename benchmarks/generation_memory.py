"""Peak memory of token log-probabilities with their gradient: pdopt's chunks against logits that are all made.

Each side runs in a child of its own, as in `benchmarks.transport_memory`: the growth of its resident set beyond the
arguments and the compiled program. `python -m benchmarks.generation_memory WAY TOKENS` is one child; it prints one
JSON object.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.children import measured
from benchmarks.claims import Claim
from benchmarks.generation_engines import reset_peak
from benchmarks.harness import Options
from benchmarks.report import Table, number
from benchmarks.transport_memory import peak_mb

WAYS = ("chunked", "materialised")
VOCABULARY, TOKENS, WIDTH = 151_936, 2048, 256
SHARE, SAME = 0.25, 1e-5
LIMIT = 600.0


def materialised(hidden: Any, head: Any, targets: Any) -> Any:
    """The same sum from all logits at once."""
    import jax
    import jax.numpy as jnp

    logs = jax.nn.log_softmax(hidden @ head, axis=-1)
    return jnp.sum(jnp.take_along_axis(logs, targets[:, None], axis=-1))


def chunked(hidden: Any, head: Any, targets: Any) -> Any:
    """pdopt's."""
    import jax.numpy as jnp

    from pdopt.models.log_probs import token_log_probs

    return jnp.sum(token_log_probs(hidden, head, targets).log_probs)


def child(way: str, tokens: int) -> dict[str, Any]:
    """The mean log-probability and the norms of its gradients in this process; growth, CPU seconds."""
    import jax
    import jax.numpy as jnp

    both = jax.jit(jax.value_and_grad({"chunked": chunked, "materialised": materialised}[way], argnums=(0, 1)))

    def data(tokens: int, vocabulary: int) -> tuple[Any, Any, Any]:
        keys = jax.random.split(jax.random.key(0), 3)
        hidden = jax.random.normal(keys[0], (tokens, WIDTH))
        head = jax.random.normal(keys[1], (WIDTH, vocabulary)) / WIDTH**0.5
        return jax.block_until_ready((hidden, head, jax.random.randint(keys[2], (tokens,), 0, vocabulary)))

    jax.block_until_ready(both(*data(16, 1024)))
    arguments = data(tokens, VOCABULARY)
    program = both.lower(*arguments).compile()
    reset_peak()  # of compiling and of making the data
    before, cpu = peak_mb(), time.process_time()
    value, slopes = jax.block_until_ready(program(*arguments))
    cpu, growth = time.process_time() - cpu, peak_mb() - before
    return {
        "way": way, "tokens": tokens, "vocabulary": VOCABULARY, "width": WIDTH, "baseline_mb": before,
        "growth_mb": growth, "cpu": cpu, "value": float(value) / tokens, "outcome": "done",
        "slopes": [float(jnp.linalg.norm(slope)) for slope in slopes],
    }  # fmt: skip


def measure(way: str, tokens: int, limit: float = LIMIT) -> dict[str, Any]:
    """One child under a limit of seconds."""
    about = {"way": way, "tokens": tokens}
    return measured("benchmarks.generation_memory", (way, str(tokens)), about, limit)


def section(options: Options, say: Any = print) -> tuple[list[dict[str, Any]], list[Claim], list[Table], list[Path]]:
    """Records, claims and the table; the same size in quick and full runs."""
    records = [measure(way, TOKENS) for way in WAYS]
    for r in records:
        say(f"log-probabilities, {r['way']}: {number(r.get('growth_mb'))} MB, {r['outcome']}")
    return records, claims(records), [table(records)], []


def claims(records: list[dict[str, Any]]) -> list[Claim]:
    """A quarter of the memory at the same value and gradient."""
    sides = {r["way"]: r for r in records if r["outcome"] == "done"}
    size = f"vocabulary {VOCABULARY}, {TOKENS} tokens, width {WIDTH}"
    memory = f"memory of log-probabilities and gradient over the materialised one's, {size}"
    same = "largest relative difference of their value and gradients' norms"
    if len(sides) < len(WAYS):
        why = "; ".join(f"{r['way']}: {r['outcome']}" for r in records)
        return [Claim(memory, None, SHARE, "<=", why), Claim(same, None, SAME, "<=", why)]
    a, b = sides["chunked"], sides["materialised"]
    pairs = [(a["value"], b["value"]), *zip(a["slopes"], b["slopes"])]
    difference = max(abs(x - y) / max(abs(y), 1e-30) for x, y in pairs)
    note = f"{a['growth_mb']:.0f} MB against {b['growth_mb']:.0f} MB; CPU seconds {a['cpu']:.1f} against {b['cpu']:.1f}"
    return [
        Claim(memory, a["growth_mb"] / b["growth_mb"], SHARE, "<=", note),
        Claim(same, difference, SAME, "<=", f"mean log-probability {a['value']:.6f}"),
    ]


def table(records: list[dict[str, Any]]) -> Table:
    """Growth beyond the arguments and the compiled program."""
    rows = [
        [r["way"], f"{r['tokens']}", number(r.get("growth_mb")), number(r.get("baseline_mb")), number(r.get("cpu")),
         number(r.get("value")), r["outcome"]]
        for r in records
    ]  # fmt: skip
    columns = ["way", "tokens", "growth MB", "baseline MB", "CPU s", "mean log-probability", "outcome"]
    return Table(f"Log-probabilities with gradient, vocabulary {VOCABULARY}, width {WIDTH}, float32", columns, rows)


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[1], int(sys.argv[2]))))
