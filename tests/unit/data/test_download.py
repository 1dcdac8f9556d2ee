"""`posttrain data download` against a server on this machine: resumed, checked, clear errors."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from posttrain.cli.main import main
from posttrain.data import download
from posttrain.data.config import DataConfig
from posttrain.data.download import MANIFEST, chosen, size
from posttrain.data.load import load_rows
from posttrain.data.origin import HubFiles, Origin, describe, origin_of
from posttrain.data.sets import gsm8k, hh_rlhf, liar, stack_exchange_paired

TRAIN = b'{"question": "What is 1+1?", "answer": "#### 2"}\n' * 4_000
TEST = b'{"question": "What is 1+2?", "answer": "#### 3"}\n'
ROW = b"1.json\ttrue\tIt rains.\tx\tx\tx\tx\tx\t0\t0\t0\t0\t0\tx\n"
PAIR = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}


@dataclass
class Server:
    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Range of each request."""
    breaks: list[int] = field(default_factory=list)
    """After how many bytes the next answers break off."""
    ranges: bool = True
    moved: int = 0
    """By how many bytes its ranges begin too late."""
    tags: bool = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.asked.append((self.path, wanted))
            content = state.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            tag = f'"{hashlib.sha256(content).hexdigest()[:8]}"'
            same = self.headers.get("If-Range") in (None, tag)
            start = int(wanted[6:-1]) if wanted and state.ranges and same else 0
            if start >= len(content) and start:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            start += state.moved if start else 0
            self.send_response(206 if start else 200)
            if start:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
                )
            if state.tags:
                self.send_header("ETag", tag)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            most = state.breaks.pop(0) if state.breaks else len(content)
            self.wfile.write(content[start : start + most])

        def log_message(self, *_: Any) -> None:
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{served.server_address[1]}"
    state.files = {"/train.jsonl": TRAIN, "/test.jsonl": TEST}
    urls = tuple(state.url + path for path in state.files)
    monkeypatch.setattr(gsm8k, "ORIGIN", Origin("MIT", "a page", {}, ("sft", "rl"), urls))
    monkeypatch.setattr(download, "PAUSE", 0.0)
    yield state
    served.shutdown()
    served.server_close()
    thread.join()


def fetch(folder: Path, name: str = "gsm8k") -> list[str]:
    said: list[str] = []
    download.download([name], folder, said.append)
    return said


def complaint(folder: Path, name: str = "gsm8k") -> str:
    with pytest.raises((ValueError, OSError), match=r".+") as caught:
        fetch(folder, name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def holds(file: Path, content: bytes) -> bool:
    """Not a bare comparison: pytest would take minutes to show where two long ones differ."""
    return file.read_bytes() == content


def names(folder: Path) -> list[str]:
    return sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())


def test_what_is_fetched_is_what_the_path_of_the_data_reads(server: Server, tmp_path: Path) -> None:
    said = fetch(tmp_path)
    folder = tmp_path / "gsm8k"
    assert names(folder) == [MANIFEST, "test.jsonl", "train.jsonl"]
    assert holds(folder / "train.jsonl", TRAIN)
    entry = json.loads((folder / MANIFEST).read_text())["files"]["train.jsonl"]
    assert entry == {
        "url": f"{server.url}/train.jsonl",
        "bytes": len(TRAIN),
        "sha256": hashlib.sha256(TRAIN).hexdigest(),
    }
    assert said[0] == "gsm8k: licence MIT; a page"
    assert said[1] == "  train.jsonl  196.0 kB"
    assert said[-1] == f"gsm8k: 2 files, 196.0 kB; data: {{name: gsm8k, path: {folder}}}"
    assert len(load_rows(DataConfig(name="gsm8k", path=str(folder)))) == 4_000


