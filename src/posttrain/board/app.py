"""The board's application: the page, and what it asks for as JSON."""

from __future__ import annotations

import hmac
import json
import logging
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from posttrain.board import disk
from posttrain.board.catalogue import Catalogue
from posttrain.board.curves import Curves
from posttrain.board.growing import Workers
from posttrain.board.results import Results
from posttrain.board.samples import Samples
from posttrain.common.files import finite
from posttrain.common.loopback import is_local_name

log = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("page")
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
LONGEST_BODY = 10_000  # bytes
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

Json = dict[str, Any]


class Refusal(Exception):
    """A request that is not answered, with its HTTP status."""

    def __init__(self, problem: str, status: int = 400) -> None:
        super().__init__(problem)
        self.status = status


class Board:
    """What the page may ask. Each method takes a request's query and returns JSON."""

    def __init__(self, root: Path, key: str | None, workers: Workers) -> None:
        """Take the key that a request to delete must carry; without one nothing is deleted."""
        self.catalogue, self.key = Catalogue(root), key
        self.curves_, self.samples_ = Curves(workers), Samples(workers)
        self.results = Results(root)

    def runs(self, query: Query) -> Json:
        """Return the runs, or those that changed."""
        since = query.number("since")
        return self.catalogue.changes(since) | {"allow_delete": self.key is not None}

    def curves(self, query: Query) -> Json:
        """Return metrics of several runs."""
        span = query.number("from"), query.number("to")
        names = query.all("metric")
        runs = {}
        for run in query.all("run"):
            try:
                runs[run] = self.curves_.curves(self._folder(run), names, *span)
            except (KeyError, FileNotFoundError):
                continue  # deleted a moment ago: the page learns it from the list of runs
        return {"runs": runs}

    def samples(self, query: Query) -> Json:
        """Return the steps at which there are samples."""
        return self.samples_.steps(self._folder(query.one("run")))

    def samples_step(self, query: Query) -> Json:
        """Return the samples of a step."""
        step = query.number("step")
        if step is None:
            raise Refusal("step is missing")
        return self.samples_.at_step(self._folder(query.one("run")), query.one("kind"), step)

    def samples_one(self, query: Query) -> Json:
        """Return one sample with its tokens."""
        return self.samples_.one(self._folder(query.one("run")), query.one("key"))

    def samples_prompts(self, query: Query) -> Json:
        """Return prompts with the rewards of their completions over the steps."""
        words = query.get("q") or ""
        return self.samples_.prompts(self._folder(query.one("run")), query.one("kind"), words)

    def samples_prompt(self, query: Query) -> Json:
        """Return the samples of one prompt in several runs."""
        found, left_out = [], 0
        for run in query.all("run"):
            samples, left = self.samples_.of_prompt(self._folder(run), query.one("prompt_key"))
            found += [{"run": run, **sample} for sample in samples]
            left_out += left
        return {"samples": found, "left_out": left_out}

    def classification(self, query: Query) -> Json:
        """Return a confusion matrix."""
        return self.curves_.classification(self._folder(query.one("run")), query.number("step"))

    def evaluations(self, query: Query) -> Json:
        """Return the results of evaluations."""
        self.catalogue.refresh()
        return self.results.table(self.catalogue.folders)

    def compare(self, query: Query) -> Json:
        """Return the paired test between two results."""
        return self.results.compare(query.one("a"), query.one("b"))

    def disk(self, query: Query) -> Json:
        """Return what a run, or all, take on the disk."""
        return disk.usage(self.catalogue, query.get("run"))

    def delete(self, order: Json, key: str) -> Json:
        """Delete what the page asks to delete."""
        if self.key is None:
            raise Refusal("this board was not started with the right to delete (allow_delete)", 403)
        if not hmac.compare_digest(key.encode(), self.key.encode()):
            raise Refusal("open the address that the command has printed, with its key", 403)
        run, part = order.get("run"), order.get("part")
        if not isinstance(run, str) or not (part is None or isinstance(part, str)):
            raise Refusal("run must be a text, and part a text or null")
        return {"freed": disk.delete(self.catalogue, run, part)}

    def _folder(self, run: str) -> Path:
        return self.catalogue.folder(run)


class Query:
    """The query of a request."""

    def __init__(self, parameters: Any) -> None:
        self.parameters = parameters

    def get(self, name: str) -> str | None:
        """Return a value, None if there is none."""
        value: str | None = self.parameters.get(name)
        return value

    def one(self, name: str) -> str:
        """Return a value. Raise Refusal if it is missing."""
        value = self.get(name)
        if value is None:
            raise Refusal(f"{name} is missing")
        return value

    def all(self, name: str) -> list[str]:
        """Return all values of a name, each once."""
        return list(dict.fromkeys(self.parameters.getlist(name)))

    def number(self, name: str) -> int | None:
        """Return a whole number, None if it is missing. Raise Refusal for another value."""
        value = self.get(name)
        if value is None:
            return None
        if not value.isascii() or not value.isdecimal() or len(value) > 15:
            raise Refusal(f"{name}: expected a whole number, got {value[:40]!r}")
        return int(value)


