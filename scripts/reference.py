"""Write docs/reference/ from the code: every config key, command, data set, Python name.

    python scripts/reference.py            # write the pages
    python scripts/reference.py --check    # exit with 1 if a page is out of date

A key, an option or a data set without a description is an error.
"""

from __future__ import annotations

import ast
import inspect
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types
import click
import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import posttrain
from posttrain.algorithms import ALGORITHMS
from posttrain.algorithms.base import algorithm_named
from posttrain.algorithms.config import TrainerConfig
from posttrain.cli.main import app
from posttrain.common.registry import load
from posttrain.config.base import (
    AlsoCalled,
    ForEngines,
    Free,
    Key,
    description_of,
    marked,
    sections_in,
)
from posttrain.data.origin import origin_of
from posttrain.data.sets import DATASETS
from posttrain.evaluation.compare import Comparison
from posttrain.evaluation.tasks import Settings
from posttrain.rewards import REWARDS
from posttrain.rewards.base import RewardConfig
from posttrain.rewards.build import reward_named
from posttrain.runs.config import Config
from posttrain.runs.inference import InferenceConfig
from posttrain.runs.pipeline import PipelineConfig
from posttrain.runs.synthesize import MakingConfig
from posttrain.tracking.plot import Plot

PAGES = Path(__file__).resolve().parents[1] / "docs" / "reference"
NOTE = "<!-- Written by scripts/reference.py from the code: do not edit. -->\n"


def config_page() -> Iterator[str]:
    """Yield the lines of the page about all config keys."""
    yield "# Configuration"
    yield NOTE
    yield (
        "A recipe is a YAML file with the sections below. A key that the run would not read is an "
        "error. Any key can be changed on the command line: `trainer.learning_rate=1e-5`. In the "
        "notes, *free* marks a key that may change when a run is resumed, and *also* lists names "
        "that other frameworks have for the key: the error about such a name points to this key."
    )
    yield ""
    for name, info in Config.model_fields.items():
        yield f"## {name}"
        yield ""
        yield from _paragraph(described(Key(name, info, Config)))
        if name == "trainer":
            yield from trainer_sections()
        elif name == "reward":
            yield from reward_sections()
        else:
            for model in dict.fromkeys(sections_in(info)):
                yield from section(model, name)
    yield "## Pipelines"
    yield ""
    yield "A pipeline file runs stages one after another (`posttrain pipeline`)."
    yield ""
    yield from section(PipelineConfig, "", "pipeline")
    yield "## Making data"
    yield ""
    yield "A recipe with a `make` section generates data (`posttrain data preferences`, `filter`)."
    yield ""
    yield from section(MakingConfig, "", "making", ("model", "data", "reward"))
    yield "## Inference"
    yield ""
    yield "A file for `posttrain generate --config`. The keys of `reward` are those of a recipe."
    yield ""
    yield from section(InferenceConfig, "", "inference", ("reward",))


def trainer_sections() -> Iterator[str]:
    """Yield the keys that all methods share, then those that each method adds or changes."""
    yield "### Every method"
    yield ""
    yield from table(TrainerConfig, "trainer", skip=("type",))
    for name in ALGORITHMS:
        model = algorithm_named(name).config
        shared = TrainerConfig.model_fields
        changed = [
            key
            for key, info in model.model_fields.items()
            if key != "type" and (key not in shared or default_of(info) != default_of(shared[key]))
        ]
        yield f"### trainer.type: {name}"
        yield ""
        yield from _paragraph(first_paragraph(model))
        yield from table(model, "trainer", only=changed)


def reward_sections() -> Iterator[str]:
    """Yield the keys of each reward."""
    for name in REWARDS:
        model = reward_named(name).config
        yield f"### reward.type: {name}"
        yield ""
        yield from _paragraph(first_paragraph(model))
        yield from table(model, "reward", skip=("type",))


