"""Names of an adapter's tensors: in a PEFT model, and in the file that PEFT writes."""

from __future__ import annotations

from typing import Any


def saved_names(model: Any) -> dict[str, str]:
    """Return the name in a PEFT model of each tensor in its adapter's file, by the file's name."""
    from peft import get_peft_model_state_dict

    tensors = model.state_dict()
    names = {id(tensor): name for name, tensor in tensors.items()}
    saved = get_peft_model_state_dict(model, state_dict=tensors, save_embedding_layers=False)
    return {name: names[id(tensor)] for name, tensor in saved.items() if id(tensor) in names}


def first_names(model: Any) -> dict[str, str]:
    """Return the first name of each parameter of a model by its names: tied ones have several."""
    first = {id(p): name for name, p in model.named_parameters()}
    return {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}
