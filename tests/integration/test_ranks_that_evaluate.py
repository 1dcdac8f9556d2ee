"""Ranks of `posttrain eval` and `generate` that differ, or of which one is gone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ranks
import tiny

from posttrain.runs.config import parse_config
from posttrain.runs.train import train

pytestmark = pytest.mark.distributed
HOST = socket.gethostname()


def own_rank(folder: Path, arguments: list[str], environment: dict[str, str], output: Path) -> None:
    os.chdir(folder)
    ranks._rank(arguments, environment, output)


@contextmanager
def started(
    folder: Path, calls: Sequence[Sequence[Any]], folders: Sequence[Path] | None = None
) -> Iterator[list[Any]]:
    """Yield the processes of ranks, each with words of its own, and a working folder."""
    variables = os.environ | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(len(calls))}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ranks._free_port())}
    folder.mkdir()
    processes = []
    for rank, call in enumerate(calls):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        where = folder if folders is None else folders[rank]
        process = ranks.context.Process(
            target=own_rank,
            args=(where, list(map(str, call)), variables | own, folder / f"{rank}"),
        )
        process.start()
        processes.append(process)
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def errors(processes: list[Any], folder: Path, within: float = 120) -> list[str]:
    """Return what each rank wrote to stderr; all must have ended with exit code 2."""
    end = time.monotonic() + within
    for process in processes:
        process.join(max(0.1, end - time.monotonic()))
    said = [(folder / f"{rank}.stderr").read_text() for rank in range(len(processes))]
    assert [process.exitcode for process in processes] == [2] * len(processes), said
    return said


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return train(parse_config(tiny.run_config(folder, "sft", max_steps=1), "test"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"Tom has {i}"}) + "\n" for i in range(4000)))
    return file


def call(name: str, model: Any, rows: Any, output: Path) -> list[Any]:
    if name == "eval":
        words = ["eval", model, "--tasks", "word_problems", "--output", output]
    else:
        words = ["generate", model, "--file", rows, "--output", output / "rows.jsonl"]
    return [*words, "--max-new-tokens", 8]


@pytest.mark.parametrize("name", ["eval", "generate"])
def test_other_settings_are_named(name: str, model: Path, rows: Path, tmp_path: Path) -> None:
    shared = call(name, model, rows, tmp_path / "results")
    calls = [[*shared, "--seed", seed] for seed in (8, 9)]
    with started(tmp_path / "said", calls) as processes:
        said = errors(processes, tmp_path / "said")
    words = f"rank 0 ({HOST}) and rank 1 ({HOST}) have different settings: "
    assert said == [f"error: {words}seed is 8 and 9\n"] * 2
    assert [file.name for file in tmp_path.iterdir()] == ["said"], "nothing is written"


@pytest.mark.slow  # the message is tested in one process
@pytest.mark.parametrize(
    ("name", "number", "message"),
    [
        ("generate", 3, "3 ranks do not divide the "),
        pytest.param("eval", 3, "3 ranks do not divide the ", marks=pytest.mark.slow),
        pytest.param("eval", 1, "2 does not divide the 1 rank(s): ", marks=pytest.mark.slow),
    ],
)
def test_ranks_that_cannot_split_a_model_name_the_option(
    name: str, number: int, message: str, model: Path, rows: Path, tmp_path: Path
) -> None:
    words = call(name, model, rows, tmp_path / "results")
    words += ["--tensor-parallel", max(number, 2)]
    with started(tmp_path / "said", [words] * number) as processes:
        for said in errors(processes, tmp_path / "said"):
            (line,) = [x for x in said.splitlines() if "[c10d]" not in x]  # launch hides torch's
            assert line.startswith(f"error: --tensor-parallel: {message}")
    assert [file.name for file in tmp_path.iterdir()] == ["said"], "nothing is written"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eval", "generate"])
def test_other_files_of_one_name_are_named(
    name: str, model: Path, rows: Path, tmp_path: Path
) -> None:
    """Each machine has a folder of its own, with a model or rows that are not the other's."""
    folders = [tmp_path / "a", tmp_path / "b"]
    other = tmp_path / "other"
    tree = tiny.run_config(other, "sft", max_steps=2)
    for folder, source in zip(folders, (model, train(parse_config(tree, "test")))):
        folder.mkdir()
        shutil.copytree(source, folder / "model")
        shutil.copy(rows, folder / "rows.jsonl")
    before = sorted(map(str, tmp_path.rglob("*")))
    words = call(name, "model", "rows.jsonl", tmp_path / "results")
    with started(tmp_path / "said", [words] * 2, folders) as processes:
        for line in errors(processes, tmp_path / "said"):
            assert "have different inputs: " in line
            assert "weights is " in line
            assert line.endswith(": give the same files on all machines\n")
            assert line.count("\n") == 1
    shutil.rmtree(tmp_path / "said")
    assert sorted(map(str, tmp_path.rglob("*"))) == before, "nothing is written"


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGSTOP, signal.SIGKILL])
@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("name", ["eval", "generate"])
def test_a_rank_that_is_gone_is_named(
    name: str, lost: int, end: int, model: Path, rows: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    words = [*call(name, model, rows, results), "--rank-timeout", 8]
    begun = {"eval": "results.samples/word_problems.jsonl", "generate": "rows.jsonl.parts/*.jsonl"}
    with started(tmp_path / "said", [words] * 2) as processes:
        wait_until(lambda: any(results.glob(begun[name])), processes)
        os.kill(processes[lost].pid, end)
        stopped = time.monotonic()
        other = 1 - lost
        processes[other].join(90)
        took = time.monotonic() - stopped
        lines = (tmp_path / "said" / f"{other}.stderr").read_text().splitlines()
        # launch sets TORCH_CPP_LOG_LEVEL, which hides torch's own lines
        said = [line for line in lines if line.startswith("error: ")]
        assert processes[other].exitcode == 2, lines
    assert took < 60
    assert said == lines[-1:], lines
    assert said[0].startswith(f"error: rank {other} ({HOST}): ")
    assert f"rank {lost}" in said[0].removeprefix(f"error: rank {other}"), "also by its machine"
    assert not (results / "results.json").exists()
    assert not (results / "rows.jsonl").exists()


def wait_until(ready: Callable[[], bool], processes: list[Any]) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        assert all(process.is_alive() for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.02)
