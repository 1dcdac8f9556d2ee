"""Variables of .env files: set before a run, and in nothing that it writes or starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import tiny
import yaml

from posttrain.common import secrets
from posttrain.common.secrets import load_env_files, without_secrets

CANARIES = {
    "HUGGINGFACE_TOKEN": "hf_canary_1",
    "WANDB_API_KEY": "canary-2",
    "NVIDIA_API_KEY": "nvapi-canary-3",
    "MY_JUDGE": "canary-4",
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(secrets, "_LOADED", set())
    for name in (*CANARIES, "HF_TOKEN"):
        os.environ.pop(name, None)


def env_file(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / ".env").write_text(text)
    return folder


def test_forms_of_lines_and_who_wins(tmp_path):
    os.environ["SET_BEFORE"] = "kept"
    recipe = env_file(
        tmp_path / "recipe",
        "# comment\nexport A=1\nB = 'two words' # comment\nC=\nSET_BEFORE=lost\nnot a line\nD\n"
        'E="a\\nb"\nF=${A}3\n',
    )
    here = env_file(tmp_path / "here", "A=other\nG=7\nC=set\n")
    names = load_env_files(recipe, here, tmp_path / "absent")
    assert sorted(names) == ["A", "B", "C", "E", "F", "G"]
    assert [os.environ[x] for x in "ABCEFG"] == ["1", "two words", "set", "a\nb", "13", "7"]
    assert os.environ["SET_BEFORE"] == "kept"


@pytest.mark.parametrize(("before", "expected"), [(None, "from-alias"), ("own", "own")])
def test_the_hub_reads_the_name_that_people_write(before, expected, tmp_path):
    if before:
        os.environ["HF_TOKEN"] = before
    load_env_files(env_file(tmp_path, "HUGGINGFACE_TOKEN=from-alias\n"))
    assert os.environ["HF_TOKEN"] == expected


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / ".env").write_bytes(b"A=\xff\xfe")
    with pytest.raises(ValueError, match=r"\.env is not UTF-8 text: write NAME=VALUE"):
        load_env_files(tmp_path)


def test_a_child_gets_no_secret(tmp_path):
    load_env_files(env_file(tmp_path, "".join(f"{k}={v}\n" for k, v in CANARIES.items())))
    os.environ |= {"AWS_SECRET_ACCESS_KEY": "x", "DB_PASSWORD": "x", "KEYBOARD": "de"}
    os.environ |= {"TOKENIZERS_PARALLELISM": "false"}
    left = without_secrets()
    lost = {*CANARIES, "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"}
    assert left.keys() == os.environ.keys() - lost


CHILD = """
from pathlib import Path
from posttrain.rewards.rules.math_worker import _Child
worker = _Child()
print(Path(f"/proc/{worker.process.pid}/environ").read_bytes())
worker.kill()
"""


def test_the_worker_of_math_answers_gets_no_secret():
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        env=os.environ | CANARIES,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "PATH=" in done.stdout, done.stderr
    # known by their names alone
    assert not any(CANARIES[x] in done.stdout for x in CANARIES if x != "MY_JUDGE")


def test_no_value_is_written_anywhere(tmp_path):
    """A run with rewards, samples and a report, and a run that fails."""
    tree = tiny.run_config(tmp_path, "grpo", max_steps=2, save_steps=1)
    tree["trainer"]["output_dir"] = str(tmp_path / "runs")
    (tmp_path / "judge.py").write_text(
        "import os\n"
        "def reward(prompts, completions, **columns):\n"
        "    assert os.environ['MY_JUDGE'] and os.environ['HF_TOKEN']\n"
        "    assert 'FAIL' not in os.environ, 'the judge failed'\n"
        "    return [float(len(x)) for x in completions]\n"
    )
    tree["reward"] = {"type": "custom", "path": str(tmp_path / "judge.py")}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    env_file(tmp_path, "".join(f"{k}={v}\n" for k, v in CANARIES.items()))
    output = tmp_path / "output"
    ranks.command(1, output / "1", ["train", str(recipe)])
    os.environ["FAIL"] = "1"
    with pytest.raises(AssertionError, match="the judge failed"):
        ranks.command(1, output / "2", ["train", str(recipe)])
    files = [file for file in tmp_path.rglob("*") if file.is_file() and file.name != ".env"]
    leaks = [
        (file.name, name)
        for file in files
        for name, value in CANARIES.items()
        if value.encode() in file.read_bytes()
    ]
    assert len(files) > 15
    assert leaks == []
