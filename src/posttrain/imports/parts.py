"""Parts of recipes that several frameworks describe in other words."""

from __future__ import annotations

import re
from typing import Any

from posttrain.imports.draft import Draft

TO_SET = "<set this: {}>"
REWARD = "to set: a function of the source's own, so give its file, or another reward.type"


def to_set(what: str) -> str:
    """Return a value that no file and no hub name can be, for what only the user knows."""
    return TO_SET.format(re.sub(r"[<>$~{}]", "", what))


def number(value: Any) -> float:
    """Return a number, or 0 for none; raise ValueError that quotes it for anything else."""
    if value is None or value is False:
        return 0
    if value is True:
        raise ValueError("expected a number, got true")
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"expected a number, got {value!r}") from None
    return int(result) if result == int(result) else result


def real(value: Any) -> float:
    """Return a number that is given; raise ValueError for a truth value and for none."""
    if value is None or isinstance(value, bool):
        raise ValueError(f"expected a number, got {value}")
    return float(value)


def integer(value: Any) -> int:
    """Return a whole number that is given; raise ValueError for anything else."""
    result = real(value)
    if result != int(result):
        raise ValueError(f"expected a whole number, got {value}")
    return int(result)


def product(draft: Draft, device: int, accumulation: int) -> str:
    """Return how a batch's size is computed, with a doubt if nothing says the processes."""
    if draft.processes > 1:
        return f"{device} x {accumulation} x {draft.processes} processes"
    return f"{device} x {accumulation} x 1 process: more that trained together are to multiply it"


def on_or_off(value: Any) -> str:
    """Return a choice as text; YAML reads no as false."""
    return "no" if value in (False, None, "False", "false") else str(value)


def truth(value: Any) -> bool:
    """Return a truth value that may be written as a text."""
    return str(value).lower() in ("true", "1", "yes", "on")


def listed(value: Any) -> list[Any]:
    """Return a list: of the parts of a text between commas or spaces, or the value itself."""
    if isinstance(value, str):
        return [part for part in re.split(r"[,\s]+", value.strip("[] ")) if part]
    return list(value) if isinstance(value, list) else [value]


def dtype(draft: Draft, default: str, *names: str) -> None:
    """Write the compute dtype from bf16 and fp16, or from a name of torch's."""
    if truth(draft.get("fp16", "float16", default=False)):
        draft.put(
            "model.dtype",
            "bfloat16",
            "fp16",
            "float16",
            "bf16",
            why="fp16 would need loss scaling: bfloat16",
        )
        return
    keys = (*names, "bf16", "bfloat16", "float32", "fp16", "float16")
    named = draft.get(*names) if names else None
    bf16 = draft.get("bf16", "bfloat16")
    if named is not None and str(named) not in ("auto", "None"):
        name = str(named).removeprefix("torch.").lower()
        known = {
            "bf16": "bfloat16",
            "fp32": "float32",
            "bfloat16": "bfloat16",
            "float32": "float32",
        }
        why = "" if name in known else f"{name} is not offered: bfloat16"
        draft.put("model.dtype", known.get(name, "bfloat16"), *keys, why=why)
    elif bf16 is not None and (truth(bf16) or bf16 in ("auto", "full")):
        value = "auto" if bf16 == "auto" else "bfloat16"
        why = "weights are kept in float32 beside it" if bf16 == "full" else ""
        draft.put("model.dtype", value, *keys, why=why)
    elif truth(draft.get("float32", default=False)):
        draft.put("model.dtype", "float32", *keys)
    else:
        draft.put("model.dtype", default, *keys)


def lora(
    draft: Draft,
    rank: int,
    alpha: float,
    dropout: float,
    targets: Any,
    *,
    names: tuple[str, str, str, str] = (
        "lora_r",
        "lora_alpha",
        "lora_dropout",
        "lora_target_modules",
    ),
) -> None:
    """Write a LoRA adapter; the arguments are the framework's defaults."""
    draft.put("model.adapter.type", "lora")
    draft.comments.pop("model.adapter.type", None)
    draft.copy("model.adapter.r", names[0], default=rank, convert=int)
    draft.copy("model.adapter.alpha", names[1], default=alpha, convert=number)
    draft.copy("model.adapter.dropout", names[2], default=dropout, convert=float)
    asked = draft.get(names[3])
    if asked is None:
        draft.put("model.adapter.target_modules", targets, names[3])
        return
    several = listed(asked)
    if [str(name) for name in several] in (["all"], ["all-linear"]):
        draft.put("model.adapter.target_modules", "all-linear", names[3])
    elif isinstance(asked, str) and re.search(r"[\\^$*|()]", asked):
        draft.put("model.adapter.target_modules", asked, names[3])
    else:
        draft.put("model.adapter.target_modules", several, names[3])


def adapter_form(draft: Draft, **forms: str) -> None:
    """Write the type of the LoRA from switches: the source's key -> our type. One may be on."""
    on = [key for key in forms if truth(draft.get(key, default=False))]
    for key in on[:1]:
        draft.put("model.adapter.type", forms[key], key)
    draft.refuse(f"not together with {', '.join(on[:1])}", *on[1:])
    draft.skip("off, as here", *forms)


def rows(draft: Draft, section: dict[str, Any], *keys: str, why: str = "", note: str = "") -> None:
    """Write the data section, or one more section of a mixture."""
    before = draft.recipe.get("data")
    if before is None:
        draft.put("data", section, *keys, why=why, note=note)
        return
    both = [*(before if isinstance(before, list) else [before]), section]
    draft.put("data", both, *keys, why=why, note=note)


def reward_to_set(draft: Draft, what: str, *keys: str) -> None:
    """Write a reward section that has to be completed."""
    draft.put("reward.type", "custom")
    draft.comments.pop("reward.type", None)
    draft.put(
        "reward.path",
        to_set(f"a Python file with {what}"),
        *keys,
        why=REWARD,
    )
    draft.comments["reward.path"] = [REWARD]


def quantization(draft: Draft, four: str, eight: str, kind: str, nested: str, double: bool) -> None:
    """Write the storage of frozen weights from the names of the source's four keys."""
    if truth(draft.get(four, default=False)):
        name = str(draft.get(kind, default="nf4"))
        draft.put("model.quantization.type", name if name in ("nf4", "fp4") else "nf4", four, kind)
        draft.put(
            "model.quantization.double_quant", truth(draft.get(nested, default=double)), nested
        )
        draft.skip("4 bits win", eight)
    elif truth(draft.get(eight, default=False)):
        draft.put("model.quantization.type", "int8", eight)
    draft.skip("nothing is quantised", four, eight, kind, nested)
