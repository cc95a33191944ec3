"""Prompts as tokens through a chat template, the made tokenizer, and what training refuses of a tokenizer."""

import pytest
from transformers import PreTrainedTokenizerFast

from pdopt.errors import InvalidFile, InvalidOption, InvalidProblem
from pdopt.training.chat import completion_for, decode_completions, encode_prompt
from pdopt.training.tasks import TASKS, task
from pdopt.training.tokenizers import (
    byte_tokenizer,
    load_tokenizer,
    special_ids,
    tokenizer_fingerprint,
)

TEXTS = [task(name)[i][key] for name in sorted(TASKS) for i in range(30) for key in ("prompt", "answer")]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer(TEXTS, vocabulary=400)


def test_any_text_comes_back(tokenizer):
    for text in [*TEXTS, "\u00e9\u4e2d\U0001f600\n\t  x", "", " lead", "12345 + 6"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text
    assert tokenizer.tokenize("123") == ["1", "2", "3"]
    assert len(tokenizer) <= 400
    # Merges were learnt: words of the tasks are shorter than their letters.
    assert len(tokenizer("parity of ")["input_ids"]) < 6


def test_the_same_texts_give_the_same_tokenizer_and_others_another():
    again = byte_tokenizer(TEXTS, vocabulary=400)
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(byte_tokenizer(iter(TEXTS), vocabulary=400))
    assert tokenizer_fingerprint(again) != tokenizer_fingerprint(byte_tokenizer(TEXTS, vocabulary=300))
    before = tokenizer_fingerprint(again)
    again(["a", "bcd"], padding=True, truncation=True, max_length=2)  # settings of a call are no change
    assert tokenizer_fingerprint(again) == before
    again.chat_template += " "
    assert tokenizer_fingerprint(again) != before


def test_a_small_alphabet_marks_what_it_has_never_seen():
    small = byte_tokenizer(["12+34=46", "07+89=5"], vocabulary=24, alphabet="seen")
    assert len(small) <= 24
    assert small.decode(small("1+2=3")["input_ids"]) == "1+2=3"
    assert small.unk_token_id in small("1+x")["input_ids"]
    with pytest.raises(
        InvalidOption, match="vocabulary is 10; the 6 special tokens and the alphabet of 12 bytes need 18"
    ):
        byte_tokenizer(["12+34=46", "07+89=5"], vocabulary=10, alphabet="seen")
    with pytest.raises(InvalidOption, match="alphabet is 'some'"):
        byte_tokenizer(["a"], alphabet="some")


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tokenizer)
    assert special_ids(loaded) == special_ids(tokenizer) == (0, 1)
    chat = [{"role": "user", "content": "1+1="}]
    assert encode_prompt(loaded, chat) == encode_prompt(tokenizer, chat)


def test_messages_go_through_the_template(tokenizer):
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}, {"role": "user", "content": "?"}]
    text = tokenizer.decode(encode_prompt(tokenizer, chat, system="Be brief."))
    assert text == "<|system|>Be brief.<|end|><|user|>hi<|end|><|assistant|>ho<|end|><|user|>?<|end|><|assistant|>"
    own = [{"role": "system", "content": "Mine."}, *chat]
    assert tokenizer.decode(encode_prompt(tokenizer, own, system="Be brief.")).startswith("<|system|>Mine.<|end|>")
    assert encode_prompt(tokenizer, "hi", as_message=True) == encode_prompt(tokenizer, chat[:1])
    assert encode_prompt(tokenizer, "hi") == tokenizer("hi")["input_ids"]


def test_examples_stand_between_the_system_message_and_the_prompt(tokenizer):
    read = lambda prompt, **given: tokenizer.decode(encode_prompt(tokenizer, prompt, examples=[("1", "2")], **given))
    shown = "<|user|>1<|end|><|assistant|>2<|end|>"
    assert read("hi", as_message=True) == f"{shown}<|user|>hi<|end|><|assistant|>"
    own = [{"role": "system", "content": "Mine."}, {"role": "user", "content": "hi"}]
    assert read(own) == f"<|system|>Mine.<|end|>{shown}<|user|>hi<|end|><|assistant|>"
    assert read(own[1:], system="Be.") == f"<|system|>Be.<|end|>{shown}<|user|>hi<|end|><|assistant|>"
    with pytest.raises(InvalidOption, match="examples need messages; the prompt is a plain text"):
        read("hi")


