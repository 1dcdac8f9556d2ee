"""The command that turns another framework's config or command into a recipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from posttrain.cli.paths import local_path

PANEL = "Training"


def import_(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE|-- COMMAND...",
            help="A YAML, JSON or TOML config, a shell script, or the words of a command after --.",
        ),
    ],
    framework: Annotated[
        str | None,
        typer.Option(
            "--from", help="The framework, if it cannot be told: docs/guide/coming_from.md."
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="The training method, if the file does not name it.")
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes that trained together; by default as the command says."
        ),
    ] = None,
    command: Annotated[
        int | None, typer.Option(min=1, help="Which of a script's training commands, from 1.")
    ] = None,
    variables: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A variable of the shell; repeat it."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(parser=local_path, help="The recipe to write; by default it is printed."),
    ] = None,
) -> None:
    """Turn a config of LLaMA-Factory, Axolotl, TRL, torchtune, open-instruct or verl into a recipe.

    Every key is mapped, changed in meaning, without effect or refused, and the table says which.
    Exit code 1 if a key was refused.
    """
    from posttrain.common.files import write_text
    from posttrain.imports.read import read_file, read_words
    from posttrain.imports.run import import_request
    from posttrain.imports.write import recipe_text, table_text, tree_of
    from posttrain.runs.config import parse_config

    given: dict[str, str] = {}
    for pair in variables or []:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--set {pair}: expected NAME=VALUE")
        given[name] = value
    if len(source) == 1:
        request = read_file(local_path(source[0]), given, command)
    else:
        request = read_words(source, given)
    draft = import_request(request, framework, method, processes)
    text = recipe_text(draft, request.origin)
    try:
        parse_config(tree_of(draft), str(output or "the recipe"))
        problem = ""
    except ValueError as error:
        problem = f"to correct before it runs: {error}"
    if output is None:
        typer.echo(text)
    else:
        if output.exists():
            raise ValueError(f"--output: {output} exists: name a new file")
        write_text(output, text)
    typer.echo(table_text(draft), err=output is None)
    if problem:
        typer.echo(problem, err=output is None)
    if output is not None:
        typer.echo(f"recipe: {output}")
    if problem or draft.counts()["refused"]:
        sys.exit(1)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("import", rich_help_panel=PANEL)(import_)
