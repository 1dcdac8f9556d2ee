"""vLLM's routes that replace all weights from a folder of safetensors, its `disk` transfer.

`/start_weight_update`, `/update_weights` and `/finish_weight_update` as in vLLM, with one promise
more: what `/update_weights` reads is held beside the weights in use, and `/finish_weight_update`
puts it in their place between two steps. An update that fails changes nothing.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from posttrain.model.adapters.base import is_adapted
from posttrain.model.kernels.quantized import quantised
from posttrain.model.load import load_causal_lm
from posttrain.serving.bodies import Text, read_body
from posttrain.serving.errors import Refusal
from posttrain.serving.http import answer, json_answer, read
from posttrain.serving.service import Service

FIRST = "default"
"""The version of the weights that the server was started with, vLLM's name for it."""
SWAPS = "between steps"
"""What /weight_info says of updates, so that a trainer need not pause the server for them."""


STRICT = ConfigDict(extra="forbid", strict=True)


class InitBody(BaseModel):
    """`/init_weight_transfer_engine`."""

    model_config = STRICT

    init_info: dict[str, Any]


class StartBody(BaseModel):
    """`/start_weight_update`."""

    model_config = STRICT


class UpdateInfo(BaseModel):
    """Where the weights are."""

    model_config = STRICT

    path: Text


class UpdateBody(BaseModel):
    """`/update_weights`."""

    model_config = STRICT

    update_info: UpdateInfo


class FinishBody(BaseModel):
    """`/finish_weight_update`. vLLM would keep the version's name if there is none."""

    model_config = STRICT

    weight_version: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[!-~]+$")]


class Updates:
    """The updates that a server takes from folders within `allowed`."""

    def __init__(self, service: Service, allowed: Path) -> None:
        """Raise ValueError if the model's weights cannot be replaced."""
        policy = service.worker.policy
        if is_adapted(policy.model) or quantised(policy):
            raise ValueError(
                f"{service.name} is an adapter or quantised: only all weights of a plain model can "
                "be replaced"
            )
        self.service, self.allowed = service, allowed.resolve()
        self.lock = asyncio.Lock()
        self.begun = False
        self.staged: dict[str, Tensor] = {}
        """What the next version of the weights consists of, by name; empty without any."""
        service.worker.version = FIRST

    async def start(self) -> None:
        """Begin an update; one that was begun before, by a trainer that has ended, is dropped."""
        async with self.lock:
            self.begun, self.staged = True, {}

    async def update(self, path: str) -> None:
        """Read a folder's weights; a Refusal, if they are not this model's, ends the update."""
        async with self.lock:
            if not self.begun:
                raise Refusal("no weight update was started: post /start_weight_update first", 409)
            self.begun, self.staged = False, {}
            folder = self.folder(path)
            loop = asyncio.get_running_loop()
            try:
                named = await loop.run_in_executor(None, read_weights, folder)
                if named.keys() - places(self.model).keys():
                    # some architectures are saved under other names; building a model changes
                    # torch's defaults, so the sampler must rest meanwhile
                    named = await self.service.worker.call(lambda: converted(folder, named))
                check_weights(self.model, named, path)
            except (ValueError, OSError) as error:
                raise Refusal(f"{path} is not loaded: {error}", 400, "path") from None
            self.begun, self.staged = True, named

    async def finish(self, version: str) -> None:
        """Put what was read in the place of the present weights, between two steps."""
        async with self.lock:
            named, self.staged, self.begun = self.staged, {}, False
            if not named:
                raise Refusal("no weights were read since /start_weight_update", 409)
            worker, model = self.service.worker, self.model
            await worker.call(lambda: worker.swap(lambda: replace_weights(model, named), version))

    def folder(self, path: str) -> Path:
        """Return the folder at a path; raise Refusal if there is none or it lies elsewhere."""
        try:
            found = Path(path).resolve()
            if not Path(path).is_absolute():
                raise Refusal(
                    f"path must be absolute: {path!r} would be {Path.cwd() / path} in the server's "
                    f"working directory; give the folder's whole path, within {self.allowed}",
                    400,
                    "path",
                )
            if not found.is_relative_to(self.allowed):
                raise Refusal(
                    f"{path} is not within {self.allowed}, where this server takes weights from",
                    403,
                    "path",
                )
            if not found.is_dir():
                raise Refusal(
                    f"{path} is no folder that the server sees: trainer and server must share it, "
                    "under the same path",
                    404,
                    "path",
                )
        except (OSError, ValueError) as error:  # a name that no file system takes
            raise Refusal(f"path: {error}", 400, "path") from None
        return found

    @property
    def model(self) -> nn.Module:
        """The served model."""
        model: nn.Module = self.service.worker.policy.causal_lm()
        return model


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors in a folder's safetensors; raise ValueError if there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError("it has no safetensors, and nothing else is read")
    named: dict[str, Tensor] = {}
    for file in files:
        if file.resolve().parent != folder:
            raise ValueError(f"{file.name} is a link to elsewhere")
        try:
            named |= load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file.name} is damaged: {error}") from None
    return named


