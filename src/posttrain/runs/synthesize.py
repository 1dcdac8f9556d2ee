"""Data made by a model: `posttrain data preferences` and `posttrain data filter`.

Several completions of every prompt are sampled and scored; pairs of them, or those that are right,
become train.parquet and validation.parquet. A chunk of prompts is written to disk once it is done,
so a killed run goes on where it was, and ends with the same rows: every completion draws its noise
from (seed, place of the prompt, its number) alone. Equal completions of a prompt are scored once.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny

from posttrain.common.console import CONSOLE
from posttrain.common.environment import versions
from posttrain.common.files import replacing, write_text
from posttrain.common.seeds import mix
from posttrain.config.base import ByType, StrictConfig
from posttrain.config.errors import parse
from posttrain.config.recipe import read_yaml, with_overrides
from posttrain.data.config import DataConfig, Mixture, sections
from posttrain.data.kinds.prompt import Prompt
from posttrain.data.kinds.prompt import to_examples as to_prompts
from posttrain.data.load import load_rows
from posttrain.data.render import Renderer
from posttrain.data.rows import Row
from posttrain.evaluation.loading import load_for_sampling
from posttrain.evaluation.statistics import pass_at
from posttrain.model.config import ModelConfig
from posttrain.model.models import weights_hash
from posttrain.rewards.base import RewardFn
from posttrain.rewards.build import RewardSection, build_reward, check_columns
from posttrain.rewards.score import verdict_of
from posttrain.rewards.scoring import score_each
from posttrain.rollout.sampler import Sampler, SamplingParams
from posttrain.runs.config import dump

CHUNK = 64  # prompts between two writes


class MakeConfig(StrictConfig):
    """What becomes of the completions."""

    type: str
    """preferences: pairs; filter: rejection sampling."""


class PreferencesConfig(MakeConfig):
    """Pairs of completions of which the first has the higher score."""

    type: Literal["preferences"] = "preferences"
    pairs: Literal["best_worst", "all", "multi"] = "best_worst"
    """best_worst: one pair a prompt; all: every pair of different scores; multi: the best one with
    a list of all that score less, trained on as a pair with each."""
    min_difference: float = Field(0.0, ge=0)
    """The scores of a pair differ by more than this."""


class FilterConfig(MakeConfig):
    """Rejection sampling: the completions that are right."""

    type: Literal["filter"] = "filter"
    keep: Literal["all", "first", "shortest"] | Annotated[int, Field(ge=1)] = "all"
    """Of one prompt: all that are right, the first, the shortest, or so many of the first."""
    min_score: float | None = None
    """Right is a score of at least this; by default the reward's verdict, or a score above 0."""


MAKERS: dict[str, type[MakeConfig]] = {"preferences": PreferencesConfig, "filter": FilterConfig}


class SamplingConfig(StrictConfig):
    """How completions are drawn."""

    num_completions: int = Field(8, ge=1)
    """Of each prompt."""
    max_new_tokens: int = Field(512, ge=1)
    """Longest completion in tokens."""
    temperature: float = Field(1.0, gt=0)
    """Logits are divided by it."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Keep the likeliest tokens that together have this probability."""
    top_k: int = Field(0, ge=0)
    """Keep the k likeliest tokens; 0 keeps all."""
    seed: int = 0
    """Draws the noise of sampling and the order of the prompts."""


class MakingConfig(StrictConfig):
    """Data made by a model."""

    model: ModelConfig
    """The model to sample from, as in a run."""
    data: Mixture
    """The prompts, as in a run."""
    sampling: SamplingConfig = SamplingConfig()
    """How completions are drawn."""
    reward: RewardSection
    """What scores them."""
    make: Annotated[SerializeAsAny[MakeConfig], ByType(MAKERS, MAKERS.__getitem__)]
    """What becomes of them."""
    output_dir: str
    """Where train.parquet, validation.parquet and made.json are written."""
    val_split: float = Field(0.0, ge=0, lt=1)
    """Share of the prompts whose rows go into validation.parquet."""

    @property
    def mixture(self) -> list[DataConfig]:
        return sections(self.data)


Scored = list[dict[str, Any]]
"""Completions of one prompt: text, score, correct, num_tokens."""


def load_making(path: str | Path, overrides: list[str] | None = None) -> MakingConfig:
    return parse_making(with_overrides(read_yaml(path), overrides or []), str(path))


def parse_making(tree: dict[str, Any], source: str) -> MakingConfig:
    return parse(MakingConfig, tree, source)