def test_extra_arguments_reach_the_template(tokenizer):
    other = byte_tokenizer(TEXTS, vocabulary=400)
    other.chat_template = "{{ messages[0]['content'] }}{% if not enable_thinking %} now{% endif %}"
    thinking = [
        other.decode(encode_prompt(other, "hi", as_message=True, template_settings={"enable_thinking": flag}))
        for flag in (True, False)
    ]
    assert thinking == ["hi", "hi now"]


def test_prompts_that_cannot_be_encoded_are_refused(tokenizer):
    bare = byte_tokenizer(TEXTS, vocabulary=400)
    bare.chat_template = None
    chat = [{"role": "user", "content": "hi"}, {"role": "tool", "content": "x"}]
    with pytest.raises(InvalidOption, match=r"has no chat template for the messages \(user, tool\)"):
        encode_prompt(bare, chat)
    bare.chat_template = "{{ raise_exception('no tools here') }}"
    with pytest.raises(InvalidOption, match=r"refuses the messages \(user, tool\): no tools here"):
        encode_prompt(bare, chat)
    with pytest.raises(InvalidOption, match="a system message needs messages"):
        encode_prompt(tokenizer, "hi", system="x")
    for prompt, message in [
        ("", "has no tokens"),
        ([], "expected a text or a list"),
        ([{"role": "user"}], "a message is"),
    ]:
        with pytest.raises(InvalidProblem, match=message):
            encode_prompt(tokenizer, prompt)


def test_a_prompt_is_left_open_where_the_tokenizer_closes_texts(tokenizer):
    from tokenizers.processors import TemplateProcessing

    closing = byte_tokenizer(TEXTS, vocabulary=400)
    closing.backend_tokenizer.post_processor = TemplateProcessing(single="$A <|end|>", special_tokens=[("<|end|>", 1)])
    assert closing("1+1")["input_ids"][-1] == 1
    assert encode_prompt(closing, "1+1") == tokenizer("1+1")["input_ids"]


def test_completions_are_decoded_as_written(tokenizer):
    ids = [[*tokenizer(text)["input_ids"], 1, 0, 0] for text in ("4 .", "  a , b", "")]
    assert decode_completions(tokenizer, ids) == ["4 .", "  a , b", ""]
    assert completion_for([{"role": "user", "content": "?"}], "4") == [{"role": "assistant", "content": "4"}]


def test_special_ids_are_checked(tokenizer):
    def made(**tokens):
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **tokens)

    with pytest.warns(UserWarning, match="no pad token; its eos token pads"):
        assert special_ids(made(eos_token="<|end|>")) == (1, 1)
    with pytest.raises(InvalidOption, match="no eos token"):
        special_ids(made(pad_token="<|pad|>"))
    with pytest.raises(InvalidOption, match=rf"has {len(tokenizer)} tokens; the model's embedding has 64 rows"):
        special_ids(tokenizer, vocabulary=64)
    assert special_ids(tokenizer, vocabulary=len(tokenizer)).eos == 1


def test_where_no_tokenizer_is_the_error_names_the_place(tmp_path, monkeypatch):
    import transformers

    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(InvalidFile, match=f"{tmp_path}: no tokenizer that transformers reads"):
        load_tokenizer(tmp_path)

    class Offline:
        @staticmethod
        def from_pretrained(*arguments, **settings):
            assert settings["trust_remote_code"] is False
            raise OSError("cannot connect")

    # Set without a look at the real one, whose import takes seconds.
    monkeypatch.setitem(vars(transformers), "AutoTokenizer", Offline)
    with pytest.raises(InvalidFile, match="some/model: no such folder or file, and the hub gave no tokenizer: cannot"):
        load_tokenizer("some/model")
