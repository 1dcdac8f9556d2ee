"""`posttrain generate`: completions of prompts, or of the rows of a file."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from posttrain.cli.models import (
    PANEL,
    Device,
    Dtype,
    MaxNewTokens,
    MaxNumSeqs,
    Model,
    PromptTemplate,
    Quantization,
    RankTimeout,
    Seed,
    SystemPrompt,
    Temperature,
    Template,
    TensorParallel,
    TopK,
    TopP,
    sampling,
)
from posttrain.cli.paths import local_name, local_path
from posttrain.common.errors import SettingError

of_rows = partial(typer.Option, rich_help_panel="Rows of a file")


Prompts = Annotated[list[str] | None, typer.Argument(help="One or more prompts; or give --file.")]
File = Annotated[
    str | None,
    of_rows(
        parser=local_name,
        help="Rows with `prompt` or `messages` (JSONL, JSON, Parquet, CSV) instead of prompts.",
    ),
]
Output = Annotated[
    Path | None,
    of_rows(
        parser=local_path,
        help="The JSONL file for the rows with their completions; a killed run is resumed.",
    ),
]
Split = Annotated[
    str,
    of_rows(help="The part to read of a folder, or of a file that holds several."),
]
Columns = Annotated[
    list[str] | None,
    of_rows(
        metavar="OURS=THEIRS",
        help="A column of posttrain's and its name in the file: prompt=question.",
    ),
]
Reward = Annotated[
    str | None,
    of_rows(help="A reward that scores each completion: math_correctness, custom, ..."),
]
RewardOption = Annotated[
    list[str] | None,
    of_rows(metavar="KEY=VALUE", help="A key of the reward, such as path=FILE.py."),
]
Logprobs = Annotated[
    bool,
    of_rows("--logprobs", help="Write the token ids of each completion and their log-probs."),
]
Config = Annotated[
    str | None,
    typer.Option(
        parser=local_name,
        help="A YAML file with the keys of these options; an option wins over the file.",
    ),
]
Samples = Annotated[
    int,
    sampling("--num-samples", "-n", min=1, help="Completions of each prompt."),
]


def generate(
    context: typer.Context,
    model: Model,
    prompts: Prompts = None,
    file: File = None,
    output: Output = None,
    config: Config = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    num_samples: Samples = 1,
    template: Template = "auto",
    system_prompt: SystemPrompt = None,
    prompt_template: PromptTemplate = None,
    split: Split = "train",
    columns: Columns = None,
    reward: Reward = None,
    reward_option: RewardOption = None,
    logprobs: Logprobs = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    max_num_seqs: MaxNumSeqs = 256,
    tensor_parallel: TensorParallel = 1,
    seed: Seed = 0,
    rank_timeout: RankTimeout = 300.0,
) -> None:
    """Sample completions of prompts, or of the rows of a file."""
    from posttrain.runs.inference import settings_of_prompts
    from posttrain.runs.score import settings_of

    others = {"model", "prompts", "file", "output", "config", "columns", "reward", "reward_option"}
    settings = {name: context.params[name] for name in written(context) - others}
    if columns:
        settings["columns"] = settings_of(columns)
    if reward or reward_option:
        settings["reward"] = settings_of(reward_option or []) | ({"type": reward} if reward else {})
    if bool(prompts) == bool(file):
        raise SettingError("file", "give either a file or prompts")
    if file is not None:
        if output is None:
            raise SettingError("output", "give the file for the rows with their completions")
        generate_of_file(model, file, output, config=config, **settings)
        return
    if "RANK" in os.environ:
        raise SettingError("file", "prompts are sampled in one process: give several ranks a file")
    if output is not None:
        raise SettingError("output", "is for the rows of a file: give file, too")
    from posttrain.runs.generate import generate as sample

    completions = sample(model, prompts or [], **settings_of_prompts(config, settings))
    for number, completion in enumerate(completions, 1):
        if len(completions) > 1:
            print(f"--- {number} ({completion.finish_reason})")
        print(completion)


def generate_of_file(model: str, file: str, output: Path, **settings: Any) -> None:
    """Write the rows of a file with their completions, and print the counts on rank 0."""
    from posttrain.common import distributed
    from posttrain.runs.generate_file import described, generate_file

    summary = generate_file(model, file, output, **settings)
    if distributed.rank() == 0:
        print(described(summary))
    distributed.stop()  # not after an error: it would wait for ranks that may be gone


def written(context: typer.Context) -> set[str]:
    """Return the names of the options that were written, not left at their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name != "DEFAULT"}


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(rich_help_panel=PANEL)(generate)
