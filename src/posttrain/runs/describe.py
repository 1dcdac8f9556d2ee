"""What is printed before a run: its size and length, and what a user might not expect of it."""

from __future__ import annotations

import torch

from posttrain.common import distributed
from posttrain.common.batch import Example
from posttrain.common.mesh import current, num_shares
from posttrain.data.kinds.prompt import Prompt
from posttrain.data.origin import downloaded
from posttrain.model.adapters.base import AdapterConfig
from posttrain.model.config import HEAD_PREFIXES
from posttrain.model.gguf.cache import origin
from posttrain.model.kernels.quantized import num_parameters
from posttrain.model.quantized import describe_quantised
from posttrain.model.vocabulary import size_notes
from posttrain.rewards.checks import Checked
from posttrain.runs.config import Config
from posttrain.runs.data import Data, eval_label, eval_sections, table_lines
from posttrain.runs.hardware import hardware
from posttrain.runs.network import network_notes
from posttrain.runs.plan import Plan


def describe(plan: Plan) -> str:
    """Return a few lines about the run, to print before it starts."""
    policy = plan.models.policy
    total = num_parameters(policy)
    trainable = sum(p.numel() for p in plan.models.trainable().values())
    parameter = next(policy.parameters())
    compute, save = policy.autocast or torch.float32, plan.config.trainer.save_steps
    model = plan.base_model and (origin(plan.base_model) or plan.base_model)
    lines = [
        f"{plan.config.trainer.type}: {model or 'random weights'}, {total:,} parameters, "
        f"{trainable:,} trained (fp32), compute {str(compute).removeprefix('torch.')} on "
        f"{parameter.device.type}, {ranks_line()}",
        *adapter_line(plan),
        *hardware(plan.config.model, policy),
        *describe_quantised(policy),
        *reading_line(plan),
        f"{plan.num_steps:,} steps of {plan.config.trainer.examples_per_step} examples, "
        f"{plan.steps_per_epoch:,} steps per epoch, a checkpoint "
        + (f"every {save:,}" if save and save < plan.num_steps else "after the last"),
    ]
    if isinstance(plan.reward, Checked) and plan.config.reward is not None:
        facts = ", ".join(f"{name} {fact}" for name, fact in plan.reward.about().items())
        lines.append(f"reward {plan.config.reward.type}: {facts}")
    lines += [*table_lines(plan.data.tables), *notes(plan.config, plan.data)]
    lines += size_notes(policy.causal_lm(), plan.models.tokenizer)
    lines += network_notes(policy, plan.config)
    return "\n".join(lines)


def reading_line(plan: Plan) -> list[str]:
    """Return a line if a rank needed memory for the whole model before it was sharded, and why.

    It comes with the others, after all that may be refused."""
    if plan.models.read_whole is None:
        return []
    return [f"every rank has read the whole model before it is sharded: {plan.models.read_whole}"]


def ranks_line() -> str:
    """Return the number of ranks, and how they split models and rows."""
    shares, mesh = num_shares(), current()
    ranks = f"{distributed.num_ranks()} rank(s)"
    if mesh.per_share == 1:
        return ranks
    parts = ((mesh.sequence, "parts of the rows"), (mesh.tensor, "parts of the matrices"))
    said = " x ".join(f"{n} {what}" for n, what in parts if n > 1)
    return f"{ranks}: {shares} share(s) of the data x {said}"


def adapter_line(plan: Plan) -> list[str]:
    """Return a line on what is trained: the adapter with its settings and its share, or all."""
    section = plan.config.model.adapter
    trainable = plan.models.trainable()
    heads = sum(p.numel() for n, p in trainable.items() if n.startswith(HEAD_PREFIXES))
    if section.type == "none":
        return [] if plan.base_model is None else ["adapter: none, all weights are trained"]
    count = sum(p.numel() for p in trainable.values()) - heads
    base = num_parameters(plan.models.policy.causal_lm()) - count
    share = f"{100 * count / base:.3g} % of the model's {base:,}"
    beside = f", beside a head of {heads:,}" if heads else ""
    return [f"adapter: {section.type}{_settings(section)}, {count:,} parameters, {share}{beside}"]


def _settings(section: AdapterConfig) -> str:
    """Return an adapter's settings that are not the default, and its rank."""
    fields = type(section).model_fields
    usual = {key: info.get_default(call_default_factory=True) for key, info in fields.items()}
    text = ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in dict(section).items()
        if key in ("r", "rank") or (key != "type" and value != usual.get(key))
    )
    return f" ({text})" if text else ""


def notes(config: Config, data: Data) -> list[str]:
    """Return all notes about a run."""
    return [
        *local_copies(config),
        *other_prompts(config),
        *written_date(config),
        *trained_on(config, data),
    ]


def written_date(config: Config) -> list[str]:
    """Return a note if the chat template writes a date."""
    date = config.mixture[0].date
    if date is None:
        return []
    return [f"note: the chat template writes a date, which this run keeps: data.date: {date}"]


def local_copies(config: Config) -> list[str]:
    """Return a note for each named data set that is read from where it was downloaded to."""
    parts = [*config.mixture, *(eval_sections(config) if config.eval is not None else ())]
    names = dict.fromkeys(part.name for part in parts if part.name and part.path is None)
    folders = [(name, downloaded(name)) for name in names]
    return [f"note: {name} is read from {folder}" for name, folder in folders if folder]


def other_prompts(config: Config) -> list[str]:
    """Return a note if the evaluation uses a prompt template that no training row has."""
    trained = {section.prompt_template for section in config.mixture}
    if config.eval is None:
        return []
    separate = config.eval.has_rows and config.eval.held_out is None
    evaluated: dict[str, str | None] = {
        s.label: s.prompt_template for s in (eval_sections(config) if separate else ())
    }
    evaluated |= dict.fromkeys(config.eval.tasks, None)
    names = [name for name, template in evaluated.items() if template not in trained]
    if not names:
        return []
    return [
        f"note: {', '.join(names)}: evaluated with another prompt template than the training rows "
        f"({', '.join(sorted(t or 'none' for t in trained))})"
    ]


def trained_on(config: Config, data: Data) -> list[str]:
    """Return a note if rows of the evaluation are also trained on, token for token."""
    if data.eval_examples:
        trained = {_key(example) for example in data.examples}
        shared, total = sum(_key(x) in trained for x in data.eval_examples), len(data.eval_examples)
    else:
        trained = {_key(prompt) for prompt in data.prompts}
        shared, total = sum(_key(x) in trained for x in data.eval_prompts), len(data.eval_prompts)
    if not shared:
        return []
    return [
        f"note: {shared:,} of the {total:,} evaluation rows ({eval_label(config)}) are also "
        "trained on: they do not show how the model does on new ones"
    ]


def _key(row: Example | Prompt) -> int:
    """Return a hash of the tokens of a prompt or of all sequences of an example."""
    if isinstance(row, Prompt):
        return hash(tuple(row.input_ids))
    return hash(tuple(s.input_ids.numpy().tobytes() for s in row))
