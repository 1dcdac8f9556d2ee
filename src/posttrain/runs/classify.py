"""`posttrain classify`: the labels that a trained classifier assigns to texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.algorithms.classification import ClassificationConfig, add_scores, confusion
from posttrain.common.batch import Sequence, pack
from posttrain.common.errors import SettingError
from posttrain.common.files import write_json_lines
from posttrain.data.files import read_path
from posttrain.data.labels import asked, check_known, labels_of
from posttrain.data.render import make_renderer
from posttrain.data.rows import Row, numbered
from posttrain.model.config import ModelConfig
from posttrain.model.device import choose_device
from posttrain.model.folder import (
    generation_stops,
    resolve_model_path,
    saved_labels,
    trained_date,
    trained_with,
)
from posttrain.model.forward import forward
from posttrain.model.heads import add_scoring_head, score_label_tokens
from posttrain.model.load import load_policy, load_tokenizer
from posttrain.model.suited import max_positions

MICRO_BATCH_TOKENS = 4096
SCORES = ("accuracy", "f1_macro", "f1_micro")


def classify(
    model: str, texts: list[str], file: Path | None = None, output: Path | None = None
) -> Iterator[str]:
    """Yield lines to print: the labels of each text, with the probabilities of all labels.

    If the rows of `file` have labels, the last line holds the scores. Texts are rendered like the
    prompts of the training, except that its data.prompt_template is not applied. Each row is also
    written to `output`, as JSON, with its prediction.
    """
    if bool(texts) == (file is not None):
        raise SettingError("file", "give either a file or texts")
    source = "the command line" if file is None else str(file)
    rows = [{"text": text} for text in texts] if file is None else read_path(str(file), "test")
    if not rows:
        raise ValueError(f"{file}: no rows")
    name = resolve_model_path(model)
    record = saved_labels(Path(name))
    if record is None and not Path(name).exists():
        raise ValueError(f"the folder {name} does not exist")
    if record is None:
        raise ValueError(
            f"{model} is not a classifier: train one with trainer.type: classification"
        )
    config = ClassificationConfig(labels=record["labels"], multi_label=record["multi_label"])
    gold = known_labels(rows, config, source)
    probs = probabilities(name, record, rows, source)
    predicted = labels_said(probs, config)
    for labels, row in zip(predicted, probs.tolist()):
        ranked = sorted(zip(row, config.names), reverse=True)
        yield f"{', '.join(labels) or 'none'}  ({', '.join(f'{x} {p:.3f}' for p, x in ranked)})"
    template = trained_with(name)[2]
    if file is not None and template is not None:
        yield (
            f"note: the model was trained with data.prompt_template {template!r}, which is not "
            "applied here: rows must hold the whole prompt"
        )
    if gold is not None:
        metrics = scores(gold, predicted, config)
        yield f"rows {len(rows)}  " + "  ".join(f"{name} {metrics[name]:.4f}" for name in SCORES)
    if output is not None:
        columns = predicted if config.multi_label else [labels[0] for labels in predicted]
        by_label = [dict(zip(config.names, row)) for row in probs.tolist()]
        write_json_lines(
            output,
            (
                {**row, "predicted": labels, "probabilities": named}
                for row, labels, named in zip(rows, columns, by_label)
            ),
        )


def known_labels(
    rows: list[Row], config: ClassificationConfig, source: str
) -> list[list[str]] | None:
    """Return the labels of each row; None if the first row has no label."""
    if "label" not in rows[0]:
        return None
    labels = []
    for where, row in numbered(rows, source):
        try:
            labels.append(labels_of(row, config.multi_label))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        check_known(labels[-1], config.label_set, where)
    return labels


@torch.inference_mode()
def probabilities(name: str, record: dict[str, Any], rows: list[Row], source: str) -> Tensor:
    """Return the probabilities of the labels for each row, [N, K].

    Raises ValueError that names a row that is malformed or longer than the model takes.
    """
    import transformers

    template, system_prompt, _ = trained_with(name)
    tokenizer, stops = load_tokenizer(name), generation_stops(name)
    renderer = make_renderer(tokenizer, template, system_prompt, stops, trained_date(name))
    longest = max_positions(name)
    sequences = []
    for where, row in numbered(rows, source):
        try:
            ids = [*renderer.prompt_ids(asked(row)), *record.get("before", [])]
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if len(ids) > longest:
            raise ValueError(
                f"{where}: {len(ids)} tokens, more than the model's {longest}: shorten it"
            )
        tokens = torch.tensor(ids)
        sequences.append(Sequence(tokens, torch.zeros(len(ids), dtype=torch.bool)))
    device = choose_device("auto")
    transformers.logging.set_verbosity_error()  # it would report the head as unexpected weights
    config = ModelConfig.model_validate({"name": name, "adapter": "none"})
    policy = load_policy(config, name, device, seed=0, scores="tokens" not in record)
    if "tokens" in record:
        score_label_tokens(policy, record["tokens"])
    else:
        add_scoring_head(policy, name, "labels", len(record["labels"]))
    policy.eval()
    logits = []
    for part in pack(sequences).split(MICRO_BATCH_TOKENS):
        part_logits = forward(policy, part.to(device), head=True).logits
        assert part_logits is not None
        logits.append(part_logits.float().cpu())
    joined = torch.cat(logits)
    return joined.sigmoid() if record["multi_label"] else joined.softmax(-1)


def labels_said(probs: Tensor, config: ClassificationConfig) -> list[list[str]]:
    """Return each row's most probable label, or with multi_label all above 1/2."""
    if config.multi_label:
        return [[x for x, p in zip(config.names, row) if p > 0.5] for row in probs.tolist()]
    return [[config.names[k]] for k in probs.argmax(1).tolist()]


def scores(
    gold: list[list[str]], predicted: list[list[str]], config: ClassificationConfig
) -> dict[str, float]:
    """Return the metrics that evaluation during training reports, for these labels."""

    def numbers(labels: list[list[str]]) -> Tensor:
        if config.multi_label:
            return torch.tensor([[int(name in row) for name in config.names] for row in labels])
        return torch.tensor([config.names.index(row[0]) for row in labels])

    cells = confusion(numbers(gold), numbers(predicted), config)
    metrics = {name: float(cell) / len(gold) for name, cell in cells.items()}
    num_correct = sum(set(a) == set(b) for a, b in zip(gold, predicted))
    add_scores(metrics, config)
    return metrics | {"accuracy": num_correct / len(gold)}
