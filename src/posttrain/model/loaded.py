"""What a library left out of a model that it loaded, never made up, and which weights it read."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from posttrain.common.files import short_hash
from posttrain.model.folder import SAVED_HEAD, adapter_config, read_info

log = logging.getLogger(__name__)


def refuse_random(name: str, missing: list[str]) -> None:
    """Raise ValueError for missing weights, which transformers and PEFT would draw at random."""
    if missing:
        raise ValueError(
            f"model.name: {name} lacks weights of the model, which would be random: "
            f"{', '.join(missing[:3])}"
        )


def check_loaded(base: str, model: Any, info: dict[str, Any], unread: set[str]) -> None:
    """Raise ValueError if the weights do not fit config.json; warn of weights that are not read.

    Which weights they are is noted, so that a resumed run starts from the same ones.
    """
    for tensor, saved, built in sorted(info["mismatched_keys"]):
        if tensor not in unread:
            raise ValueError(
                f"model.name: {base}: {tensor} is {list(saved)} in the weights and {list(built)} "
                "by config.json: the two files are not of one model"
            )
    refuse_random(base, sorted(set(info["missing_keys"]) - unread))
    if not any(p.is_meta for p in model.parameters()):  # else they are noted when they are read
        note_start(model, weights_hash(model))
    left = sorted(name for name in info["unexpected_keys"] if name != SAVED_HEAD)
    if (name := of_no_layer(model, left)) is not None:
        raise ValueError(
            f"model.name: {base}: the weights hold {name}, but config.json describes fewer layers: "
            "the two files are not of one model"
        )
    if left:
        log.warning("%s: %d weights are not read, such as %s", base, len(left), left[0])


def of_no_layer(model: Any, left: list[str]) -> str | None:
    """Return the first weight of a whole layer that the model does not have; None if there is none.

    Layers that predict further tokens (DeepSeek-V3's, GLM-4.5's) are not part of the model.
    """
    if getattr(model.config, "num_nextn_predict_layers", None):
        return None
    names = list(model.state_dict())
    alike = {re.sub(r"\d+", "N", name) for name in names}
    for name in left:
        layer = re.match(r"\D*\d+\.", name)
        known = layer is None or any(other.startswith(layer[0]) for other in names)
        if not known and re.sub(r"\d+", "N", name) in alike:
            return name
    return None


SAMPLED = 64
"""Numbers of each tensor that `weights_hash` reads."""


def weights_hash(model: torch.nn.Module) -> str:
    """Return a hash of a loaded model's weights, from numbers spread over every tensor.

    They are taken in bfloat16, so that the dtype in which a model is loaded does not matter.
    """

    def sampled(tensor: torch.Tensor) -> torch.Tensor:
        flat = tensor.detach().as_subclass(torch.Tensor).reshape(-1)  # also of quantised ones
        places = sampled_places(len(flat))
        chosen = flat[places.start : places.stop : places.step]
        return chosen.to("cpu", torch.bfloat16).view(torch.int16)

    return digest_of((name, sampled(tensor)) for name, tensor in model.named_parameters())


def sampled_places(count: int) -> range:
    """Return the places, in a tensor of `count` numbers, of those that `weights_hash` reads."""
    return range(0, count, max(1, count // SAMPLED))[:SAMPLED]


def digest_of(bits: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Return the hash of names and of the bits of some numbers of each tensor, as int16."""
    digest = hashlib.sha256()
    for name, chosen in bits:
        digest.update(name.encode())
        digest.update(chosen.numpy().tobytes())
    return digest.hexdigest()[:16]


def note_start(model: Any, part: str) -> None:
    """Note which weights a transformers model was given, in addition to those noted before."""
    model.start_hash = short_hash(start_hash(model) + part)


def warn_of_other_base(model: Any, folder: Path) -> None:
    """Warn if a checkpoint's adapter was trained on other weights than its base now has.

    The hashes are compared if the run started from the base itself, and not from another adapter.
    Call it when the base alone is loaded."""
    info, now = read_info(folder), start_hash(model)
    base = (info.get("config") or {}).get("model", {}).get("name")
    trained_on = info.get("start") or [now]
    named = str(adapter_config(folder)["base_model_name_or_path"])
    if base is None or Path(named).parts[-len(Path(base).parts) :] != Path(base).parts:
        return
    if now and trained_on[0] != now:
        log.warning("%s was trained on other weights than %s now has", folder, named)


def start_hash(model: Any) -> str:
    """Return what `note_start` noted of a transformers model; empty for random weights."""
    return str(getattr(model, "start_hash", ""))


def starts(models: Any) -> list[str]:
    """Return hashes of the weights that a run's policy and reference were loaded with."""
    others = [] if models.other is None else [models.other]
    return [start_hash(model.causal_lm()) for model in (models.policy, *others)]
