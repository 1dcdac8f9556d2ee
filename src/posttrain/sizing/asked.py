"""What a recipe asks of its ranks: the network without weights, its rows, the batches of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from posttrain.algorithms.config import DEFAULT_MICRO_BATCH_TOKENS
from posttrain.common.batch import Batch, Example, Sequence, pack, sequences_of
from posttrain.data.kinds.prompt import Prompt
from posttrain.data.source import EpochOrder
from posttrain.model.adapters.saved import with_adapter
from posttrain.model.config import ModelConfig
from posttrain.model.device import choose_dtype
from posttrain.model.integrity import has_tokenizer
from posttrain.model.scratch import create_from_scratch
from posttrain.model.shared_prompts import share_prompts
from posttrain.model.suited import read_config
from posttrain.rollout.sampler import Rollout
from posttrain.rollout.source import to_sequence
from posttrain.runs.config import Config
from posttrain.runs.data import (
    build_renderer,
    build_tokenizer,
    length_limit,
    load_mixture,
    prepare_data,
    split_off,
    start_model,
    with_label_set,
)

LOOKED_AT = 2048  # sequences among whose micro-batches the fullest is looked for
PROMPT_SHARE = 4  # one in so many tokens of a row is its prompt's, if no tokenizer says


@dataclass
class Asked:
    """A recipe as far as it decides memory, traffic and time."""

    config: Config
    """With the defaults of the device."""
    network: Callable[[int | None], Any]
    """Returns the causal LM with so many layers, or all, and random weights."""
    lengths: list[int]
    """Tokens of each row, of all its sequences; of a prompt, with the longest completions."""
    example: Callable[[int], Example]
    """Returns the sequences of a row."""
    compute: torch.dtype
    measured: bool
    """Whether lengths come from a tokenizer; else every row has the greatest length."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every row is seen once."""
        return -(-len(self.lengths) // self.config.trainer.examples_per_step)

    @property
    def num_steps(self) -> int:
        """Steps of the run."""
        trainer = self.config.trainer
        return trainer.max_steps or max(1, round((trainer.num_epochs or 0) * self.steps_per_epoch))

    @property
    def tokens_per_step(self) -> float:
        """Mean number of tokens of a step, over all ranks."""
        rows = min(self.config.trainer.examples_per_step, len(self.lengths))
        return sum(self.lengths) / len(self.lengths) * rows

    def share(self, step: int, shares: int, number: int = 0) -> Batch:
        """Return one of the shares of a step's rows."""
        trainer = self.config.trainer
        order = EpochOrder(len(self.lengths), trainer.examples_per_step, trainer.seed)
        mine = order.indices(step)[number::shares]
        return pack(sequences_of([self.example(i) for i in mine]))

    def fullest_share(self, shares: int, steps: int) -> int:
        """Return the number of the share with the most tokens in a micro-batch of the first steps.

        Shares without rows in a step do not count."""
        trainer, algorithm = self.config.trainer, self.config.algorithm
        most = dict.fromkeys(range(min(shares, trainer.examples_per_step)), 0)
        for number in most:
            for step in range(steps):
                batch = self.share(step, shares, number)
                parts = batch.split(trainer.token_budget, algorithm.group_size)
                tokens = [len(share_prompts(part).input_ids) for part in parts]
                most[number] = max(most[number], *tokens, 0)
        return max(most, key=lambda number: most[number])

    def fullest(self, shares: int) -> tuple[Batch, float]:
        """Return the micro-batch with the most tokens, behind the one before it, and a number.

        The number is the mean of the micro-batches that a share has in a step."""
        trainer, algorithm = self.config.trainer, self.config.algorithm
        found: list[tuple[int, Batch]] = []
        seen = counted = steps = 0
        while seen < LOOKED_AT and steps < self.num_steps:
            batch = self.share(steps, shares)
            parts = batch.split(trainer.token_budget, algorithm.group_size)
            tokens = [len(share_prompts(part).input_ids) for part in parts]
            # gradients are there from the second micro-batch on
            place = max(range(len(parts)), key=lambda i: (tokens[i], i))
            around = parts[max(0, place - 1) : place + 1]
            sequences = sum(part.num_sequences for part in parts[: max(0, place - 1)])
            chosen = range(sequences, sequences + sum(part.num_sequences for part in around))
            found.append((tokens[place] + (place > 0), batch.select(chosen)))
            seen, counted, steps = seen + batch.num_sequences, counted + len(parts), steps + 1
        return max(found, key=lambda pair: pair[0])[1], counted / steps


def without_numbers(section: ModelConfig) -> ModelConfig:
    """Return the section with an adapter's layers by their kind, for a network of fewer layers.

    Folders of adapters may name each layer by itself."""
    named = getattr(section.adapter, "target_modules", None)
    if not isinstance(named, list):
        return section
    kinds = sorted({name.rpartition(".")[2] for name in named})
    adapter = section.adapter.model_copy(update={"target_modules": kinds})
    return section.model_copy(update={"adapter": adapter})


def ask(config: Config, device: str) -> Asked:
    """Return what a recipe asks for on ranks with a `device`, cpu or cuda.

    Reads the data and the tokenizer that the recipe names, and of the model config.json alone.
    """
    mixture, _ = split_off(config, load_mixture(config))
    config = with_label_set(config, mixture)
    budget = config.trainer.micro_batch_tokens or DEFAULT_MICRO_BATCH_TOKENS[device]
    trainer = config.trainer.model_copy(update={"micro_batch_tokens": budget})
    name = start_model(config)
    update = {"trainer": trainer, "model": without_numbers(with_adapter(config.model, name))}
    config = config.model_copy(update=update)
    limit = length_limit(config, name)
    measured = name is None or not Path(name).is_dir() or has_tokenizer(name)
    tokenizer = None
    if measured:
        tokenizer, _ = build_tokenizer(config, mixture)
        renderer = build_renderer(config, tokenizer, name)
        data = prepare_data(config, mixture, [], renderer, limit)
        rows: list[Any] = data.prompts if config.algorithm.online else data.examples
    else:
        row = longest_row(config, limit)
        rows = [row] * sum(len(part) for _, part in mixture)

    def example(place: int) -> Example:
        return group(config, rows[place], place) if config.algorithm.online else rows[place]

    section, seed = config.model, trainer.seed
    return Asked(
        config,
        lambda layers: random_network(section, name, tokenizer, layers, seed),
        [length_of(config, row) for row in rows],
        example,
        compute_dtype(section.dtype, device),
        measured,
    )


def random_network(
    section: ModelConfig, name: str | None, tokenizer: Any, layers: int | None, seed: int
) -> Any:
    """Return a causal LM by its config alone, with so many of its first layers."""
    if name is None:
        scratch = section.scratch
        assert scratch is not None
        if layers is not None:
            scratch = scratch.model_copy(update={"num_layers": layers})
        return create_from_scratch(scratch, tokenizer, seed)
    from transformers import AutoModelForCausalLM

    shape = read_config(name)
    if layers is not None:
        shape.num_hidden_layers = layers
        if getattr(shape, "layer_types", None) is not None:
            shape.layer_types = shape.layer_types[:layers]
    return AutoModelForCausalLM.from_config(shape, dtype=torch.float32)


def group(config: Config, prompt: Prompt, place: int) -> Example:
    """Return a prompt's completions, as long as they can become, with rewards that differ."""
    rollout = config.rollout
    assert rollout is not None
    new = rollout.max_new_tokens
    one = Rollout(list(prompt.input_ids), [0] * new, [0.0] * new, "stop", 0)
    return tuple(to_sequence(one, float(k % 2), place, k, new) for k in range(rollout.group_size))


def length_of(config: Config, row: Any) -> int:
    """Return the tokens of a row: of a prompt, those of its group, the prompt each time."""
    if isinstance(row, Prompt):
        assert config.rollout is not None
        return config.rollout.group_size * (len(row.input_ids) + config.rollout.max_new_tokens)
    return sum(map(len, row))


def longest_row(config: Config, limit: int) -> Any:
    """Return a row of the greatest length for the method, for a model without a tokenizer."""
    if config.algorithm.online:
        return Prompt([0] * limit, {})
    ids, prompt = torch.zeros(limit, dtype=torch.int64), limit // PROMPT_SHARE
    mask = torch.arange(limit) >= (1 if config.algorithm.rows == "text" else prompt)
    names = {"completion": mask.float()} if config.algorithm.rows == "pair" else {}
    return (Sequence(ids, mask, names),) * config.algorithm.group_size


def compute_dtype(name: str, device: str) -> torch.dtype:
    """Return the compute dtype; of a GPU that is not there, bfloat16 (compute capability 8.0)."""
    if device == "cuda" and name == "auto":
        return torch.bfloat16
    return choose_dtype(name, torch.device("cpu"))
