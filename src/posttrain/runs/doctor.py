"""`posttrain doctor`: what this machine offers a run, measured rather than assumed."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import torch

from posttrain.common.http import Endpoint, HttpError, Patience, request
from posttrain.model.device import choose_device, choose_dtype
from posttrain.model.kernels.flash import unsuitable
from posttrain.model.kernels.linear import available as onednn_available
from posttrain.rewards.code import CodeExecution, build
from posttrain.sandbox.pool import close

LIBRARIES = ("transformers", "tokenizers", "safetensors", "peft", "pyarrow", "numpy", "pydantic")
EXTRAS: dict[str, tuple[str, str]] = {
    "datasets": ("hub", "data sets from the hub"),
    "gguf": ("gguf", "models in GGUF files"),
    "vllm": ("vllm", "rollouts with vLLM in this process"),
    "lm_eval": ("lm-eval", "lm-evaluation-harness on a checkpoint"),
    "sacrebleu": ("metrics", "BLEU and chrF"),
    "rouge_score": ("metrics", "ROUGE"),
    "bert_score": ("metrics", "BERTScore"),
    "mauve": ("metrics", "MAUVE"),
    "wandb": ("wandb", "the tracker of Weights & Biases"),
    "mlflow_skinny": ("mlflow", "the tracker MLflow"),
    "trackio": ("trackio", "the tracker trackio"),
    "optuna": ("sweep", "a search for good values by posttrain sweep"),
    "ipykernel": ("notebooks", "the notebooks of examples/notebooks"),
}
HUB = "https://huggingface.co"
HUB_SECONDS = 5.0


@dataclass(frozen=True)
class Finding:
    """One line of the output."""

    name: str
    state: Literal["ok", "note", "missing"]
    """ok; note: it works, but perhaps not as expected; missing: it does not work here."""
    text: str


def examine(folder: Path = Path()) -> Iterator[Finding]:
    """Yield findings one by one; `folder` is where runs would be written."""
    yield from _python()
    yield from _devices()
    yield from _processor()
    yield _sandbox()
    yield from _extras()
    yield _disk(folder)
    yield _hub()


def _python() -> Iterator[Finding]:
    yield Finding("posttrain", "ok", version("posttrain"))
    yield Finding("python", "ok", f"{platform.python_version()} ({sys.executable})")
    yield Finding("platform", "ok", platform.platform())
    build = "CPU build"
    if torch.version.cuda is not None:
        build = f"CUDA {torch.version.cuda} build"
    elif torch.version.hip is not None:
        build = f"ROCm {torch.version.hip} build"
    yield Finding("torch", "ok", f"{torch.__version__}, {build}")
    yield Finding("libraries", "ok", ", ".join(f"{name} {version(name)}" for name in LIBRARIES))


def _devices() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        text = "none found by torch"
        if torch.version.cuda is None and torch.version.hip is None:
            text += ", which is a CPU build"
        yield Finding("gpu", "note", text)
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(i)
        name, (major, minor) = torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i)
        memory = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        yield Finding(f"gpu {i}", "ok", f"{name}, compute capability {major}.{minor}, {memory}")
    device = choose_device("auto")
    dtype = choose_dtype("auto", device)
    native = "native" if dtype == torch.bfloat16 else "no native"
    text = f"{str(dtype).removeprefix('torch.')} on {device.type}: {native} bfloat16 products"
    yield Finding("model.dtype auto", "ok", text)
    reason = unsuitable(device, dtype, 64)
    path = f"sequence by sequence: {reason}" if reason else "one flash kernel for packed sequences"
    slow = reason is not None and device.type == "cuda"
    yield Finding("attention", "note" if slow else "ok", path)


def _processor() -> Iterator[Finding]:
    threads = torch.get_num_threads()
    variable = os.environ.get("OMP_NUM_THREADS")
    setting = f"OMP_NUM_THREADS={variable}" if variable else "OMP_NUM_THREADS is not set"
    yield Finding("threads", "ok", f"{threads} of {os.cpu_count()} processors ({setting})")
    capability = torch.backends.cpu.get_cpu_capability()
    if onednn_available():
        yield Finding("fp32 products", "ok", f"oneDNN, {capability}")
    else:
        text = (
            f"torch's default, {capability}: slower on some CPUs than oneDNN, whose operator this "
            "torch lacks"
        )
        yield Finding("fp32 products", "note", text)
    mode = os.environ.get("MKL_CBWR", "")
    if mode.upper().endswith("STRICT") or not torch.backends.mkl.is_available():
        yield Finding("same bits", "ok", f"MKL_CBWR={mode or 'not needed: no MKL'}")
    else:
        text = f"MKL_CBWR={mode!r}: the last bits of a row may depend on the rest of its batch"
        yield Finding("same bits", "note", text)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding("memory", "ok", f"{memory / 2**30:.1f} GiB")


def _sandbox() -> Finding:
    """Return the isolation level that the reward code_execution would get."""
    try:
        pool = build(CodeExecution()).pool
    except ValueError as error:
        return Finding("sandbox", "missing", str(error))
    level, left_open = pool.level, pool.open
    close(pool)
    if left_open:
        return Finding("sandbox", "note", f"{level}: {left_open}")
    return Finding("sandbox", "ok", level)


def _extras() -> Iterator[Finding]:
    distributions = {"lm_eval": "lm-eval", "mauve": "mauve-text"}
    for module, (extra, use) in EXTRAS.items():
        try:
            installed = version(distributions.get(module, module.replace("_", "-")))
        except PackageNotFoundError:
            text = f"{use}: pip install 'posttrain[{extra}]'"
            yield Finding(module.replace("_", "-"), "note", f"not installed; {text}")
        else:
            yield Finding(module.replace("_", "-"), "ok", f"{installed} ({use})")


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder.resolve()).free
    text = f"{free / 1e9:.1f} GB free in {folder.resolve()}"
    return Finding("disk", "ok" if free > 10e9 else "note", text)


def _hub() -> Finding:
    if os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "True", "yes", "ON", "on"):
        return Finding(
            "hub", "note", "HF_HUB_OFFLINE is set: models and data come from local files"
        )
    address = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    server = Endpoint(urlsplit(address), Patience(HUB_SECONDS, 0, 0.0, 0.0))
    token = "a token is set" if os.environ.get("HF_TOKEN") else "no HF_TOKEN"
    try:
        request(server, "GET", "/api/models?limit=1")
    except HttpError as error:
        if error.reply is not None:
            return Finding("hub", "note", f"{address} answers {error.reply.status}; {token}")
        text = f"{address} does not answer ({error.problem}): use local folders"
        return Finding("hub", "note", text)
    finally:
        server.close()
    return Finding("hub", "ok", f"{address} answers; {token}")
