"""`classification`: a text has one of K labels, or any number of them.

    one label     L = mean over rows of  w_y (logsumexp(z) - z_y)
    multi_label   L = mean over rows of  1/K sum over k of  w_k y_k softplus(-z_k)
                                                            + (1 - y_k) softplus(z_k)

z [K] are the logits at the last token of the rendered text (the prompt): those of a linear head on
its state, or the language model's own for the first token in which the labels differ (as in Gao et
al. 2021, arXiv 2012.15723, eq. 1, without their templates). w is the weight of a label; with
multi_label, of the rows that have it. With w = 1, these are the losses of transformers' sequence
classifiers.
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
    """Classification of texts: each has one of K labels, or any number of them."""

    type: Literal["classification"] = "classification"
    learning_rate: float = Field(1e-5, ge=0)
    labels: Annotated[
        Annotated[list[str], Field(min_length=2)] | None,
        AlsoCalled(num_labels="trainer.labels, or nothing: they are read from the data"),
    ] = None
    """The labels in their order; by default those of the model that the run starts from, or else
    those of the training rows in alphabetical order."""
    multi_label: Annotated[bool, AlsoCalled("problem_type")] = False
    """Whether a row has any number of labels: its `label` is then a list."""
    mode: Literal["head", "label_tokens"] = "head"
    """head: a linear layer on the last token's state. label_tokens: the language model's logits for
    the first token in which the labels differ."""
    label_words: dict[str, str] = Field(default_factory=dict)
    """label_tokens: the text to use for a label if it is not the label itself."""
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    """A weight for each label, by default 1. balanced: n / (K n_k) for a label that n_k of n rows
    have; with multi_label, the number of rows without the label divided by that of rows with it."""

    @model_validator(mode="after")
    def _fits(self) -> ClassificationConfig:
        labels = self.labels
        if labels is not None and len(set(labels)) < len(labels):
            raise ValueError(f"trainer.labels names a label twice: {', '.join(labels)}")
        if self.label_words and self.mode != "label_tokens":
            raise ValueError("trainer.label_words needs trainer.mode: label_tokens")
        for name, by_label in (("label_words", self.label_words), ("class_weights", self.weights)):
            unknown = [label for label in by_label if labels is not None and label not in labels]
            if unknown:
                raise ValueError(f"trainer.{name}: {unknown[0]!r} is not one of the labels")
        negative = [label for label, weight in self.weights.items() if weight < 0]
        if negative:
            raise ValueError(f"trainer.class_weights: the weight of {negative[0]!r} is below 0")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """Weights by label; a label that is missing has weight 1."""
        return self.class_weights if isinstance(self.class_weights, dict) else {}

    @property
    def names(self) -> list[str]:
        """The labels, which with_labels() has set."""
        assert self.labels is not None, "with_labels() was not called"
        return self.labels

    @property
    def label_set(self) -> LabelSet:
        """The labels and how they are scored."""
        return LabelSet(self.names, self.multi_label, self.mode == "label_tokens", self.label_words)

    @property
    def head(self) -> HeadKind:
        """A head with a row for each label, or the output head's rows of the labels' tokens."""
        return "labels" if self.mode == "head" else "label_tokens"

    @property
    def row_options(self) -> dict[str, Any]:
        """The labels and how they are scored."""
        return {"labels": self.label_set}


def with_labels(
    config: ClassificationConfig, rows: Iterable[tuple[str, Row]], known: dict[str, Any] | None
) -> ClassificationConfig:
    """Return the config with the labels of the run and, for `class_weights: balanced`, weights.

    `rows` come with the place that an error about them names; `known` is what the start model's
    folder records (`model.folder.saved_labels`). Raises ValueError for rows without labels, fewer
    than two labels, or others than the start model's.
    """
    by_row: list[list[str]] = []
    places: list[str] = []
    for where, row in rows:
        try:
            asked(row)
            by_row.append(labels_of(row, config.multi_label))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        places.append(where)
    labels = (
        config.labels or (known or {}).get("labels") or sorted({x for row in by_row for x in row})
    )
    if len(labels) < 2:
        raise ValueError(
            f"data: expected at least two labels, got {len(labels)} label(s) in {len(by_row)} rows"
        )
    if known is not None and known["labels"] != labels:
        raise ValueError(
            f"model.name: the model has the labels {', '.join(known['labels'])}, this run "
            f"{', '.join(labels)}: give trainer.labels in the model's order, or start from a model "
            "without labels"
        )
    if known is not None and known["multi_label"] != config.multi_label:
        raise ValueError(
            f"model.name: the model was trained with trainer.multi_label={known['multi_label']}: "
            "set the same"
        )
    config = type(config).model_validate(config.model_dump() | {"labels": list(labels)})
    for where, row_labels in zip(places, by_row):
        check_known(row_labels, config.label_set, where)
    if config.class_weights != "balanced":
        return config
    indices = [[labels.index(label) for label in row] for row in by_row]
    return config.model_copy(update={"class_weights": balanced(indices, config)})


def targets(batch: Batch, config: ClassificationConfig) -> Tensor:
    """Return the index of each row's label, [N], or 1 for each label that it has, [N, K]."""
    if not config.multi_label:
        return batch.per_seq["label"].long()
    return torch.stack([batch.per_seq[f"label/{k}"] for k in range(len(config.names))], dim=1)


