"""Exports: what is written, with its card, and what is refused with nothing left."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command import Capture, command, complaint, output_of, recipe, state
from gguf_models import TEXTS, model_folder
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from posttrain.export import run, target
from posttrain.export.facts import public_name, without_folders
from posttrain.export.run import export
from posttrain.model.gguf.reading import convert_gguf
from posttrain.runs.loading import load_trained

pytest.importorskip("gguf")
Made = tuple[Path, Path, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A base, a run that trained a LoRA on it, and one that trained all of it."""
    folder = tmp_path_factory.mktemp("made")
    base = model_folder(folder / "base", "qwen2")
    rows = [{"prompt": text[:20], "completion": text[20:40]} for text in TEXTS]
    runs = []
    for name, adapter in (("lora", {"type": "lora", "r": 2}), ("full", {"type": "none"})):
        keys = {"type": "sft", "max_steps": 4, "batch_size": 4, "learning_rate": 1e-2}
        keys |= {"output_dir": str(folder / "out"), "run_name": name, "eval_steps": 2}
        file = recipe(
            folder,
            rows,
            model={"name": str(base), "adapter": adapter},
            trainer=keys,
            eval={"data": {"path": str(folder / "rows.jsonl")}},
        )
        assert command("train", file) == 0
        runs.append(next((folder / "out").glob(f"{name}_*")))
    return base, runs[0], runs[1]


