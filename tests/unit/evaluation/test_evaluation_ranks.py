"""An evaluation that several ranks share. Here they are threads; tests/test_distributed.py has
processes."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from posttrain.common import distributed
from posttrain.data.render import Renderer, make_renderer
from posttrain.evaluation import TASKS, Task, generation, ready
from posttrain.evaluation.ready import Loaded, prepare_task
from posttrain.evaluation.tasks import Settings
from posttrain.model.scratch import train_tokenizer
from posttrain.rollout.sampler import Rollout
from posttrain.runs import lost

ROWS = [{"prompt": f"{i} + 1?", "answer": str(i + 1)} for i in range(7)]


class Draws:
    """A sampler whose completions are what their seeds say."""

    def __init__(self, it: Renderer) -> None:
        self.it = it
        self.asked: list[str] = []

    def update_weights(self) -> None:
        pass

    def generate(self, prompts: Any, params: Any, seeds: Any) -> list[Rollout]:
        self.asked += [self.it.tokenizer.decode(ids) for ids in prompts]
        texts = [f"#### {seed % 5}" for seed in seeds]
        return [
            Rollout(ids, self.it.text_ids(text), [], "stop", 0)
            for ids, text in zip(prompts, texts, strict=True)
        ]


def on_ranks(patch: pytest.MonkeyPatch, ranks: int, run: Callable[[int], Any]) -> list[Any]:
    """What `run` returns on each of them."""
    mine, values = threading.local(), [None] * ranks
    meeting = threading.Barrier(ranks, timeout=60)

    def all_gather(value: Any) -> list[Any]:
        values[mine.rank] = value
        meeting.wait()
        found = copy.deepcopy(values)
        meeting.wait()
        return found

    def one(rank: int) -> Any:
        mine.rank = rank
        return run(rank)

    with patch.context() as given:
        given.setattr(distributed, "rank", lambda: mine.rank)
        given.setattr(distributed, "num_ranks", lambda: ranks)
        given.setattr(distributed, "all_gather", all_gather)
        given.setattr(distributed, "from_rank_0", lambda value: all_gather(value)[0])
        for module in (generation, lost):  # threads have no store to tell one another by
            given.setattr(module, "tell", lambda topic, what: None)
        given.setattr(lost, "told", lambda topic, by: {"time": time.monotonic(), "host": "here"})
        with ThreadPoolExecutor(ranks) as pool:
            return list(pool.map(one, range(ranks)))


def asked(
    patch: pytest.MonkeyPatch, ranks: int, file: Path, sampler: Draws
) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Result and records on each rank; `file` is rank 0's."""
    loaded = Loaded(sampler.it, None, 1000, {})  # type: ignore[arg-type]
    settings = Settings(num_samples=2, temperature=1.0)
    task = Task({"split": "x"}, TASKS["gsm8k"].reward)
    prepared = prepare_task("t", task, ROWS, [], loaded, settings)
    given: Any = sampler
    return on_ranks(patch, ranks, lambda rank: prepared.run(given, None if rank else file))


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (3, 2), (1, 9)])
def test_what_is_begun_goes_on_with_another_number_of_ranks(
    before: int,
    after: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ready, "ask", partial(generation.ask, chunk=4))  # 2 problems of each rank
    it = make_renderer(train_tokenizer(["What is 1 + 1? #### 2"], 300, 64), "plain")
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    ((result, records),) = asked(monkeypatch, 1, whole, Draws(it))
    assert len(records) == 14

    complete, done = generation.complete, 2 * before
    calls: Counter[int] = Counter()

    def dies(*given: Any) -> Any:
        calls[distributed.rank()] += 1
        if calls[distributed.rank()] == 2:
            raise KeyError("killed")
        return complete(*given)

    monkeypatch.setattr(generation, "complete", dies)
    with pytest.raises(KeyError, match="killed"):
        asked(monkeypatch, before, killed, Draws(it))
    monkeypatch.setattr(generation, "complete", complete)
    assert len(killed.read_text().splitlines()) == 2 * done
    with killed.open("a") as out:
        out.write('{"id": "torn')

    capsys.readouterr()
    sampler = Draws(it)
    found = asked(monkeypatch, after, killed, sampler)
    assert sorted(sampler.asked) == sorted(2 * [row["prompt"] for row in ROWS[done:]])
    assert found == [(result, records)] * after
    assert killed.read_text() == whole.read_text()
    assert [json.loads(line) for line in killed.open()] == records
    if after * 2 < len(ROWS):
        assert capsys.readouterr().out.count("t: 7 of 7 problems") == 1, "only rank 0 says it"
