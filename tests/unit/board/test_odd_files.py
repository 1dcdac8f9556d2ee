"""Contents of run folders that nobody planned for: one of them must not hide the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from posttrain.board import catalogue as catalogue_module
from posttrain.board.app import Board, build_app
from posttrain.board.catalogue import Catalogue
from posttrain.board.digest import Digest, preview
from posttrain.board.growing import AT_ONCE, Summaries, Workers, advance
from posttrain.common.lock import writing
from posttrain.runs.listing import read

KEY = "the-key"
DEEP = "[" * 100_000
HUGE = "1" + "0" * 400
LINE = '{"step": 1, "time": 1000, "loss": 0.5}\n'
ALIASES = "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefg", "bcdefgh"))
ODD: dict[str, dict[str, str]] = {
    "seconds": {"run.json": '{"state": "finished", "seconds": NaN}'},
    "state": {"run.json": '{"state": ["x"], "num_steps": 1e400, "started": 5, "error": {"a": 1}}'},
    "nested info": {"run.json": DEEP},
    "time": {"metrics.jsonl": '{"step": 1, "time": NaN}\n{"step": 2, "time": Infinity}\n' + LINE},
    "step": {"metrics.jsonl": f'{{"step": {HUGE}, "time": 1, "loss": 1}}\n' + LINE},
    "value": {"metrics.jsonl": f'{{"step": 1, "time": {HUGE}, "loss": {HUGE}}}\n' + LINE},
    "nested metrics": {"metrics.jsonl": f'{{"step": 1, "x": {DEEP}\n' + LINE},
    "metric": {"config.yaml": "trainer: {type: grpo, early_stopping: {metric: [a, b]}}\n"},
    "nested config": {"config.yaml": DEEP[:20_000]},
    "tag": {"config.yaml": "trainer: !!int ''\n"},
    "within itself": {"config.yaml": "trainer: &a {type: grpo, x: *a}\n"},
    "in a list of itself": {"config.yaml": "trainer: &a {type: grpo, x: [*a]}\n"},
    "ten million": {"config.yaml": f"a: &a [1]\n{ALIASES}"},
    "sample": {
        "samples.jsonl": '{"step": 1, "kind": "rollout", "prompt": "p", "reward": NaN, "tokens": '
        '{"ids": [1], "sampler_logprobs": [-Infinity]}}\n'
    },
    "sampled step": {
        "samples.jsonl": f'{{"step": {HUGE}, "kind": "rollout"}}\n'
        f'{{"step": 1, "kind": "rollout", "prompt": "p", "reward": {HUGE}}}\n'
    },
    "nested sample": {"samples.jsonl": f'{{"step": 1, "kind": {DEEP}\n'},
}


def client_of(root: Path, key: str | None = None) -> Any:
    app = build_app(Board(root, key, Workers()))
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


def make_run(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    config = "model: {name: m}\ntrainer: {type: grpo}\n"
    usual = {"config.yaml": config, "run.json": '{"state": "finished"}', "metrics.jsonl": LINE}
    for name, text in (usual | files).items():
        (folder / name).write_text(text)
    return folder


def test_no_run_hides_the_others(tmp_path: Path) -> None:
    make_run(tmp_path / "good")
    for name, files in ODD.items():
        make_run(tmp_path / name, **files)
    client = client_of(tmp_path)
    begun = time.monotonic()
    listed = client.get("/api/runs").json()
    assert time.monotonic() - begun < 2
    assert {run["id"] for run in listed["runs"]} == {"good", *ODD}
    assert all(run["value"] == 0.5 for run in listed["runs"])
    for run in ("good", *ODD):
        for path in ("curves", "samples", "samples/prompts", "disk"):
            answer = client.get(f"/api/{path}", params={"run": run, "kind": "rollout"})
            assert answer.status_code == 200, (run, path, answer.text)


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    make_run(tmp_path / "a", **ODD["sample"])
    client = client_of(tmp_path)
    query = {"run": "a", "kind": "rollout", "step": 1}
    (sample,) = client.get("/api/samples/step", params=query).json()["samples"]
    assert sample["reward"] is None
    one = client.get("/api/samples/one", params={"run": "a", "key": sample["key"]}).json()
    assert one["tokens"]["sampler_logprobs"] == [None]


@pytest.mark.parametrize("result", ['{"t": {"accuracy": NaN, "num_problems": 3}}', DEEP, "[]"])
def test_odd_results(result: str, tmp_path: Path) -> None:
    for name, text in (("odd", result), ("good", '{"t": {"accuracy": 0.5, "num_problems": 3}}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(text)
    (tmp_path / "odd" / "evaluation.json").write_text('{"stages": 5}')
    found = client_of(tmp_path).get("/api/evaluations").json()["results"]
    assert "good" in [result["name"] for result in found]


def test_a_last_line_longer_than_what_is_read_of_the_end(tmp_path: Path) -> None:
    """A classification with 60 labels: 160 kB of scores at each evaluation."""
    scores = {f"eval_confusion/{a}/{b}": 1 / 3600 for a in range(60) for b in range(60)}
    line = json.dumps({"step": 7, "time": 1.0, "eval_accuracy": 0.25, **scores}) + "\n"
    folder = make_run(tmp_path / "a", **{"metrics.jsonl": LINE * 5000 + line})
    listed = read(folder)
    assert (listed.step, listed.metric, listed.value) == (7, "eval_accuracy", 0.25)
    (run,) = client_of(tmp_path).get("/api/runs").json()["runs"]
    assert run["has"]["classification"]
    assert run["metrics"] == {"eval_accuracy": 0.25, "loss": 0.5}


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", f"/{'a' * 300}.js", b"", 404),
        ("POST", "/api/delete", b"[" * 9000, 400),
        ("POST", "/api/delete", b"\xff", 400),
    ],
)
def test_odd_requests_get_one_line(
    method: str, path: str, body: bytes, status: int, tmp_path: Path
) -> None:
    headers = {"content-type": "application/json", "x-board-key": KEY}
    answer = client_of(tmp_path, KEY).request(method, path, content=body, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]


def test_an_error_that_nobody_foresaw_is_one_line(tmp_path: Path, monkeypatch: Any) -> None:
    make_run(tmp_path / "a")
    client = client_of(tmp_path)

    def fails(*_: Any) -> None:
        raise TypeError("no such thing")

    monkeypatch.setattr(Catalogue, "total_bytes", fails)
    answer = client.get("/api/disk")
    assert answer.status_code == 500
    assert "TypeError: no such thing" in answer.json()["error"]
    monkeypatch.setattr(catalogue_module, "described", fails)
    make_run(tmp_path / "b")
    assert client.get("/api/runs").status_code == 200


def test_a_checkpoint_that_is_gone_is_not_counted(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(catalogue_module, "SIZE_EVERY", 0.05)
    checkpoint = make_run(tmp_path / "a") / "checkpoint-1"
    checkpoint.mkdir()
    (checkpoint / "weights").write_bytes(b"0" * 50_000)
    client = client_of(tmp_path, KEY)
    assert client.get("/api/runs").json()["runs"][0]["bytes"] > 50_000
    order = {"run": "a", "part": "checkpoint-1"}
    client.post("/api/delete", json=order, headers={"x-board-key": KEY})
    client.get("/api/runs")  # within the time in which sizes are not read again
    time.sleep(0.06)
    monkeypatch.setattr(catalogue_module, "SCAN_EVERY", 0.0)
    assert client.get("/api/runs").json()["runs"][0]["bytes"] < 1000


def test_a_run_in_a_run_is_not_deleted_while_it_is_written_to(tmp_path: Path) -> None:
    inner = make_run(make_run(tmp_path / "a") / "next" / "b")
    client = client_of(tmp_path, KEY)
    with writing(inner):
        order = {"run": "a", "part": None}
        answer = client.post("/api/delete", json=order, headers={"x-board-key": KEY})
    assert answer.json() == {"error": "a: next/b in it is being written to"}
    assert inner.is_dir()


def test_what_could_not_be_deleted_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    make_run(tmp_path / "a")

    def fails(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path / "x"))

    monkeypatch.setattr("posttrain.board.disk.shutil.rmtree", fails)
    client = client_of(tmp_path, KEY)
    order = {"run": "a", "part": None}
    answer = client.post("/api/delete", json=order, headers={"x-board-key": KEY})
    assert "holds what could not be deleted" in answer.json()["error"]
    (left,) = tmp_path.iterdir()
    assert str(left) in answer.json()["error"]
    assert client.get("/api/runs").json()["runs"] == []


@pytest.mark.parametrize("name", ["{root}/a", "{root}/a/checkpoint-1/", "results/a/../a"])
def test_users_are_found_however_a_path_is_written(
    name: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "results" / "a")
    model = name.format(root=tmp_path / "results")
    make_run(tmp_path / "results" / "b", **{"config.yaml": f"model: {{name: {model}}}\n"})
    make_run(tmp_path / "results" / "c", **{"config.yaml": "model: {name: results/ab}\n"})
    client = client_of(Path("results"))
    client.get("/api/runs")
    assert client.get("/api/disk", params={"run": "a"}).json()["used_by"] == ["b"]


def test_unknown_runs_do_not_lead_to_a_look_each(tmp_path: Path, monkeypatch: Any) -> None:
    make_run(tmp_path / "a")
    looks = []
    walk = catalogue_module.run_folders
    monkeypatch.setattr(
        catalogue_module, "run_folders", lambda root: looks.append(root) or walk(root)
    )
    names = [f"gone{i}" for i in range(200)]
    assert client_of(tmp_path).get("/api/curves", params={"run": names}).json() == {"runs": {}}
    assert len(looks) < 20


def test_all_runs_have_their_turn(tmp_path: Path, monkeypatch: Any) -> None:
    """However long the first of them take: on a slow disk each costs milliseconds."""
    for i in range(8):
        make_run(tmp_path / f"r{i}")
    catalogue = Catalogue(tmp_path)
    known = catalogue_module.is_written
    monkeypatch.setattr(
        catalogue_module, "is_written", lambda folder: time.sleep(0.02) or known(folder)
    )
    monkeypatch.setattr(catalogue_module, "PATIENCE", 0.05)
    for _ in range(8):
        catalogue.scanned_at = 0.0
        catalogue.refresh()
    assert len(catalogue.entries) == 8


def test_a_killed_run_took_as_long_as_it_wrote(tmp_path: Path) -> None:
    info = '{"state": "running", "started": "1970-01-01T00:10:00+00:00", "seconds": 0.0}'
    make_run(tmp_path / "a", **{"run.json": info})
    (run,) = client_of(tmp_path).get("/api/runs").json()["runs"]
    assert (run["state"], run["seconds"]) == ("killed", 400.0)


def test_a_file_written_anew_is_read_anew(tmp_path: Path) -> None:
    """A new file often has the number of the one that was deleted."""
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(f'{{"step": {s}, "loss": 1}}\n' for s in range(1, 50)))
    summaries = Summaries(Digest, Workers())
    assert summaries.look(file)[0].last_step == 49
    file.write_text("".join(f'{{"step": {s}, "loss": 2}}\n' for s in range(1, 80)))
    curve = summaries.look(file)[0].curve("loss")
    assert curve is not None
    assert set(curve["mean"]) == {2}


def test_an_end_that_is_no_line_is_tried_once(tmp_path: Path) -> None:
    """After a power cut a file may end in megabytes of NUL."""
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(LINE.encode() + b"\0" * (2 * AT_ONCE))

    class Here(Workers):
        calls = 0

        def submit(self, call: Any, *args: Any) -> Any:
            from concurrent.futures import Future

            Here.calls += 1
            assert Here.calls < 10, "it is read again and again"
            future: Any = Future()
            future.set_result(advance(*args[:3]))
            return future

    summaries = Summaries(Digest, Here())
    for _ in range(3):
        summary, progress = summaries.look(file)
    assert (summary.last_step, progress) == (1, 1.0)
    assert Here.calls <= 3
    with file.open("ab") as handle:
        handle.write(b'\n{"step": 2, "loss": 1}\n')
    for _ in range(3):
        summary, progress = summaries.look(file)
    assert (summary.last_step, progress) == (2, 1.0)


def test_a_preview_of_very_long_lines_reads_little(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    with file.open("w") as handle:
        for step in range(1, 31):
            handle.write(json.dumps({"step": step, "loss": 1, "text": "x" * 2_000_000}) + "\n")
    begun = time.monotonic()
    curve = preview(file).curve("loss")
    assert time.monotonic() - begun < 1
    assert curve is not None
    assert 3 <= len(curve["steps"]) < 30


ORPHANING = """
import os, time
from posttrain.board.growing import Workers
if __name__ == "__main__":
    print(Workers().submit(os.getpid).result(), flush=True)
    time.sleep(60)
"""


def test_the_process_that_reads_ends_with_a_board_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "board.py"
    script.write_text(ORPHANING)
    board = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    try:
        assert board.stdout is not None
        reader = int(board.stdout.readline())
    finally:
        board.kill()
        board.wait()
    deadline = time.monotonic() + 10
    while is_alive(reader):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
