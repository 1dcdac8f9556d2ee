"""The incremental engine: rows come and go, and what a row gets does not depend on that."""

from __future__ import annotations

import random

import pytest
import test_reft
import test_sampler
import tiny
import torch

from posttrain.common.batch import Sequence, pack
from posttrain.model.forward import forward
from posttrain.model.many_adapters import load_adapters
from posttrain.rollout.native.engine import Engine
from posttrain.rollout.native.prefixes import BLOCK, PrefixCache
from posttrain.rollout.native.row import Row
from posttrain.rollout.native.sampler import NativeSampler
from posttrain.rollout.sampler import SamplingParams


def varied(number: int, seed: int = 0, longest: int = 12) -> list[Row]:
    """Rows that differ in everything."""
    chance = random.Random(seed)
    rows = []
    for i in range(number):
        prompt = [chance.randrange(4, tiny.VOCAB) for _ in range(chance.randint(1, longest))]
        params = SamplingParams(
            chance.randint(1, 25),
            tuple(chance.sample(range(61), chance.randint(0, 3))),
            chance.choice([0.0, 0.7, 1.0, 1.5]),
            chance.choice([1.0, 0.8]),
            chance.choice([0, 5]),
            chance.choice([0.0, 0.1]),
        )
        rows.append(Row(prompt, params, 100 + i, top=chance.choice([0, 3])))
    return rows


def alone(policy, rows: list[Row]):
    sampler = NativeSampler(policy, 1)
    return [sampler.generate([row.prompt_ids], row.params, [row.seed])[0] for row in rows]


@torch.no_grad()
def run(engine: Engine) -> None:
    while engine.step():
        pass


@pytest.mark.parametrize(
    ("kind", "max_cells", "at_once"),
    [
        ("llama", None, False),
        pytest.param("llama", 60, False, marks=pytest.mark.slow),
        pytest.param("llama", None, True, marks=pytest.mark.slow),
        ("llama", 60, True),
        pytest.param("llama", 300, True, marks=pytest.mark.slow),
        ("reft", 60, True),
    ],
)
@torch.no_grad()
def test_rows_that_come_at_any_time_get_what_they_get_alone(kind, max_cells, at_once):
    """Also where the cache is so small that rows are sent back and read again."""
    policy = (test_reft.moved(type="loreft") if kind == "reft" else tiny.models(kind).policy).eval()
    rows = varied(40)
    wanted = alone(policy, rows)
    finished = []
    engine = Engine(policy, 6, 64, finished.append, max_cells=max_cells, at_once=at_once)
    chance, waiting = random.Random(1), list(rows)
    while waiting or engine.step():
        for _ in range(chance.randint(0, 3)):
            engine.add([waiting.pop(0) for _ in range(min(len(waiting), chance.randint(1, 4)))])
        if chance.random() < 0.3:
            engine.collect()
        engine.step()
    assert sorted(map(id, finished)) == sorted(map(id, rows)), "each finishes once"
    for row, rollout in zip(rows, wanted):
        assert row.response_ids == rollout.response_ids
        assert row.finish_reason == rollout.finish_reason
        assert row.logprobs == pytest.approx(rollout.logprobs, abs=1e-4)
    assert not engine.running.rows
    assert not engine.cache.layers, "the cache is freed"


@torch.no_grad()
def test_the_cache_stays_within_its_bound():
    policy = tiny.models("llama").policy.eval()
    engine = Engine(policy, 8, 128, max_cells=200)
    engine.add([Row([5, 6, 7 + i], SamplingParams(60, ()), i) for i in range(12)])
    largest = 0
    while engine.step():
        keys, _ = engine.cache.layers[0]
        if len(engine.running.rows) > 1:
            largest = max(largest, keys.shape[0] * keys.shape[2])
    assert 100 < largest <= 200


