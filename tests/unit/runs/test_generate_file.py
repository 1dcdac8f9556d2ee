"""Completions of a file's rows: in order, resumable to the same bytes, on any number of ranks."""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from command import Capture, complaint, output_of
from conftest import ROOT

import posttrain
from posttrain.common import distributed
from posttrain.evaluation import loading
from posttrain.rollout.native.sampler import NativeSampler
from posttrain.rollout.sampler import Rollout
from posttrain.runs import file_job, generate_file, inference, parts

ROWS = [{"prompt": f"{i} and {i % 3}?", "answer": str(i), "id": i} for i in range(11)]
KEYS: dict[str, Any] = {"max_new_tokens": 6, "num_samples": 2, "seed": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> posttrain.Run:
    return posttrain.train(
        tiny.run_config(tmp_path_factory.mktemp("trained")), trainer={"max_steps": 2}
    )


@pytest.fixture(scope="module")
def chatting(run: posttrain.Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(run.best_checkpoint, folder)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return folder


loaded_once = functools.lru_cache(maxsize=8)(loading.load_sampler)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_job, "PART", {"cpu": 4})
    monkeypatch.setattr(generate_file, "load_sampler", loaded_once)  # loading takes longest


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def make(run: Any, folder: Path, rows: Any = None, **keys: Any) -> tuple[Path, dict[str, Any]]:
    source, output = folder / "rows.jsonl", folder / "out.jsonl"
    write(source, rows or ROWS)
    return output, posttrain.generate_file(run, source, output, **(KEYS | keys))


def test_rows_have_the_completions_of_generate(run: posttrain.Run, tmp_path: Path) -> None:
    output, summary = make(run, tmp_path, logprobs=True)
    rows = read(output)
    one_by_one = posttrain.generate(run, [row["prompt"] for row in ROWS], **KEYS)
    assert [(row["id"], row["sample"]) for row in rows] == [
        (i, j) for i in range(11) for j in (0, 1)
    ]
    for row, own, expected in zip(
        rows, [r for r in ROWS for _ in range(2)], one_by_one, strict=True
    ):
        assert {name: row[name] for name in own} == own
        assert row["completion"] == expected.text
        assert row["finish_reason"] == expected.finish_reason
        assert row["token_ids"] == expected.token_ids
        assert row["num_tokens"] == len(expected.token_ids)
        assert row["logprobs"] == pytest.approx(expected.logprobs, abs=1e-5)
    assert (summary["num_rows"], summary["num_completions"]) == (11, 22)
    assert summary["num_tokens"] == sum(row["num_tokens"] for row in rows)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "out.jsonl",
        "out.jsonl.json",
        "rows.jsonl",
    ]


def test_one_rank_reads_the_files_for_all(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model's files are hashed whole, which every rank of a machine would do at once."""
    source = write(tmp_path / "rows.jsonl", ROWS)
    config = inference.inference_config(None, KEYS)
    _, facts = file_job.prepare(str(run.folder), str(source), config)
    assert facts["model"][0] == file_job.contents_hash(str(run.folder))
    from_first = {"model": ["x"], "adapters": {}, "reward": None}
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "from_rank_0", lambda value: value or from_first)
    monkeypatch.setattr(file_job, "contents_hash", pytest.fail)
    _, others = file_job.prepare(str(run.folder), str(source), config)
    assert others == facts | from_first


def test_one_sample_has_no_number_and_nothing_else_is_written(run: Any, tmp_path: Path) -> None:
    output, _ = make(run, tmp_path, num_samples=1)
    assert all(
        row.keys() == {"prompt", "answer", "id", "completion", "finish_reason", "num_tokens"}
        for row in read(output)
    )