def converted(folder: Path, named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a folder's tensors under the names that transformers' modules have."""
    dtype = next(iter(named.values())).dtype
    return dict(load_causal_lm(str(folder), dtype).state_dict())


def places(model: nn.Module) -> dict[str, Tensor]:
    """Return what a model keeps, by every name that it has."""
    kept = model.state_dict(keep_vars=True)
    named = dict(model.named_parameters(remove_duplicate=False))
    return {**kept, **named}


def check_weights(model: nn.Module, named: dict[str, Tensor], path: str) -> None:
    """Raise ValueError unless the tensors are all that a model of this shape has."""
    here = places(model)
    unknown = sorted(named.keys() - here.keys())
    if unknown:
        raise ValueError(
            f"it holds another model's weights: the served model has no {unknown[0]} "
            f"({len(unknown)} such names)"
        )
    known = {id(here[name]) for name in named}
    missing = [name for name, p in model.named_parameters() if id(p) not in known]
    if missing:
        raise ValueError(
            f"it lacks {len(missing)} tensors of the served model, such as {missing[0]}"
        )
    for name, value in named.items():
        if value.shape != here[name].shape:
            raise ValueError(
                f"it holds a model of another shape: {name} is {list(value.shape)} in it and "
                f"{list(here[name].shape)} in the served model"
            )


def replace_weights(model: nn.Module, named: dict[str, Tensor]) -> None:
    """Copy tensors over a model's own, in the dtype and on the device of these."""
    here = places(model)
    with torch.no_grad():
        for name, value in named.items():
            here[name].copy_(value)


def add_to(app: Any, service: Service, updates: Updates | None) -> None:
    """Add the routes; without `updates` they refuse."""

    def allowed() -> Updates:
        if updates is None:
            raise Refusal(
                "this server takes no weight updates: start it with allow_weight_updates and the "
                "folder that they will lie in",
                403,
            )
        return updates

    async def body_of(kind: Any, request: Any) -> Any:
        return read_body(kind, await read(request, service.bounds.max_body))

    async def init(request: Any) -> Any:
        allowed()
        await body_of(InitBody, request)
        return json_answer({"message": "Weight transfer initialized"})

    async def start(request: Any) -> Any:
        taken = allowed()
        await body_of(StartBody, request)
        await taken.start()
        return json_answer({"message": "Weight update started"})

    async def update(request: Any) -> Any:
        taken = allowed()
        body = await body_of(UpdateBody, request)
        await taken.update(body.update_info.path)
        return json_answer({"message": "Weights updated"})

    async def finish(request: Any) -> Any:
        taken = allowed()
        body = await body_of(FinishBody, request)
        await taken.finish(body.weight_version)
        return json_answer({"message": "Weight update finished"})

    async def info(request: Any) -> Any:
        taken = allowed()
        if (path := request.query_params.get("path")) is not None:
            taken.folder(path)  # refuses what the server does not see
        return json_answer({"weight_version": service.worker.version, "swaps": SWAPS})

    routes = {
        "/init_weight_transfer_engine": init,
        "/start_weight_update": start,
        "/update_weights": update,
        "/finish_weight_update": finish,
    }
    for path, route in routes.items():
        app.add_api_route(path, answer(service, route), methods=["POST"])
    app.add_api_route("/weight_info", answer(service, info), methods=["GET"])
