"""Shell scripts, read and not run: their assignments, and the commands with variables replaced.

What a shell would have to compute (`$(...)`, `$1`, a variable that is set in one branch only) stays
as it is written; a key with such a value is refused by name.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

NAME = r"[A-Za-z_]\w*"
ASSIGNMENT = re.compile(rf"({NAME})(\+?)=")
VARIABLE = re.compile(
    r"\$\(\((?P<sum>(?:[^()]|\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\))*)\)\)"
    rf"|\$\{{(?P<braced>{NAME}|\d|[@*#?])(?:\[[@*]\])?(?P<slice>:\d+(?::\d+)?)?"
    rf"(?P<default>:?[-=][^{{}}]*(?:\{{[^{{}}]*\}}[^{{}}]*)*)?\}}|\$(?P<plain>{NAME}|[0-9@*#?])"
)
OPENING = ("if", "for", "while", "until", "case", "function", "select")
CLOSING = ("fi", "done", "esac")
LEADING = ("then", "do", "else", "elif", "if", "while", "until", "!", "{", "time", "exec", "sudo")
DECLARING = ("export", "local", "declare", "readonly", "typeset")
SUMS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}

Piece = tuple[str, str]
"""A part of a word and how it is quoted: nothing, ' or "."""
Word = list[Piece]


@dataclass
class Script:
    """What a script holds."""

    variables: dict[str, list[str]] = field(default_factory=dict)
    """Values of variables; a plain one is a list of one."""
    exported: dict[str, str] = field(default_factory=dict)
    """Variables that the script exports, or sets before a command."""
    commands: list[list[str]] = field(default_factory=list)
    """Words of the commands, with variables replaced."""


def read_script(text: str, given: Mapping[str, str] | None = None) -> Script:
    """Return the assignments and commands of a script; `given` variables override its own."""
    script = Script({name: [value] for name, value in (given or {}).items()})
    fixed, depth, before = set(script.variables), 0, dict[str, list[str]]()
    for words in split_commands(text):
        while words and _plain(words[0]) in (*LEADING, *OPENING, *CLOSING):
            word = _plain(words[0])
            if word in OPENING:
                before = dict(script.variables) if depth == 0 else before
                depth += 1
            depth -= word in CLOSING
            if word in ("for", "case", "select", "function"):
                words = []
            words = words[1:]
        _run(words, script, fixed, before if depth > 0 else None)
    return script


def _run(
    words: list[Word], script: Script, fixed: set[str], before: dict[str, list[str]] | None
) -> None:
    """Note the assignments at the beginning of a command, and the command after them."""
    declares = bool(words) and _plain(words[0]) in DECLARING
    exports = declares and _plain(words[0]) == "export"
    rest = words[1:] if declares else words
    local: dict[str, str] = {}
    while rest and (match := ASSIGNMENT.match(rest[0][0][0] if rest[0][0][1] == "" else "")):
        name, more = match.group(1, 2)
        values = _values(rest[0], match.end(), script)
        if more:
            values = script.variables.get(name, []) + values
        if name not in fixed:
            if before is not None and before.get(name) != values:
                values = [f"${{{name}}}"]  # set in one branch: not known
            script.variables[name] = values
        local[name] = " ".join(script.variables[name])
        rest = rest[1:]
        while declares and rest and not ASSIGNMENT.match(_plain(rest[0])):
            rest = rest[1:]
    if exports:
        names = [_plain(word) for word in rest]
        local |= {n: " ".join(script.variables[n]) for n in names if n in script.variables}
        rest = []
    command = [word for piece in rest for word in expand(piece, script.variables)]
    if command:
        script.commands.append(command)
    if exports or command:
        script.exported |= local


def _values(word: Word, start: int, script: Script) -> list[str]:
    """Return the values on the right of an assignment, which may be an array in parentheses."""
    first = (word[0][0][start:], word[0][1])
    if first[0].startswith("(") and first[1] == "" and not first[0].startswith("(("):
        inner = _plain([first, *word[1:]])
        inside = split_commands(inner.strip()[1:-1].replace("\n", " "))
        return [w for words in inside for piece in words for w in expand(piece, script.variables)]
    return [
        " ".join(
            expand([(first[0], '"' if first[1] == "" else first[1]), *word[1:]], script.variables)
        )
    ]


def _plain(word: Word) -> str:
    """Return a word as it is written, with its quotation marks."""
    return "".join(f"{quote}{text}{quote}" for text, quote in word)


