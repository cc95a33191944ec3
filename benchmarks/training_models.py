"""Model, tokenizer, prompts and a fixed batch of the training benchmark, in one folder that every engine reads.

`python -m benchmarks.training_models FOLDER` writes it. A token is a word, so that every sampled text has exactly the
tokens that were sampled, and no token ends a text: lengths are forced.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

PROMPTS, GROUP, NEW = 8, 8, 64
ROWS = PROMPTS * GROUP
SHORTEST, LONGEST = 12, 16  # words of a prompt
SIZES: dict[str, Any] = {
    "vocabulary": 512, "width": 128, "depth": 4, "heads": 4, "kv_heads": 2, "head_dim": 32, "hidden": 384,
}  # fmt: skip
PAD, END = 0, 1
# What ends a text for the samplers: an id that the model has no logit for.
NEVER = SIZES["vocabulary"]
RATE, CLIP, EPSILON = 1e-4, 1.0, (0.2, 0.28)
DATA, WORDS = "prompts.jsonl", "words"
BATCH = "batch.npz"
SEEN_PROMPTS = 64


def even_share(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
    """The reward, in the form that both libraries call: the share of tokens with an even number."""
    return [sum(token % 2 == 0 for token in ids) / max(len(ids), 1) for ids in completion_ids]


def write_all(folder: Path) -> None:
    """The folder."""
    import jax

    from pdopt.models.checkpoints import export
    from pdopt.models.config import DecoderConfig
    from pdopt.models.decoder import Decoder, initialise

    config = DecoderConfig(**SIZES, qkv_bias=True, family="qwen2", pad=PAD, eos=(END,))
    # Three times as large as they are initialised: gradients then differ from noise in every parameter.
    params = jax.tree.map(lambda leaf: 3 * leaf if leaf.ndim > 2 else leaf, initialise(config, jax.random.key(0)))
    export(Decoder(params, config), folder)
    word_tokenizer().save_pretrained(folder / WORDS)
    rng = np.random.default_rng(0)
    lengths = rng.integers(SHORTEST, LONGEST + 1, SEEN_PROMPTS)
    texts = [" ".join(f"w{number}" for number in rng.integers(2, NEVER, length)) for length in lengths]
    (folder / DATA).write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    arrays: dict[str, Any] = fixed_batch()
    np.savez(folder / BATCH, **arrays)


def word_tokenizer() -> Any:
    """`w5` is token 5."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(NEVER)}
    made = Tokenizer(WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=f"w{PAD}", eos_token=f"w{END}", unk_token="w0", padding_side="left"
    )


def fixed_batch() -> dict[str, np.ndarray]:
    """Rows that both libraries take the gradient of: prompts in groups, uneven lengths, advantages of both signs.

    Example:
        >>> {name: value.shape for name, value in fixed_batch().items() if value.ndim == 1}
        {'advantage': (64,)}
    """
    rng = np.random.default_rng(1)
    valid = np.arange(LONGEST)[None] >= LONGEST - rng.integers(SHORTEST, LONGEST + 1, PROMPTS)[:, None]
    mask = np.arange(NEW)[None] < rng.integers(NEW // 2, NEW + 1, ROWS)[:, None]
    draw = lambda valid: np.where(valid, rng.integers(2, NEVER, valid.shape), PAD).astype(np.int32)
    every = lambda once: np.repeat(once, GROUP, axis=0)
    return {
        "prompts": every(draw(valid)), "valid": every(valid), "tokens": draw(mask), "mask": mask,
        "advantage": rng.standard_normal(ROWS).astype(np.float32),
    }  # fmt: skip


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
