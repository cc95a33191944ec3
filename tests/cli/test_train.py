"""The commands train, evaluate and export: refusals at once, and a Hugging Face folder there and back."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from pdopt.cli.app import execute
from pdopt.training.tokenizers import byte_tokenizer


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], "expected RECIPE or --resume RUN"),
        (["train", "arithmetics"], "did you mean 'arithmetic'"),
        (["train", "arithmetic", "--set", "training.stepz=1"], "did you mean 'training.steps'"),
        (["train", "arithmetic", "--set", "training.steps"], "expected section.key=value"),
        (["train", "--resume", "nowhere"], "no run: there is no recipe.toml in it"),
        (["evaluate", "nowhere"], "no run: there is no recipe.toml in it"),
        (["export", "nowhere", "out"], "no run: there is no recipe.toml in it"),
        (["export", "nowhere", "out", "--dtype", "int8"], "unknown --dtype 'int8'"),
    ],
)
def test_what_cannot_be_is_refused_at_once(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert execute([*arguments, "--json"], startup=lambda: pytest.fail("JAX was started")) == 2
    out, err = capsys.readouterr()
    assert words in err
    assert json.loads(out)["exit_code"] == 2
    assert list(tmp_path.iterdir()) == []


def hugging_face_folder(folder):
    """A random Qwen2 with a tokenizer of its own, as transformers writes them."""
    tokenizer = byte_tokenizer([f"{i}+{j}=" for i in range(10) for j in range(10)], vocabulary=18, alphabet="seen")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        Qwen2Config(
            vocab_size=24, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            intermediate_size=32, max_position_embeddings=64, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=True,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def command(capsys, *arguments):
    """The JSON object of a command that must succeed."""
    code = execute([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def logits_of(folder):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model(**tokenizer("3+4=", return_tensors="pt")).logits.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [False, True])
def test_a_hugging_face_model_there_and_back(tmp_path, capsys, adapters):
    """Load, three constrained steps, evaluate, export, load in transformers: the weights moved, and are ours."""
    hugging_face_folder(tmp_path / "model")
    changes = [
        f"model.path={tmp_path / 'model'}", "model.tokenizer=''", "model.layers=scan", "sampling.max_new=4",
        "data.held_out=4", "training.supervised_steps=0", "training.steps=3", "training.prompts=4",
        "training.group=4", f"training.folder={tmp_path / 'run'}", "evaluation.samples=4", "evaluation.k=[1, 4]",
        "mesh.fsdp=1", "optimiser.learning_rate=1e-2", *(["lora.rank=2", "lora.alpha=2.0"] if adapters else []),
    ]  # fmt: skip
    options = [text for change in changes for text in ("--set", change)]
    planned = command(capsys, "train", "arithmetic", *options, "--dry-run")
    assert planned["plan"]["trainable"] < planned["plan"]["parameters"] if adapters else True
    assert planned["plan"]["kept_bytes"] > 0
    trained = command(capsys, "train", "arithmetic", *options)
    assert (trained["status"], trained["steps"]) == ("finished", 3)
    assert trained["metrics"]["constraint/length/limit"] == 3
    assert (tmp_path / "run" / "plot.png").stat().st_size > 10_000
    found = command(capsys, "evaluate", tmp_path / "run", "--k", 4, "--prompts", 4)
    assert 0 <= found["evaluation"]["evaluation/pass@4"] <= 1
    written = command(capsys, "export", tmp_path / "run", tmp_path / "out")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(written["files"])
    before, after = logits_of(tmp_path / "model"), logits_of(tmp_path / "out")
    assert np.abs(after - before).max() > 1e-3

    from pdopt.training.runs import open_run

    opened = open_run(tmp_path / "run")
    ids = np.array([opened.prepared.policy.tokenizer("3+4=")["input_ids"]])
    np.testing.assert_allclose(opened.model(ids), after, atol=1e-5)
    assert execute(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 2, "the folder is not empty"
    if adapters:
        files = command(capsys, "export", tmp_path / "run", tmp_path / "peft", "--adapters")["files"]
        assert "adapter_model.safetensors" in files
