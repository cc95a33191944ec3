"""Tokenizers of model folders and of GGUF files, as transformers objects; PyTorch is not needed for either.

A GGUF file with a byte-level vocabulary (model "gpt2": SmolLM, Qwen, Llama 3) holds tokens and merges; how a text is
cut before merging is only named (`tokenizer.ggml.pre`), so the names are a table here. An unknown name is refused: the
wrong cut gives other tokens than the model was trained on, and nothing would say so.
"""

import json
from pathlib import Path
from typing import Any

from pdopt.errors import InvalidFile, InvalidOption
from pdopt.models.gguf_file import GGUFFile, read_gguf

# How a text is cut before merging, from the tokenizer.json of the models (Qwen 2 and Llama 3 differ in the digits).
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CUTS = {
    "default": None, "gpt-2": None, "smollm": "digits", "starcoder": "digits",
    "qwen2": _WORDS % r"\p{N}", "deepseek-r1-qwen": _WORDS % r"\p{N}", "llama-bpe": _WORDS % r"\p{N}{1,3}",
}  # fmt: skip
_CONTROL, _USER = 3, 4
# Names that tokenizer_config.json gives to a tokenizer which is exactly its tokenizer.json.
_PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer, chat template included, that a GGUF file or a model folder carries (a transformers tokenizer).

    Raises:
        InvalidFile: the folder has no tokenizer, or the file lacks its keys.
        InvalidOption: a GGUF vocabulary of a kind that is not implemented.
    """
    path = Path(path)
    return _from_folder(path) if path.is_dir() else from_gguf(read_gguf(path))


def from_gguf(file: GGUFFile) -> Any:
    """The tokenizer of an opened GGUF file."""
    kind = file.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise InvalidOption(
            f"tokenizer.ggml.model of {file.path.name} is {kind!r}; implemented is gpt2 (byte-level merges): "
            "use the model's folder with its tokenizer.json"
        )
    pre = file.get("tokenizer.ggml.pre", "default")
    if pre not in _CUTS:
        raise InvalidOption(f"tokenizer.ggml.pre of {file.path.name} is {pre!r}; implemented are {', '.join(_CUTS)}")
    from transformers import PreTrainedTokenizerFast

    tokens = file.get("tokenizer.ggml.tokens")
    name = lambda key: tokens[file.keys[key]] if key in file.keys else None
    eos = name("tokenizer.ggml.eos_token_id")
    bos = name("tokenizer.ggml.bos_token_id")
    return PreTrainedTokenizerFast(
        tokenizer_object=_merging(file, tokens, pre, bos if file.get("tokenizer.ggml.add_bos_token", False) else None),
        bos_token=bos, eos_token=eos, unk_token=name("tokenizer.ggml.unknown_token_id"),
        pad_token=name("tokenizer.ggml.padding_token_id") or eos, padding_side="left",
        chat_template=file.keys.get("tokenizer.chat_template"), clean_up_tokenization_spaces=False,
        model_max_length=int(file.get(f"{file.get('general.architecture')}.context_length", 32_768)),
    )  # fmt: skip


def _merging(file: GGUFFile, tokens: list[str], pre: str, first: str | None) -> Any:
    """Byte-level pair merging over pieces cut as `pre` says; `first` is put before every text."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    merges = [tuple(merge.split(" ", 1)) for merge in file.get("tokenizer.ggml.merges")]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
    cut = _CUTS[pre]
    if cut is None:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif cut == "digits":
        digits = pre_tokenizers.Digits(individual_digits=True)
        made.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    else:
        words = pre_tokenizers.Split(Regex(cut), "isolated")
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_])
    if "qwen" in pre:
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    if first is not None:
        pair = [(first, vocabulary[first])]
        made.post_processor = processors.TemplateProcessing(f"{first} $A", f"{first} $A {first} $B", pair)
    for number, kind in enumerate(file.get("tokenizer.ggml.token_type", [])):
        if kind in (_CONTROL, _USER):
            special = kind == _CONTROL
            made.add_special_tokens([AddedToken(tokens[number], special=special, normalized=False)])
    return made


def _from_folder(folder: Path) -> Any:
    """By tokenizer.json alone where the folder says that this is all, which spares importing PyTorch; else by class."""
    settings, whole = folder / "tokenizer_config.json", folder / "tokenizer.json"
    try:
        kind = json.loads(settings.read_text()).get("tokenizer_class") if settings.is_file() else None
        if kind in _PLAIN and whole.is_file():
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast.from_pretrained(folder, padding_side="left")
        from transformers import AutoTokenizer

        found = AutoTokenizer.from_pretrained(folder, padding_side="left")
        if whole.is_file() and not _reads(found, whole):
            # The class that a model's family names may rebuild its own kind of vocabulary over a file of another kind.
            from transformers import PreTrainedTokenizerFast

            found = PreTrainedTokenizerFast.from_pretrained(folder, padding_side="left")
        return found
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InvalidFile(folder, f"no tokenizer that transformers reads; expected tokenizer.json: {reason}") from error


def _reads(tokenizer: Any, file: Path) -> bool:
    """Whether a tokenizer has the kind and the words of a tokenizer.json."""
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return True
    said = Tokenizer.from_file(str(file))
    return type(said.model) is type(backend.model) and said.get_vocab().items() <= backend.get_vocab().items()
