"""Load on a server with OpenAI's API: throughput, or many clients that also misbehave.

    python benchmarks/serving.py throughput URL MODEL --clients 32 --requests 64
    python benchmarks/serving.py load URL MODEL --clients 200 --seconds 600 --pid PID

`throughput` sends chats of ragged lengths, each answered with a fixed number of tokens. `load` also
asks for completions of plain text, leaves in the middle of answers and sends bodies that are no
requests; with the server's process id it reports file descriptors and resident memory before and
after. The servers are started by hand, so that those of others can be asked the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

WORDS = (
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "asked",
    "how",
    "many",
    "apples",
    "a",
    "farmer",
    "has",
    "if",
    "he",
    "sells",
    "half",
    "of",
)
MALFORMED = (b"", b"{", b"[]", b'{"prompt": NaN}', b'{"messages": 3}', b'{"x": 1}', b"\xff\xfe")


def chat(model: str, chance: random.Random, tokens: int, **more: Any) -> dict[str, Any]:
    """Return a chat of a random length, with a system message that many share."""
    text = " ".join(chance.choices(WORDS, k=chance.randint(5, 60)))
    messages = [
        {"role": "system", "content": "You are a helpful assistant. Answer in one sentence."},
        {"role": "user", "content": text},
    ]
    return {"model": model, "messages": messages, "max_tokens": tokens, **more}


def completion(model: str, chance: random.Random, tokens: int, **more: Any) -> dict[str, Any]:
    """Return a text of a random length to complete."""
    text = " ".join(chance.choices(WORDS, k=chance.randint(5, 60)))
    return {"model": model, "prompt": text, "max_tokens": tokens, **more}


BODIES = {"/v1/chat/completions": chat, "/v1/completions": completion}


async def post(
    url: str, path: str, body: bytes, leave_after: float | None = None
) -> tuple[int, bytes]:
    """Return status and body of an answer; status 0 if the client left before its end."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
        async with asyncio.timeout(leave_after if leave_after is not None else 900):
            data = await reader.read()
    except TimeoutError:
        return 0, b""
    finally:
        writer.close()
    top, _, rest = data.partition(b"\r\n\r\n")
    status = int(top.split(maxsplit=2)[1])
    return status, _whole(rest) if b"chunked" in top.lower() else rest


def _whole(data: bytes) -> bytes:
    """Return a body that came in chunks."""
    parts = []
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        parts.append(data[:length])
        data = data[length + 2 :]
        if length == 0:
            break
    return b"".join(parts)


async def throughput(args: argparse.Namespace) -> dict[str, Any]:
    """Return requests and tokens per second of clients that ask one chat after another."""
    chance = random.Random(args.seed)
    bodies = []
    for i in range(args.requests):
        tokens = chance.randint(args.tokens // 2, args.tokens)
        bodies.append(chat(args.model, chance, tokens, temperature=0.8, seed=i, **args.extra))
    waiting, seconds, tokens = list(bodies), [], []
    before = process_of(args.pid)

    async def client() -> None:
        while waiting:
            body = json.dumps(waiting.pop()).encode()
            started = time.perf_counter()
            status, data = await post(args.url, "/v1/chat/completions", body)
            assert status == 200, data[:500]
            seconds.append(time.perf_counter() - started)
            tokens.append(tokens_of(data))

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(args.clients)))
    result = summary(seconds, sum(tokens), time.perf_counter() - started)
    if args.pid is not None:
        spent = process_of(args.pid)["cpu_seconds"] - before["cpu_seconds"]
        result |= {"cpu_seconds": spent, "tokens_per_cpu_second": round(sum(tokens) / spent, 1)}
    return result


def tokens_of(data: bytes) -> int:
    """Return the completion tokens that an answer, or the last event of a stream, counts."""
    text = data.decode()
    if text.startswith("data:"):
        events = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
        return int(next(u for e in reversed(events) if (u := json.loads(e).get("usage")))[
            "completion_tokens"
        ])  # fmt: skip
    return int(json.loads(text)["usage"]["completion_tokens"])


