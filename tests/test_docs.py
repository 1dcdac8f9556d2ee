"""What the pages name exists: functions, files, links, and the generated reference."""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT
from test_architecture import LAYERS

PACKAGE = ROOT / "src/posttrain"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*DOCS, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
# File names in an entry of the log are those of its day.
OF_TODAY = [page for page in DOCS if page.parent.name != "log"]

CODE = re.compile(r"`([\w/]+\.py):(\w+)`")
FILE = re.compile(r"`(\w+/[\w/]+\.py)[:`]")
FENCE = re.compile(r"^(```.*?^```|    .*?$)", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def names_in(file: Path) -> set[str]:
    """Return the functions, classes, methods and module-level constants that a file defines."""
    tree = ast.parse(file.read_text())
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    names = {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("page", DOCS, ids=name_of)
def test_code_that_a_page_names_exists(page: Path) -> None:
    missing = []
    for path, name in CODE.findall(page.read_text()):
        file = PACKAGE / path
        if not file.is_file():
            missing.append(f"no file {path}")
        elif name not in names_in(file):
            missing.append(f"{path} defines no {name}")
    assert missing == []


@pytest.mark.parametrize("page", OF_TODAY, ids=name_of)
def test_files_of_the_package_that_a_page_names_exist(page: Path) -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    named = {path for path in FILE.findall(page.read_text()) if path.split("/")[0] in folders}
    assert [path for path in sorted(named) if not (PACKAGE / path).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_point_at_files(page: Path) -> None:
    prose = INLINE.sub("", FENCE.sub("", page.read_text()))
    targets = [target.partition("#")[0] for target in LINK.findall(prose)]
    relative = [target for target in targets if target and "://" not in target]
    assert [target for target in relative if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", DOCS, ids=name_of)
def test_pages_of_the_site_link_to_pages_of_the_site(page: Path) -> None:
    """A link out of docs/ is broken on the site."""
    prose = INLINE.sub("", FENCE.sub("", page.read_text()))
    targets = [target.partition("#")[0] for target in LINK.findall(prose)]
    files = [page.parent / target for target in targets if target and "://" not in target]
    outside = [file for file in files if not file.resolve().is_relative_to(ROOT / "docs")]
    assert outside == []


def script(name: str) -> ModuleType:
    """Return scripts/<name>.py as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_that_of_the_code() -> None:
    """Run `python scripts/reference.py` after a change of keys, commands or data sets."""
    pages = script("reference").pages()
    assert set((ROOT / "docs/reference").iterdir()) == set(pages)
    stale = [page.name for page, text in pages.items() if page.read_text() != text]
    assert stale == []


def test_the_layers_on_the_page_and_in_the_picture_are_those_of_the_code() -> None:
    """Run `python scripts/layers.py` after a change of the layers."""
    layers = script("layers")
    page = (ROOT / "docs/architecture.md").read_text()
    table = page.partition("| layer |")[2].partition("\n\n")[0]
    assert list(layers.LAYERS) == list(LAYERS)
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == list(reversed(LAYERS))
    assert layers.PICTURE.read_text() == layers.picture(), "run python scripts/layers.py"


def test_files_that_a_picture_names_exist() -> None:
    picture = (ROOT / "docs/images/step.svg").read_text()
    files = re.findall(r"\w+/\w+\.py", picture)
    assert len(files) >= 6
    assert [file for file in files if not (PACKAGE / file).is_file()] == []


def test_the_core_path_is_that_of_the_code_and_can_be_read_in_an_afternoon() -> None:
    """Run `python scripts/core_path.py` after a change of a core file."""
    core = script("core_path")
    files = [file for files in core.CORE.values() for file in files]
    assert len(files) == len(set(files))
    assert sum(map(core.lines_of, files)) <= core.MAX_LINES == 6000
    assert core.PAGE.read_text() == core.page(), "run python scripts/core_path.py"
