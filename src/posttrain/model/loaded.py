"""What a library left out of a model that it loaded: named, never made up."""

from __future__ import annotations

import logging
import re
from typing import Any

from posttrain.model.folder import SAVED_HEAD

log = logging.getLogger(__name__)


def refuse_random(name: str, missing: list[str]) -> None:
    """Raise ValueError for missing weights, which transformers and PEFT would draw at random."""
    if missing:
        raise ValueError(
            f"model.name: {name} lacks weights of the model, which would be random: "
            f"{', '.join(missing[:3])}"
        )


def check_loaded(base: str, model: Any, info: dict[str, Any], unread: set[str]) -> None:
    """Raise ValueError if the weights do not fit config.json; warn of weights that are not read."""
    for tensor, saved, built in sorted(info["mismatched_keys"]):
        if tensor not in unread:
            raise ValueError(
                f"model.name: {base}: {tensor} is {list(saved)} in the weights and {list(built)} "
                "by config.json: the two files are not of one model"
            )
    refuse_random(base, sorted(set(info["missing_keys"]) - unread))
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
