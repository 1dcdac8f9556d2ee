from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.sizing.servers import Rates, busy_share, servers_for

LENGTH = 100


def rates(staleness: int, step: float = 10.0, completions: int = 64, slots: int = 8) -> Rates:
    return Rates(step, completions, 800.0, slots, staleness)


@pytest.mark.parametrize("servers", [1, 2, 4, 8])
def test_in_turns_the_share_is_training_over_training_and_sampling(servers: int) -> None:
    """64 completions of 100 tokens, 8 at once at 100 tokens/s each: 8 rounds of 1 s per server."""
    sampling = 64 / (servers * 8) * LENGTH / 100
    assert busy_share(rates(0), [LENGTH], servers) == pytest.approx(10 / (10 + sampling))


@pytest.mark.parametrize(("servers", "share"), [(1, 10 / 16), (2, 1.0), (4, 1.0)])
def test_beside_each_other_the_slower_one_decides(servers: int, share: float) -> None:
    """128 completions take one server 16 s, two servers 8 s; a step takes 10 s."""
    found = busy_share(rates(1, completions=128), [LENGTH], servers, steps=400)
    assert found == pytest.approx(share, rel=0.01)


def test_the_fewest_servers_that_keep_trainers_busy() -> None:
    found = servers_for(rates(1, completions=128), [LENGTH], 0.95)
    assert found is not None
    # all but the first 8 s of 200 steps of 10 s
    assert found == (2, pytest.approx(2000 / 2008))
    # in turns sampling would have to take 0.5 s, but one completion alone takes 1 s
    assert servers_for(rates(0), [LENGTH], 0.96) is None


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=12),
    staleness=st.integers(0, 3),
    completions=st.integers(1, 40),
    step=st.floats(0.1, 20.0),
    slots=st.integers(1, 6),
    servers=st.integers(1, 6),
)
def test_more_servers_or_older_weights_are_never_slower(
    lengths: list[int], staleness: int, completions: int, step: float, slots: int, servers: int
) -> None:
    few = Rates(step, completions, 100.0 * slots, slots, staleness)
    older = Rates(step, completions, 100.0 * slots, slots, staleness + 1)
    share = busy_share(few, lengths, servers, steps=12)
    assert 0 < share <= 1 + 1e-9
    assert busy_share(few, lengths, servers + 1, steps=12) >= share - 1e-9
    assert busy_share(older, lengths, servers, steps=12) >= share - 1e-9
