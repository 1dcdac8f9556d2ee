"""The command line. Whatever is wrong with the user's input is one line and exit code 2."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Post-training of language models: train, evaluate, sample.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Look at data before training on it.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[section.key=value]...")]


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A YAML file: one file is one run.")],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, train and write nothing.")
    ] = False,
) -> None:
    """Train as a recipe says."""
    from posttrain import distributed
    from posttrain.checkpoint import check_resume, find_resume
    from posttrain.config import dump, load_config
    from posttrain.train import build, describe, run_name
    from posttrain.train import train as run

    config = load_config(recipe, overrides)
    if dry_run:
        from posttrain.dry_run import estimate

        resume = find_resume(config.trainer, run_name(config))
        built = build(config)
        if resume is not None:
            check_resume(resume, dump(config), built.data.hash())
        print(describe(built))
        print(estimate(built))
        return
    try:
        run_dir = run(config)
        if distributed.rank() == 0:
            print(f"run: {run_dir}\nreport: {run_dir / 'report.html'}")
    finally:
        distributed.stop()


@app.command()
def pipeline(
    recipe: Annotated[str, typer.Argument(help="A YAML file with stages.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[STAGE.section.key=value]...")
    ] = None,
) -> None:
    """Run stages one after another, each starting from the model of the one before."""
    from posttrain.pipeline import load_pipeline, run_pipeline

    run_pipeline(load_pipeline(recipe, overrides))


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="Hub name, model folder, checkpoint or run.")],
    tasks: Annotated[str, typer.Option(help="Comma-separated; TASK or TASK=PATH of its files.")],
    split: Annotated[str | None, typer.Option(help="Instead of the task's own split.")] = None,
    max_samples: Annotated[int | None, typer.Option(min=1)] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    num_samples: Annotated[
        int, typer.Option("--num-samples", "-n", min=1, help="Of each problem: pass@k, maj@N.")
    ] = 1,
    shots: Annotated[int, typer.Option(min=0, help="Solved examples before each problem.")] = 0,
    best_of: Annotated[
        str | None, typer.Option(help="A reward model that chooses one of the samples.")
    ] = None,
    toxic_words: Annotated[
        str | None, typer.Option(help="A file, a word a line: how often completions have one.")
    ] = None,
    template: Annotated[str, typer.Option(help="auto, chat or plain.")] = "auto",
    device: Annotated[str, typer.Option()] = "auto",
    dtype: Annotated[str, typer.Option()] = "auto",
    seed: int = 0,
    output: Annotated[
        Path | None, typer.Option(help="Results as JSON: a file or a folder; continued if there.")
    ] = None,
    samples: Annotated[Path | None, typer.Option(help="Write every completion as JSONL.")] = None,
) -> None:
    """Accuracy of a model on tasks, with confidence intervals and verdict counts."""
    from posttrain.evaluation.command import Settings, evaluate_tasks
    from posttrain.evaluation.console import lines_of, table
    from posttrain.tracking import CONSOLE

    settings = Settings(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        num_samples=num_samples,
        shots=shots,
        best_of=best_of,
        toxic_words=toxic_words,
        split=split,
        max_samples=max_samples,
        template=template,
        device=device,
        dtype=dtype,
        seed=seed,
    )
    results = evaluate_tasks(model, tasks.split(","), settings, output, samples)
    if any("accuracy" in result for result in results.values()):
        CONSOLE.print(table(results))
    for task, result in results.items():
        for line in lines_of(task, result):
            CONSOLE.print(line, markup=False)
        if verdicts := result.get("verdicts"):
            counts = ", ".join(f"{name} {number:,}" for name, number in verdicts.items())
            CONSOLE.print(f"{task}: {counts}", markup=False)
        if dropped := result.get("dropped_prompts", result.get("dropped_rows")):
            CONSOLE.print(
                f"note: {task}: {dropped} problems left out: no room for their prompt", markup=False
            )


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A.json", help="Results of posttrain eval.")],
    b: Annotated[Path, typer.Argument(metavar="B.json", help="Results on the same tasks.")],
) -> None:
    """Two models on the same problems, with a paired test for each task."""
    from posttrain.evaluation.compare import compare_files, table
    from posttrain.tracking import CONSOLE

    comparisons, left_out = compare_files(a, b)
    CONSOLE.print(table(comparisons))
    for task in left_out:
        CONSOLE.print(
            f"note: {task}: not compared, no outcomes in both of the same problem", markup=False
        )
    for one in comparisons:
        for note in one.notes:
            CONSOLE.print(f"note: {one.task}: {note}", markup=False)


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="Hub name, model folder, checkpoint or run.")],
    prompts: Annotated[list[str], typer.Argument(help="One or more prompts.")],
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 1.0,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 1.0,
    top_k: Annotated[int, typer.Option(min=0)] = 0,
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", min=1)] = 1,
    template: Annotated[str, typer.Option(help="auto, chat or plain.")] = "auto",
    device: Annotated[str, typer.Option()] = "auto",
    dtype: Annotated[str, typer.Option()] = "auto",
    seed: int = 0,
) -> None:
    """Sample completions."""
    from posttrain.evaluation.command import as_trained, load_for_sampling
    from posttrain.rollout.sampler import SamplingParams

    template, system_prompt = as_trained(model, template)
    renderer, sampler, limit = load_for_sampling(model, template, device, dtype, system_prompt)
    ids = [renderer.prompt_ids({"prompt": p}) for p in prompts for _ in range(num_samples)]
    longest = max(len(x) for x in ids)
    if longest + max_new_tokens > limit:
        raise ValueError(
            f"--max-new-tokens {max_new_tokens} after a prompt of {longest} tokens is more than "
            f"the {limit} tokens that the model takes"
        )
    params = SamplingParams(
        max_new_tokens, renderer.stop_token_ids, temperature, top_p=top_p, top_k=top_k
    )
    rollouts = sampler.generate(ids, params, [seed * 1_000_003 + i for i in range(len(ids))])
    for i, rollout in enumerate(rollouts):
        if len(rollouts) > 1:
            print(f"--- {i + 1} ({rollout.finish_reason})")
        print(renderer.decode(rollout.response_ids))


@app.command()
def score(
    reward: Annotated[str, typer.Argument(help="math_correctness, or custom with path=FILE.py")],
    file: Annotated[Path, typer.Argument(help="Rows: completion, and the reward's columns.")],
    options: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...")] = None,
    output: Annotated[Path | None, typer.Option(help="Rows with score and verdict, JSONL.")] = None,
) -> None:
    """Run a reward over rows: the way to try it before training on it."""
    from posttrain.rewards.command import score_file

    for line in score_file(reward, file, options or [], output):
        print(line)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="One run directory, or several to compare.")],
    output: Annotated[Path | None, typer.Option(help="Where to write the page.")] = None,
) -> None:
    """A self-contained HTML page of one run, or of several side by side."""
    from posttrain.tracking.report import write_report

    if output is None and len(runs) > 1:
        output = Path("report.html")
    print(write_report(runs, output))


@data_app.command("preview")
def preview(
    recipe: Annotated[str, typer.Argument(help="The recipe whose data to show.")],
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=1, help="How many rows to show.")] = 3,
) -> None:
    """The rendered rows with the trained tokens coloured, their lengths, and what is dropped."""
    from posttrain.config import load_config
    from posttrain.data.preview import show

    show(load_config(recipe, overrides), rows)


@data_app.command("preferences")
def preferences(
    recipe: Annotated[str, typer.Argument(help="A recipe with make.type: preferences.")],
    overrides: Overrides = None,
) -> None:
    """Sample several completions of each prompt and make pairs of them by their scores."""
    _make(recipe, overrides, "preferences")


@data_app.command("filter")
def rejection_sampling(
    recipe: Annotated[str, typer.Argument(help="A recipe with make.type: filter.")],
    overrides: Overrides = None,
) -> None:
    """Sample several completions of each prompt and keep those that are right."""
    _make(recipe, overrides, "filter")


def _make(recipe: str, overrides: list[str] | None, kind: str) -> None:
    from posttrain.making import load_making, make

    config = load_making(recipe, overrides)
    if config.make.type != kind:
        raise ValueError(f"{recipe} has make.type {config.make.type}: posttrain data {kind} does "
                         f"{kind}")  # fmt: skip
    for name, value in make(config).items():
        print(f"{name:<20}{value}")
    print(f"written to {config.output_dir}")


@data_app.command("prepare")
def prepare(
    files: Annotated[list[str], typer.Argument(help="JSONL or Parquet, also .gz; globs too.")],
    output_dir: Annotated[Path, typer.Option(help="For train.parquet and validation.parquet.")],
    val_split: Annotated[float, typer.Option(help="Share of the groups for validation.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Draws the groups for validation.")] = 0,
    prompt_key: Annotated[str | None, typer.Option(help="The column of the prompt.")] = None,
    response_key: Annotated[str | None, typer.Option(help="The column of the answer.")] = None,
    answer_key: Annotated[
        str | None, typer.Option(help="The column of the final answer, for a reward.")
    ] = None,
    group_key: Annotated[
        str | None, typer.Option(help="Rows with an equal value here lie in one file.")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(help="Other columns, comma-separated, or none; by default simple ones."),
    ] = None,
    format: Annotated[str, typer.Option(help="posttrain, verl_sft or verl_rl.")] = "posttrain",
    data_source: Annotated[str | None, typer.Option(help="For verl_rl.")] = None,
    ability: Annotated[str | None, typer.Option(help="For verl_rl.")] = None,
    decontaminate: Annotated[
        str | None, typer.Option(help="Drop rows that overlap with this evaluation set.")
    ] = None,
) -> None:
    """Files of rows to train.parquet and validation.parquet without a prompt in both."""
    from posttrain.data.convert import prepare as convert
    from posttrain.data.standard import Preparation

    columns = None if keep is None else () if keep == "none" else tuple(keep.split(","))
    config = Preparation(
        output_dir, val_split, seed, prompt_key, response_key, answer_key, group_key, columns,
        format, data_source, ability, decontaminate,
    )  # fmt: skip
    for line in convert(files, config).lines():
        print(line)


@data_app.command("overlap")
def overlap(
    train: Annotated[str, typer.Argument(help="Training rows: a file or a glob.")],
    evaluation: Annotated[str, typer.Argument(help="The evaluation set: a file or a glob.")],
    n: Annotated[int, typer.Option("--n", help="Successive words in common.")] = 13,
) -> None:
    """Training rows that share n successive words with an evaluation set."""
    from posttrain.data.convert import expand
    from posttrain.data.decontamination import measure_overlap
    from posttrain.data.load import SUFFIXES

    train_files, held_out = expand([train], SUFFIXES), expand([evaluation], SUFFIXES)
    for line in measure_overlap(train_files, held_out, n).lines():
        print(line)


@data_app.command("templates")
def templates() -> None:
    """The prompt templates that have a name, each with an example."""
    from posttrain.data.templates import described

    for line in described():
        print(line)


@data_app.command("list")
def list_datasets() -> None:
    """The data sets that have a name: what they are, licence, splits with rows, use, source."""
    from posttrain.data import DATASETS
    from posttrain.data.origin import describe

    width = max(map(len, DATASETS)) + 2
    for name, load in DATASETS.items():
        print("\n".join(describe(name, load, width)))


@data_app.command("download")
def download_datasets(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...")] = None,
    sft_only: Annotated[
        bool, typer.Option("--sft-only", help="Those with completions to train on.")
    ] = False,
    rl_only: Annotated[
        bool, typer.Option("--rl-only", help="Those with answers, tests, labels or preferences.")
    ] = False,
    output_dir: Annotated[
        Path, typer.Option(help="A folder for each data set is made in it.")
    ] = Path("data"),
) -> None:
    """Fetch the original files of the data sets named, or of all; goes on where it was."""
    from posttrain.data.download import chosen, download

    download(chosen(names or [], sft_only=sft_only, rl_only=rl_only), output_dir)


def main() -> None:
    from posttrain.environment import tune_allocator

    tune_allocator()
    try:
        code = app(standalone_mode=False)
        if code == 130:  # what typer makes of an interrupt
            fail("interrupted", code)
        if "RANK" in os.environ and not code:
            from posttrain import distributed

            distributed.leave()
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except (ValueError, OSError) as error:
        if os.environ.get("POSTTRAIN_TRACEBACK"):
            raise
        fail(error)
    except KeyboardInterrupt:
        fail("interrupted", code=130)
    except Exception as error:
        usage: Any = getattr(error, "format_message", None)
        if usage is None:
            raise
        if not usage():  # a bare `posttrain` has printed its help
            sys.exit(2)
        fail(usage())


def fail(error: object, code: int = 2) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(code)
