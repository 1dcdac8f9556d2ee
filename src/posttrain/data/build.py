"""A config's data sections to what a run trains on: tokenizer, renderer, sequences, prompts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from posttrain.batch import Example, sequences_of
from posttrain.config import Config, DataConfig
from posttrain.data.labelled import to_labelled, with_labels
from posttrain.data.load import Row, draw, load_rows, mix, numbered
from posttrain.data.preferences import to_judged, to_pairs
from posttrain.data.prepare import LengthTable, Prompt, check_rows, to_prompts, to_sequences
from posttrain.data.render import Renderer, make_renderer
from posttrain.data.steps import to_steps
from posttrain.models import load_tokenizer, model_not_found, resolve_model_path
from posttrain.reward_head import saved_labels
from posttrain.tokenizer import train_tokenizer


@dataclass
class Data:
    """What a run trains on and is evaluated on."""

    examples: list[Example]  # offline methods
    prompts: list[Prompt]  # online methods
    eval_examples: list[Example]
    eval_prompts: list[Prompt]
    tables: list[LengthTable]

    def hash(self) -> str:
        digest = hashlib.sha256()
        for sequence in sequences_of(self.examples):
            digest.update(sequence.input_ids.numpy().tobytes())
            digest.update(sequence.loss_mask.numpy().tobytes())
            if "label" in sequence.per_token:
                digest.update(sequence.per_token["label"].numpy().tobytes())
            if sequence.per_seq:
                digest.update(repr(sequence.per_seq).encode())
        for prompt in self.prompts:
            row = json.dumps(prompt.row, sort_keys=True, default=str)
            digest.update(f"{prompt.input_ids}{row}".encode())
        return digest.hexdigest()


def build_tokenizer(
    config: Config, mixture: list[tuple[DataConfig, list[Row]]]
) -> tuple[Any, str | None]:
    """The tokenizer, and the resolved model name (None from random weights)."""
    if config.model.scratch is not None:
        scratch = config.model.scratch
        texts = [text for _, rows in mixture for row in rows for text in texts_of(row)]
        return train_tokenizer(texts, scratch.vocab_size, scratch.max_length), None
    name = start_model(config)
    assert name is not None
    return load_tokenizer(name), name


def start_model(config: Config) -> str | None:
    """The folder or hub name that the run starts from; None from random weights."""
    return None if config.model.name is None else resolve_model_path(config.model.name)


TEXT_COLUMNS = (
    "text", "prompt", "completion", "messages", "chosen", "rejected", "conversations",
    "instruction", "input", "completions",
)  # fmt: skip


def texts_of(row: Row) -> list[str]:
    """The texts of a row to train a tokenizer on; malformed ones are the renderer's to report."""
    return [text for column in TEXT_COLUMNS for text in texts_in(row.get(column))]


def texts_in(value: Any) -> list[str]:
    """Of a text, a message, or a list of either."""
    if isinstance(value, list):
        return [text for part in value for text in texts_in(part)]
    if isinstance(value, dict):
        return texts_in(value.get("content", value.get("value")))
    return [value] if isinstance(value, str) else []


def length_limit(config: Config, name: str | None) -> int:
    """length.max_length, or what the model can take; never more than that."""
    if name is None:
        assert config.model.scratch is not None
        most = config.model.scratch.max_length
    else:
        most = max_positions(name)
    wanted = config.length.max_length or most
    if wanted > most:
        raise ValueError(
            f"length.max_length is {wanted}, but the model takes {most} tokens at most"
        )
    if config.rollout is not None:
        wanted = min(wanted, most - config.rollout.max_new_tokens)
        if wanted < 1:
            raise ValueError(
                f"rollout.max_new_tokens={config.rollout.max_new_tokens} leaves no room for a "
                f"prompt: the model takes {most} tokens at most"
            )
    return wanted


def max_positions(name: str) -> int:
    from transformers import AutoConfig

    folder = Path(name)
    if (folder / "adapter_config.json").is_file():
        name = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    try:
        config = AutoConfig.from_pretrained(name)
    except OSError as error:
        raise ValueError(model_not_found(name)) from error
    return int(getattr(config, "max_position_embeddings", 2**31))


def check_mixture(config: Config, mixture: list[tuple[DataConfig, list[Row]]]) -> Config:
    """Checks the rows as far as that needs no tokenizer. Returns the config of a classification
    with its labels and their weights; any other as it is."""
    for section, part in mixture:
        check_rows(part, config.algorithm.rows, label(section))
    if config.algorithm.rows != "labelled":
        return config
    rows = (pair for section, part in mixture for pair in numbered(part, label(section)))
    name = start_model(config)
    known = None if name is None else saved_labels(Path(name))
    return config.model_copy(update={"trainer": with_labels(config.trainer, rows, known)})


def build_renderer(config: Config, tokenizer: Any, name: str | None) -> Renderer:
    sections = {(s.template, s.system_prompt) for s in config.mixture}
    if len(sections) > 1:
        raise ValueError("all parts of a mixture need the same template and system_prompt")
    template, system_prompt = sections.pop()
    return make_renderer(tokenizer, template, system_prompt, generation_stops(name))