def make(config: MakingConfig) -> dict[str, Any]:
    """Sample, score and write; returns what it writes to <output_dir>/made.json."""
    rows = [row for section in config.mixture for row in load_rows(section)]
    if config.model.name is None:
        raise ValueError("model.name: completions are sampled from a model that was trained before")
    forms = {(section.template, section.system_prompt) for section in config.mixture}
    if len(forms) > 1:
        raise ValueError("all parts of a mixture need the same template and system_prompt")
    template, system_prompt = forms.pop()
    renderer, sampler, limit = load_for_sampling(
        config.model.name, template, config.model.device, config.model.dtype, system_prompt
    )
    most = limit - config.sampling.max_new_tokens
    if most < 1:
        raise ValueError(f"sampling.max_new_tokens leaves no room: the model takes {limit} tokens")
    prompts, table = to_prompts(rows, renderer, "data", most, "drop")
    given = [given_of(prompt, renderer) for prompt in prompts]
    table_of(given)  # what can not be written is said before anything is sampled
    reward = build_reward(config.reward)
    check_columns(reward, [prompt.row for prompt in prompts], "data")
    output = Path(config.output_dir)
    provenance = {
        "config": dump(config),
        "weights": weights_hash(sampler.policy),
        "prompts": hashlib.sha256(repr([p.input_ids for p in prompts]).encode()).hexdigest(),
        "versions": versions(),
    }
    parts = resumable(output / ".parts", provenance)
    groups: list[Scored] = []
    for number, start in enumerate(range(0, len(prompts), CHUNK)):
        file = parts / f"{number:06}.json"
        if not file.is_file():
            chunk = prompts[start : start + CHUNK]
            found = sample_and_score(chunk, start, config, renderer, sampler, reward)
            write_text(file, json.dumps(found))
        groups += json.loads(file.read_text())
        CONSOLE.print(f"{len(groups):,} of {len(prompts):,} prompts", markup=False)
    summary = write(config, given, groups, provenance)
    summary["dropped_prompts"] = table.dropped
    (output / "made.json").write_text(json.dumps(summary | {"provenance": provenance}, indent=1))
    shutil.rmtree(parts)
    return summary


def asked_of(prompt: Prompt, renderer: Renderer) -> Any:
    """The prompt as the model got it: without the answer that ends a conversation."""
    row = prompt.row
    asked = row["messages"] if renderer.chat and "messages" in row else row["prompt"]
    ends = isinstance(asked, list) and asked[-1]["role"] == "assistant"
    return asked[:-1] if ends else asked


def given_of(prompt: Prompt, renderer: Renderer) -> Row:
    """What a made row has from the row that it is made of."""
    answer = {k: v for k, v in prompt.row.items() if k == "answer"}
    return {"prompt": asked_of(prompt, renderer)} | answer


def sample_and_score(
    prompts: list[Prompt],
    first: int,
    config: MakingConfig,
    renderer: Renderer,
    sampler: Sampler,
    reward: RewardFn,
) -> list[Scored]:
    """`first` is the place of the first prompt among all."""
    keys = config.sampling
    n = keys.num_completions
    params = SamplingParams(
        keys.max_new_tokens, renderer.stop_token_ids, keys.temperature, keys.top_p, keys.top_k
    )
    places = range(first, first + len(prompts))
    seeds = [mix(keys.seed, place, number) for place in places for number in range(n)]
    rollouts = sampler.generate([p.input_ids for p in prompts for _ in range(n)], params, seeds)
    groups = [rollouts[i : i + n] for i in range(0, len(rollouts), n)]
    calls = []
    texts_of = [[renderer.decode(rollout.response_ids) for rollout in group] for group in groups]
    for prompt, group, texts in zip(prompts, groups, texts_of):
        # equal texts are scored once: a judge costs money, a sandbox time
        once = {text: rollout.response_ids for text, rollout in zip(texts, group)}
        asked, rows = [asked_of(prompt, renderer)] * len(once), [prompt.row] * len(once)
        calls.append((asked, list(once), list(once.values()), rows))
    found: list[Scored] = []
    for group, texts, call, scores in zip(groups, texts_of, calls, score_each(reward, calls)):
        score_of = dict(zip(call[1], scores))
        found.append([])
        for rollout, text in zip(group, texts):
            value = score_of[text]
            found[-1].append(
                {
                    "text": text, "score": None if value is None else float(value),
                    "verdict": verdict_of(value), "num_tokens": len(rollout.response_ids),
                    "finish_reason": rollout.finish_reason,
                }
            )  # fmt: skip
    return found


def pairs_of(scored: Scored, config: PreferencesConfig) -> Iterator[Row]:
    """chosen, rejected and their scores. A completion that was cut off is never chosen; equal
    texts and completions without a score are in no pair."""
    known: dict[str, dict[str, Any]] = {}
    for one in scored:
        if one["score"] is not None and one["text"].strip():
            known.setdefault(one["text"], one)
    ranked = sorted(known.values(), key=lambda one: -one["score"])
    whole = [one for one in ranked if one["finish_reason"] == "stop"]
    for chosen in whole if config.pairs == "all" else whole[:1]:
        worse = [one for one in ranked if chosen["score"] - one["score"] > config.min_difference]
        if not worse:
            continue
        if config.pairs == "multi":
            texts, scores = [one["text"] for one in worse], [one["score"] for one in worse]
            yield pair(chosen, texts, scores)
            continue
        for rejected in worse if config.pairs == "all" else worse[-1:]:
            yield pair(chosen, rejected["text"], rejected["score"])


