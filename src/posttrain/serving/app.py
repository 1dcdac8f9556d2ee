"""The application: routes of other modules, behind a check of the key and of the host."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from posttrain.common.loopback import LOCAL, hostname
from posttrain.serving import completions, models, page
from posttrain.serving.errors import Refusal
from posttrain.serving.http import answer, json_answer, refused
from posttrain.serving.service import Service
from posttrain.serving.updates import Updates
from posttrain.serving.updates import add_to as add_updates
from posttrain.serving.votes import Votes
from posttrain.serving.votes import add_to as add_votes

OPEN = ("/", "/health")
"""Paths that need no key: they say nothing about the model."""
STUCK = 300.0  # seconds without a step after which a sampler with work counts as stuck


def build_app(
    service: Service,
    key: str | None = None,
    host: str = "127.0.0.1",
    beside: Service | None = None,
    votes: Votes | None = None,
    updates: Updates | None = None,
) -> Any:
    """Return the ASGI application of a service; with a key, requests must carry it.

    The API of a second model, `beside`, begins at /beside/v1. `votes` keeps those of the chat page.
    `updates` takes new weights of the first model; None takes none.
    """
    from fastapi import FastAPI

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        for started in services.values():
            started.worker.start(asyncio.get_running_loop())
            await asyncio.wrap_future(started.worker.ready)
        yield
        for started in services.values():
            started.worker.stop()
            started.text.shutdown(wait=False, cancel_futures=True)

    services = {"v1": service} | ({} if beside is None else {"beside/v1": beside})
    hidden: Any = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    hidden["redirect_slashes"] = False
    app = FastAPI(lifespan=lifespan, **hidden)
    page.add_to(app, services, votes)
    add_votes(app, list(services.values()), votes)
    add_monitor(app, list(services.values()))
    if beside is not None:
        second = FastAPI(**hidden)
        add_api(second, beside)
        app.mount("/beside", second)
    add_updates(app, service, updates)
    add_api(app, service)
    return guarded(app, key, host)


def add_api(app: Any, service: Service) -> None:
    """Add the routes of a model, and JSON errors for what is no route."""
    from starlette.exceptions import HTTPException

    completions.add_to(app, service)
    models.add_to(app, service)

    async def unknown(request: Any, error: Any) -> Any:
        what = f"{request.method} {request.url.path}"
        text = f"no such route: {what}" if error.status_code == 404 else f"{what}: {error.detail}"
        return refused(Refusal(text, error.status_code))

    app.add_exception_handler(HTTPException, unknown)


def add_monitor(app: Any, services: list[Service]) -> None:
    """Add /health and /metrics of all services, whose meters become those of the first."""
    from fastapi import Response

    first = services[0]
    for service in services:
        service.meters = first.meters
    first.meters.watch(*services)

    async def health(request: Any) -> Any:
        for service in services:
            worker = service.worker
            if not worker.thread.is_alive():
                raise Refusal(f"the sampler of {service.name} has ended: restart the server", 503)
            if worker.busy and time.monotonic() - worker.beat > STUCK:
                stuck = f"the sampler of {service.name} has made no step for {STUCK:g} s"
                raise Refusal(stuck, 503)
        return json_answer({"status": "ok"})

    async def metrics(request: Any) -> Any:
        return Response(first.meters.text(), media_type="text/plain; version=0.0.4")

    app.add_api_route("/health", answer(first, health), methods=["GET"])
    app.add_api_route("/metrics", answer(first, metrics), methods=["GET"])


def guarded(app: Any, key: str | None, host: str) -> Any:
    """Return the application behind the check of the key, or of the host that a browser names.

    Without a key, a page of another site could reach a server on this machine under a name of its
    own: only requests to the host that the server is bound to are answered.
    """
    wanted = None if key is None else f"Bearer {key}".encode()

    async def guard(scope: Any, receive: Any, send: Any) -> Any:
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            given = headers.get(b"authorization", b"")
            if wanted is None:
                name = hostname(headers.get(b"host", b"").decode("latin-1"))
                if name not in (*LOCAL, host):
                    refusal = Refusal(f"the server does not answer for the host {name!r}", 403)
                    return await refused(refusal)(scope, receive, send)
            elif scope["path"] not in OPEN and not hmac.compare_digest(given, wanted):
                refusal = Refusal("send the server's API key as Authorization: Bearer KEY", 401)
                return await refused(refusal)(scope, receive, send)
        return await app(scope, receive, send)

    return guard
