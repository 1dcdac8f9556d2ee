"""Pipelines: stages that each start from an earlier stage's model, and their comparison."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, field_validator
from rich.table import Table

from posttrain.common.console import CONSOLE
from posttrain.common.files import expanded
from posttrain.common.suggest import did_you_mean
from posttrain.config.base import StrictConfig
from posttrain.config.errors import parse
from posttrain.config.paths import LocalPath
from posttrain.config.recipe import read_yaml, set_key
from posttrain.config.yaml_values import parse_value
from posttrain.data.config import DataConfig
from posttrain.data.kinds.prompt import to_examples as to_prompts
from posttrain.data.load import load_rows
from posttrain.evaluation.generation import Asking, evaluate_prompts
from posttrain.evaluation.loading import as_trained, load_for_sampling
from posttrain.evaluation.statistics import wilson
from posttrain.model.folder import best_or_newest, checkpoints_in
from posttrain.rewards.build import RewardSection, build_reward
from posttrain.rollout.check import LEAST_TEMPERATURE
from posttrain.rollout.sampler import SamplingParams
from posttrain.runs.config import Config, parse_config
from posttrain.runs.synthesize import MakingConfig, make, parse_making
from posttrain.runs.train import train
from posttrain.tracking.report import write_report


class StageConfig(StrictConfig):
    """One stage: a recipe, and the stage whose model it starts from."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """The stage's folder in output_dir, and its name in overrides."""
    recipe: LocalPath
    """A recipe file, relative to the pipeline file or to the working directory. A recipe with a
    `make` section generates data."""
    start: str | None = None
    """The stage whose model this one starts from; by default the last earlier one that trains a
    policy."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Overrides of the recipe, as section.key: value."""


class ComparisonConfig(StrictConfig):
    """The comparison of all stages' models on the same held-out problems."""

    splits: dict[str, DataConfig]
    """The problems, in named splits; each has the keys of `data`."""
    reward: RewardSection
    """The function that scores the completions."""
    max_new_tokens: int = Field(512, ge=1)
    """Maximum completion length in tokens, including the stop token."""
    sampled_temperature: float = Field(1.0, ge=LEAST_TEMPERATURE)
    """Temperature of one more completion of each problem, in addition to the greedy one."""