def generation_stops(name: str | None) -> list[int]:
    """Stop tokens that the generation config of a pre-trained model names, in a folder or on the
    hub; of an adapter without one, that of its base model."""
    if name is None:
        return []
    folder = Path(name)
    file, adapter = folder / "generation_config.json", folder / "adapter_config.json"
    if file.is_file():
        stops = json.loads(file.read_text()).get("eos_token_id")
    elif adapter.is_file():
        return generation_stops(json.loads(adapter.read_text())["base_model_name_or_path"])
    elif folder.is_dir():
        return []
    else:
        from transformers import GenerationConfig

        try:
            stops = GenerationConfig.from_pretrained(name).eos_token_id
        except OSError:  # it has none
            return []
    return stops if isinstance(stops, list) else [] if stops is None else [stops]


def prepare_data(
    config: Config, mixture: list[tuple[DataConfig, list[Row]]], renderer: Renderer, limit: int
) -> Data:
    policy, algorithm, trainer = config.length.on_overlong, config.algorithm, config.trainer
    kind = algorithm.rows
    tables: list[LengthTable] = []

    def convert(rows: list[Row], kind: str, name: str) -> list[Any]:
        items: list[Any]
        given = (rows, renderer, name, limit, policy)
        if kind == "prompt":
            items, table = to_prompts(*given)
        elif kind == "pair":
            items, table = to_pairs(
                *given, algorithm.train_prompt(trainer), algorithm.scores(trainer)
            )
        elif kind == "unpaired":
            items, table = to_judged(*given, algorithm.compares_prompts(trainer))
        elif kind == "steps":
            separator = algorithm.step_separator(trainer)
            assert separator is not None
            items, table = to_steps(*given, separator)
        elif kind == "labelled":
            items, table = to_labelled(*given, trainer)
        else:
            sequences, table = to_sequences(rows, kind, renderer, name, limit, policy)
            items = [(sequence,) for sequence in sequences]
        tables.append(table)
        return items

    parts = [(convert(rows, kind, label(section)), section.weight) for section, rows in mixture]
    items = mix(parts, trainer.seed)
    data = Data([], [], [], [], tables)
    if kind == "prompt":
        data.prompts = items
    else:
        data.examples = items
    if config.eval is not None and (config.eval.data is not None or not config.eval.tasks):
        rows = eval_rows(config)
        try:
            if kind != "prompt":
                data.eval_examples = convert(rows, kind, "evaluation")
            if config.eval.generate or kind == "prompt":
                data.eval_prompts = convert(rows, "prompt", "evaluation prompts")
        except ValueError as error:
            raise ValueError(f"{', '.join(map(label, eval_sections(config)))}: {error}") from None
    return data


def eval_sections(config: Config) -> list[DataConfig]:
    assert config.eval is not None
    sections = config.eval.data
    if sections is None:
        return [s.model_copy(update={"split": "test"}) for s in config.mixture]
    return [sections] if isinstance(sections, DataConfig) else sections


def eval_rows(config: Config) -> list[Row]:
    """Rows of each section, so many that together they are eval.max_samples."""
    assert config.eval is not None
    sections = eval_sections(config)
    for section in sections:
        file = _one_file(section)
        trained = [s.split for s in config.mixture if _one_file(s) == file]
        if file is not None and trained and section.split not in trained:
            raise ValueError(
                f"eval: {section.path} is the file that is trained on: give eval.data.path another "
                "file, or data.path a folder with train.* and test.*"
            )
    parts = [load_rows(section) for section in sections]
    total = sum(map(len, parts))
    most = min(config.eval.max_samples or total, total)
    ends = [round(most * sum(map(len, parts[:i])) / total) for i in range(len(parts) + 1)]
    shares = (b - a for a, b in pairwise(ends))
    return [row for part, n in zip(parts, shares) if n for row in draw(part, n)]


def other_prompts(config: Config) -> list[str]:
    """Notes where the evaluation asks otherwise than the training rows do."""
    trained = {section.prompt_template for section in config.mixture}
    if config.eval is None:
        return []
    sections = [] if config.eval.tasks and config.eval.data is None else eval_sections(config)
    asked: dict[str, str | None] = {label(s): s.prompt_template for s in sections}
    asked |= dict.fromkeys(config.eval.tasks, None)
    names = [name for name, template in asked.items() if template not in trained]
    if not names:
        return []
    return [
        f"note: {', '.join(names)}: asked with another prompt template than is trained with "
        f"({', '.join(sorted(t or 'none' for t in trained))})"
    ]


def _one_file(section: DataConfig) -> Path | None:
    """The file whose rows a section has in every split."""
    path = None if section.name or section.path is None else Path(section.path).resolve()
    return path if path is not None and path.is_file() else None


def label(section: DataConfig) -> str:
    return f"{section.name or section.path} ({section.split})"


def table_lines(tables: list[LengthTable]) -> list[str]:
    lines = [
        f"{'data':<32}{'rows':>9}{'kept':>9}{'dropped':>9}{'cut':>7}{'p50':>7}{'p95':>7}{'max':>8}"
        f"{'trained tokens':>16}"
    ]
    for t in tables:
        lines.append(
            f"{t.name[-31:]:<32}{t.rows:>9,}{t.kept:>9,}{t.dropped:>9,}{t.truncated:>7,}"
            f"{t.length_p50:>7,}{t.length_p95:>7,}{t.length_max:>8,}{t.trained_tokens:>16,}"
        )
        if t.reasons:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in t.reasons.items())
            lines.append(f"  dropped of {t.name[-31:]}: {reasons}")
    return lines
