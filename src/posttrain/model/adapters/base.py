"""What every adapter has: a section with its settings, and a function that adds it to a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, SerializeAsAny

from posttrain.common.registry import look_up
from posttrain.config.base import ByType, StrictConfig
from posttrain.model.adapters import ADAPTERS, CALLED_OTHERWISE, REFUSED


class AdapterConfig(StrictConfig):
    """The settings of a kind of adapter."""

    type: str
    """The kind of adapter."""

    @property
    def drops(self) -> float:
        """Rate of the adapter's own dropout."""
        return float(getattr(self, "dropout", 0.0))


class NoAdapter(AdapterConfig):
    """All weights of the model are trained."""

    type: Literal["none"] = "none"


@dataclass(frozen=True)
class Adapter:
    """An entry of the registry."""

    config: type[AdapterConfig]
    add: Callable[[Any, Any, int, list[str] | None], Any]
    """(model, section, seed, names of layers to train whole) -> the model with a new adapter, drawn
    with the seed. Raises ValueError if the model has no place for it."""


NONE = Adapter(NoAdapter, lambda model, section, seed, whole: model)


def is_adapted(model: Any) -> bool:
    """Whether a model has an adapter: one of PEFT, or the edits of ReFT."""
    return hasattr(model, "peft_config") or hasattr(model, "reft_config")


def adapter_named(name: str) -> Adapter:
    """Return the entry of ADAPTERS; raise ValueError with the nearest name if there is none."""
    entry: Adapter = look_up(ADAPTERS, name, f"no adapter {name!r}")
    return entry


def config_of(name: str) -> type[AdapterConfig]:
    """Return the settings class of a kind of adapter."""
    return adapter_named(name).config


def refuse_by_name(section: Any) -> Any:
    """Raise ValueError for a kind of PEFT that is not offered, or another tool's name of a kind."""
    name = section.get("type") if isinstance(section, dict) else section
    if isinstance(name, str) and (reason := REFUSED.get(name.lower())):
        raise ValueError(f"model.adapter: {name} is not offered: {reason}")
    if isinstance(name, str) and (ours := CALLED_OTHERWISE.get(name.lower())):
        raise ValueError(f"model.adapter: there is no type {name!r}; write {ours}")
    return section


AdapterSection = Annotated[
    SerializeAsAny[AdapterConfig], ByType(ADAPTERS, config_of), BeforeValidator(refuse_by_name)
]
"""The type of the adapter section: the class that its `type` chooses."""
