"""Models and prompts of the generation benchmark, written as Hugging Face folders that every engine reads.

`python -m benchmarks.generation_models CASE FOLDER` writes one. Random weights are three times as large as they are
initialised, so that logits are far apart and greedy texts do not hang on the last bit.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

WIDTH = 32  # tokens that prompts are padded to; their lengths are between half of it and all of it
TEXT = (
    "The tide was already going out when the two of them came down to the harbour, and most of the boats lay on "
    "their sides in the mud. A boy was mending a net beside the wall. He told them that the ferry had left an hour "
    "ago, that there would be another in the morning, and that his aunt kept a room above the bakery for people who "
    "had missed it. They asked him what the island was like at this time of the year. Quiet, he said, and full of "
    "birds; in the spring there are more of them than anyone has ever been able to count."
)


class Case(NamedTuple):
    """A model to compare: sizes (None: the packaged real one), batches and repetitions of quick and full runs."""

    sizes: dict[str, Any] | None
    quick: tuple[int, ...]
    full: tuple[int, ...]
    quick_repetitions: int
    full_repetitions: int


CASES = {
    "width 128 x 4": Case(
        {"vocabulary": 512, "width": 128, "depth": 4, "heads": 4, "kv_heads": 2, "head_dim": 32, "hidden": 384},
        (1, 16, 64), (1, 16, 64), 4, 8,
    ),
    "SmolLM2-135M": Case(None, (1, 16), (1, 16, 64), 2, 3),
    "width 512 x 8": Case(
        {"vocabulary": 8192, "width": 512, "depth": 8, "heads": 8, "kv_heads": 4, "head_dim": 64, "hidden": 1536},
        (), (1, 16, 64), 2, 4,
    ),
}  # fmt: skip


def write_model(case: str, folder: Path) -> None:
    """The model's folder, and `prompts-BATCH.npz` (prompts, valid: left padded) for each batch."""
    import jax

    from pdopt.models.checkpoints import export
    from pdopt.models.config import DecoderConfig
    from pdopt.models.decoder import Decoder, initialise

    sizes = CASES[case].sizes
    rng = np.random.default_rng(0)
    if sizes is None:
        from pdopt.models.sources import open_model

        opened = open_model("smollm2")
        export(opened.model, folder)
        stream = np.asarray(opened.tokenizer(TEXT).input_ids)
    else:
        config = DecoderConfig(**sizes, qkv_bias=True, family="qwen2", pad=0)
        params = initialise(config, jax.random.key(0))
        export(Decoder(jax.tree.map(lambda leaf: 3 * leaf if leaf.ndim > 2 else leaf, params), config), folder)
        stream = rng.integers(1, config.vocabulary, 4096)
    for batch in CASES[case].full:
        lengths = rng.integers(WIDTH // 2, WIDTH + 1, batch)
        starts = rng.integers(0, len(stream) - WIDTH, batch)
        valid = np.arange(WIDTH)[None] >= WIDTH - lengths[:, None]
        texts = np.stack([stream[start : start + WIDTH] for start in starts])
        np.savez(folder / f"prompts-{batch}.npz", prompts=np.where(valid, texts, 0), valid=valid)


if __name__ == "__main__":
    write_model(sys.argv[1], Path(sys.argv[2]))
