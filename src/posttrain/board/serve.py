"""`posttrain board`: serve the board until the process is stopped."""

from __future__ import annotations

import importlib.util
import secrets
import signal
import sys
from pathlib import Path

from posttrain.board.app import Board, build_app
from posttrain.board.growing import Workers
from posttrain.common.errors import SettingError
from posttrain.common.loopback import listen

HOST = "127.0.0.1"
EXTRA = ("starlette", "uvicorn")


def serve(root: Path, port: int, allow_delete: bool) -> None:
    """Serve the board of the runs below `root`, on this machine alone.

    Raise ValueError or SettingError if that is not possible.
    """
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"the board needs {', '.join(missing)}: install with pip install 'posttrain[serve]'"
        )
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder: name one that holds runs")
    if not 0 <= port <= 65535:
        raise SettingError("port", f"expected 0 to 65535, got {port}")
    import uvicorn

    key = secrets.token_urlsafe(16) if allow_delete else None
    workers = Workers()
    with listen(HOST, port) as listener:
        address = f"http://{HOST}:{listener.getsockname()[1]}/"
        print(f"board of {root}: {address}{f'#key={key}' if key else ''}", flush=True)
        app = build_app(Board(root, key, workers))
        config = uvicorn.Config(
            app,
            log_level="warning",
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=2,
            server_header=False,
        )
        # uvicorn raises the signal again when it has ended: the reader must be ended even so
        signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
        try:
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            workers.close()
