"""The board's answers, through its application."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from posttrain.board.app import PAGE, Board, build_app
from posttrain.board.catalogue import seconds_left
from posttrain.board.growing import Workers
from posttrain.common.lock import writing
from posttrain.runs.listing import read

KEY = "the-key"


def make_run(folder: Path, steps: int = 4, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    config = {"model": {"name": "base"}, "trainer": {"type": "sft", "learning_rate": 1e-3}}
    config["model"] |= changes.get("model", {})
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    info = {"state": "finished", "num_steps": 10, "started": "2026-11-30T10:00:00+00:00"}
    (folder / "run.json").write_text(json.dumps(info | changes.get("info", {})))
    rows = [{"step": s, "time": 1000.0 + 3 * s, "loss": 1 / s} for s in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    checkpoint = folder / f"checkpoint-{steps}"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"0" * 5000)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_run(tmp_path / "results" / "a")
    make_run(tmp_path / "results" / "three" / "b", info={"state": "running"})
    return tmp_path / "results"


def client_of(root: Path, key: str | None = None) -> Any:
    app = build_app(Board(root, key, Workers()))
    return TestClient(app, base_url="http://127.0.0.1:8001")


def runs_of(client: Any, **query: Any) -> dict[str, dict[str, Any]]:
    return {run["id"]: run for run in client.get("/api/runs", params=query).json()["runs"]}


def test_the_list_and_what_changes_in_it(root: Path) -> None:
    client = client_of(root)
    whole = client.get("/api/runs").json()
    runs = {run["id"]: run for run in whole["runs"]}
    assert (whole["complete"], whole["allow_delete"], whole["gone"]) == (True, False, [])
    assert set(runs) == {"a", "three/b"}
    assert runs["three/b"]["group"] == "three"
    assert runs["three/b"]["state"] == "killed", "it says running, but nothing writes to it"
    assert runs["a"]["settings"]["trainer.learning_rate"] == "0.001"
    assert runs["a"]["metrics"] == {"loss": 0.25}
    assert (runs["a"]["step"], runs["a"]["num_steps"], runs["a"]["left"]) == (4, 10, None)
    same = client.get("/api/runs", params={"since": whole["version"]}).json()
    assert (same["runs"], same["gone"]) == ([], [])

    with (root / "a" / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 5, "loss": 0.125}\n')
    make_run(root / "new")
    (root / "three" / "b").rename(root / "c")
    board_forgets(client)
    after = client.get("/api/runs", params={"since": whole["version"]}).json()
    assert {run["id"] for run in after["runs"]} == {"a", "new", "c"}
    assert after["gone"] == ["three/b"]
    assert runs_of(client)["a"]["metrics"]["loss"] == 0.125


def board_forgets(client: Any) -> None:
    """Wait until the folders are looked at again."""
    time.sleep(1.05)


def test_a_running_run_has_its_time_left(root: Path) -> None:
    with writing(root / "a"):
        run = runs_of(client_of(root))["a"]
    assert run["state"] == "running"
    assert run["left"] == pytest.approx(6 * 3.0)


def test_pauses_do_not_count_in_the_time_left(root: Path) -> None:
    listed = read(root / "a")
    times = [0.0, 2.0, 4.0, 90_000.0, 90_002.0]
    lines = [{"step": i + 1, "time": t} for i, t in enumerate(times)]
    assert seconds_left(lines, listed) == pytest.approx(6 * 2.0)
    assert seconds_left(lines[:1], listed) is None


LOOKER = """
import sys
from pathlib import Path
from posttrain.common.lock import is_written
print("looking", flush=True)
while True:
    is_written(Path(sys.argv[1]))