def section(
    model: type[BaseModel], path: str, title: str = "", skip: tuple[str, ...] = ()
) -> Iterator[str]:
    """Yield a table of a section's keys, then one for each section inside it."""
    yield from table(model, path, skip=skip)
    for name, info in model.model_fields.items():
        if name in skip:
            continue
        inner = [m for m in dict.fromkeys(sections_in(info)) if not issubclass(m, RewardConfig)]
        for below in inner:
            if f"{path}.{name}" == "eval.data":  # has the keys of `data`
                continue
            where = f"{path}.{name}" if path else name
            kind = below.model_fields.get("type")
            yield f"### {where}" + (f", type: {kind.default}" if kind is not None else "")
            yield ""
            yield from _paragraph(first_paragraph(below))
            yield from section(below, where)


def table(
    model: type[BaseModel],
    path: str,
    *,
    only: list[str] | None = None,
    skip: tuple[str, ...] = (),
) -> Iterator[str]:
    """Yield a Markdown table of a section's keys."""
    names = [n for n in (model.model_fields if only is None else only) if n not in skip]
    names = [n for n in names if not model.model_fields[n].exclude]
    if not names:
        yield "No keys of its own."
        yield ""
        return
    yield "| key | meaning | values | default | notes |"
    yield "|---|---|---|---|---|"
    for name in names:
        info = model.model_fields[name]
        key = Key(f"{path}.{name}" if path else name, info, model)
        cells = (f"`{name}`", described(key), values_of(info), default_of(info), notes_of(key))
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def described(key: Key) -> str:
    """Return a key's meaning; raise ValueError if it has none."""
    text = description_of(key)
    if not text:
        raise ValueError(f"{key.section.__name__}.{key.path.rpartition('.')[2]} has no docstring")
    return escaped(text)


def escaped(text: str) -> str:
    """Return a text with `<`, `*` and `_` escaped for Markdown, except in code spans."""
    parts = text.split("`")
    parts[::2] = [
        p.replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_") for p in parts[::2]
    ]
    return "`".join(parts)


def notes_of(key: Key) -> str:
    """Return the notes on a key: whether it is free, its engines, its other names."""
    notes = ["free"] if marked(key, Free) else []
    notes += [f"engine {' or '.join(mark.engines)}" for mark in marked(key, ForEngines)]
    names = [f"`{name}`" for mark in marked(key, AlsoCalled) for name in mark.hints]
    return "; ".join([*notes, *([f"also {', '.join(names)}"] if names else [])])


def values_of(info: FieldInfo) -> str:
    """Return a key's type and bounds, in words."""
    text = type_text(info.annotation)
    bounds = {
        annotated_types.Ge: "≥",
        annotated_types.Gt: ">",
        annotated_types.Le: "≤",
        annotated_types.Lt: "<",
    }
    limits = [
        f"{bounds[type(mark)]} {getattr(mark, type(mark).__name__.lower())}"
        for mark in info.metadata
        if type(mark) in bounds
    ]
    return ", ".join([text, *limits])


def type_text(annotation: Any) -> str:
    """Return the name of a type for a reader of YAML."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return type_text(args[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_text(arg) for arg in args))
    if origin in (list, tuple):
        inner = " or ".join(dict.fromkeys(type_text(arg) for arg in args if arg is not ...))
        return f"list of {inner}"
    if origin is dict:
        return f"{type_text(args[0])} -> {type_text(args[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    names = {str: "text", int: "whole number", float: "number", bool: "true, false"}
    names |= {type(None): "null", Any: "anything"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def default_of(info: FieldInfo) -> str:
    """Return a key's default as YAML writes it."""
    value = info.default
    if value is PydanticUndefined:
        if info.default_factory is None:
            return "required"
        value = info.default_factory()  # type: ignore[call-arg]
    if isinstance(value, BaseModel):
        return ""
    if isinstance(value, str) and len(value) > 60:
        return "see the source"
    names = {None: "`null`", True: "`true`", False: "`false`"}
    if value is None or isinstance(value, bool):
        return names[value]
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def first_paragraph(model: type[BaseModel]) -> str:
    """Return the first paragraph of a section's docstring; raise ValueError if it has none."""
    doc = inspect.cleandoc(model.__dict__.get("__doc__") or "")
    if not doc:
        raise ValueError(f"{model.__name__} has no docstring")
    return escaped(" ".join(doc.split("\n\n")[0].split()))


