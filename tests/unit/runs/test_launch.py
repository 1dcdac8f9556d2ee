"""Settings of `posttrain launch`, and what is said of ranks that differ, fail or are gone."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import typer
from torch.distributed.elastic.multiprocessing import SignalException

from posttrain.cli import launch as command
from posttrain.cli.main import app
from posttrain.common import distributed
from posttrain.common.errors import SettingError
from posttrain.runs import lost, preflight
from posttrain.runs.config import dump, parse_config
from posttrain.runs.launch import (
    LaunchSettings,
    check,
    described,
    exit_code,
    passing_signals_on,
    watch_failures,
)
from posttrain.runs.lost import LostRank, naming_lost_ranks, telling_alive

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"nproc": 0}, "nproc: expected at least 1, got 0"),
        ({"nnodes": 0}, "nnodes: expected at least 1"),
        ({"nnodes": 2, "node_rank": 2, "address": "h:1"}, "node_rank: expected 0 to 1, got 2"),
        ({"node_rank": -1}, "node_rank: expected 0 to 0, got -1"),
        ({"max_restarts": -1}, "max_restarts: expected at least 0"),
        ({"address": "localhost:29500"}, "address: is for several nodes"),
        (
            {"nnodes": 2},
            "address: expected HOST:PORT of node 0, the same on every node, got nothing",
        ),
        ({"nnodes": 2, "address": "localhost"}, "address: expected HOST:PORT"),
        ({"nnodes": 2, "address": ":29500"}, "address: expected HOST:PORT"),
        ({"nnodes": 2, "address": "localhost:0"}, "address: expected HOST:PORT"),
        ({"nnodes": 2, "address": "localhost:70000"}, "address: expected HOST:PORT"),
        ({"nnodes": 2, "address": "localhost:x"}, "address: expected HOST:PORT"),
        ({"nnodes": 2, "min_nodes": 0}, "nnodes: expected MIN:MAX with 1 <= MIN < MAX, got 0:2"),
        ({"nnodes": 2, "min_nodes": 2}, "nnodes: expected MIN:MAX with 1 <= MIN < MAX, got 2:2"),
        (
            {"nnodes": 2, "min_nodes": 1, "address": "localhost:29500"},
            "max_restarts: expected at least 1, since each machine that is lost takes a restart",
        ),
        ({"timeout": 0}, "timeout: expected 1 to 1,000,000 seconds, got 0"),
        ({"timeout": -3}, "timeout: expected 1 to"),
        ({"timeout": float("nan")}, "timeout: expected 1 to 1,000,000 seconds, got nan"),
        ({"timeout": float("inf")}, "timeout: expected 1 to 1,000,000 seconds, got inf"),
    ],
)
def test_a_wrong_setting_is_named(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(
        SettingError, match="^" + words[:60].replace("(", r"\(").split(" is not")[0][:20]
    ):
        check(LaunchSettings(**keys))
    with pytest.raises(SettingError) as found:
        check(LaunchSettings(**keys))
    assert words in str(found.value)


def test_a_host_without_an_address(monkeypatch: Any) -> None:
    def unknown(*arguments: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(SettingError, match="address: nowhere is not known here"):
        check(LaunchSettings(nnodes=2, address="nowhere:29500"))


def test_more_ranks_than_gpus_are_refused(monkeypatch: Any) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert check(LaunchSettings()) == 2
    with pytest.raises(SettingError, match="nproc: 3 ranks, but this machine has 2 GPUs"):
        check(LaunchSettings(nproc=3))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert check(LaunchSettings(nproc=3)) == 3


def test_the_last_words_of_a_failed_rank(tmp_path: Path) -> None:
    folder = tmp_path / "attempt_0" / "1"
    folder.mkdir(parents=True)
    file = folder / "stderr.log"
    file.write_text("warning: x\n\x1b[2K  0%\rstep 3\nerror: no such file\n")
    assert described(1, 1, 2, tmp_path).endswith("has failed (exit code 2): no such file")
    file.write_text("Traceback\n  File\nTypeError: oops\n")
    assert described(1, 1, 1, tmp_path).endswith(
        "(exit code 1): Traceback | File | TypeError: oops"
    )
    file.write_text("")
    assert "(signal 9): it wrote nothing" in described(1, 1, -signal.SIGKILL, tmp_path)
    assert described(0, 0, 2, tmp_path) == "", "the console has its error"
    assert described(0, 0, -9, tmp_path).endswith("has failed (signal 9)")
    assert (exit_code(2), exit_code(-9)) == (2, 137)


def test_the_first_signal_raises_and_later_ones_reach_the_children() -> None:
    before = signal.getsignal(signal.SIGINT)
    with passing_signals_on():
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        with pytest.raises(SignalException) as found:
            os.kill(os.getpid(), signal.SIGINT)
        assert found.value.sigval == signal.SIGINT
        assert child.poll() is None, "the agent sends the first"
        os.kill(os.getpid(), signal.SIGTERM)
        assert child.wait(10) == -signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) is before


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with passing_signals_on():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_restarts_are_announced_until_none_is_left(tmp_path: Path, capsys: Any) -> None:
    watch_failures(LaunchSettings(nnodes=2, node_rank=1, max_restarts=1), 2, tmp_path)
    logger = logging.getLogger("torch.distributed.elastic.multiprocessing.api")
    try:
        for _ in range(2):
            logger.error("failed (exitcode: %s) local_rank: %s (pid: %s) of x", -9, 1, 5)
        logger.error("something else")
        with pytest.raises(SignalException):
            logger.error("failed (exitcode: %s) local_rank: %s (pid: %s) of x", 130, 0, 5)
    finally:
        logger.filters.clear()
    host = socket.gethostname()
    assert capsys.readouterr().err == (
        f"rank 3 on {host} has failed (signal 9): it wrote nothing; restart 1 of 1\n"
    )


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("--nprocs", "--nproc"),
        ("--nproc-per-node=2", "--nproc"),
        ("--node_rank", "--node-rank"),
        ("--max-restart", "--max-restarts"),
        ("--resume", None),
        ("--model", None),
        ("--output-dir=x", None),
        ("trainer.nproc=2", None),
    ],
)
def test_an_option_that_is_almost_one_of_launch(word: str, near: str | None) -> None:
    group: Any = typer.main.get_command(app)
    context = typer.Context(group.commands["launch"], parent=typer.Context(group))
    context.args = ["recipe.yaml", word]
    if near is None:
        command.check_options(context)
    else:
        with pytest.raises(ValueError, match=rf"No such option: {word} .*: {near}\)"):
            command.check_options(context)


@pytest.mark.parametrize(
    ("nnodes", "expected"), [("1", (None, 1)), ("4", (None, 4)), ("1:2", (1, 2)), ("2:16", (2, 16))]
)
def test_numbers_of_machines(nnodes: str, expected: tuple[int | None, int]) -> None:
    assert command.numbers(nnodes) == expected


@pytest.mark.parametrize("nnodes", ["", ":", ":2", "1:", "two", "-1", "1:2:3", "1-2"])
def test_numbers_of_machines_that_are_none(nnodes: str) -> None:
    with pytest.raises(SettingError, match=f"nnodes: expected a number or MIN:MAX.*got {nnodes}$"):
        command.numbers(nnodes)


def launched(*words: str) -> typer.Context:
    group: Any = typer.main.get_command(app)
    context = typer.Context(group.commands["launch"], parent=typer.Context(group))
    context.args = list(words)
    return context


def test_the_command_that_ranks_run() -> None:
    assert command.arguments_of(launched("recipe.yaml", "--resume"))[0] == "train"
    assert command.arguments_of(launched("train", "recipe.yaml")) == ["train", "recipe.yaml"]
    assert command.arguments_of(launched("eval", "model", "--tasks", "gsm8k"))[0] == "eval"
    for word in ("score", "classify", "sweep", "pipeline"):
        with pytest.raises(ValueError, match=f"^posttrain {word} runs in one process: call it"):
            command.arguments_of(launched(word, "x"))


@pytest.mark.parametrize("name", command.RANKED)
def test_options_of_what_ranks_run_are_not_mistaken_for_those_of_launch(name: str) -> None:
    group: Any = typer.main.get_command(app)
    own = [x for p in group.commands[name].params for x in p.opts if x.startswith("--")]
    command.check_options(launched(name, "x", *own))
    with pytest.raises(ValueError, match="No such option: --nprocs"):
        command.check_options(launched(name, "x", "--nprocs"))
    taken = {x for p in group.commands["launch"].params for x in p.opts}
    assert not taken & set(own), "launch would take an option from the command"


def report_of(tmp_path: Path, monkeypatch: Any, **changes: Any) -> dict[str, Any]:
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    tree = tiny.run_config(tmp_path, "sft")
    tree["trainer"] |= changes
    return preflight.report({"config": dump(parse_config(tree, "recipe"))})


def test_ranks_that_are_alike(tmp_path: Path, monkeypatch: Any) -> None:
    reports = [report_of(tmp_path, monkeypatch) for _ in range(3)]
    assert preflight.difference(reports) is None
    one, two, three = (entry | {"host": "a", "free": 2**31} for entry in reports)
    assert preflight.summary([one, two, three | {"host": "b", "free": 2**30}]) == (
        "3 ranks: a (cpu x 2, 2.0 GiB free), b (cpu, 1.0 GiB free)"
    )
    assert preflight.summary([one | {"device": "cuda:0"}, two | {"device": "cuda:1"}]) == (
        "2 ranks: a (cuda:0, cuda:1, 2.0 GiB free)"
    )


def test_what_differs_between_ranks_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    one = report_of(tmp_path, monkeypatch) | {"host": "a"}
    other = report_of(tmp_path, monkeypatch, learning_rate=1.0, batch_size=8) | {"host": "b"}
    assert preflight.difference([one, one, other]) == (
        "rank 0 (a) and rank 2 (b) have different recipes: trainer.batch_size is 4 and 8; "
        "trainer.learning_rate is 0.003 and 1.0"
    )
    older = one | {"host": "b", "versions": one["versions"] | {"torch": "1.0"}}
    assert preflight.difference([one, older]) == (
        "rank 0 (a) and rank 1 (b) have different versions: "
        f"torch is {one['versions']['torch']} and 1.0"
    )
    section, without = one | {"config": {"columns": {}}}, other | {"config": {"columns": None}}
    assert "different recipes: columns is {} and None" in str(
        preflight.difference([section, without])
    )
    assert "different code of posttrain" in str(preflight.difference([one, one | {"code": "x"}]))


def test_a_folder_that_is_not_shared(tmp_path: Path, monkeypatch: Any) -> None:
    seen = [True, True]
    monkeypatch.setattr(distributed, "from_rank_0", lambda value: value)
    monkeypatch.setattr(distributed, "all_gather", lambda value: [value, seen[1]])
    monkeypatch.setattr(preflight, "SHARED_WITHIN", 0.1)
    preflight.check_shared(tmp_path / "results" / "new", ["a", "b"])
    seen[1] = False
    with pytest.raises(ValueError, match="on a is not the same folder on b"):
        preflight.check_shared(tmp_path / "results" / "new", ["a", "b"])
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"

    def refuse(path: Path, text: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(ValueError, match=r"output_dir: .* on a cannot be written to: Perm"):
        preflight.check_shared(tmp_path / "results" / "new", ["a", "b"])


def test_an_incomplete_environment(monkeypatch: Any) -> None:
    monkeypatch.setenv("RANK", "0")
    for name in distributed.VARIABLES[1:]:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="RANK is set, but LOCAL_RANK, WORLD_SIZE, MASTER_ADDR"):
        distributed.start("cpu")


def test_ranks_that_do_not_come(monkeypatch: Any) -> None:
    values = ("1", "1", "2", "127.0.0.1", "1")
    for name, value in zip(distributed.VARIABLES, values):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"rank 1 of 2 did not meet the others at 127.0.0.1:1 wit"):
        distributed.start("cpu", timeout=1.0)
    assert not torch.distributed.is_initialized()


def test_errors_of_other_kinds_stay_as_they_are(monkeypatch: Any) -> None:
    monkeypatch.setattr(distributed, "num_ranks", lambda: 2)
    monkeypatch.setattr(lost, "tell", lambda topic, what: None)
    for error in (RuntimeError("shape mismatch"), ValueError("gloo"), KeyError("x")):
        with pytest.raises(type(error)) as found, naming_lost_ranks():
            raise error
        assert found.value is error
    monkeypatch.setattr(lost, "silent_ranks", lambda where: "rank 1 is silent")

    def all_reduce() -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]")

    words = "did not answer in all_reduce; rank 1 is silent"
    with pytest.raises(LostRank, match=words), naming_lost_ranks():
        all_reduce()

    def tell() -> None:
        raise torch.distributed.DistNetworkError("Broken pipe")

    words = "did not answer in the report of a step; rank 1 is silent"
    with pytest.raises(LostRank, match=words), naming_lost_ranks():
        tell()


@pytest.fixture
def said_by(monkeypatch: Any) -> dict[tuple[str, int], dict[str, Any]]:
    """What three ranks tell, of which this is rank 0."""
    told: dict[tuple[str, int], dict[str, Any]] = {}
    monkeypatch.setattr(distributed, "num_ranks", lambda: 3)
    monkeypatch.setattr(lost, "tell", lambda topic, what: told.update({(topic, 0): what}))
    monkeypatch.setattr(lost, "told", lambda topic, by: told.get((topic, by)))
    monkeypatch.setattr(lost, "OTHERS_HAVE", 0.2)
    return told


def test_what_the_others_said_last_is_named(said_by: dict[Any, Any]) -> None:
    def all_gather() -> None:
        raise RuntimeError("Connection closed by peer")

    here = {"host": "b", "time": time.time() - 7}
    said_by["failed", 1] = here | {"why": "the folder model does not exist"}
    said_by["finished", 2] = here | {"what": "256 problems of gsm8k"}
    with pytest.raises(LostRank) as found, naming_lost_ranks():
        all_gather()
    assert str(found.value).endswith(
        "did not answer in all_gather; rank 1 (b) has failed: the folder model does not exist; "
        "rank 2 (b) is silent: it finished 256 problems of gsm8k 7 s ago"
    )
    said_by["waiting", 1] = said_by["waiting", 2] = here | {"in": "all_gather"}
    with pytest.raises(LostRank, match="all of them wait for one another"), naming_lost_ranks():
        all_gather()


def test_an_error_of_its_own_is_told_to_the_others(said_by: dict[Any, Any]) -> None:
    with pytest.raises(ValueError, match="no folder"), naming_lost_ranks():
        raise ValueError("no folder\nof this name")
    assert said_by["failed", 0] == {"why": "no folder of this name"}


def test_a_rank_that_tells_nothing_is_named(said_by: dict[Any, Any], monkeypatch: Any) -> None:
    clock, asked = [1000.0], [0]

    def told(topic: str, by: int) -> dict[str, Any]:
        asked[0] += by == 2
        return {"host": "bc"[by - 1], "time": clock[0] if by == 1 else min(clock[0], 1020.0)}

    monkeypatch.setattr(lost, "told", told)
    monkeypatch.setattr(lost, "BEAT_EVERY", 0.001)
    monkeypatch.setattr(lost.time, "monotonic", lambda: clock[0])
    with telling_alive(timeout=10) as check:
        for _ in range(31):
            rounds = asked[0] + 2
            while asked[0] < rounds:
                time.sleep(0.001)
            check()
            clock[0] += 1
        with pytest.raises(LostRank, match=r"rank 2 \(c\) has been silent for 10 s: the same call"):
            check()


def test_a_store_that_is_gone_is_named(said_by: dict[Any, Any], monkeypatch: Any) -> None:
    def tell(topic: str, what: dict[str, Any]) -> None:
        raise torch.distributed.DistNetworkError("Broken pipe")

    monkeypatch.setattr(lost, "tell", tell)
    monkeypatch.setattr(lost, "BEAT_EVERY", 0.001)
    words = "all ranks meet, on the machine of rank 0, is out of reach"
    with telling_alive(timeout=1000) as check, pytest.raises(LostRank, match=words):
        call_for_ever(check)


def call_for_ever(check: Any) -> None:
    while True:
        check()
        time.sleep(0.001)
