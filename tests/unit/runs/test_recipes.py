"""Every recipe parses; those for a laptop CPU run for two steps, from a start that their own SFT
recipe made."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, shared
from repeats import choice

from posttrain.algorithms import ALGORITHMS
from posttrain.algorithms.base import algorithm_named
from posttrain.config.recipe import read_yaml
from posttrain.rewards.code import CodeExecution, build
from posttrain.runs.config import dump, load_config, parse_config
from posttrain.runs.pipeline import load_pipeline, load_splits, stage_config, starts_of
from posttrain.runs.synthesize import MakingConfig, load_making
from posttrain.runs.train import train
from posttrain.sandbox import pool

RECIPES = sorted(ROOT.glob("recipes/**/*.yaml"))
PIPELINES = [path for path in RECIPES if path.parent.name == "pipeline"]
MAKING = [path for path in RECIPES if path.parent.name == "data"]
ON_GPU = (
    "grpo/math_outcome",
    "grpo/code_execution",
    "grpo/fever",
    "rloo/gsm8k",
    "rloo/fever",
    "ppo/math",
    "reinforce/math",
)
ON_CPU = [
    path
    for path in RECIPES
    if path.stem.endswith("_cpu")
    and path.parent.name in ALGORITHMS
    and algorithm_named(path.parent.name).online
]
# data set -> the SFT recipe that makes the start
STARTS = {"word_problems": "sft/demo", "programs": "sft/programs_cpu", "fever": "sft/fever_cpu"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT / "recipes").with_suffix(""))


@pytest.mark.parametrize("path", [p for p in RECIPES if p not in PIPELINES + MAKING], ids=name_of)
def test_every_recipe_parses(path: Path) -> None:
    assert load_config(path).trainer.type == path.parent.name


@pytest.mark.parametrize("path", MAKING, ids=name_of)
def test_every_recipe_that_makes_data_parses(path: Path) -> None:
    assert load_making(path).make.type in ("preferences", "filter")


@pytest.mark.parametrize("path", PIPELINES, ids=name_of)
def test_every_pipeline_parses_with_all_that_it_refers_to(path: Path) -> None:
    pipeline = load_pipeline(str(path))
    starts = starts_of(pipeline)
    for stage in pipeline.stages:
        recipe = stage_config(pipeline, stage, starts[stage.name])
        if stage.set:  # a recipe of another pipeline, or of an earlier round
            continue
        # what the pipeline gives the stage is what its recipe names: it can be run by itself
        assert dump(stage_config(pipeline, stage, None)) == dump(recipe)
        if isinstance(recipe, MakingConfig):
            assert recipe.output_dir == f"{pipeline.output_dir}/{stage.name}"


@pytest.mark.parametrize("path", PIPELINES, ids=name_of)
def test_a_pipeline_reads_what_its_own_earlier_stages_wrote(path: Path) -> None:
    """Also in another folder: no path is left that leads into the old one."""
    for overrides in ([], ["output_dir=elsewhere/x.1"]):
        pipeline = load_pipeline(str(path), overrides)
        starts = starts_of(pipeline)
        written: set[str] = set()
        for stage in pipeline.stages:
            recipe = stage_config(pipeline, stage, starts[stage.name])
            tree = dump(recipe)
            tree.pop("output_dir", None)
            named = set(re.findall(r"(?:results|elsewhere)/[a-z0-9_./-]+", json.dumps(tree)))
            assert named <= written, stage.name
            written.add(f"{pipeline.output_dir}/{stage.name}")
    assert written, "nothing was read or written: nothing is tested"
    assert pipeline.evaluate is not None
    assert all(load_splits(pipeline.evaluate).values())


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_the_header_names_the_command_and_the_hardware(path: Path) -> None:
    header = path.read_text().partition("\nmodel:")[0]
    kind = "pipeline" if path in PIPELINES else "train"
    if path in MAKING:
        kind = f"data {load_making(path).make.type}"
    assert f"posttrain {kind} recipes/{name_of(path)}.yaml" in header
    assert "# Hardware: " in header


def test_every_recipe_that_is_written_about_is_there() -> None:
    texts = [ROOT / "README.md", ROOT / "Makefile", *ROOT.glob("docs/**/*.md"), *RECIPES]
    for text in texts:
        for found in re.findall(r"recipes/[a-z]+/[a-z0-9_]+\.yaml", text.read_text()):
            assert (ROOT / found).is_file(), f"{text.name}: {found}"


@pytest.mark.parametrize("name", ON_GPU)
def test_every_recipe_for_a_gpu_has_one_for_a_cpu(name: str) -> None:
    config = load_config(ROOT / f"recipes/{name}.yaml")
    small = load_config(ROOT / f"recipes/{name}_cpu.yaml")
    assert config.model.name == "Qwen/Qwen2.5-1.5B-Instruct"
    assert small.trainer.type == config.trainer.type
    assert small.reward.type == config.reward.type


# --- those for a CPU run --------------------------------------------------------------------------


def shrunk(name: str, folder: Path, start: Path | None = None) -> Any:
    """The recipe with fewer steps, rows and tokens, and nothing else changed."""
    path = ROOT / f"recipes/{name}.yaml"
    tree = read_yaml(path)
    for section in tree["data"] if isinstance(tree["data"], list) else [tree["data"]]:
        if section["name"] == "fever":
            section |= {"path": str(shared("data/fever")), "max_samples": 64}
        else:
            section["options"]["num_rows"] = 64
    tree["trainer"] |= {"max_steps": 2, "batch_size": 4, "output_dir": str(folder), "logger": []}
    if tree.get("reward", {}).get("type") == "reward_model":
        tree["reward"]["path"] = str(start_of_rewards(start, folder))
    if start is not None:
        tree["model"]["name"] = str(start)
        tree["rollout"]["max_new_tokens"] = min(tree["rollout"]["max_new_tokens"], 24)
    if "eval" in tree:
        tree["trainer"]["eval_steps"] = 2
        tree["eval"] |= {"max_samples": 4, "max_new_tokens": 8}
    return parse_config(tree, str(path))


def start_of_rewards(start: Path | None, folder: Path) -> Path:
    """A reward model of the recipe's kind, from the same start on two pairs."""
    tree = read_yaml(ROOT / "recipes/reward_model/programs_cpu.yaml")
    file = folder / "pairs.jsonl"
    rows = [{"prompt": f"{i} and 1?", "chosen": f"{i + 1}", "rejected": "0"} for i in range(1, 3)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    tree["model"]["name"], tree["data"] = str(start), {"path": str(file)}
    del tree["eval"], tree["trainer"]["eval_steps"]
    tree["trainer"] |= {"output_dir": str(folder / "rewards"), "logger": []}
    return train(parse_config(tree, "reward model"))


def data_of(path: Path) -> str:
    return str(load_config(path).mixture[0].name)


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run of the SFT recipe for a data set, made once."""
    made: dict[str, Path] = {}

    def start(data: str) -> Path:
        if data not in made:
            folder = tmp_path_factory.mktemp(data)
            made[data] = train(shrunk(STARTS[data], folder))
        return made[data]

    return start


@pytest.fixture(scope="module")
def isolation() -> str:
    try:
        reward = build(CodeExecution(workers=1))
    except ValueError as error:
        pytest.skip(f"programs can not be run here: {error}")
    pool.close(reward.pool)
    return reward.pool.level


def lines_of(run_dir: Path, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / file).read_text().splitlines()]


# what these share is shown by others of the method, and of the task
REPEATS = ("rloo/fever_cpu", "ppo/math_cpu")
SHOWN = [path for path in ON_CPU if name_of(path) not in REPEATS]


@pytest.mark.parametrize("path", choice(ON_CPU, SHOWN), ids=name_of)
def test_every_recipe_for_a_cpu_runs(
    path: Path, starts: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    runs_programs = load_config(path).reward.type == "code_execution"
    level = request.getfixturevalue("isolation") if runs_programs else None
    config = shrunk(name_of(path), tmp_path, starts(data_of(path)))
    graded = config.reward.type == "reward_model"  # a number, which is no verdict
    run_dir = train(config)

    steps = [line for line in lines_of(run_dir, "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2]
    for line in steps:  # what is not finite is left out of the file
        for metric in ("loss", "grad_norm", "reward", "reward_std", "completions/mean_length"):
            assert math.isfinite(line[metric]), metric
        verdicts = sum(n for k, n in line.items() if k.startswith("verdicts/"))
        assert verdicts == (0 if graded else 32)

    samples = [x for x in lines_of(run_dir, "samples.jsonl") if x["kind"] == "rollout"]
    assert len(samples) == 2 * config.trainer.batch_size * config.rollout.group_size == 64
    for sample in samples:
        assert graded or sample["reward"] == float(sample["verdict"] == "correct")

    record = json.loads((run_dir / "run.json").read_text())
    assert record.get("reward", {}).get("isolation") == level


def test_the_recipes_for_a_cpu_are_those_of_every_online_method() -> None:
    assert {path.parent.name for path in ON_CPU} == {
        n for n in ALGORITHMS if algorithm_named(n).online
    }
    assert {data_of(path) for path in ON_CPU} == set(STARTS)