def test_a_finished_file_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    fetch(tmp_path)
    server.asked.clear()
    assert fetch(tmp_path) == ["gsm8k: already fetched, 2 files, all checksums match"]
    assert server.asked == []
    (tmp_path / "gsm8k/test.jsonl").unlink()
    fetch(tmp_path)
    assert server.asked == [("/test.jsonl", None)]


def test_a_broken_connection_is_taken_up_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.breaks = [70_000, 50_000]
    said = fetch(tmp_path)
    assert server.asked[:3] == [
        ("/train.jsonl", None),
        ("/train.jsonl", "bytes=70000-"),
        ("/train.jsonl", "bytes=120000-"),
    ]
    assert "  train.jsonl  196.0 kB, resuming at 70.0 kB" in said
    assert holds(tmp_path / "gsm8k/train.jsonl", TRAIN)


def test_the_next_call_goes_on_with_what_the_last_one_left(server: Server, tmp_path: Path) -> None:
    server.breaks = [10_000] * download.TRIES
    text = complaint(tmp_path)
    assert (
        f"{server.url}/train.jsonl: the connection broke 4 times, the last time after 40.0 k"
        in text
    )
    assert names(tmp_path / "gsm8k") == ["train.jsonl.part", "train.jsonl.part.from"]
    server.asked.clear()
    fetch(tmp_path)
    assert server.asked[0] == ("/train.jsonl", "bytes=40000-")
    assert holds(tmp_path / "gsm8k/train.jsonl", TRAIN)
    assert names(tmp_path / "gsm8k") == [MANIFEST, "test.jsonl", "train.jsonl"]


@pytest.mark.parametrize("tags", [True, False])
def test_a_server_without_ranges_sends_all_of_it_again(
    server: Server, tmp_path: Path, tags: bool
) -> None:
    server.ranges, server.tags, server.breaks = False, tags, [70_000]
    fetch(tmp_path)
    assert server.asked[1] == ("/train.jsonl", "bytes=70000-")
    assert holds(tmp_path / "gsm8k/train.jsonl", TRAIN)


def test_another_range_than_was_asked_for_is_not_joined(server: Server, tmp_path: Path) -> None:
    server.moved, server.breaks = 7, [70_000]
    fetch(tmp_path)
    ranges = [wanted for path, wanted in server.asked if path == "/train.jsonl"]
    assert ranges == [None, "bytes=70000-", None]
    assert holds(tmp_path / "gsm8k/train.jsonl", TRAIN)


def test_two_versions_of_a_file_are_never_joined(server: Server, tmp_path: Path) -> None:
    server.breaks = [70_000] + [0] * (download.TRIES - 1)
    complaint(tmp_path)
    server.files["/train.jsonl"] = other = TRAIN.replace(b"1+1", b"7+7")
    fetch(tmp_path)
    assert holds(tmp_path / "gsm8k/train.jsonl", other)


@pytest.mark.parametrize("length", [len(TRAIN), len(TRAIN) + 5])
def test_a_part_that_has_all_bytes_or_more(server: Server, tmp_path: Path, length: int) -> None:
    (tmp_path / "gsm8k").mkdir()
    part = tmp_path / "gsm8k/train.jsonl.part"
    part.write_bytes((TRAIN + b"12345")[:length])
    Path(f"{part}.from").write_text(f"{server.url}/train.jsonl\n")
    fetch(tmp_path)
    assert holds(tmp_path / "gsm8k/train.jsonl", TRAIN)


@pytest.mark.parametrize("origin", ["https://example.org/train.jsonl\n", None])
def test_a_part_of_another_address_is_not_used(
    server: Server, tmp_path: Path, origin: str | None
) -> None:
    (tmp_path / "gsm8k").mkdir()
    part = tmp_path / "gsm8k/train.jsonl.part"
    part.write_bytes(b"x" * 100)
    if origin is not None:
        Path(f"{part}.from").write_text(origin)
    fetch(tmp_path)
    assert server.asked[0] == ("/train.jsonl", None)
    assert holds(tmp_path / "gsm8k/train.jsonl", TRAIN)


