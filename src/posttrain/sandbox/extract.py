"""From a completion to a program."""

import ast
import re
import warnings

_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+.-]*)[^\n`]*$", re.MULTILINE)
MOST_CUTS = 20
_PYTHON = ("python", "py", "python3")
# Where a base model has left the function: the stop words of HumanEval (Chen et al. 2021).
_STOP = re.compile(r"\n(?=class |def |#|if |print|@|```)")


def code_of(completion: str) -> str:
    """The last fenced block marked as Python, else the last unmarked one, else the whole text.

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
    """The program of a completion, "" where there is none. A fenced block is Python as a whole or
    not at all: its author says where it ends."""
    code = code_of(completion)
    if code == completion:
        return leading(code)
    return "" if parsed(code) is None else code


def leading(code: str) -> str:
    """The statements before the first that is not Python: a model that writes no fences may go on
    in words. "" where there are none; a statement that breaks off does not count."""
    lines = code.split("\n")
    for _ in range(MOST_CUTS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                ast.parse("\n".join(lines))
                return "\n".join(lines)
            except SyntaxError as error:
                wrong = min((error.lineno or 1) - 1, len(lines) - 1)
            except (ValueError, RecursionError, MemoryError):
                return ""
        while wrong > 0 and not lines[wrong][:1].strip():  # in the middle of a statement
            wrong -= 1
        lines = lines[:wrong]
    return ""


def defines(tree: ast.Module, name: str) -> bool:
    """Is `name` bound at the top level (by def, class, assignment or import)?"""
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
    """The syntax tree, or None where `text` is not Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def prompt_code(prompt: str, entry_point: str) -> str:
    """The Python text of a prompt that declares `entry_point`, or "" when it declares none.

    A HumanEval prompt is Python as a whole. In a chat prompt the code may stand in a fence, or
    after an instruction; then it is the longest tail of whole lines that parses.
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
    """The program of a HumanEval row, or None when there is none.

    The completion is either a definition of `entry_point`, and then the prompt goes before it (its
    imports and its other functions may be needed), or the rest of the function that the prompt
    begins. What parses decides, in this order. A continuation that runs on into text which does not
    parse ends at the first line that leaves the function.
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