def expand(word: Word, variables: Mapping[str, list[str]]) -> list[str]:
    """Return the words that one word becomes once its variables are replaced."""
    done = [""]
    started = False
    for text, quote in word:
        if quote == "'":
            done[-1] += text
            started = True
            continue
        if quote == "" and text.startswith("~") and not done[-1]:
            text = "${HOME}" + text[1:] if text[1:2] in ("", "/") else text
        last = 0
        for match in VARIABLE.finditer(text):
            done[-1] += text[last : match.start()]
            started = started or match.start() > last
            last = match.end()
            values = _value(match, variables)
            if quote == "" and values is not None and not any("$(" in v for v in values):
                values = [part for value in values for part in value.split()]
            if values is None:
                values = [match[0] if match["plain"] is None else f"${{{match['plain']}}}"]
            if values:
                done[-1] += values[0]
                done += values[1:]
                started = True
        done[-1] += text[last:]
        started = started or len(text) > last or quote != ""
    whole = word[0][0] if len(word) == 1 else ""
    if done == [""] and re.fullmatch(r"\$(\{[@*]\}|[@*])|\$\{\w+\[[@*]\]\}", whole):
        return []
    return done if started else []


def _value(match: re.Match[str], variables: Mapping[str, list[str]]) -> list[str] | None:
    """Return the words of a variable, or None if it is not known."""
    if match["sum"] is not None:
        inner = VARIABLE.sub(lambda m: " ".join(_value(m, variables) or ["?"]), match["sum"])
        names = re.sub(NAME, lambda m: " ".join(variables.get(m[0], ["?"])), inner)
        result = calculate(names)
        return None if result is None else [str(result)]
    name = match["braced"] or match["plain"]
    if name in ("@", "*"):
        return []
    if name in variables:
        return variables[name]
    default = match["default"] if match["braced"] else None
    if default is None:
        return None
    return expand([(default.lstrip(":")[1:].strip("\"'"), '"')], variables)


def calculate(text: str) -> int | None:
    """Return the value of a sum of whole numbers, or None."""
    try:
        return _calculate(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, KeyError, ValueError, ZeroDivisionError, RecursionError):
        return None


def _calculate(node: ast.AST) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.BinOp):
        return int(SUMS[type(node.op)](_calculate(node.left), _calculate(node.right)))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_calculate(node.operand)
    raise ValueError("not a sum")


def split_commands(text: str) -> list[list[Word]]:
    """Return the words of each simple command, with their quoting; comments are left out."""
    text = re.sub(r"<<-?\s*['\"]?(\w+)['\"]?.*?\n.*?^\s*\1$", "", text, flags=re.M | re.S)
    text = re.sub(r"\\\r?\n", " ", text).replace("\r\n", "\n")
    commands: list[list[Word]] = [[]]
    word: Word | None = None
    at = 0
    while at < len(text):
        char = text[at]
        if char in "'\"":
            inner, at = _quoted(text, at)
            word = [*(word or []), (inner, char)]
        elif char == "\\" and at + 1 < len(text):
            word = [*(word or []), (text[at + 1], "'")]
            at += 2
        elif char == "#" and word is None:
            at = (text.find("\n", at) + len(text) + 1) % (len(text) + 1) or len(text)
        elif char.isspace() or (char in ";|&" and not text.startswith("&1", at)):
            if word is not None:
                commands[-1].append(word)
                word = None
            if char in "\n;|&":
                commands.append([])
            at += 1
        else:
            inner, at = _bare(text, at)
            if word and word[-1][1] == "":
                word = [*word[:-1], (word[-1][0] + inner, "")]
            else:
                word = [*(word or []), (inner, "")]
    if word is not None:
        commands[-1].append(word)
    return [command for command in commands if command]


def _quoted(text: str, at: int) -> tuple[str, int]:
    """Return what is in quotation marks that open at a place, and the place after them."""
    quote, parts, place = text[at], [], at + 1
    while place < len(text) and text[place] != quote:
        if text[place] == "\\" and quote == '"' and text[place + 1 : place + 2] in ('"', "\\"):
            place += 1
        parts.append(text[place])
        place += 1
    return "".join(parts), place + 1


def _bare(text: str, at: int) -> tuple[str, int]:
    """Return a piece without quotation marks: one character, or what brackets enclose."""
    for opening in ("$((", "$(", "${", "("):
        if text.startswith(opening, at):
            before = text[at - 1 : at]
            if opening == "(" and before != "=":
                return text[at], at + 1
            depth, place = 0, at
            while place < len(text):
                depth += text[place] in "({"
                depth -= text[place] in ")}"
                place += 1
                if depth == 0 and place > at + 1:
                    break
            return text[at:place], place
    return text[at], at + 1
