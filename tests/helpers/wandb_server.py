"""A stand-in for W&B's server: as much of its GraphQL and file stream as a run needs.

    python wandb_server.py PORT

`GET /rows` returns the rows of each run's history, in the order of their offsets.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

RUNS: dict[str, dict[str, Any]] = {}
LOCK = threading.Lock()


def graphql(query: str, variables: dict[str, Any]) -> dict[str, Any]:
    """The answer to a query, by its name."""
    found = re.search(r"\b(?:query|mutation)\s+(\w+)", query)
    name = found[1] if found else ""
    entity = {"id": "e", "name": "me"}
    if name == "Viewer":
        return {
            "viewer": {
                "id": "u",
                "entity": "me",
                "username": "me",
                "flags": "{}",
                "teams": {"edges": []},
            }
        }
    if name == "RunResumeStatus":
        run = RUNS.get(variables["name"])
        return {
            "model": {
                "id": "p",
                "name": variables["project"],
                "entity": entity,
                "bucket": run and resumed(run),
            }
        }
    if name == "UpsertBucket":
        run_id = variables["name"]
        new = run_id not in RUNS
        run = RUNS.setdefault(run_id, {"id": run_id, "rows": {}, "exit": None})
        run.update({k: v for k, v in variables.items() if v is not None and k in KEPT})
        project = {"id": "p", "name": variables.get("project") or "posttrain", "entity": entity}
        bucket = {
            "id": f"id-{run_id}",
            "name": run_id,
            "displayName": variables.get("displayName"),
            "project": project,
            "historyLineCount": len(run["rows"]),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}
    if name == "CreateRunFiles":
        files = [
            {"name": n, "uploadUrl": f"http://127.0.0.1:{sys.argv[1]}/file"}
            for n in variables["files"]
        ]
        return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
    if name == "ServerInfo":
        return {"serverInfo": {"cliVersionInfo": {"max_cli_version": "0.99.0"}, "features": []}}
    return {}


KEPT = ("project", "displayName", "groupName", "tags", "config", "jobType", "entity")


def resumed(run: dict[str, Any]) -> dict[str, Any]:
    rows = [run["rows"][k] for k in sorted(run["rows"])]
    tail = [json.dumps(rows[-1])] if rows else []
    return {
        "id": f"id-{run['id']}",
        "name": run["id"],
        "summaryMetrics": json.dumps(rows[-1] if rows else {}),
        "displayName": run.get("displayName"),
        "logLineCount": 0,
        "historyLineCount": len(rows),
        "eventsLineCount": 0,
        "historyTail": json.dumps(tail),
        "eventsTail": "[]",
        "config": run.get("config") or "{}",
        "tags": run.get("tags") or [],
        "wandbConfig": json.dumps({"t": 1}),
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        with LOCK:
            if self.path.startswith("/graphql"):
                asked = json.loads(body)
                answer: Any = {"data": graphql(asked["query"], asked.get("variables") or {})}
                if "-v" in sys.argv:
                    print(asked["query"][:120], asked.get("variables"), file=sys.stderr, flush=True)
            else:
                answer = self._stream(json.loads(body))
        self._reply(answer)

    def _stream(self, sent: dict[str, Any]) -> dict[str, Any]:
        run = RUNS.setdefault(self.path.split("/")[-2], {"rows": {}})
        for name, part in (sent.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                for i, line in enumerate(part["content"]):
                    run["rows"][part["offset"] + i] = json.loads(line)
        if "exitcode" in sent:
            run["exit"] = sent["exitcode"]
        return {}

    def do_GET(self) -> None:
        with LOCK:
            self._reply(
                {
                    k: {**v, "rows": [v["rows"][i] for i in sorted(v["rows"])]}
                    for k, v in RUNS.items()
                }
            )

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._reply({})

    def _reply(self, answer: Any) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        if "-v" in sys.argv:
            print(self.path, args, file=sys.stderr, flush=True)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
