"""LIAR, LIAR-PLUS and the propaganda of SemEval-2020: rows, traps, and the real files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import shared
from test_datasets import rows_of, scores, write
from test_original_files import ARTICLE, CLAIM, STATEMENT, propaganda

from posttrain.data.config import DataConfig
from posttrain.data.load import load_rows
from posttrain.data.sets import liar, liar_plus, semeval2020_task11
from posttrain.rewards.rules.classification import Classification, build

# --- facts ----------------------------------------------------------------------------------------


def test_a_row_of_liar(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text(STATEMENT + "\n")
    (row,) = rows_of("liar", "train", tmp_path)
    assert row == {
        "prompt": "How true is this statement? Answer with one of: pants on fire, false, barely "
        "true, half true, mostly true, true.\nStatement: It rains.",
        "completion": "pants on fire",
        "label": "pants on fire",
    }
    options: dict[str, Any] = {"metadata": True, "history": True}
    data = DataConfig(name="liar", path=str(tmp_path), options=options)
    (full,) = load_rows(data)
    assert full["prompt"] == row["prompt"] + (
        "\nSpeaker: a-speaker\nJob: Governor\nState: Texas\nParty: none\nSubject: weather"
        "\nContext: a show\nVerdicts on the speaker: 1 barely true, 2 false, 3 half true, "
        "4 mostly true, 5 pants on fire"
    )
    bare = data.model_copy(update={"options": {"metadata": True, "instruction": False}})
    assert load_rows(bare)[0]["prompt"] == (
        "Speaker: a-speaker\nJob: Governor\nState: Texas\nParty: none\nSubject: weather"
        "\nContext: a show\nIt rains."
    )
    (tmp_path / "train.tsv").write_text(STATEMENT.replace("Governor", " "))
    assert "\nSpeaker: a-speaker\nState: Texas\n" in load_rows(data)[0]["prompt"]
    (tmp_path / "train.tsv").write_text(STATEMENT.replace("\t5\t", "\tx\t"))
    with pytest.raises(ValueError, match=r"line 1: column 13 \(pants on fire\) must be a count, g"):
        load_rows(data)
    reward = build(Classification(labels=list(liar.LABELS)))
    answers = ["pants on fire", "Answer: true", "It is pants-on-fire."]
    assert scores(reward, [row] * 3, answers) == [1, 0, 1]


def test_quotation_marks_of_liar_are_text(tmp_path: Path) -> None:
    """Read as CSV, a statement would go on to the next mark, lines later."""
    lines = [STATEMENT.replace("It rains.", said) for said in ('"It rains', "It snows", '"Both."')]
    (tmp_path / "train.tsv").write_text("".join(f"{line}\n" for line in lines))
    rows = rows_of("liar", "train", tmp_path)
    assert [row["prompt"].partition("\nStatement: ")[2] for row in rows] == [
        '"It rains',
        "It snows",
        '"Both."',
    ]


@pytest.mark.parametrize(
    ("split", "rows", "labels"),
    [
        ("train", 10_269, (842, 1998, 1657, 2123, 1966, 1683)),
        ("validation", 1_284, (116, 263, 237, 248, 251, 169)),
        ("test", 1_283, (92, 250, 214, 267, 249, 211)),
    ],
)
def test_liar_as_it_is(split: str, rows: int, labels: tuple[int, ...]) -> None:
    loaded = rows_of("liar", split, shared("data/liar"))
    assert len(loaded) == rows
    counts = Counter(row["label"] for row in loaded)
    assert tuple(counts[label] for label in liar.LABELS) == labels
    assert all(row["prompt"].startswith(liar.PROMPT) for row in loaded)
    if split == "train":
        said = "Says the Annies List political group supports third-trimester abortions on demand."
        assert loaded[0]["prompt"] == liar.PROMPT + said
        assert loaded[0]["completion"] == "false"


def test_no_row_of_liar_tells_the_counts_unless_asked() -> None:
    place = shared("data/liar")
    for metadata in (False, True):
        options: dict[str, Any] = {"metadata": metadata}
        rows = load_rows(DataConfig(name="liar", path=str(place), options=options))
        assert not any("Verdicts on the speaker" in row["prompt"] for row in rows)
    options = {"history": True}
    rows = load_rows(DataConfig(name="liar", path=str(place), options=options))
    assert rows[0]["prompt"].endswith(
        "speaker: 0 barely true, 1 false, 0 half true, 0 mostly true, 0 pants on fire"
    )


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ('"He said ""no"" to it."\n', 'He said "no" to it.'),
        ('"""No,"" he said."', '"No," he said.'),
        ('"I am the only one."', '"I am the only one."'),
        ('"No," he said, ""so" it is"', '"No," he said, ""so" it is"'),
        (' It is ""so"" \n', 'It is ""so""'),
        ('"', '"'),
        ("\n", ""),
    ],
)
def test_the_quoting_of_liar_plus_is_undone(raw: str, plain: str) -> None:
    assert liar_plus.unquoted(raw) == plain