@torch.no_grad()
def test_a_cancelled_row_ends_and_changes_nothing_else():
    policy = tiny.models("llama").policy.eval()
    rows = varied(12, seed=3)
    wanted = alone(policy, rows)
    engine = Engine(policy, 5, 64)
    engine.add(rows)
    for _ in range(3):
        engine.step()
    running = next(row for row in rows if row in engine.running.rows and not row.finish_reason)
    waiting = next(row for row in rows if any(row in group for group in engine.waiting))
    engine.cancel(running)
    engine.cancel(waiting)
    run(engine)
    for row, rollout in zip(rows, wanted):
        if row in (running, waiting):
            assert row.finish_reason == "cancelled"
            assert row.response_ids == rollout.response_ids[: len(row.response_ids)]
        else:
            assert row.response_ids == rollout.response_ids
    assert not waiting.response_ids


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("told", [False, True])
@torch.no_grad()
def test_adapters_may_be_loaded_while_rows_run(at_once, told):
    """An engine that was not told of them refuses to mix rows with and without a number."""
    policy = tiny.models("llama").policy.eval()
    rows = [Row([5, 6, 7 + i], SamplingParams(20, ()), i) for i in range(8)]
    wanted = alone(policy, rows)
    engine = Engine(policy, 6, 64, at_once=at_once)
    engine.add(rows[:4])
    for _ in range(3):
        engine.step()
    load_adapters(policy, {})
    if told:
        engine.refresh()
    engine.add(rows[4:])
    if not told:
        with pytest.raises(AssertionError, match=r"refresh\(\) was not called"):
            run(engine)
        return
    run(engine)
    assert [row.response_ids for row in rows] == [rollout.response_ids for rollout in wanted]
    engine.add(again := [Row(row.prompt_ids, row.params, row.seed) for row in rows])
    run(engine)
    assert [row.response_ids for row in again] == [rollout.response_ids for rollout in wanted]


@torch.no_grad()
def test_alternatives_are_those_of_the_distribution():
    policy = tiny.models("llama").policy.eval()
    params = [SamplingParams(9, (), t, k) for t, k in ((0.0, 1.0), (0.8, 1.0), (1.0, 0.7))]
    rows = [Row([5, 9, 20 + i], p, i, top=4, scored=True) for i, p in enumerate(params)]
    engine = Engine(policy, 8, 64)
    engine.add(rows)
    run(engine)
    model = tiny.causal_lm("llama").eval()
    for row in rows:
        ids = torch.tensor([row.prompt_ids + row.response_ids])
        logits = model(ids).logits[0].double()
        scored = logits.log_softmax(-1)[:2].gather(1, ids[0, 1:3, None])[:, 0]
        assert row.prompt_logprobs == pytest.approx(scored.tolist(), abs=1e-4)
        assert [len(x) for x in row.prompt_tops] == [4, 4]
        for place, best in enumerate(row.tops):
            p = (logits[2 + place] / (row.params.temperature or 1)).softmax(-1)
            if row.params.top_p < 1:
                order = p.argsort(descending=True)
                keep = int((p[order].cumsum(0) < row.params.top_p).sum()) + 1
                p = torch.zeros_like(p).index_copy(0, order[:keep], p[order[:keep]])
                p /= p.sum()
            expected = p.log().topk(4)
            assert [token for token, x in best if x > -100] == [
                token for token, x in zip(expected[1].tolist(), expected[0].tolist()) if x > -100
            ]
            assert [x for _, x in best] == pytest.approx(expected[0].tolist(), abs=1e-4)
            assert row.logprobs[place] == pytest.approx(float(p.log()[ids[0, 3 + place]]), abs=1e-4)


@torch.no_grad()
def test_min_p_keeps_the_tokens_near_the_likeliest():
    policy = tiny.models().policy.eval()
    draws = 2000
    one = SamplingParams(1, (), min_p=0.2)
    rollouts = NativeSampler(policy, 512).generate([[8, 9, 10]] * draws, one, range(draws))
    p = tiny.causal_lm()(torch.tensor([[8, 9, 10]]), use_cache=False).logits[0, -1].softmax(-1)
    kept = {i for i, x in enumerate(p.tolist()) if x >= 0.2 * float(p.max())}
    drawn = {r.response_ids[0] for r in rollouts}
    assert drawn <= kept
    assert len(kept) < tiny.VOCAB
    mass = sum(float(p[i]) for i in kept)
    for r in rollouts[:50]:
        wanted = float((p[r.response_ids[0]] / mass).log())
        assert r.logprobs[0] == pytest.approx(wanted, abs=1e-4)


