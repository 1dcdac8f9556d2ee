"""What an import reads: a config file, a shell script, or the words of a command."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from posttrain.common.errors import SettingError
from posttrain.common.registry import load
from posttrain.common.suggest import did_you_mean
from posttrain.config.recipe import not_yaml
from posttrain.config.yaml_values import Loader
from posttrain.imports import SOURCES
from posttrain.imports.draft import Source
from posttrain.imports.shell import read_script

INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")
PROCESSES = ("nproc_per_node", "nproc-per-node", "num_processes", "num_gpus", "NPROC_PER_NODE")
NODES = ("nnodes", "num_machines", "num_nodes", "NNODES")


def drop_repeated(node: Any) -> set[str]:
    """Remove all but the last of equal keys, as frameworks' own readers do; return their names."""
    children = [] if node is None or isinstance(node, yaml.ScalarNode) else node.value
    if not isinstance(node, yaml.MappingNode):
        return {name for child in children for name in drop_repeated(child)}
    names = [str(key.value) for key, _ in children]
    node.value = list(dict(zip(names, children)).values())
    inner = {name for _, value in node.value for name in drop_repeated(value)}
    return inner | {name for name in names if names.count(name) > 1}


@dataclass
class Request:
    """Settings of a run of another framework, as they were found."""

    origin: str
    """The file, or the command, to name it in messages."""
    settings: dict[str, Any]
    """Dotted keys -> values."""
    repeated: frozenset[str] = frozenset()
    """Names that occur twice in a section of a YAML file, of which the last counts."""
    command: str = ""
    """The words that started the run, for its method; empty for a config file alone."""
    processes: int | None = None
    environment: dict[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = (".",)


def read_file(path: Path, variables: Mapping[str, str], number: int | None = None) -> Request:
    """Return the settings in a config file, or of the training command in a script or text file.

    `number` chooses among several commands, counted from 1. Raises ValueError for anything else."""
    if not path.is_file():
        raise ValueError(f"no file {path}: give a config, a script, or a command after --")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    folders = (".", *(str(folder) for folder in path.absolute().parents))
    if path.suffix.lower() in (".yaml", ".yml", ".json", ".toml"):
        if number is not None:
            raise SettingError("command", f"{path} is a config, which holds no commands")
        tree, repeated = _tree(path, text)
        settings = interpolated(flatten(tree), variables)
        return Request(str(path), settings, repeated, folders=folders)
    return read_commands(text, str(path), variables, folders, number)


def _tree(path: Path, text: str) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the nested settings in the text of a config file, and the names that occur twice."""
    kind = path.suffix.lower()
    repeated: frozenset[str] = frozenset()
    try:
        if kind == ".toml":
            tree: Any = tomllib.loads(text)
        elif kind == ".json":
            tree = json.loads(text)
        else:
            loader = Loader(text)
            node = loader.get_single_node()
            repeated = frozenset(drop_repeated(node))
            tree = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}{not_yaml(error)}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid {kind[1:].upper()}: {error}") from None
    if not isinstance(tree, dict) or not tree:
        raise ValueError(f"{path} holds no settings, only {str(tree)[:40]!r}")
    return tree, repeated


def read_words(words: list[str], variables: Mapping[str, str]) -> Request:
    """Return the settings of a command that is given as words."""
    text = " ".join(shlex.quote(word) for word in words)
    return read_commands(text, "the command", variables, (".",), None)


def read_commands(
    text: str,
    origin: str,
    variables: Mapping[str, str],
    folders: tuple[str, ...],
    number: int | None,
) -> Request:
    """Return the settings of the training command among a script's commands."""
    script = read_script(text, variables)
    found = [(words, *hit) for words in script.commands if (hit := launch_of(words)) is not None]
    exported = {
        name: value
        for name, value in script.exported.items()
        if not re.search(rf"\$\{{?{name}\b", text) or name in (*PROCESSES, *NODES)
    }
    if not found:
        plain = {name: " ".join(values) for name, values in script.variables.items()}
        if own := next((s for s in sources().values() if s.recognise(plain)), None):
            return Request(origin, {n: parsed(v) for n, v in plain.items()}, command=own.title)
        firsts = list(dict.fromkeys(words[0] for words in script.commands))[:5]
        raise ValueError(
            f"{origin} starts no training of {', '.join(SOURCES)}; its commands are "
            f"{', '.join(firsts) or 'none'}"
        )
    if number is not None and not 1 <= number <= len(found):
        raise SettingError("command", f"{number}: {origin} has {len(found)} training commands")
    distinct = {" ".join(words[end:]) for words, _, end in found}
    if number is None and len(distinct) > 1:
        raise SettingError(
            "command",
            f"{origin} has {len(found)} training commands: choose one by its number, from 1",
        )
    words, source, end = found[(number or 1) - 1]
    settings = arguments(words[end:], source, origin, folders)
    launcher = arguments(words[:end], source, origin, folders, launcher=True)
    launcher |= {k: v for k, v in exported.items() if k in (*PROCESSES, *NODES)}
    return Request(
        origin,
        settings,
        command=" ".join(words[:end]),
        processes=processes_of(launcher),
        environment=exported,
        folders=folders,
    )


def launch_of(words: list[str]) -> tuple[Source, int] | None:
    """Return the framework that a command starts, and the number of words that say so."""
    for end in range(1, len(words) + 1):
        start = " ".join(words[:end])
        for source in sources().values():
            if any(re.search(rf"(?:^|[\s/]){p}$", start) for p in source.programs):
                return source, end
    return None


def sources() -> dict[str, Source]:
    """Return the frameworks by name."""
    return {name: load(entry) for name, entry in SOURCES.items()}


def arguments(
    words: list[str],
    source: Source,
    origin: str,
    folders: tuple[str, ...],
    launcher: bool = False,
) -> dict[str, Any]:
    """Return the settings in a command's words: --key value, --flag, key=value and config files.

    A config file's settings come first, and the words change them."""
    settings: dict[str, Any] = {}
    changes: dict[str, Any] = {}
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if not word.startswith("-") or re.fullmatch(r"-+", word):
            _positional(word, settings, changes, origin, folders, launcher)
            continue
        key, equals, value = word.lstrip("-").partition("=")
        key = key.replace("-", "_")
        values = [value] if equals else []
        while not equals and at < len(words) and not _is_option(words[at]):
            if launcher and values:
                break
            values.append(words[at])
            at += 1
        if key in source.config_options and values and not launcher:
            settings |= named_config(values[0], origin, folders)
            for more in values[1:]:
                _positional(more, settings, changes, origin, folders, launcher)
        elif key == "override" and values:
            _positional(values[0], settings, changes, origin, folders, launcher)
        else:
            changes[key] = (
                True
                if not values
                else parsed(values[0])
                if len(values) == 1
                else [parsed(value) for value in values]
            )
    for key in changes:  # a section or list that a word replaces
        for old in [k for k in settings if k.startswith(f"{key}.")]:
            del settings[old]
    return interpolated({**settings, **changes})


def _is_option(word: str) -> bool:
    return word.startswith("-") and not re.fullmatch(r"-\d.*|-", word)


def _positional(
    word: str,
    settings: dict[str, Any],
    changes: dict[str, Any],
    origin: str,
    folders: tuple[str, ...],
    launcher: bool,
) -> None:
    key, equals, value = word.partition("=")
    if launcher and not equals:
        return
    if equals and re.fullmatch(r"[+~]*[\w.@/-]+", key):
        changes[key.lstrip("+~")] = parsed(value) if not key.startswith("~") else None
    elif Path(word).suffix in (".yaml", ".yml", ".json") and not launcher:
        settings |= named_config(word, origin, folders)
    elif word.strip() and word not in ("&", ">", "2>&1", "--"):
        changes[word] = True


def named_config(name: str, origin: str, folders: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings of a config file that a command names; look for it in the folders."""
    names = (name, f"{name}.yaml", f"recipes/configs/{name}.yaml")
    for path in (Path(folder) / each for folder in folders for each in names):
        if path.is_file():
            return flatten(_tree(path, path.read_text(encoding="utf-8-sig"))[0])
    raise ValueError(f"{origin} reads {name}, which is not at hand: run the import where it is")


def processes_of(launcher: Mapping[str, Any]) -> int | None:
    """Return the number of processes that a launcher's options ask for, if they say it."""
    per_node = next((launcher[k] for k in PROCESSES if k in launcher), None)
    nodes = next((launcher[k] for k in NODES if k in launcher), 1)
    if not str(per_node).isdecimal() or not str(nodes).isdecimal():
        return None
    total = "num_processes" in launcher  # accelerate counts those of all machines
    return int(str(per_node)) * (1 if total else int(str(nodes)))


def parsed(text: Any) -> Any:
    """Return the value that a word of a command holds."""
    if not isinstance(text, str) or text.strip() in ("", "{}"):
        return text
    try:
        value = yaml.load(text, Loader)
    except yaml.YAMLError:
        return text
    if text[0] not in "[{" and isinstance(value, list | dict):
        return text
    return value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested settings by dotted key; items of a list of sections by number."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        if isinstance(value, dict) and value:
            inner = flatten(value, f"{key}.")
        else:
            inner = {key: value}
        if twice := flat.keys() & inner.keys():
            raise ValueError(f"{min(twice)} is given twice, once as a section and once with dots")
        flat |= inner
    return flat


def interpolated(
    settings: dict[str, Any], variables: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the settings with `${other.key}` and variables replaced by their values."""
    for _ in range(5):
        before = settings
        settings = {k: _filled(v, {**before, **(variables or {})}) for k, v in before.items()}
        if settings == before:
            break
    return settings


def _filled(value: Any, settings: Mapping[str, Any]) -> Any:
    if not isinstance(value, str) or "${" not in value:
        return value
    return INTERPOLATION.sub(
        lambda m: str(settings[m[1]]) if settings.get(m[1]) is not None else m[0], value
    )


def source_of(request: Request, name: str | None) -> tuple[str, Source]:
    """Return the framework of the settings: the one of that name, or the one that they show.

    Raises ValueError if there is none or more than one."""
    known = sources()
    if name is not None:
        wanted = name.replace("-", "_").lower()
        if wanted not in known:
            raise SettingError("from", f"{name} is not known; {did_you_mean(wanted, known)}")
        return wanted, known[wanted]
    if request.command:
        for key, source in known.items():
            words = request.command
            hit = any(re.search(rf"(?:^|[\s/]){p}$", words) for p in source.programs)
            if hit or source.title == request.command:
                return key, source
    found = [key for key, source in known.items() if source.recognise(request.settings)]
    if len(found) == 1:
        return found[0], known[found[0]]
    if found:
        raise SettingError("from", f"{request.origin} may be of {' or '.join(found)}: say which")
    first = ", ".join(list(request.settings)[:5])
    raise SettingError(
        "from",
        f"{request.origin} is of no known format (its first keys: {first}); known: "
        f"{', '.join(known)}",
    )