ROUTES: dict[str, Callable[[Board, Query], Json]] = {
    "runs": Board.runs,
    "curves": Board.curves,
    "samples": Board.samples,
    "samples/step": Board.samples_step,
    "samples/one": Board.samples_one,
    "samples/prompts": Board.samples_prompts,
    "samples/prompt": Board.samples_prompt,
    "classification": Board.classification,
    "evaluations": Board.evaluations,
    "compare": Board.compare,
    "disk": Board.disk,
}


def build_app(board: Board) -> Any:
    """Return the ASGI application of a board."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.middleware.gzip import GZipMiddleware
    from starlette.routing import Route

    lock = threading.Lock()  # the summaries of files are changed by those who look at them

    def reading(call: Callable[[Board, Query], Json]) -> Any:
        async def route(request: Any) -> Any:
            query = Query(request.query_params)
            return await run_in_threadpool(answered, lock, partial(call, board, query))

        return route

    async def delete(request: Any) -> Any:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > LONGEST_BODY:
                return failure(f"the body is longer than {LONGEST_BODY} bytes", 413)
        try:
            order = json.loads(body)
        except (ValueError, RecursionError):
            order = None
        if kind != "application/json" or not isinstance(order, dict):
            return failure("expected a JSON object, as application/json", 400)
        key = request.headers.get("x-board-key", "")
        return await run_in_threadpool(answered, lock, partial(board.delete, order, key))

    async def page(request: Any) -> Any:
        return page_file(request.path_params.get("name") or "index.html")

    async def unknown(request: Any, error: Any) -> Any:
        return failure(f"{request.method} {request.url.path}: {error.detail}", error.status_code)

    routes = [Route(f"/api/{path}", reading(call)) for path, call in ROUTES.items()]
    routes += [Route("/api/delete", delete, methods=["POST"])]
    routes += [Route("/", page), Route("/{name}", page)]
    app = Starlette(routes=routes, exception_handlers={HTTPException: unknown})
    app.add_middleware(GZipMiddleware, minimum_size=2000, compresslevel=1)
    return guarded(app)


def answered(lock: threading.Lock, call: Callable[[], Json]) -> Any:
    """Return the response to a call; whatever goes wrong in it becomes one line of JSON."""
    try:
        with lock:
            result = call()
        return as_json(result)
    except Refusal as refusal:
        return failure(str(refusal), refusal.status)
    except KeyError as error:
        return failure(f"there is no {error.args[0]!r}: it was deleted or renamed", 404)
    except ValueError as error:
        return failure(str(error), 400)
    except OSError as error:
        return failure(f"a file could not be read: {error}", 500)
    except Exception as error:  # files of other programs, with contents that nobody foresaw
        log.exception("a request failed")
        return failure(f"this could not be answered: {type(error).__name__}: {error}", 500)


def as_json(tree: Any, status: int = 200) -> Any:
    """Return JSON, null for what is not finite. A lone surrogate, which UTF-8 has not, is escaped.

    Files of runs can hold NaN and infinity, such as the log-prob of a token that was masked.
    """
    from starlette.responses import Response

    try:
        text = as_text(tree)
    except ValueError:
        text = as_text(finite(tree))
    return Response(text, status, HEADERS, media_type="application/json")


def as_text(tree: Any) -> str:
    """Return JSON as a text. Raise ValueError for a number that is not finite."""
    return json.dumps(tree, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def failure(problem: str, status: int) -> Any:
    """Return an error as JSON."""
    return as_json({"error": " ".join(problem.split())}, status)


def page_file(name: str) -> Any:
    """Return a file of the page."""
    from starlette.responses import Response

    file = PAGE / name
    if file not in PAGE.iterdir() or file.suffix not in TYPES:
        return failure(f"there is no /{name}", 404)
    kind = f"{TYPES[file.suffix]}; charset=utf-8"
    return Response(file.read_bytes(), headers=HEADERS | {"Content-Type": kind})


def guarded(app: Any) -> Any:
    """Return the application behind a check of the host that the browser names.

    A page of another site could otherwise reach the board under a name of its own.
    """

    async def guard(scope: Any, receive: Any, send: Any) -> Any:
        if scope["type"] == "http":
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            if not is_local_name(host):
                refusal = failure(f"the board does not answer for the host {host[:100]!r}", 403)
                return await refusal(scope, receive, send)
        return await app(scope, receive, send)

    return guard
