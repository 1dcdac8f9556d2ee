"""Memory by step: what the process takes."""

from __future__ import annotations

import mmap

import pytest

from posttrain.tracking import memory
from posttrain.tracking.memory import in_words, memory_used


@pytest.mark.parametrize("with_proc", [True, False])
def test_memory_that_is_touched_is_counted(
    with_proc: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_proc:
        monkeypatch.setattr(memory, "STATM", memory.STATM / "none")
    before = memory_used()["memory/resident"]
    with mmap.mmap(-1, 2**29) as block:
        assert memory_used()["memory/resident"] < before + 0.1
        block.write(b"x" * 2**29)
        now = memory_used()["memory/resident"]
    # the most so far may have been more than the block before it was there
    assert now > before + 0.4 or not with_proc
    assert now >= before


def test_the_console_names_the_gpus_memory_on_a_gpu() -> None:
    assert in_words({"memory/resident": 1.25}) == "memory 1.25 GiB"
    assert in_words({"memory/resident": 1.25, "memory/peak": 70.123}) == "memory 70.1 GiB"
