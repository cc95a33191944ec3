"""`pdopt generate`: texts from a language model, printed as they come.

Everything that needs JAX is imported inside the command, after the arguments were found to be good. Rows are numbered
prompt by prompt, sample by sample: a text depends on the seed and on its number, not on the batch that it was in.
"""

import math
import sys
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import typer

from pdopt.cli.models import mesh_option
from pdopt.cli.outcomes import FINISHED, Outcome
from pdopt.cli.prompts import read_prompts
from pdopt.errors import InvalidOption, require_range, unknown_name

DTYPES = ("float32", "bfloat16", "float16")
EVERY = 8  # tokens between two looks at what came: a word or two

Model = Annotated[
    str,
    typer.Option(help="FOLDER, FILE.gguf, a packaged model (smollm2), or owner/name", show_default=False),
]
PromptTexts = Annotated[list[str] | None, typer.Option("--prompt", help="Text; repeatable; - reads standard input.")]
PromptFile = Annotated[str | None, typer.Option("--prompts", help=".jsonl (prompt or messages) or a text a line; -.")]
System = Annotated[str | None, typer.Option(help="Text in the role system, before every prompt.")]
MaxNew = Annotated[int, typer.Option(help="Most new tokens of a text, >= 1.")]
Temperature = Annotated[
    float | None, typer.Option(help="0 takes the likeliest token. [default: 0; with --samples: 0.7]")
]
TopK = Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")]
TopP = Annotated[float, typer.Option(help="Keep the fewest tokens whose probabilities sum to this.")]
MinP = Annotated[float, typer.Option(help="Keep tokens this likely relative to the likeliest.")]
Samples = Annotated[int, typer.Option(help="Texts for each prompt, >= 1.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same texts.")]
Stop = Annotated[list[str] | None, typer.Option(help="End a text before this; repeatable.")]
Raw = Annotated[bool, typer.Option("--raw", help="Give the prompt as it is, without the chat template.")]
Dtype = Annotated[
    str | None, typer.Option(help=f"One of {', '.join(DTYPES)}. [default: float32 on a CPU, else bfloat16]")
]
MeshSizes = Annotated[
    str | None, typer.Option("--mesh", metavar="DATA,FSDP,TENSOR", help="Split model and rows over these devices.")
]
Batch = Annotated[int, typer.Option(help="Most texts generated at once, >= 1.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, whatever the outcome.")]


@dataclass
class GenerateOutcome(Outcome):
    """What is known of a generation.

    Attributes:
        model: as it was named; family, parameters: what it is; dtype: of its parameters;
            mesh: axis -> size, None without one.
        texts: an entry a text: prompt and sample (numbers), text, tokens, finish (eos, stop, length, interrupted).
        tokens: new tokens in all; prompt_tokens: tokens read.
        seconds: load, compile, generate (wall).
    """

    packages: ClassVar[tuple[str, ...]] = (*Outcome.packages, "transformers")

    model: str | None = None
    family: str | None = None
    parameters: int | None = None
    dtype: str | None = None
    mesh: dict[str, int] | None = None
    temperature: float | None = None
    seed: int | None = None
    prompt_tokens: int = 0
    texts: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(("load", "compile", "generate")))

    @property
    def tokens(self) -> int:
        """New tokens in all texts."""
        return sum(text["tokens"] for text in self.texts)

    @property
    def tokens_per_second(self) -> float | None:
        """New tokens a second of generating, reading the prompts included."""
        seconds = self.seconds["generate"]
        return self.tokens / seconds if seconds else None

    def record(self) -> dict[str, Any]:
        """Every field of the JSON object, in its order."""
        return {
            "status": self.status,
            "texts": self.texts,
            "tokens": self.tokens,
            "prompt_tokens": self.prompt_tokens,
            "tokens_per_second": self.tokens_per_second,
            "seconds": self.seconds,
            "model": self.model,
            "family": self.family,
            "parameters": self.parameters,
            "dtype": self.dtype,
            "mesh": self.mesh,
            "temperature": self.temperature,
            "seed": self.seed,
            **self.ending(),
        }


