"""Every registered method in fp32 and bf16, full and LoRA, on CUDA: the CPU's gradient, no tensor
on the wrong device, no fp32 product in a bf16 run, no more kernels and waits than recorded."""

from __future__ import annotations

import contextlib
import functools

import device_steps
import pretend_cuda
import pytest
import torch
from device_steps import FORMS, METHODS, form_name
from repeats import choice
from test_invariants import VARIANTS

pretend_cuda.only_here()

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.15}
FP32_PRODUCTS = (
    0.01  # share of a bf16 run's products: heads with one output, which are kept in fp32
)


@functools.cache
def on_cpu(name, lora):
    return device_steps.step(name, "cpu", "float32", lora)


@contextlib.contextmanager
def deterministic(on):
    """With it, an operator that has no deterministic kernel on CUDA raises."""
    torch.use_deterministic_algorithms(on)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# The forms differ in the forward pass, which methods share: of sft all, and of methods with a loss,
# reference, head or values of their own the two forms that differ most.
DIFFERENT = ("dpo", "kto", "grpo", "ppo", "reward_model", "classification")
STEPS = [(*form, name) for form in FORMS for name in METHODS]
FAST = [(*form, name) for form in (FORMS[0], FORMS[-1]) for name in DIFFERENT]
FAST += [(*form, "sft") for form in FORMS]


@pytest.mark.parametrize(("dtype", "lora", "name"), choice(STEPS, FAST))
def test_a_step(name, dtype, lora):
    with deterministic(dtype == "bfloat16"):
        step = device_steps.step(name, "cuda", dtype, lora)
    assert step.distance(on_cpu(name, lora)) < TOLERANCE[dtype]
    if dtype == "bfloat16":
        assert step.cost.fp32_share <= FP32_PRODUCTS
    excess = step.cost.exceeds(device_steps.budget(name, form_name(dtype, lora)))
    assert not excess, f"{excess}: python scripts/gpu_costs.py records more; waits: {step.waits}"


def check_variant(name, keys):
    step = device_steps.step(name, "cuda", "bfloat16", True, **keys)
    assert step.distance(device_steps.step(name, "cpu", "float32", True, **keys)) < 0.3
    assert step.cost.fp32_share <= FP32_PRODUCTS


CHANGED = [(name, keys) for name, keys in VARIANTS if keys]
FIRST = list({name: (name, keys) for name, keys in reversed(CHANGED)}.values())  # of each method


@pytest.mark.parametrize(("name", "keys"), FIRST)
def test_a_variant(name, keys):
    """A switch of a method's loss, in bf16 with LoRA."""
    check_variant(name, keys)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "keys"), [x for x in CHANGED if x not in FIRST])
def test_every_other_variant(name, keys):
    check_variant(name, keys)


def test_a_method_registered_later_has_a_budget():
    """The highest that is recorded."""
    later = device_steps.budget("registered later", "bfloat16 LoRA")
    assert later.kernels == device_steps.budget("ppo", "bfloat16 LoRA").kernels
