"""Classification: the losses, the scores, the rows, the label map, the folder."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_preference_runs as runs
import tiny
import torch
import yaml
from command import complaint, output_of
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_recall_fscore_support
from sklearn.utils.class_weight import compute_class_weight
from test_render import renderer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.loss.loss_utils import ForSequenceClassificationLoss

from posttrain.algorithms.classification import (
    ClassificationConfig,
    add_scores,
    balanced,
    confusion,
    cross_entropy,
    with_labels,
)
from posttrain.common.batch import Batch, Sequence, pack
from posttrain.data.kinds.labelled import to_examples
from posttrain.data.labels import label_tokens
from posttrain.data.rows import numbered
from posttrain.model.folder import LABELS_FILE, checkpoints_in, saved_labels
from posttrain.model.forward import Output, forward
from posttrain.runs.config import parse_config
from posttrain.runs.plan import plan
from posttrain.runs.preview import show
from posttrain.runs.train import train

NAMES = ["a", "b", "c"]


def config(**keys: Any) -> ClassificationConfig:
    return ClassificationConfig(**({"labels": NAMES} | keys))


def batch(labels: list[Any]) -> Batch:
    """One token each; labels are numbers, or lists of 0 and 1."""
    rows = []
    for label in labels:
        per_seq = {"label": float(label)} if isinstance(label, int) else {}
        if isinstance(label, list):
            per_seq = {f"label/{k}": float(x) for k, x in enumerate(label)}
        rows.append(Sequence(torch.ones(1).long(), torch.zeros(1).bool(), {}, per_seq))
    return pack(rows)


def loss_of(logits: torch.Tensor, labels: list[Any], **keys: Any) -> torch.Tensor:
    """The mean over rows, as the trainer divides it."""
    out = Output(torch.zeros(len(labels)), logits=logits)
    loss = cross_entropy(out, batch(labels), config(**keys))
    assert loss.terms.keys() == {"sequence"}
    return loss.terms["sequence"] / len(labels)


# --- the losses -----------------------------------------------------------------------------------


def test_one_label_by_hand() -> None:
    """Logits ln 1, ln 2, ln 5: probabilities 1/8, 2/8, 5/8."""
    logits = torch.tensor([[1.0, 2.0, 5.0]]).log()
    assert float(loss_of(logits, [1])) == pytest.approx(math.log(4))
    weighted = loss_of(logits, [1], class_weights={"b": 3.0})
    assert float(weighted) == pytest.approx(3 * math.log(4))
    # the mean is over rows, not over weights
    both = loss_of(logits.repeat(2, 1), [1, 2], class_weights={"b": 3.0})
    assert float(both) == pytest.approx((3 * math.log(4) + math.log(8 / 5)) / 2)


def test_several_labels_by_hand() -> None:
    """Logits ln 3, 0, -ln 3: probabilities 3/4, 1/2, 1/4."""
    logits = torch.tensor([[math.log(3), 0.0, -math.log(3)]])
    parts = [math.log(4 / 3), math.log(2), math.log(4)]  # has a, not b, has c
    found = loss_of(logits, [[1, 0, 1]], multi_label=True)
    assert float(found) == pytest.approx(sum(parts) / 3)
    found = loss_of(logits, [[1, 0, 1]], multi_label=True, class_weights={"c": 5.0, "b": 7.0})
    assert float(found) == pytest.approx((parts[0] + parts[1] + 5 * parts[2]) / 3)


@pytest.mark.parametrize("multi_label", [False, True])
def test_losses_and_gradients_are_those_of_transformers(multi_label: bool) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 3).double().requires_grad_()
    rows: list[Any] = [[1, 0, 1], [0, 0, 0], [1, 1, 1]] * 2 if multi_label else [0, 1, 2, 2, 1, 0]
    kind = f"{'multi' if multi_label else 'single'}_label_classification"
    model_config: Any = type("Config", (), {"problem_type": kind, "num_labels": 3})()
    wanted = torch.tensor(rows).double() if multi_label else torch.tensor(rows)
    theirs = ForSequenceClassificationLoss(wanted, logits, model_config)
    ours = loss_of(logits, rows, multi_label=multi_label)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(x, logits)[0] for x in (ours, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("multi_label", [False, True])
def test_gradients_by_finite_differences(multi_label: bool) -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).double()
    rows: list[Any] = [[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]] if multi_label else [0, 1, 2, 2]
    keys = {"multi_label": multi_label, "class_weights": {"a": 0.3, "c": 2.0}}
    assert torch.autograd.gradcheck(lambda z: loss_of(z, rows, **keys), logits.requires_grad_())


def test_a_zero_head_knows_nothing() -> None:
    """ln K at the start; ln 2 for several labels."""
    assert float(loss_of(torch.zeros(2, 3), [0, 2])) == pytest.approx(math.log(3))
    rows = [[1, 0, 0], [0, 1, 1]]
    assert float(loss_of(torch.zeros(2, 3), rows, multi_label=True)) == pytest.approx(math.log(2))


def test_balanced_weights_are_scikit_learns() -> None:
    rows = [0] * 7 + [1] * 2 + [2]
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=rows)
    found = balanced([[row] for row in rows], config())
    assert list(found.values()) == pytest.approx(list(theirs))
    # their mean over the rows is 1: the rate means what it did
    assert sum(found[NAMES[row]] for row in rows) / 10 == pytest.approx(1)
    several = balanced([[0, 1], [0, 1], [0, 2], [0]], config(multi_label=True))
    assert several == {"a": 0.0, "b": 1.0, "c": 3.0}
    with pytest.raises(ValueError, match="no training row has the label 'b'"):
        balanced([[0], [2]], config())


# --- the scores -----------------------------------------------------------------------------------


def scored(
    wanted: torch.Tensor, found: torch.Tensor, keys: ClassificationConfig
) -> dict[str, float]:
    """What an evaluation reports, from shares of rows."""
    cells = confusion(wanted, found, keys)
    metrics = {name: float(cell) / len(wanted) for name, cell in cells.items()}
    add_scores(metrics, keys)
    return metrics


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
@settings(deadline=None, max_examples=60)
def test_scores_are_scikit_learns(rows: list[tuple[int, int]]) -> None:
    wanted, found = torch.tensor(rows).T
    metrics = scored(wanted, found, config())
    keys: Any = {"labels": [0, 1, 2], "zero_division": 0}
    for average in ("macro", "micro"):
        theirs = precision_recall_fscore_support(wanted, found, average=average, **keys)
        for name, value in zip(("precision", "recall", "f1"), theirs):
            assert metrics[f"{name}_{average}"] == pytest.approx(value)
    each = f1_score(wanted, found, average=None, **keys)
    assert [metrics[f"f1/{name}"] for name in NAMES] == pytest.approx(list(each))
    cells = {name: value for name, value in metrics.items() if name.startswith("confusion/")}
    assert sum(cells.values()) == pytest.approx(1)
    assert all(cells.values())


@given(st.lists(st.tuples(*[st.booleans()] * 6), min_size=1, max_size=30))
@settings(deadline=None, max_examples=60)
def test_scores_of_several_labels_are_scikit_learns(rows: list[tuple[bool, ...]]) -> None:
    table = torch.tensor(rows).long()
    wanted, found = table[:, :3], table[:, 3:]
    metrics = scored(wanted, found, config(multi_label=True))
    for average in ("macro", "micro"):
        theirs = precision_recall_fscore_support(wanted, found, average=average, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), theirs):
            assert metrics[f"{name}_{average}"] == pytest.approx(value)


def test_training_steps_count_no_confusion() -> None:
    """Which would be a number for every two labels in each line of the log."""
    out = Output(torch.zeros(3), logits=torch.eye(3))
    assert cross_entropy(out, batch([0, 2, 2]), config()).metrics.keys() == {"accuracy"}
    with torch.no_grad():
        metrics = cross_entropy(out, batch([0, 2, 2]), config()).metrics
    assert float(metrics["accuracy"][0]) == 2
    assert [name for name, (cell, _) in metrics.items() if float(cell) and "/" in name] == [
        "confusion/0/0",
        "confusion/2/1",
        "confusion/2/2",
    ]


def test_a_label_is_found_where_it_is_likelier_than_not() -> None:
    """Its logit is above 0 then. A row is right where all its labels are."""
    out = Output(torch.zeros(3), logits=torch.tensor([[0.2, -0.2, 0.2]] * 2 + [[-0.2, 0.2, 0.2]]))
    with torch.no_grad():
        rows = batch([[1, 0, 1]] * 3)
        metrics = cross_entropy(out, rows, config(multi_label=True)).metrics
    assert float(metrics["accuracy"][0]) == 2
    cells = {name: int(cell) for name, (cell, _) in metrics.items() if "/" in name and cell}
    assert cells == {
        "confusion/0/tp": 2,
        "confusion/2/tp": 3,
        "confusion/1/fp": 1,
        "confusion/0/fn": 1,
    }


# --- the rows and the label map -------------------------------------------------------------------


def rendered(rows: list[dict[str, Any]], chat: str = "plain", length: int = 64, **keys: Any) -> Any:
    policy = keys.pop("on_overlong", "error")
    return to_examples(rows, renderer(chat), "rows", length, policy, config(**keys).label_set)


def test_rows_are_rendered_as_prompts() -> None:
    """What the model reads ends where it would begin to speak; nothing is trained on as text."""
    it = renderer("chatml")
    forms = [
        {"prompt": "hello", "label": "b"},
        {"text": "hello", "label": "b"},
        {"messages": [{"role": "user", "content": "hello"}], "label": "b"},
    ]
    examples, table = rendered(forms, "chatml")
    for (sequence,) in examples:
        assert sequence.input_ids.tolist() == it.prompt_ids({"prompt": "hello"})
        assert not sequence.loss_mask.any()
        assert sequence.per_seq == {"label": 1.0}
    assert (table.kept, table.trained_tokens) == (3, 0)


def test_labels_may_be_numbers_and_lists() -> None:
    (sequence,) = rendered([{"text": "x", "label": 2}], labels=["0", "1", "2"])[0][0]
    assert sequence.per_seq == {"label": 2.0}
    rows = [{"text": "x", "label": ["c", "a"]}, {"text": "x", "label": []}]
    found = [s.per_seq for (s,) in rendered(rows, multi_label=True)[0]]
    assert found == [
        {"label/0": 1.0, "label/1": 0.0, "label/2": 1.0},
        {"label/0": 0.0, "label/1": 0.0, "label/2": 0.0},
    ]


def test_what_is_too_long_keeps_its_end() -> None:
    rows = [{"text": "hello world, here and there", "label": "a"}]
    whole = rendered(rows)[0][0][0].input_ids
    with pytest.raises(ValueError, match=r"rows, row 1: the row has \d+ tokens"):
        rendered(rows, length=3)
    assert rendered(rows, length=len(whole))[1].kept == 1
    ((cut,),), table = rendered(rows, length=3, on_overlong="truncate")
    assert cut.input_ids.tolist() == whole[-3:].tolist()
    assert table.truncated == 1
    short = {"text": "a", "label": "a"}
    table = rendered([*rows, short], length=len(whole) - 1, on_overlong="drop")[1]
    assert (table.kept, table.reasons) == (1, {"overlong": 1})


@pytest.mark.parametrize(
    ("row", "keys", "message"),
    [
        ({"text": "x"}, {}, "row 1: no label; the row has text"),
        ({"claim": "x", "label": "a"}, {}, r"row 1: expected the columns .*data\.columns"),
        ({"text": "x", "label": "z"}, {}, "row 1: unknown label 'z'; expected one of a, b, c"),
        ({"text": "x", "label": ["a"]}, {}, "row 1: label must be one label"),
        ({"text": "x", "label": "a"}, {"multi_label": True}, "row 1: label must be a list"),
        ({"text": "x", "label": 1.5}, {}, "row 1: a label must be a non-blank string, an int"),
        ({"text": "x", "label": " "}, {}, "row 1: a label must be a non-blank string"),
        ({"text": 3, "label": "a"}, {}, "row 1: text must be a string; got '3'"),
        ({"text": " ", "label": "a"}, {}, "row 1: text is blank: remove the row"),
        ({"prompt": "", "label": "a"}, {}, "row 1: prompt is blank"),
    ],
)
def test_malformed_rows(row: dict[str, Any], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rendered([row], **keys)


def test_labels_come_from_the_rows_or_the_model() -> None:
    rows = [{"text": "x", "label": label} for label in ("no", "yes", "maybe", "no")]
    placed = list(numbered(rows, "mine.csv"))
    bare = ClassificationConfig()
    assert with_labels(bare, placed, None).labels == ["maybe", "no", "yes"]
    known = {"labels": ["yes", "no", "maybe"], "multi_label": False}
    assert with_labels(bare, placed, known).labels == ["yes", "no", "maybe"]
    own = ClassificationConfig(labels=["maybe", "no", "yes"])
    with pytest.raises(ValueError, match="the model has the labels yes, no, maybe, this run maybe"):
        with_labels(own, placed, known)
    with pytest.raises(ValueError, match=r"trained with trainer\.multi_label=True"):
        with_labels(bare, placed, known | {"multi_label": True})
    with pytest.raises(ValueError, match=r"1 label\(s\) in 2 rows"):
        with_labels(bare, [placed[0], placed[3]], None)
    weighted = with_labels(ClassificationConfig(class_weights="balanced"), placed, None)
    assert weighted.class_weights == pytest.approx({"maybe": 4 / 3, "no": 2 / 3, "yes": 4 / 3})
    with pytest.raises(ValueError, match="class_weights: 'often' is not one of the labels"):
        with_labels(ClassificationConfig(class_weights={"often": 1.0}), placed, None)
    with pytest.raises(
        ValueError, match=r"^mine.csv, row 3: unknown label 'maybe'; expected one of yes, no"
    ):
        with_labels(ClassificationConfig(labels=["yes", "no"]), placed, None)
    broken = [*placed, ("mine.csv, row 5", {"text": "x"})]
    with pytest.raises(ValueError, match=r"^mine.csv, row 5: no label; the row has text"):
        with_labels(bare, broken, None)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"labels": ["a"]}, "at least 2"),
        ({"labels": ["a", "b", "a"]}, "twice"),
        ({"label_words": {"a": "x"}}, "label_words needs trainer.mode: label_tokens"),
        ({"class_weights": {"a": -1.0}}, "below 0"),
        ({"class_weights": {"z": 1.0}}, "'z' is not one of the labels"),
    ],
)
def test_keys_that_do_not_fit(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**keys)


def test_labels_that_begin_alike_are_refused() -> None:
    it = renderer("plain")
    alike = config(labels=["half-true", "half-false", "no"], mode="label_tokens")
    message = (
        r"'half-true' and 'half-false' begin with the same token '[^']+'.*\(tokens: .+, .+, .+\)$"
    )
    with pytest.raises(ValueError, match=message):
        label_tokens(alike.label_set, it)
    words = {"half-true": "1", "half-false": "2", "no": "3"}
    before, found = label_tokens(alike.model_copy(update={"label_words": words}).label_set, it)
    assert (before, it.tokenizer.convert_ids_to_tokens(found)) == ([], ["1", "2", "3"])


def test_what_all_labels_begin_with_goes_to_the_prompt() -> None:
    """A mark of a word's beginning, in many vocabularies."""
    it = renderer("plain_bos")
    keys = config(labels=["12", "13", "1"], mode="label_tokens", label_words={"1": "145"})
    before, found = label_tokens(keys.label_set, it)
    names = it.tokenizer.convert_ids_to_tokens
    assert (names(before), names(found)) == (["1"], ["2", "3", "4"])
    rows = [{"text": "hello", "label": "13"}]
    ((sequence,),), table = to_examples(rows, it, "rows", 64, "error", keys.label_set)
    assert table.length_max == len(sequence)
    assert sequence.input_ids.tolist() == [*it.prompt_ids({"prompt": "hello"}), *before]
    ((cut,),), _ = to_examples(rows, it, "rows", 2, "truncate", keys.label_set)
    assert cut.input_ids.tolist() == sequence.input_ids[-2:].tolist()
    # of two labels one may be all of what the other begins with
    for labels in (["1", "12", "2"], ["1", "12"]):
        short = keys.model_copy(update={"labels": labels, "label_words": {}})
        with pytest.raises(ValueError, match="'1' and '12' begin with the same token '1'"):
            label_tokens(short.label_set, it)
    apart = keys.model_copy(update={"labels": ["12", "34"], "label_words": {}})
    before, found = label_tokens(apart.label_set, it)
    assert (before, names(found)) == ([], ["1", "3"])


