"""Other frameworks' ways to name a recipe and its overrides: --config FILE --override key=value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

Config = Annotated[
    str | None, typer.Option("--config", metavar="FILE", help="The recipe, as an option.")
]
Override = Annotated[
    list[str] | None,
    typer.Option("--override", metavar="key=value", help="An override, as an option; repeat it."),
]


def recipe_of(
    recipe: str | None,
    config: str | None,
    overrides: Sequence[str] | None,
    options: Sequence[str] | None,
) -> tuple[str, list[str]]:
    """Return the recipe's file and all overrides, those given by --override last.

    With --config, the first argument is an override too. Raise ValueError for no file, or two."""
    changes = list(overrides or [])
    if config is not None and recipe is not None:
        if "=" not in recipe:
            raise ValueError(f"two recipes, {recipe} and --config {config}: name one")
        changes.insert(0, recipe)
    file = config if config is not None else recipe
    if file is None:
        raise ValueError("Missing argument RECIPE: a YAML file, such as recipes/sft/demo.yaml")
    return file, changes + list(options or [])
