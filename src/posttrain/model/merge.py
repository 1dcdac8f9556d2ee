"""Merging an adapter into the weights that it was trained beside: in fp32, and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.common.errors import SettingError
from posttrain.model.adapters.peft import load_adapter
from posttrain.model.config import QuantizationConfig
from posttrain.model.folder import (
    base_model,
    holds_classifier,
    is_adapter,
    refuse_reft,
    resolve_model_path,
    saved_quantization,
)
from posttrain.model.load import load_causal_lm, load_classifier
from posttrain.model.probe import probe_rows
from posttrain.model.quantized import quantization_of, round_weights

TOLERANCE = 1e-3
"""Largest difference of a logit, relative to the largest one, that fp32 may make by merging."""
UNQUANTISED = QuantizationConfig(type="none")


@dataclass(frozen=True)
class Merged:
    """A base model with an adapter in its weights."""

    model: Any
    """The transformers model, in fp32 and in eval mode."""
    difference: float
    """Largest difference of its logits from those of the adapter beside the base."""
    trained_on: dict[str, Any] | None
    """How the base was quantised while the adapter was trained; None if it was not."""


def merge_adapter(name: str, dequantize: bool = False) -> Merged:
    """Return the unquantised base of a checkpoint's adapter with the adapter merged into it.

    Merging into quantised weights would round the sum to their few values again. An adapter that
    was trained on quantised weights is merged into the weights that they were made from, or with
    `dequantize` into what training saw: these weights, quantised and back. Raises ValueError if the
    folder holds no adapter of PEFT, if the base's files are quantised, if there is nothing to
    dequantise, or if the merged model has other logits than the adapter beside the base."""
    folder = resolve_model_path(name)
    if not is_adapter(folder):
        raise ValueError(f"{name} holds no adapter, so that there is nothing to merge")
    refuse_reft(folder, "merged into its base")
    if quantization_of(None, base_model(folder)) is not None:
        raise ValueError(
            f"{name} is an adapter of {base_model(folder)}, whose files are quantised: there are "
            "no whole weights to merge it into; use it beside its base"
        )
    trained_on = saved_quantization(folder)
    if dequantize and (trained_on is None or holds_classifier(Path(folder))):
        what = "scores instead of writing" if trained_on else "was trained beside whole weights"
        raise SettingError("dequantize", f"{name} {what}: leave it out")
    if holds_classifier(Path(folder)):
        # its head is trained whole, so that only the layers below it are merged
        model, lacking = load_classifier(folder, torch.float32, UNQUANTISED, merge=False)
        if lacking:
            raise ValueError(f"{name} lacks weights: {', '.join(lacking[:3])}")
    else:
        base = load_causal_lm(folder, torch.float32)
        if dequantize:
            round_weights(base, QuantizationConfig.model_validate(trained_on))
        model = load_adapter(base, folder)
    model.eval()
    before = _logits(model)
    _untie(model)
    try:
        merged = model.merge_and_unload(safe_merge=True).eval()
    except (NotImplementedError, AttributeError, ValueError) as error:
        reason = (str(error).splitlines() or ["it has no weights of the base's form"])[0]
        raise ValueError(f"{name}: PEFT cannot merge this adapter: {reason}") from error
    _tie(merged)
    after = _logits(merged)
    gap = max(float((x - y).abs().max()) for x, y in zip(before, after))
    if not gap <= TOLERANCE * max(1.0, *(float(x.abs().max()) for x in before)):
        raise ValueError(
            f"{name}: merged into {base_model(folder)}, its logits differ by {gap:.2g} from those "
            "of the adapter beside it: use the adapter unmerged"
        )
    return Merged(merged, gap, trained_on)


@torch.no_grad()
def _logits(model: Any) -> list[Tensor]:
    rows = probe_rows(model.config)
    return [model(input_ids=row.input_ids[None], use_cache=False).logits for row in rows]


def _untie(model: Any) -> None:
    """Give the output head its own weight if it or the embedding, which it is, has an adapter."""
    base = model.get_base_model()
    ends = base.get_input_embeddings(), base.get_output_embeddings()
    if ends[1] is None:  # a classifier
        return
    inner = [getattr(end, "base_layer", end) for end in ends]
    adapted = any(hasattr(end, "base_layer") for end in ends)
    if adapted and inner[0].weight is inner[1].weight:
        inner[1].weight = nn.Parameter(inner[1].weight.detach().clone(), False)


def _tie(model: Any) -> None:
    """Make the config say whether the output head is the embedding, since only one is saved then.

    A head of equal weights becomes the embedding."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or not getattr(model.config, "tie_word_embeddings", False):
        return
    if torch.equal(head.weight, embedding.weight):
        head.weight = embedding.weight
    else:
        model.config.tie_word_embeddings = False
