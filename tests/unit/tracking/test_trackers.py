"""Every tracker shows exactly what is in metrics.jsonl, whatever is killed and whatever fails."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import toy_run
import tracker_stores
from killing import kill_groups, killed_when
from repeats import choice

from posttrain.algorithms.config import TrainerConfig
from posttrain.common.secrets import hide
from posttrain.tracking.config import TrackingConfig
from posttrain.tracking.follow import Reader
from posttrain.tracking.views import TRACKERS, check_trackers, tracker_named
from posttrain.tracking.views.view import Line, without_passwords

OFFLINE = '{"mode": "offline", "tags": ["a", "b c"], "group": "g", "project": "some project"}'
NEEDS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "sqlalchemy"}


def installed(name: str) -> bool:
    return all(find_spec(module) is not None for module in {name, NEEDS.get(name, name)})


def needs(name: str) -> None:
    if not installed(name):
        pytest.skip(f"needs the extra {name}")


def toy(
    folder: Path, names: str, steps: int = 9, seconds: float = 0.0, **keys: object
) -> list[str]:
    tracking = json.dumps({**json.loads(OFFLINE), **keys})
    return [
        sys.executable,
        toy_run.__file__,
        str(folder),
        names,
        str(steps),
        str(seconds),
        tracking,
    ]


def num_lines(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def kill_when(folder: Path, command: list[str], lines: int, also_trackers: bool) -> None:
    """Kill a new run when its own file has that many lines, and the processes of its trackers."""
    file = folder / "metrics.jsonl"
    old = file.stat().st_ino if file.exists() else None  # a resumed run writes another file

    def is_far_enough() -> bool:
        return file.exists() and file.stat().st_ino != old and num_lines(folder) >= lines

    with killed_when(command, is_far_enough):
        pass
    if also_trackers:
        kill_groups(json.loads((folder / "pids.json").read_text()))


def complete(folder: Path, command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_same(folder: Path, name: str, steps: int) -> None:
    """The tracker has the points of the file, and the file those of a run that was never killed."""
    expected = tracker_stores.expected(folder, name)
    assert tracker_stores.READERS[name](folder) == expected
    file = tracker_stores.of_file(folder)
    assert set(file.values()) == {1}
    whole = {(s, n) for s in range(1, steps + 1) for n in toy_run.metrics_of(s)}
    whole |= {(s, n) for s in range(3, steps + 1, 3) for n in ("eval_loss", "eval_pass@1")}
    measured = ("time/train", "tokens_per_second", "memory/resident")
    found = {(s, n) for s, n, _ in file if n not in measured}
    assert found == {(s, n) for s, n in whole if n != "not_finite"}
    assert len(expected) == len(file), "two points became one"


@pytest.mark.parametrize("name", choice(TRACKERS, ("wandb", "trackio")))
def test_killed_and_resumed(name: str, tmp_path: Path) -> None:
    """After the third step; wandb and mlflow have hardly started then, and are killed as well."""
    needs(name)
    command = toy(tmp_path, name, seconds=0.02)
    kill_when(tmp_path, command, 4, also_trackers=name in ("wandb", "mlflow"))
    assert "warning" not in complete(tmp_path, command)
    assert_same(tmp_path, name, 9)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TRACKERS))
def test_killed_ten_times_at_random_steps(name: str, tmp_path: Path) -> None:
    needs(name)
    chance = random.Random(time.time_ns())
    command = toy(tmp_path, name, steps=60, seconds=0.05)
    for _ in range(10):
        saved = int((tmp_path / "saved").read_text()) if (tmp_path / "saved").exists() else 0
        cut = sum(json.loads(x)["step"] <= saved for x in lines_of(tmp_path))
        wait = chance.choice([0.0, 0.0, 0.5, 2.0, 4.0])  # before trackers are open, and after
        target = cut + chance.randint(2, 6)
        slow = toy(tmp_path, name, steps=60, seconds=0.05 + wait / 4)
        kill_when(tmp_path, slow, target, chance.random() < 0.5)
    assert "warning" not in complete(tmp_path, command)
    assert_same(tmp_path, name, 60)


def lines_of(folder: Path) -> list[str]:
    file = folder / "metrics.jsonl"
    return file.read_text().splitlines() if file.exists() else []


def test_a_killed_run_that_is_never_resumed_is_shown_completely(tmp_path: Path) -> None:
    """The process that follows it sees its end."""
    kill_when(tmp_path, toy(tmp_path, "tensorboard", seconds=0.02), 4, also_trackers=False)
    until = time.monotonic() + 20
    while tracker_stores.of_tensorboard(tmp_path) != tracker_stores.expected(
        tmp_path, "tensorboard"
    ):
        assert time.monotonic() < until
        time.sleep(0.1)


SELDOM = ("works", "init", "segfault", "finish")
STUB = """
import os, sys, time
from types import SimpleNamespace
print("library noise"); print("library noise", file=sys.stderr)
how, state = os.environ["WANDB_STUB"], os.environ["WANDB_STUB_FILE"]
class Run:
    starting_step = 0
    def define_metric(self, *a, **k): pass
    def log(self, row):
        key = os.environ["WANDB_API_KEY"]
        if how == "log": raise RuntimeError("the disk of the server\\nis full " + key)
        if how == "segfault": os.kill(os.getpid(), 11)
        open(state, "a").write(str(row["step"]) + " ")
    def finish(self, exit_code):
        if how == "finish": raise TimeoutError("not sent")
        open(state, "a").write("end%d" % exit_code)
