"""The command line: what it prints, and that bad input is one line, code 2, and no files."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import ROWS, Capture, command, complaint, one_line, output_of, recipe, state


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("POSTTRAIN_TRACEBACK", raising=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a recipe that was run: run.yaml, rows.jsonl, out/sft_<time>."""
    folder = tmp_path_factory.mktemp("trained")
    assert command("train", recipe(folder)) == 0
    return folder


def run_dir(folder: Path) -> Path:
    (found,) = (folder / "out").glob("sft_*")
    return found


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "run.yaml", "trainer.sed=1"], "unknown key trainer.sed: did you mean seed?"),
        (["trainn"], "No such command 'trainn'. Did you mean 'train'?"),
    ],
)
def test_bad_input_of_the_real_program(tmp_path: Path, arguments: list[str], expected: str) -> None:
    recipe(tmp_path)
    before = state(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "posttrain", *arguments],
        cwd=tmp_path,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert expected in one_line(done.stderr)
    assert done.stdout == ""
    assert state(tmp_path) == before


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["trainer.sed=1"], "unknown key trainer.sed: did you mean seed?"),
        (["trainer.epsilon=0.1"], "trainer.epsilon is a key of another trainer type, not of sft"),
        (["seed"], "override 'seed' is not of the form section.key=value"),
        (["data.path=nowhere.jsonl"], "no such file or folder: nowhere.jsonl"),
        (["data={name: gsm9k}"], "did you mean gsm8k?"),
        (["model={name: /nowhere/model}"], "model.name: the folder /nowhere/model does not exist"),
        (["model={name: ./nowhere}"], "model.name: the folder ./nowhere does not exist"),
        (["model={name: some/name}"], "no folder some/name, and the model hub"),
        (["length.max_length=4"], "row 1: the row has 10 tokens"),
        (["length={max_length: 4, on_overlong: drop}"], "none of the 9 rows is left"),
        (["data.columns={prompt: question}"], "no column 'question'"),
    ],
)
@pytest.mark.parametrize("dry", [False, True])
def test_train_refuses(
    tmp_path: Path, capsys: Capture, overrides: list[str], expected: str, dry: bool
) -> None:
    file = recipe(tmp_path)
    before = state(tmp_path)
    text = complaint(capsys, "train", file, *overrides, *(["--dry-run"] if dry else []))
    assert expected in text
    assert state(tmp_path) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ("latest", "is latest, but"),
        ("true", "is latest, but"),
        ("nowhere", "nowhere is not a checkpoint"),
    ],
)
def test_nothing_to_resume(tmp_path: Path, capsys: Capture, request_: str, expected: str) -> None:
    text = complaint(
        capsys, "train", recipe(tmp_path), f"trainer.resume_from_checkpoint={request_}"
    )
    assert expected in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"prompt": "a", "completion": "b"}\n{oops\n', "rows.jsonl, line 2: not valid JSON"),
        ('{"prompt": "a"}\n', "row 1: expected the columns prompt+completion or messages"),
        ("", "rows.jsonl: no rows"),
        ('{"messages": [{"role": "user"}]}\n', "row 1: messages must be a list"),
    ],
    ids=["json", "column", "empty", "messages"],
)
def test_malformed_rows(tmp_path: Path, capsys: Capture, content: str, expected: str) -> None:
    file = recipe(tmp_path)
    (tmp_path / "rows.jsonl").write_text(content)
    for arguments in (["train", file], ["train", file, "--dry-run"], ["data", "preview", file]):
        assert expected in complaint(capsys, *arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("method", "row", "expected"),
    [
        ("sft", {"prompt": 3, "completion": "b"}, "row 1: prompt must be"),
        pytest.param("pretrain", {"text": None}, "row 1: text must be", marks=pytest.mark.slow),
        pytest.param(
            "classification",
            {"text": "a", "label": ""},
            "row 1: a label must be",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_malformed_rows_are_found_before_transformers_is_imported(
    tmp_path: Path, method: str, row: dict[str, Any], expected: str
) -> None:
    """Which takes longer than everything before: an error comes in half of the time."""
    trainer = {"type": method, "max_steps": 1}
    file = recipe(tmp_path, [row], model={"name": "some/model"}, trainer=trainer)
    program = (
        "import atexit, sys; from posttrain.cli.main import main; "
        "atexit.register(lambda: print('transformers' in sys.modules)); main()"
    )
    call = [sys.executable, "-c", program, "train", str(file), "--dry-run"]
    done = subprocess.run(call, capture_output=True, text=True)
    assert expected in one_line(done.stderr)
    assert (done.returncode, done.stdout.split()) == (2, ["False"])


def test_missing_recipe_names_the_nearest(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes/sft").mkdir(parents=True)
    recipe(tmp_path / "recipes/sft", name="gsm8k.yaml")
    monkeypatch.chdir(tmp_path)
    text = complaint(capsys, "train", "recipes/sft/gsm8.yaml")
    assert "no recipe recipes/sft/gsm8.yaml; did you mean recipes/sft/gsm8k.yaml?" in text
    monkeypatch.chdir(tmp_path / "recipes/sft")
    assert "did you mean gsm8k.yaml?" in complaint(capsys, "train", "gsm8.yaml")


def test_folder_that_holds_no_model(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("nothing here")
    name = tmp_path / "folder"
    expected = (
        f"model.name: {name} is not a model folder (config.json + safetensors); it holds notes"
    )
    assert expected in complaint(capsys, "train", recipe(tmp_path), f"model={{name: {name}}}")
    assert expected in complaint(capsys, "generate", name, "Hi")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trainn"], "No such command 'trainn'. Did you mean 'train'?"),
        (["train", "--foo", "run.yaml"], "No such option: --foo"),
        (["train"], "Missing argument"),
        (["generate", "m", "Hi", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["data", "lst"], "No such command 'lst'"),
        (["report", "nowhere"], "nowhere is not a run directory"),
        (["eval", "m", "--tasks", "gsm9k"], "no task 'gsm9k'; did you mean gsm8k?"),
        (["pipeline", "nowhere.yaml"], "no recipe nowhere.yaml"),
    ],
)
def test_wrong_arguments_are_one_line(capsys: Capture, arguments: list[str], expected: str) -> None:
    assert expected in complaint(capsys, *arguments)


def test_help_and_bare_call(capsys: Capture) -> None:
    assert "generate" in output_of(capsys, "--help")
    assert command() == 2
    seen = capsys.readouterr()
    assert "Usage" in seen.out
    assert seen.err == ""


def test_template_without_stop_token(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    model = tmp_path / "model"
    shutil.copytree(run_dir(trained) / "checkpoint-2", model)
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    text = complaint(capsys, "train", recipe(tmp_path), f"model={{name: {model}}}")
    assert "without a stop token" in text
    assert not (tmp_path / "out").exists()


def test_training_leaves_a_whole_run(trained: Path) -> None:
    run = run_dir(trained)
    assert {p.name for p in run.iterdir()} >= {
        "config.yaml",
        "metrics.jsonl",
        "samples.jsonl",
        "report.html",
        "run.json",
        "data.json",
        "checkpoint-2",
        "tensorboard",
    }
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2]


@pytest.mark.parametrize("changed", ["config", "data"])
def test_refused_resume_leaves_the_run_as_it_was(
    trained: Path, tmp_path: Path, capsys: Capture, changed: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    config = yaml.safe_load((folder / "run.yaml").read_text())
    overrides = [f"trainer.resume_from_checkpoint={run_dir(folder)}"]
    if changed == "config":
        overrides.append("trainer.learning_rate=0.5")
        expected = "the config changed: trainer.learning_rate was 2e-05, now 0.5"
    else:
        file = Path(config["data"]["path"])  # the original's: the checkpoint names it
        content = file.read_text()
        file.write_text(content.replace("#### 4", "#### 5"))
        expected = "the data changed since it was saved"
    before = state(run_dir(folder))
    try:
        text = complaint(capsys, "train", folder / "run.yaml", *overrides)
    finally:
        if changed == "data":
            file.write_text(content)
    assert expected in text
    assert state(run_dir(folder)) == before


def test_dry_run(tmp_path: Path, capsys: Capture) -> None:
    file = recipe(tmp_path)
    before = state(tmp_path)
    out = output_of(capsys, "train", file, "--dry-run", "trainer.max_steps=7")
    assert "7 steps of 4 examples, 3 steps per epoch" in out
    parameters = int(out.split(" trained")[0].split()[-1].replace(",", ""))
    assert parameters > 10_000
    assert "memory, estimated:" in out
    for part in ("weights", "gradients", "optimiser", "activations", "total", "a checkpoint takes"):
        assert part in out
    row = next(line for line in out.splitlines() if "rows.jsonl (train)" in line)
    assert row.split()[-8:] == ["9", "9", "0", "0", "10", "10", "10", "36"]
    assert state(tmp_path) == before


def test_data_preview(tmp_path: Path, capsys: Capture) -> None:
    rows = [*ROWS, {"prompt": "7" * 600, "completion": "x"}]
    file = recipe(tmp_path, rows, length={"on_overlong": "drop"})
    out = output_of(capsys, "data", "preview", file, "--rows", "2")
    assert "<|user|>0+0<|end|><|assistant|>[[#### 0<|end|>]]" in out
    assert "[10 tokens, 4 trained]" in out
    assert "stop tokens: <|end|>" in out
    assert "row 2" in out
    assert "row 3" not in out
    row = next(line for line in out.splitlines() if "rows.jsonl (train)" in line)
    assert row.split()[-8:-4] == ["10", "9", "1", "0"]
    assert not (tmp_path / "out").exists()


def test_data_preview_marks_exactly_the_trained_tokens() -> None:
    from posttrain.data.render import make_renderer
    from posttrain.model.scratch import train_tokenizer
    from posttrain.runs.preview import coloured

    renderer = make_renderer(train_tokenizer(["abc"], 300, 64))
    text = coloured(renderer.training_sequence({"prompt": "hé", "completion": "日本"}), renderer)
    green = [text.plain[s.start : s.end] for s in text.spans if "green" in str(s.style)]
    assert green == ["日本<|end|>"]


def test_data_list(capsys: Capture) -> None:
    from posttrain.data.sets import DATASETS

    lines = output_of(capsys, "data", "list").splitlines()
    first = [line for line in lines if not line.startswith(" ")]
    assert [line.split()[0] for line in first] == sorted(DATASETS)
    assert all(len(line.split()) > 3 for line in lines)
    assert "licence: MIT; train 7,473, test 1,319; sft, rl; https://" in "\n".join(lines)


def test_generate(trained: Path, capsys: Capture) -> None:
    arguments = ["generate", run_dir(trained), "1+1", "2+2", "-n", "2", "--max-new-tokens", "4"]
    out = output_of(capsys, *arguments, "--seed", "1")
    assert [line for line in out.splitlines() if line.startswith("--- 4")]
    assert output_of(capsys, *arguments, "--seed", "1") == out
    checkpoint = run_dir(trained) / "checkpoint-2"
    greedy = ["--max-new-tokens", "4", "--temperature", "0"]
    assert output_of(capsys, "generate", checkpoint, "1+1", *greedy) == output_of(
        capsys, "generate", run_dir(trained), "1+1", *greedy
    )
    text = complaint(capsys, "generate", run_dir(trained), "1+1", "--max-new-tokens", "600")
    assert "more than the 512 tokens that the model takes" in text
    assert "--template: input should be 'auto', 'chat' or 'plain'" in complaint(
        capsys, *arguments, "--template", "x"
    )
    assert "dtype" in complaint(capsys, *arguments, "--dtype", "x")


def test_eval(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = ["--max-samples", "3", "--max-new-tokens", "4"]
    written = ["--output", tmp_path / "a/r.json", "--samples", tmp_path / "b/s.jsonl"]
    out = output_of(
        capsys, "eval", run_dir(trained), "--tasks", "word_problems", *arguments, *written
    )
    result = json.loads((tmp_path / "a/r.json").read_text())["word_problems"]
    assert result["num_problems"] == 3
    assert f"{100 * result['accuracy']:.1f} %" in out
    assert "word_problems: " in out.splitlines()[-1]
    assert sum(result["verdicts"].values()) == 3
    assert result["stop_tokens"] == ["<|end|>"]
    samples = [json.loads(line) for line in (tmp_path / "b/s.jsonl").read_text().splitlines()]
    assert len(samples) == 3
    assert {s["task"] for s in samples} == {"word_problems"}
    text = complaint(capsys, "eval", run_dir(trained), "--tasks", "gsm8k=/nowhere", *arguments)
    assert "data.path: /nowhere does not exist" in text


def test_report(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    page = tmp_path / "page.html"
    out = output_of(capsys, "report", run_dir(trained), "--output", page)
    assert out.strip() == str(page)
    assert page.read_text().lstrip().lower().startswith("<!doctype html>")


def test_a_key_with_dashes(tmp_path: Path, capsys: Capture) -> None:
    text = complaint(capsys, "train", recipe(tmp_path), "--trainer.learning_rate=1e-3")
    assert "Write trainer.learning_rate=VALUE, without the dashes." in text


def test_the_date_of_a_run_may_not_be_left_out(tmp_path: Path, capsys: Capture) -> None:
    for name in ("units_20260101-101010", "units_20260102-101010", "unit_20260103-101010"):
        (tmp_path / "results" / name).mkdir(parents=True)
    text = complaint(capsys, "generate", tmp_path / "results" / "units", "x")
    assert f"no folder {tmp_path}/results/units; did you mean" in text
    assert text.endswith("units_20260102-101010?")


def test_the_best_checkpoint_is_named_at_the_end(tmp_path: Path, capsys: Capture) -> None:
    trainer = {
        "type": "sft",
        "max_steps": 2,
        "batch_size": 4,
        "eval_steps": 1,
        "early_stopping": {"mode": "max"},  # the first is the best: the loss falls
        "output_dir": str(tmp_path / "out"),
    }
    out = output_of(capsys, "train", recipe(tmp_path, trainer=trainer, eval={"split": 0.3}))
    assert re.search(r"^best checkpoint: .*/checkpoint-1$", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("max_steps", "save_steps", "expected"),
    [(2, 500, "after the last"), (501, 500, "every 500"), (9, "null", "after the last")],
)
def test_the_dry_run_says_when_checkpoints_are_written(
    max_steps: int, save_steps: int | str, expected: str, tmp_path: Path, capsys: Capture
) -> None:
    changes = [f"trainer.max_steps={max_steps}", f"trainer.save_steps={save_steps}"]
    out = output_of(capsys, "train", recipe(tmp_path), *changes, "--dry-run")
    assert f"steps per epoch, a checkpoint {expected}" in out
