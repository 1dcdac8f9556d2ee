"""Extracts the program from a completion.

All of this takes time in proportion to the text's length, except Python's own parser, so no text
beyond `LONGEST` characters is parsed. What a completion makes of the parser is its own fault:
callers run these functions in a process with limits.
"""

import ast
import builtins
import re
import textwrap
from bisect import bisect_right
from collections.abc import Iterable, Iterator

from posttrain.sandbox.fences import answer_of, blocks_of, text_of
from posttrain.sandbox.pieces import (
    LONGEST,
    Part,
    assembled,
    bound,
    defines,
    hoisted,
    is_load,
    mentioned,
    parsed,
    tree_or_line,
)

MOST_PARSED = 4 * LONGEST  # characters that attempts to find the end of a program may parse
MOST_CUTS = 20  # attempts to cut a text before its first error; each parses it again
MOST_BLOCKS = 20  # blocks that are read, the last ones
MOST_ENDS = 3  # fences after a block's that may be its end
MOST_STARTS = 50  # lines at which code may begin in a prompt
_START = re.compile(
    r"^(?=from |import |async def |def |class |@|[A-Za-z_]\w* ?=(?!=))", re.MULTILINE
)
# A base model has left the function at one of HumanEval's stop words (Chen et al. 2021).
_STOP = re.compile(r"\n(?=class |def |#|if |print|@|```)")
_READS = {"input", "stdin", "open", "read", "fileinput"}
_WRITES = {"print", "stdout", "write", "writelines"}


# --- what a completion contains -------------------------------------------------------------------


def code_of(completion: str) -> str:
    """Return the last block fenced as Python, else the last without a language, else all the text.

    Reasoning does not count.
    """
    blocks = fenced(completion)
    return blocks[-1] if blocks else answer_of(completion)


def fenced(completion: str) -> list[str]:
    """Return the blocks fenced as Python, or if there are none, those without a language.

    These are the last `MOST_BLOCKS`, of at most `LONGEST` characters altogether. If a block is not
    Python as far as its closing fence, and is as far as a later one, the fences before that one
    belong to a text within the program.
    """
    lines = answer_of(completion).split("\n")
    blocks, fences = blocks_of(lines)
    chosen = [b for b in blocks if b.fence.is_python] or [b for b in blocks if not b.fence.info]
    texts: list[str] = []
    room = LONGEST
    for block in reversed(chosen[-MOST_BLOCKS:]):
        text = text_of(lines, block)
        if block.is_closed and ('"""' in text or "'''" in text) and parsed(text) is None:
            after = bisect_right(fences, block.end, key=lambda fence: fence.line)
            ends = [f.line for f in fences[after : after + MOST_ENDS] if not f.info]
            longer = (text_of(lines, block, end) for end in ends)
            text = next((t for t in longer if parsed(t) is not None), text)
        room -= len(text)
        if room < 0:
            break
        texts.append(text)
    return texts[::-1]


def python_of(completion: str, names: Iterable[str] = ()) -> str:
    """Return the program of a completion that is to define `names`; "" if there is none.

    The last part (see `parts_of`) that defines one of the names counts; an import of the name is a
    definition only if there is no other. What this part uses, or is to define, without defining it
    comes from the definitions in the parts before it.
    """
    wanted = set(names)
    parts = parts_of(completion)
    for imports in (False, True):
        for number in reversed(range(len(parts))):
            if wanted & bound(parts[number].tree.body, imports):
                return assembled(parts[: number + 1], wanted)
    return assembled(parts, wanted) if parts else ""


def script_of(completion: str) -> str:
    """Return the program of a completion that reads stdin and writes stdout; "" if there is none.

    Of the parts, each with what it uses of the parts before it, the last one that reads and writes
    counts, else the last one that writes, else the last one.
    """
    parts = parts_of(completion)
    best, most = "", -1
    for number in reversed(range(len(parts))):
        program = assembled(parts[: number + 1], set())
        used = set(mentioned(program))
        rank = bool(used & _WRITES) + bool(used & _WRITES and used & _READS)
        if rank > most:
            best, most = program, rank
        if most == 2:
            break
    return best


def parts_of(completion: str) -> list[Part]:
    """Return the parts of a completion that are Python: code before the first fence, and blocks.

    A fenced block is Python as a whole or not at all, since its author marked where it ends. Code
    outside fences ends before the first statement that is not Python, or at a marker such as
    [DONE]; it may come after a sentence if there are no fences. A text that begins with indentation
    is the body of a function.
    """
    text = answer_of(completion).lstrip("\n")
    texts = fenced(completion)
    if len(text) <= LONGEST or texts:
        code = unmarked(leading(text[:LONGEST]))
        if not code.strip() and not texts and not text[:1].isspace():
            starts = (match.start() for match, _ in zip(_START.finditer(text), range(3)))
            programs = (unmarked(leading(text[start:])) for start in starts)
            code = next((program for program in programs if program.strip()), "")
        texts.insert(0, code)
    trees = [(text, parsed(text)) for text in texts if text.strip()]
    return [Part(text, tree) for text, tree in trees if tree is not None and tree.body]


def leading(code: str) -> str:
    """Return the statements before the first that is not Python; "" if there are none.

    A model that writes no fences may continue in prose. An unfinished statement does not count.
    """
    lines = code.split("\n")
    num_parsed = 0
    for _ in range(MOST_CUTS):
        text = "\n".join(lines)
        num_parsed += len(text)
        if num_parsed > MOST_PARSED:
            return ""
        outcome = tree_or_line(text)
        if outcome is None:
            return ""
        if isinstance(outcome, ast.Module):
            return text
        cut = min(outcome - 1, len(lines) - 1)
        while cut > 0 and not lines[cut][:1].strip():  # back to where the statement begins
            cut -= 1
        lines = lines[:cut]
    return ""