"""


def test_looking_does_not_keep_a_run_from_starting(tmp_path: Path) -> None:
    """The board asks every two seconds whether a run is being written to; here all the time."""
    make_run(tmp_path / "a")
    command = [sys.executable, "-c", LOOKER, str(tmp_path / "a")]
    with writing(tmp_path / "a"):
        pass
    looker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert looker.stdout is not None
        assert looker.stdout.readline() == "looking\n"
        for _ in range(5000):
            with writing(tmp_path / "a"):
                pass
    finally:
        looker.kill()
        looker.wait()


def test_curves_of_several_runs(root: Path) -> None:
    query = {"run": ["a", "three/b", "gone", "../.."], "metric": ["loss", "nothing"]}
    found = client_of(root).get("/api/curves", params=query).json()["runs"]
    assert set(found) == {"a", "three/b"}
    assert found["a"]["metrics"]["loss"]["steps"] == [1, 2, 3, 4]
    assert found["a"]["metrics"].keys() == {"loss"}


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/api/runs?since=x", 400, "since: expected a whole number, got 'x'"),
        ("/api/runs?since=-1", 400, "since: expected a whole number"),
        ("/api/runs?since=²", 400, "since: expected a whole number"),
        ("/api/samples", 400, "run is missing"),
        ("/api/samples?run=gone", 404, "there is no 'gone'"),
        ("/api/samples?run=..", 404, "there is no '..'"),
        ("/api/samples?run=/etc", 404, "there is no '/etc'"),
        ("/api/samples/step?run=a&kind=rollout", 400, "step is missing"),
        ("/api/samples/one?run=a&key=0:0", 400, "this sample is gone"),
        ("/api/classification?run=a", 400, "no scores of single labels"),
        ("/api/compare?a=x&b=y", 404, "there is no 'x'"),
        ("/api/nothing", 404, "GET /api/nothing: Not Found"),
        ("/app.py", 404, "there is no /app.py"),
        ("/..%2fapp.py", 404, "Not Found"),
        ("/%2e%2e", 404, "there is no /.."),
        ("/page", 404, "there is no /page"),
    ],
)
def test_what_cannot_be_answered_is_one_line(
    path: str, status: int, words: str, root: Path
) -> None:
    response = client_of(root).get(path)
    assert response.status_code == status
    assert words in response.json()["error"]
    assert "\n" not in response.json()["error"]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8001", "127.0.0.1.evil.example", ""]
)
def test_other_hosts_are_refused(host: str, root: Path) -> None:
    client = client_of(root)
    assert client.get("/api/runs", headers={"host": host}).status_code == 403
    for own in ("localhost:9000", "127.0.0.1", "[::1]:8001"):
        assert client.get("/api/runs", headers={"host": own}).status_code == 200


def test_the_page_loads_nothing_from_elsewhere(root: Path) -> None:
    client = client_of(root)
    page = client.get("/")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    names = [file.name for file in PAGE.iterdir() if file.suffix in (".js", ".css")]
    for name in names:
        text = client.get(f"/{name}").text
        addresses = set(re.findall(r"https?://[^\s\"'`)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert addresses == set(), name
        for imported in re.findall(r'(?:from|import)\s*\(?["\']\./([^"\']+)', text):
            assert imported in names, f"{name} imports {imported}"
    for used in re.findall(r'(?:src|href)="/?([\w.]+\.(?:js|css))"', page.text):
        assert used in names


def result(outcomes: str) -> dict[str, Any]:
    right = outcomes.count("1") / len(outcomes)
    return {
        "accuracy": right,
        "ci95": [right / 2, 1.0],
        "num_problems": len(outcomes),
        "temperature": 0.0,
        "split": "test",
        "outcomes": {str(i): outcome for i, outcome in enumerate(outcomes)},
    }


def test_results_and_their_paired_test(root: Path) -> None:
    for name, outcomes in (("a", "11110000"), ("base", "10000000")):
        folder = root / name / ("" if name == "a" else "eval")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps({"math": result(outcomes)}))
    (root / "named.json").write_text(json.dumps({"math": result("11111111")}))
    (root / "named.samples").mkdir()
    (root / "three" / "results.json").write_text('[{"label": "a series"}]')
    (root / "other.json").write_text(json.dumps({"math": result("1")}))
    client = client_of(root)
    found = {r["id"]: r for r in client.get("/api/evaluations").json()["results"]}
    assert set(found) == {"a/results.json", "base/eval/results.json", "named.json"}
    assert found["a/results.json"]["run"] == "a"
    assert found["base/eval/results.json"]["run"] is None
    assert found["base/eval/results.json"]["name"] == "base/eval"
    task = found["a/results.json"]["tasks"]["math"]
    assert (task["accuracy"], task["num_problems"], task["paired"]) == (0.5, 8, True)
    assert task["figures"] == {}
    assert task["settings"] == {"temperature": "0.0", "split": "test"}
    query = {"a": "a/results.json", "b": "base/eval/results.json"}
    (row,) = client.get("/api/compare", params=query).json()["rows"]
    assert (row["only_a"], row["only_b"], row["p_value"]) == (3, 0, 0.25)


def test_nothing_is_deleted_without_the_option_and_the_key(root: Path) -> None:
    order = {"run": "a", "part": None}
    refused = client_of(root).post("/api/delete", json=order, headers={"x-board-key": KEY})
    assert refused.status_code == 403
    assert "allow_delete" in refused.json()["error"]
    client = client_of(root, KEY)
    for headers in ({}, {"x-board-key": ""}, {"x-board-key": KEY + "x"}):
        assert client.post("/api/delete", json=order, headers=headers).status_code == 403
    as_form = {"x-board-key": KEY, "content-type": "text/plain"}
    assert client.post("/api/delete", content=json.dumps(order), headers=as_form).status_code == 400
    assert client.get("/api/delete").status_code == 405
    assert (root / "a" / "checkpoint-4").is_dir()


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ({"run": "..", "part": None}, "there is no '..'"),
        ({"run": "three", "part": None}, "there is no 'three'"),
        ({"run": "a", "part": "../three"}, "is no checkpoint"),
        ({"run": "a", "part": "checkpoint-4/.."}, "is no checkpoint"),
        ({"run": "a", "part": "metrics.jsonl"}, "is no checkpoint"),
        ({"run": "a", "part": "checkpoint-5"}, "does not exist"),
        ({"run": "a", "part": ""}, "is no checkpoint"),
        ({"run": "a", "part": 4}, "part a text or null"),
        ({"run": None}, "run must be a text"),
        ({}, "run must be a text"),
        ({"run": "linked", "part": None}, "there is no 'linked'"),
        ({"run": "a", "part": "checkpoint-9"}, "is no checkpoint"),
    ],
)
def test_only_runs_and_checkpoints_are_deleted(
    order: dict[str, Any], words: str, root: Path, tmp_path: Path
) -> None:
    make_run(tmp_path / "outside")
    (root / "linked").symlink_to(tmp_path / "outside")
    (root / "a" / "checkpoint-9").symlink_to(tmp_path / "outside" / "checkpoint-4")
    before = sorted(path for path in tmp_path.rglob("*"))
    client = client_of(root, KEY)
    response = client.post("/api/delete", json=order, headers={"x-board-key": KEY})
    assert response.status_code in (400, 404)
    assert words in response.json()["error"]
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_deleting(root: Path) -> None:
    make_run(root / "child", model={"name": str(root / "a" / "checkpoint-4")})
    client = client_of(root, KEY)
    runs_of(client)
    usage = client.get("/api/disk", params={"run": "a"}).json()
    (checkpoint,) = [part for part in usage["parts"] if part["kind"] == "checkpoint"]
    assert checkpoint == {
        "name": "checkpoint-4", "kind": "checkpoint", "bytes": 5000, "deletable": True,
        "used_by": ["child"],
    }  # fmt: skip
    assert usage["used_by"] == ["child"]

    def delete(run: str, part: str | None) -> Any:
        order = {"run": run, "part": part}
        return client.post("/api/delete", json=order, headers={"x-board-key": KEY}).json()

    with writing(root / "three" / "b"):
        assert delete("three/b", None) == {"error": "three/b: the run is being written to"}
    assert delete("a", "checkpoint-4") == {"freed": 5000}
    assert not (root / "a" / "checkpoint-4").exists()
    assert (root / "a" / "metrics.jsonl").is_file()
    assert delete("three/b", None)["freed"] > 5000
    assert sorted(path.name for path in (root / "three").iterdir()) == []
    assert set(runs_of(client)) == {"a", "child"}


def test_a_board_of_one_run(root: Path) -> None:
    client = client_of(root / "a", KEY)
    assert set(runs_of(client)) == {"."}
    assert client.get("/api/curves?run=.&metric=loss").json()["runs"]["."]["last_step"] == 4
    refused = client.post("/api/delete", json={"run": "."}, headers={"x-board-key": KEY})
    assert "open it on the folder above" in refused.json()["error"]


def test_odd_folders(tmp_path: Path) -> None:
    root = tmp_path / "results"
    for name, files in {
        "empty": {},
        "no metrics": {"run.json": "{}", "config.yaml": "{}"},
        "broken": {"metrics.jsonl": "{{{\n", "run.json": "[", "config.yaml": ":\n- ["},
        "ünï </script>": {"metrics.jsonl": '{"step": 1, "loss": NaN}\n'},
        "only metrics": {"metrics.jsonl": ""},
        "tag": {"metrics.jsonl": "", "config.yaml": "!!python/object:os.system {}"},
    }.items():
        (root / name).mkdir(parents=True)
        for file, text in files.items():
            (root / name / file).write_text(text)
    client = client_of(root)
    runs = runs_of(client)
    assert set(runs) == {"no metrics", "broken", "ünï </script>", "only metrics", "tag"}
    for run in runs:
        assert client.get("/api/curves", params={"run": run}).status_code == 200
        assert client.get("/api/samples", params={"run": run}).json()["kinds"] == {}
        assert client.get("/api/disk", params={"run": run}).status_code == 200
    assert client_of(tmp_path / "nothing here").get("/api/runs").json()["runs"] == []
