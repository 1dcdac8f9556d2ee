"""How a server is given new weights: an adapter by its name, or all weights from a folder.

All weights go by vLLM's `disk` transfer: /start_weight_update, /update_weights with the folder's
path, /finish_weight_update with the version's name, which /weight_info returns from then on.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from posttrain.rollout.engines.client import Server, ServerError
from posttrain.rollout.engines.dialects import Dialect
from posttrain.rollout.sampler import EngineError

SWAPS = "between steps"
"""What /weight_info of a server says that takes new weights while it generates."""


def load_adapter(server: Server, dialect: Dialect, folder: Path) -> str:
    """Have a server load the adapter in a folder under the folder's name, which is returned."""
    name = folder.name
    try:
        answer = server.post(dialect.load, {"lora_name": name, "lora_path": str(folder)})
    except ServerError as error:
        refusal = error.refusal or ""
        if "already" in refusal and "loaded" in refusal:
            return name  # by an earlier attempt whose answer was lost: the name is ours alone
        raise _shared(server, error, folder) from None
    if isinstance(answer, dict) and name not in answer.get("loaded_adapters", [name]):
        raise EngineError(f"server {server.url} did not load {folder}: {answer}")
    return name


def load_weights(server: Server, folder: Path) -> str:
    """Have a server take all weights in a folder, as a version with the folder's name.

    Returns the name of its model, by which requests choose them.
    """
    try:
        info = weight_info(server)
        if info.get("swaps") == SWAPS:
            _update(server, folder)
        else:  # it would answer from weights that are partly old: let it finish what it has
            server.post("/pause?mode=wait", {})
            try:
                _update(server, folder)
            finally:
                with suppress(EngineError):  # one that is gone has nothing to resume
                    server.post("/resume", {})
    except ServerError as error:
        raise _shared(server, error, folder) from None
    if (found := weight_info(server).get("weight_version")) != folder.name:
        raise EngineError(
            f"server {server.url} was given the weights {folder.name!r} and has {found!r}: the "
            "update did not take effect, or another run updates it too"
        )
    return str(base_card(server)[0]["id"])


def _update(server: Server, folder: Path) -> None:
    """Make one update. Its steps are not safe to repeat alone, so it is repeated as a whole."""
    for attempt in (1, 2):
        try:
            once = server.hurried()
            once.post("/init_weight_transfer_engine", {"init_info": {}})
            try:
                once.post("/start_weight_update", {})
            except EngineError:  # an update is under way, of a trainer that was killed
                with suppress(EngineError):
                    once.post("/finish_weight_update", {"weight_version": "abandoned"})
                once.post("/start_weight_update", {})
            once.post("/update_weights", {"update_info": {"path": str(folder)}})
            once.post("/finish_weight_update", {"weight_version": folder.name})
            return
        except ServerError as error:
            if attempt == 2 or error.kind in ("refused", "unreachable"):
                raise


def weight_info(server: Server) -> dict[str, Any]:
    """Return what a server says of its weights; raise EngineError if they cannot be updated."""
    try:
        info = server.get("/weight_info")
    except ServerError as error:
        if error.kind != "refused":
            raise
        raise _closed(server) from None
    if not isinstance(info, dict):
        raise _closed(server)
    return info


def check_updates(server: Server, folder: Path) -> None:
    """Raise EngineError if a server takes no updates, or none from `folder`, which exists.

    Only a server that swaps weights between steps says what it sees. vLLM says it at the first
    delivery."""
    info = weight_info(server)
    if info.get("swaps") == SWAPS:
        try:
            server.get(f"/weight_info?path={quote(str(folder))}")
        except ServerError as error:
            raise _shared(server, error, folder) from None


def present_version(server: Server, dialect: Dialect, folder: Path, full: bool) -> str:
    """Return what requests call the weights in `folder`; raise EngineError if it lacks them."""
    if full:
        if weight_info(server).get("weight_version") == folder.name:
            return str(base_card(server)[0]["id"])
    elif not dialect.names_adapter or folder.name in [
        card.get("id") for card in base_card(server)[1]
    ]:  # it lists none either: the first request will tell
        return folder.name
    raise EngineError(f"server {server.url} has not been given the weights {folder.name!r} yet")


def base_card(server: Server) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the card of a server's own model, and those of all that it lists."""
    listed = server.get("/v1/models")
    try:
        cards = list(listed["data"])
        base = next(card for card in cards if not card.get("parent"))
        return base | {"id": str(base["id"])}, cards
    except (KeyError, TypeError, AttributeError, StopIteration):
        raise EngineError(
            f"server {server.url} lists no model under /v1/models; start it with: "
            f"{server.start_with}"
        ) from None


def _shared(server: Server, error: ServerError, folder: Path) -> ServerError:
    """Return the error with what may be wrong with the folder."""
    if server.start_with in str(error):
        return error
    message = (
        f"{error}; {folder} must lie on a filesystem that the server sees under the same path "
        f"(rollout.adapter_dir), and the server must be started with: {server.start_with}"
    )
    return ServerError(message, error.kind, error.short, error.refusal)


def _closed(server: Server) -> EngineError:
    return EngineError(
        f"server {server.url} takes no new weights, and this run trains all of them: start it "
        f"with: {server.start_with}; or train an adapter (model.adapter: lora)"
    )
