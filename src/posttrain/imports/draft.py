"""A recipe that is being built from another framework's settings, and what became of each of them.

A key of the source has one of four fates:

    mapped           the recipe has a key that means the same
    changed          the recipe has a key that means something else, with the reason
    without effect   no counterpart is needed: the key does not bear on the trained model
    refused          no counterpart exists: the imported run differs, and the key is named

`finish` refuses every key that nothing has decided on, so none is lost in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from posttrain.imports.secrets import masked, variable_of

Fate = Literal["mapped", "changed", "without effect", "refused"]
FATES: tuple[Fate, ...] = ("mapped", "changed", "without effect", "refused")
SHELL_VARIABLE = re.compile(r"\$(?!HOME\b|\{HOME\})(?:\w|\{|\()")
OFF = (None, False, "", 0, "none", "None", "no", "off", "disabled", "null", "false", "False")


@dataclass(frozen=True)
class Line:
    """What became of one key of the source."""

    key: str
    value: Any
    fate: Fate
    target: str = ""
    """The recipe's keys that it decides, separated by commas."""
    note: str = ""
    """Why it is changed, without effect or refused; or how a mapped value was computed."""


@dataclass
class Draft:
    """The recipe so far. `settings` are the source's keys, dotted, with their values."""

    title: str
    """The framework and its version, for comments."""
    settings: dict[str, Any]
    program: str = ""
    """The method that the command line names, such as `dpo` in `trl dpo`; empty for a file."""
    processes: int = 1
    """Number of processes that trained together."""
    folders: tuple[str, ...] = (".",)
    """Where files that the config names are looked for."""
    recipe: dict[str, Any] = field(default_factory=dict)
    comments: dict[str, list[str]] = field(default_factory=dict)
    lines: dict[str, Line] = field(default_factory=dict)
    last_read: str = ""
    """The key that was read last, to name it if its value is of no use."""

    def __post_init__(self) -> None:
        for key, value in list(self.settings.items()):
            if variable := variable_of(key, value):
                why = f"a secret, which is not written: set {variable} in the environment"
                self.decide(key, "without effect", "", why, "(not shown)")
            elif not key.startswith("env.") and SHELL_VARIABLE.search(f"{key} {value}"):
                why = "its value is set by the shell: set the variable for the import"
                self.decide(key, "refused", "", why)
            else:
                continue
            del self.settings[key]

    def has(self, key: str) -> bool:
        """Return whether a key is given, and not null."""
        return self.settings.get(key) is not None

    def get(self, *names: str, default: Any = None) -> Any:
        """Return the value of the first name that is given and not null."""
        name = next((name for name in names if self.has(name)), None)
        if name is None:
            return default
        self.last_read = name
        return self.settings[name]

    def under(self, prefix: str) -> dict[str, Any]:
        """Return the keys below a section, without its name."""
        start = f"{prefix}."
        return {k.removeprefix(start): v for k, v in self.settings.items() if k.startswith(start)}

    def put(self, target: str, value: Any, *keys: str, why: str = "", note: str = "") -> None:
        """Write a key of the recipe, decided by keys of the source.

        With `why`, its meaning is changed. If none of the keys is given, the value is the source's
        default, and a comment says so."""
        self.recipe[target] = value
        given = [key for key in keys if key in self.settings]
        for key in given:
            self.decide(key, "changed" if why else "mapped", target, why or note)
        comment, default = why or note, f"default of {self.title}"
        before = self.comments.pop(target, [])
        if given:
            before = [text for text in before if not text.startswith(default)]
        else:
            comment = f"{default}: {comment}" if comment else default
        if texts := [*before, *([comment] if comment else [])]:
            self.comments[target] = list(dict.fromkeys(texts))

    def copy(
        self,
        target: str,
        *keys: str,
        default: Any = None,
        convert: Callable[[Any], Any] | None = None,
        why: str = "",
        note: str = "",
    ) -> Any:
        """Write a key with the value of the first of the source's keys that is given, or a default.

        Nothing is written for a default of None. Return the value."""
        value = self.get(*keys)
        if value is None and default is None:
            self.skip("null, the default", *keys)
            return None
        if isinstance(value, bool) and convert in (int, float):
            raise ValueError(f"{self.last_read}: expected a number, got {str(value).lower()}")
        value = default if value is None else convert(value) if convert else value
        self.put(target, value, *keys, why=why, note=note)
        return value

    def start_from_adapter(self, *keys: str) -> None:
        """Start from the adapter that the first given key names, whose own settings count.

        The keys of model.adapter are not written, and have no effect."""
        if (path := self.get(*keys)) is None:
            return
        why = "as the adapter's folder says, which is trained further"
        for target in [t for t in self.recipe if t.startswith("model.adapter.")]:
            del self.recipe[target]
            self.comments.pop(target, None)
        for key, line in list(self.lines.items()):
            if line.target.startswith("model.adapter."):
                self.lines[key] = Line(key, line.value, "without effect", "", why)
        self.put("model.resume_from", path, *keys)

    def of_rows(self, field: str, *keys: str, why: str = "", note: str = "") -> None:
        """Note that keys decide a field of the data section, which is written as a whole."""
        for key in (key for key in keys if key in self.settings):
            self.decide(key, "changed" if why else "mapped", f"data.{field}", why or note)
            if why:
                self.comments.setdefault("data", []).append(f"{field}: {why}")

    def skip(self, why: str, *patterns: str) -> None:
        """Decide that keys have no effect on the result. A pattern may have wildcards."""
        for key in self._open(patterns):
            self.decide(key, "without effect", "", why)

    def refuse(self, why: str, *patterns: str) -> None:
        """Refuse keys; one that only switches the feature off has no effect."""
        for key in self._open(patterns):
            value = self.settings[key]
            if value in (*OFF, [], {}):
                self.decide(key, "without effect", "", "not used, as here")
            else:
                self.decide(key, "refused", "", why)

    def table(self, rows: Mapping[str, str], refuse: bool = False) -> None:
        """Skip (or refuse) the keys of a table: patterns, separated by spaces -> the reason."""
        for patterns, why in rows.items():
            (self.refuse if refuse else self.skip)(why, *patterns.split())

    def finish(self) -> None:
        """Decide the rest: what is null has no effect, and what nothing has read is refused."""
        for key in self._open(["*"]):
            if self.settings[key] is None or self.settings[key] in ([], {}):
                self.decide(key, "without effect", "", "not given")
            else:
                self.decide(key, "refused", "", f"not known to the import of {self.title}")

    def counts(self) -> dict[Fate, int]:
        """Return the number of keys of each fate."""
        fates = [line.fate for line in self.lines.values()]
        return {fate: fates.count(fate) for fate in FATES}

    def _open(self, patterns: Iterable[str]) -> list[str]:
        rest = [key for key in self.settings if key not in self.lines]
        tests = [(p, f"{p}.*") for p in patterns]
        return [k for k in rest if any(fnmatchcase(k, p) for both in tests for p in both)]

    def decide(self, key: str, fate: Fate, target: str, note: str, shown: Any = None) -> None:
        """Note a key's fate; a second one adds its target and reason, and the graver fate holds."""
        before = self.lines.get(key)
        if before is not None:
            target = ", ".join(dict.fromkeys(filter(None, (before.target, target))))
            note = "; ".join(dict.fromkeys(filter(None, (before.note, note))))
            order: list[Fate] = ["without effect", "mapped", "changed", "refused"]
            fate = max(before.fate, fate, key=order.index)
        value = masked(self.settings[key]) if shown is None else shown
        self.lines[key] = Line(key, value, fate, target, masked(note))


@dataclass(frozen=True)
class Source:
    """How the configs of one framework are recognised and read."""

    title: str
    recognise: Callable[[Mapping[str, Any]], bool]
    """Whether dotted settings are of this framework."""
    convert: Callable[[Draft], None]
    """Decides on every key that it knows, and writes the recipe."""
    programs: tuple[str, ...] = ()
    """Regular expressions of what starts a run, for the words of a command joined by spaces. A
    group, if there is one, is the method."""
    config_options: tuple[str, ...] = ("config", "config_file")
    """Options that name a config file; so does an argument that ends in .yaml, .yml or .json."""
    needs_method: tuple[str, ...] = ()
    """Methods among which a file does not choose, so that the import has to be told."""
    method_of: Callable[[Mapping[str, Any]], str] | None = None
    """Returns the method that only these settings can mean; empty if it is open."""
