"""`posttrain serve`: load a model and answer requests until the process is stopped."""

from __future__ import annotations

import importlib.util
import ipaddress
import logging
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from posttrain.common import distributed
from posttrain.common.errors import SettingError
from posttrain.common.http import bearer_key
from posttrain.common.loopback import listen
from posttrain.data.render import Renderer
from posttrain.evaluation.loading import as_trained, load_renderer, load_sampler
from posttrain.model.device import free_memory
from posttrain.model.folder import resolve_model_path
from posttrain.model.suited import max_positions
from posttrain.rollout.check import check_at_least
from posttrain.rollout.native.prefill import prefill
from posttrain.rollout.native.sampler import NativeSampler
from posttrain.rollout.native.together import split_over_ranks
from posttrain.serving.app import build_app
from posttrain.serving.service import Bounds, Service
from posttrain.serving.together import Leader, follow
from posttrain.serving.updates import Updates
from posttrain.serving.votes import Votes
from posttrain.serving.worker import Worker

log = logging.getLogger(__name__)

EXTRA = ("fastapi", "uvicorn", "prometheus_client")
LONGEST = 32768
"""Tokens of a sequence, unless the model takes fewer or the user says otherwise."""
LAST_STEP = 10.0
"""Seconds that a server which ends waits for a step that its ranks have begun."""
GIB = 2**30


@dataclass(frozen=True)
class ServeSettings:
    """How a model is served. Names are those of the command's options."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 is any free port."""
    name: str | None = None
    """The model's name in requests; by default what it was given as."""
    api_key_env: str | None = None
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Folders of LoRA adapters by the names that requests choose."""
    max_num_seqs: int = 64
    max_waiting: int = 256
    max_length: int | None = None
    time_limit: float = 600.0
    cache_gib: float | None = None
    """Memory for keys and values of each model; by default all share half of what is free."""
    prefix_gib: float = 0.5
    template: str = "auto"
    system_prompt: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantization: str | None = None
    beside: str | None = None
    """A second model, for the comparison on the chat page; its API begins at /beside/v1."""
    votes: str | None = None
    """A JSONL file for the preferences that are expressed on the chat page."""
    allow_weight_updates: str | None = None
    """The folder in which weights must lie that replace the model's; None replaces none."""
    tensor_parallel: int = 1
    """Ranks that split the model's matrices; all that were started."""


def serve(model: str, settings: ServeSettings) -> None:
    """Serve a model; raise ValueError or SettingError for what cannot be served."""
    key = check(settings)
    if distributed.rank() != 0:
        sampler, limit, cells = load(model, settings)
        for number in (signal.SIGINT, signal.SIGTERM):  # rank 0 gets it too, and ends this one
            signal.signal(number, signal.SIG_IGN)
        follow(sampler, limit, cells, int(settings.prefix_gib * GIB))
        return
    import uvicorn

    votes = None if settings.votes is None else Votes(Path(settings.votes))
    listener = listen(settings.host, settings.port)
    with listener:
        service = build_service(model, settings)
        for name, folder in settings.adapters.items():
            try:
                service.load_now(name, folder)
            except ValueError as error:
                raise SettingError("adapter", f"{name}: {error}") from None
        beside = None
        if settings.beside is not None:
            try:
                beside = build_service(settings.beside, replace(settings, name=None))
            except ValueError as error:
                raise SettingError("beside", str(error)) from None
            share_memory([service, beside], settings.cache_gib)
        updates = build_updates(service, settings)
        app = build_app(service, key, settings.host, beside, votes, updates)
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"serving {service.name} at http://{shown}:{port}/v1", flush=True)
        print(f"chat page: http://{shown}:{port}/", flush=True)
        config = uvicorn.Config(
            app,
            log_level="warning",
            lifespan="on",
            ws="none",
            timeout_graceful_shutdown=5,
            server_header=False,
        )
        server: Any = uvicorn.Server(config)
        worker, handle_exit = service.worker, server.handle_exit

        def end(number: int, frame: Any) -> None:
            for each in filter(None, (service, beside)):
                each.worker.stop()  # which answers what is open, before uvicorn cuts it off
            handle_exit(number, frame)

        server.handle_exit = end
        if worker.leader is not None:  # without the other ranks nothing more can be answered
            worker.on_failure = partial(setattr, server, "should_exit", True)
        try:
            server.run(sockets=[listener])
        finally:
            # the other ranks are in its step, and wait for its last word
            if worker.leader is not None and worker.thread.is_alive():
                worker.thread.join(LAST_STEP)
        if worker.leader is not None and worker.failure is not None:
            raise worker.failure


