"""Benchmarks measure what they say: the load on both paths, and no table after a failure."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def benchmark(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_load_goes_to_both_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    serving = benchmark("serving")
    asked: list[tuple[str, dict[str, Any]]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = [line for line in head.splitlines() if line.startswith("Content-Length")]
        raw = await reader.readexactly(int(length[0].split(":")[1])) if length else b""
        status = 400
        if raw not in serving.MALFORMED:
            asked.append((head.split()[1], json.loads(raw)))
            status = 200
        body = b'{"usage": {"completion_tokens": 1}}'
        writer.write(f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    async def at_once(seconds: float) -> None:
        return None

    async def run() -> Any:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        args = argparse.Namespace(url=url, model="m", seconds=0.5, seed=0, tokens=8, clients=3)
        args.pid = None
        async with server:
            return await serving.load(args)

    monkeypatch.setattr(serving.asyncio, "sleep", at_once)
    result = asyncio.run(run())
    wanted = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}
    assert {path for path, _ in asked} == wanted.keys()
    assert all(wanted[path] in body for path, body in asked)
    shares = [sum(path == p for path, _ in asked) / len(asked) for p in wanted]
    assert min(shares) > 0.2
    assert {"whole chat/completions 200", "whole completions 200"} <= result["answers"].keys()


def test_a_part_that_fails_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    quantization = benchmark("quantization")
    monkeypatch.setattr(sys, "argv", ["x", "no-model", "--data", "d", "--small", "s"])
    monkeypatch.setattr(quantization, "__file__", str(BENCHMARKS / "no-such-file.py"))
    monkeypatch.setattr(quantization, "planned", lambda *given: pytest.fail("it went on"))
    with pytest.raises(subprocess.CalledProcessError):
        quantization.main()


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["sft"], ["preferences", "--methods", "dpo"], ["rl", "--methods", "grpo"]]
)
def test_a_benchmark_runs(arguments: list[str]) -> None:
    """Each starts posttrain and TRL in processes of their own, with the trainer as it is now."""
    name, *more = arguments
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *more, "--quick", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "posttrain / TRL" in done.stdout