def cross_entropy(out: Output, batch: Batch, config: ClassificationConfig) -> Loss:
    """Return the loss of a micro-batch of labelled texts, as the module's docstring defines it."""
    logits = out.logits
    assert logits is not None
    true = targets(batch, config)
    weights = logits.new_tensor([config.weights.get(name, 1.0) for name in config.names])
    if config.multi_label:
        entries = F.binary_cross_entropy_with_logits(
            logits, true.to(logits.dtype), reduction="none", pos_weight=weights
        )
        predicted = (logits.detach() > 0).long()
        right = (predicted == true.long()).all(1)
        loss = entries.mean(1)
    else:
        loss = weights[true] * F.cross_entropy(logits, true, reduction="none")
        predicted = logits.detach().argmax(1)
        right = predicted == true
    count = float(len(true))
    metrics: dict[str, tuple[Tensor, Tensor | float]] = {"accuracy": (right.sum(), count)}
    if not torch.is_grad_enabled():  # in an evaluation: add_scores() turns the counts into scores
        for name, cell in confusion(true, predicted, config).items():
            metrics[name] = (cell, count)
    return Loss({"sequence": loss.sum()}, metrics)


def confusion(true: Tensor, predicted: Tensor, config: ClassificationConfig) -> dict[str, Tensor]:
    """Return the confusion matrix as counts by label index: `confusion/TRUE/PREDICTED`.

    With multi_label, they are `confusion/LABEL/tp`, fp and fn. Counts of 0 are included, so that
    means over micro-batches are shares of all rows."""
    names = config.names
    if config.multi_label:
        has, gets = true > 0, predicted > 0
        kinds = {"tp": has & gets, "fp": ~has & gets, "fn": has & ~gets}
        return {
            f"{CONFUSION}{k}/{kind}": cells[:, k].sum().cpu()
            for kind, cells in kinds.items()
            for k in range(len(names))
        }
    cells = torch.bincount(true * len(names) + predicted, minlength=len(names) ** 2).cpu()
    return {
        f"{CONFUSION}{row}/{column}": cells[row * len(names) + column]
        for row in range(len(names))
        for column in range(len(names))
    }


def add_scores(metrics: dict[str, float], config: ClassificationConfig) -> None:
    """Add precision, recall and F1 to metrics with a confusion matrix, which training steps lack.

    They are scikit-learn's, of each label, macro (the mean over labels) and micro (over all
    decisions together); a division by 0 gives 0. The matrix holds shares of all rows by now: those
    that are not 0 stay, under the names of their labels."""
    cells = {name: value for name, value in metrics.items() if name.startswith(CONFUSION)}
    if not cells:
        return
    names = config.names
    indices = range(len(names))

    def cell(a: object, b: object) -> float:
        return cells[f"{CONFUSION}{a}/{b}"]

    counts = []  # (tp, fp, fn) of each label
    for k in indices:
        if config.multi_label:
            counts.append((cell(k, "tp"), cell(k, "fp"), cell(k, "fn")))
            continue
        fp = sum(cell(other, k) for other in indices if other != k)
        fn = sum(cell(k, other) for other in indices if other != k)
        counts.append((cell(k, k), fp, fn))
    scores = [precision_recall_f1(*count) for count in counts]
    micro = precision_recall_f1(*(sum(count[i] for count in counts) for i in range(3)))
    for i, score in enumerate(("precision", "recall", "f1")):
        metrics[f"{score}_macro"] = sum(values[i] for values in scores) / len(names)
        metrics[f"{score}_micro"] = micro[i]
    for name, values in zip(names, scores):
        for score, value in zip(("precision", "recall", "f1"), values):
            metrics[f"{score}/{name}"] = value
    for name, share in cells.items():
        del metrics[name]
        row, column = name.removeprefix(CONFUSION).split("/")
        if share:
            second = column if config.multi_label else names[int(column)]
            metrics[f"{CONFUSION}{names[int(row)]}/{second}"] = share


def precision_recall_f1(tp: float, fp: float, fn: float) -> tuple[float, float, float]:
    """Return the three scores from true positives, false positives and false negatives."""

    def ratio(a: float, b: float) -> float:
        return a / b if b else 0.0

    return ratio(tp, tp + fp), ratio(tp, tp + fn), ratio(2 * tp, 2 * tp + fp + fn)


def balanced(labels: Sequence[Sequence[int]], config: ClassificationConfig) -> dict[str, float]:
    """Return the weights of `class_weights: balanced`, from the label indices of the training rows.

    Raises ValueError for a label without a row."""
    names, n = config.names, len(labels)
    counts = [sum(k in row for row in labels) for k in range(len(names))]
    for name, count in zip(names, counts):
        if count == 0:
            raise ValueError(
                f"trainer.class_weights: balanced, but no training row has the label {name!r}"
            )
    if config.multi_label:
        return {name: (n - count) / count for name, count in zip(names, counts)}
    return {name: n / (len(names) * count) for name, count in zip(names, counts)}


classification = Algorithm(
    ClassificationConfig,
    cross_entropy,
    rows="labelled",
    after_step=add_scores,
)
