"""The shape of the code, held by tests."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from posttrain.algorithms import ALGORITHMS
from posttrain.algorithms.base import algorithm_named
from posttrain.algorithms.config import TrainerConfig
from posttrain.data.sets import DATASETS
from posttrain.rewards import REWARDS

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def test_the_trainer_names_no_algorithm():
    text = (ROOT / "src/posttrain/trainer.py").read_text().lower()
    assert [name for name in ALGORITHMS if name in text] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_files_can_be_read_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 400


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names


def test_no_peer_and_no_foreign_loop_is_imported():
    foreign = {"trl", "accelerate", "verl", "axolotl", "lightning", "deepspeed"}
    assert {p.name: found for p in SOURCES if (found := imported(p) & foreign)} == {}


def test_files_are_checked_before_transformers_is_imported():
    """Which takes longer than everything else that comes before a malformed row is found."""
    modules = ("train", "data.preview", "evaluation.command", "rewards.command", "classify")
    lines = [f"import posttrain.{module}" for module in modules]
    lines.append("import sys; assert 'transformers' not in sys.modules")
    subprocess.run([sys.executable, "-c", "; ".join(lines)], check=True)


def test_no_class_inherits_from_a_class_of_ours_but_configs():
    """Methods are functions. Configs and framework base classes are the exception."""
    allowed = {
        *(
            "BaseModel",
            "StrictConfig",
            "TrainerConfig",
            "PolicyGradientConfig",
            "PreferenceConfig",
            "Protocol",
            "NamedTuple",
            "float",
            "Linear",
        ),
        *("Module", "Function", "SafeLoader", "Exception", "ValueError", "RuntimeError"),
    }
    strange = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                strange += [f"{path.name}: {node.name}({base})" for base in bases - allowed]
    assert strange == []


def test_every_registry_entry_is_documented():
    text = "".join(p.read_text() for p in (ROOT / "docs").glob("*.md"))
    assert [name for name in (*ALGORITHMS, *DATASETS, *REWARDS) if f"`{name}`" not in text] == []


@pytest.mark.parametrize("method", list(ALGORITHMS))
def test_every_method_has_a_recipe(method):
    recipes = [yaml.safe_load(p.read_text()) for p in (ROOT / "recipes").rglob("*.yaml")]
    assert method in {r.get("trainer", {}).get("type") for r in recipes}


def test_the_readmes_map_is_true():
    text = (ROOT / "README.md").read_text()
    block = text.partition("## The files")[2].split("```")[1]
    for line in block.splitlines():
        for word in line.split("  ")[0].split() + line.strip().split("  ")[0].split():
            if word.endswith(".py"):
                assert (ROOT / "src/posttrain" / word).is_file(), word


def test_the_methods_page_points_at_the_lines_that_it_names():
    sys.path.insert(0, str(ROOT / "docs"))
    from lines import LINK, corrected

    page = (ROOT / "docs/methods.md").read_text()
    assert len(LINK.findall(page)) >= 20
    assert page == corrected(page), "run: python docs/lines.py"


def test_every_choice_of_a_policy_gradient_is_on_the_methods_page():
    page = (ROOT / "docs/methods.md").read_text()
    keys = {
        key
        for method in ("grpo", "rloo", "reinforce", "ppo")
        for key in algorithm_named(method).config.model_fields
        if key not in TrainerConfig.model_fields and key != "type"
    }
    assert [key for key in sorted(keys) if f"`{key}" not in page and f" {key}" not in page] == []