def cli_page() -> Iterator[str]:
    """Yield the lines of the page about all commands."""
    yield "# Command line"
    yield NOTE
    yield "An error in the input is reported as one line on standard error, with exit code 2."
    yield ""
    root = typer.main.get_command(app)
    assert isinstance(root, click.Group | typer.core.TyperGroup)
    yield from command_lines(root, "posttrain")


def command_lines(command: Any, path: str) -> Iterator[str]:
    """Yield a command's section, or those of the commands below a group."""
    if hasattr(command, "commands"):
        for name, below in command.commands.items():
            yield from command_lines(below, f"{path} {name}")
        return
    yield f"## {path}"
    yield ""
    help_text = inspect.cleandoc(command.help or "")
    if not help_text:
        raise ValueError(f"{path} has no help text")
    yield escaped(help_text)
    yield ""
    parameters = [parameter for parameter in command.params if parameter.name != "help"]
    if not parameters:
        return
    yield "| argument or option | meaning | default |"
    yield "|---|---|---|"
    for parameter in parameters:
        text = getattr(parameter, "help", None)
        if not text:
            raise ValueError(f"{path}: {parameter.name} has no help text")
        names = ", ".join(f"`{name}`" for name in parameter.opts)
        if parameter.param_type_name == "argument":
            names = f"`{parameter.metavar or parameter.name.upper()}`"
        default = parameter.default() if callable(parameter.default) else parameter.default
        empty = default is None or default is False or default == ""
        shown = "" if empty or parameter.required else f"`{default}`"
        if parameter.required:
            shown = "required"
        yield f"| {names} | {escaped(' '.join(text.split()))} | {shown} |".replace("\\\\", "\\")
    yield ""


def datasets_page() -> Iterator[str]:
    """Yield the lines of the page about all named data sets."""
    yield "# Data sets by name"
    yield NOTE
    yield (
        "`data.name: NAME` selects a data set; `data.path` says where its original files are, and "
        "`data.options` holds its options. `posttrain data download NAME` downloads the files. "
        "posttrain ships no data, and each source has its own licence."
    )
    yield ""
    for name, entry in DATASETS.items():
        function = load(entry)
        module = sys.modules[function.__module__]
        yield f"## {name}"
        yield ""
        title = inspect.cleandoc(module.__doc__ or "").partition("\n")[0]
        if not title or not function.__doc__:
            raise ValueError(f"{name} has no description")
        yield escaped(title)
        yield ""
        origin = origin_of(name)
        if origin is not None:
            splits = [s if n is None else f"{s} ({n:,})" for s, n in origin.rows.items()]
            yield f"- splits: {', '.join(splits)}"
            yield f"- licence: {origin.licence}"
            if origin.uses:
                yield f"- use: {', '.join(origin.uses)}"
            page = origin.page
            yield f"- source: <{page}>" if page.startswith("http") else f"- source: {page}"
        options = [
            f"`{p.name}` ({p.default!r})"
            for p in inspect.signature(function).parameters.values()
            if p.kind == p.KEYWORD_ONLY and p.name != "path"
        ]
        if options:
            yield f"- options, with defaults: {', '.join(options)}"
        yield ""
        yield escaped(inspect.cleandoc(function.__doc__))
        yield ""