def unmarked(code: str) -> str:
    """Return code between markers: expressions, such as [DONE], that only name what is not defined.

    Models learn them from prompts; as statements they would raise a NameError.
    """
    tree = parsed(code)
    lines = code.split("\n")
    known = set(vars(builtins))
    first, has_begun = 0, False
    for node in tree.body if tree is not None else []:
        if _is_marker(node, known) and "*" not in known:
            if has_begun:
                return "".join(f"{line}\n" for line in lines[first : node.lineno - 1])
            first = node.end_lineno or node.lineno
        else:
            has_begun = True
            known |= bound([node])
    return "\n".join(lines[first:])


def _is_marker(node: ast.stmt, known: set[str]) -> bool:
    """Whether a statement has no effect other than to raise a NameError."""
    if not (isinstance(node, ast.Expr) or (isinstance(node, ast.AnnAssign) and node.value is None)):
        return False
    inner = list(ast.walk(node))
    read = {n.id for n in inner if isinstance(n, ast.Name) and is_load(n)}
    has_scope = any(isinstance(n, (ast.Call, ast.Lambda, ast.comprehension)) for n in inner)
    return bool(read - known) and not has_scope


# --- the rest of a function that a prompt begins --------------------------------------------------


def prompt_code(prompt: str, entry_point: str) -> str:
    """Return the Python code of a prompt that declares `entry_point`; "" if none does.

    A HumanEval prompt is Python as a whole. In a chat prompt the code may be in a fence, or follow
    an instruction; then it is the longest tail of whole lines that parses. A function without a
    body, such as one that only has comments, gets the body `pass`.
    """
    return _prompt_code(prompt, entry_point)[1]


def _prompt_code(prompt: str, entry_point: str) -> tuple[str, str]:
    """Return the code as it is in the prompt, and completed so that it parses."""
    prompt = prompt.replace("\r\n", "\n").replace("\r", "\n")
    if entry_point not in prompt:
        return "", ""
    starts = [match.start() for match in _START.finditer(prompt)][-MOST_STARTS:]
    for texts in ([prompt], reversed(fenced(prompt)), (prompt[start:] for start in starts)):
        num_parsed = 0
        for text in texts:
            num_parsed += len(text) if len(text) <= LONGEST else 0
            whole = _with_body(text) if num_parsed <= 2 * MOST_PARSED else ""
            tree = parsed(whole)
            if tree is not None and defines(tree, entry_point):
                return text, whole
    return "", ""


def _with_body(text: str) -> str:
    """Return a text, with `pass` after it if need be; "" if it does not parse with it either."""
    if parsed(text) is not None:
        return text
    stripped = text.rstrip()
    last = stripped.rpartition("\n")[2]
    indent = last[: len(last) - len(last.lstrip())]
    for column in (indent, indent + "    "):
        whole = f"{stripped}\n{column}pass\n"
        if parsed(whole) is not None:
            return whole
    return ""


def program_of(completion: str, prompt: str, entry_point: str) -> str | None:
    """Return the program of a HumanEval row; None if there is none.

    The completion is either a definition of `entry_point`, which the prompt's code precedes (its
    imports and its other functions may be needed), or the rest of the function that the prompt
    begins. The first of the two that parses is taken. A continuation that does not parse as a whole
    is cut at the first line that leaves the function.
    """
    whole = python_of(completion, [entry_point])
    tree = parsed(whole)
    begun, before = _prompt_code(prompt, entry_point)
    if tree is not None and defines(tree, entry_point):
        return hoisted(f"{before}\n\n{whole}") if before else whole
    answer = answer_of(completion)
    bodies = [answer, *reversed(fenced(completion)[-3:])] if begun else []
    bodies = [b for b in bodies if b.strip() and len(begun) + len(b) <= LONGEST]
    code = begun.rstrip(" \t")
    code += "" if code.endswith("\n") else "\n"
    indent = _indent_of(before, entry_point)
    for ways in (_continued, _repaired):
        for body in bodies:
            for joined in ways(code, body, indent):
                if _grown(joined, begun, entry_point):
                    return joined
    return None


def _continued(code: str, body: str, indent: str) -> Iterator[str]:
    """Yield a function that the prompt begins with its rest: as a whole, and cut where it ends."""
    yield code + body
    yield leading(code + body)
    yield code + _STOP.split(body)[0]


def _repaired(code: str, body: str, indent: str) -> Iterator[str]:
    """Yield a function that the prompt begins with a rest that lost its indentation.

    A model may leave out that of all lines, a tokenizer or a chat template strip the first one's.
    """
    stripped = body.lstrip("\n")
    if not stripped[:1].isspace():
        yield code + textwrap.indent(stripped, indent)
        yield leading(code + indent + stripped)


def _indent_of(code: str, name: str) -> str:
    """Return the indentation of the body of the function `name`."""
    tree = parsed(code)
    functions = [n for n in tree.body if getattr(n, "name", None) == name] if tree else []
    inner = getattr(functions[-1], "body", []) if functions else []
    line = code.split("\n")[inner[0].lineno - 1] if inner else ""
    return line[: len(line) - len(line.lstrip())] or "    "


def _grown(joined: str, begun: str, name: str) -> bool:
    """Whether the function at the end of the prompt has got statements from the completion."""
    tree = parsed(joined)
    num_lines = begun.rstrip().count("\n") + 1
    return tree is not None and any(
        getattr(node, "name", None) == name
        and node.lineno <= num_lines < (node.end_lineno or node.lineno)
        for node in tree.body
    )
