"""Commands that train several runs: a recipe with a list of models, and sweeps."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from posttrain.cli.paths import local_path
from posttrain.common.console import CONSOLE

if TYPE_CHECKING:
    from posttrain.runs.series.members import Member
    from posttrain.runs.series.results import Row
    from posttrain.runs.series.series import Ranking

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[section.key=value]...", help="Keys of the recipe to change, as YAML values."
    ),
]
Mode = Literal["min", "max"]
OutputDir = Annotated[
    Path | None,
    typer.Option(parser=local_path, help="Short for trainer.output_dir=FOLDER."),
]
Model = Annotated[
    str | None,
    typer.Option(help="Train only this one of the recipe's models: its label, or its name."),
]
ModelIndex = Annotated[
    int | None,
    typer.Option(help="Train only this one of the recipe's models, counted from 0."),
]
Retrain = Annotated[
    bool,
    typer.Option(
        "--retrain", help="Train runs of a series again whose config changed since they began."
    ),
]


def read_tree(
    recipe: str, overrides: Sequence[str] | None, output_dir: Path | None
) -> dict[str, Any]:
    """Return a recipe's tree of sections, with overrides."""
    from posttrain.config.recipe import read_yaml, set_key, with_overrides

    tree = with_overrides(read_yaml(recipe), list(overrides or []))
    if output_dir is not None:
        set_key(tree, "trainer.output_dir", str(output_dir), "trainer.output_dir")
    return tree


def command(config: Path, run_dir: Path) -> list[str]:
    """Return the command line that trains a config file in a run directory."""
    return [*program(), "train", str(config), "--run-dir", str(run_dir)]


def program() -> list[str]:
    """Return what starts this program again."""
    return [sys.executable, "-m", "posttrain"]


def train_models(
    tree: dict[str, Any],
    recipe: str,
    model: str | None,
    model_index: int | None,
    dry_run: bool,
    retrain: bool,
) -> None:
    """Train the models of a recipe's list, or one of them."""
    from posttrain.runs.series.members import labelled_trees, models_of, selected

    if "models" not in tree:
        raise ValueError(
            f"{recipe} has one model, not a list in models: leave out --model, --model-index and "
            "--retrain (another model: model.name=NAME)"
        )
    members = models_of(tree, recipe)
    chosen = None
    if model is not None or model_index is not None:
        chosen = members[selected(labelled_trees(tree, recipe), model, model_index)]
    if dry_run:
        dry_runs([chosen] if chosen is not None else members)
    elif chosen is not None:
        train_chosen(chosen, retrain)
    else:
        refuse_ranks("--model-index", f"0 to {len(members) - 1}")
        from posttrain.runs.series.series import train_series

        end(train_series(members, command, retrain=retrain))


def train_chosen(member: Member, retrain: bool) -> None:
    """Train one model of a list in this process."""
    from posttrain.common import distributed
    from posttrain.runs.series.one import train_one

    try:
        run_dir = train_one(member, retrain)
        if distributed.rank() == 0:
            print(f"run: {run_dir}\nreport: {run_dir / 'report.html'}")
    finally:
        distributed.stop()


def refuse_ranks(option: str, values: str) -> None:
    """Raise ValueError under torchrun: each run is a process of its own, and would be one rank."""
    if "RANK" in os.environ:
        raise ValueError(
            "each of several runs is started in a process of its own, which is one rank: call "
            f"posttrain launch, or torchrun, once for each of them, with {option} ({values}), and "
            "then posttrain train, which finds them finished and writes the report"
        )


def dry_runs(members: Sequence[Member]) -> None:
    """Check each run in a process of its own; write nothing, and exit with 1 if one fails."""
    from posttrain.common.distributed import VARIABLES
    from posttrain.runs.config import save_config

    failed = []
    # of several ranks each would check alone, and their processes cannot meet more than once
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    with tempfile.TemporaryDirectory() as folder:
        for member in members:
            CONSOLE.rule(member.label)
            file = Path(folder) / "config.yaml"
            save_config(member.config, file)
            call = [*program(), "train", str(file), "--dry-run"]
            if subprocess.run(call, check=False, env=environment).returncode:
                failed.append(member.label)
    if failed:
        CONSOLE.print(f"{len(failed)} of {len(members)} runs fail: {', '.join(failed)}")
        sys.exit(1)


