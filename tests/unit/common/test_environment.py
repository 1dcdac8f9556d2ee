"""What the program sets for itself in its own process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from posttrain.model.kernels.linear import available

CAPACITIES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
OURS = ("MKL_CBWR", *CAPACITIES)

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


# memory in MiB that products of ever new shapes keep
SHAPES = """
from posttrain.common.environment import bound_kernels
bound_kernels()
import torch
torch.set_num_threads(1)
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20
x, w = torch.randn(1000, 64), torch.randn(32, 64)
product = lambda rows: torch.ops.mkldnn._linear_pointwise(x[:rows], w, None, "none", [], "")
product(1000)
before = resident()
for rows in range(900, 500, -1):
    product(rows)
print(resident() - before)
"""


def run(program: str, **environment: str) -> str:
    variables = {k: v for k, v in os.environ.items() if k not in OURS} | environment
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


@pytest.mark.slow
@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not available(), reason="needs Linux and oneDNN"
)
def test_products_of_ever_new_shapes_keep_little_memory() -> None:
    kept, by_default = float(run(SHAPES)), float(run(SHAPES, **dict.fromkeys(CAPACITIES, "1024")))
    if by_default < 100:
        pytest.skip("oneDNN's kernels for this processor are small")
    assert kept < 0.6 * by_default
