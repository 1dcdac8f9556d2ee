"""What a text of Python defines and needs, and how several texts become one program.

No text beyond `LONGEST` characters is parsed.
"""

import ast
import builtins
import symtable
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

LONGEST = 1 << 16  # characters of a program; more than a contest admits
# Statements that are taken from an earlier part if a later one needs what they define.
_DEFINITIONS = (
    *(ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef),
    *(ast.Assign, ast.AnnAssign, ast.AugAssign, ast.If, ast.Try),
)


@dataclass(frozen=True)
class Part:
    """A text that is Python as a whole, and its syntax tree."""

    text: str
    tree: ast.Module


def parsed(text: str) -> ast.Module | None:
    """Return the syntax tree of a text; None if it is not Python, or longer than `LONGEST`."""
    tree = tree_or_line(text)
    return tree if isinstance(tree, ast.Module) else None


def tree_or_line(text: str) -> ast.Module | int | None:
    """Return the syntax tree of a text, or the line of its first error, or None."""
    if len(text) > LONGEST:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except SyntaxError as error:
            return error.lineno or 1
        except (ValueError, RecursionError, MemoryError):
            return None


def is_load(name: ast.Name) -> bool:
    """Whether a name is read, not bound or deleted."""
    return isinstance(name.ctx, ast.Load)


def bound(statements: list[ast.stmt], imports: bool = True) -> set[str]:
    """Return the names that statements bind at their own level, by def, class, import or otherwise.

    Without `imports`, names that are only imported are left out.
    """
    names: set[str] = set()
    nodes: list[ast.AST] = list(statements)
    while nodes:
        node = nodes.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            if imports:
                names |= {(a.asname or a.name.split(".")[0]) for a in node.names}
        elif isinstance(node, ast.Name):
            if not is_load(node):
                names.add(node.id)
        elif not isinstance(node, (ast.Lambda, ast.comprehension)):
            nodes += ast.iter_child_nodes(node)
    return names


def defines(tree: ast.Module, name: str) -> bool:
    """Whether a program binds `name` at its top level."""
    return name in bound(tree.body)


def free_names(text: str) -> set[str]:
    """Return the global names that a text reads and that neither it nor Python defines."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            top = symtable.symtable(text, "program", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    defined = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}
    read: set[str] = set()
    tables = [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (table is top or symbol.is_global()):
                read.add(symbol.get_name())
    return read - defined - vars(builtins).keys() - {"__name__", "__file__"}


def mentioned(program: str) -> Iterator[str]:
    """Yield the names, attributes and imported modules in a program."""
    tree = parsed(program)
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.name for alias in node.names)


# --- programs of several parts --------------------------------------------------------------------


def assembled(parts: list[Part], names: set[str]) -> str:
    """Return the last part, preceded by the definitions in earlier parts that it needs.

    It needs what it uses without defining it, and those of `names` that it does not define. Other
    statements of earlier parts, such as examples of use, are left out.
    """
    last = parts[-1]
    needed = (free_names(last.text) | names) - bound(last.tree.body) if len(parts) > 1 else set()
    sources: dict[str, tuple[int, list[ast.stmt]]] = {}
    for number, part in enumerate(parts[:-1]):
        for node in part.tree.body:
            for name in bound([node]) if isinstance(node, _DEFINITIONS) else ():
                is_import = isinstance(node, (ast.Import, ast.ImportFrom))
                if name not in sources or (sources[name][0] != number and not is_import):
                    sources[name] = (number, [])  # the last part that defines a name counts
                if sources[name][0] == number:
                    sources[name][1].append(node)
    texts = [part.text.split("\n") for part in parts[:-1]]
    taken: set[tuple[int, int]] = set()  # part, line
    queue = sorted(needed & sources.keys())
    seen = set(queue)
    while queue:
        number, nodes = sources[queue.pop()]
        for node in nodes:
            first, end = _lines_of(node)
            if (number, first) in taken:
                continue
            taken |= {(number, line) for line in range(first, end)}
            for name in sorted(free_names("\n".join(texts[number][first:end]))):
                if name in sources and name not in seen:
                    seen.add(name)
                    queue.append(name)
    before = "".join(f"{texts[number][line]}\n" for number, line in sorted(taken))
    if not before:
        return hoisted(last.text)
    futures = "".join(f"{ast.unparse(n)}\n" for p in parts[:-1] for n in _futures(p.tree))
    return hoisted(f"{futures}{before}\n{last.text}")


def _lines_of(node: ast.stmt) -> tuple[int, int]:
    """Return the range of a statement's lines, counted from 0, with its decorators."""
    decorators = getattr(node, "decorator_list", [])
    return min(n.lineno for n in [node, *decorators]) - 1, node.end_lineno or node.lineno


def _futures(tree: ast.Module) -> list[ast.ImportFrom]:
    return [n for n in tree.body if isinstance(n, ast.ImportFrom) and n.module == "__future__"]


def hoisted(text: str) -> str:
    """Return a program with its imports from __future__ at the top, where Python wants them."""
    if "__future__" not in text or (tree := parsed(text)) is None:
        return text
    futures = _futures(tree)
    first = 1 if tree.body and ast.get_docstring(tree) is not None else 0
    if not futures or tree.body[first : first + len(futures)] == futures:
        return text
    lines = [line.encode() for line in text.split("\n")]
    for node in reversed(futures):
        start, end = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        rest = lines[end][node.end_col_offset :]
        lines[start : end + 1] = [lines[start][: node.col_offset] + b"pass" + rest]
    names = dict.fromkeys(alias.name for node in futures for alias in node.names)
    return f"from __future__ import {', '.join(names)}\n" + b"\n".join(lines).decode()
