"""The command line. Whatever is wrong with the user's input is one line and exit code 2."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from posttrain.cli.data import Overrides, data_app

app = typer.Typer(
    help="Post-training of language models: train, evaluate, sample.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")

Template = Annotated[str, typer.Option(help="chat, plain or auto: as the run was trained.")]
MaxNumSeqs = Annotated[int, typer.Option(min=1, help="At the same time: bounds the memory.")]
SystemPrompt = Annotated[str | None, typer.Option(help="By default that of the run; '' is none.")]


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A YAML file: one file is one run.")],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, train and write nothing.")
    ] = False,
) -> None:
    """Train as a recipe says."""
    from posttrain.common import distributed
    from posttrain.runs.config import load_config

    config = load_config(recipe, overrides)
    if dry_run:
        from posttrain.runs.memory import estimate
        from posttrain.runs.plan import describe, plan

        planned = plan(config)
        print(describe(planned))
        print(estimate(planned))
        return
    from posttrain.runs.train import train as run

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
    from posttrain.runs.pipeline import load_pipeline, run_pipeline

    run_pipeline(load_pipeline(recipe, overrides))


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="Hub name, model folder, checkpoint or run.")],
    tasks: Annotated[str, typer.Option(help="Comma-separated; TASK or TASK=PATH of its files.")],
    split: Annotated[str | None, typer.Option(help="Instead of the task's own split.")] = None,
    max_samples: Annotated[
        int | None, typer.Option(min=1, help="Of each task, drawn by chance; by default all.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="0: all tokens.")] = 0,
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
    prompt_template: Annotated[
        str | None,
        typer.Option(help="A name of `posttrain data templates`, or text with {columns}."),
    ] = None,
    template: Template = "auto",
    system_prompt: SystemPrompt = None,
    device: Annotated[str, typer.Option()] = "auto",
    dtype: Annotated[str, typer.Option()] = "auto",
    max_num_seqs: MaxNumSeqs = 256,
    seed: int = 0,
    output: Annotated[
        Path | None, typer.Option(help="Results as JSON: a file or a folder; continued if there.")
    ] = None,
    samples: Annotated[Path | None, typer.Option(help="Write every completion as JSONL.")] = None,
) -> None:
    """Accuracy of a model on tasks, with confidence intervals and verdict counts."""
    from posttrain.common import distributed
    from posttrain.evaluation.console import show
    from posttrain.evaluation.evaluate import evaluate_tasks
    from posttrain.evaluation.tasks import Settings

    settings = Settings(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        num_samples=num_samples,
        shots=shots,
        best_of=best_of,
        toxic_words=toxic_words,
        split=split,
        max_samples=max_samples,
        prompt_template=prompt_template,
        template=template,
        system_prompt=system_prompt,
        device=device,
        dtype=dtype,
        max_num_seqs=max_num_seqs,
        seed=seed,
    )
    try:
        results = evaluate_tasks(model, tasks.split(","), settings, output, samples)
    finally:
        distributed.stop()
    show(results)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A.json", help="Results of posttrain eval.")],
    b: Annotated[Path, typer.Argument(metavar="B.json", help="Results on the same tasks.")],
) -> None:
    """Two models on the same problems, with a paired test for each task."""
    from posttrain.common.console import CONSOLE
    from posttrain.evaluation.compare import compare_files, table

    comparisons, left_out = compare_files(a, b)
    CONSOLE.print(table(comparisons))
    for task in left_out:
        CONSOLE.print(
            f"note: {task}: not compared, no outcomes in both of the same problem", markup=False
        )
    for one in comparisons:
        CONSOLE.print(f"{one.task}: p by {one.test}", markup=False)
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
    template: Template = "auto",
    system_prompt: SystemPrompt = None,
    device: Annotated[str, typer.Option()] = "auto",
    dtype: Annotated[str, typer.Option()] = "auto",
    max_num_seqs: MaxNumSeqs = 256,
    seed: int = 0,
) -> None:
    """Sample completions."""
    from posttrain.common.seeds import mix
    from posttrain.evaluation.loading import as_trained, load_for_sampling
    from posttrain.rollout.sampler import SamplingParams

    template, system_prompt = as_trained(model, template, system_prompt)
    renderer, sampler, limit = load_for_sampling(
        model, template, device, dtype, system_prompt, max_num_seqs
    )
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
    rollouts = sampler.generate(ids, params, [mix(seed, i) for i in range(len(ids))])
    for i, rollout in enumerate(rollouts):
        if len(rollouts) > 1:
            print(f"--- {i + 1} ({rollout.finish_reason})")
        print(renderer.decode(rollout.response_ids))


@app.command()
def classify(
    model: Annotated[str, typer.Argument(help="A classifier's folder, checkpoint or run.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Whole prompts, as trained on.")] = None,
    file: Annotated[Path | None, typer.Option(help="Or rows; with labels also scores.")] = None,
    output: Annotated[Path | None, typer.Option(help="Rows with what is said, JSONL.")] = None,
) -> None:
    """The labels that a trained classifier gives to texts, with their probabilities."""
    from posttrain.runs.classify import classify as lines

    print("\n".join(lines(model, texts or [], file, output)))


@app.command()
def score(
    reward: Annotated[str, typer.Argument(help="math_correctness, or custom with path=FILE.py")],
    file: Annotated[Path, typer.Argument(help="Rows: completion, and the reward's columns.")],
    options: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...")] = None,
    output: Annotated[Path | None, typer.Option(help="Rows with score and verdict, JSONL.")] = None,
) -> None:
    """Run a reward over rows: the way to try it before training on it."""
    from posttrain.runs.score import score_file

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


def main() -> None:
    from posttrain.common.environment import tune_allocator

    tune_allocator()
    try:
        code = app(standalone_mode=False)
        if code == 130:  # what typer makes of an interrupt
            fail("interrupted", code)
        if "RANK" in os.environ and not code:
            from posttrain.common import distributed

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