def pair(chosen: dict[str, Any], rejected: Any, scores: Any) -> Row:
    return {
        "chosen": chosen["text"], "rejected": rejected, "score_chosen": chosen["score"],
        "score_rejected": scores,
    }  # fmt: skip


def right_ones(scored: Scored, config: FilterConfig) -> Iterator[Row]:
    """completion and score of those that are kept; a text only once."""
    right: dict[str, dict[str, Any]] = {}
    for one in scored:
        whole = one["finish_reason"] == "stop" and one["text"].strip()
        if whole and is_right(one, config.min_score):
            right.setdefault(one["text"], one)
    kept = list(right.values())
    if config.keep == "shortest":
        kept = sorted(kept, key=lambda one: one["num_tokens"])
    count = {"all": len(kept), "first": 1, "shortest": 1}.get(str(config.keep))
    for one in kept[: int(config.keep) if count is None else count]:
        yield {"completion": one["text"], "score": one["score"]}


def is_right(one: dict[str, Any], min_score: float | None = None) -> bool:
    if one["score"] is None:
        return False
    if min_score is not None:
        return bool(one["score"] >= min_score)
    return bool(one["verdict"] == "correct" if one["verdict"] else one["score"] > 0)


def write(
    config: MakingConfig, given: list[Row], groups: list[Scored], provenance: dict[str, Any]
) -> dict[str, Any]:
    """The two files, and counts. Equal prompts lie in one of them, and prompts in an order that the
    seed draws. `given` begins the rows that are made of each prompt."""
    settings = config.make

    def rows_of(scored: Scored) -> Iterator[Row]:
        if isinstance(settings, FilterConfig):
            return right_ones(scored, settings)
        assert isinstance(settings, PreferencesConfig)
        return pairs_of(scored, settings)

    keys = [json.dumps(row["prompt"]) for row in given]
    distinct = sorted(set(keys))
    random.Random(config.sampling.seed).shuffle(distinct)
    held_out = set(distinct[: round(config.val_split * len(distinct))])
    files: dict[str, list[Row]] = {"train": [], "validation": []}
    with_rows = 0
    # a file's first rows are a fair sample of it, whatever the order of the prompts
    place = {key: i for i, key in enumerate(distinct)}
    for i in sorted(range(len(keys)), key=lambda i: place[keys[i]]):
        key, made = keys[i], [given[i] | row for row in rows_of(groups[i])]
        with_rows += bool(made)
        files["validation" if key in held_out else "train"] += made
    if not files["train"]:
        raise ValueError(
            f"none of the {len(given)} prompts gave a row: the scores of its "
            f"{config.sampling.num_completions} completions are alike, or none is right"
        )
    least = settings.min_score if isinstance(settings, FilterConfig) else None
    counts = [sum(is_right(one, least) for one in scored) for scored in groups]
    n = config.sampling.num_completions
    summary = {
        "num_prompts": len(given),
        "prompts_with_rows": with_rows,
        "num_rows": {name: len(rows) for name, rows in files.items()},
        "pass@1": sum(counts) / (n * len(counts)),
        f"pass@{n}": sum(pass_at(n, n, c) for c in counts) / len(counts),
        "unscored": sum(one["score"] is None for scored in groups for one in scored)
        / (n * len(groups)),
        "verdicts": dict(Counter(one["verdict"] for scored in groups for one in scored)),
    }
    for name, rows in files.items():
        file = Path(config.output_dir) / f"{name}.parquet"
        file.unlink(missing_ok=True)
        if rows:
            write_parquet(file, rows, provenance | summary)
    return summary


def table_of(rows: list[Row]) -> Any:
    """A table with the columns of all rows, not of the first alone."""
    import pyarrow

    names = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    for name in names:
        try:
            columns[name] = pyarrow.array([row.get(name) for row in rows])
        except pyarrow.ArrowException as error:
            raise ValueError(
                f"data: {name} has values of different types, which no column of the made files "
                f"can hold ({str(error).splitlines()[0]})"
            ) from None
    return pyarrow.table(columns)


def write_parquet(path: Path, rows: list[Row], metadata: dict[str, Any]) -> None:
    import pyarrow.parquet

    table = table_of(rows)
    table = table.replace_schema_metadata({"posttrain": json.dumps(metadata, default=str)})
    with replacing(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)


def resumable(parts: Path, provenance: dict[str, Any]) -> Path:
    """The folder of finished chunks; begun again where they are not of the same making."""
    mark, text = parts / "provenance.json", json.dumps(provenance, sort_keys=True)
    if not mark.is_file() or mark.read_text() != text:
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir(parents=True)
        write_text(mark, text)
    return parts
