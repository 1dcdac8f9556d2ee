"""`posttrain serve` of a model that two ranks split answers as one process does."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
from ranks import command, exit_codes
from serving import Live, chat_model, served

from posttrain.rollout.native.row import Row
from posttrain.rollout.sampler import SamplingParams
from posttrain.serving.together import Leader

pytestmark = pytest.mark.distributed

KEYS = ["--device", "cpu", "--dtype", "float32", "--cache-gib", "0.05", "--port", "0"]
KEYS += ["--max-num-seqs", "4"]
ASKED: list[dict[str, Any]] = [
    {"prompt": "a", "seed": 1, "temperature": 1.0, "n": 3, "max_tokens": 20},
    {"prompt": "one two three", "seed": 2, "temperature": 1.0, "max_tokens": 40, "logprobs": 2},
    {"prompt": "one two", "seed": 3, "temperature": 0.0, "max_tokens": 8, "echo": True},
    {"prompt": "b", "seed": 4, "temperature": 1.0, "max_tokens": 60, "stop": ["e"]},
]


def address(folder: Path) -> str:
    """The address that rank 0 has printed."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        file = folder / "0.stdout"
        text = file.read_text() if file.exists() else ""
        if found := re.search(r"http://\S+(?=/v1)", text):
            return found[0]
        time.sleep(0.05)
    raise AssertionError(f"not served: {[p.read_text()[-2000:] for p in folder.glob('*.stderr')]}")