@torch.no_grad()
def logits(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model(torch.arange(3, 60)[None]).logits


@torch.no_grad()
def of_run(run_dir: Path) -> Any:
    model = load_trained(next(run_dir.glob("checkpoint-*")))
    return model(torch.arange(3, 60)[None]).logits


def test_own_files_are_those_of_the_model_without_the_trainers(made: Made, tmp_path: Path) -> None:
    checkpoint = next(made[2].glob("checkpoint-*"))
    export(str(made[2]), output=tmp_path / "x", say=lambda line: None)
    names = {file.name for file in (tmp_path / "x").iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert not names & {"trainer_state.pt", "checkpoint_info.json"}
    before = state(checkpoint)
    after = state(tmp_path / "x")
    assert {n: after[n] for n in after if n in before} == {
        n: before[n] for n in after if n in before
    }
    assert torch.equal(logits(tmp_path / "x"), of_run(made[2]))


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_weights_are_written_in_another_dtype(made: Made, tmp_path: Path, dtype: str) -> None:
    export(str(made[2]), "merged", tmp_path / "x", dtype, say=lambda line: None)
    kind = {"bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    before = load_file(next(made[2].glob("checkpoint-*")) / "model.safetensors")
    after = load_file(tmp_path / "x/model.safetensors")
    assert all(torch.equal(after[name], tensor.to(kind)) for name, tensor in before.items())
    config = json.loads((tmp_path / "x/config.json").read_text())
    assert config["dtype"] == str(kind).removeprefix("torch.")


def test_an_adapter_is_merged_into_its_base(made: Made, tmp_path: Path, capsys: Capture) -> None:
    text = output_of(capsys, "export", made[1], "--format", "merged", "--output", tmp_path / "x")
    assert "merged into its base in fp32" in text
    merged, beside = logits(tmp_path / "x"), of_run(made[1])
    assert torch.allclose(merged, beside, atol=1e-4)
    assert not torch.allclose(logits(made[0]), beside, atol=1e-2)
    stops = [json.loads((f / "generation_config.json").read_text()) for f in (tmp_path / "x",)]
    saved = json.loads((next(made[1].glob("checkpoint-*")) / "generation_config.json").read_text())
    assert stops[0]["eos_token_id"] == saved["eos_token_id"]


def test_an_adapter_is_copied_and_its_base_renamed(made: Made, tmp_path: Path) -> None:
    from peft import PeftModel

    export(str(made[1]), "peft", tmp_path / "x", base="me/base", licence="mit", say=str)
    config = json.loads((tmp_path / "x/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "me/base"
    front = yaml.safe_load((tmp_path / "x/README.md").read_text().split("---")[1])
    assert front == {
        "tags": ["posttrain", "sft"],
        "license": "mit",
        "base_model": "me/base",
        "library_name": "peft",
    }
    base: Any = AutoModelForCausalLM.from_pretrained(made[0], dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(tmp_path / "x")).eval()
    with torch.no_grad():
        assert torch.allclose(model(torch.arange(3, 60)[None]).logits, of_run(made[1]), atol=1e-5)


def test_a_gguf_file_generates_what_the_run_does(
    made: Made, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    ask = ("--max-new-tokens", 12, "--temperature", 0, "--template", "plain")
    for number, source in enumerate(made[1:]):
        folder = tmp_path / f"g{number}"
        output_of(capsys, "export", source, "--format", "gguf", "--output", folder)
        (file,) = folder.glob("*.gguf")
        assert file.name == f"{source.name}-checkpoint-4-F32.gguf"
        assert sorted(p.name for p in folder.iterdir())[:1] == ["README.md"]
        assert len(list(folder.iterdir())) == 3
        expected = output_of(capsys, "generate", source, "The cat", *ask)
        assert output_of(capsys, "generate", file, "The cat", *ask) == expected
    assert "equal, bit for bit" in (tmp_path / "g1/README.md").read_text()


def test_a_quantised_file_states_its_error(made: Made, tmp_path: Path, capsys: Capture) -> None:
    text = output_of(
        capsys, "export", made[2], "--format", "gguf", "--quant", "q8_0", "--output", tmp_path / "x"
    )
    assert "Largest error of a matrix, relative to its norm: 0.5" in text
    (file,) = (tmp_path / "x").glob("*-Q8_0.gguf")
    convert_gguf(file, tmp_path / "back")
    before = load_file(next(made[2].glob("checkpoint-*")) / "model.safetensors")
    after = load_file(tmp_path / "back/model.safetensors")
    for name, tensor in before.items():
        assert (after[name] - tensor).norm() <= 0.01 * tensor.norm(), name


def test_the_card_says_what_the_run_recorded_and_nothing_else(made: Made, tmp_path: Path) -> None:
    export(str(made[2]), output=tmp_path / "x", say=lambda line: None)
    card = (tmp_path / "x/README.md").read_text()
    lines = [json.loads(line) for line in (made[2] / "metrics.jsonl").read_text().splitlines()]
    loss = [line["eval_loss"] for line in lines if "eval_loss" in line][-1]
    assert f"| eval_loss | {loss:.6g} |" in card
    assert "| rows.jsonl | train | unknown | unknown | 8 |" in card
    assert "| Licence of this model | unknown: not given at the export |" in card
    assert "| Base model | base |" in card
    assert "learning_rate: 0.01" in card
    assert str(made[2].parent) not in card
    assert yaml.safe_load(card.split("---")[1]) == {
        "tags": ["posttrain", "sft"],
        "library_name": "transformers",
    }


def test_the_card_names_licences_and_intervals_that_are_recorded(
    made: Made, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(made[2], copy)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["data"] = {"name": "gsm8k", "split": "train"}
    config["model"]["name"] = str(tmp_path / "base")
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "base").mkdir()
    (tmp_path / "base/README.md").write_text("---\nlicense: apache-2.0\n---\n# base\n")
    figures = {"accuracy": 0.25, "ci95": [0.2, 0.3], "num_problems": 400}
    (copy / "results.json").write_text(json.dumps({"gsm8k": figures}))
    export(str(copy), output=tmp_path / "x", say=lambda line: None)
    card = (tmp_path / "x/README.md").read_text()
    assert "| gsm8k | train | MIT |" in card
    assert "| Licence of the base model | apache-2.0 |" in card
    assert "| gsm8k | 0.2500 | 0.2000 to 0.3000 | 400 |" in card
    assert yaml.safe_load(card.split("---")[1])["datasets"] == ["gsm8k"]


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("out/{run}/checkpoint-4", "of the checkpoint"),
        ("{parent}/{run}/checkpoint-4", "of the checkpoint"),
        ("{parent}/{run}", "of the run"),
        (None, "of the run"),
        ("{parent}/{run}/checkpoint-2", "not at all"),
        ("o/base", "not at all"),
    ],
)
def test_results_are_attributed_to_the_checkpoint_that_was_evaluated(
    model: str | None, shown: str, made: Made, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(made[2], copy)
    figures: dict[str, Any] = {"accuracy": 0.25, "ci95": [0.2, 0.3], "num_problems": 400}
    if model is not None:
        figures["model"] = model.format(run="run", parent=tmp_path)
    (copy / "results.json").write_text(json.dumps({"gsm8k": figures}))
    export(str(copy / "checkpoint-4"), output=tmp_path / "x", say=lambda line: None)
    card = (tmp_path / "x/README.md").read_text()
    assert ("| gsm8k | 0.2500 |" in card) == (shown != "not at all")
    assert ("which checkpoint was evaluated is not recorded" in card) == (shown == "of the run")


@pytest.mark.parametrize(
    ("checkpoint", "shown"),
    [("checkpoint-4", "of the checkpoint"), ("checkpoint-2", "not at all"), (None, "of the run")],
)
def test_results_of_a_pipeline_are_those_of_the_checkpoint_it_compared(
    checkpoint: str | None, shown: str, made: Made, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(made[2], copy)
    stage: dict[str, Any] = {"name": "sft", "accuracy": 0.5, "ci95": [0.4, 0.6], "num_problems": 9}
    if checkpoint is not None:
        stage["checkpoint"] = checkpoint
    (copy / "evaluation.json").write_text(json.dumps({"stages": [stage]}))
    export(str(copy / "checkpoint-4"), output=tmp_path / "x", say=lambda line: None)
    card = (tmp_path / "x/README.md").read_text()
    assert ("| sft | 0.5000 |" in card) == (shown != "not at all")
    assert ("which checkpoint was evaluated is not recorded" in card) == (shown == "of the run")


LABELLED = [{"text": text[:20], "label": "ab"[i % 2]} for i, text in enumerate(TEXTS)]
PAIRS = [{"prompt": t[:9], "chosen": t[9:20], "rejected": t[20:45]} for t in TEXTS]


@pytest.mark.parametrize(
    ("keys", "rows", "names"),
    [
        ({"type": "classification", "labels": ["b", "a"]}, LABELLED, ["b", "a"]),
        (
            {"type": "classification", "labels": ["b", "a"], "multi_label": True},
            [row | {"label": [row["label"]]} for row in LABELLED],
            ["b", "a"],
        ),
        ({"type": "reward_model"}, PAIRS, ["LABEL_0"]),
    ],
)
def test_a_merged_classifier_has_the_labels_and_the_scores_of_the_run(
    keys: dict[str, Any], rows: Any, names: list[str], tmp_path: Path
) -> None:
    """As transformers reads it, also of texts that end in the token that pads the base's."""
    base = model_folder(tmp_path / "base", "qwen2")
    config = json.loads((base / "config.json").read_text())
    config["pad_token_id"] = config["eos_token_id"]
    (base / "config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(base)
    trainer = keys | {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-2}
    trainer |= {"output_dir": str(tmp_path / "out")}
    adapter = {"type": "lora", "r": 2}
    model = {"name": str(base), "adapter": adapter}
    assert command("train", recipe(tmp_path, rows, model=model, trainer=trainer)) == 0
    (made_run,) = (tmp_path / "out").iterdir()
    export(str(made_run), "merged", tmp_path / "x", say=lambda line: None)
    merged: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "x").eval()
    assert merged.config.id2label == dict(enumerate(names))
    assert merged.config.label2id == {name: i for i, name in enumerate(names)}
    kind = "multi_label" if "multi_label" in keys else "single_label"
    kinds = {"classification": f"{kind}_classification"}
    assert merged.config.problem_type == kinds.get(keys["type"])
    ids = torch.tensor([[5, 6, 7, tokenizer.eos_token_id, tokenizer.eos_token_id]])
    beside: Any = load_trained(next(made_run.glob("checkpoint-*")))
    with torch.no_grad():
        state_at_end = beside.model(input_ids=ids).last_hidden_state[:, -1]
        expected = beside.score(state_at_end)
        assert torch.allclose(merged(input_ids=ids).logits, expected, atol=1e-5)


HOME = "/home/alice/My Data/x.jsonl"
PATHS = {
    HOME: "x.jsonl",
    "/home/alice/x": "x",
    "~bob/My Data/x": "x",
    "~/x": "x",
    "./a b/x": "x",
    "../x": "x",
    "file:///home/alice/x": "x",
    "file:/home/alice/x": "x",
    "sqlite:////home/alice/runs.db": "runs.db",
    "https://host/home/alice/x": "https://host/home/alice/x",
    "HuggingFaceTB/SmolLM2": "HuggingFaceTB/SmolLM2",
    "a/b": "a/b",
    "1 / 2": "1 / 2",
    "/a\n{{ b }}/c": "/a\n{{ b }}/c",
}


@pytest.mark.parametrize("path", list(PATHS))
def test_no_folder_of_this_machine_is_published(path: str) -> None:
    shown = PATHS[path]
    assert without_folders({"a": [path, {"b": path}], path: 1, "n": 3}) == {
        "a": [shown, {"b": shown}],
        shown: 1,
        "n": 3,
    }
    assert without_folders({"system_prompt": path}) == {"system_prompt": path}
    assert "alice" not in public_name(path) or path.startswith("https")


def test_the_card_of_a_run_with_paths_everywhere_names_none(made: Made, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(made[2], copy)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["data"] = [{"path": HOME}, {"path": "file://" + HOME}, {"path": "~alice/x"}]
    config["tracking"] = {HOME: {"uri": "sqlite:///" + HOME}}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    export(str(copy), output=tmp_path / "x", say=lambda line: None)
    assert "alice" not in (tmp_path / "x/README.md").read_text()


def test_weights_in_fp64_become_a_gguf_file_in_fp32(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    wide = {name: tensor.double() for name, tensor in tensors.items()}
    save_file(wide, base / "model.safetensors", {"format": "pt"})
    said: list[str] = []
    export(str(base), "gguf", tmp_path / "g", say=said.append)
    assert "The weights are stored in f64 and were read as fp32." in said
    convert_gguf(tmp_path / "g/base-F32.gguf", tmp_path / "back")
    after = load_file(tmp_path / "back/model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in tensors.items())


def test_a_folder_without_a_run_has_a_card_of_unknowns(tmp_path: Path) -> None:
    model_folder(tmp_path / "base")
    export(str(tmp_path / "base"), output=tmp_path / "x", say=lambda line: None)
    card = (tmp_path / "x/README.md").read_text()
    for row in ("Base model", "Method", "Step", "Versions"):
        assert f"| {row} | unknown |" in card
    assert "No evaluation is recorded." in card


def test_values_cannot_break_out_of_the_card(made: Made, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(made[2], copy)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["data"] |= {"system_prompt": "```\n# not a heading\n<script>", "path": "a|b\nc.jsonl"}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    export(str(copy), output=tmp_path / "x", say=lambda line: None)
    card = (tmp_path / "x/README.md").read_text()
    assert "| a\\|b c.jsonl |" in card
    fence = next(line for line in card.splitlines() if line.endswith("yaml"))
    assert fence == "````yaml"


def test_an_export_is_exported_again(made: Made, tmp_path: Path) -> None:
    export(str(made[1]), "merged", tmp_path / "x", say=lambda line: None)
    export(str(tmp_path / "x"), "gguf", tmp_path / "y", dtype="bf16", say=lambda line: None)
    assert list((tmp_path / "y").glob("x-BF16.gguf"))


REFUSED = {
    "a target that exists": (("--output", "{tmp}"), "--output: .* exists already"),
    "a target in a file": (("--output", "{tmp}/file/x"), "--output: .*file is a file"),
    "a link to nothing": (("--output", "{tmp}/link"), "exists already"),
    "a file as a target": (("--output", "{tmp}/x.gguf", "--format", "gguf"), "name a folder"),
    "another format": (("--format", "onnx"), "--format: expected one of safetensors, merged"),
    "another dtype": (("--dtype", "fp8"), "--dtype: expected one of f32, bf16, f16"),
    "another quantisation": (
        ("--format", "gguf", "--quant", "q4_k_m"),
        "--quant: expected one of q8_0",
    ),
    "quantised safetensors": (("--quant", "q8_0"), "--quant: only gguf is quantised"),
    "both": (
        ("--format", "gguf", "--quant", "q8_0", "--dtype", "f16"),
        "--dtype: f16 and quant=q8_0 exclude each other",
    ),
    "no base": (("--base-model", ""), "--base-model: is empty"),
    "whole weights as an adapter": (("--format", "peft"), "holds whole weights, no adapter"),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_what_makes_no_sense_is_refused(
    what: str, made: Made, tmp_path: Path, capsys: Capture
) -> None:
    arguments, message = REFUSED[what]
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    before = state(tmp_path)
    given = [a.format(tmp=tmp_path) for a in arguments]
    if "--output" not in given:
        given += ["--output", str(tmp_path / "new")]
    text = complaint(capsys, "export", made[2], *given)
    assert re.search(message, text), text
    assert state(tmp_path) == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".writing")]


@pytest.mark.parametrize("form", ["safetensors", "merged", "peft", "gguf"])
@pytest.mark.parametrize("fault", ["cut", "changed"])
def test_damaged_weights_of_a_checkpoint_are_refused(
    form: str, fault: str, made: Made, tmp_path: Path, capsys: Capture
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(made[1], copy)
    file = copy / "checkpoint-4/adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-6] ^= 1
    file.write_bytes(content[:-9] if fault == "cut" else content)
    text = complaint(capsys, "export", copy, "--format", form, "--output", tmp_path / "new")
    assert ("is cut" if fault == "cut" else "is not the file that was saved") in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_a_path_through_a_folder_that_is_not_there_makes_no_folder(
    made: Made, tmp_path: Path
) -> None:
    export(str(made[1]), output=tmp_path / "a/../b", say=lambda line: None)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_what_is_no_model_is_refused(tmp_path: Path, capsys: Capture) -> None:
    base = model_folder(tmp_path / "base")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name in ("empty", "file", "nowhere", "model.gguf"):
        complaint(capsys, "export", tmp_path / name, "--output", tmp_path / "new")
    (base / "model.safetensors").unlink()
    text = complaint(capsys, "export", base, "--output", tmp_path / "new")
    assert "has no weights in safetensors" in text
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("form", ["safetensors", "merged", "gguf"])
def test_weights_of_a_diverged_run_are_refused(form: str, tmp_path: Path, capsys: Capture) -> None:
    base = model_folder(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    text = complaint(capsys, "export", base, "--format", form, "--output", tmp_path / "new")
    assert "not finite" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base"]


def test_edits_of_reft_are_copied_and_never_merged(tmp_path: Path, capsys: Capture) -> None:
    base = model_folder(tmp_path / "base", "qwen2")
    rows = [{"prompt": text[:20], "completion": text[20:40]} for text in TEXTS]
    file = recipe(
        tmp_path,
        rows,
        model={"name": str(base), "adapter": {"type": "loreft", "rank": 2}},
        trainer={
            "type": "sft",
            "max_steps": 1,
            "batch_size": 4,
            "output_dir": str(tmp_path / "out"),
        },
    )
    assert command("train", file) == 0
    (made_run,) = (tmp_path / "out").iterdir()
    for form, message in (("merged", "merged"), ("gguf", "GGUF"), ("peft", "PEFT has no ReFT")):
        text = complaint(capsys, "export", made_run, "--format", form, "--output", tmp_path / "new")
        assert "ReFT" in text
        assert message in text
    assert not (tmp_path / "new").exists()
    export(str(made_run), "pyreft", tmp_path / "p", say=lambda line: None)
    card = (tmp_path / "p/README.md").read_text()
    assert 'model = pyreft.ReftModel.load("p", base)\n```' in card
    assert "import posttrain" not in card
    assert "as pyreft stores them" in card
    export(str(made_run), output=tmp_path / "x", say=lambda line: None)
    assert 'posttrain.generate("x", "Hello")' in (tmp_path / "x/README.md").read_text()
    ask = ("--max-new-tokens", 6, "--temperature", 0, "--template", "plain")
    expected = output_of(capsys, "generate", made_run, "The cat", *ask)
    assert output_of(capsys, "generate", tmp_path / "x", "The cat", *ask) == expected


def test_a_full_disk_is_one_line_and_leaves_nothing(
    made: Made, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run, "write_card", full)
    text = complaint(capsys, "export", made[2], "--output", tmp_path / "new")
    assert "could not be written (the disk is full); nothing is left of it" in text
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    def write() -> None:
        with target.new_folder(tmp_path / "x") as folder:
            (folder / "file").write_text("ours")
            (tmp_path / "x").mkdir()
            (tmp_path / "x/theirs").write_text("theirs")

    with pytest.raises(ValueError, match="exists already"):
        write()
    assert state(tmp_path).keys() == {"x/theirs"}


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with target.new_folder(tmp_path / "x") as folder:
            (folder / "file").write_text("ours")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []


def test_the_tokenizer_goes_along(made: Made, tmp_path: Path) -> None:
    before = AutoTokenizer.from_pretrained(made[0])
    for form in ("safetensors", "merged"):
        export(str(made[1]), form, tmp_path / form, say=lambda line: None)
        after = AutoTokenizer.from_pretrained(tmp_path / form)
        assert after.chat_template == before.chat_template
        assert after(TEXTS[1])["input_ids"] == before(TEXTS[1])["input_ids"]


def test_an_adapter_that_names_a_gguf_file_says_so(made: Made, tmp_path: Path) -> None:
    copy = tmp_path / "adapter"
    shutil.copytree(next(made[1].glob("checkpoint-*")), copy)
    export(str(made[0]), "gguf", tmp_path / "g", say=lambda line: None)
    (file,) = (tmp_path / "g").glob("*.gguf")
    config = json.loads((copy / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(file)
    (copy / "adapter_config.json").write_text(json.dumps(config))
    said: list[str] = []
    export(str(copy), "peft", tmp_path / "x", say=said.append)
    assert "names a GGUF file as its base, which PEFT does not load" in said[-1]
