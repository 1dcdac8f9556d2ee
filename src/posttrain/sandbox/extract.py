"""Extracts the program from a completion."""

import ast
import re
import warnings

_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+.-]*)[^\n`]*$", re.MULTILINE)
MOST_CUTS = 20  # attempts to cut a text before its first error; each parses it again
_PYTHON = ("python", "py", "python3")
# A base model has left the function at one of HumanEval's stop words (Chen et al. 2021).
_STOP = re.compile(r"\n(?=class |def |#|if |print|@|```)")


def code_of(completion: str) -> str:
    """Return the last block fenced as Python, else the last without a language, else all the text.

    A block that the end of the text cuts off counts. Indentation is kept: a HumanEval completion
    may be the body of a function.
    """
    blocks: list[tuple[str, str]] = []
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(completion):
        if opened is None:
            opened = fence
        elif fence[1].startswith(opened[1]) and not fence[2]:
            blocks.append((opened[2].lower(), completion[opened.end() + 1 : fence.start()]))
            opened = None
    if opened is not None:
        blocks.append((opened[2].lower(), completion[opened.end() + 1 :]))
    for accepted in (_PYTHON, ("",)):
        marked = [block for language, block in blocks if language in accepted]
        if marked:
            return marked[-1]
    return completion


def python_of(completion: str) -> str:
    """Return the program of a completion; "" if there is none.

    A fenced block is Python as a whole or not at all, since its author marked where it ends.
    """
    code = code_of(completion)
    if code == completion:
        return leading(code)
    return "" if parsed(code) is None else code


def leading(code: str) -> str:
    """Return the statements before the first that is not Python; "" if there are none.

    A model that writes no fences may continue in prose. An unfinished statement does not count.
    """
    lines = code.split("\n")
    for _ in range(MOST_CUTS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                ast.parse("\n".join(lines))
                return "\n".join(lines)
            except SyntaxError as error:
                cut = min((error.lineno or 1) - 1, len(lines) - 1)
            except (ValueError, RecursionError, MemoryError):
                return ""
        while cut > 0 and not lines[cut][:1].strip():  # back to where the statement begins
            cut -= 1
        lines = lines[:cut]
    return ""


def defines(tree: ast.Module, name: str) -> bool:
    """Whether a top-level def, class or import binds `name`, or another statement mentions it."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if node.name == name:
                return True
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            if any((a.asname or a.name) == name for a in node.names):
                return True
        elif any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(node)):
            return True
    return False


def parsed(text: str) -> ast.Module | None:
    """Return the syntax tree of a text; None if it is not Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def prompt_code(prompt: str, entry_point: str) -> str:
    """Return the Python code of a prompt that declares `entry_point`; "" if none does.

    A HumanEval prompt is Python as a whole. In a chat prompt the code may be in a fence, or follow
    an instruction; then it is the longest tail of whole lines that parses.
    """
    for text in (prompt, code_of(prompt)):
        tree = parsed(text)
        if tree is not None and defines(tree, entry_point):
            return text
    if entry_point not in prompt:
        return ""
    for start in re.finditer(r"^(?=from |import |def |class |@)", prompt, re.MULTILINE):
        tree = parsed(prompt[start.start() :])
        if tree is not None and defines(tree, entry_point):
            return prompt[start.start() :]
    return ""


def program_of(completion: str, prompt: str, entry_point: str) -> str | None:
    """Return the program of a HumanEval row; None if there is none.

    The completion is either a definition of `entry_point`, which the prompt's code precedes (its
    imports and its other functions may be needed), or the rest of the function that the prompt
    begins. The first of the two that parses is taken. A continuation that does not parse as a whole
    is cut at the first line that leaves the function.
    """
    code = code_of(completion)
    whole = python_of(completion)
    tree = parsed(whole)
    before = prompt_code(prompt, entry_point)
    if tree is not None and defines(tree, entry_point):
        return f"{before}\n\n{whole}" if before else whole
    if not before:
        return None
    for body in (code, _STOP.split(code)[0]):
        joined = before + ("" if before.endswith("\n") else "\n") + body
        if body.strip() and parsed(joined) is not None:
            return joined
    return None