@torch.no_grad()
def test_a_limit_of_none_only_scores():
    policy = tiny.models().policy.eval()
    row = Row([5, 6, 7], SamplingParams(0, ()), 0, scored=True, top=1)
    engine = Engine(policy, 4, 64)
    engine.add([row])
    run(engine)
    assert (row.response_ids, row.finish_reason) == ([], "length")
    batch = pack([Sequence(torch.tensor([5, 6, 7]), torch.tensor([False, True, True]))])
    expected = forward(policy, batch).logprobs[1:].tolist()
    assert row.prompt_logprobs == pytest.approx(expected, abs=1e-5)


# prefixes


def chats(number: int, shared: int, seed: int = 0) -> list[Row]:
    """Rows whose prompts share their first tokens."""
    chance = random.Random(seed)
    system = [chance.randrange(4, tiny.VOCAB) for _ in range(shared)]
    rows = []
    for i in range(number):
        own = [chance.randrange(4, tiny.VOCAB) for _ in range(chance.randint(0, 29))]
        rows.append(Row([*system, 4 + i, *own], SamplingParams(8, (3,), 0.8), i))
    return rows


WINDOW = {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 0}


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("shared", [0, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
@torch.no_grad()
def test_a_prefix_that_is_remembered_changes_nothing(kind, shared):
    policy = tiny.models(kind).policy.eval()
    plain, remembered = chats(12, shared), chats(12, shared)
    prefixes = PrefixCache(1 << 24)
    engines = Engine(policy, 4, 160), Engine(policy, 4, 160, prefixes=prefixes)
    for engine, rows in zip(engines, (plain, remembered)):
        for row in rows:  # one after another, so that each finds those before it
            engine.add([row])
            engine.step()
        run(engine)
    for a, b in zip(plain, remembered):
        assert a.response_ids == b.response_ids
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    assert (prefixes.found > 0) == (shared >= BLOCK)


@torch.no_grad()
def test_a_window_is_kept_across_a_remembered_prefix():
    from posttrain.model.config import ModelConfig
    from posttrain.model.load import prepare_policy

    model = tiny.causal_lm("qwen2", **WINDOW)
    config = ModelConfig(name="tiny", use_lora=False)
    policy = prepare_policy(model, config, tiny.CPU, torch.float32, 0).eval()
    prefixes = PrefixCache(1 << 24)
    plain, remembered = chats(6, 2 * BLOCK), chats(6, 2 * BLOCK)
    for rows, kept in ((plain, None), (remembered, prefixes)):
        engine = Engine(policy, 4, 160, prefixes=kept)
        for row in rows:
            engine.add([row])
            engine.step()
        run(engine)
    assert prefixes.found > 0
    assert [r.response_ids for r in plain] == [r.response_ids for r in remembered]
    for a, b in zip(plain, remembered):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


@torch.no_grad()
def test_prefixes_keep_within_their_bound_and_forget_old_weights():
    policy = tiny.models("llama").policy.eval()
    block = 2 * 2 * 2 * BLOCK * 8 * 4  # keys and values, layers, heads, tokens, width, bytes
    prefixes = PrefixCache(5 * block)
    engine = Engine(policy, 4, 160, prefixes=prefixes)
    for seed in range(9):
        engine.add(chats(1, 2 * BLOCK, seed))
        run(engine)
        assert prefixes.num_bytes <= 5 * block
        # what it counts is all that it keeps alive: a view would keep a whole pack
        kept = (block.numbers.untyped_storage() for block in prefixes.blocks.values())
        storages = {storage.data_ptr(): storage.nbytes() for storage in kept}
        assert prefixes.num_bytes == sum(storages.values())
    found = prefixes.found
    engine.add(chats(1, 2 * BLOCK, 8))  # the newest is there
    run(engine)
    assert prefixes.found == found + 2 * BLOCK
    policy.version += 1
    engine.add(chats(1, 2 * BLOCK, 8))
    run(engine)
    assert prefixes.found == found + 2 * BLOCK, "keys of old weights were used"


def test_the_sampler_goes_through_the_engine(monkeypatch):
    seen = []
    step = Engine.step
    monkeypatch.setattr(Engine, "step", lambda self: seen.append(1) or step(self))
    test_sampler.test_a_row_does_not_depend_on_its_batch(monkeypatch)
    assert seen
