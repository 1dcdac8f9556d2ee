"""What is made of a file's rows: checked and rendered, with the facts that decide the result.

Everything that can be wrong with rows, settings and adapters is found here, without any weights.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.common import distributed
from posttrain.common.console import CONSOLE
from posttrain.common.files import short_hash
from posttrain.config.base import Free, marks
from posttrain.data.kinds.prompt import Prompt
from posttrain.data.noted import Noted, count
from posttrain.data.noted import lines as note_lines
from posttrain.data.render import Renderer
from posttrain.data.rows import Row
from posttrain.evaluation.loading import as_trained, load_renderer
from posttrain.evaluation.store import contents_hash
from posttrain.model.device import choose_device, choose_dtype
from posttrain.model.folder import base_model, is_adapter, resolve_model_path, trained_with
from posttrain.rewards.base import RewardConfig, RewardFn
from posttrain.rewards.build import build_reward, check_columns
from posttrain.rollout.sampler import SamplingParams
from posttrain.runs.asked_rows import adapters_of, check_rows, read_rows
from posttrain.runs.inference import InferenceConfig

PART = {"cpu": 64, "cuda": 1024}
"""Completions in a part: enough for a full batch, few enough to lose by a kill."""


@dataclass(frozen=True)
class Job:
    """All that the parts are made of."""

    config: InferenceConfig
    places: list[str]
    """Where each row is, to name it in errors."""
    prompts: list[Prompt]
    adapters: list[str | None]
    """The folder of each row's adapter; None is the model alone."""
    renderers: dict[str | None, Renderer]
    """The renderer of the model and of each adapter."""
    reward: RewardFn | None
    params: SamplingParams
    rows_per_part: int

    @property
    def num_parts(self) -> int:
        """The number of parts."""
        return -(-len(self.prompts) // self.rows_per_part)

    def rows_of(self, part: int) -> range:
        """Return the indices of a part's rows."""
        start = part * self.rows_per_part
        return range(start, min(start + self.rows_per_part, len(self.prompts)))


def columns_written(config: InferenceConfig) -> list[str]:
    """Return the columns that each row is written with, in addition to its own."""
    names = ["completion", "finish_reason", "num_tokens"]
    names += ["sample"] if config.num_samples > 1 else []
    names += ["score", "verdict", "rewards"] if config.reward is not None else []
    return names + (["token_ids", "logprobs"] if config.logprobs else [])


def prepare(
    model: str, source: str, config: InferenceConfig, today: datetime.date | None = None
) -> tuple[Job, dict[str, Any]]:
    """Return the job, and the facts that decide what it writes, except the weights.

    `today` is what a chat template writes if the model's training had no date."""
    places, rows = read_rows(source, config)
    check_rows(places, rows, columns_written(config))
    reward = None if config.reward is None else build_reward(config.reward)
    if reward is not None:
        check_columns(reward, rows, places, "name it with columns, for example answer=THEIRS")
    adapters = adapters_of(places, rows)
    folders = {name: place for name, place in zip(adapters, places) if name is not None}
    if folders and is_adapter(base := resolve_model_path(model)):
        raise ValueError(
            f"{next(iter(folders.values()))}: the column adapter needs a model without one, and "
            f"{model} is an adapter of {base_model(base)}: give that model"
        )
    renderers, limit = renderers_of(model, folders, config, today)
    longest = limit - config.max_new_tokens
    prompts = render(places, rows, [renderers[name] for name in adapters], longest, source)
    own = renderers[None]
    params = SamplingParams(
        config.max_new_tokens,
        own.stop_token_ids,
        config.temperature,
        config.top_p,
        config.top_k,
    )
    device = choose_device(config.device)
    size = max(1, PART[device.type] // config.num_samples)
    job = Job(config, places, prompts, adapters, renderers, reward, params, size)
    date = None if own.template is None else own.template.date
    free = {"max_num_seqs", "device", "dtype", "rank_timeout", "tensor_parallel"}
    facts = config.model_dump(mode="json", exclude=free) | {
        "template": "chat" if own.chat else "plain",
        "system_prompt": own.system_prompt,
        "date": None if date is None else date.isoformat(),
        "device": device.type,
        "dtype": str(choose_dtype(config.dtype, device)).removeprefix("torch."),
        "stop_tokens": own.tokenizer.convert_ids_to_tokens(list(own.stop_token_ids)),
        "num_rows": len(rows),
        "rows": short_hash(json.dumps(rows, default=str)),
        "prompts": short_hash([prompt.input_ids for prompt in prompts]),
    }
    read = None
    if distributed.rank() == 0:
        read = file_facts(model, sorted(folders), config.reward)
    return job, facts | distributed.from_rank_0(read)


def file_facts(model: str, adapters: list[str], reward: RewardConfig | None) -> dict[str, Any]:
    """Return the facts about the model's, the adapters' and the reward's files, all of them read.

    A model has many gigabytes, so that one rank reads them for all."""
    return {
        "model": model_facts(model),
        "adapters": {name: contents_hash(name) for name in adapters},
        "reward": reward_facts(reward),
    }


def renderers_of(
    model: str,
    adapters: dict[str, str],
    config: InferenceConfig,
    today: datetime.date | None,
) -> tuple[dict[str | None, Renderer], int]:
    """Return the renderers of the model and of its adapters, each as it was trained.

    Also return the longest sequence in tokens that the model takes. `adapters` are folders, with
    the place of a row that names each. Raises ValueError for one that ends completions with other
    tokens than the model does."""
    renderers: dict[str | None, Renderer] = {}
    limits = []
    for name in (None, *adapters):
        of = model if name is None else name
        template, system_prompt = as_trained(of, config.template, config.system_prompt)
        renderers[name], limit = load_renderer(of, template, system_prompt, today)
        limits.append(limit)
        stops, own = renderers[name].stop_token_ids, renderers[None].stop_token_ids
        if stops != own:
            raise ValueError(
                f"{adapters[str(name)]}: {name} ends completions with other tokens ({stops}) than "
                f"{model} does ({own}): generate its rows in a run of their own"
            )
        trained = trained_with(resolve_model_path(of))[2]
        if trained is not None and trained != config.prompt_template:
            CONSOLE.print(
                f"note: {of} was trained with data.prompt_template {trained!r}, and is asked with "
                f"prompt_template {config.prompt_template!r}: set prompt_template to the same",
                markup=False,
            )
    return renderers, min(limits)


def render(
    places: list[str], rows: list[Row], renderers: list[Renderer], longest: int, source: str
) -> list[Prompt]:
    """Return the rendered rows; raise ValueError naming one that cannot be, or is too long."""
    prompts: list[Prompt] = []
    notes: dict[str, Noted] = {}
    overlong: list[tuple[str, int]] = []
    for number, (place, row, renderer) in enumerate(zip(places, rows, renderers, strict=True), 1):
        try:
            ids, noted = renderer.prompt(row)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        count(notes, number, noted)
        prompts.append(Prompt(ids, row))
        if len(ids) > longest:
            overlong.append((place, len(ids)))
    if overlong:
        place, length = overlong[0]
        others = f", and {len(overlong) - 1:,} further rows are too long" if overlong[1:] else ""
        raise ValueError(
            f"{place}: the prompt has {length} tokens, and max_new_tokens leaves room for "
            f"{max(longest, 0)}{others}: lower max_new_tokens, or shorten or remove such rows"
        )
    for line in note_lines(source[-31:], len(rows), notes):
        CONSOLE.print(line.strip(), markup=False)
    return prompts


def model_facts(model: str) -> list[str | None]:
    """Return what tells a model from others without loading it, and the same of an adapter's base.

    It is a hash of the files in a folder, and the revision of a model of the hub."""
    from transformers.utils.hub import cached_file

    place = resolve_model_path(model)
    facts = []
    for name in dict.fromkeys([place, resolve_model_path(base_model(place))]):
        if Path(name).exists():
            facts.append(contents_hash(name))
        else:
            facts.append(f"{name}@{Path(str(cached_file(name, 'config.json'))).parent.name}")
    return facts


def reward_facts(reward: RewardConfig | None) -> dict[str, Any] | None:
    """Return the keys of a reward that decide its scores, with a hash of the files they name."""
    if reward is None:
        return None
    free = {key for key, info in type(reward).model_fields.items() if marks(info, Free)}
    keys = reward.model_dump(mode="json", exclude=free)
    return keys | {"files": [contents_hash(path) for path in _paths_in(keys)]}


def _paths_in(value: Any) -> Iterator[str]:
    """Yield the values of keys named path, at any depth."""
    if isinstance(value, list):
        for item in value:
            yield from _paths_in(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "path" and isinstance(item, str):
                yield item
            else:
                yield from _paths_in(item)
