"""`classification`: a text has one of K labels, or each of them or not.

    one label     L = mean over rows of  w_y (logsumexp(z) - z_y)
    multi_label   L = mean over rows of  1/K sum over k of  w_k y_k softplus(-z_k)
                                                            + (1 - y_k) softplus(z_k)

z [K] the logits at the last token of the rendered text (the prompt), either those of a linear head
on its state, or the language model's own for the first token in which the labels differ (as Gao et
al. 2021, arXiv 2012.15723, eq. 1, without a template of their own); w a label's weight, of a
positive row where there are several labels. transformers' sequence classifiers have the same
losses with w = 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from posttrain.algorithms.base import Algorithm, Loss
from posttrain.algorithms.config import TrainerConfig
from posttrain.common.lazy import F, torch
from posttrain.config.base import AlsoCalled
from posttrain.data.labels import LabelSet, asked, check_known, labels_of
from posttrain.model.config import HeadKind

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.common.batch import Batch
    from posttrain.data.rows import Row
    from posttrain.model.forward import Output

CONFUSION = "confusion/"


class ClassificationConfig(TrainerConfig):
    """A text has one of K labels, or each of them or not."""

    type: Literal["classification"] = "classification"
    learning_rate: float = Field(1e-5, ge=0)
    labels: Annotated[
        Annotated[list[str], Field(min_length=2)] | None,
        AlsoCalled(num_labels="trainer.labels, or nothing: they are read from the data"),
    ] = None
    """In their order; by default those of the model that the run starts from, or else the labels
    of the training rows in the order of the alphabet."""
    multi_label: Annotated[bool, AlsoCalled("problem_type")] = False
    """A row's `label` is a list of any number of labels."""
    mode: Literal["head", "label_tokens"] = "head"
    """head: a linear layer on the last state. label_tokens: the language model's logits for the
    first tokens in which the labels differ."""
    label_words: dict[str, str] = Field(default_factory=dict)
    """Of label_tokens: the text that stands for a label, where it is not the label."""
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    """A weight for each label. balanced: of n rows, n / (K n_k) for a label of n_k; with
    multi_label, rows without the label by rows with it."""

    @model_validator(mode="after")
    def _fits(self) -> ClassificationConfig:
        labels = self.labels
        if labels is not None and len(set(labels)) < len(labels):
            raise ValueError(f"trainer.labels: a label stands there twice: {', '.join(labels)}")
        if self.label_words and self.mode != "label_tokens":
            raise ValueError("trainer.label_words goes with trainer.mode: label_tokens")
        for name, given in (("label_words", self.label_words), ("class_weights", self.weights)):
            unknown = [label for label in given if labels is not None and label not in labels]
            if unknown:
                raise ValueError(f"trainer.{name}: {unknown[0]!r} is none of the labels")
        if any(weight < 0 for weight in self.weights.values()):
            raise ValueError("trainer.class_weights: no weight may be below 0")
        return self

    @property
    def weights(self) -> dict[str, float]:
        return self.class_weights if isinstance(self.class_weights, dict) else {}

    @property
    def names(self) -> list[str]:
        assert self.labels is not None, "with_labels() was not called"
        return self.labels

    @property
    def label_set(self) -> LabelSet:
        return LabelSet(self.names, self.multi_label, self.mode == "label_tokens", self.label_words)

    @property
    def head(self) -> HeadKind:
        return "labels" if self.mode == "head" else "label_tokens"

    @property
    def row_options(self) -> dict[str, Any]:
        return {"labels": self.label_set}


def with_labels(
    config: ClassificationConfig, rows: Iterable[tuple[str, Row]], known: dict[str, Any] | None
) -> ClassificationConfig:
    """The config with the labels of the run and a weight for each, where it has none of its own.

    `rows` come with the words that an error about them begins with; `known` is what the start
    model's folder says (`reward_head.saved_labels`). Raises ValueError for rows without labels,
    fewer than two labels, or others than the start model's.
    """
    found: list[list[str]] = []
    places: list[str] = []
    for where, row in rows:
        try:
            asked(row)
            found.append(labels_of(row, config.multi_label))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        places.append(where)
    labels = (
        config.labels or (known or {}).get("labels") or sorted({x for row in found for x in row})
    )
    if len(labels) < 2:
        raise ValueError(f"data: {len(labels)} label(s) in {len(found)} rows; two are the least")
    if known is not None and known["labels"] != labels:
        raise ValueError(
            f"model.name: the model has the labels {', '.join(known['labels'])}, this run "
            f"{', '.join(labels)}: give trainer.labels in the model's order, or start from a model "
            "without labels"
        )
    if known is not None and known["multi_label"] != config.multi_label:
        raise ValueError(
            f"model.name: the model was trained with trainer.multi_label={known['multi_label']}"
        )
    config = type(config).model_validate(config.model_dump() | {"labels": list(labels)})
    for where, given in zip(places, found):
        check_known(given, config.label_set, where)
    if config.class_weights != "balanced":
        return config
    numbers = [[labels.index(label) for label in row] for row in found]
    return config.model_copy(update={"class_weights": balanced(numbers, config)})


