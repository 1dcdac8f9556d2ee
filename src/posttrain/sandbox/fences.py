"""The fenced blocks of a completion, found in one pass over its lines.

The rules are CommonMark's, and in addition what models write: a fence that names Python always
opens a block, so that a block left open before it does no harm.
"""

import re
from dataclasses import dataclass

_PYTHON = re.compile(r"[\s{.]*(i?python[23]?(\.\d+)*|py[23]?|pypy3?)(?![\w+#.-])", re.IGNORECASE)
_THOUGHT, _END_OF_THOUGHT = "<think>", "</think>"


@dataclass(slots=True)
class Fence:
    """A line that opens or closes a block."""

    line: int
    indent: int
    """Columns before it."""
    marks: str
    """Its backticks or tildes."""
    is_python: bool
    info: str
    """What follows, such as a language."""


@dataclass(slots=True)
class Block:
    """A block: its first fence, and the lines in it; see `text_of`."""

    fence: Fence
    end: int
    """Number of the line after its last."""
    is_closed: bool


def answer_of(completion: str) -> str:
    """Return a completion without its reasoning (what precedes </think>), with plain line ends.

    A reasoning that breaks off leaves no answer. Python knows no line ends other than these three.
    A byte order mark is not part of a program.
    """
    text = completion.rpartition(_END_OF_THOUGHT)[2]
    if text.lstrip().startswith(_THOUGHT):
        return ""
    return text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff")


def blocks_of(lines: list[str]) -> tuple[list[Block], list[Fence]]:
    """Return the blocks in `lines`, and all fences.

    A block that the end of the text cuts off counts. A fence that is indented by four columns more
    than the one that opened the block belongs to its content (a docstring, for example).
    """
    possible = [(n, line) for n, line in enumerate(lines) if "```" in line or "~~~" in line]
    fences = [fence for n, line in possible if (fence := _fence(n, line)) is not None]
    blocks: list[Block] = []
    opened: Fence | None = None
    for fence in fences:
        if opened is None:
            opened = fence
        elif fence.indent > opened.indent + 3:
            continue
        elif _can_close(fence, opened):
            blocks.append(Block(opened, fence.line, True))
            opened = None
        elif fence.is_python and not (opened.is_python and not _same_kind(fence, opened)):
            blocks.append(Block(opened, fence.line, True))
            opened = fence
    if opened is not None:
        blocks.append(Block(opened, len(lines), False))
    return blocks, fences


def _fence(number: int, line: str) -> Fence | None:
    text = line.lstrip(" \t")
    if not text.startswith(("```", "~~~")):
        return None
    info = text.lstrip(text[0])
    if text[0] == "`" and "`" in info:  # code within a line of prose
        return None
    indent = len(line[: len(line) - len(text)].expandtabs(4))
    marks = text[: len(text) - len(info)]
    is_python = bool(info) and _PYTHON.match(info) is not None
    return Fence(number, indent, marks, is_python, info.strip())


def _same_kind(fence: Fence, opened: Fence) -> bool:
    return fence.marks.startswith(opened.marks)


def _can_close(fence: Fence, opened: Fence) -> bool:
    return _same_kind(fence, opened) and not fence.info


def text_of(lines: list[str], block: Block, end: int | None = None) -> str:
    """Return a block's content, up to the line `end`, less the indentation of its first fence.

    Other indentation is kept: a HumanEval completion may be the body of a function.
    """
    inside = lines[block.fence.line + 1 : block.end if end is None else end]
    content = "\n".join(_outdented(line, block.fence.indent) for line in inside)
    return content + ("\n" if inside and (block.is_closed or end is not None) else "")


def _outdented(line: str, columns: int) -> str:
    """Return a line without its first white space, of at most `columns` columns."""
    start = 0
    while columns > 0 and line[start : start + 1] in (" ", "\t"):
        columns -= 4 if line[start] == "\t" else 1
        start += 1
    return line[start:]
