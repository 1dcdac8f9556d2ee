"""Folders, paths and names as people have them: what the command line does, in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from command import Capture, command, recipe
from damage import save_adapter_folder, save_model_folder

from posttrain.model.load import load_tokenizer

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
ROWS = [{"prompt": "the cat", "completion": "sat on the mat"}] * 3
TRAINER = {"type": "sft", "max_steps": 1, "batch_size": 2, "logger": []}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, an adapter, and models that are not whole."""
    place = tmp_path_factory.mktemp("folders")
    model = save_model_folder(place / "model")
    found = {"model": model, "adapter": save_adapter_folder(place / "adapter", model)}

    def copy(name: str, source: str = "model") -> Path:
        found[name] = Path(shutil.copytree(found[source], place / name))
        return found[name]

    (copy("pointer") / "model.safetensors").write_bytes(LFS)
    weights = (model / "model.safetensors").read_bytes()
    (copy("cut") / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    config = json.loads((model / "config.json").read_text())
    (copy("cut config") / "config.json").write_text(json.dumps(config)[:200])
    own = config | {"model_type": "zorp", "auto_map": {"AutoConfig": "of_zorp.ZorpConfig"}}
    (copy("code") / "config.json").write_text(json.dumps(own))
    (found["code"] / "of_zorp.py").write_text("raise SystemExit('code was run')")
    wide = config | {"intermediate_size": 64}
    (copy("other size") / "config.json").write_text(json.dumps(wide))
    shards = found["lost shard"] = save_model_folder(place / "shards", sharded=True)
    sorted(shards.glob("*.safetensors"))[1].unlink()
    for file in copy("no tokenizer").glob("*token*"):
        file.unlink()
    gptq = config | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (copy("quantised") / "config.json").write_text(json.dumps(gptq))
    (copy("pointer of the tokenizer") / "tokenizer.json").write_bytes(LFS)
    (copy("pointer of the template") / "chat_template.jinja").write_bytes(LFS)
    own = json.loads((model / "tokenizer_config.json").read_text())
    own |= {"tokenizer_class": "ZorpTokenizer", "auto_map": {"AutoTokenizer": ["of_zorp.Z", None]}}
    (copy("code of the tokenizer") / "tokenizer_config.json").write_text(json.dumps(own))
    found["file"] = model / "model.safetensors"
    named = copy("adapter of an adapter", "adapter") / "adapter_config.json"
    own = json.loads(named.read_text()) | {"base_model_name_or_path": str(found["adapter"])}
    named.write_text(json.dumps(own))
    named = copy("moved base", "adapter") / "adapter_config.json"
    moved = json.loads(named.read_text()) | {"base_model_name_or_path": "models/llama-base"}
    named.write_text(json.dumps(moved))
    cut = copy("cut adapter", "adapter") / "adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:300])
    return found


DAMAGED = {
    "pointer": "model.safetensors is a Git LFS pointer, not the file itself: run git lfs pull",
    "cut": "model.safetensors is cut: its header describes",
    "cut config": "config.json is damaged or cut: not JSON from line 1 on",
    "code": "needs Python code of its own (of_zorp.py, by auto_map in config.json), which is never",
    "other size": "is [32, 48] in the weights and [32, 64] by config.json",
    "lost shard": "lacks model-00002-of-0000",
    "no tokenizer": "has no tokenizer (tokenizer.json or tokenizer.model)",
    "quantised": "has quantised weights (gptq, by quantization_config in config.json), which",
    "pointer of the tokenizer": "tokenizer.json is a Git LFS pointer",
    "pointer of the template": "chat_template.jinja is a Git LFS pointer",
    "code of the tokenizer": "has a tokenizer, ZorpTokenizer, that needs Python code of its own",
    "file": "model.safetensors is a file: name the folder",
    "adapter of an adapter": "which is itself an adapter: merge that one into its base",
    "moved base": "is an adapter of models/llama-base, which is not here",
    "cut adapter": "adapter_model.safetensors is damaged or cut (300 bytes): it has no",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_folder_that_is_not_whole_is_one_line(
    folders: dict[str, Path], name: str, tmp_path: Path, capsys: Capture
) -> None:
    file = recipe(tmp_path, ROWS, model={"name": str(folders[name])})
    for arguments in (
        ("train", file),
        ("train", file, "--dry-run"),
        ("generate", folders[name], "the cat"),
    ):
        assert command(*arguments) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        assert DAMAGED[name] in error
    assert not (tmp_path / "out").exists()


def test_no_folder_is_called_tilde(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: Any, capsys: Capture
) -> None:
    home = tmp_path / "home"
    (home / "runs").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("RUNS", str(home / "runs"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folders["model"], home / "model")
    shutil.copy(recipe(tmp_path, ROWS), home)
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    file = recipe(
        tmp_path,
        ROWS,
        model={"name": "~/model"},
        data={"path": "$RUNS/../rows.jsonl"},
        trainer=TRAINER | {"output_dir": "${RUNS}/x", "run_name": "007"},
    )
    assert command("train", file) == 0
    assert command("train", file, "trainer.output_dir=~/y", "trainer.run_name=2026-11-29") == 0
    (run,) = (home / "runs" / "x").glob("007_*")
    assert command("report", "~/y/" + os.listdir(home / "y")[0], "--output=~/page.html") == 0
    assert (home / "page.html").is_file()
    assert command("generate", f"$RUNS/x/{run.name}", "the cat", "--max-new-tokens", 2) == 0
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(("~", "$"))]
    capsys.readouterr()
    monkeypatch.delenv("RUNS")
    assert command("train", file) == 2
    assert "the environment variable RUNS is not set" in capsys.readouterr().err


def test_lora_keys_that_an_adapter_contradicts(
    folders: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    model = {"name": str(folders["adapter"]), "use_lora": True}
    file = recipe(tmp_path, ROWS, model=model)
    for more in ((), ("--dry-run",)):
        assert command("train", file, "model.lora.r=32", *more) == 2
        assert "model.adapter.r is 32, but the adapter" in capsys.readouterr().err
    assert command("train", file, "trainer.max_steps=1") == 0
    (run,) = (tmp_path / "out").iterdir()
    assert "r: 2" in (run / "config.yaml").read_text()
    assert command("train", run / "config.yaml") == 0


def test_tokens_that_the_model_has_no_row_for(
    folders: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    folder = Path(shutil.copytree(folders["model"], tmp_path / "more"))
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_tokens(["<call>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    rows = [*ROWS, {"prompt": "the cat", "completion": "<call>"}]
    file = recipe(tmp_path, rows, model={"name": str(folder)})
    line = "the tokenizer has more tokens than the model has rows"
    for arguments in (
        ("train", file, "--dry-run"),
        ("generate", folder, "a <call>", "--max-new-tokens", 4),
    ):
        assert command(*arguments) == 2
        assert line in capsys.readouterr().err
    assert command("train", file, "model.resize_embeddings=true", "trainer.max_steps=1") == 0
    (run,) = (tmp_path / "out").iterdir()
    assert command("generate", run, "a <call>", "--max-new-tokens", 2) == 0
    plain = recipe(tmp_path, ROWS, name="plain.yaml", model={"name": str(folder)})
    capsys.readouterr()
    assert command("train", plain, "--dry-run") == 0
    assert "note: the tokenizer has" in capsys.readouterr().out
