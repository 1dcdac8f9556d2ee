"""The tests of this folder on a pretended CUDA device, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pretend_cuda
import pytest

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
reason = "this is that process" if pretend_cuda.installed() else pretend_cuda.missing()
needed = pytest.mark.skipif(reason is not None, reason=str(reason))


def on_cuda(*arguments: str) -> None:
    paths = [str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "pretend_cuda", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-4_000:]


@needed
def test_the_fast_ones():
    on_cuda("-m", "not slow", str(FOLDER))


@needed
@pytest.mark.slow
def test_the_slow_ones_too():
    on_cuda("-m", "slow", str(FOLDER))
