"""Prompts from the command line: texts, files of texts or messages, standard input."""

import json
import sys
from pathlib import Path
from typing import Any

from pdopt.errors import InvalidFile, InvalidOption


def read_prompts(texts: list[str], file: str | None) -> list[Any]:
    """Every prompt, in the order of the command line: `--prompt` first, then those of `--prompts`.

    Args:
        texts: of `--prompt`; "-" stands for all of standard input.
        file: of `--prompts`: `.jsonl` has an object with `prompt` or `messages` to a line, anything else a text to a
            line; "-" reads lines from standard input.

    Raises:
        InvalidOption: no prompt. InvalidFile: no such file, or a line that is none of these.
    """
    prompts: list[Any] = [sys.stdin.read() if text == "-" else text for text in texts]
    if file is not None:
        prompts += _lines(Path(file), sys.stdin.read() if file == "-" else None)
    if not prompts:
        raise InvalidOption("no prompt; expected --prompt TEXT (- for standard input), or --prompts FILE")
    return prompts


def _lines(path: Path, text: str | None) -> list[Any]:
    if text is None:
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidFile(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    whole = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    return [_entry(path, number, line) for number, line in whole] if path.suffix == ".jsonl" else [l for _, l in whole]


def _entry(path: Path, number: int, line: str) -> Any:
    """The text or the messages of one line of JSON."""
    try:
        found = json.loads(line)
    except ValueError as error:
        raise InvalidFile(path, f"not JSON: {error}", number) from error
    entry = found if isinstance(found, str) else isinstance(found, dict) and found.get("messages", found.get("prompt"))
    if isinstance(entry, str):
        return entry
    keys = ("role", "content")
    if isinstance(entry, list) and entry and all(isinstance(m, dict) and all(k in m for k in keys) for m in entry):
        return entry
    raise InvalidFile(path, 'expected {"prompt": TEXT} or {"messages": [{"role": ..., "content": ...}]}', number)
