"""`GET /v1/models`, and vLLM's routes that load and unload adapters."""

from __future__ import annotations

from typing import Any

from posttrain.serving.bodies import AdapterBody, read_body
from posttrain.serving.errors import Refusal
from posttrain.serving.http import answer, json_answer, read
from posttrain.serving.service import Service


def add_to(app: Any, service: Service) -> None:
    """Add the routes."""

    async def listed(request: Any) -> Any:
        return json_answer({"object": "list", "data": cards(service)})

    async def one(request: Any) -> Any:
        name = request.path_params["name"]
        for card in cards(service):
            if card["id"] == name:
                return json_answer(card)
        service.adapter_of(name)
        raise Refusal(f"The model `{name}` does not exist", 404)

    async def load(request: Any) -> Any:
        body = read_body(AdapterBody, await read(request, service.bounds.max_body))
        if body.lora_path is None:
            raise Refusal("lora_path is missing", param="lora_path")
        await service.load_adapter(body.lora_name, body.lora_path)
        return json_answer(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def unload(request: Any) -> Any:
        body = read_body(AdapterBody, await read(request, service.bounds.max_body))
        await service.unload_adapter(body.lora_name)
        return json_answer(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    app.add_api_route("/v1/models", answer(service, listed), methods=["GET"])
    app.add_api_route("/v1/models/{name:path}", answer(service, one), methods=["GET"])
    app.add_api_route("/v1/load_lora_adapter", answer(service, load), methods=["POST"])
    app.add_api_route("/v1/unload_lora_adapter", answer(service, unload), methods=["POST"])


def cards(service: Service) -> list[dict[str, Any]]:
    """Return the model and its adapters, as vLLM lists them."""

    def card(name: str, root: str, parent: str | None) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": service.created,
            "owned_by": "posttrain",
            "root": root,
            "parent": parent,
            "max_model_len": service.bounds.max_length,
        }

    adapters = [card(name, a.folder, service.name) for name, a in service.adapters.items()]
    base = card(service.name, service.root, None)
    if service.worker.version is not None:
        base["weight_version"] = service.worker.version
    return [base, *adapters]
