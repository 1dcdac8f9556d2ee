"""Memory, speed and held-out loss of a model in fp32, bf16, int8, nf4 and fp4, with a LoRA.

    python benchmarks/quantization.py MODEL --data GSM8K --small TINY_MODEL

Rounds are interleaved and the figures are medians, in CPU seconds of one thread, so that other
programs on the machine matter little. Memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from posttrain.common.batch import pack, sequences_of
from posttrain.model.forward import forward
from posttrain.model.kernels import quantized
from posttrain.model.kernels.quantized import stored_bytes
from posttrain.rollout.native.sampler import NativeSampler
from posttrain.rollout.sampler import SamplingParams
from posttrain.runs.config import load_config
from posttrain.runs.plan import plan

FORMS: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "int8": {"dtype": "float32", "quantization": "int8"},
    "nf4": {"dtype": "float32", "quantization": "nf4"},
    "nf4, plain scales": {
        "dtype": "float32",
        "quantization": {"type": "nf4", "double_quant": False},
    },
    "fp4": {"dtype": "float32", "quantization": "fp4"},
}
TOKENS, NEW = 256, 16


def planned(form: str, model: str, data: str) -> Any:
    """Return the plan of an SFT run on GSM8K, with 100 held-out rows."""
    tree = {
        "model": {"name": model, "adapter": {"type": "lora", "r": 16}, **FORMS[form]},
        "data": {"name": "gsm8k", "path": data, "max_samples": 64},
        "length": {"max_length": 512, "on_overlong": "drop"},
        "trainer": {
            "type": "sft",
            "max_steps": 1,
            "batch_size": 8,
            "eval_steps": 1,
            "output_dir": tempfile.gettempdir(),
        },
        "eval": {"max_samples": 100},
    }
    return plan(load_config(tree))


def resident() -> float:
    """Return the resident memory of this process in MiB, after freed memory was given back."""
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("VmRSS")) / 1024


def memory(form: str, model: str, small: str, data: str) -> None:
    """Print the weights' bytes, and the resident memory after loading and after a step."""
    planned(form, small, data)  # loads the libraries
    before = resident()
    result = planned(form, model, data)
    loaded = resident() - before
    policy = result.models.policy
    step(policy, training_batch(result.data.examples))
    print(f"{stored_bytes(policy) / 2**20:.0f} {loaded:.0f} {resident() - before:.0f}")


def training_batch(examples: list[Any]) -> Any:
    """Return as many rows as have TOKENS tokens."""
    rows, count = [], 0
    for row in sequences_of(examples):
        if count + len(row) <= TOKENS:
            rows.append(row)
            count += len(row)
    return pack(rows)


def step(policy: Any, batch: Any) -> None:
    """Run a forward and a backward pass."""
    policy.train()
    (-forward(policy, batch).logprobs.sum()).backward()
    for p in policy.parameters():
        p.grad = None


def sample(policy: Any, prompts: list[list[int]]) -> None:
    """Sample NEW tokens after each prompt."""
    params = SamplingParams(max_new_tokens=NEW, stop_token_ids=())
    SAMPLERS.setdefault(id(policy), NativeSampler(policy, 16)).generate(
        prompts, params, list(range(len(prompts)))
    )


SAMPLERS: dict[int, NativeSampler] = {}


def seconds(work: Callable[[], None]) -> float:
    """Return CPU seconds of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


@torch.no_grad()
def held_out(policy: Any, examples: list[Any]) -> float:
    """Return the mean loss per trained token."""
    policy.eval()
    total = count = 0.0
    for part in pack(sequences_of(examples)).split(2048):
        total -= float(forward(policy, part).logprobs.sum())
        count += float(part.loss_mask.sum())
    return total / count


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--small", required=True, help="a tiny model, to load the libraries with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", choices=list(FORMS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory:
        memory(arguments.memory, arguments.model, arguments.small, arguments.data)
        return
    for form in FORMS:
        if form != "nf4, plain scales":
            words = [sys.executable, __file__, *sys.argv[1:]]
            asked = [*words, "--memory", form]
            done = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=True)
            print(form, "weights, loaded, after a step (MiB):", done.stdout.strip(), flush=True)
    plans = {form: planned(form, arguments.model, arguments.data) for form in FORMS}
    policies = {form: p.models.policy for form, p in plans.items()}
    rows = next(iter(plans.values())).data
    batch = training_batch(rows.examples)
    prompts = [row.input_ids[:64].tolist() for row in sequences_of(rows.examples)[:16]]
    work: dict[str, Callable[[Any], None]] = {
        "1 row": lambda policy: sample(policy, prompts[:1]),
        "16 rows": lambda policy: sample(policy, prompts),
        "step": lambda policy: step(policy, batch),
    }
    times: dict[tuple[str, str], list[float]] = {}
    for number in range(arguments.rounds + 1):
        for form, policy in policies.items():
            for name, run in work.items():
                taken = seconds(partial(run, policy))
                if number:
                    times.setdefault((form, name), []).append(taken)
        for form in ("nf4", "int8"):  # without de-quantised weights
            kept, quantized.SHARE = quantized.SHARE, 0.0
            taken = seconds(partial(sample, policies[form], prompts[:1]))
            quantized.SHARE = kept
            if number:
                times.setdefault((f"{form}, each token", "1 row"), []).append(taken)
        print(f"round {number}", flush=True)
    for (form, name), values in times.items():
        median, count = statistics.median(values), {"1 row": NEW, "16 rows": 16 * NEW}.get(name)
        rate = f"{count / median:,.0f} tokens/s" if count else f"{median:.2f} s"
        spread = f"{min(values):.2f} to {max(values):.2f} s"
        print(f"{form:<20} {name:<8} {rate:<16} ({spread})", flush=True)
    for form, policy in policies.items():
        loss = held_out(policy, rows.eval_examples)
        print(f"{form:<20} held-out loss {loss:.4f}", flush=True)


if __name__ == "__main__":
    main()
