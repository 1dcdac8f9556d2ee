"""Completions of the rows of a file: rows in, rows out, resumable, on any number of ranks.

The rows are cut into parts of a fixed size, and a rank samples a part at once. A part's completions
depend on its rows and its place alone, so the file has the same bytes whatever was killed between
and however many ranks there were.
"""

from __future__ import annotations

import datetime
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from posttrain.common import distributed
from posttrain.common.console import CONSOLE
from posttrain.common.environment import versions
from posttrain.common.errors import SettingError
from posttrain.common.files import expanded, finite, write_text
from posttrain.common.seeds import mix
from posttrain.data.contents import packed, suffix_of
from posttrain.data.rows import Row
from posttrain.evaluation.loading import load_sampler
from posttrain.evaluation.statistics import share
from posttrain.model.loaded import start_hash
from posttrain.model.many_adapters import load_adapters
from posttrain.rewards.base import RewardFailure
from posttrain.rewards.score import parts_of, verdict_of
from posttrain.rewards.scoring import score_each
from posttrain.rollout.native.sampler import NativeSampler
from posttrain.rollout.native.together import TogetherSampler, split_over_ranks
from posttrain.rollout.sampler import Rollout
from posttrain.runs.file_job import Job, prepare
from posttrain.runs.inference import inference_config
from posttrain.runs.lost import naming_lost_ranks, telling_alive
from posttrain.runs.parts import Parts, held
from posttrain.runs.preflight import check_alike, compare
from posttrain.runs.synthesize import asked_of

PROGRESS_SECONDS = 10.0  # between two lines of progress


