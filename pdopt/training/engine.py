"""An engine in another process, spoken to as an OpenAI-style completion server: vLLM, SGLang and their kin.

    update:    weights -> folder of safetensors;   POST reload {"model_path": folder}
    generate:  POST /v1/completions {prompt: token ids, logprobs, return_token_ids} -> ids and log-probabilities

Both sides see one file system. Token ids go both ways, never text: text does not tell which tokens were drawn, and a
policy gradient of other tokens is wrong without a sign of it. Only the standard library is used. Everything that can
fail ends in one `EngineError` that names the address, what came and what was expected; nothing is tried again, since a
sampler that is asked twice draws twice.
"""

import json
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdopt.errors import InvalidOption, PdoptError, require_range
from pdopt.models.checkpoints import export
from pdopt.models.decoder import Decoder
from pdopt.models.lora import merge
from pdopt.training.prompts import Prompts
from pdopt.training.rollout import Rollout
from pdopt.training.rollouter import group_of
from pdopt.training.sampling import Sampling
from pdopt.types import record


class EngineError(PdoptError, RuntimeError):
    """An engine that cannot be reached, is too slow, or answers something else than was asked."""


@record(static=("url", "folder", "name", "reload", "timeout", "pad", "updates"))
class Engine:
    """A completion server as a `Rollouter`.

    Attributes:
        model: whose configuration the engine's weights have.
        url: of the server, for example "http://localhost:8000".
        folder: where weights are written, seen by the server under the same path; each update has a folder of its own
            in it, and the one before is removed once the server has the new one.
        name: what the server calls the model.
        reload: path that reloads weights; "/update_weights_from_disk" is SGLang's. It gets `{"model_path": folder}`.
        timeout: seconds that one request may take.
        pad: token id written after a text's end.
        updates: how many updates there were.
    """

    model: Decoder
    url: str
    folder: str
    name: str = "policy"
    reload: str = "/update_weights_from_disk"
    timeout: float = 600.0
    pad: int = 0
    updates: int = 0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise InvalidOption(f"url is {self.url!r}; expected http:// or https://")
        require_range("timeout", self.timeout, 0.0, open_low=True)

    def update(self, model: Decoder) -> "Engine":
        """Write the policy's weights, adapters added to them, and have the server load them.

        Raises:
            EngineError: the server cannot be reached, or does not answer with success.
        """
        mine: Any = self
        whole = merge(model) if model.adapters is not None else model
        fresh = mine.replace(model=whole, updates=self.updates + 1)
        target = Path(fresh.folder) / f"update-{fresh.updates}"
        # What an interrupted run left behind would be refused by the export.
        shutil.rmtree(target, ignore_errors=True)
        export(fresh.model, target)
        answer = self._post(self.reload, {"model_path": str(target)})
        if answer.get("success", True) is not True:
            raise EngineError(f"{self.url}{self.reload} did not load {target}: {answer.get('message', answer)}")
        shutil.rmtree(Path(self.folder) / f"update-{self.updates}", ignore_errors=True)
        return fresh

    def generate(self, prompts: Prompts, key: Any, sampling: Sampling) -> Rollout:
        """Texts of the prompts. `log_probs` is None: recompute them; the engine's own are in `sampler_log_probs`.

        One request carries all prompts and a seed made from the key; whether a seed gives the same texts again is up
        to the engine.

        Raises:
            InvalidOption: stop sequences of several tokens, which the protocol cannot carry (`stops.cut` can).
            EngineError: the server cannot be reached, is too slow, or its answer lacks something.
        """
        if any(len(sequence) > 1 for sequence in sampling.stop):
            raise InvalidOption("stop has a sequence of several tokens; an engine takes single ones")
        limit, group = sampling.max_new, group_of(prompts)
        asked = [np.asarray(row)[np.asarray(keep)].tolist() for row, keep in zip(prompts.tokens, prompts.valid)]
        asked = [tokens for tokens in asked for _ in range(group)]
        answer = self._post("/v1/completions", self._request(asked, key, sampling))
        choices = answer.get("choices")
        if not isinstance(choices, list) or len(choices) != len(asked):
            seen = len(choices) if isinstance(choices, list) else choices
            raise EngineError(f"{self.url} answered with {seen} choices; expected {len(asked)}, one a prompt")
        tokens = np.full((len(asked), limit), self.pad, np.int32)
        theirs, mask = np.zeros(tokens.shape, np.float32), np.zeros(tokens.shape, bool)
        finished = np.zeros(len(asked), bool)
        for choice in choices:
            row, ids, logs, finished_here = self._choice(choice, len(asked), limit)
            if mask[row].any():
                raise EngineError(f"{self.url} answered text {row} twice")
            tokens[row, : len(ids)], theirs[row, : len(ids)], mask[row, : len(ids)] = ids, logs, True
            finished[row] = finished_here
        return Rollout(
            jnp.asarray(tokens), None, jnp.asarray(theirs), jnp.asarray(mask), jnp.asarray(finished),
            jnp.int32(mask.sum(axis=1).max()),
        )  # fmt: skip

    def _request(self, asked: list[list[int]], key: Any, sampling: Sampling) -> dict[str, Any]:
        stops = [*sampling.eos, *(sequence[0] for sequence in sampling.stop)]
        return {
            "model": self.name, "prompt": asked, "max_tokens": sampling.max_new, "n": 1, "logprobs": 0,
            "temperature": float(sampling.temperature), "top_p": sampling.top_p, "min_p": sampling.min_p,
            "top_k": sampling.top_k or -1, "stop_token_ids": stops, "ignore_eos": not sampling.eos,
            "seed": int(jax.random.bits(key, dtype=jnp.uint32) >> 1), "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }  # fmt: skip

    def _choice(self, choice: Any, count: int, limit: int) -> tuple[int, list[int], list[float], bool]:
        """Row, token ids, log-probabilities and whether it ended by itself, of one answer."""
        row = choice.get("index") if isinstance(choice, dict) else None
        if not isinstance(row, int) or not 0 <= row < count:
            raise EngineError(f"{self.url} answered a choice with index {row!r}; expected 0 to {count - 1}")
        logprobs = choice.get("logprobs") or {}
        ids, logs = choice.get("token_ids"), logprobs.get("token_logprobs")
        if ids is None:
            # Servers that name tokens "token_id:17" in place of their text.
            named = [str(token).partition("token_id:")[2] for token in logprobs.get("tokens") or ["?"]]
            ids = [int(token) for token in named] if all(token.isdigit() for token in named) else None
        if ids is None:
            raise EngineError(f"{self.url} answered text {row} without token ids; it needs return_token_ids")
        if logs is None or any(value is None for value in logs):
            raise EngineError(f"{self.url} answered text {row} without log-probabilities; it needs logprobs")
        if len(logs) != len(ids) or not 0 < len(ids) <= limit:
            raise EngineError(
                f"{self.url} answered text {row} with {len(ids)} tokens and {len(logs)} log-probabilities; expected "
                f"as many of both, 1 to {limit}"
            )
        return row, ids, logs, choice.get("finish_reason") == "stop"

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON object that the server answers."""
        address = self.url.rstrip("/") + path
        request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            said = error.read(500).decode(errors="replace")
            raise EngineError(f"{address} answered {error.code}: {said}") from error
        except TimeoutError as error:
            raise EngineError(f"{address} did not answer within {self.timeout:g} s") from error
        except (urllib.error.URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise EngineError(f"{address} did not answer within {self.timeout:g} s") from error
            raise EngineError(f"{address} cannot be reached: {reason}") from error
        if not content:
            return {}
        try:
            answer = json.loads(content)
        except ValueError as error:
            raise EngineError(f"{address} answered no JSON: {content[:200]!r}") from error
        if not isinstance(answer, dict):
            raise EngineError(f"{address} answered a {type(answer).__name__}; expected an object")
        return answer
