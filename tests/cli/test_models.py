"""`pdopt models inspect`: what a header alone tells, of a folder, a file, and of 70 B parameters that are nowhere."""

import importlib.util
import json
from pathlib import Path

import pytest

from pdopt.cli.app import execute

pytest.importorskip("gguf", reason="the extra gguf is not installed")
_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parents[1] / "models" / "tiny.py")
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)

LARGE = {
    "model_type": "llama", "vocab_size": 128_256, "hidden_size": 8192, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 28_672, "tie_word_embeddings": False,
    "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    base = tmp_path_factory.mktemp("inspect")
    path = tiny.write_gguf(base / "tiny.gguf")
    (base / "large.json").write_text(json.dumps(LARGE))
    return path, tiny.write_folder(base / "folder", path), base / "large.json"


def inspect(capsys, *arguments):
    code = execute(["models", "inspect", *map(str, arguments), "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert record["exit_code"] == code
    return record


def test_a_folder_and_a_file_are_told_alike(places, capsys):
    path, folder, _ = places
    a, b = inspect(capsys, path), inspect(capsys, folder)
    for name in ("family", "sizes", "parameters", "parts", "bytes", "stored", "cache_bytes_per_token"):
        assert a[name] == b[name]
    config = tiny.CONFIG
    assert sum(a["parts"].values()) == a["parameters"] == config.parameters
    assert a["bytes"] == {"float32": 4 * config.parameters, "bfloat16": 2 * config.parameters}
    assert a["stored"] == {"F32": 4 * config.parameters}
    assert a["cache_bytes_per_token"]["float32"] == config.cache_bytes_per_token
    assert a["device"] is None


def test_seventy_billion_parameters_without_one_of_them(places, capsys):
    record = inspect(capsys, "--config", places[2], "--mesh", "1,8,4", "--train", "--batch", 32, "--length", 4096,
                     "--dtype", "bfloat16")  # fmt: skip
    assert record["parameters"] == 70_553_706_496
    assert record["stored"] is None
    device = record["device"]
    assert (device["mesh"], device["purpose"]) == ({"data": 1, "fsdp": 8, "tensor": 4}, "training")
    held = {part["part"]: part["bytes"] for part in device["parts"]}
    # All but the norms are split over all 32 devices.
    assert held["parameters"] == pytest.approx(2 * record["parameters"] / 32, rel=1e-2)
    assert device["bytes"] == sum(held.values())
    small = inspect(capsys, "--config", places[2], "--mesh", "1,8,4", "--batch", 32, "--length", 4096)["device"]
    assert (small["purpose"], small["dtype"]) == ("sampling", "float32")


def test_of_a_mixture_a_token_uses_few_parameters(places, capsys, tmp_path):
    """Mixtral's shape: 46.7 B parameters, 12.9 B of them active, as its authors say."""
    sizes = {"model_type": "mixtral", "vocab_size": 32_000, "hidden_size": 4096, "num_hidden_layers": 32,
             "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14_336, "num_local_experts": 8,
             "num_experts_per_tok": 2, "rope_theta": 1e6, "tie_word_embeddings": False}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    record = inspect(capsys, "--config", tmp_path / "config.json")
    assert round(record["parameters"] / 1e9, 1) == 46.7
    assert round(record["active"] / 1e9, 1) == 12.9
    assert record["sizes"]["experts"] == 8


def test_what_a_person_reads(places, capsys):
    assert execute(["models", "inspect", str(places[0]), "--mesh", "1,1,1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{places[0]}: llama, vocabulary {tiny.CONFIG.vocabulary}, width 16, depth 1")
    table = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert int(table["all"][0]) == tiny.CONFIG.parameters
    assert table["head"][0] == "0"
    assert any(line.startswith("One device of the mesh data 1, fsdp 1, tensor 1: sampling, 8 rows") for line in lines)
    assert float(table["total"][0]) >= float(table["parameters"][0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "expected MODEL or --config FILE"),
        (["a", "--config", "b"], "expected MODEL or --config FILE"),
        (["a", "--mesh", "1,2"], "--mesh is '1,2'; expected DATA,FSDP,TENSOR"),
        (["a", "--mesh", "1,0,2"], "each an integer >= 1"),
        (["a", "--dtype", "int8"], "unknown --dtype 'int8'"),
        (["absent"], "no folder and no .gguf file here"),
        (["--config", "absent.json"], "absent.json"),
    ],
)
def test_bad_arguments(arguments, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    record = inspect(capsys, *arguments)
    assert (record["status"], record["exit_code"]) == ("error", 2)
    assert words in record["message"]


def test_a_mesh_that_does_not_fit_is_refused(places, capsys):
    record = inspect(capsys, "--config", places[2], "--mesh", "1,1,7")
    assert record["exit_code"] == 2
    assert "7" in record["message"]