@naming_lost_ranks()
def generate_file(
    model: str | os.PathLike[str],
    file: str | os.PathLike[str],
    output: str | os.PathLike[str],
    /,
    *,
    config: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Write the rows of `file` with completions to `output`, a JSONL file; return the summary.

    `settings` are the keys of InferenceConfig and win over those of `config`, a YAML file. Row i
    and its sample j have the completion that `generate` gives for the same prompts and settings.
    A killed call is completed by the same call. Raises ValueError that names the file and line of a
    malformed row before the model is loaded, and SettingError for an `output` that holds other
    rows.

    Rows are split over the ranks; rank 0 writes `output`, and each returns the summary. Raises
    ValueError, on every rank, if the ranks differ or `output` is in a folder that not all share,
    and LostRank if one is gone.
    """
    chosen = inference_config(config, settings)
    distributed.start(chosen.device, chosen.rank_timeout)
    if distributed.rank() != 0:
        CONSOLE.quiet = True
    name, source = os.fspath(model), os.fspath(file)
    target = output_file(output, source)
    asked = {"model": name, "file": source, "output": str(target), **chosen.model_dump(mode="json")}
    if ranks := compare({"settings": asked}, target.parent):
        CONSOLE.print(ranks, markup=False)
    job, facts = prepare(name, source, chosen, distributed.from_rank_0(date_of(target)))
    parts = Parts(target, job.num_parts)
    if not distributed.from_rank_0(parts.is_whole(facts) if distributed.rank() == 0 else None):
        own = load_sampler(
            name,
            chosen.device,
            chosen.dtype,
            chosen.max_num_seqs,
            chosen.quantization,
            1 if any(job.adapters) else chosen.tensor_parallel,
        )
        facts |= {"weights": start_hash(own.policy.causal_lm())}
        check_alike(facts)
        names = {name for name in job.adapters if name is not None}
        sampler = split_over_ranks(own, chosen.tensor_parallel, several=bool(names))
        if names:
            load_adapters(sampler.policy, {name: name for name in sorted(names)})
        with telling_alive(chosen.rank_timeout) as check:
            if distributed.rank() == 0:
                parts.is_whole(facts)
                parts.begin(facts)
                with held(parts.folder):
                    make(parts, job, sampler)
                    parts.wait(check)
                    parts.join(facts, summary_of(parts.lines(), job) | {"versions": versions()})
            else:
                make(parts, job, sampler)
                parts.wait_for_file(check)
    elif distributed.rank() == 0:
        parts.clean()
        CONSOLE.print(f"{target} is already finished", markup=False)
    record = json.loads(parts.record.read_text()) if distributed.rank() == 0 else None
    summary: dict[str, Any] = distributed.from_rank_0(record)
    return summary


def output_file(output: str | os.PathLike[str], source: str) -> Path:
    """Return the file to write; raise SettingError if it is no JSONL file, or the file of rows."""
    target = Path(expanded(os.fspath(output)))
    if suffix_of(target) != ".jsonl" or packed(target):
        raise SettingError("output", f"expected the name of a .jsonl file, got {target}")
    if target.exists() and not target.is_file():
        raise SettingError("output", f"{target} is not a file")
    if target.resolve() == Path(expanded(source)).resolve():
        raise SettingError("output", f"{target} is the file of the rows: give another")
    target = target.resolve()
    folder = next(parent for parent in target.parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        state = "cannot be written to" if folder.is_dir() else "is not a folder"
        raise SettingError("output", f"{folder} {state}")
    return target


def date_of(target: Path) -> datetime.date | None:
    """Return the date that a file which was begun has in its prompts; None if there is none."""
    date = Parts(target, 0).made_of().get("date")
    return datetime.date.fromisoformat(date) if date else None


def make(parts: Parts, job: Job, sampler: NativeSampler | TogetherSampler) -> None:
    """Sample, score and write this rank's share of the parts that are missing.

    Ranks that split a model call the sampler equally often."""
    missing = distributed.from_rank_0(parts.missing())
    progress = Progress(job, len(job.prompts) - sum(len(job.rows_of(i)) for i in missing))
    own = missing[distributed.rank() :: distributed.num_ranks()]
    most = len(missing[:: distributed.num_ranks()])
    for number in [*own, *[None] * (most - len(own))]:
        if number is None:
            if isinstance(sampler, TogetherSampler):
                sampler.generate([], job.params, [])
            continue
        rows = job.rows_of(number)
        rollouts = sample(job, rows, sampler, progress)
        lines = written(job, rows, rollouts)
        text = "".join(json.dumps(finite(row), default=str) + "\n" for row in lines)
        write_text(parts.part(number), text)
    if missing:
        progress.show()


def sample(
    job: Job, rows: range, sampler: NativeSampler | TogetherSampler, progress: Progress
) -> list[Rollout]:
    """Return the completions of a part's rows, num_samples of each."""
    n = job.config.num_samples
    ids = [job.prompts[i].input_ids for i in rows for _ in range(n)]
    seeds = [mix(job.config.seed, i * n + j) for i in rows for j in range(n)]
    adapters = [job.adapters[i] for i in rows for _ in range(n)]
    return sampler.generate(ids, job.params, seeds, progress, adapters)


def written(job: Job, rows: range, rollouts: list[Rollout]) -> Iterator[Row]:
    """Yield a row for each completion: the row that was read, and what is asked for."""
    config, n = job.config, job.config.num_samples
    renderers = [job.renderers[job.adapters[i]] for i in rows for _ in range(n)]
    texts = [r.decode(rollout.response_ids) for r, rollout in zip(renderers, rollouts)]
    scores = scored(job, rows, rollouts, texts) if job.reward is not None else [None] * len(texts)
    for place, (rollout, text, score) in enumerate(zip(rollouts, texts, scores)):
        row = dict(job.prompts[rows[place // n]].row)
        row["completion"], row["finish_reason"] = text, rollout.finish_reason
        row["num_tokens"] = len(rollout.response_ids)
        if n > 1:
            row["sample"] = place % n
        if config.reward is not None:
            row["score"] = None if score is None else float(score)
            row["verdict"] = verdict_of(score)
            if (of_parts := parts_of(score)) is not None:
                row["rewards"] = of_parts
        if config.logprobs:
            row["token_ids"] = rollout.response_ids
            # to the precision of fp32; + 0.0 makes -0.0 a 0
            row["logprobs"] = [round(value, 6) + 0.0 for value in rollout.logprobs]
        yield row


def scored(job: Job, rows: range, rollouts: list[Rollout], texts: list[str]) -> list[float | None]:
    """Return the scores of a part's completions; those of a row with equal ids are scored once."""
    assert job.reward is not None
    n = job.config.num_samples
    calls, keys = [], []
    for number, i in enumerate(rows):
        share = slice(number * n, (number + 1) * n)
        own = [tuple(rollout.response_ids) for rollout in rollouts[share]]
        distinct = dict(zip(own, texts[share]))
        prompt = job.prompts[i]
        asked, columns = [asked_of(prompt, job.renderers[None])] * len(distinct), [prompt.row]
        ids = [list(key) for key in distinct]
        calls.append((asked, list(distinct.values()), ids, columns * len(distinct)))
        keys.append(own)
    try:
        results = score_each(job.reward, calls)
    except RewardFailure as error:
        raise ValueError(
            f"{job.places[rows[0]]} to {job.places[rows[-1]].rpartition(', ')[2]}: {error}"
        ) from None
    scores = [dict(zip(dict.fromkeys(own), found)) for own, found in zip(keys, results)]
    return [known[ids] for known, own in zip(scores, keys) for ids in own]


class Progress:
    """A line with the rows that are done and the tokens per second, every few seconds."""

    def __init__(self, job: Job, rows_before: int) -> None:
        self.job, self.rows_before = job, rows_before
        self.begun = self.shown = time.perf_counter()
        self.tokens = self.completions = 0
        if rows_before:
            CONSOLE.print(f"{rows_before:,} of {len(job.prompts):,} rows are there", markup=False)

    def __call__(self, place: int, rollout: Rollout) -> None:
        """Count a completion that has finished; show a line if the last one is some time ago."""
        self.tokens += len(rollout.response_ids)
        self.completions += 1
        if time.perf_counter() - self.shown > PROGRESS_SECONDS:
            self.show()

    def show(self) -> None:
        """Print a line. Those of other ranks are taken to be as many."""
        self.shown = time.perf_counter()
        ranks = distributed.num_ranks()
        rate = ranks * self.tokens / (self.shown - self.begun)
        rows = self.rows_before + ranks * self.completions // self.job.config.num_samples
        of_all = f"{min(rows, len(self.job.prompts)):,} of {len(self.job.prompts):,} rows"
        CONSOLE.print(f"{of_all}, {rate:,.{int(rate < 10)}f} tokens/s", markup=False)


def summary_of(lines: Iterator[str], job: Job) -> dict[str, Any]:
    """Return the counts of a whole file, from its lines."""
    counted = ("num_tokens", "finish_reason", "score", "verdict")
    rows = [{name: row.get(name) for name in counted} for row in map(json.loads, lines)]
    assert len(rows) == len(job.prompts) * job.config.num_samples, "a part lacks rows"
    summary = {
        "num_rows": len(job.prompts),
        "num_completions": len(rows),
        "num_tokens": sum(row["num_tokens"] for row in rows),
        "truncated": share([row["finish_reason"] == "length" for row in rows]),
    }
    if job.config.reward is None:
        return summary
    scores = [row["score"] for row in rows if row["score"] is not None]
    verdicts = Counter(row["verdict"] for row in rows if row["verdict"] is not None)
    mean = fmean(scores) if scores else None
    return summary | {"scored": len(scores), "mean_score": mean, "verdicts": dict(verdicts)}


def described(summary: dict[str, Any]) -> str:
    """Return the counts of a summary in a line."""
    line = (
        f"rows {summary['num_rows']:,}  completions {summary['num_completions']:,}  "
        f"tokens {summary['num_tokens']:,}  truncated {summary['truncated']:.1%}"
    )
    if "mean_score" in summary:
        mean = summary["mean_score"]
        line += "  mean score " + ("none" if mean is None else f"{mean:.4f}")
        line += "".join(f"  {verdict} {n:,}" for verdict, n in summary["verdicts"].items())
    return line