class PipelineConfig(StrictConfig):
    """Stages and their comparison."""

    output_dir: LocalPath
    """The folder that holds a folder for each stage."""
    stages: list[StageConfig] = Field(min_length=1)
    """The stages, in the order in which they run."""
    evaluate: ComparisonConfig | None = None
    """The comparison of the stages' models; none by default."""
    source: str = Field("", exclude=True)
    """The file that the pipeline was read from."""
    _moved_from: str | None = PrivateAttr(None)

    @field_validator("stages")
    @classmethod
    def _distinct(cls, stages: list[StageConfig]) -> list[StageConfig]:
        names = [stage.name for stage in stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages: expected distinct names, got {', '.join(names)}")
        for i, stage in enumerate(stages):
            if stage.start is not None and stage.start not in names[:i]:
                raise ValueError(f"stage {stage.name}: start: no earlier stage {stage.start}")
        return stages


def load_pipeline(path: str, overrides: list[str] | None = None) -> PipelineConfig:
    """Return the pipeline in a file, with `STAGE.section.key=value` overrides.

    With the override `output_dir=FOLDER`, paths in the recipes that are below the file's own
    output_dir are moved below FOLDER.
    """
    path = expanded(path)
    tree = read_yaml(path)
    pipeline = parse(PipelineConfig, tree | {"source": path}, path)
    by_name = {stage.name: stage for stage in pipeline.stages}
    for override in overrides or []:
        stage, _, rest = override.partition(".")
        key, equals, value = rest.partition("=")
        if stage.partition("=")[0] == "output_dir":
            pipeline._moved_from = pipeline._moved_from or str(tree["output_dir"])
            pipeline.output_dir = expanded(override.partition("=")[2])
        elif stage not in by_name or not equals:
            hint = did_you_mean(stage, by_name, "stages")
            raise ValueError(
                f"override {override!r} is not of the form STAGE.section.key=value; {hint}"
            )
        else:
            by_name[stage].set[key] = parse_value(override, value)
    return pipeline


def stage_config(
    pipeline: PipelineConfig, stage: StageConfig, start: Path | None
) -> Config | MakingConfig:
    """Return the stage's recipe with its overrides, and the run `start`, if any, as its model."""
    beside = Path(pipeline.source).parent / stage.recipe
    file = beside if beside.is_file() else Path(stage.recipe)
    tree = read_yaml(file)
    for key, value in stage.set.items():
        set_key(tree, key, value, f"{stage.name}.{key}")
    if pipeline._moved_from is not None:
        tree = moved(tree, f"{pipeline._moved_from}/", f"{pipeline.output_dir}/")
    if start is not None:
        model = {k: v for k, v in tree.get("model", {}).items() if k != "scratch"}
        tree["model"] = model | {"name": str(start)}
    parse = parse_making if "make" in tree else parse_config
    return parse(tree, f"stage {stage.name}: {file}")


def moved(value: Any, old: str, new: str) -> Any:
    """Return the tree with the prefix `old` of every text replaced by `new`."""
    if isinstance(value, dict):
        return {key: moved(inner, old, new) for key, inner in value.items()}
    if isinstance(value, list):
        return [moved(inner, old, new) for inner in value]
    return new + value[len(old) :] if isinstance(value, str) and value.startswith(old) else value


def run_pipeline(pipeline: PipelineConfig) -> dict[str, Any]:
    """Run and compare all stages; return the contents of <output_dir>/summary.json."""
    started = time.time()
    output = Path(pipeline.output_dir)
    starts = starts_of(pipeline)  # reports every typo before the first stage starts
    splits = None if pipeline.evaluate is None else load_splits(pipeline.evaluate)
    results: list[dict[str, Any]] = []
    run_dirs: list[Path] = []
    for stage in pipeline.stages:
        run_dir = output / stage.name
        if not (run_dir / ".parts").exists():  # it holds finished chunks of generated data
            clear(run_dir)
        CONSOLE.rule(f"stage {stage.name}")
        config = stage_config(pipeline, stage, starts[stage.name])
        if isinstance(config, MakingConfig):
            config.output_dir = str(run_dir)
            make(config)
            continue
        train(config, run_dir)
        run_dirs.append(run_dir)
        if pipeline.evaluate is not None and splits is not None and config.trainer.writes_text:
            result = {"name": stage.name} | compare(run_dir, pipeline.evaluate, splits)
            results.append(result)
            (run_dir / "evaluation.json").write_text(json.dumps({"stages": [result]}, indent=1))
    summary = {"seconds": round(time.time() - started, 1), "stages": results}
    (output / "summary.json").write_text(json.dumps(summary, indent=1))
    if results:
        CONSOLE.print(table(results))
    CONSOLE.print(f"report: {write_report(run_dirs, output / 'report.html')}", markup=False)
    CONSOLE.print(f"summary: {output / 'summary.json'}  ({summary['seconds']:.0f} s)", markup=False)
    return summary


def starts_of(pipeline: PipelineConfig) -> dict[str, Path | None]:
    """Return the run that each stage starts from; None if its recipe decides that."""
    starts: dict[str, Path | None] = {}
    policy: str | None = None
    for stage in pipeline.stages:
        start = stage.start or policy
        starts[stage.name] = None if start is None else Path(pipeline.output_dir) / start
        config = stage_config(pipeline, stage, starts[stage.name])
        if isinstance(config, Config) and config.trainer.writes_text:
            policy = stage.name
    return starts


def clear(run_dir: Path) -> None:
    """Delete a stage's earlier run. Raises ValueError if the folder holds files but no run."""
    if not run_dir.exists():
        return
    ours = any((run_dir / name).exists() for name in ("config.yaml", "made.json", ".parts"))
    if not (ours or checkpoints_in(run_dir)) and any(run_dir.iterdir()):
        raise ValueError(f"{run_dir} exists and is not a run of a pipeline: move it away")
    shutil.rmtree(run_dir)


def load_splits(config: ComparisonConfig) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each split."""
    return {name: load_rows(section) for name, section in config.splits.items()}


def compare(
    run_dir: Path, config: ComparisonConfig, splits: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Return greedy and sampled accuracy of a run's model, by split and over all problems.

    `checkpoint` names the folder with the weights: the run's best one, or its newest."""
    checkpoint = best_or_newest(run_dir)
    template, system_prompt = as_trained(str(checkpoint))
    renderer, sampler, limit = load_for_sampling(
        str(checkpoint), template, "auto", "auto", system_prompt
    )
    reward = build_reward(config.reward)
    kept = ("accuracy", "ci95", "num_problems", "num_correct", "truncated")
    by_split: dict[str, dict[str, Any]] = {}
    for name, rows in splits.items():
        most = limit - config.max_new_tokens
        prompts, _ = to_prompts(rows, renderer, name, most, "error")
        results = {}
        for temperature in (0.0, config.sampled_temperature):
            stops = renderer.stop_token_ids
            params = SamplingParams(config.max_new_tokens, stops, temperature)
            asking = Asking(name, renderer, params, reward)
            results[temperature], _ = evaluate_prompts(prompts, asking, sampler)
        by_split[name] = {key: results[0.0][key] for key in kept} | {
            "sampled_accuracy": results[config.sampled_temperature]["accuracy"]
        }
    n = sum(split["num_problems"] for split in by_split.values())
    correct = sum(split["num_correct"] for split in by_split.values())
    sampled_correct = sum(s["sampled_accuracy"] * s["num_problems"] for s in by_split.values())
    return {
        "checkpoint": checkpoint.name,
        "accuracy": correct / n,
        "ci95": wilson(correct, n),
        "sampled_accuracy": sampled_correct / n,
        "num_problems": n,
        "splits": by_split,
    }


def table(results: list[dict[str, Any]]) -> Table:
    """Return the results of all stages as a table for the console."""
    rows = Table(title="accuracy on held-out problems", title_justify="left")
    for column in ("stage", "split", "problems", "greedy", "95 % interval", "sampled"):
        rows.add_column(column, justify="left" if column in ("stage", "split") else "right")
    for result in results:
        for split, r in [("all", result), *result["splits"].items()]:
            low, high = r["ci95"]
            rows.add_row(
                result["name"] if split == "all" else "",
                split,
                f"{r['num_problems']:,}",
                f"{100 * r['accuracy']:.1f} %",
                f"{100 * low:.1f} to {100 * high:.1f} %",
                f"{100 * r['sampled_accuracy']:.1f} %",
                end_section=split == list(result["splits"])[-1],
            )
    return rows
