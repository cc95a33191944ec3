"""The child process of the generation benchmark: one engine, one model, told what to generate line by line.

`python -m benchmarks.generation_engines ENGINE FOLDER` loads the Hugging Face folder, says `{"ready": ...}`, and
answers each line `{"prompts": FILE.npz, "new": n, "sampled": bool, "seed": n, "tokens": FILE.npy}` on standard input
with CPU and wall seconds and the peak of the resident set, the tokens being in the file. The parent asks its children
in turn, so that all see the same machine.
"""

import json
import sys
import time
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.children import answering

ENGINES = ("pdopt", "transformers", "tunix")


def pdopt_engine(folder: Path) -> Any:
    """pdopt's rollout; one program for greedy and sampled, since the temperature is an operand.

    The weights are packed as they are loaded, as whoever generates more than once does.
    """
    import jax

    from pdopt.models.checkpoints import load
    from pdopt.models.decoding import pack
    from pdopt.training.rollout import generate
    from pdopt.training.sampling import Sampling

    packed = jax.block_until_ready(jax.jit(pack)(load(folder)))

    def run(prompts: np.ndarray, valid: np.ndarray, new: int, sampled: bool, seed: int) -> np.ndarray:
        sampling = Sampling(max_new=new, temperature=1.0 if sampled else 0.0)
        return np.asarray(generate(packed, prompts, valid, jax.random.key(seed), sampling).tokens)

    return run


def transformers_engine(folder: Path) -> Any:
    """`generate` of transformers, float32, one thread (its pool spins), no end token so that lengths are forced."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def run(prompts: np.ndarray, valid: np.ndarray, new: int, sampled: bool, seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        drawn = {"top_k": 0, "top_p": 1.0, "temperature": 1.0} if sampled else {}
        model.generation_config = GenerationConfig(
            max_new_tokens=new, do_sample=sampled, pad_token_id=0, eos_token_id=None, **drawn
        )
        tokens, mask = torch.from_numpy(prompts.astype(np.int64)), torch.from_numpy(valid.astype(np.int64))
        with torch.inference_mode():
            found = cast(Any, model).generate(tokens, attention_mask=mask)
        return found[:, prompts.shape[1] :].numpy()

    return run


def tunix_engine(folder: Path) -> Any:
    """Tunix's `Sampler`; its prompts are texts, here numbers that a trivial tokenizer reads back."""
    import jax

    generation = import_module("tunix.generate.sampler")
    CacheConfig, Sampler = generation.CacheConfig, generation.Sampler
    config = json.loads((folder / "config.json").read_text())
    sizes = {
        "num_layers": config["num_hidden_layers"], "vocab_size": config["vocab_size"],
        "embed_dim": config["hidden_size"], "hidden_dim": config["intermediate_size"],
        "num_heads": config["num_attention_heads"], "num_kv_heads": config["num_key_value_heads"],
        "head_dim": config["head_dim"], "norm_eps": config["rms_norm_eps"],
        "rope_theta": config["rope_parameters"]["rope_theta"],
    }  # fmt: skip
    tied = bool(config["tie_word_embeddings"])
    if config["model_type"] == "qwen2":
        family, params = (import_module(f"tunix.models.qwen2.{part}") for part in ("model", "params"))
        settings = family.ModelConfig(**sizes, use_tied_embedding=tied)
    else:
        family, params = (import_module(f"tunix.models.llama3.{part}") for part in ("model", "params"))
        settings = family.ModelConfig(**sizes, weight_tying=tied)
    # Its shardings name mesh axes, and JAX's default axis type would ask it to place every gather itself.
    kinds = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=kinds, devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        model = params.create_model_from_safe_tensors(str(folder), settings, mesh, dtype=jax.numpy.float32)
    sampler: Any = None

    def run(prompts: np.ndarray, valid: np.ndarray, new: int, sampled: bool, seed: int) -> np.ndarray:
        nonlocal sampler
        width = prompts.shape[1]
        if sampler is None:
            cache = CacheConfig(width + new, settings.num_layers, settings.num_kv_heads, settings.head_dim)
            sampler = Sampler(model, _Numbers(), cache)
        texts = [" ".join(map(str, row[keep])) for row, keep in zip(prompts, valid)]
        # No token of the vocabulary ends a text: lengths are forced.
        found = sampler(
            texts, max_generation_steps=new, max_prompt_length=width, eos_tokens=[settings.vocab_size + 1],
            temperature=1.0 if sampled else 0.0, top_p=1.0 if sampled else None, seed=seed,
        )  # fmt: skip
        return np.stack([np.asarray(row) for row in found.tokens])

    return run


class _Numbers:
    """A tokenizer whose texts are token ids; 0 is padding, and no token begins a text."""

    def encode(self, text: str) -> list[int]:
        """The ids in the text."""
        return [int(word) for word in text.split()]

    def decode(self, ids: Any) -> str:
        """Nothing: the benchmark compares tokens."""
        return ""

    def bos_id(self) -> int:
        """None."""
        return 0

    def eos_id(self) -> int:
        """Never sampled."""
        return -1

    def pad_id(self) -> int:
        """Padding."""
        return 0


def reset_peak() -> bool:
    """Make the peak of the resident set start again from here (Linux); whether it did."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def serve(engine: str, folder: Path) -> None:
    """Load, then answer one line after the other."""
    say = answering()
    started = time.process_time()
    try:
        run = {"pdopt": pdopt_engine, "transformers": transformers_engine, "tunix": tunix_engine}[engine](folder)
    except ImportError as error:
        say(missing=str(error))
        return
    from benchmarks.transport_memory import peak_mb

    packages = {"pdopt": ("jax",), "transformers": ("transformers", "torch"), "tunix": ("google-tunix", "jax")}
    say(ready=time.process_time() - started, versions={p: metadata.version(p) for p in packages[engine]})
    for line in sys.stdin:
        order = json.loads(line)
        with np.load(order["prompts"]) as file:
            prompts, valid = file["prompts"], file["valid"]
        reset = reset_peak()
        wall, cpu = time.perf_counter(), time.process_time()
        tokens = run(prompts, valid, order["new"], order["sampled"], order["seed"])
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        np.save(order["tokens"], tokens)
        say(cpu=cpu, wall=wall, peak_mb=peak_mb() if reset else None, shape=list(tokens.shape))


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
