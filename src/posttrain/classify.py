"""`posttrain classify`: the labels that a trained classifier gives to texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.algorithms.classification import ClassificationConfig, add_scores, confusion
from posttrain.batch import Sequence, pack
from posttrain.config import ModelConfig
from posttrain.data.build import generation_stops, max_positions
from posttrain.data.labelled import asked, check_known, labels_of
from posttrain.data.load import Row, numbered, read_path
from posttrain.data.render import make_renderer, trained_with
from posttrain.forward import forward
from posttrain.models import choose_device, load_policy, load_tokenizer, resolve_model_path
from posttrain.reward_head import add_reward_head, saved_labels

MICRO_BATCH_TOKENS = 4096
SCORES = ("accuracy", "f1_macro", "f1_micro")


def classify(
    model: str, texts: list[str], file: Path | None = None, output: Path | None = None
) -> Iterator[str]:
    """Lines to print: for each text its labels, then all with their probabilities; of a file with
    labels also the scores. Texts are rendered as in training, where they were the whole prompt."""
    if bool(texts) == (file is not None):
        raise ValueError("give either texts or --file")
    source = "the command line" if file is None else str(file)
    rows = [{"text": text} for text in texts] if file is None else read_path(str(file), "test")
    if not rows:
        raise ValueError(f"{file}: no rows")
    name = resolve_model_path(model)
    record = saved_labels(Path(name))
    if record is None and not Path(name).exists():
        raise ValueError(f"the folder {name} does not exist")
    if record is None:
        raise ValueError(f"{model} is no classifier: train one with trainer.type: classification")
    config = ClassificationConfig(labels=record["labels"], multi_label=record["multi_label"])
    wanted = known_labels(rows, config, source)
    found = probabilities(name, record, rows, source)
    said = labels_said(found, config)
    for labels, row in zip(said, found.tolist()):
        shown = sorted(zip(row, config.names), reverse=True)
        yield f"{', '.join(labels) or 'none'}  ({', '.join(f'{x} {p:.3f}' for p, x in shown)})"
    template = trained_with(name)[2]
    if file is not None and template is not None:
        yield (
            f"note: trained with data.prompt_template {template!r}, which rows here are not put "
            "into: they must hold the whole prompt"
        )
    if wanted is not None:
        metrics = scores(wanted, said, config)
        yield f"rows {len(rows)}  " + "  ".join(f"{name} {metrics[name]:.4f}" for name in SCORES)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("w") as out:
            for row, labels, each in zip(rows, said, found.tolist()):
                predicted = labels if config.multi_label else labels[0]
                new = {"predicted": predicted, "probabilities": dict(zip(config.names, each))}
                out.write(json.dumps({**row, **new}, default=str) + "\n")


def known_labels(
    rows: list[Row], config: ClassificationConfig, source: str
) -> list[list[str]] | None:
    """Those of the rows; None where the first row has none."""
    if "label" not in rows[0]:
        return None
    labels = []
    for where, row in numbered(rows, source):
        try:
            labels.append(labels_of(row, config.multi_label))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        check_known(labels[-1], config, where)
    return labels


@torch.inference_mode()
def probabilities(name: str, record: dict[str, Any], rows: list[Row], source: str) -> Tensor:
    """[N, K] for the rows and labels. Raises ValueError naming a row that is malformed or longer
    than the model takes."""
    import transformers

    template, system_prompt, _ = trained_with(name)
    tokenizer, stops = load_tokenizer(name), generation_stops(name)
    renderer = make_renderer(tokenizer, template, system_prompt, stops)
    longest = max_positions(name)
    sequences = []
    for where, row in numbered(rows, source):
        try:
            ids = [*renderer.prompt_ids(asked(row)), *record.get("before", [])]
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if len(ids) > longest:
            raise ValueError(f"{where}: {len(ids)} tokens, more than the model's {longest}: cut it")
        tokens = torch.tensor(ids)
        sequences.append(Sequence(tokens, torch.zeros(len(ids), dtype=torch.bool)))
    device = choose_device("auto")
    transformers.logging.set_verbosity_error()  # it would report the head as unexpected
    policy = load_policy(
        ModelConfig(name=name), name, device, seed=0, scores="tokens" not in record
    )
    policy.label_tokens = record.get("tokens")
    if policy.label_tokens is None:
        add_reward_head(policy, name, len(record["labels"]))
    policy.eval()
    logits = []
    for part in pack(sequences).split(MICRO_BATCH_TOKENS):
        found = forward(policy, part.to(device), values=True).logits
        assert found is not None
        logits.append(found.float().cpu())
    joined = torch.cat(logits)
    return joined.sigmoid() if record["multi_label"] else joined.softmax(-1)


def labels_said(found: Tensor, config: ClassificationConfig) -> list[list[str]]:
    """The most probable label, or with several all above 1/2."""
    if config.multi_label:
        return [[x for x, p in zip(config.names, row) if p > 0.5] for row in found.tolist()]
    return [[config.names[k]] for k in found.argmax(1).tolist()]


def scores(
    wanted: list[list[str]], said: list[list[str]], config: ClassificationConfig
) -> dict[str, float]:
    """The metrics of an evaluation in training."""

    def numbers(labels: list[list[str]]) -> Tensor:
        if config.multi_label:
            return torch.tensor([[int(name in row) for name in config.names] for row in labels])
        return torch.tensor([config.names.index(row[0]) for row in labels])

    cells = confusion(numbers(wanted), numbers(said), config)
    metrics = {name: float(cell) / len(wanted) for name, cell in cells.items()}
    right = sum(set(a) == set(b) for a, b in zip(wanted, said))
    add_scores(metrics, config)
    return metrics | {"accuracy": right / len(wanted)}
