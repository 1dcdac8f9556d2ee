"""Shared parts of the benchmarks: worker processes, models, medians, facts about the machine.

Nothing heavy is imported at module level: on Linux a child's peak memory starts from that of the
process that forked it, so the driver has to stay small.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
MIB = 2**20

# Settings of glibc's malloc, applied to both sides. `tuned` is what posttrain sets for itself:
# freed memory is kept for the next step instead of being returned to the kernel and zeroed again.
ALLOCATORS: dict[str, dict[str, str]] = {
    "tuned": {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)},
    "default": {},
}

SHAPES: dict[str, dict[str, int]] = {
    "8m": {
        "hidden_size": 256,
        "num_hidden_layers": 11,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 704,
    },
    "small": {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "intermediate_size": 384,
    },
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
    },
}


def random_qwen2(shape: str, vocab: int, seed: int = 0, initializer_range: float = 0.02) -> Any:
    """Return a Qwen2 causal LM with random fp32 weights and a tied head; `shape` is in SHAPES."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocab,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=initializer_range,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **SHAPES[shape],
    )
    return Qwen2ForCausalLM(config)


def posttrain_policy(model: Any) -> Any:
    """Return the model as posttrain trains and samples it: in fp32, on the CPU, without adapter."""
    import torch

    from posttrain.model.config import ModelConfig
    from posttrain.model.load import prepare_policy

    config = ModelConfig(name="benchmark", device="cpu", dtype="float32", use_lora=False)
    return prepare_policy(model, config, torch.device("cpu"), torch.float32, seed=0)


def weights_hash(model: Any) -> str:
    """Return a hash that is equal for two models with bitwise equal weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def peak_memory() -> float:
    """Return the peak resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def use_threads(threads: int) -> None:
    """Set the number of threads that torch uses."""
    import torch

    torch.set_num_threads(threads)


def matmul_rate(repeats: int = 30) -> float:
    """Return the best FLOP/s of the fp32 product [2048, 1024] @ [1024, 1024] in `repeats` runs."""
    import torch

    a, b = torch.randn(2048, 1024), torch.randn(1024, 1024)
    out = torch.empty(2048, 1024)
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        torch.mm(a, b, out=out)
        best = min(best, time.perf_counter() - started)
    return 2 * 2048 * 1024 * 1024 / best


def run_worker(
    script: str, settings: dict[str, Any], allocator: str, threads: int
) -> dict[str, Any]:
    """Run a worker script in its own process and return its measurement.

    The worker reads `settings` from stdin. Exit with its output if it fails.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    environment |= ALLOCATORS[allocator]
    environment |= {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
    }
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        message = json.dumps({**settings, "threads": threads, "folder": folder})
        command = [sys.executable, str(HERE / script), str(output)]
        worker = subprocess.run(
            command, env=environment, input=message, capture_output=True, text=True
        )
        if worker.returncode != 0:
            printed = f"{worker.stdout[-2000:]}\n{worker.stderr[-6000:]}"
            sys.exit(f"{' '.join(command)} failed:\n{printed}")
        return json.loads(output.read_text())


def answer(work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Serve `run_worker`: read settings from stdin, write the result to the file named in argv."""
    settings = json.loads(sys.stdin.read())
    use_threads(settings["threads"])
    Path(sys.argv[1]).write_text(json.dumps(work(settings)))


def machine(threads: int) -> dict[str, Any]:
    """Return a description of the machine: processor, cores, threads, memory, system."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gib": round(memory, 1),
        "system": platform.system(),
    }


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of the named packages."""
    result = {"python": platform.python_version()}
    for name in packages:
        try:
            result[name] = version(name)
        except PackageNotFoundError:
            result[name] = "not installed"
    return result


def median_of(rows: list[dict[str, Any]], side: str, key: str) -> float:
    """Return the median of a key over the rows of one side."""
    return statistics.median(row[key] for row in rows if row["side"] == side)


def median_ratio(rows: list[dict[str, Any]], side: str, peer: str, key: str) -> float:
    """Return the median over the rounds of side / peer, both from the same round."""
    value = {(row["round"], row["side"]): row[key] for row in rows if key in row}
    rounds = sorted({row["round"] for row in rows})
    return statistics.median(value[r, side] / value[r, peer] for r in rounds)


def in_turn(sides: list[str], turn: int) -> list[str]:
    """Return the sides rotated by `turn`, so that no side always runs first."""
    start = turn % len(sides)
    return sides[start:] + sides[:start]


def write_results(name: str, results: dict[str, Any]) -> None:
    """Write benchmarks/results/<name>.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written: {path.relative_to(HERE.parent)}")


def today() -> str:
    """Return the current time in UTC, in ISO format."""
    return datetime.now(UTC).isoformat(timespec="seconds")