def test_a_row_of_liar_plus(tmp_path: Path) -> None:
    rows = [CLAIM, CLAIM | {"justification": "\n"}, CLAIM | {"justification": None}]
    write(tmp_path / "train2.jsonl", rows)
    assert rows_of("liar_plus", "train", tmp_path) == [
        {
            "prompt": "Explain in a few sentences why this claim was judged half true.\n"
            "Claim: It rains.",
            "completion": "It did.",
            "claim": "It rains.",
            "label": "half true",
            "speaker": "a-speaker",
            "state": "Texas",
        }
    ]


@pytest.mark.parametrize(("split", "rows"), [("validation", 1_280), ("test", 1_258)])
def test_liar_plus_as_it_is(split: str, rows: int) -> None:
    loaded = rows_of("liar_plus", split, shared("data/liar_plus"))
    assert len(loaded) == rows
    assert {row["label"] for row in loaded} == set(liar.LABELS)
    left = [row for row in loaded if '""' in row["completion"]]
    assert len(left) == 3, "whose marks are not those of one CSV field"
    assert all(row["completion"] == row["completion"].strip() != "" for row in loaded)
    if split == "test":
        assert loaded[0]["state"] == "Texas"
        assert loaded[0]["completion"].startswith("Meantime, engineering experts agree the wall")
        assert loaded[2]["completion"].startswith('Trump said that McCain "has done nothing to hel')


# --- propaganda -----------------------------------------------------------------------------------


def test_spans_end_before_their_end(tmp_path: Path) -> None:
    """Offsets count characters, not bytes: the article has marks of three bytes."""
    rows = rows_of("semeval2020_task11", "train", propaganda(tmp_path))
    assert [row["label"] for row in rows] == [
        "Loaded Language",
        "Repetition",
        "Name Calling,Labeling",
    ]
    assert [row["prompt"].partition("\nText: ")[2] for row in rows] == [
        "They are <<vile>> “liars” and thieves.",
        "<<It was so, and so it is.>>",
        "They are <<vile “liars”>> and thieves.",
    ]


def test_offsets_count_marks_of_order_and_line_ends_too(tmp_path: Path) -> None:
    article = "\ufeffA title\r\n\r\nThey are vile, all of them.\r\n"
    begin = article.index("vile")
    folder = propaganda(tmp_path, f"1\tDoubt\t{begin}\t{begin + 4}".encode(), article.encode())
    (row,) = rows_of("semeval2020_task11", "train", folder)
    assert "\nText: They are <<vile>>, all of them." in row["prompt"]


def test_a_span_may_end_with_its_article(tmp_path: Path) -> None:
    folder = propaganda(tmp_path, b"1\tSlogans\t8\t12", b"A title\nNow!")
    (row,) = rows_of("semeval2020_task11", "train", folder)
    assert row["prompt"].endswith("\nText: <<Now!>>")


def test_lines_with_their_spans(tmp_path: Path) -> None:
    propaganda(tmp_path / "datasets", b"1\tDoubt\t18\t50\n1\tSlogans\t35\t42\n")
    options = {"task": "spans"}
    data = DataConfig(name="semeval2020_task11", path=str(tmp_path), options=options)
    rows = load_rows(data)
    assert len(rows) == 3, "a row for each line that is not blank"
    assert [row["completion"] for row in rows] == [
        "none",
        "vile “liars” and thieves.\nthieves",
        "It was",
    ]
    for row in rows:
        copies = [ARTICLE[span["begin"] : span["end"]] for span in row["spans"]]
        assert row["completion"] == ("\n".join(copies) or "none")
    assert [row["labels"] for row in rows] == [[], ["Doubt", "Slogans"], ["Doubt"]]
    # the end of a line is no part of a line
    propaganda(tmp_path / "datasets", b"1\tSlogans\t35\t44\n1\tDoubt\t43\t50\n1\tDoubt\t9\t13")
    rows = load_rows(data)
    assert [row["completion"] for row in rows] == ["none", "They\nthieves.", "It was"]
    assert [row["labels"] for row in rows] == [[], ["Doubt", "Slogans"], ["Doubt"]]


def test_the_labels_of_dev_have_another_name(tmp_path: Path) -> None:
    propaganda(tmp_path)
    (tmp_path / "train-articles").rename(tmp_path / "dev-articles")
    (tmp_path / "train-task2-TC.labels").rename(tmp_path / "dev-task-TC.labels")
    assert len(rows_of("semeval2020_task11", "dev", tmp_path)) == 3
    (tmp_path / "dev-task-TC.labels").unlink()
    with pytest.raises(ValueError, match=r"has no dev-task2-TC\.labels or dev-task-TC\.labels; fo"):
        rows_of("semeval2020_task11", "dev", tmp_path)
    (tmp_path / "dev-articles/article1.txt").unlink()
    with pytest.raises(ValueError, match=r"dev-articles has no article\*\.txt"):
        rows_of("semeval2020_task11", "dev", tmp_path)


def test_there_are_14_techniques() -> None:
    assert len(set(semeval2020_task11.LABELS)) == 14
    build(Classification(labels=list(semeval2020_task11.LABELS)))