def summary(seconds: list[float], tokens: int, wall: float) -> dict[str, Any]:
    """Return what was measured, in seconds."""
    ordered = sorted(seconds)
    return {
        "requests": len(seconds),
        "seconds": round(wall, 2),
        "requests_per_second": round(len(seconds) / wall, 3),
        "tokens_per_second": round(tokens / wall, 1),
        "p50": round(statistics.median(ordered), 3),
        "p99": round(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 3),
    }


async def load(args: argparse.Namespace) -> dict[str, Any]:
    """Return what many clients of all kinds got within some time."""
    end = time.monotonic() + args.seconds
    statuses: Counter[str] = Counter()
    seconds: list[float] = []
    tokens = 0
    before = process_of(args.pid)

    async def client(number: int) -> None:
        nonlocal tokens
        chance = random.Random(f"{args.seed} {number}")
        while time.monotonic() < end:
            kind = chance.choices(("whole", "stream", "leave", "malformed"), (5, 3, 1, 1))[0]
            path = chance.choice(tuple(BODIES))
            if kind == "malformed":
                status, _ = await post(args.url, path, chance.choice(MALFORMED))
                statuses[f"malformed {status}"] += 1
                continue
            wanted = chance.randint(1, args.tokens)
            more: dict[str, Any] = {"n": chance.choice((1, 1, 1, 2))}
            if kind != "whole":
                more |= {"stream": chance.random() < 0.8}
                more |= {"stream_options": {"include_usage": True}} if more["stream"] else {}
            leave = chance.uniform(0, 2) if kind == "leave" else None
            body = json.dumps(BODIES[path](args.model, chance, wanted, **more)).encode()
            started = time.perf_counter()
            status, data = await post(args.url, path, body, leave)
            statuses[f"{kind} {path.rpartition('/v1/')[2]} {status}"] += 1
            if status == 200:
                seconds.append(time.perf_counter() - started)
                tokens += tokens_of(data)
            elif status == 429:
                await asyncio.sleep(chance.uniform(0.2, 1))

    started = time.perf_counter()
    await asyncio.gather(*(client(i) for i in range(args.clients)))
    result = summary(seconds, tokens, time.perf_counter() - started)
    await asyncio.sleep(5)
    metrics = await gauges(args.url)
    after = process_of(args.pid)
    return result | {"answers": dict(statuses), "before": before, "after": after, "gauges": metrics}


async def gauges(url: str) -> dict[str, float]:
    """Return the gauges of our server; empty for another."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(
        f"GET /metrics HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode()
    )
    text = (await reader.read()).decode()
    writer.close()
    names = ("running", "waiting", "in_flight", "prefix_bytes", "prefix_tokens_found")
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    values = {name.removeprefix("posttrain_"): value for name, _, value in lines}
    return {name: float(values[name]) for name in names if name in values}


def process_of(pid: int | None) -> dict[str, Any]:
    """Return time, file descriptors, threads and memory of a process; empty without one."""
    if pid is None:
        return {}
    status = Path(f"/proc/{pid}/status").read_text()
    found = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    ticks = sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return {
        "cpu_seconds": ticks / os.sysconf("SC_CLK_TCK"),
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(found["Threads"]),
        "resident_mib": int(found["VmRSS"].split()[0]) // 1024,
    }


def main() -> None:
    """Run one of the two and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("throughput", "load"))
    parser.add_argument("url", help="without /v1")
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=64, help="of throughput, in all")
    parser.add_argument("--tokens", type=int, default=64, help="largest completion")
    parser.add_argument("--seconds", type=float, default=60, help="of load")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pid", type=int, help="the server's process")
    parser.add_argument("--extra", type=json.loads, default={}, help="fields of every body, JSON")
    args = parser.parse_args()
    print(json.dumps(asyncio.run({"throughput": throughput, "load": load}[args.what](args))))


if __name__ == "__main__":
    main()
