"""Base of a recipe's sections: strict pydantic models that declare everything about their keys.

A key's meaning is the docstring below it. Its annotation holds everything else about it:

    save_steps: Annotated[int | None, Free()] = Field(None, ge=1)
    servers: Annotated[list[str], Free(), ForEngines("server")] = Field(default_factory=list)
    learning_rate: Annotated[float, AlsoCalled("lr")] = Field(2e-5, ge=0)

The check of a resumed run's config, the hints for other frameworks' names and the reference in
docs/ are derived from these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from posttrain.config.yaml_values import as_written

Marker = TypeVar("Marker")


class StrictConfig(BaseModel):
    """A section that rejects unknown keys."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _as_written(cls, tree: Any) -> Any:
        return as_written(tree, {name: f.annotation for name, f in cls.model_fields.items()})


@dataclass(frozen=True)
class Free:
    """Marks a key that may change when a run is resumed: the run's numbers do not depend on it."""


@dataclass(frozen=True)
class ForEngines:
    """Marks a key that only some rollout engines read."""

    engines: tuple[str, ...]

    def __init__(self, *engines: str) -> None:
        object.__setattr__(self, "engines", engines)


@dataclass(frozen=True, eq=False)
class AlsoCalled:
    """Other frameworks' names for a key.

    The hint for a positional name is this key's path; for a keyword name it is the value.
    """

    hints: dict[str, str | None] = field(default_factory=dict)

    def __init__(self, *names: str, **answers: str) -> None:
        object.__setattr__(self, "hints", {**dict.fromkeys(names), **answers})


class SectionError(ValueError):
    """The validation errors of a section whose class was chosen by its `type`."""

    def __init__(self, error: ValidationError, model: type[BaseModel]) -> None:
        super().__init__(str(error))
        self.error, self.model = error, model


@dataclass(frozen=True, eq=False)
class ByType:
    """Marks a section whose class is that of the registry entry that its `type` names.

    `config_of` loads an entry by its name and returns the class. Only the chosen one is imported.
    """

    registry: Mapping[str, Any]
    config_of: Callable[[str], type[StrictConfig]]

    def choose(self, value: Any) -> Any:
        """Return the section as an instance of its own class; a name alone is its `type`."""
        if isinstance(value, BaseModel):
            return value
        if isinstance(value, str):
            value = {"type": value}
        if not isinstance(value, dict):
            raise PydanticCustomError("section_type", "must be a section with keys")
        name = value.get("type")
        if not isinstance(name, str) or name not in self.registry:
            context = {"tag": name, "names": list(self.registry)}
            raise PydanticCustomError("unknown_type", "type is not known", context)
        model = self.config_of(name)
        try:
            return model.model_validate(value)
        except ValidationError as error:
            raise SectionError(error, model) from None

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.choose, handler(source))


@dataclass(frozen=True)
class Key:
    """A key of the schema, with its section class."""

    path: str
    """Dotted, from the root: trainer.learning_rate."""
    info: FieldInfo
    section: type[BaseModel]


def keys(root: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    """Yield every key below a section class, including those of every `type` of a section."""
    for name, info in root.model_fields.items():
        path = f"{prefix}{name}"
        yield Key(path, info, root)
        for model in sections_in(info):
            yield from keys(model, f"{path}.")


def sections_in(info: FieldInfo) -> list[type[BaseModel]]:
    """Return the section classes that a key may hold."""
    by_type: list[type[BaseModel]] = [
        choice.config_of(name)
        for choice in (*marks(info, ByType), *_choices_in(info.annotation))
        for name in choice.registry
    ]
    return list(dict.fromkeys(by_type)) or _models_in(info.annotation)


def marks(info: FieldInfo, kind: type[Marker]) -> list[Marker]:
    """Return the markers of one kind in a key's annotation."""
    return [mark for mark in info.metadata if isinstance(mark, kind)]


def _choices_in(annotation: Any) -> list[ByType]:
    direct = [m for m in getattr(annotation, "__metadata__", ()) if isinstance(m, ByType)]
    return direct or [c for arg in getattr(annotation, "__args__", ()) for c in _choices_in(arg)]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for arg in getattr(annotation, "__args__", ()) for m in _models_in(arg)]


def description_of(key: Key) -> str:
    """Return a key's meaning, from its section class or the nearest base class that has one."""
    name = key.path.rpartition(".")[2]
    for model in key.section.__mro__:
        info = getattr(model, "model_fields", {}).get(name)
        if info is not None and info.description:
            return " ".join(info.description.split())
    return ""


def marked(key: Key, kind: type[Marker]) -> list[Marker]:
    """Return a key's markers of one kind, from its section class or the nearest base class."""
    name = key.path.rpartition(".")[2]
    for model in key.section.__mro__:
        info = getattr(model, "model_fields", {}).get(name)
        if info is not None and (markers := marks(info, kind)):
            return markers
    return []
