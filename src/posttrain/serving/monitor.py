"""Counters of a server, in Prometheus's format."""

from __future__ import annotations

from functools import partial
from typing import Any

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Meters:
    """What /metrics shows; every server has its own, of all its models together."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()

        def made(kind: Any, name: str, text: str, labels: tuple[str, ...] = (), **keys: Any) -> Any:
            return kind(f"posttrain_{name}", text, labels, registry=self.registry, **keys)

        self.requests = made(
            Counter, "requests", "Answers by route and status", ("route", "status")
        )
        self.seconds = made(
            Histogram, "request_seconds", "Seconds of a request", ("route",), buckets=SECONDS
        )
        self.first_token = made(
            Histogram, "first_token_seconds", "Seconds to a first streamed token", buckets=SECONDS
        )
        self.read = made(Counter, "prompt_tokens", "Tokens of prompts")
        self.sampled = made(Counter, "completion_tokens", "Tokens sampled")
        self.refused = made(Counter, "refused", "Requests refused since the server was busy")
        self.left = made(Counter, "disconnects", "Clients that left before their answer")
        self.gauges = {
            name: made(Gauge, name, text)
            for name, text in (
                ("running", "Completions in the batch"),
                ("waiting", "Completions that wait"),
                ("in_flight", "Completions that were taken on"),
                ("prefix_bytes", "Memory of the prefix cache"),
                ("prefix_tokens_asked", "Prompt tokens looked up in the prefix cache"),
                ("prefix_tokens_found", "Prompt tokens found in the prefix cache"),
                ("adapters", "Adapters that are loaded"),
            )
        }

    def watch(self, *services: Any) -> None:
        """Show the state of services, as sums."""

        def total(name: str) -> float:
            return float(sum(state_of(service)[name] for service in services))

        for name, gauge in self.gauges.items():
            gauge.set_function(partial(total, name))

    def text(self) -> bytes:
        """Return all of them as text."""
        from prometheus_client import generate_latest

        return bytes(generate_latest(self.registry))


def state_of(service: Any) -> dict[str, int]:
    """Return the gauges of a service."""
    engine = service.worker.engine
    prefixes = getattr(engine, "prefixes", None)
    return {
        "running": len(engine.running.rows) if engine else 0,
        "waiting": engine.num_waiting if engine else 0,
        "in_flight": service.in_flight,
        "prefix_bytes": getattr(prefixes, "num_bytes", 0),
        "prefix_tokens_asked": getattr(prefixes, "asked", 0),
        "prefix_tokens_found": getattr(prefixes, "found", 0),
        "adapters": len(service.adapters),
    }