def targets(batch: Batch, config: ClassificationConfig) -> Tensor:
    """[N] the number of each row's label, or [N, K] 1 where it has the label."""
    if not config.multi_label:
        return batch.per_seq["label"].long()
    return torch.stack([batch.per_seq[f"label/{k}"] for k in range(len(config.names))], dim=1)


def cross_entropy(out: Output, batch: Batch, config: ClassificationConfig) -> Loss:
    logits = out.logits
    assert logits is not None
    wanted = targets(batch, config)
    weights = logits.new_tensor([config.weights.get(name, 1.0) for name in config.names])
    if config.multi_label:
        entries = F.binary_cross_entropy_with_logits(
            logits, wanted.to(logits.dtype), reduction="none", pos_weight=weights
        )
        found = (logits.detach() > 0).long()
        right = (found == wanted.long()).all(1)
        loss = entries.mean(1)
    else:
        loss = weights[wanted] * F.cross_entropy(logits, wanted, reduction="none")
        found = logits.detach().argmax(1)
        right = found == wanted
    count = float(len(wanted))
    metrics: dict[str, tuple[Tensor, Tensor | float]] = {"accuracy": (right.sum(), count)}
    if not torch.is_grad_enabled():  # in an evaluation; after_step() makes scores of them
        for name, cell in confusion(wanted, found, config).items():
            metrics[name] = (cell, count)
    return Loss({"sequence": loss.sum()}, metrics)


def confusion(wanted: Tensor, found: Tensor, config: ClassificationConfig) -> dict[str, Tensor]:
    """Counts by name, `confusion/TRUE/FOUND`; with several labels `confusion/LABEL/tp`, fp and fn.
    All of them, so that their means over micro-batches are shares of all rows."""
    names = config.names
    if config.multi_label:
        has, said = wanted > 0, found > 0
        kinds = {"tp": has & said, "fp": ~has & said, "fn": has & ~said}
        return {
            f"{CONFUSION}{k}/{kind}": cells[:, k].sum().cpu()
            for kind, cells in kinds.items()
            for k in range(len(names))
        }
    cells = torch.bincount(wanted * len(names) + found, minlength=len(names) ** 2).cpu()
    return {
        f"{CONFUSION}{true}/{other}": cells[true * len(names) + other]
        for true in range(len(names))
        for other in range(len(names))
    }


def add_scores(metrics: dict[str, float], config: ClassificationConfig) -> None:
    """Adds precision, recall and F1 where an evaluation has counted: of each label, their means
    over the labels (macro), and those of all decisions together (micro), as scikit-learn defines
    them; what would be divided by 0 is 0. Of the counts, shares of all rows, those that are not 0
    stay, by the labels' names."""
    cells = {name: value for name, value in metrics.items() if name.startswith(CONFUSION)}
    if not cells:
        return
    names = config.names
    places = range(len(names))

    def cell(a: object, b: object) -> float:
        return cells[f"{CONFUSION}{a}/{b}"]

    counts = []  # of each label: found rightly, found wrongly, missed
    for k in places:
        if config.multi_label:
            counts.append((cell(k, "tp"), cell(k, "fp"), cell(k, "fn")))
            continue
        wrongly = sum(cell(other, k) for other in places if other != k)
        missed = sum(cell(k, other) for other in places if other != k)
        counts.append((cell(k, k), wrongly, missed))
    each = [precision_recall_f1(*three) for three in counts]
    micro = precision_recall_f1(*(sum(three[i] for three in counts) for i in range(3)))
    for i, score in enumerate(("precision", "recall", "f1")):
        metrics[f"{score}_macro"] = sum(three[i] for three in each) / len(names)
        metrics[f"{score}_micro"] = micro[i]
    for name, three in zip(names, each):
        for score, value in zip(("precision", "recall", "f1"), three):
            metrics[f"{score}/{name}"] = value
    for name, share in cells.items():
        del metrics[name]
        true, other = name.removeprefix(CONFUSION).split("/")
        if share:
            said = other if config.multi_label else names[int(other)]
            metrics[f"{CONFUSION}{names[int(true)]}/{said}"] = share


def precision_recall_f1(tp: float, fp: float, fn: float) -> tuple[float, float, float]:
    def ratio(a: float, b: float) -> float:
        return a / b if b else 0.0

    return ratio(tp, tp + fp), ratio(tp, tp + fn), ratio(2 * tp, 2 * tp + fp + fn)


def balanced(labels: Sequence[Sequence[int]], config: ClassificationConfig) -> dict[str, float]:
    """class_weights: balanced, of training rows whose labels have these numbers. Raises ValueError
    for a label without a row."""
    names, n = config.names, len(labels)
    of_label = [sum(k in row for row in labels) for k in range(len(names))]
    for name, count in zip(names, of_label):
        if count == 0:
            raise ValueError(
                f"trainer.class_weights: balanced, but no training row has the label {name!r}"
            )
    if config.multi_label:
        return {name: (n - count) / count for name, count in zip(names, of_label)}
    return {name: n / (len(names) * count) for name, count in zip(names, of_label)}


classification = Algorithm(
    ClassificationConfig,
    cross_entropy,
    rows="labelled",
    after_step=add_scores,
)
