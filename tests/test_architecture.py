"""The shape of the code, held by tests."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from posttrain.algorithms import ALGORITHMS
from posttrain.algorithms.base import algorithm_named
from posttrain.algorithms.config import TrainerConfig
from posttrain.data.kinds import KINDS
from posttrain.data.sets import DATASETS
from posttrain.rewards import REWARDS

PACKAGE = ROOT / "src/posttrain"
SOURCES = sorted(PACKAGE.rglob("*.py"))
# From the bottom up: a folder imports only from those before it.
LAYERS = (
    "common",
    "config",
    "sandbox",
    "tracking",
    "model",
    "data",
    "rewards",
    "algorithms",
    "rollout",
    "training",
    "evaluation",
    "serving",
    "runs",
    "sizing",
    "board",
    "export",
    "imports",
    "cli",
)
# Modules that import others of ours inside functions, and why.
LAZY = {
    "posttrain": "names of the API load what they need when they are first used",
    "posttrain.cli.main": "start-up time: a command loads what it needs",
    "posttrain.cli.runs": "the same",
    "posttrain.cli.models": "the same",
    "posttrain.cli.serve": "the same",
    "posttrain.cli.import_": "the same",
    "posttrain.cli.generate": "the same",
    "posttrain.cli.chat": "the same",
    "posttrain.cli.data": "the same",
    "posttrain.cli.weights": "the same",
    "posttrain.rewards.reward_model": "its settings are read without torch",
    "posttrain.rewards.refusal_judge": "the same",
    "posttrain.runs.run": "a run's metrics are read without torch",
    "posttrain.model.adapters.lora": "its settings are read without torch",
    "posttrain.model.adapters.peft_kinds": "its settings are read without torch",
    "posttrain.model.adapters.reft": "its settings are read without torch",
    "posttrain.model.gguf.cache": "the name of a model is resolved without numpy",
    "posttrain.cli.export": "start-up time: a command loads what it needs",
    "posttrain.cli.track": "the same",
    "posttrain.cli.board": "the same",
    "posttrain.cli.launch": "the same",
    "posttrain.cli.plan": "the same",
    "posttrain.cli.experiments": "the same",
}
# Libraries that are imported inside functions only: extras, and what takes long to load.
HEAVY = {
    "transformers",
    "peft",
    "bitsandbytes",
    "tokenizers",
    "pyarrow",
    "datasets",
    "safetensors",
    "vllm",
    "math_verify",
    "latex2sympy2_extended",
    "latex2sympy2_extended.latex2sympy2",
    "sympy",
    "torch",
    "fastapi",
    "starlette",
    "fastapi.responses",
    "starlette.requests",
    "starlette.exceptions",
    "starlette.applications",
    "starlette.concurrency",
    "starlette.middleware.gzip",
    "starlette.responses",
    "starlette.routing",
    "uvicorn",
    "prometheus_client",
    "importlib",
    "gguf",
    "huggingface_hub",
    "tensorboard",
    "wandb",
    "mlflow",
    "sqlalchemy",
    "trackio",
    "optuna",
    "ray",
    "ray.util.placement_group",
    "ray.util.scheduling_strategies",
    "dotenv",
    "IPython",
    # in programs sent to the sandbox
    "fcntl",
    "marshal",
    "select",
    "socket",
    "resource",
    "asyncio",
    "threading",
    # in the sandbox's files, if it is loaded already
    "numpy",
}


@cache
def modules() -> dict[str, Path]:
    found = {}
    for path in SOURCES:
        parts = list(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(name: str) -> Iterator[tuple[str, bool]]:
    """Every import of a module, also lazy and type-only ones: what, and whether in a function."""
    tree = ast.parse(modules()[name].read_text())
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(x) for f in functions for x in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{name}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                target = whole if whole in modules() else node.module
                yield target, id(node) in inside


@cache
def graph() -> dict[str, set[str]]:
    return {
        name: {target for target, _ in imports_of(name) if target.startswith("posttrain")} - {name}
        for name in modules()
    }


def layer(module: str) -> int:
    parts = module.split(".")
    return len(LAYERS) if len(parts) == 1 else LAYERS.index(parts[1])


def test_every_module_lies_in_a_layer() -> None:
    flat = {path.name for path in PACKAGE.glob("*.py")}
    assert flat == {"__init__.py", "__main__.py"}
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders == set(LAYERS)


def test_imports_go_down() -> None:
    upward = [
        f"{name} imports {target}"
        for name, targets in graph().items()
        for target in sorted(targets)
        if "__main__" not in name and name != "posttrain" and layer(target) > layer(name)
        if target != "posttrain"
    ]
    assert upward == []


def cycles(edges: dict[str, set[str]]) -> list[str]:
    """Nodes that reach themselves."""
    found = []
    for start in edges:
        seen: set[str] = set()
        waiting = set(edges[start])
        while waiting:
            node = waiting.pop()
            seen.add(node)
            waiting |= edges.get(node, set()) - seen
        if start in seen:
            found.append(start)
    return found


def test_no_module_and_no_package_imports_itself_through_others() -> None:
    assert cycles(graph()) == []
    packages: dict[str, set[str]] = defaultdict(set)
    for name, targets in graph().items():
        if name.count(".") and "__main__" not in name:
            own = name.split(".")[1]
            packages[own] |= {t.split(".")[1] for t in targets if t.count(".")} - {own}
    assert cycles(packages) == []


def test_a_cycle_would_be_found() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]


def test_imports_inside_functions_have_a_reason() -> None:
    ours = {n for n in modules() for t, inner in imports_of(n) if inner and "posttrain" in t}
    assert ours == set(LAZY) - {"posttrain"}
    strange = {
        f"{name}: {target}"
        for name in modules()
        for target, inner in imports_of(name)
        if inner and target.partition(".")[0] not in {"posttrain", *HEAVY}
    }
    assert strange == set()


def run_fresh(*lines: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_names_errors_and_help_need_no_torch() -> None:
    """Importing it takes longer than everything else together."""
    run_fresh(
        "import sys",
        "import posttrain, posttrain.cli.main",
        "from posttrain.data.origin import describe",
        "from posttrain.data.sets import DATASETS",
        "from posttrain.runs.config import load_config",
        "for name in DATASETS: describe(name, 20)",
        "for wrong in ('trainer.lr=1', 'trainer.type=sfft', 'reward.type=x', 'data.nam=1'):",
        "    try: load_config('recipes/grpo/gsm8k.yaml', [wrong])",
        "    except ValueError: pass",
        "    else: raise SystemExit('no error')",
        "heavy = {'torch', 'transformers', 'peft', 'pyarrow', 'sympy'} & set(sys.modules)",
        "assert not heavy, heavy",
    )


def test_a_text_metric_loads_neither_the_trainer_nor_the_data_sets() -> None:
    loaded = run_fresh(
        "import sys",
        "import posttrain.evaluation.scores.text, posttrain.evaluation.scores.choices",
        "print(*(name for name in sys.modules if name.startswith('posttrain.')))",
    ).split()
    assert not [n for n in loaded if n.startswith(("posttrain.training", "posttrain.runs"))]
    assert not [n for n in loaded if n.startswith("posttrain.data.sets.")]
    assert len(loaded) < 25, loaded


def test_files_are_checked_before_transformers_is_imported() -> None:
    """Which takes longer than everything else that comes before a malformed row is found."""
    names = ("plan", "train", "preview", "score", "classify", "pipeline", "synthesize")
    names += ("generate_file",)
    run_fresh(
        *(f"import posttrain.runs.{name}" for name in names),
        "import posttrain.evaluation.evaluate",
        "import sys; assert 'transformers' not in sys.modules",
    )


def test_the_trainer_names_no_algorithm() -> None:
    text = (PACKAGE / "training/trainer.py").read_text().lower()
    assert [name for name in ALGORITHMS if name in text] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_functions_are_short() -> None:
    long = [
        f"{path.name}: {node.name}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= 85
    ]
    assert long == []


def test_no_peer_and_no_foreign_loop_is_imported() -> None:
    foreign = {"trl", "accelerate", "verl", "axolotl", "lightning", "deepspeed"}
    used = {n: {t.partition(".")[0] for t, _ in imports_of(n)} & foreign for n in modules()}
    assert {name: found for name, found in used.items() if found} == {}


def test_no_class_inherits_from_a_class_of_ours_but_configs() -> None:
    """Methods are functions. Configs, errors and framework base classes are the exception."""
    allowed = {
        "BaseModel",
        "Protocol",
        "NamedTuple",
        "NodeTransformer",
        "BaseException",
        "dict[str, Any]",
        "dict[str, dict[str, Any]]",
        "dict[str, Comparison]",
        "float",
        "int",
        "Linear",
        "Embedding",
        "DynamicRendezvousHandler",
        "EngineError",
        "Module",
        "AdamW",
        "TorchDispatchMode",
        "Function",
        "SafeLoader",
        "Exception",
        "ValueError",
        "RuntimeError",
        "StrictConfig",
        "TrainerConfig",
        "PolicyGradientConfig",
        "PreferenceConfig",
        "RewardConfig",
        "AdapterConfig",
        "Sampled",
        "MakeConfig",
        "type",  # a class of classes
        "Generic[S]",
    }
    strange = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                strange += [f"{path.name}: {node.name}({base})" for base in bases - allowed]
    assert strange == []


def test_only_the_command_line_speaks_of_options() -> None:
    """The library names fields, and its caller knows what the user wrote."""
    others = ("posttrain.cli", "posttrain.sandbox.isolation", "posttrain.rollout.engines")
    spoken = []
    for name, path in modules().items():
        if name.startswith(others):  # the last two speak of bwrap's options and servers'
            continue
        tree = ast.parse(path.read_text())
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        documented = [n for n in ast.walk(tree) if isinstance(n, kinds) and ast.get_docstring(n)]
        docstrings = {id(n.body[0].value) for n in documented if isinstance(n.body[0], ast.Expr)}
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) else None
            option = isinstance(text, str) and re.search(r"(^|[\s(`])--[a-z]", text)
            if option and id(node) not in docstrings:
                spoken.append(f"{name}:{node.lineno}: {text!r}")
    assert spoken == []


def test_every_registry_entry_is_documented() -> None:
    text = "".join(p.read_text() for p in (ROOT / "docs").rglob("*.md"))
    names = (*ALGORITHMS, *DATASETS, *REWARDS)
    assert [name for name in names if f"`{name}`" not in text and f"## {name}" not in text] == []


def test_every_kind_of_row_is_one_that_a_method_trains_on() -> None:
    assert set(KINDS) == {algorithm_named(name).rows for name in ALGORITHMS}


@pytest.mark.parametrize("method", list(ALGORITHMS))
def test_every_method_has_a_recipe(method: str) -> None:
    recipes = [yaml.safe_load(p.read_text()) for p in (ROOT / "recipes").rglob("*.yaml")]
    assert method in {r.get("trainer", {}).get("type") for r in recipes}


def test_every_choice_of_a_policy_gradient_is_on_the_methods_page() -> None:
    page = (ROOT / "docs/methods.md").read_text()
    keys = {
        key
        for method in ("grpo", "rloo", "reinforce", "ppo")
        for key in algorithm_named(method).config.model_fields
        if key not in TrainerConfig.model_fields and key != "type"
    }
    assert [key for key in sorted(keys) if f"`{key}" not in page and f" {key}" not in page] == []