def python_page() -> Iterator[str]:
    """Yield the lines of the page about `import posttrain`."""
    yield "# Python"
    yield NOTE
    yield (
        "`import posttrain` loads nothing heavy; each name is loaded when it is first used. "
        "Messages about wrong keys are those of a recipe. Progress and notes are printed as by "
        "the commands. A `Source` is the path of a recipe or a nested dict with its keys; "
        "`Results` and `Comparisons` are dicts by task. A notebook shows these, a `Run` and a "
        "`Plot` as tables and pictures."
    )
    yield ""
    names = ("load_config", "train", "dry_run", "preview", "evaluate", "compare")
    for name in (*names, "generate", "generate_file", "plot", "write_report"):
        function = getattr(posttrain, name)
        yield f"## posttrain.{name}"
        yield ""
        yield from ("```python", signature_of(name, function), "```", "")
        yield from (escaped(documentation_of(name, function)), "")
    for owner, title in (
        (posttrain.Run, "posttrain.Run"),
        (posttrain.Completion, "posttrain.Completion"),
        (Comparison, "A comparison of compare"),
        (Plot, "A plot"),
        (Settings, "Settings of evaluate"),
    ):
        yield f"## {title}"
        yield ""
        yield from (escaped(documentation_of(title, owner)), "")
        yield from members_of(owner)


def signature_of(name: str, function: Any) -> str:
    """Return a function's signature, one parameter per line, with types and defaults."""
    lines = [f"{name}("]
    before = None
    for parameter in inspect.signature(function).parameters.values():
        if before == parameter.POSITIONAL_ONLY != parameter.kind:
            lines.append("    /,")
        if before != parameter.KEYWORD_ONLY == parameter.kind:
            lines.append("    *,")
        many = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
        stars = next((sign for kind, sign in many.items() if kind == parameter.kind), "")
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        lines.append(f"    {stars}{parameter.name}: {parameter.annotation}{default},")
        before = parameter.kind
    return "\n".join([*lines, f") -> {inspect.signature(function).return_annotation}"])


def members_of(owner: type) -> Iterator[str]:
    """Yield a table of the fields, properties and methods of a class."""
    yield "| name | type or default | meaning |"
    yield "|---|---|---|"
    source = ast.parse(inspect.cleandoc(inspect.getsource(owner))).body[0]
    assert isinstance(source, ast.ClassDef)
    for node, after in zip(source.body, [*source.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            assert isinstance(node.target, ast.Name)
            if not isinstance(after, ast.Expr) or not isinstance(after.value, ast.Constant):
                raise ValueError(f"{owner.__name__}.{node.target.id} has no description")
            text = str(after.value.value)
            default = "" if node.value is None else f" = {ast.unparse(node.value)}"
            default = default.replace(" = field(repr=False)", "")  # how it is shown, no default
            shown = f"`{ast.unparse(node.annotation)}{default}`".replace("|", "\\|")
            yield f"| `{node.target.id}` | {shown} | {escaped(' '.join(text.split()))} |"
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            kind = "property" if node.decorator_list else "method"  # none has another decorator
            text = " ".join((ast.get_docstring(node) or "").split())
            call = node.name if kind == "property" else f"{node.name}()"
            yield f"| `{call}` | {kind} | {escaped(text)} |"
    yield ""


def documentation_of(name: str, thing: Any) -> str:
    """Return a docstring; raise ValueError if there is none."""
    if not thing.__doc__:
        raise ValueError(f"{name} has no description")
    return inspect.cleandoc(thing.__doc__)


def _paragraph(text: str) -> list[str]:
    return [text, ""]


def pages() -> dict[Path, str]:
    """Return the text of every page, by its path."""
    writers = {
        "config.md": config_page,
        "cli.md": cli_page,
        "datasets.md": datasets_page,
        "python.md": python_page,
    }
    return {PAGES / name: "\n".join(lines()).rstrip() + "\n" for name, lines in writers.items()}


def main() -> None:
    """Write the pages, or check that they are up to date."""
    stale = []
    for path, text in pages().items():
        if "--check" in sys.argv:
            stale += [path] if not path.is_file() or path.read_text() != text else []
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if stale:
        sys.exit(
            f"out of date: {', '.join(p.name for p in stale)}; run python scripts/reference.py"
        )


if __name__ == "__main__":
    main()
