"""SemEval-2020 task 11 (Da San Martino et al. 2020, arXiv 2009.02696): propaganda in news."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from posttrain.common.errors import SettingError
from posttrain.data.files import read_lines
from posttrain.data.origin import Origin
from posttrain.data.rows import Row, check_split

TECHNIQUES = (
    "Appeal_to_Authority",
    "Appeal_to_fear-prejudice",
    "Bandwagon,Reductio_ad_hitlerum",
    "Black-and-White_Fallacy",
    "Causal_Oversimplification",
    "Doubt",
    "Exaggeration,Minimisation",
    "Flag-Waving",
    "Loaded_Language",
    "Name_Calling,Labeling",
    "Repetition",
    "Slogans",
    "Thought-terminating_Cliches",
    "Whataboutism,Straw_Men,Red_Herring",
)
LABELS = tuple(technique.replace("_", " ") for technique in TECHNIQUES)
TECHNIQUE_PROMPT = (
    "Which propaganda technique does the part between << and >> use? Answer with one of: "
    f"{'; '.join(LABELS)}.\nText: "
)
SPANS_PROMPT = (
    "Copy the parts of this text that use a propaganda technique, one on each line, or say none."
    "\nText: "
)
ORIGIN = Origin(
    licence="see the source",
    page="https://zenodo.org/records/3952415",
    rows={"train": 6_129, "dev": 1_063},
    uses=("sft", "rl"),
    urls=("https://zenodo.org/records/3952415/files/datasets-v2.tgz",),
)


@dataclass(frozen=True)
class Span:
    """An annotated part of an article."""

    article: str
    technique: str
    begin: int
    """The offset of the first character."""
    end: int
    """The offset after the last character."""


def load(
    split: str, *, path: str | None = None, task: Literal["technique", "spans"] = "technique"
) -> list[Row]:
    """Return a row for each annotated span (task technique) or each line of an article (spans).

    `task: technique`: prompt (the lines of the article with the span, marked by << and >>),
    completion (the technique in words), label (the same), article, begin and end.

    `task: spans`, without blank lines: prompt (the line), completion (its spans, one per line, or
    "none"), labels (the techniques in it, if any), spans (begin, end and label of each), article.

    Offsets count the characters of the article; the end is exclusive. A span over several lines is
    in the row of each line with its part. Splits: train and dev; the test labels were never
    published. `path` is a folder with train-articles/, train-task2-TC.labels, dev-articles/ and
    dev-task-TC.labels, or a folder whose subfolder datasets has these.
    """
    check_split("semeval2020_task11", split, ("train", "dev"))
    if path is None:
        raise ValueError(
            "semeval2020_task11: set data.path to the folder with train-articles/ and "
            "train-task2-TC.labels; `posttrain data download semeval2020_task11` fetches it"
        )
    folder = Path(path) / "datasets" if (Path(path) / "datasets").is_dir() else Path(path)
    articles = _articles(folder, split)
    spans = _spans(folder, split, articles)
    if task == "technique":
        return [_technique(articles[span.article], span) for span in spans]
    return [
        row
        for name, text in articles.items()
        for row in _lines(name, text, [span for span in spans if span.article == name])
    ]


def _articles(folder: Path, split: str) -> dict[str, str]:
    """Return the articles by the number in their file names, which the labels refer to."""
    article_folder = folder / f"{split}-articles"
    if not article_folder.is_dir():
        found = ", ".join(sorted(f.name for f in folder.glob("*"))) or "nothing"
        raise SettingError("data.path", f"{folder} has no folder {split}-articles; found {found}")
    articles = {}
    for file in sorted(article_folder.glob("article*.txt")):
        try:
            # neither utf-8-sig nor text mode: offsets count byte-order marks and carriage returns
            text = file.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            raise ValueError(f"{file}, line {line}: not UTF-8 text") from None
        articles[file.stem.removeprefix("article")] = text
    if not articles:
        raise SettingError("data.path", f"{article_folder} has no article*.txt")
    return articles


def _spans(folder: Path, split: str, articles: dict[str, str]) -> list[Span]:
    names = (f"{split}-task2-TC.labels", f"{split}-task-TC.labels")
    files = [folder / name for name in names if (folder / name).is_file()]
    if not files:
        found = ", ".join(sorted(f.name for f in folder.iterdir()))
        raise SettingError("data.path", f"{folder} has no {' or '.join(names)}; found {found}")
    return [
        _span(f"{files[0]}, line {number}", line, articles)
        for number, line in enumerate(read_lines(files[0]), 1)
        if line.strip()
    ]


def _span(where: str, line: str, articles: dict[str, str]) -> Span:
    cells = line.split("\t")
    if len(cells) != 4:
        raise ValueError(
            f"{where}: expected 4 tab-separated columns (article, technique, begin, end), got "
            f"{len(cells)}"
        )
    article, technique, begin, end = cells
    if article not in articles:
        raise ValueError(f"{where}: column 1: there is no article{article[:40]}.txt")
    if technique not in TECHNIQUES:
        raise ValueError(
            f"{where}: column 2 must be one of {', '.join(TECHNIQUES)}; got {technique[:40]!r}"
        )
    if not begin.isdecimal() or not end.strip().isdecimal():
        raise ValueError(
            f"{where}: columns 3 and 4 must be offsets, got {begin[:20]!r} and {end[:20]!r}"
        )
    length = len(articles[article])
    if not int(begin) < int(end) <= length:
        raise ValueError(
            f"{where}: columns 3 and 4: {begin} to {end} is no part of article{article}.txt, which "
            f"has {length} characters"
        )
    return Span(article, technique.replace("_", " "), int(begin), int(end))


def _technique(text: str, span: Span) -> Row:
    start = text.rfind("\n", 0, span.begin) + 1
    stop = text.find("\n", span.end - 1)
    stop = max(span.end, len(text) if stop < 0 else stop)
    before, after = text[start : span.begin], text[span.end : stop]
    return {
        "prompt": f"{TECHNIQUE_PROMPT}{before}<<{text[span.begin : span.end]}>>{after}",
        "completion": span.technique,
        "label": span.technique,
        "article": span.article,
        "begin": span.begin,
        "end": span.end,
    }


def _lines(name: str, text: str, spans: list[Span]) -> list[Row]:
    rows, start = [], 0
    for line in text.split("\n"):
        stop = start + len(line)
        parts = sorted(
            (max(span.begin, start), min(span.end, stop), span.technique)
            for span in spans
            if span.begin < stop and span.end > start
        )
        copies = [text[begin:end].strip() for begin, end in sorted({part[:2] for part in parts})]
        if line.strip():
            rows.append(
                {
                    "prompt": SPANS_PROMPT + line.strip(),
                    "completion": "\n".join(filter(None, copies)) or "none",
                    "labels": sorted({technique for _, _, technique in parts}),
                    "spans": [dict(zip(("begin", "end", "label"), part)) for part in parts],
                    "article": name,
                }
            )
        start = stop + 1
    return rows