def rounded(answer: dict[str, Any]) -> Any:
    """The choices, with log-probs to four decimals."""

    def of(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: of(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [of(inner) for inner in value]
        return round(value, 4) if isinstance(value, float) else value

    return of(answer["choices"])


def answers(live: Live) -> list[Any]:
    """All at once, some of which wait for others; one client leaves in the middle."""
    with ThreadPoolExecutor(5) as pool:
        leaving = pool.submit(leave, live)
        found = list(pool.map(lambda body: rounded(live.complete(**body)), ASKED * 2))
        leaving.result()
    return found


def leave(live: Live) -> None:
    client = live.client()
    model = client.models.list().data[0].id
    stream = client.completions.create(model=model, prompt="x", max_tokens=200, stream=True)
    next(iter(stream))
    stream.close()


def test_it_answers_as_one_process(tmp_path):
    """Requests that come together and apart, with log-probs and echo; then it ends with both."""
    model = chat_model(tmp_path / "model")
    with served(model, max_num_seqs=4) as live:
        expected = answers(live)
    found: list[Any] = []

    def ask(processes: list[Any]) -> None:
        live = Live(address(tmp_path), None)  # type: ignore[arg-type]
        found.extend(answers(live))
        time.sleep(0.1)  # nothing to do meanwhile
        found.append(rounded(live.complete(**ASKED[0])))
        adapter = {"lora_name": "x", "lora_path": str(model)}
        assert live.ask("POST", "/v1/load_lora_adapter", adapter)[0] == 400
        for process in processes:  # as a terminal does
            os.kill(process.pid, signal.SIGINT)

    codes = exit_codes(2, tmp_path, ["serve", str(model), "--tensor-parallel", "2", *KEYS], ask)
    assert found == [*expected, expected[0]]
    assert codes == [130, 0]  # 130 as of one process


@pytest.mark.slow  # in make test-distributed
def test_clients_that_leave_at_once_do_not_set_the_ranks_apart(tmp_path):
    """A row that ends before the others have heard of it."""
    model = chat_model(tmp_path / "model")
    with served(model, max_num_seqs=4) as live:
        expected = rounded(live.complete(**ASKED[1]))

    def ask(processes: list[Any]) -> None:
        live = Live(address(tmp_path), None)  # type: ignore[arg-type]
        body = json.dumps({"prompt": "x", "max_tokens": 99, "stream": True}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}"
        with ThreadPoolExecutor(1) as pool:
            long = pool.submit(live.complete, prompt="y", max_tokens=200, seed=1)
            for pause in [0.0, 0.001, 0.002, 0.004] * 8:
                with socket.create_connection(("127.0.0.1", live.port)) as client:
                    client.sendall(head.encode() + b"\r\nContent-Type: application/json\r\n\r\n")
                    client.sendall(body)
                    time.sleep(pause)
            long.result()
        assert rounded(live.complete(**ASKED[1])) == expected
        os.kill(processes[0].pid, signal.SIGTERM)

    codes = exit_codes(2, tmp_path, ["serve", str(model), "--tensor-parallel", "2", *KEYS], ask)
    assert codes[1] == 0, (tmp_path / "1.stderr").read_text()


def test_what_is_added_and_ended_between_two_steps_is_no_row_of_the_others():
    leader = Leader.__new__(Leader)
    leader.calls, leader.numbers, leader.next_number = [], WeakKeyDictionary(), count()
    row = Row([1], SamplingParams(4, (), 1.0), 0)
    leader.add([row])
    leader.cancel(row)
    row.finish_reason = "cancelled"  # as the engine does
    (_, added), (_, number) = pickle.loads(pickle.dumps(leader.calls))
    assert added[number].finish_reason is None


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_it_ends_at_once_with_requests_under_way(ranks, tmp_path):
    model = chat_model(tmp_path / "model", max_position_embeddings=8192)
    found: list[Any] = []

    def ask(processes: list[Any]) -> None:
        live = Live(address(tmp_path), None)  # type: ignore[arg-type]
        body = {"prompt": "x", "max_tokens": 8000, "ignore_eos": True}
        with ThreadPoolExecutor(1) as pool:
            open_request = pool.submit(live.ask, "POST", "/v1/completions", body)
            time.sleep(1.0)
            for process in processes:
                os.kill(process.pid, signal.SIGINT)
            found.append(open_request.result())

    given = ["serve", str(model), "--tensor-parallel", str(ranks), *KEYS]
    assert exit_codes(ranks, tmp_path, given, ask)[0] == 130
    ((status, said),) = found
    assert (status, said["error"]["message"]) == (503, "the server is shutting down")
    assert "Traceback" not in (tmp_path / "0.stderr").read_text()


@pytest.mark.slow
def test_a_lost_rank_ends_it_within_the_bound(tmp_path):
    model = chat_model(tmp_path / "model")
    given = ["--tensor-parallel", "2", "--rank-timeout", "5", *KEYS]

    def kill(processes: list[Any]) -> None:
        live = Live(address(tmp_path), None)  # type: ignore[arg-type]
        live.complete(**ASKED[0])
        processes[1].kill()
        status, said = live.ask("POST", "/v1/completions", ASKED[1])
        assert (status, said["error"]["message"]) == (503, "the sampler has ended")
        end = time.monotonic() + 30
        while processes[0].is_alive() and time.monotonic() < end:
            time.sleep(0.1)
        assert not processes[0].is_alive()

    codes = exit_codes(2, tmp_path, ["serve", str(model), *given], kill)
    assert codes[0] not in (0, None)
    said = (tmp_path / "0.stderr").read_text()
    assert "rank 1" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("ranks", "given", "message"),
    [
        (2, [], "1 rank(s) split the model, but 2 were started: start as many"),
        (
            2,
            ["--tensor-parallel", "2", "--adapter", "a=b"],
            "--adapter: is not offered for a model that ranks split",
        ),
        (1, ["--tensor-parallel", "2"], "2 rank(s) split the model, but 1 were started"),
        (3, ["--tensor-parallel", "3"], "--tensor-parallel: 3 ranks do not divide the 4 attention"),
        pytest.param(
            2,
            ["--tensor-parallel", "2", "--quantization", "int8"],
            "--tensor-parallel: quantised weights cannot be cut: set it to 1",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_cannot_be_served_is_one_line(ranks, given, message, tmp_path):
    model = chat_model(tmp_path / "model")
    with pytest.raises(AssertionError) as stopped:
        command(ranks, tmp_path, ["serve", str(model), *given, *KEYS])
    said = str(stopped.value).splitlines()[1:]  # the first is of the helper
    (line,) = [x for x in said if "[c10d]" not in x]  # torch's own, which launch hides
    assert line.startswith("error: ")
    assert message in line
