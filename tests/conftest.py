"""Shared by all tests: tiny models on the CPU, no network."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # whatever the machine has

import hypothesis
import pytest
import torch
from repeats import leave_for_slow

# a machine under load is slow, not wrong
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    leave_for_slow(items, ROOT / "tests")


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.manual_seed(0)


def shared(path: str) -> Path:
    """A real data set or model that lies beside the repository; the test skips without it."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"needs {path} in a folder named shared beside the repository")
    return found
