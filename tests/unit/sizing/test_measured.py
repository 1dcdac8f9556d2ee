"""The forecast of memory against runs on a CPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

CASES = ("llama 33m sft", "qwen2 33m dpo", "llama 33m checkpointing")


@pytest.mark.slow
def test_the_peak_is_within_a_tenth_of_what_is_measured() -> None:
    command = [sys.executable, "benchmarks/memory.py", "--check", *CASES]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = {}
    for line in done.stdout.splitlines():
        if match := re.fullmatch(r"(.+?)\s+([\d,]+)\s+([\d,]+)\s+[+-][\d.]+%", line):
            found[match[1]] = [float(match[i].replace(",", "")) for i in (2, 3)]
    assert set(found) == set(CASES)
    for predicted, measured in found.values():
        assert predicted == pytest.approx(measured, rel=0.1)
