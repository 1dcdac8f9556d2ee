"""The queue of steps that servers sample while weights change."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from test_generation import Engine, source_of, wait_for

from posttrain.rollout.sampler import EngineError, Rollout
from posttrain.runs.config import parse_config

QUEUE = {"engine": "server", "servers": ["http://a"]}


class Servers(Engine):
    """Completions from the weights that are the newest as each is begun; `hold` stops them."""

    def __init__(self) -> None:
        super().__init__()
        self.hold = threading.Event()
        self.hold.set()
        self.seeds: list[int] = []

    def generate(self, prompts: Any, params: Any, seeds: Any, finished: Any) -> list[Rollout]:
        rollouts = []
        for place, (prompt, seed) in enumerate(zip(prompts, seeds)):
            wait_for(self.hold, "the go-ahead")
            self.seeds.append(seed)
            tokens = [place % 50, 3]
            rollouts.append(Rollout(list(prompt), tokens, [-1.0, -1.0], "stop", self.given))
            finished(place, rollouts[-1])
        return rollouts


def train(source: Any, steps: int, updates: int = 1) -> list[dict[str, float]]:
    found = []
    for _ in range(steps):
        _, metrics = source.next_batch()
        found.append({name: value for name, (value, _) in metrics.items()})
        source.sampler.policy.version += updates
    return found


@pytest.mark.parametrize(
    ("bound", "updates", "queued"), [(1, 1, 1), (3, 1, 3), (3, 2, 1), (4, 2, 2)]
)
def test_no_completion_is_older_than_the_bound(bound, updates, queued):
    source = source_of(Servers(), num_steps=8, max_staleness=bound, **QUEUE)
    source.ahead.queued = bound // updates
    found = train(source, 8, updates)
    for pending in source.ahead.pending.values():
        pending.generation.wait()
    ages = [row["sampling/max_staleness"] for row in found]
    assert ages[0] == 0
    assert max(ages) == queued * updates <= bound, "all is sampled at once, as early as may be"
    assert found[-1]["sampling/queue"] == 0
    assert "time/deliver" in found[0]


def test_what_waits_gets_the_newest_weights():
    engine = Servers()
    source = source_of(engine, num_steps=8, max_staleness=2, **QUEUE)
    train(source, 1)
    for pending in source.ahead.pending.values():
        pending.generation.wait()
    engine.hold.clear()  # the servers stand still: what comes now begins later
    train(source, 2)  # these two were ready
    threading.Timer(0.05, engine.hold.set).start()
    (found,) = train(source, 1)
    assert found["sampling/max_staleness"] == 0
    source.close()


def test_a_checkpoint_keeps_what_has_ended_and_the_rest_is_sampled_again():
    engine = Servers()
    source = source_of(engine, num_steps=6, max_staleness=2, **QUEUE)
    train(source, 1)
    for pending in source.ahead.pending.values():
        pending.generation.wait()
    state = source.state_dict()
    assert {step: sum(map(len, places.values())) for step, places in state["ahead"].items()} == {
        "2": 8,
        "3": 8,
    }
    for place in state["ahead"]["3"].values():  # half of it had not ended
        del place["1"], place["2"]
    again = Servers()
    again.policy.version = 1
    resumed = source_of(again, num_steps=6, max_staleness=2, **QUEUE)
    resumed.load_state_dict(state)
    assert resumed.state_dict()["ahead"] == state["ahead"], "nothing of it is lost"
    found = train(resumed, 2)
    assert [row["sampling/max_staleness"] for row in found] == [1, 2]
    assert found[1]["sampling/staleness"] == 4 * 2 + 4 * 1, "the second half has newer weights"
    assert len(again.seeds) == 4 + 3 * 8 - 8, "steps 4 and 5, and half of step 3"
    assert again.seeds[0:4] == [engine.seeds[16 + i] for i in (1, 2, 5, 6)], "the same seeds"
    source.close()
    resumed.close()


def test_weights_that_may_not_be_are_refused():
    engine = Servers()
    source = source_of(engine, num_steps=8, max_staleness=1, **QUEUE)
    engine.policy.version = 5
    update = engine.update_weights
    engine.update_weights = lambda: (update(), setattr(engine, "given", engine.given - 2))[0]
    with pytest.raises(EngineError, match="weights of version 3, but the policy had version 5"):
        source.next_batch()
    source.close()


def test_one_step_off_checkpoints_of_version_0_2_are_read():
    source = source_of(Engine(), one_step_off=True)
    source.next_batch()
    state = source.state_dict()
    old = {place: [ks[str(k)] for k in range(4)] for place, ks in state["ahead"]["2"].items()}
    for form in (old, state["ahead"]):
        resumed = source_of(Engine(lambda calls, place: pytest.fail("sampled again")), num_steps=2)
        resumed.ahead.next_too = True
        resumed.load_state_dict(state | {"ahead": form})
        resumed.next_batch()
        ids = [r.response_ids for group in resumed.done for r in group.rollouts]
        assert ids == [r.response_ids for r in source.ahead.pending[2].generation.rollouts.values()]


def tree(rollout: dict[str, Any], **trainer: Any) -> dict[str, Any]:
    return {
        "model": {"name": "m"},
        "data": {"path": "x.jsonl"},
        "trainer": {"type": "grpo", "max_steps": 1} | trainer,
        "rollout": {"engine": "server", "servers": ["http://a:1"]} | rollout,
        "reward": {"type": "math_correctness"},
    }


@pytest.mark.parametrize(
    ("rollout", "trainer", "expected"),
    [
        ({"max_staleness": 2}, {}, "set trainer.sampler_correction, for example to token"),
        (
            {"max_staleness": 3},
            {"sampler_correction": "token", "num_inner_epochs": 2, "num_minibatches": 2},
            "3 is less than the 4 optimiser steps on one batch: set 0, or at least 4",
        ),
        (
            {"max_staleness": 1, "one_step_off": True},
            {"sampler_correction": "token"},
            "one_step_off and max_staleness exclude each other",
        ),
        ({"servers": ["http://a:1", "http://a:1/v1/"]}, {}, "http://a:1 is listed twice"),
        ({"servers": ["http://localhost:1", "http://127.0.0.1:1"]}, {}, "is listed twice"),
        (
            {"engine": "native", "servers": [], "max_staleness": 1},
            {},
            "max_staleness is for rollout.engine: server, not for native",
        ),
    ],
)
def test_settings_that_cannot_be(rollout, trainer, expected):
    made = tree(rollout, **trainer)
    if rollout.get("engine") == "native":
        del made["rollout"]["servers"]
    with pytest.raises(ValueError, match=expected):
        parse_config(made, "test")