def test_a_call_that_is_killed_once_a_file_has_its_name(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download, "_discard", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch(tmp_path)
    fetch(tmp_path)
    assert [path for path, _ in server.asked] == ["/train.jsonl", "/test.jsonl"]


def test_a_file_whose_sum_is_another_is_named(server: Server, tmp_path: Path) -> None:
    fetch(tmp_path)
    file = tmp_path / "gsm8k/train.jsonl"
    for content in (TRAIN[:-1], TRAIN.replace(b"1+1", b"1+3")):
        file.write_bytes(content)
        assert complaint(tmp_path) == (
            f"gsm8k: {file}: its sha256 differs from manifest.json: delete it and run again"
        )
    file.unlink()
    fetch(tmp_path)
    assert holds(file, TRAIN)


def test_a_file_of_somebody_else_is_left_alone(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "gsm8k/train.jsonl"
    file.parent.mkdir()
    file.write_bytes(b"mine")
    assert complaint(tmp_path) == f"gsm8k: {file} was not written by this command: move it away"
    assert file.read_bytes() == b"mine"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": {"a": {}}, "complete": true}', "{}"])
def test_a_broken_manifest(server: Server, tmp_path: Path, content: str) -> None:
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / MANIFEST).write_text(content)
    assert "manifest.json: not a manifest of this command: delete " in complaint(tmp_path)


def test_no_connection_is_one_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    urls = ("http://127.0.0.1:9/train.jsonl",)
    monkeypatch.setattr(gsm8k, "ORIGIN", Origin("MIT", "a page", {}, ("sft",), urls))
    monkeypatch.setattr(
        sys, "argv", ["posttrain", "data", "download", "gsm8k", "--output-dir", str(tmp_path)]
    )
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: gsm8k: no connection to 127.0.0.1:9 (")
    assert error.endswith(
        "copy http://127.0.0.1:9/train.jsonl here by hand and set data.path to its folder\n"
    )
    assert error.count("\n") == 1


def test_one_that_can_not_be_had_does_not_keep_the_others(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del server.files["/test.jsonl"]
    assert "test.jsonl: the server responded 404" in complaint(tmp_path)
    server.files["/train.tsv"] = ROW
    monkeypatch.setattr(liar, "ORIGIN", Origin("x", "y", {}, (), (f"{server.url}/train.tsv",)))
    said: list[str] = []
    with pytest.raises(ValueError, match=r"^1 of 2 data sets were not fetched: gsm8k \(reasons ab"):
        download.download(["gsm8k", "liar"], tmp_path, said.append)
    assert any(line.startswith("gsm8k: ") and "404" in line for line in said)
    assert (tmp_path / "liar/train.tsv").read_bytes() == ROW
    assert said[-1] == f"{len(ROW)} B in total"


def test_one_server_that_is_down_does_not_keep_the_others(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/train.tsv"] = ROW
    nowhere = Origin("x", "y", {}, (), ("http://127.0.0.1:9/train.jsonl",))
    monkeypatch.setattr(gsm8k, "ORIGIN", nowhere)
    monkeypatch.setattr(liar, "ORIGIN", Origin("x", "y", {}, (), (f"{server.url}/train.tsv",)))
    with pytest.raises(ValueError, match=r"^1 of 2 data sets were not fetched: gsm8k"):
        download.download(["gsm8k", "liar"], tmp_path, lambda _: None)
    assert (tmp_path / "liar/train.tsv").read_bytes() == ROW
    # two in a row: it is the network
    monkeypatch.setattr(hh_rlhf, "ORIGIN", nowhere)
    with pytest.raises(ConnectionError, match=r"^no connection to 127.0.0.1:9"):
        download.download(["gsm8k", "hh_rlhf", "liar"], tmp_path, lambda _: None)


def listed(folder: Path, *names: str) -> list[str]:
    said: list[str] = []
    download.download(names, folder, said.append, dry_run=True)
    return said


def test_a_dry_run_says_the_sizes_and_fetches_nothing(server: Server, tmp_path: Path) -> None:
    head = "gsm8k: licence MIT; a page"
    assert listed(tmp_path, "gsm8k") == [
        head,
        "  train.jsonl  196.0 kB",
        "  test.jsonl  49 B",
        "196.0 kB to fetch",
    ]
    assert names(tmp_path) == []
    fetch(tmp_path)
    (tmp_path / "gsm8k/test.jsonl").unlink()
    assert listed(tmp_path, "gsm8k") == [
        head,
        "  train.jsonl  196.0 kB, already fetched",
        "  test.jsonl  49 B",
        "49 B to fetch",
    ]
    del server.files["/test.jsonl"]
    with pytest.raises(ValueError, match=r"^gsm8k: .*test.jsonl: the server responded 404"):
        listed(tmp_path, "gsm8k")


# --- archives -------------------------------------------------------------------------------------


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_an_archive_is_unpacked_and_its_files_are_checked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    content = {"train.tsv": ROW, "more/README": b"read"}
    server.files[f"/liar.{kind}"] = zipped(content) if kind == "zip" else tarred(content)
    urls = (f"{server.url}/liar.{kind}",)
    monkeypatch.setattr(liar, "ORIGIN", Origin("x", "y", {}, (), urls))
    fetch(tmp_path, "liar")
    folder = tmp_path / "liar"
    assert names(folder) == sorted([f"liar.{kind}", MANIFEST, "more/README", "train.tsv"])
    assert len(load_rows(DataConfig(name="liar", path=str(folder)))) == 1
    server.asked.clear()
    fetch(tmp_path, "liar")
    (folder / "train.tsv").unlink()  # comes back from the archive
    fetch(tmp_path, "liar")
    assert (folder / "train.tsv").read_bytes() == ROW
    assert server.asked == []
    (folder / "train.tsv").write_bytes(b"other")
    assert "train.tsv: its sha256 differs from manifest.json" in complaint(tmp_path, "liar")


def test_a_call_that_is_killed_while_it_unpacks(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/liar.zip"] = zipped({"train.tsv": ROW, "test.tsv": ROW})
    monkeypatch.setattr(liar, "ORIGIN", Origin("x", "y", {}, (), (f"{server.url}/liar.zip",)))

    def killed(archive: zipfile.ZipFile, folder: Path) -> None:
        archive.extract("test.tsv", folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extractall", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch(tmp_path, "liar")
    fetch(tmp_path, "liar")
    assert names(tmp_path / "liar") == ["liar.zip", MANIFEST, "test.tsv", "train.tsv"]


def test_a_broken_archive(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/liar.zip"] = b"PK no"
    monkeypatch.setattr(liar, "ORIGIN", Origin("x", "y", {}, (), (f"{server.url}/liar.zip",)))
    assert "liar.zip cannot be unpacked (" in complaint(tmp_path, "liar")


def test_an_archive_writes_nothing_outside_its_folder(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, pack in (("zip", zipped), ("tgz", tarred)):
        server.files[f"/{kind}.{kind}"] = pack({"../../out.txt": b"x", "train.tsv": ROW})
        urls = (f"{server.url}/{kind}.{kind}",)
        monkeypatch.setattr(liar, "ORIGIN", Origin("x", "y", {}, (), urls))
        with contextlib.suppress(ValueError):
            fetch(tmp_path / kind, "liar")
        assert not list(tmp_path.glob("out.txt"))
        assert not list((tmp_path / kind).glob("out.txt"))


# --- the hub --------------------------------------------------------------------------------------


@pytest.fixture
def hub(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    content = (json.dumps(PAIR) + "\n").encode()
    served = {"harmless-base/train.jsonl": content * 3, "harmless-base/test.jsonl": content}
    listing = [
        {
            "rfilename": name,
            "size": len(text),
            "lfs": {"sha256": hashlib.sha256(text).hexdigest(), "size": len(text)},
        }
        for name, text in served.items()
    ]
    listing += [{"rfilename": "README.md"}, {"rfilename": "red-team/train.jsonl"}]
    server.files = {f"/datasets/a/b/resolve/c0ffee/{name}": text for name, text in served.items()}
    server.files["/api/datasets/a/b?blobs=true"] = json.dumps(
        {"sha": "c0ffee", "siblings": listing}
    ).encode()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    files = (HubFiles("a/b", "h*/t*.jsonl"),)
    monkeypatch.setattr(hh_rlhf, "ORIGIN", Origin("MIT", "p", {}, ("preference",), hub=files))
    return server


def test_files_of_the_hub(hub: Server, tmp_path: Path) -> None:
    fetch(tmp_path, "hh_rlhf")
    folder = tmp_path / "hh_rlhf"
    assert names(folder) == ["harmless-base/test.jsonl", "harmless-base/train.jsonl", MANIFEST]
    rows = [
        load_rows(DataConfig(name="hh_rlhf", path=str(folder), split=s)) for s in ("train", "test")
    ]
    assert [len(part) for part in rows] == [3, 1]
    hub.asked.clear()
    fetch(tmp_path, "hh_rlhf")
    assert hub.asked == [], "a data set that is there needs no network"


def test_the_hub_lists_sizes(hub: Server, tmp_path: Path) -> None:
    length = len(json.dumps(PAIR)) + 1
    assert listed(tmp_path, "hh_rlhf")[1:] == [
        f"  harmless-base/test.jsonl  {length} B",
        f"  harmless-base/train.jsonl  {3 * length} B",
        f"{4 * length} B to fetch",
    ]
    assert [path for path, _ in hub.asked] == ["/api/datasets/a/b?blobs=true"]


def test_other_bytes_than_the_hub_tells_are_thrown_away(hub: Server, tmp_path: Path) -> None:
    place = "/datasets/a/b/resolve/c0ffee/harmless-base/test.jsonl"
    right = hub.files[place]
    hub.files[place] = right.replace(b"Hello", b"Hallo")
    text = complaint(tmp_path, "hh_rlhf")
    assert "test.jsonl: expected sha256 " in text
    assert "the download was discarded, run again" in text
    assert names(tmp_path) == []
    hub.files[place] = right
    fetch(tmp_path, "hh_rlhf")


def test_a_file_that_changed_on_the_hub_between_two_calls(hub: Server, tmp_path: Path) -> None:
    later = "/datasets/a/b/resolve/c0ffee/harmless-base/train.jsonl"
    content = hub.files.pop(later)
    assert "the server responded 404" in complaint(tmp_path, "hh_rlhf")
    hub.files[later] = content
    url = "/api/datasets/a/b?blobs=true"
    listing = json.loads(hub.files[url])
    listing["siblings"][1]["lfs"]["sha256"] = "0" * 64
    hub.files[url] = json.dumps(listing).encode()
    assert "test.jsonl has changed at its source: delete" in complaint(tmp_path, "hh_rlhf")


def test_a_hub_that_answers_something_else(
    hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for answer in (b"<html>", b"[]", b'{"siblings": [{}], "sha": "x"}', b'{"siblings": 3}'):
        hub.files["/api/datasets/a/b?blobs=true"] = answer
        assert "the response is not a file listing of the hub" in complaint(tmp_path, "hh_rlhf")
    hub.files["/api/datasets/a/b?blobs=true"] = b'{"siblings": [], "sha": "x"}'
    assert "a/b on the hub no longer has a file h*/t*.jsonl" in complaint(tmp_path, "hh_rlhf")


def test_folders_as_the_hub_has_them_are_read(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pair = {"question": "q", "response_j": "a", "response_k": "b"}
    for part, rows in (("rl", 2), ("evaluation", 1)):
        place = tmp_path / "stack" / part / "x-00000-of-00001.parquet"
        place.parent.mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([pair] * rows), place)
    path = str(tmp_path / "stack")
    assert [len(stack_exchange_paired.load(s, path=path)) for s in ("train", "test")] == [2, 1]
    chat = {"prompt": "q", "chosen": "a", "rejected": "b"}
    file = tmp_path / "ultra" / "test_prefs-00000-of-00001.parquet"
    file.parent.mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([chat]), file)
    data = DataConfig(name="ultrafeedback", path=str(file.parent), split="test")
    assert len(load_rows(data)) == 1


# --- which, and what is listed --------------------------------------------------------------------


def test_which_data_sets_are_fetched() -> None:
    every = chosen([])
    assert {"gsm8k", "liar", "hh_rlhf", "svamp"} <= set(every)
    assert not {"text", "word_problems", "programs", "word_problem_steps"} & set(every)
    sft, rl = chosen([], sft_only=True), chosen([], rl_only=True)
    assert {"alpaca", "codealpaca", "magicoder", "smoltalk", "gsm8k"} <= set(sft)
    assert {"gsm8k", "math", "mbpp", "ultrafeedback"} <= set(rl)
    assert "hh_rlhf" not in sft
    assert "alpaca" not in rl
    assert chosen(["liar", "gsm8k"]) == ["liar", "gsm8k"]


@pytest.mark.parametrize(
    ("given", "options", "expected"),
    [
        (
            ["gsm8k"],
            {"sft_only": True},
            "sft_only: give only one of names, sft_only and rl_only",
        ),
        ([], {"sft_only": True, "rl_only": True}, "give only one of names"),
        (["gsm9k"], {}, "no data set 'gsm9k'; did you mean gsm8k?"),
        (["zzz"], {}, "no data set 'zzz'; known: advbench, alpaca"),
        (
            ["word_problems"],
            {},
            "word_problems has no files to fetch; data sets with files: advbench, alpaca",
        ),
    ],
)
def test_names_that_can_not_be_fetched(given: Any, options: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=r".+") as caught:
        chosen(given, **options)
    assert expected in str(caught.value)


def test_sizes() -> None:
    given = (0, 999, 1_000, 196_049, 1_500_000, 26_000_000_000)
    assert [size(n) for n in given] == ["0 B", "999 B", "1.0 kB", "196.0 kB", "1.5 MB", "26.0 GB"]


NAMED = (
    "alpaca",
    "codealpaca",
    "fever",
    "gsm8k",
    "hh_rlhf",
    "humaneval",
    "liar",
    "liar_plus",
    "magicoder",
    "math",
    "mbpp",
    "metamathqa",
    "semeval2020_task11",
    "smoltalk",
    "stack_exchange_paired",
    "svamp",
    "ultrafeedback",
)


@pytest.mark.parametrize("name", NAMED)
def test_where_a_data_set_comes_from_is_declared(name: str) -> None:
    origin = origin_of(name)
    assert origin is not None
    assert origin.licence
    assert origin.rows
    assert origin.page.startswith("https://")
    assert origin.urls or origin.hub
    assert all(url.startswith("https://") for url in origin.urls)
    first, second = describe(name, 24)
    assert first.startswith(name)
    assert origin.licence in second
    assert all(split in second for split in origin.rows)


def test_a_set_by_name_is_read_from_where_it_was_fetched_to(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fetch(Path("data"))
    assert len(load_rows(DataConfig(name="gsm8k"))) == 4_000
    (tmp_path / "data/gsm8k" / MANIFEST).unlink()  # then the folder is none of ours
    with pytest.raises((ValueError, OSError), match="openai/gsm8k"):
        load_rows(DataConfig(name="gsm8k"))
