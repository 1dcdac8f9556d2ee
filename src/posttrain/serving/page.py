"""The chat page at `/`, and what it needs to know of the server."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.serving.http import answer, json_answer
from posttrain.serving.models import cards
from posttrain.serving.service import Service
from posttrain.serving.votes import Votes

PAGE = Path(__file__).with_name("chat.html")
SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def add_to(app: Any, services: Mapping[str, Service], votes: Votes | None) -> None:
    """Add the page and `/setup`; `services` are under the paths at which their API begins."""
    from fastapi.responses import HTMLResponse

    text = PAGE.read_text(encoding="utf-8")
    headers = protection(text)
    first = next(iter(services.values()))

    async def page(request: Any) -> Any:
        return HTMLResponse(text, headers=headers)

    async def setup(request: Any) -> Any:
        models = [
            {"id": card["id"], "name": shown(card["id"]), "at": at}
            for at, service in services.items()
            for card in cards(service)
        ]
        longest = min(service.bounds.max_length for service in services.values())
        state = None if votes is None else votes.state()
        return json_answer({"models": models, "votes": state, "max_length": longest})

    app.add_api_route("/", answer(first, page), methods=["GET"])
    app.add_api_route("/setup", answer(first, setup), methods=["GET"])


def shown(name: str) -> str:
    """Return a model's name without the folders above it."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    keep = 2 if parts and parts[-1].startswith("checkpoint-") else 1
    return "/".join(parts[-keep:]) or name


def protection(text: str) -> dict[str, str]:
    """Return headers that let the page run its own script, talk to this server, and no more."""
    scripts = SCRIPT.findall(text)
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return {
        "Content-Security-Policy": (
            f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
            "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        ),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
