"""From a prompt in the data to the tokens that a policy continues, and from its tokens back to what scores read.

A prompt is a text or a list of messages `[{"role": "user", "content": ...}, ...]`. Messages go through the tokenizer's
chat template with the start of the assistant's turn; a text is tokenised as it is (base models), or is made the user's
message first. Nothing is ever cut: how long a prompt may be is the data stream's affair.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pdopt.errors import InvalidOption, InvalidProblem

Message = Mapping[str, Any]


def encode_prompt(
    tokenizer: Any,
    prompt: str | Sequence[Message],
    *,
    as_message: bool = False,
    system: str | None = None,
    examples: Sequence[tuple[str, str]] = (),
    template_settings: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a prompt.

    Args:
        tokenizer: of `transformers`.
        prompt: a text, or messages.
        as_message: a text becomes the user's message.
        system: a system message put before messages that have none.
        examples: turns shown before the prompt: what a user asks and what the assistant answers.
        template_settings: further arguments of the chat template (`enable_thinking=False` for Qwen3).

    Raises:
        InvalidProblem: a prompt that is neither, or an empty one (a plain text may be, if the tokenizer has a token
            that begins texts).
        InvalidOption: there is no chat template, or it refuses these messages (the roles and the tokenizer are named);
            a system message or examples for a plain text.

    Example:
        >>> from pdopt.training.tokenizers import byte_tokenizer
        >>> tokenizer = byte_tokenizer(["1+2=3"], vocabulary=20, alphabet="seen")
        >>> tokenizer.decode(encode_prompt(tokenizer, "1+2="))
        '1+2='
        >>> tokenizer.decode(encode_prompt(tokenizer, "1+2=", as_message=True))
        '<|user|>1+2=<|end|><|assistant|>'
    """
    if isinstance(prompt, str) and not as_message:
        if system is not None or examples:
            what = "a system message needs" if system is not None else "examples need"
            raise InvalidOption(f"{what} messages; the prompt is a plain text (set as_message)")
        ids = _plain(tokenizer, prompt)
    else:
        ids = _templated(tokenizer, messages_of(prompt, system, examples), dict(template_settings or {}))
    if not ids:
        raise InvalidProblem(f"the prompt {prompt!r} has no tokens")
    return ids


def messages_of(
    prompt: str | Sequence[Message], system: str | None = None, examples: Sequence[tuple[str, str]] = ()
) -> list[dict[str, Any]]:
    """The messages of a prompt, a text as the user's: system message, turns of examples, then its own.

    The system message is the prompt's own where it has one.

    Raises:
        InvalidProblem: a message without role or content, or no message at all.

    Example:
        >>> messages_of("2+2", system="Be brief.")
        [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': '2+2'}]
        >>> [message["content"] for message in messages_of("2+2", examples=[("1+1", "2")])]
        ['1+1', '2', '2+2']
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(messages, Sequence) or not messages:
        raise InvalidProblem(f"a prompt is {prompt!r}; expected a text or a list of messages")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
            raise InvalidProblem(f"a message is {message!r}; expected a mapping with role and content")
    made = [dict(message) for message in messages]
    if system is not None and made[0]["role"] != "system":
        made.insert(0, {"role": "system", "content": system})
    shown = [{"role": role, "content": text} for turn in examples for role, text in zip(("user", "assistant"), turn)]
    first = 1 if made[0]["role"] == "system" else 0
    return [*made[:first], *shown, *made[first:]]


def decode_completions(tokenizer: Any, ids: Sequence[Sequence[int]]) -> list[str]:
    """The texts of sampled tokens, special tokens left out.

    Example:
        >>> from pdopt.training.tokenizers import byte_tokenizer
        >>> tokenizer = byte_tokenizer(["1+2=3"], vocabulary=20, alphabet="seen")
        >>> decode_completions(tokenizer, [[*tokenizer("3")["input_ids"], tokenizer.eos_token_id]])
        ['3']
    """
    lists = [[int(token) for token in row] for row in ids]
    # Clean-up of spaces would change what the policy wrote, and scores are of what it wrote.
    return [tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False) for row in lists]


def completion_for(prompt: str | Sequence[Message], text: str) -> str | list[dict[str, str]]:
    """A completion as score functions expect it: a text for a text, the assistant's message for messages.

    Example:
        >>> completion_for("2+2", "4"), completion_for([{"role": "user", "content": "2+2"}], "4")
        ('4', [{'role': 'assistant', 'content': '4'}])
    """
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _plain(tokenizer: Any, text: str) -> list[int]:
    ids = [int(token) for token in tokenizer(text, add_special_tokens=True)["input_ids"]]
    if not ids and tokenizer.bos_token_id is not None:
        ids = [int(tokenizer.bos_token_id)]
    # Some tokenizers close every text; a policy must go on from the prompt, not from its end.
    closed = ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token or "\0")
    return ids[:-1] if closed else ids


def _templated(tokenizer: Any, messages: list[dict[str, Any]], settings: dict[str, Any]) -> list[int]:
    roles = ", ".join(message["role"] for message in messages)
    where = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    if not getattr(tokenizer, "chat_template", None):
        raise InvalidOption(f"the tokenizer {where} has no chat template for the messages ({roles})")
    settings = {"add_generation_prompt": True, **settings, "tokenize": True, "return_dict": False}
    try:
        ids = tokenizer.apply_chat_template(messages, **settings)
    except Exception as error:  # a template is a program of its own and raises what it likes
        raise InvalidOption(f"the chat template of {where} refuses the messages ({roles}): {error}") from error
    return [int(token) for token in ids]