# --- whole runs -----------------------------------------------------------------------------------


def tree(folder: Path, start: str | None = None, **keys: Any) -> dict[str, Any]:
    made = tiny.run_config(folder, "classification", max_steps=30, batch_size=8, **keys)
    if start is not None:
        made["model"] = {"name": start}
    made["model"]["device"] = "cpu"  # compared with other libraries there
    made["eval"] = {"data": {"path": str(folder / "held_out.jsonl")}}
    made["trainer"] |= {"eval_steps": 15}
    rows = [{"text": f"{i} and {i + 1}", "label": ["odd", "even"][i % 2]} for i in range(7)]
    if keys.get("multi_label"):
        for name in ("texts", "held_out"):
            several = [row | {"label": [row["label"]]} for row in rows]
            (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in several))
    else:
        (folder / "held_out.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return made


def run(given: dict[str, Any]) -> Path:
    return train(parse_config(given, "test"))


def evaluations(run_dir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(x) for x in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "eval_loss" in line]


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_run_learns_and_its_folder_is_a_classifier(tmp_path: Path, multi_label: bool) -> None:
    run_dir = run(tree(tmp_path, multi_label=multi_label))
    first, last = evaluations(run_dir)
    assert last["eval_loss"] < first["eval_loss"]
    assert {"eval_accuracy", "eval_f1_macro", "eval_f1_micro", "eval_f1/odd"} <= last.keys()
    folder = checkpoints_in(run_dir)[-1]
    assert saved_labels(folder) == {"labels": ["even", "odd"], "multi_label": multi_label}
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert model.config.id2label == {0: "even", 1: "odd"}
    assert model.config.problem_type.startswith("multi" if multi_label else "single")
    built = plan(parse_config(tree(tmp_path, str(run_dir), multi_label=multi_label), "test"))
    for (sequence,) in built.data.eval_examples[:3]:
        with torch.no_grad():
            theirs = model(sequence.input_ids[None]).logits[0]
            ours = forward(built.models.policy, pack([sequence]), head=True).logits
        torch.testing.assert_close(ours[0], theirs, rtol=1e-4, atol=1e-4)


def test_label_tokens_are_the_language_models_own_logits(tmp_path: Path) -> None:
    base = str(run(tiny.run_config(tmp_path / "base", "sft", max_steps=1)))
    run_dir = run(tree(tmp_path, base, mode="label_tokens", label_words={"odd": "1", "even": "2"}))
    first, last = evaluations(run_dir)
    assert last["eval_loss"] < first["eval_loss"] < math.log(2) * 3
    folder = checkpoints_in(run_dir)[-1]
    saved = json.loads((folder / LABELS_FILE).read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_ids_to_tokens(saved["tokens"]) == ["2", "1"]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    built = plan(parse_config(tree(tmp_path, str(run_dir), mode="label_tokens"), "test"))
    (sequence,) = built.data.eval_examples[0]
    with torch.no_grad():
        theirs = model(sequence.input_ids[None]).logits[0, -1, built.models.policy.label_tokens]
        ours = forward(built.models.policy, pack([sequence]), head=True).logits
    torch.testing.assert_close(ours[0], theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_preview_shows_the_labels(tmp_path: Path, capsys: Any, multi_label: bool) -> None:
    show(parse_config(tree(tmp_path, multi_label=multi_label), "test"), 2)
    assert re.findall("label: (.*)", capsys.readouterr().out) == ["odd", "even"]


def test_a_start_with_other_labels_is_refused(tmp_path: Path) -> None:
    run_dir = run(tree(tmp_path, labels=["odd", "even"]))
    assert saved_labels(checkpoints_in(run_dir)[-1])["labels"] == ["odd", "even"]
    again = parse_config(tree(tmp_path, str(run_dir)), "test")
    assert plan(again).config.trainer.labels == ["odd", "even"]
    with pytest.raises(ValueError, match="the model has the labels odd, even, this run even, odd"):
        plan(parse_config(tree(tmp_path, str(run_dir), labels=["even", "odd"]), "test"))


def test_with_lora_the_head_is_saved_and_resumed(tmp_path: Path, monkeypatch: Any) -> None:
    base = run(tiny.run_config(tmp_path / "base", "sft", max_steps=2))
    trees = [tiny.run_config(tmp_path / name, "classification", save_steps=1) for name in "ab"]
    for one in trees:
        one["model"] = {"name": str(base), "use_lora": True, "lora": {"r": 4, "dropout": 0.1}}
    whole = run(trees[0])
    parts = runs.run_killed_and_resumed(trees[1], 3, monkeypatch)
    assert runs.metrics(whole) == runs.metrics(parts)
    runs.assert_same_bits(whole, parts)
    folder = checkpoints_in(whole)[-1]
    assert saved_labels(folder) == {"labels": ["even", "odd"], "multi_label": False}


# --- posttrain classify ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["head", "several", "label_tokens", "lora"])
def test_classify_gives_the_labels_and_the_scores_of_the_run(
    tmp_path: Path, capsys: Any, kind: str
) -> None:
    keys: dict[str, Any] = {"multi_label": kind == "several"}
    base = None
    if kind in ("label_tokens", "lora"):
        base = str(run(tiny.run_config(tmp_path / "base", "sft", max_steps=1)))
    if kind == "label_tokens":
        keys |= {"mode": "label_tokens", "label_words": {"odd": "1", "even": "2"}}
    given = tree(tmp_path, base, **keys)
    if kind == "lora":
        given["model"] |= {"use_lora": True}
    run_dir = run(given)
    held_out, out = tmp_path / "held_out.jsonl", tmp_path / "new" / "out.jsonl"
    shown = output_of(capsys, "classify", run_dir, "--file", held_out, "--output", out)
    last = evaluations(run_dir)[-1]
    scores = "  ".join(f"{x} {last[f'eval_{x}']:.4f}" for x in ("accuracy", "f1_macro", "f1_micro"))
    assert shown.splitlines()[-1] == f"rows 7  {scores}"
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    right = [row["predicted"] == row["label"] for row in rows]
    assert sum(right) / 7 == pytest.approx(last["eval_accuracy"])
    p = rows[0]["probabilities"]
    assert p.keys() == {"even", "odd"}
    assert kind == "several" or sum(p.values()) == pytest.approx(1)
    if kind == "head":
        model = AutoModelForSequenceClassification.from_pretrained(checkpoints_in(run_dir)[-1])
        built = plan(parse_config(given, "test"))
        with torch.no_grad():
            theirs = model(built.data.eval_examples[0][0].input_ids[None]).logits.softmax(-1)[0]
        assert list(p.values()) == pytest.approx(theirs.tolist(), abs=1e-4)
    one = output_of(capsys, "classify", run_dir, rows[0]["text"]).splitlines()
    assert one == shown.splitlines()[:1]


def test_a_classifier_writes_no_text(tmp_path: Path, capsys: Any) -> None:
    run_dir = run(tree(tmp_path))
    for call in (("generate", run_dir, "1"), ("eval", run_dir, "--tasks", "gsm8k")):
        assert f"{run_dir} is a classifier, which generates no text" in complaint(capsys, *call)
    base = run(tiny.run_config(tmp_path / "base", "sft", max_steps=1))
    assert "is not a classifier" in complaint(capsys, "classify", base, "1")
    assert "nowhere does not exist" in complaint(capsys, "classify", "nowhere", "1")
    assert "--file: give either a file or texts" in complaint(capsys, "classify", run_dir)
    (tmp_path / "bad.jsonl").write_text('{"text": "1"}\n{"txt": "2"}\n')
    call = ("classify", run_dir, "--file", tmp_path / "bad.jsonl")
    assert f"{tmp_path / 'bad.jsonl'}, row 2: expected the columns" in complaint(capsys, *call)
    (tmp_path / "bad.jsonl").write_text('{"text": "1", "label": "big"}\n')
    assert "row 1: unknown label 'big'; expected one of even, odd" in complaint(capsys, *call)
    assert "tokens, more than the model's" in complaint(capsys, "classify", run_dir, "1 " * 999)
    (tmp_path / "bad.jsonl").write_text('{"text": "1"}\n')
    assert "note:" not in output_of(capsys, *call)
    config = run_dir / "config.yaml"
    config.write_text(yaml.safe_dump({"data": {"prompt_template": "Is {text} odd?"}}))
    assert "note: the model was trained with data.prompt_template 'Is {text}" in output_of(
        capsys, *call
    )