def init(**keys):
    if how == "init": raise ConnectionError("https://me:pw@host is not there")
    if how == "once" and not os.path.exists(state):
        open(state, "w"); raise ConnectionError("not yet")
    return Run()
Settings = SimpleNamespace
"""


@pytest.mark.parametrize(
    "how", ["log", "once", *(pytest.param(how, marks=pytest.mark.slow) for how in SELDOM)]
)
def test_a_tracker_that_fails_costs_one_line(how: str, tmp_path: Path) -> None:
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub/wandb.py").write_text(STUB)
    folder, state = tmp_path / "run", tmp_path / "state"
    folder.mkdir()
    variables = {
        "PYTHONPATH": str(tmp_path / "stub"),
        "WANDB_STUB": how,
        "WANDB_STUB_FILE": str(state),
        "WANDB_API_KEY": "canary-" + "k" * 33,
    }
    done = subprocess.run(
        toy(folder, "wandb", steps=3, seconds=0.1, mode="online"),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | variables,
    )
    assert done.returncode == 0
    assert "noise" not in done.stdout + done.stderr
    assert "canary" not in done.stdout
    assert "pw@" not in done.stdout
    written = [p.read_text(errors="replace") for p in folder.rglob("*") if p.is_file()]
    assert not [x for x in written if "canary" in x]
    assert num_lines(folder) == 4
    warnings = [x for x in done.stdout.splitlines() if x.startswith("warning")]
    if how in ("works", "once"):
        assert warnings == []
        assert state.read_text() == "1 2 3 3 end0"
    else:
        (line,) = warnings
        assert "wandb does not show this run completely" in line
        assert "posttrain track" in line


def test_only_rank_0_has_trackers(tmp_path: Path) -> None:
    from posttrain.tracking.tracker import Tracker

    tracker = Tracker(tmp_path, 3, 1, ["tensorboard"], rank=1)
    tracker.train(1, {"loss": 1.0})
    tracker.close()
    assert not (tmp_path / "trackers").exists()
    assert not (tmp_path / "metrics.jsonl").exists()


def test_the_logger_key_has_the_registry_s_names() -> None:
    for name in TRACKERS:
        assert TrainerConfig(type="x", logger=[name]).logger == [name]
        tracker_named(name)
    with pytest.raises(ValueError, match="tensorboard"):
        TrainerConfig(type="x", logger=["swanlab"])


@pytest.mark.parametrize(
    ("name", "variables", "mode", "problem"),
    [
        ("wandb", {}, None, "WANDB_API_KEY"),
        ("wandb", {"WANDB_MODE": "offline"}, None, None),
        ("wandb", {"WANDB_MODE": "offline"}, "online", "WANDB_API_KEY"),
        ("wandb", {}, "offline", None),
        ("wandb", {"WANDB_API_KEY": "k"}, None, None),
        ("wandb", {"NETRC": "netrc"}, None, None),
        ("wandb", {"NETRC": "netrc", "WANDB_BASE_URL": "http://else:1"}, None, "wandb login"),
        ("wandb", {"NETRC": "nothing"}, None, "tracking.mode: offline"),
        ("mlflow", {}, None, None),
        ("mlflow", {}, "online", "MLFLOW_TRACKING_URI"),
        ("mlflow", {"MLFLOW_TRACKING_URI": "http://h"}, "online", None),
        ("trackio", {}, None, None),
        ("trackio", {}, "online", "TRACKIO_SERVER_URL"),
        ("trackio", {"TRACKIO_SERVER_URL": "http://h"}, None, "TRACKIO_WRITE_TOKEN"),
        ("trackio", {"TRACKIO_SERVER_URL": "http://h/?write_token=x"}, None, None),
        ("trackio", {"TRACKIO_SERVER_URL": "http://h"}, "offline", None),
        ("trackio", {"TRACKIO_SPACE_ID": "a/b"}, None, "HF_TOKEN"),
        ("trackio", {"TRACKIO_SPACE_ID": "a/b", "HF_TOKEN": "t"}, None, None),
    ],
)
def test_what_is_missing_is_named_before_the_run(
    name: str,
    variables: dict[str, str],
    mode: str | None,
    problem: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in list(os.environ):
        if variable.startswith(("WANDB_", "MLFLOW_", "TRACKIO_", "HF_TOKEN", "HUGGING")):
            monkeypatch.delenv(variable)
    for variable in ("HOME", "HF_HOME", "HF_TOKEN_PATH"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password abc\n")
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    check = tracker_named(name).check
    if problem is None:
        check(TrackingConfig(mode=mode))
        return
    with pytest.raises(ValueError, match=problem) as error:
        check(TrackingConfig(mode=mode))
    assert "\n" not in str(error.value)


def test_a_missing_extra_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import posttrain.tracking.views as views

    def missing(package: str) -> str:
        raise views.PackageNotFoundError(package)

    monkeypatch.setattr(views, "version", missing)
    with pytest.raises(ValueError, match=r"pip install 'posttrain\[mlflow\]'"):
        check_trackers(["mlflow"], None)


@pytest.mark.parametrize("word", ["", "a/b", " a", "x" * 129, "a%b"])
def test_names_that_a_tracker_would_refuse_are_refused_here(word: str) -> None:
    with pytest.raises(ValueError, match="project"):
        TrackingConfig(project=word)


def test_nothing_secret_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "canary123")
    assert hide("x canary123 https://me:pw@host/") == "x *** https://***@host/"
    config = {"a": [{"url": "http://u:p@h:1/x"}], "b": 1, "c": "mail a@b"}
    assert without_passwords(config) == {
        "a": [{"url": "http://***@h:1/x"}],
        "b": 1,
        "c": "mail a@b",
    }


def posttrain(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "posttrain", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def finished(folder: Path, name: str = "sft_1 %41 ü?#") -> Path:
    """A run that has ended, whose tracker was none, in a folder with an odd name."""
    run_dir = folder / name
    run_dir.mkdir()
    run = toy_run.metrics_of
    rows = [
        {"step": s, "time": 1e9 + s, **{k: v for k, v in run(s).items() if k != "not_finite"}}
        for s in range(1, 6)
    ]
    (run_dir / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (run_dir / "config.yaml").write_text("trainer: {type: sft}\ntracking: {project: p}\n")
    return run_dir


@pytest.mark.parametrize(
    "name",
    [
        "tensorboard",
        pytest.param("wandb", marks=pytest.mark.slow),
        pytest.param("mlflow", marks=pytest.mark.slow),
        pytest.param("trackio", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_has_ended_is_shown_again_and_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after points were lost, and with other points in the way."""
    needs(name)
    run_dir = finished(tmp_path)
    monkeypatch.chdir(run_dir)
    for _ in range(2):
        done = posttrain("track", str(run_dir), "--to", name, "tracking.mode=offline")
        assert done.returncode == 0, done.stderr
        assert "5 steps" in done.stdout
        expected = tracker_stores.expected(run_dir, name)
        assert tracker_stores.READERS[name](run_dir) == expected
        lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run_dir / "metrics.jsonl").write_text("".join(lines))
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--to", "swanlab"], "no tracker 'swanlab'"),
        (["--to", "tensorbord"], "did you mean tensorboard"),
        (["--to", "wandb", "tracking.mode=online"], "WANDB_API_KEY"),
        (["--to", "tensorboard", "tracking.projekt=x"], "did you mean project"),
        (["--to", "tensorboard", "trainer.seed=1"], "trainer"),
        (["--to", "tensorboard", "tracking.tags=[1"], "tracking.tags"),
        (["--to", "tensorboard", "x"], "section.key=value"),
    ],
)
def test_what_cannot_be_shown(
    words: list[str],
    problem: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from posttrain.tracking.track import track

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    if words[1] == "wandb":
        needs("wandb")
    run_dir = finished(tmp_path)
    with pytest.raises(ValueError, match=problem) as error:
        track(run_dir, words[1], words[2:])
    assert "\n" not in str(error.value)
    assert not (run_dir / "trackers").exists()


def test_a_folder_that_is_no_run_and_one_that_is_in_use(tmp_path: Path) -> None:
    from posttrain.common.lock import writing
    from posttrain.tracking.track import track

    with pytest.raises(ValueError, match=r"no metrics\.jsonl"):
        track(tmp_path, "tensorboard", [])
    run_dir = finished(tmp_path)
    with writing(run_dir), pytest.raises(ValueError, match="still being written"):
        track(run_dir, "tensorboard", [])


def test_a_copy_of_a_folder_is_another_run(tmp_path: Path) -> None:
    from posttrain.tracking.follow import gather

    run_dir = finished(tmp_path, "a")
    (run_dir / "trackers/wandb").mkdir(parents=True)
    first = gather(run_dir, "wandb", TrackingConfig(), 0)
    assert gather(run_dir, "wandb", TrackingConfig(), 0).id == first.id
    shutil.copytree(run_dir, tmp_path / "b")
    assert gather(tmp_path / "b", "wandb", TrackingConfig(), 0).id != first.id


def test_lines_are_read_when_they_are_complete(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "time": 2.0, "loss": 3}\n{"step": 2, "tim')
    reader = Reader(file)
    assert reader.next_lines() == [Line(0, 1, 2.0, {"loss": 3.0})]
    assert reader.next_lines() == []
    with file.open("a") as more:
        more.write('e": 4.0, "kind": "text", "a": null}\n')
    assert reader.next_lines() == [Line(1, 2, 4.0, {})]
