"""What the program sets for itself in its own process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# rows of a small product in 16 alignments: without MKL's strict mode some differ in their last bits
ALIGNMENTS = """
import posttrain, torch
x, w = torch.randn(5, 16), torch.randn(7, 16)
def moved(t, by):
    place = torch.empty(t.numel() + 32)[by : by + t.numel()].view_as(t)
    return place.copy_(t)
print(sum(not torch.equal(moved(x, i) @ moved(w, j).T, x @ w.T)
          for i in range(16) for j in range(16)))
"""


def run(program: str, **environment: str) -> str:
    variables = {k: v for k, v in os.environ.items() if k != "MKL_CBWR"} | environment
    done = subprocess.run(
        [sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("kernels", ["default", "avx2"])
def test_a_product_does_not_depend_on_where_its_operands_lie(kernels: str) -> None:
    held = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
    assert run(ALIGNMENTS, **(held if kernels == "avx2" else {})) == "0"


def test_without_the_mode_it_does_depend_on_it() -> None:
    """Or else the test above could not fail. Not every processor has such kernels."""
    if run(ALIGNMENTS, MKL_CBWR="") == "0":
        pytest.skip("MKL's kernels for this processor do not depend on alignment")


def test_a_value_that_the_user_has_set_wins() -> None:
    assert run("import posttrain, os; print(os.environ['MKL_CBWR'])", MKL_CBWR="AVX2") == "AVX2"