def check(settings: ServeSettings) -> str | None:
    """Return the API key, None without one; raise SettingError for a setting that cannot be."""
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"serving needs {', '.join(missing)}: install them with pip install 'posttrain[serve]'"
        )
    check_at_least(1, max_num_seqs=settings.max_num_seqs, max_length=settings.max_length)
    check_at_least(0, max_waiting=settings.max_waiting, port=settings.port)
    if settings.tensor_parallel > 1:
        for name in ("adapters", "beside", "allow_weight_updates"):
            if getattr(settings, name):
                raise SettingError(
                    {"adapters": "adapter"}.get(name, name),
                    "is not offered for a model that ranks split: set tensor_parallel to 1",
                )
    if settings.port > 65535:
        raise SettingError("port", f"expected at most 65535, got {settings.port}")
    for name in ("time_limit", "cache_gib"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < float("inf"):
            raise SettingError(name, f"expected a number above 0, got {value}")
    if not 0 <= settings.prefix_gib < float("inf"):
        raise SettingError("prefix_gib", f"expected at least 0, got {settings.prefix_gib}")
    folder = settings.allow_weight_updates
    if folder is not None and not Path(folder).is_dir():
        raise SettingError("allow_weight_updates", f"{folder} is no folder: make it first")
    key = bearer_key("api_key_env", settings.api_key_env)
    if key is None and not is_loopback(settings.host):
        raise SettingError(
            "api_key_env",
            f"{settings.host} can be reached from other machines, which needs an API key: put one "
            "into an environment variable and name it here, or serve on 127.0.0.1",
        )
    return key


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine alone; raise SettingError if there is none such."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise SettingError("host", f"{host!r} is no address of this machine: {error}") from None
    addresses = [str(entry[4][0]).partition("%")[0] for entry in found]
    return all(ipaddress.ip_address(address).is_loopback for address in addresses)


def build_service(model: str, settings: ServeSettings) -> Service:
    """Load a model, and return the service that answers for it."""
    template, system_prompt = as_trained(model, settings.template, settings.system_prompt)
    renderer, _ = load_renderer(model, template, system_prompt)
    sampler, limit, cells = load(model, settings)
    leader = Leader() if distributed.num_ranks() > 1 else None
    worker = Worker(sampler, limit, cells, int(settings.prefix_gib * GIB), leader)
    folder = resolve_model_path(model)  # of a run the checkpoint, as a trainer names it
    root = str(Path(folder).resolve()) if Path(folder).exists() else model
    bounds = Bounds(limit, settings.max_waiting, settings.time_limit)

    def renderer_of(adapter: str) -> Renderer:
        template, system_prompt = as_trained(adapter, settings.template, settings.system_prompt)
        return load_renderer(adapter, template, system_prompt)[0]

    return Service(settings.name or model, root, renderer, worker, bounds, renderer_of)


def load(model: str, settings: ServeSettings) -> tuple[NativeSampler, int, int | None]:
    """Return a model's sampler, the longest sequence, and the bound of its cache (`cells_of`).

    A collective."""
    takes = max_positions(resolve_model_path(model))
    limit = min(takes, settings.max_length or LONGEST)
    if settings.max_length is not None and settings.max_length > takes:
        raise SettingError(
            "max_length", f"{model} takes {takes} tokens, fewer than {settings.max_length}"
        )
    ranks = settings.tensor_parallel
    sampler = load_sampler(
        model, settings.device, settings.dtype, settings.max_num_seqs, settings.quantization, ranks
    )
    split_over_ranks(sampler, ranks)
    policy = sampler.policy
    with torch.no_grad(), policy.eval().precision():
        shares = sampler.shares_cache(1)
        if ranks > 1 and not shares:
            raise SettingError(
                "tensor_parallel", f"{model} samples one sequence at a time: set it to 1"
            )
        cells = cells_of(sampler, settings.cache_gib) if shares else None
    return sampler, limit, distributed.from_rank_0(cells)


def build_updates(service: Service, settings: ServeSettings) -> Updates | None:
    """Return what replaces the weights of a model if the settings allow it."""
    folder = settings.allow_weight_updates
    if folder is None:
        return None
    try:
        return Updates(service, Path(folder))
    except ValueError as error:
        raise SettingError("allow_weight_updates", str(error)) from None


def share_memory(services: list[Service], gib: float | None) -> None:
    """Bound the caches of several models by what is free once all of them are loaded."""
    for worker in (service.worker for service in services):
        if worker.max_cells is not None:
            with torch.no_grad(), worker.policy.eval().precision():
                worker.max_cells = cells_of(worker.sampler, gib, len(services))


def cells_of(sampler: NativeSampler, gib: float | None, models: int = 1) -> int:
    """Return how many columns of rows fit into memory for keys and values.

    Without a size it is half of what is free, shared with the caches of the server's models."""
    policy = sampler.policy
    layers = prefill(policy, [[0]], [None]).past.layers.values()
    size = sum(x.nbytes for packs in layers for pair in packs for x in pair)
    device = policy.device
    room = int(gib * GIB) if gib is not None else free_memory(device) // 2 // models
    return max(1, room // size)