def test_every_format_is_read(run: Any, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": 'a "quote", a\nline and Ω', "answer": "5"}, {"prompt": "7?", "answer": ""}]
    expected, _ = make(run, tmp_path, rows)
    (tmp_path / "list.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "table.parquet")
    with (tmp_path / "sheet.csv").open("w", newline="") as sheet:
        writer = csv.DictWriter(sheet, ["prompt", "answer"])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "folder").mkdir()
    shutil.copy(tmp_path / "table.parquet", tmp_path / "folder" / "train.parquet")
    (tmp_path / "splits.json").write_text(json.dumps({"train": [{"prompt": "x"}], "test": rows}))
    for name in ("list.json", "table.parquet", "sheet.csv", "folder", "splits.json"):
        output = tmp_path / f"{name}.jsonl"
        split = "test" if name == "splits.json" else "train"
        posttrain.generate_file(run, tmp_path / name, output, split=split, **KEYS)
        assert output.read_bytes() == expected.read_bytes(), name


class Killed(BaseException):
    """A kill, as far as one process can pretend it."""


def counted(monkeypatch: pytest.MonkeyPatch, limit: int | None = None) -> list[list[int]]:
    """The prompts that are sampled from now on; after `limit` calls comes the kill."""
    sampled: list[list[int]] = []
    calls = 0
    generate = NativeSampler.generate

    def counting(self: Any, prompts: Any, *rest: Any) -> Any:
        nonlocal calls
        calls += 1
        if limit is not None and calls > limit:
            raise Killed
        sampled.extend(prompts)
        return generate(self, prompts, *rest)

    monkeypatch.setattr(NativeSampler, "generate", counting)
    return sampled


def killed_before_the_end(
    run: Any, folder: Path, patch: pytest.MonkeyPatch, done: int = 2, **keys: Any
) -> None:
    with patch.context() as patched:
        counted(patched, done)
        with pytest.raises(Killed):
            make(run, folder, **keys)


@pytest.mark.parametrize("done", [0, 2, 5])
def test_a_killed_run_makes_the_rest_and_ends_with_the_same_bytes(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    (tmp_path / "whole").mkdir()
    whole, summary = make(run, tmp_path / "whole", logprobs=True)
    killed_before_the_end(run, tmp_path, monkeypatch, done, logprobs=True)
    assert not (tmp_path / "out.jsonl").exists()
    with monkeypatch.context() as patch:
        sampled = counted(patch)
        output, again = make(run, tmp_path, logprobs=True)
    assert output.read_bytes() == whole.read_bytes()
    assert again == summary
    assert len(sampled) == 22 - 4 * done
    assert not (tmp_path / "out.jsonl.parts").exists()


@pytest.mark.parametrize("moment", ["folder", "facts", "part", "record", "joined", "cleaning"])
def test_a_kill_at_any_write_leaves_nothing_half(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    (tmp_path / "whole").mkdir()
    whole, _ = make(run, tmp_path / "whole")

    def write_text(file: Path, text: str) -> None:
        kinds = {"facts": "made_of.json", "part": "000002.jsonl", "record": "out.jsonl.json"}
        if file.name == kinds.get(moment):
            file.with_name(f".{file.name}").write_text(text[: len(text) // 2])
            raise Killed
        original(file, text)
        if moment == "joined" and file.name == "out.jsonl.json":
            raise Killed

    def begin(self: Any, facts: Any) -> None:
        self.folder.mkdir()
        raise Killed

    def clean(self: Any) -> None:
        (self.folder / "made_of.json").unlink()
        raise Killed

    original = parts.write_text
    with monkeypatch.context() as patch:
        patch.setattr(parts, "write_text", write_text)
        patch.setattr(generate_file, "write_text", write_text)
        if moment == "folder":
            patch.setattr(parts.Parts, "begin", begin)
        if moment == "cleaning":
            patch.setattr(parts.Parts, "clean", clean)
        with pytest.raises(Killed):
            make(run, tmp_path)
    if (tmp_path / "out.jsonl").exists():
        assert moment == "cleaning"
        assert (tmp_path / "out.jsonl").read_bytes() == whole.read_bytes()
    output, _ = make(run, tmp_path)
    assert output.read_bytes() == whole.read_bytes()
    left = sorted(file.name for file in tmp_path.iterdir())
    assert left == ["out.jsonl", "out.jsonl.json", "rows.jsonl", "whole"]


def test_a_finished_file_is_not_made_again(run: Any, tmp_path: Path, capfd: Capture) -> None:
    output, summary = make(run, tmp_path)
    before = output.stat().st_mtime_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate_file, "load_sampler", pytest.fail)
        assert make(run, tmp_path)[1] == summary
    assert output.stat().st_mtime_ns == before
    assert "already finished" in capfd.readouterr().out


@pytest.mark.parametrize("ranks", [2, 7])
def test_the_number_of_ranks_changes_nothing(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    from test_evaluation_ranks import on_ranks

    (tmp_path / "whole").mkdir()
    whole, summary = make(run, tmp_path / "whole", logprobs=True)
    write(tmp_path / "rows.jsonl", ROWS)
    monkeypatch.setattr(distributed, "start", lambda device, timeout: None)
    monkeypatch.setattr(generate_file, "compare", lambda asked, folder: "")
    monkeypatch.setattr(generate_file.CONSOLE, "quiet", False)  # reset at the end
    load, lock = loading.load_sampler, threading.Lock()

    def alone(*arguments: Any) -> Any:
        with lock:  # transformers loads one model at a time
            return load(*arguments)

    monkeypatch.setattr(generate_file, "load_sampler", alone)

    def one(rank: int) -> dict[str, Any]:
        source, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
        return posttrain.generate_file(run, source, output, logprobs=True, **KEYS)

    assert on_ranks(monkeypatch, ranks, one) == [summary] * ranks
    assert (tmp_path / "out.jsonl").read_bytes() == whole.read_bytes()


def test_a_rank_that_is_done_waits_in_no_collective(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Collectives have a time limit, and the parts of other ranks have none."""
    from test_evaluation_ranks import on_ranks

    source, output = write(tmp_path / "rows.jsonl", ROWS), tmp_path / "out.jsonl"
    monkeypatch.setattr(generate_file.CONSOLE, "quiet", False)  # reset at the end
    make_parts, join, sample = generate_file.make, parts.Parts.join, generate_file.sample
    load, lock = loading.load_sampler, threading.Lock()

    def alone(function: Any) -> Any:
        def locked(*arguments: Any) -> Any:
            with lock:
                return function(*arguments)

        return locked

    done, file_was_there = set[int](), list[bool]()

    def making(*arguments: Any) -> None:
        make_parts(*arguments)
        time.sleep(0.3 * (distributed.rank() == 0))
        done.add(distributed.rank())

    def joining(*arguments: Any) -> None:
        time.sleep(0.3)
        join(*arguments)

    def from_rank_0(value: Any) -> Any:
        if distributed.rank() in done:
            file_was_there.append(output.exists())
        return distributed.from_rank_0(value)

    watched = SimpleNamespace(
        start=lambda device, timeout: None,
        rank=lambda: distributed.rank(),
        num_ranks=lambda: distributed.num_ranks(),
        from_rank_0=from_rank_0,
    )
    monkeypatch.setattr(generate_file, "distributed", watched)
    monkeypatch.setattr(generate_file, "compare", lambda asked, folder: "")
    monkeypatch.setattr(generate_file, "load_sampler", alone(load))
    monkeypatch.setattr(generate_file, "sample", alone(sample))
    monkeypatch.setattr(generate_file, "make", making)
    monkeypatch.setattr(parts.Parts, "join", joining)
    on_ranks(monkeypatch, 3, lambda rank: posttrain.generate_file(run, source, output, **KEYS))
    assert file_was_there == [True] * 3


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": 0.5}, "temperature was 1.0, is 0.5"),
        ({"num_samples": 1}, "num_samples was 2, is 1"),
        ({"logprobs": True}, "logprobs was false, is true"),
        ({"reward": {"type": "math_correctness"}}, "reward was null"),
        ({"system_prompt": "Be brief."}, "system_prompt was null"),
        ({"rows": ROWS[:-1]}, "num_rows was 11, is 10"),
        ({"rows": [*ROWS[:-1], {"prompt": "x", "answer": "10", "id": 10}]}, "rows was"),
        ({"rows": [*ROWS[:-1], ROWS[-1] | {"id": "10"}]}, "rows was"),
        ({"weights": True}, "model was"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_settings_rows_or_weights_are_refused(
    run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    finished: bool,
    change: dict[str, Any],
    words: str,
) -> None:
    model = run
    if finished:
        make(run, tmp_path)
    else:
        killed_before_the_end(run, tmp_path, monkeypatch)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    if "weights" in change:
        change, other = {}, tiny.run_config(tmp_path / "others")
        model = posttrain.train(other, trainer={"max_steps": 1})
    with pytest.raises(ValueError, match=r"^output: ") as caught:
        make(model, tmp_path, **change)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    del before[tmp_path / "rows.jsonl"]
    assert {file: file.read_bytes() for file in before} == before


def test_what_tells_models_apart_is_found_without_loading_them(
    run: Any, adapters: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import hub

    own = file_job.model_facts(str(run))
    assert own == file_job.model_facts(
        str(shutil.copytree(run.best_checkpoint, tmp_path / "moved"))
    )
    both = file_job.model_facts(str(adapters[0]))
    assert len(set(own + both)) == 2
    assert both[1:] == own
    base = tmp_path / "moved" / "model.safetensors"
    adapter = shutil.copytree(adapters[0].best_checkpoint, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(base.parent)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    before = file_job.model_facts(str(adapter))
    base.write_bytes(base.read_bytes()[:-1] + b"\x01")
    after = file_job.model_facts(str(adapter))
    assert (before[0], before[1] != after[1]) == (after[0], True)
    for revision in ("abc", "def"):
        found = f"cache/models--org--name/snapshots/{revision}/config.json"
        monkeypatch.setattr(hub, "cached_file", lambda name, file, found=found: found)
        assert file_job.model_facts("org/name") == [f"org/name@{revision}"]


def test_max_num_seqs_may_change_at_a_resume(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    whole, _ = make(run, tmp_path / "whole")
    killed_before_the_end(run, tmp_path, monkeypatch)
    output, _ = make(run, tmp_path, max_num_seqs=3)
    assert output.read_bytes() == whole.read_bytes()


def test_what_this_command_did_not_write_is_left_alone(run: Any, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", ROWS)

    def refused(output: str, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            posttrain.generate_file(run, tmp_path / "rows.jsonl", tmp_path / output, **KEYS)

    (tmp_path / "mine.jsonl").write_text("mine\n")
    refused("mine.jsonl", "mine.jsonl was not written by this command")
    assert (tmp_path / "mine.jsonl").read_text() == "mine\n"
    (tmp_path / "new.jsonl.parts").mkdir()
    (tmp_path / "new.jsonl.parts" / "thesis.tex").write_text("mine")
    refused("new.jsonl", "new.jsonl.parts was not written by this command")
    assert (tmp_path / "new.jsonl.parts" / "thesis.tex").read_text() == "mine"
    (tmp_path / "d.jsonl").mkdir()
    refused("d.jsonl", "d.jsonl is not a file")
    refused("out.parquet", "expected the name of a .jsonl file")
    refused("out.jsonl.gz", "expected the name of a .jsonl file")
    refused("rows.jsonl", "is the file of the rows")
    refused("folder/../rows.jsonl", "is the file of the rows")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "rows.jsonl")
    refused("link.jsonl", "is the file of the rows")
    (tmp_path / "file").write_text("")
    refused("file/out.jsonl", "file is not a folder")
    (tmp_path / "fixed").mkdir(mode=0o500)
    if not os.access(tmp_path / "fixed", os.W_OK):  # root may write anywhere
        refused("fixed/out.jsonl", "fixed cannot be written to")
    assert sorted(tmp_path.rglob("*.parts")) == [tmp_path / "new.jsonl.parts"]


def test_a_file_that_was_changed_since_is_not_called_finished(run: Any, tmp_path: Path) -> None:
    output, _ = make(run, tmp_path)
    output.write_text(output.read_text()[:-30])
    with pytest.raises(ValueError, match=r"out\.jsonl was changed after it had been written"):
        make(run, tmp_path)
    (tmp_path / "out.jsonl.json").write_text("{")
    with pytest.raises(ValueError, match=r"out\.jsonl\.json is damaged"):
        make(run, tmp_path)


def test_two_processes_do_not_write_the_same_file(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_before_the_end(run, tmp_path, monkeypatch)
    with (
        parts.held(tmp_path / "out.jsonl.parts"),
        pytest.raises(ValueError, match="another process is writing"),
    ):
        make(run, tmp_path)
    make(run, tmp_path)


ODD_ROWS = [
    ('{"prompt": "a"', "not valid JSON"),
    ("[1, 2]", "expected an object"),
    ('{"prompt": "a", "prompt": "b"}', "occurs twice"),
    ('{"question": "a"}', "expected the column prompt or messages, got question"),
    ("{}", "expected the column prompt or messages, got none"),
    ('{"text": "a"}', "expected the column prompt or messages, got text"),
    ('{"prompt": null}', "got null"),
    ('{"prompt": 5}', "prompt must be a string"),
    ('{"prompt": []}', "prompt is empty"),
    ('{"prompt": ["a"]}', "prompt must be a string"),
    ('{"messages": "hello"}', "messages must be a list"),
    ('{"messages": [{"role": "user"}]}', "has no content"),
    ('{"messages": [{"content": "x"}]}', "has no role"),
    ('{"messages": [{"from": "alien", "value": "x"}]}', "unknown speaker"),
    ('{"prompt": "a", "completion": "b"}', "has a column completion"),
    ('{"prompt": "a", "num_tokens": 1}', "has a column num_tokens"),
    ('{"prompt": "a", "sample": 1}', "has a column sample"),
    ('{"prompt": "\\ud800"}', "half of a character"),
    ('{"prompt": "a", "image": "x.png"}', "image is not empty"),
    ("{\"prompt\": \"[{'role': 'user', 'content': 'x'}]\"}", "Python's notation"),
    ("\x00", "null byte"),
]


@pytest.mark.parametrize(("line", "words"), ODD_ROWS)
def test_a_malformed_row_is_named_by_its_line_before_the_model_is_loaded(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, words: str
) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(f'{{"prompt": "fine"}}\n\n{line}\n')
    monkeypatch.setattr(generate_file, "load_sampler", pytest.fail)
    with pytest.raises(ValueError, match="^" + str(source) + ", line 3: ") as caught:
        posttrain.generate_file(run, source, tmp_path / "out.jsonl", **KEYS)
    assert words in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_overlong_rows_are_counted_before_the_model_is_loaded(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate_file, "load_sampler", pytest.fail)
    rows = [{"prompt": "1?"}, *[{"prompt": "12 " * 300}] * 3]
    with pytest.raises(
        ValueError,
        match=r"rows.jsonl, line 2: the prompt has \d+ tokens, and max_new_tokens leaves"
        r" room for 250, and 2 further rows are too long",
    ):
        make(run, tmp_path, rows)
    with pytest.raises(ValueError, match=r"line 1: .* leaves room for 0: lower max_new_tokens"):
        make(run, tmp_path, rows[:1], max_new_tokens=5000)


def test_a_file_without_rows_or_that_is_not_there(run: Any, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n\n")
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    for name, words in (
        ("rows.jsonl", "no rows"),
        ("other.jsonl", "no such file or folder"),
        ("a.txt", r"a\.txt is one text: write each prompt into a line of a \.jsonl file"),
    ):
        with pytest.raises(ValueError, match=words):
            posttrain.generate_file(run, tmp_path / name, tmp_path / "out.jsonl")


def test_a_classifier_and_a_missing_model_are_refused(tmp_path: Path) -> None:
    run = posttrain.train(tiny.run_config(tmp_path, "classification"), trainer={"max_steps": 1})
    with pytest.raises(ValueError, match="is a classifier, which generates no text"):
        make(run, tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        make(tmp_path / "none", tmp_path)


def test_rewards_score_each_completion(run: Any, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(
        "seen = []\n"
        "def reward(prompts, completions, completion_ids, answer, **columns):\n"
        "    seen.append(len(completions))\n"
        "    open(__file__ + '.calls', 'a').write(f'{completions}\\n')\n"
        "    return [len(ids) + float(a) / 100 for ids, a in zip(completion_ids, answer)]\n"
    )
    section = {"type": "custom", "path": str(tmp_path / "reward.py")}
    output, summary = make(run, tmp_path, reward=section, temperature=0.0)
    rows = read(output)
    assert [row["score"] for row in rows] == [
        row["num_tokens"] + float(row["answer"]) / 100 for row in rows
    ]
    assert summary["scored"] == 22
    assert summary["mean_score"] == pytest.approx(sum(r["score"] for r in rows) / 22)
    calls = (tmp_path / "reward.py.calls").read_text().splitlines()
    assert len(calls) == 11, "the two greedy completions of a row are equal and scored once"
    with (tmp_path / "reward.py").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(ValueError, match="reward was"):
        make(run, tmp_path, reward=section, temperature=0.0)


def test_a_reward_gets_the_ids_of_each_completion(chatting: Path, tmp_path: Path) -> None:
    """Also of two that read alike: one was cut off, or has its text in other tokens."""
    (tmp_path / "reward.py").write_text(
        "def reward(prompts, completions, completion_ids, **columns):\n"
        "    return [float(len(ids)) for ids in completion_ids]\n"
    )
    source = write(tmp_path / "rows.jsonl", [{"prompt": "1?"}, {"prompt": "2?"}])
    section = {"type": "custom", "path": str(tmp_path / "reward.py")}
    config = inference.inference_config(None, KEYS | {"num_samples": 4, "reward": section})
    job, _ = file_job.prepare(str(chatting), str(source), config)
    renderer = job.renderers[None]
    ids = renderer.tokenizer("the", add_special_tokens=False)["input_ids"]
    whole = [*ids, renderer.turn_end]
    drawn = [whole, ids, whole, [*ids, *ids], ids, whole, ids, whole]
    rollouts = [Rollout([1], x, [0.0] * len(x), "stop", 0) for x in drawn]
    rows = list(generate_file.written(job, range(2), rollouts))
    assert rows[0]["completion"] == rows[1]["completion"] != rows[3]["completion"]
    assert [row["score"] for row in rows] == [float(len(x)) for x in drawn]


def test_verdicts_are_written_and_counted(run: Any, tmp_path: Path) -> None:
    output, summary = make(run, tmp_path, reward={"type": "math_correctness"})
    verdicts = [row["verdict"] for row in read(output)]
    assert summary["verdicts"] == {name: verdicts.count(name) for name in verdicts}
    assert sum(summary["verdicts"].values()) == 22
    assert "mean score" in generate_file.described(summary)


def test_a_reward_that_cannot_score_is_named_with_the_rows(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reward.py").write_text(
        "def reward(prompts, completions, completion_ids, **columns):\n"
        "    return [1 / (columns['id'][0] != 5) for _ in completions]\n"
    )
    section = {"type": "custom", "path": str(tmp_path / "reward.py")}
    with pytest.raises(ValueError, match=r"rows.jsonl, line 5 to line 6: .*ZeroDivisionError"):
        make(run, tmp_path, reward=section)
    monkeypatch.setattr(generate_file, "load_sampler", pytest.fail)
    rows = [ROWS[0], {"prompt": "x"}]
    for name in ("math_correctness", "exact_match"):
        with pytest.raises(ValueError, match=r"line 2: the reward needs the column answer"):
            make(run, tmp_path, rows, reward={"type": name})


def test_columns_and_templates_make_the_prompt(run: Any, tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "prompt_id": i, "completion": "gold"} for i in range(3)]
    columns = {"q": "question", "reference": "completion"}
    output, _ = make(run, tmp_path, rows, columns=columns, prompt_template="Say {q}")
    first = read(output)[0]
    assert (first["prompt"], first["q"], first["reference"]) == ("Say 0?", "0?", "gold")
    with pytest.raises(ValueError, match=r"line 1: no column 'nothing'"):
        make(run, tmp_path, rows, columns={"prompt": "nothing"})
    with pytest.raises(ValueError, match=r"needs the column missing; .*name it with columns"):
        make(run, tmp_path, rows, columns=columns, prompt_template="{missing}")
    with pytest.raises(ValueError, match=r"^prompt_template: 'cot' is not a template"):
        make(run, tmp_path, rows, columns=columns, prompt_template="cot")
    chats = [{"messages": [{"role": "user", "content": "x"}], "q": "y"}]
    with pytest.raises(ValueError, match="line 1: the row has messages, which no prompt_template"):
        make(run, tmp_path, chats, prompt_template="{q}")


def test_the_system_prompt_of_a_row_wins(chatting: Path, tmp_path: Path) -> None:
    user = {"role": "user", "content": "1?"}
    rows: list[dict[str, Any]] = [
        {"prompt": "1?"},
        {"prompt": "1?", "system": "Own."},
        {"messages": [{"role": "system", "content": "Own."}, user]},
        {"messages": [user, {"role": "assistant", "content": "left out"}]},
        {"prompt": [user]},
    ]
    output, _ = make(chatting, tmp_path, rows, system_prompt="All.", num_samples=1, temperature=0)
    asked = {"All.": [0, 3, 4], "Own.": [1, 2]}
    written = read(output)
    for system, places in asked.items():
        messages = [{"role": "system", "content": system}, user]
        (expected,) = posttrain.generate(chatting, [messages], max_new_tokens=6, temperature=0)
        assert [written[i]["completion"] for i in places] == [expected.text] * len(places)


def test_what_is_read_differently_is_reported(
    chatting: Path, tmp_path: Path, capfd: Capture
) -> None:
    turns = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "2"}]
    make(chatting, tmp_path, [{"prompt": "1?"}, {"prompt": turns}])
    assert "a last assistant turn of the prompt is left out; 1 of 2 rows" in capfd.readouterr().out


def test_options_win_over_the_file_and_the_file_over_defaults(
    run: Any, tmp_path: Path, capfd: Capture
) -> None:
    config = tmp_path / "inference.yaml"
    config.write_text("max_new_tokens: 5\ntemperature: 0.5\nreward: {type: math_correctness}\n")
    source, output = write(tmp_path / "rows.jsonl", ROWS[:2]), tmp_path / "o.jsonl"
    said = output_of(
        capfd,
        "generate",
        run.folder,
        "--file",
        source,
        "--output",
        output,
        "--config",
        config,
        "--max-new-tokens",
        256 - 200,
        "-n",
        3,
        "--reward-option",
        "tolerance=0.5",
        "--logprobs",
    )
    made_of = json.loads((tmp_path / "o.jsonl.json").read_text())["made_of"]
    assert (made_of["max_new_tokens"], made_of["temperature"], made_of["top_p"]) == (56, 0.5, 1.0)
    assert (made_of["reward"]["type"], made_of["reward"]["tolerance"]) == ("math_correctness", 0.5)
    assert "2 of 2 rows" in said
    assert "rows 2  completions 6  tokens" in said
    # a default that is written wins, too
    chosen = inference.inference_config(config, {"temperature": 1.0})
    assert (chosen.temperature, chosen.max_new_tokens) == (1.0, 5)


def test_the_example_is_read() -> None:
    chosen = inference.inference_config(ROOT / "examples/inference.yaml", {})
    assert (chosen.num_samples, chosen.reward and chosen.reward.type) == (4, "math_correctness")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_tokens: 5", "unknown key max_tokens: write max_new_tokens"),
        ("temprature: 5", "unknown key temprature: did you mean temperature?"),
        ("temperature: -1", "temperature: input should be greater than or equal to 0"),
        ("top_p: 0", "top_p: input should be greater than 0"),
        ("n: 4", "unknown key n: write num_samples"),
        ("reward: {type: math}", "reward.type 'math' is not known; did you mean"),
        ("reward: 5", "reward"),
        ("device: tpu", "device: input should be 'auto', 'cpu' or 'cuda'"),
        ("seed: 1.5", "seed: input should be a valid integer"),
        ("- 1", "must hold keys of posttrain generate"),
        ("a: [", "not valid YAML"),
        ("logprobs: 3", "logprobs: input should be"),
        ("temperature: .nan", "temperature: input should be"),
        ("temperature: 1.0e-7", "temperature: expected 0 (greedy) or at least 1e-06"),
    ],
)
def test_a_wrong_key_of_the_file_gets_a_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "i.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"i\.yaml") as caught:
        inference.inference_config(tmp_path / "i.yaml", {})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--file: give either a file or prompts"),
        (("hello", "--file", "x.jsonl"), "--file: give either a file or prompts"),
        (("--file", "x.jsonl"), "--output: give the file for the rows"),
        (("hello", "--output", "x.jsonl"), "--output: is for the rows of a file"),
        (("hello", "--logprobs"), "--logprobs: is for the rows of a file"),
        (("hello", "--reward", "repetition"), "--reward: is for the rows of a file"),
        (("hello", "--reward", "length"), "reward.kind is missing"),
        (("hello", "--columns", "a=b"), "--columns: is for the rows of a file"),
        (("hello", "--prompt-template", "{a}"), "--prompt-template: is for the rows of a file"),
        (("hello", "--top-p", "0"), "--top-p: input should be greater than 0"),
        (("hello", "--temperature", "1e-9"), "--temperature: expected 0 (greedy) or at least"),
        (("hello", "--dtype", "fp8"), "--dtype: input should be"),
        (("hello", "--config", "none.yaml"), "no settings file none.yaml"),
        (("hello", "--split", "test"), "--split: is for the rows of a file"),
        (("hello", "--reward-option", "a=1"), "--reward: no reward has been named"),
        (("hello", "--columns", "a"), "option 'a' is not of the form key=value"),
    ],
)
def test_options_that_do_not_go_together(
    run: Any, capfd: Capture, arguments: tuple[str, ...], words: str
) -> None:
    assert words in complaint(capfd, "generate", run.folder, *arguments)


def test_values_that_json_cannot_hold_are_written_as_it_can(run: Any, tmp_path: Path) -> None:
    import datetime

    import pyarrow
    import pyarrow.parquet

    rows = [
        {"prompt": "1?", "x": float("nan"), "day": datetime.date(2026, 1, 2), "raw": b"\xff"},
        {"prompt": "2?", "x": 1.5, "day": None, "raw": None},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    output = tmp_path / "out.jsonl"
    posttrain.generate_file(run, tmp_path / "t.parquet", output, max_new_tokens=3)
    first, second = read(output)
    assert (first["x"], first["day"], second["x"], second["day"]) == (None, "2026-01-02", 1.5, None)


def test_line_separators_and_escapes_stay_in_one_line(run: Any, tmp_path: Path) -> None:
    odd = 'a\u2028b\u2029c\r\nd\x85e\x0bf\\ "g" 🙂 \u202eright'
    output, _ = make(run, tmp_path, [{"prompt": odd, "nested": {"x": [odd]}}], num_samples=1)
    (row,) = read(output)
    assert (row["prompt"], row["nested"]) == (odd, {"x": [odd]})


@pytest.fixture(scope="module")
def adapters(run: posttrain.Run, tmp_path_factory: pytest.TempPathFactory) -> list[posttrain.Run]:
    """Two LoRA adapters of the model that was trained."""
    trained = []
    for rank in (2, 3):
        tree = tiny.run_config(tmp_path_factory.mktemp("adapter"))
        tree["model"] = {"name": str(run.folder), "adapter": {"type": "lora", "r": rank}}
        keys = {"max_steps": 3, "learning_rate": 0.5, "seed": rank}
        trained.append(posttrain.train(tree, trainer=keys))
    return trained


def test_each_row_is_completed_by_its_own_adapter(
    run: Any, adapters: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate_file, "load_sampler", loading.load_sampler)
    names = ["", str(adapters[0]), None, str(adapters[1].best_checkpoint), str(adapters[0])]
    rows = [{"prompt": f"{i % 3}?", "adapter": names[i % 5]} for i in range(13)]
    output, _ = make(run, tmp_path, rows)
    written = read(output)
    for name in (None, *adapters):
        (tmp_path / "alone").mkdir()
        plain = [{"prompt": row["prompt"]} for row in rows]
        alone = read(make(name or run, tmp_path / "alone", plain)[0])
        shutil.rmtree(tmp_path / "alone")
        folders = ("", None) if name is None else (str(name), str(name.best_checkpoint))
        own = [i for i, row in enumerate(written) if row["adapter"] in folders]
        assert own
        assert [written[i]["completion"] for i in own] == [alone[i]["completion"] for i in own]
    texts = {row["adapter"]: row["completion"] for row in written[:10:2]}
    assert len(set(texts.values())) >= 3, "the adapters do nothing"
    output.unlink()
    killed_before_the_end(run, tmp_path, monkeypatch, rows=rows)
    weights = adapters[0].best_checkpoint / "adapter_model.safetensors"
    saved = weights.read_bytes()
    weights.write_bytes(saved[:-1] + bytes([saved[-1] ^ 1]))
    with pytest.raises(ValueError, match="adapters was"):
        make(run, tmp_path, rows)
    weights.write_bytes(saved)
    assert read(make(run, tmp_path, rows)[0]) == written


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("USB-C", "line 2: the column adapter names USB-C, which holds no adapter"),
        (5, "line 2: adapter must be the text of a path, got 5"),
        ("${NOTHING_HERE}/x", "line 2: adapter: .*NOTHING_HERE is not set"),
        ("base", "line 2: the column adapter names .*, which holds no adapter"),
    ],
)
def test_a_column_that_names_no_adapter_is_refused_by_its_line(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any, words: str
) -> None:
    monkeypatch.setattr(generate_file, "load_sampler", pytest.fail)
    name = str(run.best_checkpoint) if name == "base" else name
    with pytest.raises(ValueError, match=words):
        make(run, tmp_path, [{"prompt": "1", "adapter": None}, {"prompt": "1", "adapter": name}])


@pytest.mark.parametrize(
    ("adapter", "quantization"),
    [
        ("loreft", None),
        ("lora", "nf4"),
        pytest.param("dora", None, marks=pytest.mark.slow),
        pytest.param("ia3", None, marks=pytest.mark.slow),
        pytest.param("direft", None, marks=pytest.mark.slow),
    ],
)
def test_every_kind_of_checkpoint_is_sampled_as_by_generate(
    tmp_path: Path, adapter: str, quantization: str | None
) -> None:
    if quantization is not None:
        pytest.importorskip("bitsandbytes")
    tree = tiny.run_config(tmp_path / "base")
    tree["model"]["scratch"] |= {"hidden_size": 64, "intermediate_size": 128}
    base = posttrain.train(tree, trainer={"max_steps": 1})
    tree = tiny.run_config(tmp_path / "run")
    stored = {} if quantization is None else {"quantization": {"type": quantization}}
    tree["model"] = {"name": str(base.folder), "adapter": {"type": adapter}, **stored}
    trained = posttrain.train(tree, trainer={"max_steps": 2, "learning_rate": 0.05})
    written = read(make(trained, tmp_path, logprobs=True)[0])
    prompts = [row["prompt"] for row in ROWS]
    wanted = posttrain.generate(trained, prompts, **KEYS)
    assert [row["token_ids"] for row in written] == [one.token_ids for one in wanted]
    plain = posttrain.generate(base, prompts, **KEYS)
    assert [one.token_ids for one in plain] != [one.token_ids for one in wanted]


def test_an_adapter_beside_an_adapter_is_refused(adapters: list[Any], tmp_path: Path) -> None:
    rows = [{"prompt": "1", "adapter": str(adapters[1])}]
    with pytest.raises(ValueError, match="line 1: the column adapter needs a model without one"):
        make(adapters[0], tmp_path, rows)


def test_a_resumed_file_keeps_the_day_on_which_it_was_begun(
    chatting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datetime

    (tmp_path / "model").mkdir()
    model = shutil.copytree(chatting, tmp_path / "model" / "dated")
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}" + template)
    (tmp_path / "whole").mkdir()
    whole, _ = make(model, tmp_path / "whole")
    killed_before_the_end(model, tmp_path, monkeypatch)

    class Tomorrow(datetime.date):
        @classmethod
        def today(cls) -> Any:
            return datetime.date(2031, 2, 3)

    monkeypatch.setattr(loading.datetime, "date", Tomorrow)
    output, _ = make(model, tmp_path)
    assert output.read_bytes() == whole.read_bytes()
    (tmp_path / "later").mkdir()
    later, _ = make(model, tmp_path / "later")
    assert later.read_bytes() != whole.read_bytes()


def processes(tmp_path: Path, arguments: list[str], ranks: int = 1) -> subprocess.Popen[str]:
    """The command in parts of 4 completions, in a process group of its own."""
    script = tmp_path / "command.py"
    script.write_text(
        "import sys\nfrom posttrain.runs import file_job\n"
        "file_job.PART = {'cpu': 4}\n"
        "from posttrain.cli.main import main\nmain()\n"
    )
    launcher = [sys.executable, str(script)]
    if ranks > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
        launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(script)]
    return subprocess.Popen(
        [*launcher, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def kill(parent: int) -> None:
    """Kill a process and those that it started: torchrun's are in sessions of their own."""
    children: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            number, fields = int(file.parent.name), file.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(number)
    doomed = [parent]
    for process in doomed:
        doomed += children.get(process, [])
    for process in doomed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_sigkill_at_random_moments(run: Any, tmp_path: Path, ranks: int) -> None:
    (tmp_path / "whole").mkdir()
    rows = [{"prompt": f"{i} and {i % 7}?"} for i in range(150)]
    keys: dict[str, Any] = {"max_new_tokens": 60, "num_samples": 2, "logprobs": True}
    whole, _ = make(run, tmp_path / "whole", rows, **keys)
    source, output = write(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    arguments = ["generate", str(run.folder), "--file", str(source), "--output", str(output)]
    arguments += ["-n", "2", "--max-new-tokens", "60", "--seed", "3", "--logprobs"]
    chance, done = random.Random(ranks), 0

    def count() -> int:
        return len(list(tmp_path.glob("out.jsonl.parts/0*.jsonl")))

    for _ in range(5):
        process = processes(tmp_path, arguments, ranks)
        while process.poll() is None and count() == done and not output.exists():
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 0.1))
        kill(process.pid)
        process.communicate()
        if output.exists():
            break
        assert count() >= max(done, 1), "a finished part was lost"
        done = count()
    said, _ = processes(tmp_path, arguments, ranks).communicate(timeout=300)
    assert output.read_bytes() == whole.read_bytes(), said
    assert done > 0
