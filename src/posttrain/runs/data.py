"""From the data sections to what a run trains on: tokenizer, renderer, examples, prompts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from posttrain.algorithms.classification import ClassificationConfig, with_labels
from posttrain.common.batch import Example, sequences_of
from posttrain.common.errors import SettingError
from posttrain.common.registry import look_up
from posttrain.data.config import DataConfig, sections
from posttrain.data.formats import splits_in
from posttrain.data.holdout import hold_out
from posttrain.data.kinds import KINDS
from posttrain.data.kinds.kind import Kind
from posttrain.data.kinds.prompt import Prompt
from posttrain.data.lengths import LengthTable
from posttrain.data.load import load_rows
from posttrain.data.noted import lines as note_lines
from posttrain.data.render import Renderer, make_renderer
from posttrain.data.rows import Row, draw, mix, numbered
from posttrain.data.texts import texts_of
from posttrain.model.folder import generation_stops, resolve_model_path, saved_labels
from posttrain.model.load import load_tokenizer
from posttrain.model.scratch import train_tokenizer
from posttrain.model.suited import max_positions
from posttrain.runs.config import Config

Parts = list[tuple[DataConfig, list[Row]]]
"""The sections of a mixture, each with its rows."""


@dataclass
class Data:
    """What a run trains on and is evaluated on."""

    examples: list[Example] = field(default_factory=list)  # offline methods
    prompts: list[Prompt] = field(default_factory=list)  # online methods
    eval_examples: list[Example] = field(default_factory=list)
    eval_prompts: list[Prompt] = field(default_factory=list)
    tables: list[LengthTable] = field(default_factory=list)

    def hash(self) -> str:
        """Return a hash of everything that is trained on."""
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


def build_tokenizer(config: Config, mixture: Parts) -> tuple[Any, str | None]:
    """Return the tokenizer and the resolved model name; the name is None for random weights."""
    if config.model.scratch is not None:
        scratch = config.model.scratch
        texts = [text for _, rows in mixture for row in rows for text in texts_of(row)]
        return train_tokenizer(texts, scratch.vocab_size, scratch.max_length), None
    name = start_model(config)
    assert name is not None
    return load_tokenizer(name), name


def start_model(config: Config) -> str | None:
    """Return the folder or hub name that the run starts from; None for random weights."""
    return None if config.model.name is None else resolve_model_path(config.model.name)


def length_limit(config: Config, name: str | None) -> int:
    """Return the maximum length of a row, or of a prompt with room left for its completion."""
    if name is None:
        assert config.model.scratch is not None
        most = config.model.scratch.max_length
    else:
        most = max_positions(name)
    limit = config.length.max_length or most
    if limit > most:
        raise ValueError(f"length.max_length is {limit}, but the model takes at most {most} tokens")
    if config.rollout is not None:
        limit = min(limit, most - config.rollout.max_new_tokens)
        if limit < 1:
            raise ValueError(
                f"rollout.max_new_tokens={config.rollout.max_new_tokens} leaves no room for a "
                f"prompt: the model takes at most {most} tokens"
            )
    return limit


def load_mixture(config: Config) -> Parts:
    """Return the training rows, checked as far as possible without a tokenizer.

    A tokenizer takes seconds to load.
    """
    mixture = [(section, load_rows(section)) for section in config.mixture]
    for section, rows in mixture:
        kind_of(config).check(rows, section.label)
    return mixture


def with_label_set(config: Config, mixture: Parts) -> Config:
    """Return the config of a classification with its labels and their weights; others unchanged."""
    if not isinstance(config.trainer, ClassificationConfig):
        return config
    rows_of_all = (pair for section, rows in mixture for pair in numbered(rows, section.label))
    name = start_model(config)
    known = None if name is None else saved_labels(Path(name))
    trainer = with_labels(config.trainer, rows_of_all, known)
    return config.model_copy(update={"trainer": trainer})


def kind_of(config: Config) -> Kind:
    """Return the kind of row that the method trains on."""
    return kind_named(config.algorithm.rows)


def kind_named(name: str) -> Kind:
    """Return the entry of KINDS by its name."""
    kind: Kind = look_up(KINDS, name, f"no kind of row {name!r}")
    return kind


def build_renderer(config: Config, tokenizer: Any, name: str | None) -> Renderer:
    """Return the renderer that all parts of the mixture share."""
    keys = ("template", "system_prompt", "date", "turns", "train_empty_turns")
    first, *others = config.mixture
    for key in keys:
        if any(getattr(section, key) != getattr(first, key) for section in others):
            raise ValueError(f"all parts of a mixture need the same data.{key}")
    for key in ("turns", "train_empty_turns"):
        if getattr(first, key) and config.algorithm.rows != "completion":
            raise ValueError(f"data.{key}: {config.trainer.type} does not read it: remove it")
    stops, empty = generation_stops(name), first.train_empty_turns
    return make_renderer(
        tokenizer, first.template, first.system_prompt, stops, first.date, first.turns, empty
    )


def prepare_data(
    config: Config, mixture: Parts, eval_rows: list[Row], renderer: Renderer, limit: int
) -> Data:
    """Return the rendered rows of the mixture and of the evaluation, with their length tables.

    Raises ValueError that names the section and the number of a malformed row.
    """
    on_overlong, method, kind = config.length.on_overlong, config.algorithm, kind_of(config)
    data = Data()

    def convert(kind: Kind, rows: list[Row], name: str, **options: Any) -> list[Any]:
        examples, table = kind.to_examples(rows, renderer, name, limit, on_overlong, **options)
        data.tables.append(table)
        return examples

    options = config.trainer.row_options
    parts = [
        (convert(kind, rows, section.label, **options), section.weight) for section, rows in mixture
    ]
    items = mix(parts, config.trainer.seed)
    if method.online:
        data.prompts = items
    else:
        data.examples = items
    if config.eval is not None and eval_rows:
        try:
            if not method.online:
                data.eval_examples = convert(kind, eval_rows, "evaluation", **options)
            if config.eval.generate or method.online:
                data.eval_prompts = convert(kind_named("prompt"), eval_rows, "evaluation prompts")
        except ValueError as error:
            raise ValueError(f"{eval_label(config)}: {error}") from None
    return data


def split_off(config: Config, mixture: Parts) -> tuple[Parts, list[Row]]:
    """Return the rows to train on and the rows to evaluate on.

    If `eval.split` is a share, evaluation rows are held out of the training rows. Otherwise they
    come from `eval.data`, or from the split `eval.split` of the training data's own source. There
    are none if there is no eval section or it has only tasks. Sections share `eval.max_samples`.
    """
    if config.eval is None:
        return mixture, []
    if config.eval.held_out is not None:
        kept, held_out = hold_out(
            [(section.label, rows) for section, rows in mixture],
            config.eval.held_out,
            config.trainer.seed,
            config.eval.split_by,
            kind_of(config).asked,
        )
        mixture = [(section, rows) for (section, _), rows in zip(mixture, kept, strict=True)]
        return mixture, shares(held_out, config.eval.max_samples)
    if not config.eval.has_rows:
        return mixture, []
    parts = []
    for section in eval_sections(config):
        check_apart(section, config.mixture)
        try:
            parts.append(load_rows(section))
        except SettingError as error:  # it names a key of `data`; this section is `eval.data`
            raise error.renamed(f"eval.{error.field}") from None
        except ValueError as error:
            if config.eval.data is not None:
                raise
            raise ValueError(
                f"{error}; the eval section reads the split {section.split!r} of the training "
                "data's own source: set eval.split to another name, or to a share such as 0.05 to "
                "hold rows out"
            ) from None
    return mixture, shares(parts, config.eval.max_samples)


def shares(parts: list[list[Row]], most: int | None) -> list[Row]:
    """Return at most `most` rows in all, drawn from the parts in proportion to their sizes."""
    total = sum(map(len, parts))
    most = min(most or total, total)
    ends = [round(most * sum(map(len, parts[:i])) / total) for i in range(len(parts) + 1)]
    return [
        row for part, (a, b) in zip(parts, pairwise(ends)) if b > a for row in draw(part, b - a)
    ]


def eval_sections(config: Config) -> list[DataConfig]:
    """Return the sections that the evaluation rows come from."""
    assert config.eval is not None
    if config.eval.data is None:
        split = config.eval.split or "test"
        return [s.model_copy(update={"split": split}) for s in config.mixture]
    return sections(config.eval.data)


def eval_label(config: Config) -> str:
    """Return the name of the evaluation rows in messages."""
    assert config.eval is not None
    if config.eval.held_out is not None:
        return "eval.split"
    return ", ".join(section.label for section in eval_sections(config))


def check_apart(section: DataConfig, mixture: list[DataConfig]) -> None:
    """Raise ValueError if another split would be read from the single file that is trained on."""
    file = _one_file(section)
    trained = [s.split for s in mixture if _one_file(s) == file]
    if file is not None and trained and section.split not in trained:
        raise ValueError(
            f"eval: {section.path} is the file that is trained on: set eval.split to hold out a "
            "share of its rows, set eval.data.path to another file, or set data.path to a folder "
            "with train.* and test.*"
        )


def _one_file(section: DataConfig) -> Path | None:
    """Return the file that a section reads for every split; None if it reads no single file."""
    if section.name or not isinstance(section.path, str):
        return None
    path = Path(section.path).resolve()
    return path if path.is_file() and not splits_in(path) else None


def table_lines(tables: list[LengthTable]) -> list[str]:
    """Return the length tables as lines to print."""
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
        lines += note_lines(t.name[-31:], t.read, t.notes, t.rows)
    return lines