def generate(
    ctx: typer.Context,
    model: Model,
    prompt: PromptTexts = None,
    prompts: PromptFile = None,
    system: System = None,
    max_new: MaxNew = 128,
    temperature: Temperature = None,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    samples: Samples = 1,
    seed: Seed = 0,
    stop: Stop = None,
    raw: Raw = False,
    dtype: Dtype = None,
    mesh: MeshSizes = None,
    batch: Batch = 16,
    json: Json = False,
) -> GenerateOutcome:
    """Generate texts from a language model."""
    outcome: GenerateOutcome = ctx.obj.outcome
    outcome.model, outcome.seed = model, seed
    outcome.temperature = (0.7 if samples > 1 else 0.0) if temperature is None else temperature
    _check(max_new, outcome.temperature, top_k, top_p, min_p, samples, batch, dtype, stop or [])
    outcome.mesh = None if mesh is None else mesh_option(mesh)
    asked = read_prompts(prompt or [], prompts)
    if raw and system is not None:
        raise InvalidOption("--raw and --system are given; a system message needs the chat template")

    ctx.obj.startup()
    import jax

    from pdopt.cli.compiling import compile_clock
    from pdopt.cli.texts import Row, complete
    from pdopt.runtime.interrupts import stop_flag
    from pdopt.training.chat import encode_prompt
    from pdopt.training.sampling import Sampling

    outcome.dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    before = time.monotonic()
    opened = _opened(model, outcome)
    jax.block_until_ready(opened.model.params)
    outcome.seconds["load"] = time.monotonic() - before
    outcome.family, outcome.parameters = opened.model.config.family, opened.model.config.parameters
    templated = not raw and (system is not None or bool(getattr(opened.tokenizer, "chat_template", None)))
    ids = [encode_prompt(opened.tokenizer, text, as_message=templated, system=system) for text in asked]
    outcome.prompt_tokens = samples * sum(map(len, ids))
    longest = max(map(len, ids)) + max_new
    if longest > opened.model.config.positions:
        raise InvalidOption(
            f"prompt and --max-new take {longest} tokens; {model} was made for {opened.model.config.positions}"
        )
    sampling = Sampling(
        max_new=max_new, temperature=outcome.temperature, top_k=top_k, top_p=top_p, min_p=min_p, eos=opened.eos
    )
    rows = [Row(number, sample, tokens) for number, tokens in enumerate(ids) for sample in range(samples)]
    shown = Shown(quiet=json, many=len(rows) > 1, several=samples > 1)
    before = time.monotonic()
    with compile_clock() as compiled, stop_flag() as flag:
        for first in range(0, len(rows), batch):
            if flag.stopped:
                break
            listen = shown.piece if len(rows) == 1 else None
            found = complete(
                opened, rows[first : first + batch], min(batch, len(rows)), first, jax.random.key(seed), sampling,
                tuple(stop or ()), EVERY, flag, listen,
            )  # fmt: skip
            outcome.texts += found
            shown.texts(found)
        outcome.seconds["compile"] = compiled()
    outcome.seconds["generate"] = time.monotonic() - before - outcome.seconds["compile"]
    _end(outcome, len(rows), flag)
    shown.finish(outcome)
    return outcome


def _opened(model: str, outcome: GenerateOutcome) -> Any:
    """The model, on the mesh if there is one."""
    from pdopt.models.sources import model_config, open_model

    if outcome.mesh is None:
        return open_model(model, dtype=outcome.dtype)
    import jax

    from pdopt.models.decoder import Execution
    from pdopt.models.sharding import make_mesh, parameter_sharding

    mesh = make_mesh(**outcome.mesh, devices=jax.devices()[: math.prod(outcome.mesh.values())])
    sharding = parameter_sharding(mesh, model_config(model))
    return open_model(model, dtype=outcome.dtype, sharding=sharding, execution=Execution(mesh=mesh))


def _check(
    max_new: int, temperature: float, top_k: int, top_p: float, min_p: float, samples: int, batch: int,
    dtype: str | None, stop: list[str],
) -> None:  # fmt: skip
    """Refuse what is out of its range before anything is loaded."""
    for name, value, low in (("--max-new", max_new, 1), ("--samples", samples, 1), ("--batch", batch, 1),
                             ("--top-k", top_k, 0), ("--temperature", temperature, 0)):  # fmt: skip
        require_range(name, value, low)
    require_range("--top-p", top_p, 0.0, 1.0, open_low=True)
    require_range("--min-p", min_p, 0.0, 1.0)
    if samples > 1 and temperature <= 0:
        raise InvalidOption(f"--samples is {samples} and --temperature 0: all samples would be the same text")
    if dtype is not None and dtype not in DTYPES:
        raise unknown_name("--dtype", dtype, DTYPES)
    if "" in stop:
        raise InvalidOption("--stop is empty; expected a text")


def _end(outcome: GenerateOutcome, wanted: int, flag: Any) -> None:
    """Status and the sentence that goes with it."""
    seconds, rate = outcome.seconds, outcome.tokens_per_second or 0.0
    cost = f"load {seconds['load']:.1f} s, compile {seconds['compile']:.1f} s, generate {seconds['generate']:.1f} s"
    done = [text for text in outcome.texts if text["finish"] != "interrupted"]
    if len(done) < wanted:
        outcome.end("interrupted", f"Interrupted: {len(done)} of {wanted} texts are whole; {cost}.", flag.signal)
        return
    ways = {way: sum(text["finish"] == way for text in done) for way in ("eos", "stop", "length")}
    ended = ", ".join(f"{way} {count}" for way, count in ways.items() if count)
    texts = "1 text" if wanted == 1 else f"{wanted} texts"
    outcome.end(FINISHED, f"{texts}, {outcome.tokens} tokens, {rate:.1f} tokens/s; ended by: {ended}; {cost}.")


class Shown:
    """What a person sees: the texts on standard output, the rest on standard error; nothing with `--json`.

    Args:
        quiet: print nothing. many: head each text with its number. several: more than one sample to a prompt.
    """

    def __init__(self, *, quiet: bool, many: bool, several: bool) -> None:
        self._quiet, self._many, self._several = quiet, many, several

    def piece(self, text: str) -> None:
        """More of the only text."""
        if not self._quiet:
            print(text, end="", flush=True)

    def texts(self, found: list[dict[str, Any]]) -> None:
        """Whole texts, where there are many; the only one was printed piece by piece."""
        if self._quiet or not self._many:
            return
        for text in found:
            sample = f", sample {text['sample'] + 1}" if self._several else ""
            print(f"--- prompt {text['prompt'] + 1}{sample} ({text['tokens']} tokens, {text['finish']})")
            print(text["text"], flush=True)

    def finish(self, outcome: GenerateOutcome) -> None:
        """The last line, on standard error."""
        if not self._quiet:
            if not self._many:
                print(flush=True)
            print(outcome.message, file=sys.stderr, flush=True)
