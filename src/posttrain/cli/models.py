"""Commands for models and completions: eval, compare, classify, score."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from posttrain.cli.paths import local_name, local_path

PANEL = "Models"
sampling = partial(typer.Option, rich_help_panel="How to sample")
asking = partial(typer.Option, rich_help_panel="How to ask")
machine = partial(typer.Option, rich_help_panel="Where to run")

Model = Annotated[
    str, typer.Argument(help="A hub name, a model or adapter folder, a checkpoint or a run.")
]
Template = Annotated[
    str,
    asking(help="chat, plain, or auto: as in the run's training."),
]
SystemPrompt = Annotated[
    str | None,
    asking(help="A system message, by default the run's; '' for none."),
]
TopP = Annotated[
    float,
    sampling(
        min=0, max=1, help="Sample from the most likely tokens that together have this probability."
    ),
]
TopK = Annotated[
    int,
    sampling(min=0, help="Sample from the k most likely tokens; 0 is no limit."),
]
Temperature = Annotated[
    float,
    sampling(min=0, help="Logits are divided by it; 0 is greedy."),
]
MaxNewTokens = Annotated[
    int,
    sampling(min=1, help="Maximum completion length in tokens."),
]
Seed = Annotated[int, sampling(help="Seed of the sampling noise.")]
Device = Annotated[str, machine(help="auto, cpu or cuda.")]
Dtype = Annotated[str, machine(help="auto, float32 or bfloat16.")]
Quantization = Annotated[
    str | None,
    machine(
        help="Store weights as nf4, fp4 or int8, or with none as in the model's files; by default "
        "as in the adapter's training."
    ),
]
RankTimeout = Annotated[
    float, machine(min=1, max=10**6, help="Seconds that a rank waits for the others, of several.")
]
TensorParallel = Annotated[
    int, typer.Option(help="Ranks that split the model's matrices, for one too large for a rank.")
]
MaxNumSeqs = Annotated[
    int,
    machine(min=1, help="Maximum number of concurrent completions; bounds memory."),
]


Tasks = Annotated[
    str, typer.Option(help="Comma-separated names; NAME=PATH reads a task's files from PATH.")
]
Split = Annotated[str | None, typer.Option(help="A split other than the task's own.")]
MaxSamples = Annotated[
    int | None, typer.Option(min=1, help="Problems of each task, drawn at random; by default all.")
]
SamplesOfProblem = Annotated[
    int,
    sampling(
        "--num-samples", "-n", min=1, help="Completions of each problem, for pass@k and maj@N."
    ),
]
Shots = Annotated[
    int,
    asking(min=0, help="Solved examples in front of each problem."),
]
BestOf = Annotated[
    str | None,
    typer.Option(
        parser=local_name, help="A reward model that chooses the best of a problem's completions."
    ),
]
ToxicWords = Annotated[
    str | None,
    typer.Option(
        parser=local_name,
        help="A file of words or phrases, one per line, to look for in completions.",
    ),
]
Refusal = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="A key of the refusal reward, for xstest and advbench: rule=judge, url=..., model=...",
    ),
]
PromptTemplate = Annotated[
    str | None,
    asking(help="A name of `posttrain data templates`, or text with {columns}."),
]
Output = Annotated[
    Path | None,
    typer.Option(
        parser=local_path,
        help="A file or folder for the results as JSON; unfinished tasks are resumed.",
    ),
]
Samples = Annotated[
    Path | None,
    typer.Option(parser=local_path, help="Write every completion of all tasks to this JSONL file."),
]


def evaluate(
    model: Model,
    tasks: Tasks,
    split: Split = None,
    max_samples: MaxSamples = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    num_samples: SamplesOfProblem = 1,
    shots: Shots = 0,
    best_of: BestOf = None,
    toxic_words: ToxicWords = None,
    refusal: Refusal = None,
    prompt_template: PromptTemplate = None,
    template: Template = "auto",
    system_prompt: SystemPrompt = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    max_num_seqs: MaxNumSeqs = 256,
    tensor_parallel: TensorParallel = 1,
    seed: Seed = 0,
    output: Output = None,
    samples: Samples = None,
    rank_timeout: RankTimeout = 300.0,
) -> None:
    """Measure a model on tasks, with confidence intervals and verdict counts."""
    from posttrain.common import distributed
    from posttrain.evaluation.console import show
    from posttrain.evaluation.tasks import Settings
    from posttrain.runs.evaluate import evaluate as run
    from posttrain.runs.score import settings_of

    settings = Settings(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        num_samples=num_samples,
        shots=shots,
        best_of=best_of,
        toxic_words=toxic_words,
        refusal=settings_of(refusal) if refusal else None,
        split=split,
        max_samples=max_samples,
        prompt_template=prompt_template,
        template=template,
        system_prompt=system_prompt,
        device=device,
        dtype=dtype,
        quantization=quantization,
        max_num_seqs=max_num_seqs,
        tensor_parallel=tensor_parallel,
        seed=seed,
    )
    results = run(model, tasks.split(","), settings, output, samples, rank_timeout)
    distributed.stop()  # not after an error: it would wait for ranks that may be gone
    show(results)


def compare(
    a: Annotated[
        Path,
        typer.Argument(parser=local_path, metavar="A.json", help="Results of `posttrain eval`."),
    ],
    b: Annotated[
        Path, typer.Argument(parser=local_path, metavar="B.json", help="Results on the same tasks.")
    ],
) -> None:
    """Compare two models on the same problems, with a paired test for each task."""
    from posttrain.common.console import CONSOLE
    from posttrain.evaluation.compare import compare_files, lines, table

    comparisons = compare_files(a, b)
    CONSOLE.print(table(list(comparisons.values())))
    for line in lines(comparisons):
        CONSOLE.print(line, markup=False)


def classify(
    model: Annotated[str, typer.Argument(help="A classifier's folder, checkpoint or run.")],
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts to classify, as whole prompts.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            help="A file of rows instead of texts; scored if the rows have labels.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            parser=local_path, help="Write each row with its prediction to this JSONL file."
        ),
    ] = None,
) -> None:
    """Print the labels that a trained classifier assigns to texts, with their probabilities."""
    from posttrain.runs.classify import classify as lines

    print("\n".join(lines(model, texts or [], file, output)))


def score(
    reward: Annotated[str, typer.Argument(help="A reward: math_correctness, custom, ...")],
    file: Annotated[
        Path,
        typer.Argument(parser=local_path, help="Rows with `completion` and the reward's columns."),
    ],
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[key=value]...", help="Keys of the reward, such as path=FILE.py."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            parser=local_path, help="Write each row with its score and verdict to this JSONL file."
        ),
    ] = None,
) -> None:
    """Score the rows of a file with a reward, to try it before training on it."""
    from posttrain.runs.score import score_file

    for line in score_file(reward, file, options or [], output):
        print(line)


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("eval", rich_help_panel=PANEL)(evaluate)
    for command in (compare, classify, score):
        app.command(rich_help_panel=PANEL)(command)
