"""Which server gets a request: those that fail leave, those that answer again come back."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from posttrain.rollout.engines import pool
from posttrain.rollout.engines.client import Line, Server, ServerError
from posttrain.rollout.engines.pool import Pool
from posttrain.rollout.sampler import EngineError

PATIENCE = 10.0  # seconds until a test that waits in vain gives up


class World:
    """Servers that are up or down, and what was said of them."""

    def __init__(self, names: str, patience: float = PATIENCE) -> None:
        self.down: set[str] = set()
        self.loads: list[tuple[str, int]] = []
        self.lines: list[str] = []
        servers = [Server(f"http://{name}", 1.0, 0, "start it so") for name in names]
        self.pool = Pool(servers, self.load, self.welcome, patience, self.lines.append)

    def load(self, server: Server, version: int) -> str:
        self.welcome(server)
        self.loads.append((server.url[-1], version))
        return f"model-v{version}"

    def welcome(self, server: Server) -> None:
        if server.url[-1] in self.down:
            raise gone(server.url[-1])

    def ask(self, seconds: float = 0.0) -> tuple[str, int]:
        lease = self.pool.take()
        time.sleep(seconds)
        self.pool.give_back(lease)
        return lease.member.server.url[-1], lease.version


def gone(name: str, kind: str = "unreachable") -> ServerError:
    return ServerError(f"server http://{name} is gone: start it", kind, "is gone")


def wait_until(true: Any, what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, f"never {what}"
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "PROBE_SECONDS", 0.02)


def test_requests_go_to_the_server_with_the_fewest():
    world = World("ab")
    world.pool.deliver(0)
    first, second, third = (world.pool.take() for _ in range(3))
    assert {first.member, second.member} == set(world.pool.members)
    world.pool.give_back(third)
    world.pool.give_back(second)
    assert world.pool.take().member is second.member
    assert world.pool.oldest_running() == 0


def test_one_that_fails_leaves_and_comes_back_with_the_present_weights():
    world = World("ab")
    world.pool.deliver(0)
    lease = next(
        x for x in (world.pool.take(), world.pool.take()) if x.member.server.url[-1] == "a"
    )
    world.down.add("a")
    world.pool.distrust(lease, gone("a"))
    world.pool.distrust(lease, gone("a"))  # another request of it
    assert world.lines == [
        "server http://a is left out: it is gone; its requests go to the other 1"
    ]
    assert {world.ask()[0] for _ in range(5)} == {"b"}
    world.pool.deliver(1)
    assert world.loads[-1] == ("b", 1)
    world.down.clear()
    wait_until(lambda: len(world.lines) == 2, "joined")
    assert world.lines[1] == "server http://a has joined, with the weights of version 1"
    assert ("a", 1) in world.loads
    assert {world.ask() for _ in range(6)} == {("a", 1), ("b", 1)}


def test_an_old_answer_does_not_send_away_the_server_that_replaced_another():
    world = World("ab")
    world.pool.deliver(0)
    leases = [world.pool.take() for _ in range(4)]
    mine = [lease for lease in leases if lease.member.server.url[-1] == "a"]
    world.pool.distrust(mine[0], gone("a"))
    wait_until(lambda: "joined" in world.lines[-1], "back")
    world.pool.distrust(mine[1], gone("a"))
    assert len(world.pool.live()) == 2


def test_if_none_is_left_requests_wait():
    world = World("a")
    world.pool.deliver(3)
    world.down.add("a")
    world.pool.distrust(world.pool.take(), gone("a"))
    assert world.lines[0].endswith("no server is left, waiting for one for at most 10 s")
    threading.Timer(0.1, world.down.clear).start()
    assert world.ask() == ("a", 3)


def test_if_none_comes_back_the_error_says_what_happened():
    world = World("ab", patience=0.1)
    world.pool.deliver(0)
    world.down |= {"a", "b"}
    for lease in (world.pool.take(), world.pool.take()):
        world.pool.distrust(lease, gone(lease.member.server.url[-1]))
    expected = (
        r"^server http://a is gone: start it; no other server is left, also after 0.1 s \(roll"
    )
    with pytest.raises(EngineError, match=expected):
        world.pool.take()
    with pytest.raises(EngineError, match=expected):
        world.pool.deliver(1)
    world.down.clear()
    world.pool.deliver(1)
    assert {world.ask() for _ in range(6)} == {("a", 1), ("b", 1)}


def test_the_first_delivery_must_reach_every_server():
    world = World("ab")
    world.down.add("b")
    with pytest.raises(EngineError, match="http://b is gone"):
        world.pool.deliver(0)


@pytest.mark.parametrize("kind", ["weights", "timeout", "dropped", "busy"])
def test_one_that_comes_back_only_to_fail_again_is_not_waited_for(kind):
    """It takes the weights and gives no completion: without a bound this would go on for ever."""
    world = World("a")
    world.pool.deliver(0)
    for _ in range(pool.MOST_STRIKES):
        lease = world.pool.take()
        world.pool.distrust(lease, gone("a", kind))
    started = time.monotonic()
    with pytest.raises(EngineError, match=r"start it; no other server is left$"):
        world.pool.take()
    assert time.monotonic() - started < PATIENCE / 2


def test_a_good_completion_restores_trust():
    world = World("a")
    world.pool.deliver(0)
    for _ in range(3 * pool.MOST_STRIKES):
        world.pool.trust(world.pool.take())
        world.pool.distrust(world.pool.take(), gone("a", "weights"))
    assert world.ask() == ("a", 0)


def test_a_rank_takes_over_what_rank_0_has_delivered():
    world = World("abc")
    world.pool.adopt(4, ["m", None, "m"])
    assert {world.ask() for _ in range(9)} >= {("a", 4), ("c", 4)}
    wait_until(lambda: len(world.pool.live()) == 3, "found by itself")
    assert ("b", 4) in world.loads


def test_work_of_several_callers_is_done_in_the_order_of_its_coming():
    line, done, go_on = Line(1), [], threading.Event()

    def work(item: str) -> str:
        go_on.wait(PATIENCE)
        done.append(item)
        return item * 2

    threads = [threading.Thread(target=line.run, args=(work, names)) for names in ("abc", "de")]
    for thread in threads:
        thread.start()
        wait_until(lambda: line.waiting or line.running, "begun")
        time.sleep(0.02)
    go_on.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert done == list("abcde")
    assert line.run(lambda x: x + 1, [1, 2, 3]) == [2, 3, 4]


def test_an_error_of_one_caller_leaves_the_others_alone():
    line = Line(2)

    def fails(item: int) -> int:
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item"):
        line.run(fails, range(20))
    assert line.run(lambda x: x, range(5)) == list(range(5))
