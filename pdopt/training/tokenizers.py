"""Tokenizers: one made from texts without a download, and what training needs to know of any.

The made one is a byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2) whose digits stay single tokens, so that a
small model can learn to add, with special tokens for padding, the end of a turn and the roles, and a chat template.
"""

import hashlib
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pdopt.errors import InvalidFile, InvalidOption

PAD, END, UNKNOWN = "<|pad|>", "<|end|>", "<|unknown|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = """\
{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}
{%- endif %}"""


class SpecialIds(NamedTuple):
    """Token ids that training needs: what fills up rows, and what ends a text."""

    pad: int
    eos: int


def byte_tokenizer(texts: Iterable[str], *, vocabulary: int = 512, alphabet: Literal["all", "seen"] = "all") -> Any:
    """A byte-level BPE tokenizer trained on texts, as a `transformers.PreTrainedTokenizerFast`.

    The same texts give the same tokenizer.

    Args:
        texts: what to learn merges from.
        vocabulary: most tokens, special ones included; fewer if the texts give no more merges.
        alphabet: "all" has all 256 bytes, so that any text can be written; "seen" only those of the texts, for tiny
            vocabularies: any other byte becomes `<|unknown|>`.

    Raises:
        InvalidOption: a vocabulary too small for the special tokens and the alphabet.

    Example:
        >>> tokenizer = byte_tokenizer(["12+34=46", "5+5=10"], vocabulary=32, alphabet="seen")
        >>> tokenizer.tokenize("46=12"), tokenizer.decode(tokenizer("5+5=10")["input_ids"])
        (['4', '6', '=', '1', '2'], '5+5=10')
    """
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    texts = list(texts)
    if alphabet not in ("all", "seen"):
        raise InvalidOption(f'alphabet is {alphabet!r}; expected "all" or "seen"')
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if alphabet == "all":
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    else:
        letters = sorted({letter for text in texts for word, _ in byte_level.pre_tokenize_str(text) for letter in word})
    special = [PAD, END, *ROLES, *([UNKNOWN] if alphabet == "seen" else [])]
    if vocabulary < len(special) + len(letters):
        raise InvalidOption(
            f"vocabulary is {vocabulary}; the {len(special)} special tokens and the alphabet of {len(letters)} bytes "
            f"need {len(special) + len(letters)}"
        )
    made = Tokenizer(BPE(unk_token=UNKNOWN if alphabet == "seen" else None))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])  # pyright: ignore[reportAttributeAccessIssue]
    made.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=letters, show_progress=False, min_frequency=2
    )  # pyright: ignore[reportCallIssue]
    made.train_from_iterator(texts, trainer)
    unknown = {"unk_token": UNKNOWN} if alphabet == "seen" else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=PAD, eos_token=END, additional_special_tokens=list(ROLES), **unknown
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.padding_side = "left"
    return tokenizer


def load_tokenizer(source: str | Path) -> Any:
    """The tokenizer of a model folder or hub id; code that comes with one is never run.

    `tokenizer.save_pretrained(folder)` is its counterpart.

    Raises:
        InvalidFile: none there, or the hub cannot be reached.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = byte_tokenizer(["a b"], vocabulary=300).save_pretrained(folder)
        ...     load_tokenizer(folder).eos_token
        '<|end|>'
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise InvalidFile(
            source, f"no tokenizer could be read (a folder with tokenizer.json is one): {error}"
        ) from error


def special_ids(tokenizer: Any, vocabulary: int | None = None) -> SpecialIds:
    """Ids for padding and for the end of a text, checked against the model.

    Without a pad token the end token pads; masks tell the two apart. A warning says so.

    Args:
        tokenizer: of `transformers`.
        vocabulary: rows of the model's embedding, if known.

    Raises:
        InvalidOption: no end token, or more tokens than the embedding has rows (an index beyond it would silently read
            the last row).

    Example:
        >>> special_ids(byte_tokenizer(["a"], vocabulary=300), vocabulary=512)
        SpecialIds(pad=0, eos=1)
    """
    if tokenizer.eos_token_id is None:
        raise InvalidOption("the tokenizer has no eos token; texts could not end (set tokenizer.eos_token)")
    if vocabulary is not None and (count := len(tokenizer)) > vocabulary:
        raise InvalidOption(f"the tokenizer has {count} tokens; the model's embedding has {vocabulary} rows")
    pad = tokenizer.pad_token_id
    if pad is None:
        warnings.warn("the tokenizer has no pad token; its eos token pads (masks are respected)", stacklevel=2)
        pad = tokenizer.eos_token_id
    return SpecialIds(int(pad), int(tokenizer.eos_token_id))


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """sha256 of everything by which a fast tokenizer turns text or messages into ids.

    Raises:
        InvalidOption: a tokenizer that is not a fast one.

    Example:
        >>> one, two = (byte_tokenizer([text], vocabulary=300) for text in ("aa bb aa", "cc dd cc"))
        >>> tokenizer_fingerprint(one) == tokenizer_fingerprint(one) != tokenizer_fingerprint(two)
        True
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InvalidOption(f"{type(tokenizer).__name__} is not a fast tokenizer; its content cannot be compared")
    # Padding and truncation are settings of the last call, not of the tokenizer.
    from tokenizers import Tokenizer

    clean = Tokenizer.from_str(backend.to_str())
    clean.no_padding()
    clean.no_truncation()
    template = repr(getattr(tokenizer, "chat_template", None))
    return hashlib.sha256(f"{clean.to_str()}\n{template}".encode()).hexdigest()