def end(rows: Sequence[Row]) -> None:
    """Exit with 1 if a run failed."""
    if any(row.state == "failed" for row in rows):
        sys.exit(1)


def sweep(
    recipe: Annotated[str, typer.Argument(help="A YAML file; each run has other values.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[section.key=a,b,...]...",
            help="Keys with all the values to try. With --search optuna also log(a,b), "
            "uniform(a,b), int(a,b) or choice(x,y). A key with one value holds for all runs.",
        ),
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(help="optuna: propose values instead of trying every combination."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Number of runs of a search, those before included.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="The metric to compare runs by, such as eval_loss or eval_accuracy."),
    ] = None,
    mode: Annotated[
        Mode | None,
        typer.Option(help="min or max: which values are better; by default by the metric's name."),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(min=1, help="Runs at the same time, each with its share of cores and GPUs."),
    ] = 1,
    output_dir: OutputDir = None,
    model: Model = None,
    model_index: ModelIndex = None,
    retrain: Retrain = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every run; train and write nothing.")
    ] = False,
) -> None:
    """Train a recipe with several values of its keys: all combinations, or a search.

    Finished runs are not repeated by a second call, and interrupted ones are resumed.
    """
    from posttrain.runs.series.grid import grid, read_axes
    from posttrain.runs.series.results import mode_of
    from posttrain.runs.series.series import Ranking, train_series

    check_search(search, trials, metric, mode, retrain)
    axes, fixed = read_axes(overrides or [], search is not None)
    tree = one_model(read_tree(recipe, fixed, output_dir), recipe, model, model_index)
    if search is None:
        members = grid(tree, recipe, axes, fixed)
        if dry_run:
            return dry_runs(members)
        refuse_ranks("the keys of one run", "posttrain train RECIPE key=value")
        ranking = Ranking(metric, mode)
        rows = train_series(members, command, ranking, jobs, retrain)
    else:
        from posttrain.runs.series.search import Search, check_space, run_search

        assert metric is not None
        assert trials is not None
        better = mode or mode_of(metric)
        ranking = Ranking(metric, better)
        wanted = Search(tree, recipe, axes, fixed, metric, better, trials)
        if dry_run:
            return dry_runs(check_space(wanted))
        refuse_ranks("the keys of one run", "posttrain train RECIPE key=value")
        rows = run_search(wanted, command, jobs)
    say_best(recipe, rows, ranking)
    return end(rows)


def check_search(
    search: str | None, trials: int | None, metric: str | None, mode: Mode | None, retrain: bool
) -> None:
    """Raise ValueError for options of a sweep that do not go together."""
    if search not in (None, "optuna"):
        raise ValueError(f"--search: expected optuna, got {search}")
    if mode is not None and metric is None:
        raise ValueError("--mode needs --metric")
    if search is None and trials is not None:
        raise ValueError("--trials is for --search optuna: a grid has one run per combination")
    if search is not None and (metric is None or trials is None):
        raise ValueError("--search needs --metric, such as eval_loss, and --trials")
    if search is not None and retrain:
        raise ValueError("--retrain is for a grid: a search of another config needs a new folder")


def one_model(
    tree: dict[str, Any], recipe: str, model: str | None, model_index: int | None
) -> dict[str, Any]:
    """Return the tree of a sweep, which has one model, chosen from the recipe's list if any."""
    from posttrain.runs.series.members import labelled_trees, selected

    if "models" in tree:
        trees = labelled_trees(tree, recipe)
        if model is None and model_index is None:
            labels = ", ".join(label for label, _ in trees)
            raise ValueError(
                f"a sweep takes one model: choose one of {recipe} with --model ({labels}), or "
                "sweep model.name=A,B in a recipe with one model"
            )
        return trees[selected(trees, model, model_index)][1]
    if model is not None or model_index is not None:
        raise ValueError(f"{recipe} has one model: leave out --model and --model-index")
    return tree


def say_best(recipe: str, rows: Sequence[Row], ranking: Ranking) -> None:
    """Print the best run, and the command line that repeats it."""
    from posttrain.runs.series.results import best_of

    if ranking.direction is None or (best := best_of(rows, ranking.direction)) is None:
        return
    CONSOLE.print(f"best: {best.label}, {ranking.metric} {best.value:.6g}", markup=False)
    call = shlex.join(["posttrain", "train", recipe, *best.overrides])
    CONSOLE.print(f"repeat it with: {call}", markup=False)
