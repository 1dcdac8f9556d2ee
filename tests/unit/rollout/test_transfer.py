"""The requests of vLLM's `disk` transfer, in their order, and what is made of each failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.rollout.engines.client import ServerError
from posttrain.rollout.engines.transfer import check_updates, load_weights
from posttrain.rollout.sampler import EngineError

FOLDER = Path("/shared/posttrain-abc-v7")
UPDATE = [
    ("/init_weight_transfer_engine", {"init_info": {}}),
    ("/start_weight_update", {}),
    ("/update_weights", {"update_info": {"path": str(FOLDER)}}),
    ("/finish_weight_update", {"weight_version": FOLDER.name}),
]


class Stub:
    """A server that notes what is posted; `fails` says how often a path fails, and how."""

    url, start_with = "http://a", "vllm serve so"

    def __init__(self, swaps: bool = False, **fails: tuple[int, str]) -> None:
        self.swaps, self.fails = swaps, dict(fails)
        self.posted: list[tuple[str, Any]] = []
        self.version = "default"
        self.takes = True

    def hurried(self, timeout: float | None = None) -> Stub:
        return self

    def get(self, path: str) -> Any:
        if path == "/v1/models":
            return {"data": [{"id": "adapter", "parent": "base"}, {"id": "base"}]}
        self.fail(path.partition("?")[0])
        return {"weight_version": self.version} | ({"swaps": "between steps"} if self.swaps else {})

    def post(self, path: str, body: Any) -> Any:
        self.posted.append((path, body))
        if path == "/finish_weight_update" and self.takes:
            self.version = body["weight_version"]
        self.fail(path)
        return {}

    def fail(self, path: str) -> None:
        times, kind = self.fails.get(path[1:].partition("?")[0], (0, ""))
        if times:
            self.fails[path[1:].partition("?")[0]] = times - 1, kind
            raise ServerError(f"server http://a fails: {path}", kind, "fails", "no such folder")


def load(stub: Any) -> str:
    return load_weights(stub, FOLDER)


def test_a_server_that_would_mix_weights_is_paused():
    stub = Stub()
    assert load(stub) == "base"
    assert stub.posted == [("/pause?mode=wait", {}), *UPDATE, ("/resume", {})]
    assert stub.version == FOLDER.name


def test_one_that_swaps_between_steps_goes_on():
    stub = Stub(swaps=True)
    assert load(stub) == "base"
    assert stub.posted == UPDATE


def test_it_goes_on_after_a_failure():
    stub = Stub(update_weights=(1, "refused"))
    with pytest.raises(EngineError, match=r"fails: /update_weights; /shared/.* same path"):
        load(stub)
    assert stub.posted[-1] == ("/resume", {})


def test_an_update_that_a_killed_trainer_began_is_ended():
    stub = Stub(swaps=True, start_weight_update=(1, "busy"))
    load(stub)
    assert [path for path, _ in stub.posted] == [
        "/init_weight_transfer_engine",
        "/start_weight_update",
        "/finish_weight_update",
        *[path for path, _ in UPDATE[1:]],
    ]
    assert stub.version == FOLDER.name


def test_a_lost_answer_repeats_the_whole_update():
    stub = Stub(swaps=True, finish_weight_update=(1, "dropped"))
    load(stub)
    assert stub.posted == UPDATE * 2


def test_an_update_without_effect_is_noticed():
    stub = Stub()
    stub.takes = False
    with pytest.raises(EngineError, match="was given the weights 'posttrain-abc-v7' and has 'def"):
        load(stub)


@pytest.mark.parametrize("swaps", [True, False])
def test_whether_the_folder_is_seen_is_asked_where_that_is_possible(swaps):
    check_updates(Stub(swaps=swaps), FOLDER)  # type: ignore[arg-type]
    stub: Any = Stub(weight_info=(1, "refused"))
    with pytest.raises(EngineError, match=r"takes no new weights.*vllm serve so; or train an adap"):
        check_updates(stub, FOLDER)
