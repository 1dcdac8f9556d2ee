"""Reading requests and writing answers; whatever goes wrong becomes one JSON object."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from posttrain.serving.errors import Gone, Refusal

log = logging.getLogger(__name__)

BODY_SECONDS = 30.0  # for all of a request's body to arrive


async def read(request: Any, most: int) -> bytes:
    """Return the body of a request; raise Refusal if it is too long, too slow or not JSON's."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # what a page of another site may send without asking is not of this type
        raise Refusal(f"Content-Type must be application/json, got {kind or 'none'}", 415)
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                data += part
                if len(data) > most:
                    raise Refusal(f"the body is longer than {most} bytes", 413)
    except TimeoutError:
        raise Refusal(f"the body did not arrive within {BODY_SECONDS:g} s", 408) from None
    return bytes(data)


def json_answer(tree: Any, status: int = 200, headers: dict[str, str] | None = None) -> Any:
    """Return a JSON answer."""
    from fastapi import Response

    text = json.dumps(tree, ensure_ascii=False)
    return Response(text.encode(), status, headers, media_type="application/json")


def stream(events: AsyncIterator[str]) -> Any:
    """Return a stream of server-sent events."""
    from fastapi.responses import StreamingResponse

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, headers=headers, media_type="text/event-stream")


def refused(refusal: Refusal) -> Any:
    """Return the answer to a request that is refused."""
    return json_answer(refusal.body(), refusal.status, refusal.headers)


def answer(service: Any, handle: Callable[[Any], Awaitable[Any]]) -> Any:
    """Return a route's function: `handle`, with every failure as a JSON error, and counted."""
    from fastapi import Request
    from starlette.requests import ClientDisconnect

    async def route(request: Request) -> Any:
        started = time.monotonic()
        try:
            response = await handle(request)
        except Refusal as refusal:
            response = refused(refusal)
        except asyncio.CancelledError:
            raise
        except (Gone, ClientDisconnect):
            service.meters.left.inc()
            response = refused(Refusal("the client has left", 499))  # nginx's number for it
        except Exception:
            log.exception("a request has failed")
            response = refused(Refusal("the server has failed; its log says how", 500))
        path = request.scope.get("root_path", "") + request.scope["route"].path
        service.meters.requests.labels(path, str(response.status_code)).inc()
        service.meters.seconds.labels(path).observe(time.monotonic() - started)
        return response

    # evaluated annotations: FastAPI looks names up in the module, where Request is not
    route.__annotations__ = {"request": Request, "return": Any}
    return route
